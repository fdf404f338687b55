"""rare: captions with a (count, colour, shape) that training never showed.

The bonus is nothing: the scorer has seen all of them, only the flow has not.
"""

from flowsde.shapes.data import HELD_OUT, sample_groups
from flowsde.shapes.tasks.base import Challenge

RARE = Challenge(
    name="rare",
    summary="exactly the objects of captions with a group that training never showed",
    draw=lambda rng: sample_groups(rng, held_out=True),
    objection=lambda groups: (
        "a count, colour and shape that training never showed" * HELD_OUT.isdisjoint(groups)
    ),
)
