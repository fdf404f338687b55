"""Pictures of a search: what was accepted, the reward against evaluations, where they went."""

import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from flowsde.cli.lineage import FINISH, SAMPLE, SINGLE, Shot, Trace
from flowsde.pictures import pixels
from flowsde.runner.result import Result
from flowsde.search import Search
from flowsde.search.protocol import inner_kernel
from flowsde.search.value import value_of

_COLUMNS = 10
_SAMPLES = 50
_LINES = 4
_TILE = 1.0
_COLOURS = ("#3b6ea8", "#d08a3c", "#5a9b6b", "#a8577e")
_FINISH = "#8a8a8a"
_ANSWER = "#d62728"


def _by_reward(shot: Shot) -> float:
    return float(np.nan_to_num(shot.reward, nan=-np.inf))


def shown(trace: Trace, result: Result) -> tuple[dict[str, list[Shot | None]], str]:
    """Rows for a sheet of what was accepted, and what they are, in words.

    Every line is traced back from its end, up to where it parts from one before it: None stands
    for what they share. Of more than four lines the best four are shown. All samples of Best-of-N
    are one row, of more than fifty the best fifty. An answer that no line accepted has a row of
    its own.
    """
    ends = {shot.line: shot for shot in trace.shots}
    finish = ends.pop(FINISH, None)
    lines: dict[str, list[Shot | None]] = {}
    what = "what was accepted, in order"
    if any(name.startswith("sample ") for name in ends):
        samples = sorted(ends.values(), key=_by_reward)[-_SAMPLES:]
        lines["samples"] = [*sorted(samples, key=lambda shot: shot.nfe)]
        what = "samples in order"
        if len(ends) > _SAMPLES:
            what = f"the best {_SAMPLES} of {len(ends)} {what}"
    else:
        kept = list(ends.values())
        if len(kept) > _LINES:
            kept = sorted(kept, key=_by_reward, reverse=True)[:_LINES]
            kind = kept[0].line.split()[0]
            what = f"the best {_LINES} of {len(ends)} {kind}s"
        seen: set[int] = set()
        for end in kept:
            line = trace.lineage(end)
            lines[end.line] = [None if id(shot) in seen else shot for shot in line]
            seen |= {id(shot) for shot in line}
        if None in [shot for line in lines.values() for shot in line[:1]]:
            what += ", each traced back to where it parts from one above"
    if finish is not None:
        lines[FINISH] = [shot for shot in trace.shots if shot.line == FINISH]
    if not any(_is_answer(shot, result) for shots in lines.values() for shot in shots if shot):
        answer = (len(result.info.time) - 1, float(result.t), float(result.reward))
        lines["answer"] = [Shot("answer", *answer, result.nfe, -1, np.asarray(result.x0))]
    return lines, what


def _is_answer(shot: Shot, result: Result) -> bool:
    return (shot.time, shot.reward) == (float(result.t), float(result.reward))


def _rows(lines: dict[str, list[Shot | None]]) -> list[tuple[str, list[Shot | None]]]:
    """Lines broken into rows of the sheet, each with its label; none that is empty."""
    rows = []
    for name, shots in lines.items():
        parts = [shots[i : i + _COLUMNS] for i in range(0, len(shots), _COLUMNS)]
        parts = [part for part in parts if any(part)]
        rows += [(name if i == 0 else "", part) for i, part in enumerate(parts)]
    return rows


def _number(value: float) -> str:
    if abs(value) >= 1e6:  # more digits would not fit below a picture
        text = f"{value:.2g}"
    else:
        text = f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    return text.replace("-", "−")


def _wrapped(title: str, width: float) -> tuple[str, float]:
    """A title in lines that a figure has room for, and what more than one takes; in inches."""
    lines = textwrap.wrap(title, int(8.5 * width))
    return "\n".join(lines), 0.19 * (len(lines) - 1)


def path_figure(title: str, trace: Trace, result: Result, decode: Callable[[Any], Any]) -> Figure:
    """Sheet of the accepted posterior means with time and reward; the answer is framed."""
    lines, what = shown(trace, result)
    rows = _rows(lines)
    left, pitch, cell = 0.95, _TILE + 0.08, _TILE + 0.36
    width = max(left + max(len(shots) for _, shots in rows) * pitch + 0.1, 6.0)
    said, more = _wrapped(title, width)
    top = 0.62 + more
    height = top + len(rows) * cell
    figure = Figure(figsize=(width, height))
    # One axes, in inches: one for each picture takes three times as long to draw.
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.axis("off")
    axes.text(0.1, height - 0.16, said, va="top", fontsize=11, weight="bold", parse_math=False)
    note = f"{what}; time and reward below each, the answer framed"
    axes.text(0.1, height - 0.38 - more, note, va="top", fontsize=8, color="0.4")
    x0 = np.stack([shot.x0 for _, shots in rows for shot in shots if shot])
    images = iter(np.asarray(decode(x0)))
    for i, (name, shots) in enumerate(rows):
        y = height - top - i * cell - _TILE
        axes.text(0.1, y + _TILE / 2, name, va="center", fontsize=9)
        for j, shot in enumerate(shots):
            if shot is None:
                continue
            x = left + j * pitch
            picture = pixels(next(images))
            high, wide = _TILE * np.asarray(picture.shape[:2]) / max(picture.shape[:2])
            corner = (x + (_TILE - wide) / 2, y + (_TILE - high) / 2)
            place = (corner[0], corner[0] + wide, corner[1], corner[1] + high)
            axes.imshow(picture, extent=place, interpolation="nearest", aspect="auto")
            caption = f"t {shot.time:.3f}"
            caption += "" if np.isnan(shot.reward) else f" · {_number(shot.reward)}"
            axes.text(x + _TILE / 2, y - 0.05, caption, ha="center", va="top", fontsize=7.5)
            if _is_answer(shot, result):
                frame = Rectangle(corner, wide, high, fill=False, edgecolor=_ANSWER)
                frame.set(linewidth=2.5, zorder=3)
                axes.add_patch(frame)
    # Pictures have moved the limits.
    axes.set(xlim=(0.0, width), ylim=(0.0, height))
    return figure


class Spending(NamedTuple):
    """Evaluations charged: at each time [n] by each chain [n, chains], and by finishing."""

    times: np.ndarray
    budget: np.ndarray
    finishing: int


def spending(search: Search, result: Result, evaluations: int = 1) -> Spending:
    """Where the budget went, from all rounds of a result.

    Args:
      search: that was run.
      result: its last.
      evaluations: of the model that a candidate costs.

    Returns:
      `Spending`; methods without chains, or with more than four, count as one.
    """
    info = result.info
    finishing = int(np.sum(info.finishing))
    chains = info.ancestors.shape[1] if search.path_name == "chain" else 1
    chains = chains if chains <= _LINES else 1
    rows = slice(0, len(info.time) - finishing)
    counted = np.asarray(info.counted)[rows]
    time = np.asarray(info.time)[rows]
    # Candidates are in order of their chain.
    chain = np.broadcast_to(np.arange(counted.shape[1]) * chains // counted.shape[1], counted.shape)
    times, index = np.unique(time[counted], return_inverse=True)
    cost = np.full(len(times), evaluations)
    if (value := value_of(search)) is not None:
        scored = counted & (np.asarray(info.reward)[rows] > -np.inf)
        looks = np.isin(times, time[scored]) & np.asarray(value.looks(times))
        cost[looks] *= 1 + value.cost
    costs = cost[index]
    if (kernel := inner_kernel(search)) is not None:
        # Candidates of a round that are not moved, being noise or noised, are charged one each.
        moved = (np.asarray(info.charged)[rows] > counted.sum(1))[:, None] & (time < 1.0)
        costs = costs + evaluations * kernel.inner_evaluations * moved[counted]
    budget = np.zeros((len(times), chains), np.int64)
    np.add.at(budget, (index, chain[counted]), costs)
    return Spending(times[::-1], budget[::-1], finishing * evaluations)


def progress(search: Search, result: Result, evaluations: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Charged evaluations and the reward of the best by then, nan before there is one.

    A wave of Best-of-N is read in the order of its samples, as if they had been drawn one by one.
    """
    info = result.info
    if _draws_samples(search):
        # Of as many evaluations each, at the same times: the last has the samples.
        last = np.asarray(info.counted) & (info.time == np.min(info.time[info.counted]))
        rewards = np.asarray(info.reward, np.float64)[last]
        nfe = (np.arange(len(rewards)) + 1) * (np.sum(info.charged) // max(len(rewards), 1))
        best = np.maximum.accumulate(rewards)
    else:
        nfe, best = np.cumsum(info.charged), np.asarray(info.best_reward, np.float64)
    return nfe * evaluations, np.where(np.isfinite(best), best, np.nan)


def _draws_samples(search: Search) -> bool:
    """Whether its paths are samples, independent and finished one by one."""
    return search.path_name in (SAMPLE, SINGLE)


def found_at(search: Search, result: Result, evaluations: int = 1) -> int:
    """Evaluations charged by the round in which the answer was found; since then none was better.

    Args:
      search, result, evaluations: as in `progress`.
    """
    nfe, best = progress(search, result, evaluations)
    others = np.flatnonzero(best != best[-1])
    return int(nfe[others[-1] + 1 if others.size and others[-1] + 1 < len(nfe) else 0])


def _steps_begin(result: Result, rounds: int, evaluations: int) -> np.ndarray:
    """Evaluations charged before each first arrival at a lower time."""
    before = np.cumsum(result.info.charged)[:rounds] - np.asarray(result.info.charged)[:rounds]
    time = np.where(result.info.counted, result.info.time, np.inf)[:rounds].min(1)
    reached = np.minimum.accumulate(time)
    return before[np.flatnonzero(np.diff(reached, prepend=np.inf) < 0)] * evaluations


def _plot_reward(axes: Axes, search: Search, result: Result, evaluations: int) -> None:
    nfe, best = progress(search, result, evaluations)
    spent = spending(search, result, evaluations)
    final, total = float(result.reward), int(nfe[-1])
    axes.plot(nfe, best, drawstyle="steps-post", color=_COLOURS[0], linewidth=1.8)
    # Names lean towards where there is room for them.
    sides = ("left", "right") if spent.finishing > total / 2 else ("right", "left")
    if not _draws_samples(search):
        begins = _steps_begin(result, len(nfe) - spent.finishing // evaluations, evaluations)
        for x in begins[1:]:
            axes.axvline(x, color="0.85", linewidth=0.8, zorder=0)
        start, end = begins[-1], total - spent.finishing
        before, after = (best[nfe <= x][-1] if x else np.nan for x in (start, end))
        moved = "" if np.isnan(before) else f": {_number(before)} → {_number(after)}"
        _name_span(axes, start, end, f"last step{moved}", sides[0], _COLOURS[0])
    if spent.finishing:
        _name_span(axes, total - spent.finishing, total, " finish", sides[1], _FINISH)
    found = found_at(search, result, evaluations)
    if np.isfinite(final):
        axes.plot(found, final, "o", color=_ANSWER, clip_on=False, zorder=3)
        left = found > total / 2
        axes.annotate(f"answer {_number(final)}\nfound at {found} of {total}", (found, final),
                      (-8 if left else 8, -8), textcoords="offset points", va="top",
                      ha="right" if left else "left", color=_ANSWER, fontsize=9)  # fmt: skip
    else:
        axes.text(0.98, 0.95, _number(final), transform=axes.transAxes, ha="right", va="top",
                  color=_ANSWER, fontsize=9)  # fmt: skip
    if np.nanmin(best, initial=0.0) < -20.0:
        axes.set_yscale("symlog", linthresh=1.0)
    axes.set(xlim=(0, max(total, 1) * 1.02), xlabel="evaluations (NFE)", ylabel="reward")
    axes.margins(y=0.15)
    said = "reward of the best so far"
    said += "" if _draws_samples(search) else " at the last time reached"
    axes.set_title(said, loc="left", fontsize=10, pad=16)


def _name_span(axes: Axes, start: float, end: float, name: str, side: str, colour: str) -> None:
    """Shade evaluations start to end, with a name above that side of them."""
    axes.axvspan(start, end, color=colour, alpha=0.12, linewidth=0)
    at = start if side == "left" else end
    axes.text(at, 1.01, name, transform=axes.get_xaxis_transform(), ha=side, va="bottom",
              fontsize=8, color="0.4")  # fmt: skip


def _plot_spending(axes: Axes, spent: Spending, title: str) -> None:
    x, base = np.arange(len(spent.times)), np.zeros(len(spent.times))
    for chain, budget in enumerate(spent.budget.T):
        label = f"chain {chain + 1}" if spent.budget.shape[1] > 1 else None
        axes.bar(x, budget, bottom=base, label=label, color=_COLOURS[chain])
        base = base + budget
    labels = [f"{t:.2f}" for t in spent.times]
    if spent.finishing:
        x = np.append(x, len(x))
        base = np.append(base, spent.finishing)
        labels.append("finish")
        axes.bar(x[-1], spent.finishing, color=_FINISH)
    for at, height in zip(x.tolist(), base.tolist(), strict=True):
        axes.text(at, height, f"{height:.0f}", ha="center", va="bottom", fontsize=7, color="0.3")
    every = -(-len(spent.times) // 10)
    kept = [i for i in x if (i % every == 0 and i < len(x) - every) or i == x[-1]]
    axes.set_xticks(kept, [labels[i] for i in kept], rotation=45, ha="right", fontsize=8)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="step, by its time", ylabel="evaluations (NFE)")
    axes.margins(y=0.1)
    axes.set_title(title, loc="left", fontsize=10, pad=16)
    if spent.budget.shape[1] > 1:
        # Above the bars, which have their numbers on them, and below the title.
        axes.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1.0, 1.01),
                    ncols=4, borderpad=0.0, borderaxespad=0.0)  # fmt: skip


def search_figure(title: str, search: Search, result: Result, evaluations: int = 1) -> Figure:
    """Where the answer was found, and the evaluations that each step had.

    The left panel's curve falls where a step begins: rewards of posterior means of different times
    are not compared, and a later time has the answer.
    """
    said, more = _wrapped(title, 11)
    height = 4.2 + more
    figure = Figure(figsize=(11, height))
    figure.suptitle(said, x=0.01, ha="left", fontsize=11, weight="bold", parse_math=False)
    # Fixed margins: a constrained layout draws everything twice.
    bottom, top = 0.756 / height, 1.0 - (0.714 + more) / height
    margins = {"left": 0.095, "right": 0.985, "bottom": bottom, "top": top, "wspace": 0.18}
    left, right = figure.subplots(1, 2, gridspec_kw=margins)
    spent = spending(search, result, evaluations)
    _plot_reward(left, search, result, evaluations)
    _plot_spending(right, spent, "evaluations spent at each step")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
        axes.set_axisbelow(True)
    return figure
