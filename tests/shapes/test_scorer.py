"""The scorer's captions, rewards, training pictures and loss agree with their definitions."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import special

from flowsde import Flow
from flowsde.shapes import data, posterior, scorer, scorer_data, scorer_task
from flowsde.shapes.captions import COLOURS, KINDS, MAX_COUNT, Group, counts, tokenize

TINY = scorer.ScorerConfig(width=16, depth=1, hidden=16)
ALL_GROUPS = [
    Group(*g)
    for g in itertools.product(range(1, MAX_COUNT + 1), range(len(COLOURS)), range(len(KINDS)))
]


def _certain(table: np.ndarray) -> jax.Array:
    """Log-probabilities that put 0.9 on the counts of a table and share out the rest."""
    hot = np.eye(scorer.CLASSES)[table]
    return jnp.log(jnp.asarray(0.9 * hot + (1 - hot) * 0.1 / (scorer.CLASSES - 1), jnp.float32))


GREY_LEVEL = 0.25


def _grey(params: None, x: jax.Array, t: jax.Array, cond: jax.Array) -> jax.Array:
    """Velocity of data that are one grey picture: (x - data) / t."""
    return (x - GREY_LEVEL) / jnp.maximum(t, 1e-3)[:, None, None, None]


def _zero(params: None, x: jax.Array, t: jax.Array, cond: jax.Array) -> jax.Array:
    """Posterior mean = the noisy picture."""
    return jnp.zeros_like(x)


GREY = Flow.from_callable(_grey, None, (32, 32, 3))
SHARP = Flow.from_callable(_zero, None, (32, 32, 3))


@pytest.fixture(scope="module")
def batch() -> scorer_data.Batch:
    return scorer_data.batch(5, range(64))


@pytest.fixture(scope="module")
def params() -> scorer.Params:
    return jax.jit(partial(scorer.init, TINY))(jax.random.key(0))


@pytest.fixture(scope="module")
def opinionated(params: scorer.Params) -> scorer.Params:
    kernel = jax.random.normal(jax.random.key(1), params["read2"]["kernel"].shape, jnp.float32)
    return params | {"read2": {"kernel": kernel, "bias": params["read2"]["bias"]}}


# Captions


def _two_groups() -> list[tuple[Group, ...]]:
    rng = np.random.default_rng(0)
    pairs = [tuple(ALL_GROUPS[i] for i in rng.choice(len(ALL_GROUPS), 2)) for _ in range(2000)]
    return [(a, b) for a, b in pairs if a[1:] != b[1:]]


@pytest.mark.slow
@pytest.mark.parametrize("captions", [[(g,) for g in ALL_GROUPS], _two_groups()])
@pytest.mark.parametrize("x64", [False, True])
def test_counts_from_tokens_are_those_of_captions(
    captions: list[tuple[Group, ...]], x64: bool
) -> None:
    tokens = np.stack([tokenize(groups) for groups in captions])
    with jax.enable_x64(x64):
        table = jax.jit(scorer.counts_from_tokens)(tokens)
    assert table.dtype == jnp.int32
    np.testing.assert_array_equal(table, np.stack([counts(groups) for groups in captions]))


@pytest.mark.slow
def test_no_caption_wants_no_objects() -> None:
    assert not scorer.counts_from_tokens(jnp.zeros((2, 8), jnp.int32)).any()


# Rewards


def test_log_likelihood_of_uniform_probabilities() -> None:
    uniform = jnp.full((3, 6, 3, scorer.CLASSES), -jnp.log(7.0))
    wanted = jnp.asarray(np.random.default_rng(0).integers(0, 6, (3, 6, 3)), jnp.int32)
    value = scorer.log_likelihood(uniform, wanted)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, 18 * np.log(1 / 7), rtol=1e-6)


def test_log_likelihood_loses_a_factor_for_each_wrong_pair() -> None:
    table = counts((Group(3, 0, 0), Group(2, 4, 1)))
    extra, missing, swapped = table.copy(), table.copy(), table.copy()
    extra[5, 2] = 1
    missing[0, 0] = 2
    swapped[0, [0, 1]] = [0, 3]
    wanted = jnp.asarray(np.stack([table] * 4), jnp.int32)
    value = scorer.log_likelihood(_certain(np.stack([table, extra, missing, swapped])), wanted)
    right, wrong = np.log(0.9), np.log(0.1 / 6)
    expected = [(18 - k) * right + k * wrong for k in (0, 1, 1, 2)]
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_negative_rss_is_zero_only_where_the_most_likely_counts_are_wanted() -> None:
    rng = np.random.default_rng(0)
    seen, wanted = rng.integers(0, 7, (50, 6, 3)), rng.integers(0, 6, (50, 6, 3))
    wanted[::2] = np.minimum(seen[::2], 5)
    value = scorer.negative_rss(_certain(seen), jnp.asarray(wanted, jnp.int32))
    np.testing.assert_array_equal(value, -np.square(seen - wanted).sum((1, 2)))
    np.testing.assert_array_equal(value == 0, (seen == wanted).all((1, 2)))


@pytest.mark.parametrize("measure", [scorer.log_likelihood, scorer.negative_rss])
def test_rewards_name_a_wrong_argument(measure: scorer.Measure) -> None:
    good = jnp.zeros((2, 6, 3, 7)), jnp.zeros((2, 6, 3), jnp.int32)
    with pytest.raises(ValueError, match=r"wanted: got shape \(1, 6, 3\)"):
        measure(good[0], good[1][:1])
    with pytest.raises(ValueError, match=r"log_probs: got shape \(2, 6, 3, 6\)"):
        measure(good[0][..., :6], good[1])


@pytest.mark.slow
@pytest.mark.parametrize("x64", [False, True])
def test_reward_of_pictures_and_tokens(opinionated: scorer.Params, x64: bool) -> None:
    scenes = data.scenes(0, range(4))
    with jax.enable_x64(x64):
        reward = jax.jit(partial(scorer.make_reward(TINY), opinionated))
        value = reward(scenes.images, scenes.tokens)
        log_probs = jax.jit(scorer.make_scorer(TINY))(opinionated, jnp.asarray(scenes.images))
    assert value.dtype == log_probs.dtype == jnp.float32
    assert log_probs.shape == (4, 6, 3, 7)
    np.testing.assert_allclose(jnp.exp(log_probs).sum(-1), 1.0, rtol=1e-5)
    expected = scorer.log_likelihood(log_probs, jnp.asarray(scenes.counts))
    np.testing.assert_allclose(value, expected, rtol=1e-4)


@pytest.mark.slow
def test_an_untrained_gaussian_read_out_is_a_discrete_gaussian_about_the_sum() -> None:
    config = dataclasses.replace(TINY, gaussian=True)
    params = jax.jit(partial(scorer.init, config))(jax.random.key(0))
    # From no objects at all to more than the classes go.
    images = jnp.asarray(data.scenes(0, range(4)).images)
    for bias in (-9.0, -3.0, -2.0, -1.0):
        detect = params["detect"] | {"bias": jnp.full_like(params["detect"]["bias"], bias)}
        model = nnx.merge(scorer.split(config)[0], params | {"detect": detect})
        logits, log_probs = map(np.asarray, jax.jit(model.detect_and_count)(images))
        total = special.expit(logits[..., 0].astype(np.float64)).sum(1)
        squares = np.square(np.arange(7) - np.minimum(total, 6.0)[..., None])
        np.testing.assert_allclose(log_probs, special.log_softmax(-squares, axis=-1), atol=1e-4)


def test_a_configuration_without_the_read_out_is_of_a_perceptron_alone() -> None:
    assert not scorer.ScorerConfig(**{"width": 64, "depth": 2}).gaussian


# Training pictures


def test_batch_depends_on_seed_and_scene_alone(batch: scorer_data.Batch) -> None:
    for part, whole in zip(scorer_data.batch(5, range(24, 32)), batch, strict=True):
        np.testing.assert_array_equal(part, whole[24:32])
    assert not np.array_equal(scorer_data.batch(6, range(64)).images, batch.images)


def test_batch_is_of_pictures_and_distributions(batch: scorer_data.Batch) -> None:
    assert batch.images.shape == (64, 32, 32, 3)
    assert batch.targets.shape == (64, 6, 3, 7)
    assert batch.centres.shape == (64, 64, 6, 3)
    assert all(part.dtype == np.float32 for part in batch)
    assert np.abs(batch.images).max() <= 1.0
    assert batch.targets.min() >= 0.0
    assert 0.0 == batch.centres.min() < batch.centres.max() <= 1.0
    np.testing.assert_allclose(batch.targets.sum(-1), 1.0, rtol=1e-6)


def test_undamaged_scenes_are_labelled_with_their_objects() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        layout = scorer_data.sample_layout(rng)
        damage = scorer_data.sample_damage(rng, layout)
        table = scorer_data.count_table(layout)
        assert table.sum() == (layout.radii > 0).sum()
        np.testing.assert_allclose(scorer_data.centre_table(layout).sum(0), table, atol=1e-6)
        if damage.other is layout:
            np.testing.assert_array_equal(damage.target.argmax(-1), np.minimum(table, 6))
            np.testing.assert_allclose(damage.centres.sum(0), table, atol=1e-6)


def test_a_centre_is_shared_by_the_cells_of_a_square_around_it() -> None:
    # In the middle of a cell; on the border of two; and 1/2 beyond a corner of four, (8, 12).
    centres = np.asarray([[2.0, 6.0], [20.0, 14.0], [8.5, 12.5]])
    colours = np.arange(3)
    layout = scorer_data.Layout(centres, np.ones(3), np.zeros(3, np.int64), colours)
    table = scorer_data.centre_table(layout)[..., 0].reshape(8, 8, 6)
    expected = np.zeros((8, 8, 6))
    expected[1, 0, 0] = 1.0
    expected[3, 4:6, 1] = 0.5
    expected[2:4, 1:3, 2] = np.outer([0.25, 0.75], [0.25, 0.75])
    np.testing.assert_allclose(table, expected, atol=1e-6)


def test_blur_keeps_the_mean_and_a_small_one_keeps_the_picture() -> None:
    images = jnp.asarray(data.scenes(0, range(4)).images)
    sigma = jnp.asarray([0.0, 0.5, 1.0, 2.0], jnp.float32)
    blurred = jax.jit(scorer_task.blur)(images, sigma)
    np.testing.assert_allclose(blurred.mean((1, 2)), images.mean((1, 2)), atol=1e-5)
    np.testing.assert_allclose(blurred[0], images[0], atol=1e-6)
    spread = np.asarray(jnp.var(blurred, (1, 2, 3)) / jnp.var(images, (1, 2, 3)))
    assert np.all(np.diff(spread) < 0)


@pytest.mark.slow
def test_blur_of_a_point_is_a_gaussian() -> None:
    point = jnp.zeros((1, 32, 32, 3)).at[0, 16, 12].set(1.0)
    sigma = 1.5
    y, x = np.mgrid[:32, :32]
    expected = np.exp(-((y - 16) ** 2 + (x - 12) ** 2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
    blurred = jax.jit(scorer_task.blur)(point, jnp.asarray([sigma], jnp.float32))
    np.testing.assert_allclose(blurred[0, :, :, 1], expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("x64", [False, True])
def test_augmentation_is_finite_and_keeps_distributions(
    batch: scorer_data.Batch, x64: bool
) -> None:
    with jax.enable_x64(x64):
        augmented = jax.jit(scorer_task.augment)(jax.random.key(0), batch)
    for before, after in zip(batch, augmented, strict=True):
        assert before.shape == after.shape
        assert after.dtype == jnp.float32
        assert jnp.isfinite(after).all()
    np.testing.assert_allclose(augmented.targets.sum(-1), 1.0, rtol=1e-5)
    changed = np.abs(augmented.images - batch.images).max((1, 2, 3)) > 0.1
    # Four in ten are not clean, and a few of these are hardly damaged.
    assert 0.25 < changed.mean() < 0.5


@pytest.mark.slow
def test_hints_are_true_or_off_by_one() -> None:
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        groups = data.sample_groups(rng)
        said = np.asarray(scorer.counts_from_tokens(posterior.hint(rng, counts(groups))[None]))[0]
        np.testing.assert_array_equal(said > 0, counts(groups) > 0)
        miss = np.abs(said - counts(groups)).sum()
        assert miss <= 1
        wrong += miss
    # Four standard deviations around a half.
    assert abs(wrong / 400 - 0.5) < 4 * (0.25 / 400) ** 0.5


def test_scenes_without_a_caption_get_no_hint() -> None:
    rng = np.random.default_rng(0)
    nothing, too_many, three_groups = np.zeros((3, 6, 3), int)
    too_many[1, 2] = MAX_COUNT + 1
    three_groups[:3, 0] = 1
    for table in (nothing, too_many, three_groups):
        assert not posterior.hint(rng, table).any()


@pytest.mark.slow
def test_posterior_means_are_the_flows_and_targets_the_scenes() -> None:
    batch = posterior.batch(GREY, 5, range(8))
    np.testing.assert_allclose(batch.images, GREY_LEVEL, atol=1e-4)
    np.testing.assert_allclose(batch.targets.sum(-1), 1.0)
    objects = (batch.targets.argmax(-1)).sum((1, 2))
    few = objects < 6
    np.testing.assert_allclose(batch.centres.sum((1, 2, 3))[few], objects[few], rtol=1e-6)


@pytest.mark.slow
def test_a_posterior_mean_depends_on_seed_and_scene_alone() -> None:
    whole = posterior.batch(SHARP, 5, range(8))
    for part, full in zip(posterior.batch(SHARP, 5, range(3, 5)), whole, strict=True):
        np.testing.assert_allclose(part, full[3:5], atol=1e-6)
    assert not np.allclose(posterior.batch(SHARP, 6, range(8)).images, whole.images)


# Training


def test_detection_loss_of_certain_and_undecided_cells(batch: scorer_data.Batch) -> None:
    centres = jnp.round(jnp.asarray(batch.centres))
    certain = scorer_task.detection_loss(60.0 * (centres - 0.5), centres)
    np.testing.assert_allclose(certain, 0.0, atol=1e-6)
    undecided = scorer_task.detection_loss(jnp.zeros_like(centres), centres)
    np.testing.assert_allclose(undecided, 64 * 18 * np.log(2), rtol=1e-5)


@pytest.mark.slow
def test_loss_is_least_for_the_targets_themselves(batch: scorer_data.Batch) -> None:
    targets = jnp.asarray(batch.targets)
    entropy = -jnp.sum(jax.scipy.special.xlogy(targets, targets)) / len(targets)
    value = scorer_task.cross_entropy(jnp.log(jnp.maximum(targets, 1e-30)), targets)
    np.testing.assert_allclose(value, entropy, rtol=1e-5)
    smoothed = jnp.log(0.99 * targets + 0.01 / scorer.CLASSES)
    assert scorer_task.cross_entropy(smoothed, targets) > value


@pytest.mark.slow
@pytest.mark.parametrize("x64", [False, True])
def test_descending_the_gradient_lowers_the_loss(
    params: scorer.Params, batch: scorer_data.Batch, x64: bool
) -> None:
    few = scorer_data.Batch(*(part[:6] for part in batch)), posterior.batch(GREY, 5, range(2))
    losses = []
    with jax.enable_x64(x64):
        loss_and_grad = jax.jit(jax.value_and_grad(scorer_task.scorer_task(TINY, GREY).loss))
        for _ in range(10):
            loss, grads = loss_and_grad(params, jax.random.key(0), few)
            losses.append(float(loss))
            norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
            assert jnp.isfinite(norm)
            params = jax.tree.map(lambda p, g, norm=norm: p - 0.1 * g / norm, params, grads)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((params, grads, loss)))
    assert losses[-1] < 0.9 * losses[0]
    assert np.all(np.diff(losses[:5]) < 0)


@pytest.mark.slow
def test_a_fresh_scorer_is_undecided(params: scorer.Params, batch: scorer_data.Batch) -> None:
    log_probs = jax.jit(scorer.make_scorer(TINY))(params, jnp.asarray(batch.images[:2]))
    np.testing.assert_allclose(log_probs, -np.log(7), rtol=1e-6)
