"""How often a plain sample is right: the base success of each task of the embedded flow.

    python benchmarks/base_success.py [--quick] [--json FILE] [--tasks NAME ...] [--split dev]

2,000 samples of 20 ODE steps a task: 200 captions of the development set, 10 seeds each. No reward
is asked. Intervals are 95 % bootstraps over captions.

JSON keys: quick, split, steps, and ``rows``: task, summary; success (share of the samples that are
what the task asks for, by the held-out judge) and exact (share whose counts are), each with _low
and _high; unclear (mean number of regions that are no clean object); captions, seeds (of each).
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from _files import save_json

import flowsde as fs
from flowsde import shapes
from flowsde.cli.compare.summary import interval
from flowsde.conds import stacked
from flowsde.shapes.tasks import TASKS, Challenge

_CHUNK = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """Options of the benchmark."""

    quick: bool = False
    json: Path | None = None
    tasks: tuple[str, ...] = tuple(TASKS)
    split: str = "dev"
    captions: int = 200
    seeds: int = 10
    steps: int = 20
    weights: Path | None = None
    """Of a flow that `flowsde train shapes` wrote; the packaged one by default."""


def samples(task: Challenge, flow: fs.Flow, texts: list[str], seed: int, steps: int) -> np.ndarray:
    """One picture of each caption by the ODE, [n, 32, 32, 3]."""
    kernel = fs.kernels.ode_euler(flow.interpolant)
    images = fs.sample(
        jax.random.key(seed),
        task.flow(flow),
        kernel=kernel,
        grid=fs.grids.uniform(steps),
        n=len(texts),
        cond=stacked("cond", [task.encode(text) for text in texts]),
        chunk_size=min(_CHUNK, len(texts)),
    )
    return np.asarray(flow.decode(images))


def measure(task: Challenge, flow: fs.Flow, args: Args) -> dict[str, Any]:
    """A row of the table."""
    texts = task.captions(args.split, args.captions)
    every = [samples(task, flow, texts, seed, args.steps) for seed in range(args.seeds)]
    found = [task.judge(images, texts) for images in every]
    row: dict[str, Any] = {"task": task.name, "summary": task.summary}
    for name in ("success", "exact"):
        values = np.mean([getattr(one, name) for one in found], axis=0)
        row |= dict(zip((name, f"{name}_low", f"{name}_high"), interval(values, True), strict=True))
    unclear = float(np.mean([one.unclear for one in found]))
    return row | {"unclear": unclear, "captions": len(texts), "seeds": args.seeds}


def main(args: Args) -> None:
    """Measure, print and write."""
    if args.quick:
        args = dataclasses.replace(args, captions=20, seeds=1, steps=5)
    flow = shapes.load_flow(args.weights)
    about = {k: getattr(args, k) for k in ("quick", "split", "steps")}
    rows = []
    for name in args.tasks:
        row = measure(TASKS[name], flow, args)
        rows.append(row)
        save_json(args.json, about | {"rows": rows})
        shown = (f"{row[k]:.4f} [{row[f'{k}_low']:.4f}, {row[f'{k}_high']:.4f}]" for k in
                 ("success", "exact"))  # fmt: skip
        print(f"{name:8} success {next(shown)}  exact counts {next(shown)}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
