"""Plots of `tasks.py`: success against NFE and against seconds, and where a budget goes.

A panel is a task on a model, a line a method in the setting that was best on the development
captions, and Best-of-N, tuned to every budget, is in all of them. Bars are 95 % intervals.
"""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _files import replace_file
from _tasks_compare import best_of_n, grouped
from _tasks_rows import Row, Table
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    NullFormatter,
    NullLocator,
    PercentFormatter,
)


class _Look(NamedTuple):
    name: str
    colour: str
    marker: str


# Okabe and Ito's colours and some more, told apart without colour vision by their markers; the
# baseline is black.
LOOKS = {
    "bon": _Look("Best-of-N", "black", "s"),
    "sop": _Look("SoP", "#56B4E9", "v"),
    "zero_order": _Look("zero-order", "#7F7F7F", "h"),
    "pcn": _Look("pCN", "#B3A600", "p"),
    "evolution": _Look("evolution", "#CC79A7", "X"),
    "smc": _Look("SMC", "#0072B2", "o"),
    "restarts": _Look("SMC, restarts", "#AA3377", "1"),
    "code": _Look("CoDe", "#009E73", "^"),
    "svdd": _Look("SVDD", "#E69F00", "D"),
    "epsilon_greedy": _Look("ε-greedy", "#8C6D31", "*"),
    "rbf": _Look("RBF", "#D55E00", "P"),
    "noise_tilt": _Look("NoiseTilt", "#332288", "<"),
    "tds": _Look("TDS", "#117733", ">"),
    "das": _Look("DAS", "#882255", "d"),
}
_APART = 1.015
"""Factor between neighbouring methods, so that intervals do not hide each other."""


def representative(table: Table, model: str, method: str, nfe: int, split: str) -> str | None:
    """The setting that was best on the development captions, of those measured on a split."""
    of = {"model": model, "method": method, "nfe": nfe}
    there = {row["setting"] for row in table.select(**of, split=split)}
    tried = [row for row in table.select(**of, split="dev") if row["setting"] in there]
    if not tried:
        return next(iter(sorted(there)), None)
    settings = grouped(tried, "setting")
    most = max(map(len, settings.values()))
    means = {
        name: np.mean([row["success"] for row in rows])
        for (name,), rows in settings.items()
        if len(rows) == most
    }
    return max(means, key=lambda name: means[name])


def line(table: Table, task: str, model: str, method: str, split: str) -> list[Row]:
    """Rows of a method by budget."""
    made = []
    of = {"task": task, "model": model, "method": method, "split": split}
    for nfe in sorted({row["nfe"] for row in table.select(**of)}):
        if method == "bon":
            row = best_of_n(table, task, model, nfe, split)
            made += [row] if row is not None else []
        else:
            name = representative(table, model, method, nfe, split)
            made += table.select(**of, nfe=nfe, setting=name)
    return made


def _panel(axes: Axes, table: Table, task: str, model: str, split: str, x: str) -> None:
    plain = table.select(task=task, model=model, split=split, method="ode")
    plain = plain or table.select(task=task, model=model, method="ode")
    if plain:
        axes.axhline(plain[0]["success"], color="0.6", linestyle=":", linewidth=1.2)
    for i, (method, look) in enumerate(LOOKS.items()):
        rows = line(table, task, model, method, split)
        if not rows:
            continue
        at, y, low, high = (
            np.asarray([row[name] for row in rows])
            for name in (x, "success", "success_low", "success_high")
        )
        order = np.argsort(at)
        at = at * _APART ** (i - (len(LOOKS) - 1) / 2)
        axes.errorbar(
            at[order], y[order], np.stack([y - low, high - y])[:, order], color=look.colour,
            marker=look.marker, markersize=4.5, capsize=1.5, elinewidth=0.9,
            linewidth=2.0 if method == "bon" else 1.4, linestyle="--" if method == "bon" else "-",
            zorder=3 if method == "bon" else 2, label=look.name,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def success_figure(
    table: Table, tasks: tuple[str, ...], models: tuple[str, ...], split: str, verifier: int | None
) -> Figure:
    """Success against NFE, or against seconds with a verifier of so many evaluations."""
    x = "nfe" if verifier is None else f"seconds_{verifier}"
    tasks = tuple(t for t in tasks if table.select(task=t, split=split, method="bon"))
    columns = max(min(3, len(tasks)), 1)
    bands = max(-(-len(tasks) // columns), 1)
    size = (2.9 * columns + 0.6, 2.45 * bands * len(models) + 0.7)
    drawn = Figure(figsize=size, layout="constrained")
    every = drawn.subplots(bands * len(models), columns, sharex=True, squeeze=False)
    for axes in every.flat:
        axes.set_visible(False)
    budgets = sorted({row["nfe"] for row in table.select(method="bon", split=split)})
    for m, model in enumerate(models):
        for i, task in enumerate(tasks):
            axes = every[m * bands + i // columns, i % columns]
            if not table.select(task=task, model=model, split=split, method="bon"):
                continue
            axes.set_visible(True)
            _panel(axes, table, task, model, split, x)
            axes.set_title(f"{task}, {model}", loc="left", fontsize=10)
            axes.set_ylim(bottom=0.0)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.tick_params(labelsize=8, labelbottom=True)
            if verifier is None:
                axes.set_xticks(budgets, [str(n) for n in budgets])
                axes.xaxis.set_minor_locator(NullLocator())
            else:
                axes.xaxis.set_major_locator(LogLocator(10.0, subs=(1.0, 3.0)))
                axes.xaxis.set_major_formatter(FuncFormatter(lambda x, at: f"{x:g}"))
                axes.xaxis.set_minor_formatter(NullFormatter())
    handles: dict[str, Any] = {}
    for axes in every.flat:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    drawn.supylabel("success, by the held-out checker", fontsize=10)
    unit = "evaluation" if verifier == 1 else "evaluations"
    cost = "" if verifier is None else f", a reward costs {verifier} network {unit}"
    drawn.supxlabel("NFE" if verifier is None else f"seconds a search{cost}", fontsize=10)
    order = [look.name for look in LOOKS.values() if look.name in handles]
    drawn.legend(
        [handles[name] for name in order], order, loc="outside upper center",
        ncols=-(-len(order) // 2), frameon=False, fontsize=9,
    )  # fmt: skip
    return drawn


def budget_figure(spent: dict[str, list[float]], nfe: int) -> Figure:
    """Evaluations at each step of the grid, by rule of acceptance; the last bar finishes."""
    drawn = Figure(figsize=(5.6, 2.9), layout="constrained")
    axes = drawn.subplots()
    width = 0.8 / len(spent)
    longest = max(map(len, spent.values()))
    colours = ("#999999", "#D55E00", "#0072B2")
    for i, (name, counts) in enumerate(spent.items()):
        at = np.arange(len(counts)) + (i - (len(spent) - 1) / 2) * width
        axes.bar(at, counts, width, color=colours[i % len(colours)], label=name)
    steps = [str(i + 1) for i in range(longest - 1)]
    axes.set_xticks(range(longest), [*steps, "finish"], fontsize=8)
    axes.set_xlabel("step, from noise to data")
    axes.set_ylabel(f"evaluations of {nfe}")
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return drawn


def save(drawn: Figure, path: Path) -> None:
    """As PNG, under a temporary name first."""
    replace_file(path, partial(drawn.savefig, format="png", dpi=120))
