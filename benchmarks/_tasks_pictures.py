"""A picture of `tasks.py`: what a plain sample and the recommended search make of captions.

They are the first test captions, not a selection.
"""

from typing import Any

import numpy as np
from _tasks_measure import answers
from _tasks_rows import Case
from _tasks_settings import PLAIN_NFE, TRAJECTORY, Setting
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowsde.shapes.tasks import TASKS

_RIGHT, _WRONG = "#4d9a4d", "#d6604d"


def pictures_figure(
    task: str, model: str, setting: Setting, nfe: int, count: int = 8
) -> Figure:  # fmt: skip
    """A line of plain samples and a line of a search's answers; what the judge passes is green.

    Args:
      task: by name.
      model: by name.
      setting: of the search.
      nfe: its budget.
      count: captions.
    """
    texts = TASKS[task].captions("test", count)
    lines = {
        f"one sample, {PLAIN_NFE} NFE": Case(task, model, TRAJECTORY, PLAIN_NFE, "test", count, 1),
        f"{setting.method.upper()}, {nfe} NFE": Case(task, model, setting, nfe, "test", count, 1),
    }
    drawn = Figure(figsize=(1.45 * count, 1.75 * len(lines)), layout="constrained")
    every = drawn.subplots(len(lines), count, squeeze=False)
    for line, (name, case) in zip(every, lines.items(), strict=True):
        images = answers(case, texts).images[:, 0]
        success = TASKS[task].judge(images, texts).success
        for axes, image, right in zip(line, images, success, strict=True):
            _show(axes, image, _RIGHT if right else _WRONG)
        line[0].set_ylabel(name, fontsize=8)
    for axes, text in zip(every[0], texts, strict=True):
        axes.set_title(text.replace(" and ", "\nand "), fontsize=6)
    return drawn


def _show(axes: Axes, image: np.ndarray[Any, Any], colour: str) -> None:
    axes.imshow(np.clip((image + 1.0) / 2.0, 0.0, 1.0))
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(3)
