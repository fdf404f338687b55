"""Scenes that the given reward learns to count in, as arrays on the host.

A flow's finished pictures are most often wrong by one object, and searches look for what a reward
takes for right. So the scenes are captions', captions' with one object too many or too few, and
crowds of up to 12 objects of few pairs; and some differ from a true scene A in one object, by
which they become another scene B or none at all:

* *faded*, *patchy*: ``w A + (1 - w) B`` where B lacks, recolours or reshapes that object, and w is
  one weight, or varies over the picture. Only near w = 1 or 0 this is a picture of A or of B.
* *cut*, *merged*, *tiny* or a *speck*: half an object, two that touch, one too small to name,
  or such a one beside the others. Nothing says how many objects that is.

The targets of pairs that nothing tells the counts of are uniform.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from flowsde.shapes import data
from flowsde.shapes.captions import COLOURS, KINDS
from flowsde.shapes.scorer import CELL, CLASSES, GRID, PAIRS

_OBJECTS = 12
_DAMAGED = 0.4
"""Share of the scenes that differ from a true one in one object."""
_CAPTIONED, _OFF = 0.3, 0.35
"""Shares of the scenes of captions, and of those with one object too many or too few."""


class Batch(NamedTuple):
    """What the loss sees.

    Attributes:
      images: float32 [n, 32, 32, 3] in [-1, 1].
      targets: probabilities of counts, float32 [n, colours, kinds, CLASSES].
      centres: probabilities of a centre in each cell, float32 [n, GRID GRID, colours, kinds].
    """

    images: Any
    targets: Any
    centres: Any


class Layout(NamedTuple):
    """Objects of one scene, or of several with a leading axis; arguments of `data.render`."""

    centres: np.ndarray
    radii: np.ndarray
    kinds: np.ndarray
    colours: np.ndarray


def _sample_pairs(rng: np.random.Generator) -> np.ndarray:
    """Pairs ``kinds colour + kind`` of a scene's objects, at most _OBJECTS."""
    draw = rng.random()
    if draw >= _CAPTIONED + _OFF:
        objects = int(rng.integers(_OBJECTS + 1))
        pool = rng.integers(PAIRS[0] * PAIRS[1], size=rng.choice([1, 2, 3, 4, _OBJECTS]))
        return rng.choice(pool, objects)
    groups = data.sample_groups(rng, held_out=rng.random() < 0.25)
    counts = [g.count for g in groups]
    if draw < _OFF:
        counts[rng.integers(len(counts))] += rng.choice([-1, 1])
    return np.repeat([PAIRS[1] * g.colour + g.kind for g in groups], counts)


def sample_layout(rng: np.random.Generator) -> Layout:
    """A scene of a caption, nearly of one, or of 0 to 12 objects of 1 to 12 pairs."""
    pairs = _sample_pairs(rng)
    kinds, colours = pairs % PAIRS[1], pairs // PAIRS[1]
    layout = Layout(
        np.zeros((_OBJECTS, 2)),
        np.zeros(_OBJECTS),
        np.zeros(_OBJECTS, np.int64),
        np.zeros(_OBJECTS, np.int64),
    )
    for part, values in zip(layout, (*data.place(rng, kinds), kinds, colours), strict=True):
        part[: len(kinds)] = values
    return layout


def count_table(layout: Layout) -> np.ndarray:
    """Objects of each colour and kind in one scene, int [colours, kinds]."""
    table = np.zeros(PAIRS, np.int64)
    np.add.at(table, (layout.colours, layout.kinds), layout.radii > 0)
    return table


def centre_table(layout: Layout) -> np.ndarray:
    """Objects of each pair by the cell of their centre, float32 [GRID GRID, colours, kinds].

    A centre counts in a cell by the share of the square of 2 pixels a side around it that lies
    there: a sum over cells is then smooth in the centre, and one for each object.
    """
    table = np.zeros((GRID * GRID, *PAIRS), np.float32)
    edges = CELL * np.arange(GRID + 1)
    # What lies beyond the picture is of the cells at its border.
    edges[0], edges[-1] = -2 * data.SIZE, 3 * data.SIZE
    passed = np.clip(0.5 + (edges - layout.centres[..., None]) / 2.0, 0.0, 1.0)
    x, y = np.moveaxis(np.diff(passed, axis=-1), 1, 0)
    shares = (y[:, :, None] * x[:, None, :]).reshape(-1, GRID * GRID)
    for i in np.flatnonzero(layout.radii > 0):
        table[:, layout.colours[i], layout.kinds[i]] += shares[i]
    return np.minimum(table, 1.0)


def _copy(layout: Layout) -> Layout:
    return Layout(*(part.copy() for part in layout))


def _change(rng: np.random.Generator, layout: Layout, i: int) -> Layout:
    """Removes, recolours or reshapes object i."""
    other = _copy(layout)
    match rng.integers(3):
        case 0:
            other.radii[i] = 0.0
        case 1:
            step = rng.integers(1, len(COLOURS))
            other.colours[i] = (layout.colours[i] + step) % len(COLOURS)
        case _:
            other.kinds[i] = (layout.kinds[i] + rng.integers(1, len(KINDS))) % len(KINDS)
    return other


def _half_plane(rng: np.random.Generator, layout: Layout, i: int) -> np.ndarray:
    """Weights [32, 32]: 1 on one side of a line through object i, near its centre."""
    angle = rng.uniform(0.0, 2.0 * np.pi)
    pixel = np.arange(data.SIZE) + 0.5
    x, y = layout.centres[i]
    along = (pixel[None, :] - x) * np.cos(angle) + (pixel[:, None] - y) * np.sin(angle)
    return np.clip(0.5 + along + rng.uniform(-0.35, 0.35) * layout.radii[i], 0.0, 1.0)


def _patches(rng: np.random.Generator) -> np.ndarray:
    """Weights [32, 32] that vary over a few pixels, everywhere between 0 and 1."""
    pixel = np.arange(data.SIZE)
    waves = 0.0
    for _ in range(3):
        fx, fy = rng.uniform(-1.2, 1.2, 2)
        waves = waves + np.cos(fx * pixel[None, :] + fy * pixel[:, None] + rng.uniform(0.0, 6.3))
    return np.clip(0.5 + 0.5 * waves, 0.0, 1.0)


def _shift(rng: np.random.Generator, layout: Layout, i: int) -> Layout:
    """Moves object i until it just touches where it was, perhaps changing it too."""
    other = _copy(layout) if rng.random() < 0.7 else _change(rng, layout, i)
    angle, length = rng.uniform(0.0, 2.0 * np.pi), rng.uniform(0.5, 2.1) * layout.radii[i]
    other.centres[i] += length * np.asarray([np.cos(angle), np.sin(angle)])
    other.radii[i] = layout.radii[i]
    return other


def _speck(rng: np.random.Generator, layout: Layout, i: int) -> Layout:
    """Makes object i too small to name, or puts such a one of its pair somewhere else."""
    other = _copy(layout)
    free = np.flatnonzero(layout.radii == 0)
    at = rng.uniform(1.0, data.SIZE - 1.0, 2)
    apart = np.linalg.norm(layout.centres - at, axis=-1) > 5.5
    if free.size and rng.random() < 0.5 and (apart | (layout.radii == 0)).all():
        j = free[0]
        other.centres[j], other.colours[j], other.kinds[j] = at, layout.colours[i], layout.kinds[i]
    else:
        j = i
    other.radii[j] = rng.uniform(0.7, 1.9)
    return other


class _Damage(NamedTuple):
    """How a scene A becomes a picture: ``max(weight A + (1 - weight) B, merge B)``."""

    other: Layout
    weight: np.ndarray | float
    merge: bool
    target: np.ndarray
    centres: np.ndarray


def _one_hot(table: np.ndarray) -> np.ndarray:
    return np.eye(CLASSES, dtype=np.float32)[np.minimum(table, CLASSES - 1)]


def truth(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Targets and centres of an undamaged scene, as in `Batch`."""
    return _one_hot(count_table(layout)), centre_table(layout)


def _average(a: Layout, b: Layout, weight: float) -> tuple[np.ndarray, np.ndarray]:
    truths = zip(truth(a), truth(b), strict=True)
    target, centres = (weight * x + (1.0 - weight) * y for x, y in truths)
    return target, centres


def _unclear(a: Layout, b: Layout, i: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts of A, but uniform for the pairs of object i in A and in B, and centres half there."""
    target = _one_hot(count_table(a))
    for layout in (a, b):
        target[layout.colours[i], layout.kinds[i]] = 1.0 / CLASSES
    return target, _average(a, b, 0.5)[1]


def _between(a: Layout, b: Layout, i: int, weight: float) -> tuple[np.ndarray, np.ndarray]:
    """Targets of a blend: of A at weight 1, of B at 0, and no clear ones at a half."""
    sure = abs(2.0 * weight - 1.0)
    counts, _ = truth(a if weight > 0.5 else b)
    unclear, _ = _unclear(a, b, i)
    return sure * counts + (1.0 - sure) * unclear, _average(a, b, weight)[1]


def sample_damage(rng: np.random.Generator, layout: Layout) -> _Damage:
    """Damages one object of a scene; see the module's docstring."""
    present = np.flatnonzero(layout.radii)
    if present.size == 0 or rng.random() >= _DAMAGED:
        return _Damage(layout, 1.0, False, *truth(layout))
    i = int(rng.choice(present))
    match rng.integers(6):
        case 0 | 1:
            other, weight = _change(rng, layout, i), rng.random()
            return _Damage(other, weight, False, *_between(layout, other, i, weight))
        case 2:
            other = _change(rng, layout, i)
            return _Damage(other, _patches(rng), False, *_unclear(layout, other, i))
        case 3:
            other = _change(rng, layout, i)
            return _Damage(other, _half_plane(rng, layout, i), False, *_unclear(layout, other, i))
        case 4:
            other = _shift(rng, layout, i)
            return _Damage(other, 1.0, True, *_unclear(layout, other, i))
        case _:
            other = _speck(rng, layout, i)
            return _Damage(other, 0.0, False, *_unclear(layout, other, i))


def render(layouts: Sequence[Layout]) -> np.ndarray:
    """Images of scenes, float32 [n, 32, 32, 3]."""
    return data.render(*map(np.stack, zip(*layouts, strict=True)))


def batch(seed: int, indices: Sequence[int]) -> Batch:
    """Scenes ``indices`` of ``seed``, damaged but neither blurred nor noisy."""
    layouts: list[Layout] = []
    damages: list[_Damage] = []
    for index in indices:
        # The trailing word sets this stream apart from that of `data.scenes`.
        rng = np.random.default_rng((seed, index, 1))
        layouts.append(sample_layout(rng))
        damages.append(sample_damage(rng, layouts[-1]))
    images = render(layouts)
    rows = [i for i, damage in enumerate(damages) if damage.other is not layouts[i]]
    if rows:
        images[rows] = _damaged(images[rows], [damages[i] for i in rows])
    targets = np.stack([d.target for d in damages]).astype(np.float32)
    return Batch(images, targets, np.stack([d.centres for d in damages]).astype(np.float32))


def _damaged(images: np.ndarray, damages: Sequence[_Damage]) -> np.ndarray:
    others = render([d.other for d in damages])
    square = (data.SIZE, data.SIZE)
    weight = np.stack([np.broadcast_to(d.weight, square) for d in damages])[..., None]
    mixed = weight * images + (1.0 - weight) * others
    merge = np.asarray([d.merge for d in damages])[:, None, None, None]
    # Paint is brighter than the background in all channels: the maximum is the union.
    return np.where(merge, np.maximum(mixed, others), mixed)
