"""Is a search that was tuned as good as the one that is recommended for everybody?

    python benchmarks/tuned.py [--quick] [--json FILE] [--save FOLDER] [--tasks NAME ...]
                               [--models NAME ...] [--nfe N] [--skip N]

`flowsde.tune` on a task's development captions, by the given reward alone; its setting, and the
recommended one that the rows of `tasks.py` chose for the model, on the same test captions and
seeds by the held-out judge. FOLDER keeps what tuning has measured: the same command goes on.

JSON keys: ``rows``: task, model, nfe, setting (tuned), sure (whether tuning was that it beats
Best-of-N), default (the recommended setting), prompts and seeds (of the test), skip (test captions
before those), raced (settings), cost (of tuning: nfe, verifier_calls, seconds); success,
default_success and difference, each with _low and _high: the difference is paired over captions,
intervals are 95 %.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import tyro
from _files import RESULTS, save_json
from _tasks_measure import load_flow, measure
from _tasks_rows import Case, Row
from _tasks_settings import Setting, declared

import flowsde as fs
from flowsde.conds import stacked
from flowsde.shapes.tasks import TASKS
from flowsde.tuning.intervals import difference
from flowsde.tuning.tuned import Tuned

_CHUNK = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """Options of the benchmark."""

    quick: bool = False
    json: Path | None = None
    save: Path | None = None
    """Folder for what tuning has measured."""
    tasks: tuple[str, ...] = ("sides", "above")
    models: tuple[str, ...] = ("shapes",)
    nfe: int = 100
    captions: int = 96
    """Of development: one half races, the other is held out by tuning."""
    test_captions: int = 200
    test_seeds: int = 2
    skip: int = 200
    """Test captions before the first: `tasks.py` and `verifiers.py` have looked at those."""


def tuned(name: str, model: str, args: Args) -> Tuned:
    """What `flowsde.tune` recommends for a task."""
    task = TASKS[name]
    texts = task.captions("dev", args.captions)
    save = None if args.save is None else args.save / f"{name}_{model}_{args.nfe}.json"
    return fs.tune(
        jax.random.key(0),
        task.flow(load_flow(model)),
        task.load_reward(),
        nfe=args.nfe,
        cond=stacked("cond", [task.encode(text) for text in texts]),
        prompts=texts,
        methods=("smc",) if args.quick else None,
        diagnose=not args.quick,
        chunk_size=_CHUNK,
        save=save,
        tell=lambda now: print(f"tune {now.done} of {now.most} NFE: {now.what}", flush=True),
    )


def recommended(model: str) -> Any:
    """The setting that is recommended for all tasks."""
    name = json.loads((RESULTS / "tasks.json").read_text())["chosen"][model]["default"]["setting"]
    return {setting.name: setting for setting in declared(model)}[name]


def compare(name: str, model: str, args: Args) -> dict[str, Any]:
    """A row: tuning, and what it is worth on captions that nothing was chosen on."""
    found, default = tuned(name, model, args), recommended(model)

    def row(setting: Any) -> Row:
        size = (args.test_captions, args.test_seeds)
        return measure(Case(name, model, setting, args.nfe, "test", *size, skip=args.skip))

    ours, theirs = row(Setting(found.setting.method, found.setting.options)), row(default)
    gap = difference(ours["wins"], theirs["wins"], args.test_seeds)
    return {
        "task": name,
        "model": model,
        "nfe": args.nfe,
        "setting": found.setting.name,
        "sure": found.sure,
        "default": default.name,
        "prompts": args.test_captions,
        "seeds": args.test_seeds,
        "skip": args.skip,
        "raced": len(found.race.rungs[0].table),
        "cost": {key: found.cost[key] for key in ("nfe", "verifier_calls", "seconds")},
        **{key: ours[key] for key in ("success", "success_low", "success_high")},
        **{f"default_{k}": theirs[k] for k in ("success", "success_low", "success_high")},
        "difference": gap.value,
        "difference_low": gap.low,
        "difference_high": gap.high,
    }


def main(args: Args) -> None:
    """Measure, print and write."""
    if args.quick:
        args = dataclasses.replace(
            args, nfe=20, captions=8, test_captions=2, test_seeds=1, tasks=args.tasks[:1]
        )
    if args.save is not None:
        args.save.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    if args.json is not None and args.json.exists():
        rows = json.loads(args.json.read_text())["rows"]
    for name in args.tasks:
        for model in args.models:
            at = (name, model, args.nfe)
            if at in [(row["task"], row["model"], row["nfe"]) for row in rows]:
                continue
            rows.append(compare(name, model, args))
            print(json.dumps(rows[-1], indent=1), flush=True)
            if args.json is not None:
                save_json(args.json, {"rows": rows})


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
