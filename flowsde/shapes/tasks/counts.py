"""counts, many: the objects that a caption names, and no others.

What the scorer learned, and what a plain sample gets right three times in ten; with eight objects
or more it seldom does.
"""

import numpy as np

from flowsde.shapes.data import sample_groups
from flowsde.shapes.tasks.base import Challenge, Groups

_MANY = 8
_HELD_OUT = 0.2
"""Share of captions with a count, colour and kind that training never showed."""


def total(groups: Groups) -> int:
    """Objects of a caption."""
    return sum(group.count for group in groups)


def _draw(rng: np.random.Generator) -> Groups:
    return sample_groups(rng, held_out=bool(rng.random() < _HELD_OUT))


def _draw_many(rng: np.random.Generator) -> Groups:
    while total(groups := _draw(rng)) < _MANY:
        pass
    return groups


COUNTS = Challenge(name="counts", summary="exactly the objects of the caption", draw=_draw)
MANY = Challenge(
    name="many",
    summary=f"exactly the objects of captions with {_MANY} of them or more",
    draw=_draw_many,
    objection=lambda groups: (
        f"{_MANY} objects or more, got {total(groups)}" * (total(groups) < _MANY)
    ),
)
