"""The checker is compared with scenes of known content and with pictures drawn here."""

import numpy as np
import pytest

from flowsde.shapes import checker, data
from flowsde.shapes.captions import COLOURS, KINDS, Group

RED, GREEN, BLUE, YELLOW, MAGENTA, CYAN = range(len(COLOURS))
CIRCLE, SQUARE, TRIANGLE = range(len(KINDS))

# Drawings use plain supersampling, neither the checker's slabs nor the renderer's distances.
_FINE = 8
_Y, _X = (np.mgrid[: 32 * _FINE, : 32 * _FINE] + 0.5) / _FINE


def _area(mask: np.ndarray) -> np.ndarray:
    """Fraction of each pixel inside the mask of the fine grid."""
    return mask.reshape(32, _FINE, 32, _FINE).mean((1, 3))


def _disc(x: float, y: float, rx: float, ry: float | None = None) -> np.ndarray:
    return _area(((_X - x) / rx) ** 2 + ((_Y - y) / (ry or rx)) ** 2 < 1)


def _box(x: float, y: float, half_width: float, half_height: float) -> np.ndarray:
    return _area((abs(_X - x) < half_width) & (abs(_Y - y) < half_height))


def _triangle(x: float, y: float, radius: float) -> np.ndarray:
    """Upright equilateral triangle of centroid (x, y) and that circumradius."""
    slope = abs(_X - x) * 3**0.5 < _Y - y + radius
    return _area(slope & (_Y < y + radius / 2))


def _picture(*layers: tuple[np.ndarray, int | np.ndarray]) -> np.ndarray:
    """Paint (coverage, colour) layers one over the other: a batch of one picture."""
    image = np.broadcast_to(data.BACKGROUND, (32, 32, 3))
    for cover, colour in layers:
        paint = colour if isinstance(colour, np.ndarray) else data.PALETTE[colour]
        image = image + cover[..., None] * (paint - image)
    return (2 * image[None] - 1).astype(np.float32)


def _table(*objects: tuple[int, int]) -> np.ndarray:
    table = np.zeros((1, len(COLOURS), len(KINDS)), np.int32)
    for colour, kind in objects:
        table[0, colour, kind] += 1
    return table


def _assert_unclear(image: np.ndarray, clean: int = 0) -> None:
    found = checker.detect(image)
    assert found.unclear[0] >= 1
    assert found.counts.sum() == clean


def _full_captions() -> list[tuple[Group, Group]]:
    """Ten objects a picture: five of each of two distinct (colour, kind)."""
    pairs = [(c, k) for c in range(len(COLOURS)) for k in range(len(KINDS))]
    return [(Group(5, *a), Group(5, *b)) for a in pairs for b in pairs if a < b]


@pytest.fixture(scope="module")
def random_scenes() -> data.Scenes:
    return data.scenes(101, range(1000))


@pytest.fixture(scope="module")
def full_scenes() -> data.Scenes:
    groups = _full_captions()
    return data.scenes(102, range(len(groups)), groups=groups)


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "least"), [(0.0, 0.99), (0.05, 0.97)])
@pytest.mark.parametrize("which", ["random_scenes", "full_scenes"])
def test_counts_rendered_scenes(
    which: str, noise: float, least: float, request: pytest.FixtureRequest
) -> None:
    scenes: data.Scenes = request.getfixturevalue(which)
    n = 400 if noise else len(scenes.images)
    normal = np.random.default_rng(0).normal(size=scenes.images[:n].shape)
    assert checker.exact(scenes.images[:n] + noise * normal, scenes.counts[:n]).mean() >= least


def test_counts_held_out_scenes() -> None:
    scenes = data.scenes(103, range(100), held_out=True)
    assert checker.exact(scenes.images, scenes.counts).mean() >= 0.99


@pytest.mark.slow
def test_no_other_answer_is_exact(random_scenes: data.Scenes) -> None:
    """Pictures do not satisfy captions that differ by one object, colour or kind."""
    images, counts = random_scenes.images[:100], random_scenes.counts[:100]
    one_more = counts + _table((RED, CIRCLE))
    for wrong in (one_more, np.roll(counts, 1, 1), np.roll(counts, 1, 2)):
        assert not checker.exact(images, wrong).any()
    assert checker.exact(images, counts).all()


@pytest.mark.parametrize("colour", range(len(COLOURS)))
@pytest.mark.parametrize("radius", [2.6, 3.3, 4.7])
def test_names_shapes_drawn_by_other_means(colour: int, radius: float) -> None:
    image = _picture(
        (_disc(8.3, 8.6, radius), colour),
        (_box(23.2, 7.9, radius, radius), colour),
        (_triangle(15.6, 24.4, 1.35 * radius), colour),
    )
    wanted = _table(*((colour, kind) for kind in range(len(KINDS))))
    assert checker.exact(image, wanted).all()


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_tolerates_colours_ten_percent_off(random_scenes: data.Scenes, factor: float) -> None:
    images, counts = random_scenes.images[:100], random_scenes.counts[:100]
    background = 2 * data.BACKGROUND - 1
    off = background + factor * (images - background)
    assert checker.exact(off, counts).mean() >= 0.97


@pytest.mark.slow
def test_tolerates_soft_edges_and_shifted_background(random_scenes: data.Scenes) -> None:
    images, counts = random_scenes.images[:100], random_scenes.counts[:100]
    padded = np.pad(images, ((0, 0), (1, 1), (0, 0), (0, 0)), mode="edge")
    soft = 0.8 * images + 0.1 * (padded[:, 2:] + padded[:, :-2])
    assert checker.exact(soft, counts).mean() >= 0.97
    assert checker.exact(images + 0.04, counts).mean() >= 0.97


def test_specks_are_noise_but_small_blobs_are_not() -> None:
    disc = (_disc(10, 10, 4), BLUE)
    speck = _picture(disc, (_box(24.5, 24.5, 0.5, 0.5), RED))
    assert checker.exact(speck, _table((BLUE, CIRCLE))).all()
    _assert_unclear(_picture(disc, (_box(24.5, 24.5, 1.0, 1.5), RED)), clean=1)


@pytest.mark.parametrize("distance", [2.5, 4.0, 5.5, 7.0])
@pytest.mark.parametrize("second", [RED, CYAN])
def test_overlapping_discs_are_unclear(distance: float, second: int) -> None:
    _assert_unclear(_picture((_disc(11, 16, 4), RED), (_disc(11 + distance, 16, 4), second)))


@pytest.mark.parametrize("contrast", [0.4, 0.5, 0.6])
@pytest.mark.parametrize("colour", range(len(COLOURS)))
def test_faded_disc_is_unclear(contrast: float, colour: int) -> None:
    _assert_unclear(_picture((contrast * _disc(15.4, 16.2, 4), colour)))


@pytest.mark.parametrize("first", range(len(COLOURS)))
@pytest.mark.parametrize("second", range(len(COLOURS)))
def test_two_coloured_disc_is_unclear(first: int, second: int) -> None:
    disc = _disc(16.2, 16, 4)
    image = _picture((disc, first), (disc * (np.arange(32) < 16), second))
    if first == second:
        assert checker.exact(image, _table((first, CIRCLE))).all()
    else:
        _assert_unclear(image)


_ODD_SHAPES = {
    "ellipse": _disc(16, 16, 5, 3.5),
    "tall ellipse": _disc(16, 16, 3, 4.6),
    "cross": np.maximum(_box(16, 16, 5, 1.5), _box(16, 16, 1.5, 5)),
    "rectangle": _box(16, 16, 4.5, 3.3),
    "diamond": _area(abs(_X - 16) + abs(_Y - 16) < 5),
    "upside-down triangle": _triangle(16, 16, 5)[::-1],
    "ring": _disc(16, 16, 5) - _disc(16, 16, 2.5),
    "half disc": _disc(16, 16, 5) * (np.arange(32) < 16),
    "bar": _box(16, 16, 1.0, 6.0),
    "bar across": _box(16, 16, 15.0, 2.0),
    "giant disc": _disc(16, 16, 12),
    "dot": _disc(16, 16, 1.5),
}


@pytest.mark.parametrize("shape", _ODD_SHAPES)
@pytest.mark.parametrize("colour", [RED, YELLOW])
def test_odd_shapes_are_unclear(shape: str, colour: int) -> None:
    _assert_unclear(_picture((_ODD_SHAPES[shape], colour)))


@pytest.mark.parametrize("paint", [(1.0, 1.0, 1.0), (0.5, 0.5, 0.5)])
def test_colours_off_the_palette_are_unclear(paint: tuple[float, ...]) -> None:
    _assert_unclear(_picture((_disc(16, 16, 4), np.asarray(paint, np.float32))))


def test_bridge_or_halo_spoils_clean_objects() -> None:
    discs = (_disc(10, 16, 3.5), RED), (_disc(22, 16, 3.5), RED)
    assert checker.exact(_picture(*discs), _table(*[(RED, CIRCLE)] * 2)).all()
    _assert_unclear(_picture((_box(16, 16, 5, 1), RED), *discs))
    _assert_unclear(_picture((0.45 * _box(16, 16, 5, 1), RED), *discs), clean=2)
    _assert_unclear(_picture((0.4 * _disc(10, 16, 6), RED), discs[0]))


def test_object_cut_by_the_border_is_unclear() -> None:
    _assert_unclear(_picture((_disc(2, 16, 4), GREEN)))


def test_picture_of_one_colour() -> None:
    assert checker.exact(_picture(), _table()).all()
    _assert_unclear(_picture((np.ones((32, 32)), MAGENTA)))


def test_blob_beside_objects_does_not_change_their_counts() -> None:
    disc, square = (_disc(7, 7, 4), RED), (_box(24, 24, 4, 4), CYAN)
    found = checker.detect(_picture(disc, square, (0.4 * _disc(16, 16, 3), CYAN)))
    np.testing.assert_array_equal(found.counts, _table((RED, CIRCLE), (CYAN, SQUARE)))
    assert found.unclear[0] == 1


def test_rss_counts_squared_errors_and_unclear_regions() -> None:
    disc, square = (_disc(7, 7, 4), RED), (_box(24, 24, 4, 4), CYAN)
    cross = (_ODD_SHAPES["cross"], RED)
    seen = (RED, CIRCLE), (CYAN, SQUARE)
    clean, spoilt = _picture(disc, square), _picture(disc, square, cross)
    for wanted, distance in (
        (_table(*seen), 0),
        (_table(*seen, (CYAN, SQUARE)), 1),
        (_table(*seen, *[(BLUE, TRIANGLE)] * 3), 9),
        (_table((RED, SQUARE)), 3),
    ):
        assert checker.rss(clean, wanted) == [distance]
        assert checker.rss(spoilt, wanted) == [distance + 1]
        assert checker.exact(clean, wanted) == [distance == 0]
        assert not checker.exact(spoilt, wanted).any()


@pytest.mark.slow
def test_pictures_are_judged_alone(
    random_scenes: data.Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of any size, in any order, and single pictures give the same answers."""
    normal = np.random.default_rng(1).normal(size=(40, 32, 32, 3))
    images = random_scenes.images[:40] + 0.15 * normal
    together = checker.detect(images)
    assert together.unclear.any()
    assert together.counts.any()
    monkeypatch.setattr(checker, "_CHUNK", 7)
    for got, expected in zip(checker.detect(images[::-1]), together, strict=True):
        np.testing.assert_array_equal(got[::-1], expected)
    for got, expected in zip(checker.detect(images[5:6]), together, strict=True):
        np.testing.assert_array_equal(got, expected[5:6])


@pytest.mark.slow
def test_clips_values_and_keeps_input(random_scenes: data.Scenes) -> None:
    images = random_scenes.images[:20]
    loud = np.where(images > 0.8, 5.0, images)
    kept = loud.copy()
    np.testing.assert_array_equal(
        checker.detect(loud).counts, checker.detect(np.clip(loud, -1, 1)).counts
    )
    np.testing.assert_array_equal(loud, kept)


def test_empty_batch_and_types() -> None:
    found = checker.detect(np.zeros((0, 32, 32, 3), np.float32))
    assert found.counts.shape == (0, len(COLOURS), len(KINDS))
    assert found.counts.dtype == found.unclear.dtype == np.int32
    assert checker.exact(_picture(), _table()).dtype == bool
    assert checker.rss(_picture(), _table()).dtype.kind == "f"


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((32, 32, 3)), r"images.*\(32, 32, 3\).*\(n, 32, 32, 3\)"),
        (np.zeros((1, 3, 32, 32)), r"images.*\(1, 3, 32, 32\)"),
        (np.zeros((1, 32, 32, 3), np.uint8), "images.*uint8.*float"),
        (np.full((2, 32, 32, 3), np.nan), "images.*NaN in 2 of 2"),
    ],
)
def test_bad_images(images: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checker.detect(images)


@pytest.mark.parametrize("judge", [checker.exact, checker.rss])
def test_bad_wanted(judge: object) -> None:
    assert callable(judge)
    with pytest.raises(ValueError, match=r"wanted.*\(6, 3\).*\(1, 6, 3\)"):
        judge(_picture(), _table()[0])
    with pytest.raises(ValueError, match="wanted.*float64.*integers"):
        judge(_picture(), _table().astype(float))
