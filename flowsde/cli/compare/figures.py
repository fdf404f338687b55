"""Plots of a comparison: each measure against the budget, one panel for each interpolant."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from flowsde.cli.compare.rows import SINGLE
from flowsde.cli.presets import stochastic
from flowsde.cli.settings import METHODS

MEASURES = {
    "accuracy": "exact captions, by the held-out checker",
    "given": "given reward, which the search sees",
    "rss": "held-out squared error of the counts",
    "diversity": "distance between seeds' pictures",
}
"""By key of the table, with what they are called."""


def measures(task: str) -> dict[str, str]:
    """`MEASURES`, in the words of a task."""
    return MEASURES | ({} if task == "counts" else {"accuracy": f"success at {task}, held out"})


_COLOURS = {name: f"C{i % 10}" for i, name in enumerate(METHODS)}
_STYLES = ("-", "--", ":", "-.")


def _panels(table: Sequence[dict[str, Any]]) -> list[str]:
    """Interpolants that something moves in; the ODE's, if nothing else does."""
    moving = [row["interpolant"] for row in table if stochastic(row["kernel"])]
    return list(dict.fromkeys(moving or [row["interpolant"] for row in table]))


def _draw(axes: Axes, rows: list[dict[str, Any]], measure: str, style: str, shift: float) -> None:
    """One line; a single trajectory has one budget and is drawn across."""
    first = rows[0]
    colour, label = _COLOURS.get(first["method"], "black"), first["label"]
    y = np.asarray([row[measure] for row in rows], np.float64)
    low, high = (
        np.asarray([row[f"{measure}_{end}"] for row in rows], np.float64) for end in ("low", "high")
    )
    if first["method"] in SINGLE:
        axes.axhline(y[0], color=colour, linestyle=style, label=label)
        axes.axhspan(low[0], high[0], color=colour, alpha=0.15, linewidth=0)
        return
    x = np.asarray([row["nfe"] for row in rows]) * shift
    errors = np.nan_to_num(np.stack([y - low, high - y]))
    axes.errorbar(
        x, y, errors, color=colour, linestyle=style, marker="o", markersize=4, capsize=2,
        linewidth=1.5, label=label,
    )  # fmt: skip


def figure(
    table: Sequence[dict[str, Any]], measure: str, words: str | None = None
) -> Figure | None:
    """One measure of one table with its 95 % intervals, as `MEASURES` calls it or as told.

    None if no row has it.
    """
    table = [row for row in table if row[measure] is not None]
    if not table:
        return None
    panels = _panels(table)
    drawn = Figure(figsize=(5.2 * len(panels) + 2.6, 4.4), layout="constrained")
    every = drawn.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, interpolant in zip(every, panels, strict=True):
        here = [row for row in table if not stochastic(row["kernel"])]
        here += [row for row in table if row not in here and row["interpolant"] == interpolant]
        lines: dict[str, list[dict[str, Any]]] = {}
        for row in here:
            lines.setdefault(row["label"], []).append(row)
        drawn_of: dict[str, int] = {}
        for i, rows in enumerate(lines.values()):
            n = drawn_of.setdefault(rows[0]["method"], 0)
            drawn_of[rows[0]["method"]] += 1
            # Side by side, so that intervals do not hide each other.
            shift = 1.0 + 0.012 * (i - len(lines) / 2)
            _draw(axes, sorted(rows, key=lambda r: r["nfe"]), measure, _STYLES[n % 4], shift)
        budgets = sorted({r["nfe"] for r in here if r["method"] not in SINGLE})
        if budgets:
            axes.set_xscale("log")
            axes.set_xticks(budgets, [str(n) for n in budgets])
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("NFE")
        axes.set_title(f"{interpolant.replace('_', ' ')} interpolant", loc="left", fontsize=10)
        axes.grid(alpha=0.3)
    every[0].set_ylabel(words or MEASURES[measure])
    handles: dict[str, Any] = {}
    for axes in every:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    # Beside the panels, where it hides no data.
    drawn.legend(handles.values(), handles, loc="outside right upper", fontsize=7)
    return drawn
