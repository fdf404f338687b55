"""size: large objects, by a continuous reward that can be hacked.

The bonus is 20 times the paint in the caption's colours, in cells of 8 x 8 pixels an object asked
for. More paint is worth more whatever it shows: blobs, merged objects and additional ones pay, and
only the scorer's likelihood stands against them.

Held out: exact counts of clean objects, whose mean area is well above the usual one.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowsde.shapes.captions import KINDS
from flowsde.shapes.checker import Objects
from flowsde.shapes.data import sample_groups
from flowsde.shapes.tasks.base import Challenge, Finding, Groups
from flowsde.shapes.tasks.counts import total
from flowsde.shapes.tasks.given import Given, paint, words

_CELL = 64.0
_WEIGHT = 20.0
_USUAL = np.asarray([25.6, 30.0, 16.4])
"""Mean area of each kind in scenes, pixels."""
_FACTOR = 1.12
"""Least mean area of the objects, in units of the usual one; the largest are at 1.25 and 1.37."""
_LEAST, _MOST = 3, 5
"""Objects of the captions that are drawn."""


def _good(groups: Groups) -> bool:
    # Triangles hardly vary in size.
    return all(KINDS[group.kind] != "triangle" for group in groups)


def _draw(rng: np.random.Generator) -> Groups:
    while True:
        groups = sample_groups(rng)
        if _good(groups) and _LEAST <= total(groups) <= _MOST:
            return groups


def bonus(given: Given, cond: Any) -> jax.Array:
    """The bonus above, [n]."""
    count, colours, _ = words(cond)
    area = jnp.einsum("nhwk,nk->n", paint(given.images), jnp.max(colours, axis=1))
    return _WEIGHT / _CELL * area / jnp.sum(count, axis=1).astype(jnp.float32)


def judge(objects: Objects, groups: Groups) -> Finding:
    """Whether objects are large, and the mean of their areas relative to their kind's usual one."""
    if not objects.picture.size:
        return Finding(False, {"size": float("nan")})
    size = float((objects.area / _USUAL[objects.kind]).mean())
    return Finding(size >= _FACTOR, {"size": size})


LARGE = Challenge(
    name="size",
    summary="objects larger than usual",
    draw=_draw,
    objection=lambda groups: "circles and squares alone" * (not _good(groups)),
    phrase=lambda groups: "all large",
    judge_one=judge,
    bonus=bonus,
)
