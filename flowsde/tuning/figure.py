"""The picture of a race: who went how far, and what was held out."""

from typing import TYPE_CHECKING

import numpy as np

from flowsde.tuning.report import roles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from flowsde.tuning.tuned import Tuned

_COLOURS = {
    "Best-of-N": "#8a8a8a",
    "winner": "#3b6ea8",
    "runner-up": "#d08a3c",
    "recommended": "#4f8f5b",
}


def draw(t: "Tuned") -> "Figure":
    """Two panels: mean outcomes after each rung, and the finalists with their intervals."""
    # Imported here: it takes longer than all else.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    raced, held_out = figure.subplots(1, 2, width_ratios=(3, 2))
    role = roles(t)
    _race(raced, t, role)
    _finalists(held_out, t, role)
    for axes in (raced, held_out):
        axes.set_ylabel(f"mean {t.outcome}", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _race(axes: "Axes", t: "Tuned", roles: dict[str | None, str]) -> None:
    axes.set_title("The race", fontsize=10, loc="left")
    axes.set_xlabel("searches of each setting", fontsize=9)
    for name in t.settings:
        points = [
            (rung.units, one.mean)
            for rung in t.race.rungs
            for one in rung.table
            if one.name == name and np.isfinite(one.mean)
        ]
        if not points:
            continue
        role = roles.get(name)
        colour = _COLOURS.get(role or "", "#c8c8c8")
        order = 3 if role else 1
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3.5,
                  linewidth=2.0 if role else 0.9, zorder=order, label=role)  # fmt: skip
    axes.legend(fontsize=8, frameon=False)


def _finalists(axes: "Axes", t: "Tuned", roles: dict[str | None, str]) -> None:
    axes.set_title("On what was held out, 95 %", fontsize=10, loc="left")
    for i, (name, one) in enumerate(t.finalists.items()):
        ends = np.asarray([[one.mean - one.low], [one.high - one.mean]])
        known = np.isfinite(ends).all()
        axes.errorbar([i], [one.mean], yerr=ends if known else None, color=_COLOURS[roles[name]],
                      marker="o", markersize=6, capsize=4)  # fmt: skip
    axes.set_xticks(range(len(t.finalists)), [roles[name] for name in t.finalists])
    axes.set_xlim(-0.5, len(t.finalists) - 0.5)
