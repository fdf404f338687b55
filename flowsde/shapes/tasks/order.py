"""row, above: where objects lie relative to each other.

*row*: one horizontal line passes through all objects. The bonus is 8 (s - 1) with s the largest
share of the caption's paint that a band 8 pixels high holds; a soft maximum over bands.

*above*: the whole first group is higher than the second. The bonus is 8 (p - 1) with p the share of
pairs of paint, one of the first colour and one of the second, in which the first is higher; pairs
at one height count half.

Held out: exact counts, and the boxes of the objects, up to a pixel for *above*.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowsde.shapes.checker import Objects
from flowsde.shapes.data import sample_groups
from flowsde.shapes.tasks.base import Challenge, Finding, Groups
from flowsde.shapes.tasks.counts import total
from flowsde.shapes.tasks.given import Given, paint, words
from flowsde.shapes.tasks.sides import draw as draw_two_colours
from flowsde.shapes.tasks.sides import two_colours

_BAND = 8
"""Pixels; no object is higher."""
_SHARPNESS = 50.0
"""Of the soft maximum over bands, of shares."""
_SLACK = 1.0
"""Pixels by which boxes of the two groups may overlap."""
_LEAST, _MOST = 3, 4
"""Objects of the captions in which all stand in a row."""


def _draw(rng: np.random.Generator) -> Groups:
    while not _LEAST <= total(groups := sample_groups(rng)) <= _MOST:
        pass
    return groups


def row_bonus(given: Given, cond: Any) -> jax.Array:
    """The bonus of *row*, [n]."""
    colours = jnp.max(words(cond)[1], axis=1)
    by_row = jnp.einsum("nhwk,nk->nh", paint(given.images), colours)
    running = jnp.pad(jnp.cumsum(by_row, axis=1), ((0, 0), (1, 0)))
    bands = running[:, _BAND:] - running[:, :-_BAND]
    share = bands / (running[:, -1:] + 1e-3)
    most = jax.nn.logsumexp(_SHARPNESS * share, axis=1) - jnp.log(float(share.shape[1]))
    return 8.0 * (most / _SHARPNESS - 1.0)


def above_bonus(given: Given, cond: Any) -> jax.Array:
    """The bonus of *above*, [n]."""
    by_row = jnp.einsum("nhwk,ngk->ngh", paint(given.images), words(cond)[1])
    share = by_row / (jnp.sum(by_row, axis=-1, keepdims=True) + 1e-3)
    below = jnp.cumsum(share[:, 0], axis=-1) - 0.5 * share[:, 0]
    return 8.0 * (jnp.sum(below * share[:, 1], axis=-1) - 1.0)


def judge_row(objects: Objects, groups: Groups) -> Finding:
    """Whether a line passes through all objects, and how far their centres differ in height."""
    if not objects.picture.size:
        return Finding(False, {"spread": float("nan")})
    crossed = objects.low[:, 1].max() < objects.high[:, 1].min()
    return Finding(bool(crossed), {"spread": float(np.ptp(objects.centre[:, 1]))})


def judge_above(objects: Objects, groups: Groups) -> Finding:
    """Whether the first group is above the second, and by how many pixels."""
    first, second = (
        objects.where((objects.colour == g.colour) & (objects.kind == g.kind)) for g in groups
    )
    if not (first.picture.size and second.picture.size):
        return Finding(False, {"gap": float("nan")})
    gap = float(second.low[:, 1].min() - first.high[:, 1].max())
    return Finding(gap > -_SLACK, {"gap": gap})


ROW = Challenge(
    name="row",
    summary="all objects in one row",
    draw=_draw,
    objection=lambda groups: f"2 to {_MOST} objects" * (not 2 <= total(groups) <= _MOST),
    phrase=lambda groups: "all in one row",
    judge_one=judge_row,
    bonus=row_bonus,
)
ABOVE = Challenge(
    name="above",
    summary="the first group above the second",
    draw=draw_two_colours,
    objection=two_colours,
    phrase=lambda groups: "the first above the second",
    judge_one=judge_above,
    bonus=above_bonus,
)
