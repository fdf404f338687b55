"""sides: the first group in the left half of the picture, the second in the right half.

The flow never learned sides: each object of an exact sample is on its side half of the time.
With l and r the shares of the colours' paint that lie on their sides, the bonus is

    4 (min(l, r) - 1) + 2 (l + r - 2)  <=  0.

Held out: exact counts, and the box of every object lies in its half, up to a pixel.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowsde.shapes.checker import Objects
from flowsde.shapes.data import SIZE, sample_groups
from flowsde.shapes.tasks.base import Challenge, Finding, Groups
from flowsde.shapes.tasks.counts import total
from flowsde.shapes.tasks.given import Given, paint, words

_LEAST, _MOST = 4, 6
"""Objects of the captions that are drawn."""
_SLACK = 1.0
"""Pixels by which a box may reach over the middle."""


def two_colours(groups: Groups) -> str:
    """What a caption must be: two groups of different colours."""
    good = len(groups) == 2 and groups[0].colour != groups[1].colour
    return "" if good else "two groups of different colours"


def draw(rng: np.random.Generator) -> Groups:
    """Two groups of different colours, 4 to 6 objects in all."""
    while True:
        groups = sample_groups(rng)
        if not two_colours(groups) and _LEAST <= total(groups) <= _MOST:
            return groups


def bonus(given: Given, cond: Any) -> jax.Array:
    """The bonus above, [n]."""
    _, colours, _ = words(cond)
    left = (jnp.arange(SIZE) < SIZE // 2).astype(jnp.float32)
    sides = jnp.stack([left, 1.0 - left])
    by_column = jnp.einsum("nhwk,ngk->ngw", paint(given.images), colours)
    inside = jnp.sum(by_column * sides[None], axis=-1)
    share = inside / (jnp.sum(by_column, axis=-1) + 1e-3)
    return 4.0 * (jnp.min(share, axis=-1) - 1.0) + 2.0 * (jnp.sum(share, axis=-1) - 2.0)


def _on_side(objects: Objects, groups: Groups, side: int) -> float:
    """Share of a group's objects that are on their side; 1 if there are none."""
    group = groups[side]
    own = objects.where((objects.colour == group.colour) & (objects.kind == group.kind))
    middle = SIZE / 2
    right = own.low[:, 0] > middle - _SLACK
    there = right if side else own.high[:, 0] < middle + _SLACK
    return float(there.mean()) if there.size else 1.0


def judge(objects: Objects, groups: Groups) -> Finding:
    """Whether all objects are on their sides, and the share of each group's that are."""
    left, right = (_on_side(objects, groups, side) for side in (0, 1))
    return Finding(left == right == 1.0, {"left": left, "right": right})


SIDES = Challenge(
    name="sides",
    summary="the first group in the left half, the second in the right half",
    draw=draw,
    objection=two_colours,
    phrase=lambda groups: "the first in the left half, the second in the right half",
    judge_one=judge,
    bonus=bonus,
)
