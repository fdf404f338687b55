"""Procedural scenes: 32x32 RGB pictures of captions, deterministic from a seed.

Scene ``i`` of seed ``s`` depends on ``(s, i)`` alone, so any batch can be made
again anywhere, in any order. Objects never touch, are anti-aliased by their
signed distance to the pixel centre, and vary in size and place.

A few (count, colour, kind) triples (`HELD_OUT`) never occur in training
scenes; asking for them tests composition rather than memory.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from flowsde.shapes.captions import COLOURS, KINDS, MAX_COUNT, MAX_GROUPS, Group, counts, tokenize

SIZE = 32
MAX_OBJECTS = MAX_GROUPS * MAX_COUNT
BACKGROUND = np.asarray([0.08, 0.08, 0.1], np.float32)
PALETTE = np.asarray(
    [
        [0.90, 0.15, 0.15],
        [0.15, 0.75, 0.20],
        [0.20, 0.30, 0.95],
        [0.95, 0.85, 0.15],
        [0.85, 0.25, 0.85],
        [0.20, 0.85, 0.90],
    ],
    np.float32,
)
"""RGB in [0, 1] of each colour word."""

HELD_OUT = frozenset(
    Group(1 + (2 * colour + kind) % MAX_COUNT, colour, kind)
    for colour in range(len(COLOURS))
    for kind in range(len(KINDS))
    if (colour + kind) % 2 == 0
)
"""Nine triples, one count for every second (colour, kind) pair."""

_MARGIN = 0.8
"""Least pixels from an object's box to the edge of its cell: half the least gap of two boxes."""
_SMALLEST = 2.5
"""Least nominal radius, pixels: a triangle of 14.5 pixels of paint."""
_CELLS = 4
"""Cells a side of the grid on which objects stand, at most one in each."""
_TRIANGLE = 1.35
"""Circumradius of a triangle, in units of the object's nominal radius."""
# Half width and half height of each kind's box, in units of the nominal radius.
_EXTENT = np.asarray([[1.0, 1.0], [0.9, 0.9], [_TRIANGLE * 3**0.5 / 2, _TRIANGLE * 0.75]])


class Scenes(NamedTuple):
    """A batch of scenes.

    Attributes:
      images: float32 [n, 32, 32, 3] in [-1, 1].
      tokens: int32 [n, MAX_TOKENS], the caption.
      counts: int32 [n, colours, kinds], what the caption asks for and the image shows.
    """

    images: np.ndarray
    tokens: np.ndarray
    counts: np.ndarray


def sample_groups(rng: np.random.Generator, held_out: bool = False) -> tuple[Group, ...]:
    """Draw a caption: one group (1/3) or two (2/3), counts uniform.

    With ``held_out`` one group, in either place, is of `HELD_OUT`; without it none is.
    """
    n_groups = 1 + int(rng.random() < 2 / 3)
    groups: list[Group] = []
    if held_out:
        groups.append(sorted(HELD_OUT)[rng.integers(len(HELD_OUT))])
    while len(groups) < n_groups:
        group = Group(
            int(rng.integers(1, MAX_COUNT + 1)),
            int(rng.integers(len(COLOURS))),
            int(rng.integers(len(KINDS))),
        )
        if group not in HELD_OUT and all(group[1:] != g[1:] for g in groups):
            groups.append(group)
    if held_out and rng.random() < 0.5:
        groups.reverse()
    return tuple(groups)


def place(rng: np.random.Generator, kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions [k, 2] and nominal radii [k], in pixels, of objects that do not touch.

    Each object gets a cell of a 4x4 grid to itself, a size that fits it, and any place inside it.
    """
    cell = SIZE / _CELLS
    extent = _EXTENT[kinds]
    radii = rng.uniform(_SMALLEST, (cell / 2 - _MARGIN) / extent.max(-1))
    low = extent * radii[:, None] + _MARGIN
    row, column = np.divmod(rng.permutation(_CELLS**2)[: len(kinds)], _CELLS)
    return cell * np.stack([column, row], -1) + rng.uniform(low, cell - low), radii


def render(
    centres: np.ndarray, radii: np.ndarray, kinds: np.ndarray, colours: np.ndarray
) -> np.ndarray:
    """Images of scenes whose objects do not overlap.

    Args:
      centres: [n, k, 2] box centres (x right, y down), pixels.
      radii: [n, k] nominal radii, pixels; 0 marks an absent object.
      kinds, colours: int [n, k].

    Returns:
      float32 [n, 32, 32, 3] in [-1, 1].
    """
    pixel = np.arange(SIZE, dtype=np.float32) + 0.5
    r = radii.astype(np.float32)[..., None, None]
    dx = pixel[None, None, None, :] - centres[..., 0, None, None].astype(np.float32)
    dy = pixel[None, None, :, None] - centres[..., 1, None, None].astype(np.float32)
    circle = np.sqrt(dx**2 + dy**2) - r
    square = np.maximum(np.abs(dx), np.abs(dy)) - 0.9 * r
    # Upright triangle: a quarter of the circumradius separates centroid and box centre.
    big = _TRIANGLE * r
    below = dy - 0.75 * big
    side = (3**0.5 / 2) * np.abs(dx) - 0.5 * (dy + 0.75 * big)
    triangle = np.maximum(below, side)
    kind = kinds[..., None, None]
    distance = np.where(kind == 0, circle, np.where(kind == 1, square, triangle))
    coverage = np.clip(0.5 - distance, 0.0, 1.0) * (r > 0)
    paint = PALETTE[colours] - BACKGROUND
    images = BACKGROUND + np.einsum("nkhw,nkc->nhwc", coverage, paint, optimize=True)
    return (2.0 * np.clip(images, 0.0, 1.0) - 1.0).astype(np.float32)


def scenes(
    seed: int,
    indices: Sequence[int],
    *,
    groups: Sequence[Sequence[Group]] | None = None,
    held_out: bool = False,
) -> Scenes:
    """Make scenes ``indices`` of ``seed``.

    Args:
      seed: which world.
      indices: which scenes; scene i is the same in every batch that holds it.
      groups: captions to draw, one for each index; drawn at random by default.
      held_out: draw captions that training never shows.
    """
    n = len(indices)
    centres = np.zeros((n, MAX_OBJECTS, 2))
    radii = np.zeros((n, MAX_OBJECTS))
    kinds = np.zeros((n, MAX_OBJECTS), np.int64)
    colours = np.zeros((n, MAX_OBJECTS), np.int64)
    captions = []
    for row, index in enumerate(indices):
        rng = np.random.default_rng((seed, index))
        wanted = sample_groups(rng, held_out) if groups is None else tuple(groups[row])
        captions.append(wanted)
        k = sum(g.count for g in wanted)
        kinds[row, :k] = np.repeat([g.kind for g in wanted], [g.count for g in wanted])
        colours[row, :k] = np.repeat([g.colour for g in wanted], [g.count for g in wanted])
        centres[row, :k], radii[row, :k] = place(rng, kinds[row, :k])
    return Scenes(
        render(centres, radii, kinds, colours),
        np.stack([tokenize(g) for g in captions]),
        np.stack([counts(g) for g in captions]),
    )


def batches(seed: int, batch_size: int, start: int = 0) -> Iterator[Scenes]:
    """Endless training batches; batch ``start`` resumes the stream exactly there."""
    step = start
    while True:
        yield scenes(seed, range(step * batch_size, (step + 1) * batch_size))
        step += 1
