"""Tasks of the embedded flow: a given reward, a held-out judge and captions for each.

    task = tasks.TASKS["sides"]
    text, = task.captions("dev", 1)
    flow, reward = task.flow(shapes.load_flow()), task.load_reward()
    result = fs.run(key, flow, search, reward, cond=task.encode(text))
    task.judge(result.image[None], [text]).success

On most of them a plain sample is seldom right: what a search adds can be measured.
"""

from flowsde.shapes.tasks.base import SPLITS, Challenge, Cond, Verdicts
from flowsde.shapes.tasks.counts import COUNTS, MANY
from flowsde.shapes.tasks.layout import LAYOUT
from flowsde.shapes.tasks.order import ABOVE, ROW
from flowsde.shapes.tasks.rare import RARE
from flowsde.shapes.tasks.sides import SIDES
from flowsde.shapes.tasks.size import LARGE

__all__ = ["SPLITS", "TASKS", "Challenge", "Cond", "Verdicts"]

TASKS: dict[str, Challenge] = {
    "counts": COUNTS,
    "many": MANY,
    "sides": SIDES,
    "row": ROW,
    "above": ABOVE,
    "size": LARGE,
    "layout": LAYOUT,
    "rare": RARE,
}
"""By name, which is what --task takes."""
