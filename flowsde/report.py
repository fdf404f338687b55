"""What a command-line run leaves behind: pictures of the search, and its numbers.

Every file is written under a temporary name and then renamed, so that a file that exists is
whole.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from flowsde.search import BestOfN, Complete, Particle, Result, Search
from flowsde.shapes import captions, checker

_COLUMNS = 10
_MOST = 50
_TILE = 1.0
_COLOURS = ("#3b6ea8", "#d08a3c", "#5a9b6b", "#a8577e")
_FINISH = "#8a8a8a"


class Shot(NamedTuple):
    """One accepted particle: its time, the reward of its x0 or nan, NFE so far, and the picture."""

    time: float
    reward: float
    nfe: int
    image: np.ndarray


class Trace:
    """Watches a search: what each of its lines (chains, samples, finishing) accepted."""

    def __init__(self, search: Search, decode: Callable[[Any], Any]):
        self._search, self._decode = search, decode
        self._last: dict[str, tuple[float, float]] = {}
        self.lines: dict[str, list[Shot]] = {}

    def _particles(self, state: Any) -> tuple[str, Particle]:
        """The kind of line, and particles [n] of n lines of it."""
        search = self._search
        if isinstance(search, Complete):
            if int(state.step) > 0:
                return "finish", _row(state.particle)
            search, state = search.inner, state.inner
        if isinstance(search, BestOfN):
            return "trajectory", state.particles
        return "chain", search.path(state)

    def _add(self, name: str, particles: Particle, i: int, nfe: int) -> None:
        reward = float(particles.reward[i])
        image = np.asarray(self._decode(np.asarray(particles.x0)[i : i + 1]))[0]
        shot = Shot(float(particles.t[i]), reward if np.isfinite(reward) else np.nan, nfe, image)
        self.lines.setdefault(name, []).append(shot)

    def _record_samples(self, search: BestOfN, result: Result) -> None:
        """Finished samples of Best-of-N, the best of them if they are many."""
        state, steps = result.state, search.steps
        if int(state.step) > 0:
            return
        first = (int(state.wave) - 1) * search.n_candidates
        for i in range(min(search.n_candidates, search.samples - first)):
            self._add("samples", state.particles, i, (first + i + 1) * steps)
        while len(shots := self.lines["samples"]) > _MOST:
            shots.remove(min(shots, key=lambda shot: np.nan_to_num(shot.reward, nan=-np.inf)))

    def record(self, result: Result) -> None:
        """Take in a round's result."""
        if isinstance(self._search, BestOfN) and self._search.samples > 1:
            return self._record_samples(self._search, result)
        kind, particles = self._particles(result.state)
        times, rewards = np.asarray(particles.t), np.asarray(particles.reward)
        for i, at in enumerate(zip(times.tolist(), rewards.tolist(), strict=True)):
            name = f"{kind} {i + 1}" if kind == "chain" else kind
            unseen = at == (1.0, -np.inf) and kind != "trajectory"
            if unseen or self._last.get(name) == at:
                continue
            self._last[name] = at
            self._add(name, particles, i, int(result.nfe))


def _row(particle: Particle) -> Particle:
    return jax.tree.map(lambda a: np.asarray(a)[None], particle)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name that becomes `path` if the block succeeds, and vanishes if it does not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Strict JSON; ValueError for NaN and infinities."""
    text = json.dumps(values, indent=2, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n")


def save_figure(path: Path, figure: Figure) -> None:
    """A figure as PNG."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def pixels(image: np.ndarray) -> np.ndarray:
    """[-1, 1] to uint8."""
    return np.clip(np.round(127.5 * (image + 1.0)), 0, 255).astype(np.uint8)


def save_image(path: Path, image: np.ndarray, size: int = 256) -> None:
    """An RGB image in [-1, 1], enlarged without smoothing."""
    large = Image.fromarray(pixels(image)).resize((size, size), Image.Resampling.NEAREST)
    with replacing(path) as temporary:
        large.save(temporary, format="PNG")


def _rows(lines: dict[str, list[Shot]]) -> list[tuple[str, list[Shot]]]:
    """Lines broken into rows of the sheet, each with its label."""
    rows = []
    for name, shots in lines.items():
        starts = range(0, len(shots), _COLUMNS)
        rows += [(name if i == 0 else "", shots[i : i + _COLUMNS]) for i in starts]
    return rows


def _number(value: float) -> str:
    text = f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    return text.replace("-", "−")


def path_figure(title: str, lines: dict[str, list[Shot]], reward: float) -> Figure:
    """Sheet of the accepted posterior means with time and reward; the answer is framed."""
    rows = _rows(lines)
    left, top, cell = 0.95, 0.62, _TILE + 0.36
    width = max(left + max(len(shots) for _, shots in rows) * (_TILE + 0.08) + 0.1, 6.0)
    height = top + len(rows) * cell
    figure = Figure(figsize=(width, height))
    figure.text(0.1 / width, 1 - 0.16 / height, title, va="top", fontsize=11, weight="bold")
    note = "what was accepted, in order; time and reward below each, the answer framed"
    figure.text(0.1 / width, 1 - 0.38 / height, note, va="top", fontsize=8, color="0.4")
    answer = max(
        (s.nfe for shots in lines.values() for s in shots if s.reward == reward), default=-1
    )
    for i, (name, shots) in enumerate(rows):
        y = height - top - i * cell - _TILE
        figure.text(0.1 / width, (y + _TILE / 2) / height, name, va="center", fontsize=9)
        for j, shot in enumerate(shots):
            x = left + j * (_TILE + 0.08)
            axes = figure.add_axes((x / width, y / height, _TILE / width, _TILE / height))
            axes.imshow(pixels(shot.image), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            caption = f"t {shot.time:.3f}"
            caption += "" if np.isnan(shot.reward) else f" · {_number(shot.reward)}"
            axes.set_xlabel(caption, fontsize=7.5, labelpad=2)
            framed = shot.reward == reward and shot.nfe == answer
            for spine in axes.spines.values():
                spine.set(visible=framed, color="#d62728", linewidth=2.5)
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
    """
    info, chains = result.info, np.shape(result.info.path_time)[1]
    end = len(info.time)
    finishing = int(result.state.step) if isinstance(search, Complete) else 0
    rows = slice(0, end - finishing)
    counted, time = np.asarray(info.counted)[rows], np.asarray(info.time)[rows]
    chain = np.broadcast_to(np.arange(counted.shape[1]) * chains // counted.shape[1], counted.shape)
    times, index = np.unique(time[counted], return_inverse=True)
    budget = np.zeros((len(times), chains), np.int64)
    np.add.at(budget, (index, chain[counted]), evaluations)
    return Spending(times[::-1], budget[::-1], finishing * evaluations)


def progress(search: Search, result: Result, evaluations: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Charged evaluations and the best reward by then, nan before there is one.

    A wave of Best-of-N is read in the order of its samples, as if they had been drawn one by one.
    """
    info = result.info
    if isinstance(search, BestOfN):
        last = (
            np.asarray(info.counted)
            & (np.arange(len(info.time)) % search.steps == search.steps - 1)[:, None]
        )
        rewards = np.asarray(info.reward, np.float64)[last]
        nfe = (np.arange(len(rewards)) + 1) * search.steps
        best = np.maximum.accumulate(rewards)
    else:
        nfe, best = np.cumsum(info.charged), np.asarray(info.best_reward, np.float64)
    return nfe * evaluations, np.where(np.isfinite(best), best, np.nan)


def _plot_reward(axes: Axes, search: Search, result: Result, evaluations: int) -> None:
    nfe, best = progress(search, result, evaluations)
    final, finishing = float(result.reward), spending(search, result, evaluations).finishing
    axes.plot(nfe, best, drawstyle="steps-post", color=_COLOURS[0], linewidth=1.8)
    if finishing:
        axes.axvspan(nfe[-1] - finishing, nfe[-1], color=_FINISH, alpha=0.2, linewidth=0)
        axes.text(nfe[-1], 1.01, "finish", transform=axes.get_xaxis_transform(), ha="right",
                  va="bottom", fontsize=8, color="0.4")  # fmt: skip
    axes.plot(nfe[-1], final, "o", color="#d62728", clip_on=False, zorder=3)
    axes.annotate(_number(final), (nfe[-1], final), (-8, -8), textcoords="offset points",
                  ha="right", va="top", color="#d62728", fontsize=9)  # fmt: skip
    if np.nanmin(best, initial=0.0) < -20.0:
        axes.set_yscale("symlog", linthresh=1.0)
    axes.set(xlim=(0, max(nfe[-1], 1) * 1.02), xlabel="NFE", ylabel="best reward")
    axes.set_title("best reward so far", loc="left", fontsize=10)


def _plot_spending(axes: Axes, spent: Spending) -> None:
    x, base = np.arange(len(spent.times)), np.zeros(len(spent.times))
    for chain, budget in enumerate(spent.budget.T):
        label = f"chain {chain + 1}" if spent.budget.shape[1] > 1 else None
        axes.bar(x, budget, bottom=base, label=label, color=_COLOURS[chain % len(_COLOURS)])
        base = base + budget
    labels = [f"{t:.2f}" for t in spent.times]
    if spent.finishing:
        x = np.append(x, len(x))
        labels.append("finish")
        axes.bar(x[-1], spent.finishing, color=_FINISH)
    every = -(-len(spent.times) // 10)
    kept = [i for i in x if (i % every == 0 and i < len(x) - every) or i == x[-1]]
    axes.set_xticks(kept, [labels[i] for i in kept], rotation=45, ha="right", fontsize=8)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="step, by its time", ylabel="NFE")
    axes.set_title("budget spent", loc="left", fontsize=10)
    if spent.budget.shape[1] > 1:
        axes.legend(frameon=False, fontsize=8)


def search_figure(title: str, search: Search, result: Result, evaluations: int = 1) -> Figure:
    """Best reward against NFE, and budget spent at each step."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, weight="bold")
    left, right = figure.subplots(1, 2)
    _plot_reward(left, search, result, evaluations)
    _plot_spending(right, spending(search, result, evaluations))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
        axes.set_axisbelow(True)
    return figure


def judge(prompt: str, image: np.ndarray) -> dict[str, Any]:
    """What the held-out checker sees in a shapes picture [32, 32, 3], and whether that is right."""
    wanted = captions.counts(captions.parse(prompt))[None]
    found = checker.detect(image[None])
    counts = found.counts[0]
    names = {(c, k): f"{captions.COLOURS[c]} {captions.KINDS[k]}" for c, k in np.argwhere(counts)}
    return {
        "exact": bool(checker.exact(image[None], wanted)[0]),
        "rss": float(checker.rss(image[None], wanted)[0]),
        "counts": {name: int(counts[at]) for at, name in names.items()},
        "unclear": int(found.unclear[0]),
    }


def describe(heldout: dict[str, Any]) -> str:
    """What `judge` says, in words."""
    seen = [f"{n} {name}{'s' * (n > 1)}" for name, n in heldout["counts"].items()]
    seen += [f"{heldout['unclear']} unclear"] * (heldout["unclear"] > 0)
    verdict = "exactly what was asked" if heldout["exact"] else f"off by RSS {heldout['rss']:g}"
    return f"{', '.join(seen) or 'nothing'} ({verdict})"
