"""Tasks: judges and given rewards against scenes rendered with known places and sizes."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowsde as fs
from flowsde import shapes
from flowsde.shapes import captions, checker, data
from flowsde.shapes.captions import Group
from flowsde.shapes.tasks import SPLITS, TASKS, Challenge, layout

RED, BLUE = captions.COLOURS.index("red"), captions.COLOURS.index("blue")
PLACED = ("sides", "row", "above", "size", "layout")
"""Tasks of more than counts."""


class Arranged(NamedTuple):
    """A scene: box centres [k, 2] and radii [k] of the objects of a caption, in its order."""

    centres: np.ndarray
    radii: np.ndarray


def objects(groups: tuple[Group, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kind, colour and group of each object."""
    counts = [group.count for group in groups]
    columns = ([g.kind for g in groups], [g.colour for g in groups], range(len(groups)))
    kinds, colours, group = (np.repeat(values, counts) for values in columns)
    return kinds, colours, group


def drawn(groups: tuple[Group, ...], scene: Arranged) -> np.ndarray:
    kinds, colours, _ = objects(groups)
    return data.render(scene.centres[None], scene.radii[None], kinds[None], colours[None])[0]


def _until(
    rng: np.random.Generator, groups: tuple[Group, ...], good: Callable[[np.ndarray], Any]
) -> Arranged:
    while True:
        scene = Arranged(*data.place(rng, objects(groups)[0]))
        if good(scene.centres):
            return scene


def _far(places: np.ndarray) -> Callable[[np.ndarray], Any]:
    """Whether an object is more than 10 pixels from any place."""

    def far(centres: np.ndarray) -> Any:
        apart = np.linalg.norm(centres[:, None] - places, axis=-1)
        return (apart.min(axis=1) > 10.0).any()

    return far


def arranged(
    name: str, rng: np.random.Generator, groups: tuple[Group, ...]
) -> tuple[Arranged, Arranged]:
    """A scene that is what the task asks for, and one with the same objects that is not."""
    kinds, _, group = objects(groups)
    right = wrong = Arranged(*data.place(rng, kinds))
    if name == "sides":
        right = _until(rng, groups, lambda c: np.array_equal(c[:, 0] > 16.0, group == 1))
        wrong = right._replace(centres=[32.0, 0.0] + [-1.0, 1.0] * right.centres)
    if name == "above":
        right = _until(rng, groups, lambda c: c[group == 0, 1].max() < c[group == 1, 1].min() - 4)
        # Box centres, upside down: kinds stay upright.
        wrong = right._replace(centres=[0.0, 32.0] + [1.0, -1.0] * right.centres)
    if name == "row":
        right = _until(rng, groups, lambda c: np.ptp(c[:, 1]) < 4.0)
        wrong = _until(rng, groups, lambda c: np.ptp(c[:, 1]) > 8.0)
    if name == "size":
        place, share = right, rng.uniform(0.0, 0.1, len(kinds))
        cells = 8.0 * np.floor(place.centres / 8.0) + 4.0
        largest = 3.2 / np.asarray([1.0, 0.9])[kinds]
        right = Arranged(cells, largest - share * (largest - 2.5))
        wrong = Arranged(cells, 2.5 + share * (largest - 2.5))
    if name == "layout":
        places = np.concatenate(layout.places(groups))
        right = right._replace(centres=places)
        wrong = _until(rng, groups, _far(places))
    return right, wrong


def scenes(task: Challenge, n: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Captions, and a right and a wrong picture of each; of counts one object is wrong."""
    texts, rng = task.captions("dev", n), np.random.default_rng(3)
    right, wrong = [], []
    for text in texts:
        groups = task.parse(text)
        good, bad = arranged(task.name, rng, groups)
        right.append(drawn(groups, good))
        if task.name in PLACED:
            wrong.append(drawn(groups, bad))
        else:
            radii = bad.radii * (np.arange(len(bad.radii)) != rng.integers(len(bad.radii)))
            wrong.append(drawn(groups, bad._replace(radii=radii)))
    return texts, np.stack(right), np.stack(wrong)


@pytest.fixture(scope="module")
def pictures() -> dict[str, tuple[list[str], np.ndarray, np.ndarray]]:
    return {name: scenes(task, 24) for name, task in TASKS.items()}


def cond_of(task: Challenge, texts: list[str]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *[task.encode(text) for text in texts])


# The checker's places.


def test_the_checker_tells_places_and_sizes() -> None:
    rng = np.random.default_rng(1)
    extent = np.asarray([[1.0, 1.0], [0.9, 0.9], [1.35 * 3**0.5 / 2, 1.35 * 0.75]])
    area = np.asarray([np.pi, 4 * 0.9**2, 3 * 3**0.5 / 4 * 1.35**2])
    for _ in range(20):
        groups = (Group(4, RED, int(rng.integers(3))), Group(3, BLUE, int(rng.integers(3))))
        scene, (kinds, colours, _) = Arranged(*data.place(rng, objects(groups)[0])), objects(groups)
        seen = checker.locate(drawn(groups, scene)[None])
        assert seen.unclear[0] == 0 and (seen.objects.picture == 0).all()
        nearest = np.linalg.norm(seen.objects.centre[:, None] - scene.centres, axis=-1).argmin(1)
        assert sorted(nearest) == list(range(7))
        np.testing.assert_array_equal(seen.objects.kind, kinds[nearest])
        np.testing.assert_array_equal(seen.objects.colour, colours[nearest])
        half = (extent[kinds] * scene.radii[:, None])[nearest]
        np.testing.assert_allclose(seen.objects.low, scene.centres[nearest] - half, atol=0.4)
        np.testing.assert_allclose(seen.objects.high, scene.centres[nearest] + half, atol=0.4)
        wanted = (area[kinds] * scene.radii**2)[nearest]
        np.testing.assert_allclose(seen.objects.area, wanted, rtol=0.1)


def test_places_do_not_depend_on_the_other_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    images = data.scenes(5, range(9)).images
    whole = checker.locate(images).objects
    monkeypatch.setattr(checker, "_CHUNK", 2)
    for got, expected in zip(checker.locate(images).objects, whole, strict=True):
        np.testing.assert_array_equal(got, expected)
    alone = checker.locate(images[4:5]).objects
    for got, expected in zip(alone[1:], whole.where(whole.picture == 4)[1:], strict=True):
        np.testing.assert_array_equal(got, expected)


# Judges.


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_right_scenes_succeed_and_wrong_ones_do_not(name: str, pictures: Any) -> None:
    texts, right, wrong = pictures[name]
    good, bad = (TASKS[name].judge(images, texts) for images in (right, wrong))
    assert good.success.mean() >= 0.95 and not bad.success.any()
    # What is wrong is the place or the size alone, or else one object.
    assert (bad.exact.mean() >= 0.95) if name in PLACED else not bad.exact.any()
    np.testing.assert_array_equal(good.exact, good.rss == 0.0)
    assert not (good.success & ~good.exact).any()


@pytest.mark.slow
def test_no_picture_succeeds_at_another_caption(pictures: Any) -> None:
    for name in ("counts", *PLACED):
        texts, right, _ = pictures[name]
        assert not TASKS[name].judge(right, texts[1:] + texts[:1]).success.any()


@pytest.mark.slow
def test_numbers_are_those_of_the_scene() -> None:
    rng = np.random.default_rng(2)
    groups = (Group(3, RED, 1), Group(2, BLUE, 0))
    text = captions.caption(groups)
    half = np.asarray([0.9, 0.9, 0.9, 1.0, 1.0])
    for _ in range(10):
        scene = Arranged(*data.place(rng, objects(groups)[0]))
        image = drawn(groups, scene)[None]
        x, y = scene.centres.T
        top, bottom = y - half * scene.radii, y + half * scene.radii
        sides = TASKS["sides"].judge(image, [text]).numbers
        assert sides["left"] == pytest.approx(np.mean(x[:3] < 16.0))
        assert sides["right"] == pytest.approx(np.mean(x[3:] > 16.0))
        gap = TASKS["above"].judge(image, [text]).numbers["gap"]
        assert gap == pytest.approx(top[3:].min() - bottom[:3].max(), abs=0.5)
        size = TASKS["size"].judge(image, [text]).numbers["size"]
        # Of radii that are uniform, a square's mean area is 30.0 and a circle's 25.6.
        areas = np.where(half == 1.0, np.pi / 25.6, 3.24 / 30.0) * scene.radii**2
        assert size == pytest.approx(areas.mean(), rel=0.05)


def test_spread_of_a_row_and_distance_from_a_sketch() -> None:
    groups = (Group(2, RED, 0), Group(1, BLUE, 0))
    text = captions.caption(groups)
    centres = np.asarray([[5.0, 12.0], [14.0, 13.5], [25.0, 12.5]])
    image = drawn(groups, Arranged(centres, np.full(3, 3.0)))[None]
    row = TASKS["row"].judge(image, [text])
    assert row.success[0] and row.numbers["spread"][0] == pytest.approx(1.5, abs=0.2)
    places = np.concatenate(layout.places(groups))
    inwards = 2.0 * np.sign(16.0 - places)
    moved = drawn(groups, Arranged(places + inwards, np.full(3, 2.6)))[None]
    near = TASKS["layout"].judge(moved, [text])
    assert near.success[0] and near.numbers["distance"][0] == pytest.approx(8**0.5, abs=0.2)


def test_distance_is_that_of_the_best_matching() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(0.0, 32.0, (4, 2))
    assert layout.distance(points[::-1], points) == 0.0
    assert layout.distance(points[:3], points) == np.inf
    others = rng.uniform(0.0, 32.0, (4, 2))
    every = [
        max(np.hypot(*(others[i] - points[j])) for i, j in enumerate(order))
        for order in itertools.permutations(range(4))
    ]
    assert layout.distance(others, points) == pytest.approx(min(every))


@pytest.mark.parametrize("name", TASKS)
def test_an_empty_picture_fails(name: str) -> None:
    empty = np.broadcast_to(2.0 * data.BACKGROUND - 1.0, (2, 32, 32, 3)).astype(np.float32)
    found = TASKS[name].judge(empty, TASKS[name].captions("dev", 2))
    assert not found.success.any() and found.counts.sum() == 0


# Given rewards.


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_right_scenes_are_worth_more_than_wrong_ones(name: str, pictures: Any) -> None:
    task, (texts, right, wrong) = TASKS[name], pictures[name]
    judged = jax.jit(lambda reward, images, cond: reward(images, cond))
    cond, reward = cond_of(task, texts), task.load_reward()
    worth = [np.asarray(judged(reward, jnp.asarray(images), cond)) for images in (right, wrong)]
    assert (worth[0] > worth[1]).mean() >= 0.95
    assert all(w.dtype == np.float32 and np.isfinite(w).all() for w in worth)
    # Loaded again, it is the same function: no other shapes, no other program.
    judged(task.load_reward(), jnp.asarray(right), cond)
    assert judged._cache_size() == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["counts", *PLACED])
def test_gradients_are_finite(name: str, pictures: Any) -> None:
    task, (texts, right, _) = TASKS[name], pictures[name]
    noise = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    flat = [np.full((1, 32, 32, 3), value, np.float32) for value in (-1.0, 0.0, 1.0)]
    images = jnp.asarray(np.concatenate([right[:4], noise, *flat]))
    reward, cond = task.load_reward(), cond_of(task, texts[:8])
    slope = jax.jit(jax.grad(lambda images: jnp.sum(reward(images, cond))))(images)
    assert bool(jnp.isfinite(slope).all())
    assert float(jnp.abs(slope[4]).max()) > 0.0


@pytest.mark.slow
def test_counts_are_the_reward_that_there_was() -> None:
    for name in ("counts", "many", "rare"):
        ours, theirs = TASKS[name].load_reward("rss"), shapes.load_reward("rss")
        assert ours.func is theirs.func
    with pytest.raises(ValueError, match="measure must be one of likelihood, rss, got 'psnr'"):
        TASKS["sides"].load_reward("psnr")


# The flow, and captions.


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_flow_reads_the_tokens_alone(guidance: float) -> None:
    flow = shapes.load_flow(guidance=guidance)
    task = TASKS["layout"]
    texts = task.captions("dev", 2)
    kernel, grid = fs.kernels.ode_euler(flow.interpolant), fs.grids.uniform(2)
    conds = cond_of(task, texts), cond_of(TASKS["counts"], texts)
    ours, plain = (
        fs.sample(jax.random.key(0), f, kernel=kernel, grid=grid, n=2, cond=cond)
        for f, cond in zip((task.flow(flow), flow), conds, strict=True)
    )
    np.testing.assert_allclose(ours, plain, atol=1e-5)
    assert task.flow(flow).evaluations == flow.evaluations
    assert TASKS["sides"].flow(flow) is flow


@pytest.mark.slow
def test_no_caption_is_in_both_sets() -> None:
    sets: dict[str, set[str]] = {split: set() for split in SPLITS}
    for task in TASKS.values():
        for split in SPLITS:
            texts = task.captions(split, 150)
            assert len(set(texts)) == 150
            assert texts[:40] == task.captions(split, 40)
            assert all(captions.caption(task.parse(text)) == text for text in texts)
            sets[split] |= set(texts)
    assert not sets["dev"] & sets["test"]


def test_captions_repeat_when_all_are_told() -> None:
    one = Challenge(name="one", summary="", draw=lambda rng: (Group(1, RED, int(rng.integers(3))),))
    sizes = []
    for split in SPLITS:
        texts = one.captions(split, 5)
        sizes.append(len(set(texts)))
        assert texts == (texts[: sizes[-1]] * 5)[: len(texts)]
    assert sum(sizes) == 3


@pytest.mark.parametrize(
    ("name", "caption", "message"),
    [
        ("many", "three red circles", "task many expects 8 objects or more, got 3"),
        ("sides", "three red circles", "task sides expects two groups of different colours"),
        ("above", "one red circle and one red square", "two groups of different colours"),
        ("row", "five red circles", "task row expects 2 to 4 objects"),
        ("size", "one red triangle", "task size expects circles and squares alone"),
        ("rare", "two red circles", "task rare expects a count, colour and shape that training"),
        ("layout", "six red circles", "unknown number 'six'"),
    ],
)
def test_captions_that_a_task_cannot_ask_for(name: str, caption: str, message: str) -> None:
    for ask in (TASKS[name].encode, TASKS[name].words):
        with pytest.raises(ValueError, match=message):
            ask(caption)


def test_there_is_no_other_set_of_captions() -> None:
    with pytest.raises(ValueError, match="split must be one of dev, test, got 'train'"):
        TASKS["sides"].captions("train", 3)


def test_words_say_what_is_asked() -> None:
    text = "one red circle and two blue squares"
    assert TASKS["counts"].words(text) == text
    for name in ("sides", "row", "above", "size", "layout"):
        words = TASKS[name].words(text)
        assert words.startswith(f"{text}, ") and words not in (f"{text}, ", text)
    (x, y), *_ = layout.places(captions.parse(text))[0]
    assert f"({x:.0f}, {y:.0f})" in TASKS["layout"].words(text)
    assert all(task.name == name and task.summary for name, task in TASKS.items())
