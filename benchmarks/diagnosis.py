"""When is the tasks' reward worth asking? `flowsde.diagnose` on both embedded models.

    python benchmarks/diagnosis.py [--quick] [--json FILE] [--tasks NAME ...]

Trajectories as the recommended searches move their particles: VP, DDIM with data_variance .25, ten
steps on the model that is not distilled, and on the one that is two, and four as well. Captions are
of the development set.

JSON keys: captions, n (trajectories of each), families, and ``rows``: task, model, steps, nfe, and
``times``, a table as of `flowsde.diagnosis.result.Diagnosis.table`.
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
from flowsde.conds import stacked
from flowsde.diagnosis.result import Diagnosis
from flowsde.shapes.tasks import TASKS

_STEPS = (("shapes", 10), ("shapes-turbo", 4), ("shapes-turbo", 2))
_CHUNK = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """Options of the benchmark."""

    quick: bool = False
    json: Path | None = None
    tasks: tuple[str, ...] = ("sides", "row")
    captions: int = 8
    n: int = 128
    """Trajectories of a caption."""
    families: int = 24
    """Of them, those from which siblings branch off."""


def measure(name: str, model: str, steps: int, args: Args) -> Diagnosis:
    """A task's diagnosis on a model, in so many steps."""
    task = TASKS[name]
    return fs.diagnose(
        jax.random.key(0),
        task.flow(shapes.load_flow(model=model)),
        task.load_reward(),
        kernel=fs.kernels.ddim(fs.interpolants.vp(), data_variance=0.25),
        grid=fs.grids.uniform(steps),
        n=args.n,
        families=args.families,
        cond=stacked("cond", [task.encode(text) for text in task.captions("dev", args.captions)]),
        prompt_ids=np.arange(args.captions),
        chunk_size=min(_CHUNK, args.n),
    )


def main(args: Args) -> None:
    """Measure, print and write."""
    if args.quick:
        args = dataclasses.replace(args, captions=2, n=8, families=2, tasks=args.tasks[:1])
    about = {"captions": args.captions, "n": args.n, "families": args.families}
    rows: list[dict[str, Any]] = []
    for name in args.tasks:
        for model, steps in _STEPS:
            found = measure(name, model, steps, args)
            print(f"\n{name}, {model}, {steps} steps\n{found}", flush=True)
            of = {"task": name, "model": model, "steps": steps}
            rows.append({**of, "nfe": found.nfe, "times": found.table()})
            if args.json is not None:
                save_json(args.json, {**about, "rows": rows})


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
