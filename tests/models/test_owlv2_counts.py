"""What prompts count, greedy suppression, and the reward of counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowsde.models.clip.model import CLIPTextConfig, CLIPVisionConfig
from flowsde.models.common.layers import Numerics
from flowsde.models.common.paths import parameters
from flowsde.models.owlv2.boxes import corners, overlaps, suppress
from flowsde.models.owlv2.counts import CLASSES, counts, singular
from flowsde.models.owlv2.model import Detections, Owlv2, Owlv2Config
from flowsde.models.owlv2.rewards import Counting, count_reward, square_pixels, wanted


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("three red circles and two blue squares", {"red circle": 3, "blue square": 2}),
        ("A photo of 12 Cats sitting on a sofa, one wedding cake", {"cat": 12, "wedding cake": 1}),
        ("seven sports cars near two wine glasses", {"sports car": 7, "wine glass": 2}),
        ("two dogs, 1 cat and two dogs", {"dog": 4, "cat": 1}),
        ("twenty-one sheep; five people playing with zero balls",
         {"sheep": 21, "person": 5, "ball": 0}),
        ("a 3D render of six t-shirts, 1.5 m wide", {"t-shirt": 6}),
        ("one of three children's books in 1999", {"children's book": 3}),
    ],
)  # fmt: skip
def test_counts_of_a_prompt(prompt, expected):
    assert counts(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a red cat", "'a red cat' names no counts: expected a number before what is"),
        ("made in 1999", "names no counts"),
        ("200 cats", "the count of 'cat' must be 0 to 100, got 200"),
        (", ".join(f"two {letter}" for letter in "bcdefghij"), "of 1 to 8 classes, got 9"),
    ],
)
def test_prompts_that_cannot_be_counted(prompt, said):
    with pytest.raises(ValueError, match=said):
        counts(prompt)


def test_singulars():
    plurals = "cats boxes dishes dresses babies horses men mice leaves tomatoes buses keys ties"
    singulars = "cat box dish dress baby horse man mouse leaf tomato bus key tie"
    assert [singular(word) for word in plurals.split()] == singulars.split()
    for word in ("glass", "bus", "tennis", "cat", "fish", "gas", "2s"):
        assert singular(word) == word


def test_overlaps():
    """Of squares that are shifted by half, apart, inside, and without an area."""
    boxes = jnp.asarray([[0, 0, 2, 2], [1, 0, 3, 2], [4, 4, 5, 5], [0, 0, 1, 1], [1, 1, 1, 1.0]])
    expected = np.eye(5)
    expected[0, 1] = expected[1, 0] = 1 / 3
    expected[0, 3] = expected[3, 0] = 1 / 4
    expected[4, 4] = 0.0
    np.testing.assert_allclose(overlaps(boxes), expected, rtol=1e-6)


def by_hand(boxes, labels, most):
    """Greedy suppression as it is defined, in float64."""

    def share(a, b):
        wide, high = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
        both = max(wide, 0) * max(high, 0)
        return both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both)

    kept, boxes = [], boxes.astype(np.float64)
    for i, box in enumerate(boxes):
        if all(labels[i] != labels[j] or share(box, boxes[j]) <= most for j in kept):
            kept.append(i)
    return kept


kept_of = jax.jit(suppress)


@pytest.mark.parametrize("most", [0.1, 0.3, 0.5])
def test_suppression(most):
    rng, found = np.random.default_rng(3), []
    for _ in range(20):
        boxes = np.concatenate([rng.uniform(0, 1, (40, 2)), rng.uniform(0.1, 0.5, (40, 2))], 1)
        boxes, labels = np.asarray(corners(boxes.astype(np.float32))), rng.integers(0, 3, 40)
        ours = np.flatnonzero(kept_of(boxes, labels, most))
        assert ours.tolist() == by_hand(boxes, labels, most)
        found.append(len(ours))
    assert 3 < np.mean(found) < 39


def detections(scores, labels, boxes, classes=3):
    """Of boxes that have a score for one class and next to none for others; in a single image."""
    logits = np.full((1, len(scores), classes), -20.0, np.float32)
    logits[0, np.arange(len(scores)), labels] = np.log(scores) - np.log1p(-np.asarray(scores))
    return Detections(
        jnp.asarray(logits), jnp.asarray(boxes, jnp.float32)[None], jnp.zeros((1, len(scores)))
    )


SCORES, LABELS = [0.3, 0.9, 0.05, 0.6, 0.8, 0.2], [0, 0, 0, 1, 1, 0]
BOXES = [
    [0.2, 0.2, 0.2, 0.2],  # dropped for the second, which is nearly it
    [0.2, 0.21, 0.2, 0.2],
    [0.8, 0.8, 0.1, 0.1],  # too weak
    [0.2, 0.2, 0.2, 0.2],  # of another class than the second
    [0.6, 0.2, 0.2, 0.2],
    [0.5, 0.8, 0.1, 0.1],
]
IS_CLASS = jnp.asarray([[True, True, False]])


numbers_of = jax.jit(Counting.found, static_argnums=0)


@pytest.mark.slow
def test_found_by_hand():
    seen = detections(SCORES, LABELS, BOXES)
    np.testing.assert_array_equal(numbers_of(Counting(), seen, IS_CLASS), [[2.0, 2.0, 0.0]])
    # The three best alone.
    np.testing.assert_array_equal(numbers_of(Counting(boxes=3), seen, IS_CLASS), [[1.0, 2.0, 0.0]])
    # A place without a class is like nothing.
    unlike = detections(SCORES, [2, 2, 0, 1, 1, 0], BOXES)
    np.testing.assert_array_equal(numbers_of(Counting(), unlike, IS_CLASS), [[1.0, 2.0, 0.0]])
    broken = seen._replace(logits=seen.logits.at[0, 3].set(jnp.nan))
    assert np.isnan(numbers_of(Counting(), broken, IS_CLASS)).any()


@pytest.mark.slow
def test_smoothly_found():
    """In closed form: odds over those of the threshold, to the power of 1 / softness."""
    seen = detections(SCORES, LABELS, BOXES)
    odds = np.asarray([0.9, 0.05, 0.2, 0.6, 0.8])
    odds = (odds / (1 - odds) / (0.1 / 0.9)) ** 2.0
    each = odds / (1 + odds)
    smooth = numbers_of(Counting(softness=0.5), seen, IS_CLASS)
    np.testing.assert_allclose(smooth, [[each[:3].sum(), each[3:].sum(), 0.0]], rtol=1e-5)
    sharp = numbers_of(Counting(softness=1e-3), seen, IS_CLASS)
    np.testing.assert_allclose(sharp, numbers_of(Counting(), seen, IS_CLASS), atol=1e-6)

    def total(logits):
        return jnp.sum(numbers_of(Counting(softness=0.5), seen._replace(logits=logits), IS_CLASS))

    slope = np.array(jax.grad(total)(seen.logits))[0]
    # Of its logit each box that is kept has 2 p (1 - p); the first is dropped.
    places = ([1, 2, 5, 3, 4], [0, 0, 0, 1, 1])
    np.testing.assert_allclose(slope[places], 2.0 * each * (1.0 - each), rtol=1e-4, atol=1e-6)
    slope[places] = 0.0
    assert not slope.any()


TINY = Owlv2Config(
    text=CLIPTextConfig(vocab=9, width=8, depth=1, heads=2, mlp=8, positions=4, projection=8),
    vision=CLIPVisionConfig(width=8, depth=1, heads=2, mlp=8, image=16, patch=4),
)


def told_of():
    """Two prompts: three cats and no dog, seven cats."""
    queries = np.random.default_rng(4).normal(size=(2, 8)).astype(np.float32)
    both = wanted(queries, {"cat": 3, "dog": 0}), wanted(queries[:1], {"cat": 7})
    return jax.tree.map(lambda *each: np.stack(each), *both)


def test_the_error_of_the_counts():
    """Of two images alike, with two boxes of either class."""
    told = told_of()
    assert told.queries.shape == (2, CLASSES, 8)
    assert told.counts.tolist() == [[3, 0, *[-1] * 6], [7, *[-1] * 7]]
    seen = detections(SCORES, LABELS, BOXES, CLASSES)

    def model(pixels, queries):
        assert (pixels.shape, queries.shape) == ((2, 16, 16, 3), (2, CLASSES, 8))
        return jax.tree.map(lambda a: jnp.concatenate([a, a]), seen)

    model.config = TINY
    rewards = jax.jit(Counting(), static_argnums=0)(model, jnp.zeros((2, 8, 6, 3)), told)
    # The second prompt has no dogs, and what is likeliest a dog was found to be a weak cat.
    np.testing.assert_array_equal(rewards, [-((3 - 2) ** 2) - 2**2, -((7 - 2) ** 2)])


@pytest.mark.slow
def test_the_smooth_reward():
    """It is the squared error of what is found, and has a gradient."""
    model, told = Owlv2(TINY, Numerics(), rngs=nnx.Rngs(0)), told_of()
    images = np.random.default_rng(5).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    counting = Counting(softness=2.0, threshold=0.5)
    reward = count_reward(model, counting, minibatch=1)

    @jax.jit
    def scored(reward, model, x):
        score, back = jax.vjp(lambda x: reward(x, told), x)
        seen = model(square_pixels(x, 16), jnp.asarray(told.queries))
        number = counting.found(seen, jnp.asarray(told.counts >= 0.0))
        return score, back(jnp.ones_like(score))[0], number

    ours, slope, number = map(np.asarray, scored(reward, model, images))
    expected = [-((3 - number[0, 0]) ** 2) - number[0, 1] ** 2, -((7 - number[1, 0]) ** 2)]
    np.testing.assert_allclose(ours, expected, rtol=1e-4)
    assert np.isfinite(slope).all() and (np.abs(slope).max(axis=(1, 2, 3)) > 0.0).all()
    # Weights are arguments, those of the text tower not among them.
    assert len(jax.tree.leaves(reward)) == len(parameters(model.detector))
    assert (reward.name, reward.minibatch) == ("owlv2-smooth", 1)
    assert count_reward(model).name == "owlv2"


def test_what_cannot_be_is_named():
    for wrong, said in (
        ({"softness": 0.0}, "softness must be a finite number above 0, got 0.0"),
        ({"threshold": 1.0}, "threshold must be between 0 and 1, got 1.0"),
        ({"overlap": 0.0}, "overlap must be between 0 and 1, got 0.0"),
        ({"boxes": 0}, "boxes must be an integer of at least 1, got 0"),
        ({"gray": 127.0}, "gray must be 0 to 1, got 127.0"),
    ):
        with pytest.raises(ValueError, match=said):
            Counting(**wrong)
    queries = np.zeros((1, 8), np.float32)
    for counted, said in (
        ({}, "counts must be of 1 to 8 classes, got 0"),
        ({" ": 1}, "a class to count must be a word or several, got ' '"),
        ({"cat": -1}, "the count of 'cat' must be 0 to 100, got -1"),
        ({"cat": 1, "dog": 1}, "queries must be of 2 classes, got 1"),
    ):
        with pytest.raises(ValueError, match=said):
            wanted(queries, counted)
    with pytest.raises(TypeError, match="the count of 'cat' must be an integer, got 1.5"):
        wanted(queries, {"cat": 1.5})
    with pytest.raises(ValueError, match=r"\[n, height, width, 3\], got \[4, 4, 3\]"):
        square_pixels(jnp.zeros((4, 4, 3)))
