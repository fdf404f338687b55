"""Is the distilled flow as exact in few steps as its teacher in many, and is its first mean sharp?

    python benchmarks/distilled.py [--quick] [--json FILE] [--weights FILE]

Plain samples of the ODE, of development captions of *counts*. A picture of one step is the
posterior mean at t = 1. Intervals are 95 %, over captions.

JSON keys: quick, captions, seeds (of each), and ``rows``: model, steps; exact (share of the samples
with exactly the objects of the caption, by the held-out judge) and difference (from the teacher's
40 steps, paired over captions; of those null), each with _low and _high; unclear (mean number of
regions that are no clean object) and reward (mean of the learned scorer's log-likelihood).
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from _files import save_json
from base_success import samples

from flowsde import shapes
from flowsde.cli.compare.summary import interval
from flowsde.conds import stacked
from flowsde.shapes.tasks import TASKS
from flowsde.tuning.intervals import pooled

TEACHER, STUDENT = "shapes", "shapes-turbo"
_TASK = TASKS["counts"]
_ENDS = ("", "_low", "_high")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """Options of the benchmark."""

    quick: bool = False
    json: Path | None = None
    captions: int = 200
    seeds: int = 10
    teacher_steps: int = 40
    steps: tuple[int, ...] = (1, 2, 4, 8)
    """Of the distilled flow."""
    weights: Path | None = None
    """Of a distilled flow that `flowsde train turbo` wrote; the packaged one by default."""


def measure(model: str, steps: int, args: Args) -> tuple[dict[str, Any], np.ndarray]:
    """A row without `difference`, and the share of each caption's samples that are exact [P]."""
    texts = _TASK.captions("dev", args.captions)
    flow = shapes.load_flow(args.weights if model == STUDENT else None, model=model)
    every = [samples(_TASK, flow, texts, seed, steps) for seed in range(args.seeds)]
    found = [_TASK.judge(images, texts) for images in every]
    cond, reward = stacked("cond", [_TASK.encode(text) for text in texts]), _TASK.load_reward()
    shares = np.mean([one.exact for one in found], axis=0)
    row = {"model": model, "steps": steps}
    row |= dict(zip((f"exact{end}" for end in _ENDS), interval(shares, True), strict=True))
    row["unclear"] = float(np.mean([one.unclear for one in found]))
    row["reward"] = float(np.mean([reward(images, cond) for images in every]))
    return row, shares


def main(args: Args) -> None:
    """Measure, print and write."""
    if args.quick:
        args = dataclasses.replace(args, captions=20, seeds=1, teacher_steps=5, steps=(1, 2))
    about = {name: getattr(args, name) for name in ("quick", "captions", "seeds")}
    rows: list[dict[str, Any]] = []
    cases = [(TEACHER, args.teacher_steps), *((STUDENT, n) for n in args.steps)]
    for model, steps in cases:
        row, shares = measure(model, steps, args)
        if not rows:
            first = shares
        gap = pooled([shares - first]) if rows else (None, None, None)
        row |= dict(zip((f"difference{end}" for end in _ENDS), gap, strict=True))
        rows.append(row)
        save_json(args.json, about | {"rows": rows})
        print(f"{model:12} {steps:2} steps  exact {row['exact']:.3f}  {row}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
