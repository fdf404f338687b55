"""The picture of a diagnosis: six estimates against time, with their intervals."""

from typing import TYPE_CHECKING

import numpy as np

from flowsde.diagnosis.advice import BLIND, OFTEN, SETTLED, USABLE
from flowsde.diagnosis.record import Record
from flowsde.diagnosis.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREEN, _GREY = "#3b6ea8", "#d08a3c", "#4d9a4d", "#8a8a8a"


def draw(d: Record) -> "Figure":
    """Six panels; noise is at the left, as trajectories run."""
    # Imported here: it takes longer than all else.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.0, 6.4), layout="constrained")
    panels = figure.subplots(2, 3).reshape(-1)
    draws = {
        "Rank correlation of x0's reward with the picture's": _value,
        "Natural gain of the reward in a step, ± sd": _gain,
        "How often a blindly drawn child beats its parent": _rises,
        "Siblings' spread of rewards over strangers'": _spread,
        "How often the better sibling ends as the better": _agreement,
        "An evaluation's gain by branching, over Best-of-N's": _worth,
    }
    for i, (axes, (title, panel)) in enumerate(zip(panels, draws.items(), strict=True)):
        axes.set_title(title, fontsize=10, loc="left")
        if i > 2 and not d.sibling_rewards.size:
            _nothing(axes)
        else:
            panel(axes, d)
        axes.set_xlim(1.03, float(min(d.times[-1], 0.9)) - 0.03)
        axes.set_xlabel("time t, noise to data", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _line(axes: "Axes", d: Record, own: Estimate, colour: str, label: str = "") -> None:
    times = d.times[: len(own.value)]
    axes.fill_between(times, own.low, own.high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(times, own.value, color=colour, marker="o", markersize=3.5, label=label)


def _limits(axes: "Axes", *at: float) -> None:
    for value in at:
        axes.axhline(value, color="0.4", linestyle=":", linewidth=1)


def _legend(axes: "Axes") -> None:
    axes.legend(fontsize=8, frameon=False)


def _value(axes: "Axes", d: Record) -> None:
    _line(axes, d, d.correlation, _BLUE)
    _limits(axes, BLIND, USABLE)
    lows = d.correlation.low
    axes.set_ylim(min([-0.05, *(lows[np.isfinite(lows)] - 0.03)]), 1.05)


def _gain(axes: "Axes", d: Record) -> None:
    mean, sd = d.gain.value, d.gain_spread.value
    axes.fill_between(d.times[:-1], mean - sd, mean + sd, color="0.5", alpha=0.15, linewidth=0)
    _line(axes, d, d.gain, _ORANGE)
    _limits(axes, 0.0)


def _rises(axes: "Axes", d: Record) -> None:
    _line(axes, d, d.rises, _ORANGE)
    _limits(axes, 0.5, OFTEN)
    axes.set_ylim(-0.03, 1.03)


def _spread(axes: "Axes", d: Record) -> None:
    _line(axes, d, d.spread, _BLUE, "of posterior means, one step later")
    _line(axes, d, d.final_spread, _GREEN, "of final pictures")
    _limits(axes, SETTLED)
    axes.set_ylim(bottom=0.0)
    _legend(axes)


def _agreement(axes: "Axes", d: Record) -> None:
    _line(axes, d, d.agreement, _BLUE)
    _limits(axes, 0.5)
    axes.set_ylim(-0.03, 1.03)


def _worth(axes: "Axes", d: Record) -> None:
    own = d.worth
    groups = (
        (own.low > 1.0, _GREEN, "worth it"),
        (own.high < 1.0, _GREY, "not worth it"),
        (~((own.low > 1.0) | (own.high < 1.0)), _ORANGE, "not decided"),
    )
    for chosen, colour, label in groups:
        at = np.flatnonzero(chosen & np.isfinite(own.value))
        if at.size:
            value = own.value[at]
            # A percentile interval need not hold the estimate.
            ends = np.maximum([value - own.low[at], own.high[at] - value], 0.0)
            axes.errorbar(
                d.times[at], value, ends, color=colour, fmt="o", markersize=4.5, capsize=2,
                label=label,
            )  # fmt: skip
            _legend(axes)
    _limits(axes, 1.0)


def _nothing(axes: "Axes") -> None:
    axes.text(
        0.5, 0.5, "no siblings", transform=axes.transAxes, ha="center", color="0.4", fontsize=10
    )
