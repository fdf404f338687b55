"""How often does a search give the picture that was asked for?

For every setting, captions x seeds are searched on the embedded model and the returned pictures
judged by the programmatic checker, which no search sees. A fifth of the captions name a
(count, colour, shape) triple that training never showed.

    python benchmarks/shapes_search.py [--quick] [--json FILE] [--settings NAME ...]

JSON keys: captions, seeds, and ``rows``, each with setting, method, interpolant, kernel, grid,
steps, budget, nfe (mean charged), evaluations (mean computed), accuracy, accuracy_low,
accuracy_high (exact captions, 95 % Wilson interval over captions x seeds), clean (share of
objects that are clean shapes), rss (mean held-out squared error), reward (mean), seconds.
"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from _files import replace_file
from scipy.stats import binomtest

import flowsde as fs
from flowsde import shapes
from flowsde.search import Search
from flowsde.shapes import checker
from flowsde.shapes.captions import Group, counts, tokenize
from flowsde.shapes.data import sample_groups

_BATCH = 25
"""Prompts searched together."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """A row: a method with its interpolant, kernel and grid."""

    method: str
    interpolant: fs.interpolants.Interpolant
    kernel: fs.kernels.Kernel
    grid: tuple[str, int]
    budget: int
    options: tuple[tuple[str, object], ...] = ()

    def search(self) -> Search:
        """The search to run; one ODE or SDE trajectory is a Best-of-1."""
        name, steps = self.grid
        grid = getattr(fs.grids, name)(steps)
        make: Any = fs.search.rbf if self.method == "rbf" else fs.search.bon
        return make(nfe=self.budget, kernel=self.kernel, grid=grid, **dict(self.options))


def settings() -> dict[str, Setting]:
    """The rows of the table."""
    linear, vp = fs.interpolants.linear(), fs.interpolants.vp()
    square = fs.diffusion.square(3.0)
    euler = fs.kernels.ode_euler(linear)
    paper = (("chains", 2), ("finish", "mean"))
    ddim = fs.kernels.ddim(vp, 1.0, 0.25)
    rows = {"ODE-40": Setting("ode", linear, euler, ("uniform", 40), 40)}
    for nfe in (100, 500):
        width = min(25, nfe // 20)
        rows |= {
            f"BoN-{nfe}": Setting("bon", linear, euler, ("uniform", 20), nfe, (("width", width),)),
            f"RBF-{nfe} linear EM": Setting(
                "rbf", linear, fs.kernels.euler_maruyama(linear, square), ("uniform", 20), nfe
            ),
            f"RBF-{nfe} VP DDIM(1)": Setting("rbf", vp, ddim, ("uniform", 20), nfe),
            f"RBF-{nfe} VP EM (paper)": Setting(
                "rbf", vp, fs.kernels.euler_maruyama(vp, square), ("quadratic", 10), nfe, paper
            ),
        }
    return rows


def captions(n: int) -> list[tuple[Group, ...]]:
    """n captions, every fifth with a held-out triple; the same for every setting."""
    return [sample_groups(np.random.default_rng((2026, i)), i % 5 == 4) for i in range(n)]


def measure(setting: Setting, wanted: list[tuple[Group, ...]], seeds: int) -> dict[str, object]:
    """One row of the table."""
    flow, reward, search = shapes.load_flow(), shapes.load_reward(), setting.search()
    tokens = np.stack([tokenize(groups) for groups in wanted])
    images, results, began = [], [], time.perf_counter()
    for seed in range(seeds):
        for first in range(0, len(wanted), _BATCH):
            ids = np.arange(first, min(first + _BATCH, len(wanted)))
            result = fs.run(
                jax.random.key(seed), flow, search, reward, cond=tokens[ids], prompt_ids=ids
            )
            images.append(np.asarray(result.image))
            results.append(result)
    seconds = time.perf_counter() - began
    table = np.concatenate([np.stack([counts(g) for g in wanted])] * seeds)
    pictures = np.concatenate(images)
    exact = checker.exact(pictures, table)
    found = checker.detect(pictures)
    clean = found.counts.sum() / max(1, found.counts.sum() + found.unclear.sum())
    interval = binomtest(int(exact.sum()), exact.size).proportion_ci(method="wilson")

    def mean(name: str) -> float:
        return float(np.mean(np.concatenate([np.asarray(getattr(r, name)) for r in results])))

    return {
        "method": setting.method,
        "interpolant": type(setting.interpolant).__name__,
        "kernel": type(setting.kernel).__name__,
        "grid": setting.grid[0],
        "steps": setting.grid[1],
        "budget": setting.budget,
        "nfe": mean("nfe"),
        "evaluations": mean("evaluations"),
        "accuracy": float(exact.mean()),
        "accuracy_low": float(interval.low),
        "accuracy_high": float(interval.high),
        "clean": float(clean),
        "rss": float(checker.rss(pictures, table).mean()),
        "reward": mean("reward"),
        "seconds": round(seconds, 1),
    }


@dataclasses.dataclass(frozen=True)
class Args:
    """Exact-caption accuracy of searches on the embedded model, by the held-out checker."""

    quick: bool = False
    """Five captions and one seed."""
    json: Path | None = None
    """Write the rows to this file, after each of them."""
    captions: int = 50
    """How many captions."""
    seeds: int = 2
    """Searches a caption."""
    settings: tuple[str, ...] = ()
    """Which rows; all by default."""


def save(path: Path, text: str) -> None:
    """Write the rows so far."""
    replace_file(path, lambda temporary: temporary.write_text(text))


def main(args: Args) -> None:
    """Measure row by row; print and write as it goes."""
    known = settings()
    unknown = [name for name in args.settings if name not in known]
    if unknown:
        raise SystemExit(f"unknown setting {unknown[0]!r}, expected one of {', '.join(known)}")
    n, seeds = (5, 1) if args.quick else (args.captions, args.seeds)
    wanted, rows = captions(n), []
    print(f"{'setting':24} {'NFE':>6} {'exact captions':>22} {'clean':>6} {'RSS':>6} {'s':>7}")
    for name in args.settings or known:
        row = measure(known[name], wanted, seeds)
        rows.append({"setting": name, **row})
        print(
            f"{name:24} {row['nfe']:6.0f} {row['accuracy']:8.2f} "
            f"[{row['accuracy_low']:.2f}, {row['accuracy_high']:.2f}] "
            f"{row['clean']:6.2f} {row['rss']:6.2f} {row['seconds']:7.1f}",
            flush=True,
        )
        if args.json:
            text = json.dumps({"captions": n, "seeds": seeds, "rows": rows}, indent=1)
            save(args.json, text)


if __name__ == "__main__":
    main(tyro.cli(Args))
