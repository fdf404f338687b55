"""layout: the objects at the places of a coarse sketch, which the reward is told.

A caption's sketch is drawn at random, by a hash of the caption: a place for each object. The reward
is told a mask [8, 8, colours] with a disc at each place. With m the mask and p the picture's paint
in the same cells, both blurred by a cell, the bonus is eight times their Dice coefficient less one,

    8 (2 sum m p / (sum m^2 + sum p^2) - 1)  <=  0,

which is smooth: a task for gradients.

Held out: exact counts, and objects can be matched with the places of their kind so that none is
further away than a few pixels.
"""

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowsde.shapes import data
from flowsde.shapes.captions import COLOURS, caption
from flowsde.shapes.checker import Objects
from flowsde.shapes.tasks.base import Challenge, Finding, Groups
from flowsde.shapes.tasks.counts import total
from flowsde.shapes.tasks.given import Given, paint

_GRID = 8
_CELL = data.SIZE // _GRID
_RADIUS = 3.0
"""Of the sketch's discs, pixels."""
_NEAR = 9.0
"""Pixels from a place to the object that stands for it."""
_LEAST, _MOST = 3, 4
"""Objects of the captions that are drawn."""


def places(groups: Groups) -> list[np.ndarray]:
    """Centres [count, 2] (x right, y down) of each group's objects in the sketch, pixels."""
    seed = int.from_bytes(hashlib.sha256(caption(groups).encode()).digest()[:8], "little")
    counts = [group.count for group in groups]
    kinds = np.repeat([group.kind for group in groups], counts)
    centres, _ = data.place(np.random.default_rng(seed), kinds)
    return np.split(centres, np.cumsum(counts)[:-1])


def mask(groups: Groups) -> np.ndarray:
    """The sketch, float32 [8, 8, colours]: the share of each cell that is in a disc."""
    fine = (np.arange(4 * data.SIZE) + 0.5) / 4
    out = np.zeros((4 * data.SIZE, 4 * data.SIZE, len(COLOURS)), np.float32)
    for group, centres in zip(groups, places(groups), strict=True):
        for x, y in centres:
            out[np.hypot(fine[:, None] - y, fine[None, :] - x) < _RADIUS, group.colour] = 1.0
    cells = out.reshape(_GRID, 4 * _CELL, _GRID, 4 * _CELL, -1)
    return cells.mean((1, 3))


def _blurred(cells: jax.Array) -> jax.Array:
    """Cells [n, 8, 8, colours], each spread by a Gaussian as wide as one."""
    at = jnp.arange(_GRID, dtype=jnp.float32)
    kernel = jnp.exp(-0.5 * jnp.square(at[:, None] - at[None, :]))
    return jnp.einsum("nijk,ia,jb->nabk", cells, kernel, kernel)


def bonus(given: Given, cond: Any) -> jax.Array:
    """The bonus above, [n]."""
    n = given.images.shape[0]
    cells = paint(given.images).reshape(n, _GRID, _CELL, _GRID, _CELL, -1).mean((2, 4))
    p, m = _blurred(cells), _blurred(cond.more)
    axes = (1, 2, 3)
    both = jnp.sum(jnp.square(m), axis=axes) + jnp.sum(jnp.square(p), axis=axes)
    return 8.0 * (2.0 * jnp.sum(m * p, axis=axes) / (both + 1e-6) - 1.0)


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    """Largest distance of points [k, 2] in their best matching with others; inf if k differ."""
    if len(found) != len(wanted):
        return float("inf")
    apart = np.linalg.norm(found[:, None] - wanted[None], axis=-1)
    rows = np.arange(len(found))
    orders: Sequence[tuple[int, ...]] = list(itertools.permutations(rows))
    return float(min(apart[rows, list(order)].max() for order in orders))


def judge(objects: Objects, groups: Groups) -> Finding:
    """Whether all objects are near their places, and the largest distance, pixels."""
    far = max(
        distance(objects.where((objects.colour == g.colour) & (objects.kind == g.kind)).centre, at)
        for g, at in zip(groups, places(groups), strict=True)
    )
    return Finding(far <= _NEAR, {"distance": far})


def _phrase(groups: Groups) -> str:
    spots = [" ".join(f"({x:.0f}, {y:.0f})" for x, y in centres) for centres in places(groups)]
    if len(spots) == 1:
        return f"near {spots[0]}"
    return f"the first near {spots[0]}, the second near {spots[1]}"


def _draw(rng: np.random.Generator) -> Groups:
    while not _LEAST <= total(groups := data.sample_groups(rng)) <= _MOST:
        pass
    return groups


LAYOUT = Challenge(
    name="layout",
    summary="the objects at the places of a sketch",
    draw=_draw,
    phrase=_phrase,
    judge_one=judge,
    bonus=bonus,
    more=mask,
)
