"""Captions mean what they say, and scenes show what their captions mean."""

import itertools
import re

import numpy as np
import pytest

from flowsde import shapes
from flowsde.shapes import captions, data
from flowsde.shapes.captions import COLOURS, KINDS, MAX_COUNT, Group

ALL_GROUPS = [
    Group(*g) for g in itertools.product(range(1, MAX_COUNT + 1), range(len(COLOURS)), range(3))
]


def _random_pairs(n: int) -> list[tuple[Group, Group]]:
    """Captions of two groups whose colour or kind differ."""
    rng = np.random.default_rng(0)
    pairs = [tuple(ALL_GROUPS[i] for i in rng.choice(len(ALL_GROUPS), 2)) for _ in range(n)]
    return [(a, b) for a, b in pairs if a[1:] != b[1:]]


@pytest.fixture(scope="module")
def trained() -> list[tuple[Group, ...]]:
    rng = np.random.default_rng(1)
    return [data.sample_groups(rng) for _ in range(3000)]


@pytest.fixture(scope="module")
def some_scenes() -> data.Scenes:
    return data.scenes(3, range(200))


# Captions


def test_caption_of_an_example() -> None:
    groups = (Group(3, COLOURS.index("red"), 0), Group(1, COLOURS.index("blue"), 1))
    assert captions.caption(groups) == "three red circles and one blue square"


def test_parse_inverts_caption() -> None:
    for groups in [(g,) for g in ALL_GROUPS] + _random_pairs(500):
        assert captions.parse(captions.caption(groups)) == groups


@pytest.mark.parametrize(
    "text",
    [
        "3 red circles and 1 blue square",
        "three red circle and a blue squares",
        "THREE Red Circles AND one Blue Square",
        "three red circles, one blue square",
        "  three  red\tcircles ,an blue square ",
        "Three red circles, and one blue square.",
    ],
)
def test_parse_accepts_variants(text: str) -> None:
    assert captions.parse(text) == captions.parse("three red circles and one blue square")


GROUP = ["a number (one to five), a colour (red, green,", "e.g. 'three red circles'"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("six red circles", ["number", "'six'", "one", "five"]),
        ("0 red circles", ["number", "'0'"]),
        ("two pink circles", ["colour", "'pink'", *COLOURS]),
        ("two red blobs", ["shape", "'blobs'", *KINDS]),
        ("two red circles and one blue hexagon", ["shape", "'hexagon'"]),
        ("red circles", [*GROUP, "'red circles'"]),
        ("two big red circles", [*GROUP, "'two big red circles'"]),
        ("two red circles and", [*GROUP, "'two red circles and'"]),
        ("a red circle and a blue circle and a red square", ["3 groups", "expected 1 or 2"]),
        ("two red circles and one red circle", ["same colour and shape"]),
        ("", ["empty", "expected"]),
        (" \n", ["empty"]),
    ],
)
def test_parse_errors_name_the_bad_word(text: str, named: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        captions.parse(text)
    for words in named:
        assert words in str(caught.value)
    if text.strip():
        assert repr(text) in str(caught.value)


def test_several_prompts_are_refused() -> None:
    with pytest.raises(TypeError, match=r"expected one prompt, a string, got \['one red circle'\]"):
        shapes.encode(["one red circle"])  # type: ignore[arg-type]


def test_tokenize_spells_the_caption() -> None:
    for groups in [(g,) for g in ALL_GROUPS] + _random_pairs(100):
        ids = captions.tokenize(groups)
        words = captions.caption(groups).split()
        assert ids.shape == (captions.MAX_TOKENS,)
        assert ids.dtype == np.int32
        assert [captions.VOCABULARY[i] for i in ids[: len(words)]] == words
        assert (ids[: len(words)] > 0).all()
        assert (ids[len(words) :] == 0).all()


def test_vocabulary_has_no_duplicates() -> None:
    assert len(set(captions.VOCABULARY)) == len(captions.VOCABULARY)


def test_counts_table() -> None:
    for groups in _random_pairs(100):
        table = captions.counts(groups)
        assert table.shape == (len(COLOURS), len(KINDS))
        assert table.sum() == sum(g.count for g in groups)
        assert all(table[g.colour, g.kind] == g.count for g in groups)


# Which captions are drawn


def test_training_captions_are_never_held_out(trained: list[tuple[Group, ...]]) -> None:
    assert not data.HELD_OUT & {g for groups in trained for g in groups}


def test_training_shows_every_word_and_everything_else(trained: list[tuple[Group, ...]]) -> None:
    seen = {g for groups in trained for g in groups}
    assert seen == set(ALL_GROUPS) - data.HELD_OUT


def test_held_out_pairs_are_known_at_other_counts() -> None:
    """At most one count of each (colour, kind) is held out, and every word is among them."""
    assert {g.colour for g in data.HELD_OUT} == set(range(len(COLOURS)))
    assert {g.kind for g in data.HELD_OUT} == set(range(len(KINDS)))
    assert len({g[1:] for g in data.HELD_OUT}) == len(data.HELD_OUT)
    assert all(1 <= g.count <= MAX_COUNT for g in data.HELD_OUT)


def test_held_out_captions_have_one_held_out_group_in_either_place() -> None:
    rng = np.random.default_rng(2)
    drawn = [data.sample_groups(rng, held_out=True) for _ in range(500)]
    assert {g for groups in drawn for g in groups} >= data.HELD_OUT
    assert all(sum(g in data.HELD_OUT for g in groups) == 1 for groups in drawn)
    two = [groups for groups in drawn if len(groups) == 2]
    second = np.mean([groups[1] in data.HELD_OUT for groups in two])
    # Four standard deviations around a half.
    assert abs(second - 0.5) < 4 * (0.25 / len(two)) ** 0.5


@pytest.mark.parametrize("held_out", [False, True])
def test_groups_of_a_caption_are_one_or_two_and_distinct(held_out: bool) -> None:
    rng = np.random.default_rng(4)
    drawn = [data.sample_groups(rng, held_out) for _ in range(1500)]
    assert all(len({g[1:] for g in groups}) == len(groups) for groups in drawn)
    share = np.mean([len(groups) == 2 for groups in drawn])
    # Four standard deviations around two thirds.
    assert abs(share - 2 / 3) < 4 * (2 / 9 / len(drawn)) ** 0.5
    assert {len(groups) for groups in drawn} == {1, 2}


# Scenes


def test_scene_depends_on_seed_and_index_alone() -> None:
    whole = data.scenes(5, range(12))
    for part, rows in (
        (data.scenes(5, [7, 2]), [7, 2]),
        (data.scenes(5, range(6, 12)), list(range(6, 12))),
        (data.scenes(5, [11]), [11]),
    ):
        for got, expected in zip(part, whole, strict=True):
            np.testing.assert_array_equal(got, expected[rows])


def test_scenes_differ_between_seeds_and_indices() -> None:
    images = np.concatenate([data.scenes(seed, range(10)).images for seed in (5, 6)])
    assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


def test_batches_resume_the_stream() -> None:
    stream = data.batches(9, 4)
    first, second = next(stream), next(stream)
    resumed = next(data.batches(9, 4, start=1))
    for got, expected in zip(resumed, second, strict=True):
        np.testing.assert_array_equal(got, expected)
    together = data.scenes(9, range(8))
    for a, b, whole in zip(first, second, together, strict=True):
        np.testing.assert_array_equal(np.concatenate([a, b]), whole)


def test_arrays_of_a_batch(some_scenes: data.Scenes) -> None:
    images, tokens, counts = some_scenes
    assert images.shape == (200, data.SIZE, data.SIZE, 3)
    assert images.dtype == np.float32
    assert -1 <= images.min() < images.max() <= 1
    assert tokens.shape == (200, captions.MAX_TOKENS)
    assert counts.shape == (200, len(COLOURS), len(KINDS))
    assert tokens.dtype == counts.dtype == np.int32


def test_counts_and_tokens_agree(some_scenes: data.Scenes) -> None:
    for tokens, counts in zip(some_scenes.tokens, some_scenes.counts, strict=True):
        words = " ".join(captions.VOCABULARY[i] for i in tokens if i > 0)
        np.testing.assert_array_equal(captions.counts(captions.parse(words)), counts)


def test_scenes_of_given_captions() -> None:
    groups = _random_pairs(10)
    scenes = data.scenes(3, range(len(groups)), groups=groups)
    np.testing.assert_array_equal(scenes.counts, [captions.counts(g) for g in groups])


def test_held_out_scenes_show_a_held_out_triple() -> None:
    scenes = data.scenes(3, range(50), held_out=True)
    for counts in scenes.counts:
        assert any(counts[g.colour, g.kind] == g.count for g in data.HELD_OUT)


# Geometry


def _painted(kind: int, radius: float, x: float, y: float, colour: int = 0) -> np.ndarray:
    """Offset from the background of one rendered object: [32, 32, 3], colours in [0, 1]."""
    image = data.render(
        np.asarray([[[x, y]]]), np.asarray([[radius]]), np.asarray([[kind]]), np.asarray([[colour]])
    )[0]
    return (image + 1) / 2 - data.BACKGROUND


@pytest.mark.slow_but_one
@pytest.mark.parametrize("n_objects", [1, 2, 5, 10])
def test_objects_are_inside_and_do_not_touch(n_objects: int) -> None:
    """No pixel belongs to the insides, half covered or more, of neighbouring objects."""
    rng = np.random.default_rng(n_objects)
    for _ in range(20):
        kinds = rng.integers(len(KINDS), size=n_objects)
        centres, radii = data.place(rng, kinds)
        red = data.PALETTE[0] - data.BACKGROUND
        cover = np.stack(
            [
                _painted(k, r, x, y)[..., 0]
                for (x, y), r, k in zip(centres, radii, kinds, strict=True)
            ]
        )
        inside = cover >= red[0] / 2
        assert inside.any((1, 2)).all()
        # Whole in the picture: as much of it shows as when moved to the middle.
        for (x, y), r, k, shown in zip(centres, radii, kinds, cover.sum((1, 2)), strict=True):
            middle = _painted(k, r, 16 + x % 1, 16 + y % 1)[..., 0].sum()
            assert shown == pytest.approx(middle, rel=0.02)
        near = np.zeros((n_objects, data.SIZE + 2, data.SIZE + 2), bool)
        for dy, dx in itertools.product(range(3), range(3)):
            near[:, dy : dy + data.SIZE, dx : dx + data.SIZE] |= inside
        near = near[:, 1:-1, 1:-1]
        for i, j in itertools.permutations(range(n_objects), 2):
            assert not (near[i] & inside[j]).any()


@pytest.mark.parametrize(
    ("kind", "area"),
    [
        (KINDS.index("circle"), np.pi * 4.5**2),
        (KINDS.index("square"), (2 * 0.9 * 4.5) ** 2),
        (KINDS.index("triangle"), 3 * 3**0.5 / 4 * (1.35 * 4.5) ** 2),
    ],
)
def test_render_covers_the_area_of_the_shape_around_its_centre(kind: int, area: float) -> None:
    cover = _painted(kind, 4.5, 15.3, 16.4).sum(-1) / (data.PALETTE[0] - data.BACKGROUND).sum()
    # Edges are half a pixel soft; only a triangle's sharp corners change the area by it.
    assert cover.sum() == pytest.approx(area, rel=0.03)
    rows, columns = np.nonzero(cover > 0.5)
    # Box centres in pixels; pixel i is centred at i + 1/2.
    assert (columns.min() + columns.max() + 1) / 2 == pytest.approx(15.3, abs=0.5)
    assert (rows.min() + rows.max() + 1) / 2 == pytest.approx(16.4, abs=0.75)


def test_triangle_points_up() -> None:
    widths = (_painted(KINDS.index("triangle"), 4.5, 16, 16)[..., 0] > 0.4).sum(1)
    widths = widths[widths > 0]
    assert (np.diff(widths) >= 0).all()
    assert widths[0] < widths[-1]


@pytest.mark.parametrize("colour", range(len(COLOURS)))
def test_insides_have_the_colour_and_the_rest_is_background(colour: int) -> None:
    offset = _painted(0, 4.0, 16, 16, colour)
    np.testing.assert_allclose(offset[16, 16] + data.BACKGROUND, data.PALETTE[colour], atol=1e-6)
    np.testing.assert_allclose(offset[:10], 0, atol=1e-6)


def test_palette_fits_the_colour_words() -> None:
    """Each primary or secondary colour is bright in just the channels its name says."""
    channels = {
        "red": "r",
        "green": "g",
        "blue": "b",
        "yellow": "rg",
        "magenta": "rb",
        "cyan": "gb",
    }
    assert len(data.PALETTE) == len(COLOURS)
    for word, paint in zip(COLOURS, data.PALETTE, strict=True):
        bright = "".join(c for c, value in zip("rgb", paint, strict=True) if value > 0.5)
        assert re.fullmatch(channels[word], bright)


def test_radius_zero_is_absent() -> None:
    image = data.render(np.zeros((1, 3, 2)), np.zeros((1, 3)), *np.zeros((2, 1, 3), np.int64))
    expected = np.broadcast_to(data.BACKGROUND, image[0].shape)
    np.testing.assert_allclose((image[0] + 1) / 2, expected, atol=1e-6)
