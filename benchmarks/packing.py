"""Many prompts: how full are the batches, how fast is it, and does sharing a budget help?

Random captions of at least five objects on the embedded model, searched with early stopping by the
given reward (rss; a target of 0 is reached when the scorer counts exactly what was asked):

- packed: `flowsde.batch`, batches of 32;
- lock-step: the naive way, as many prompts at once as fill 32 rows, run together until the last of
  them is done, then the next ones;
- one at a time: `flowsde.run` of each prompt, with RBF's waves of 1 and of 4 (the default of
  `flowsde sample`).

Occupancy is the share of all rows that the model computed which are charged to a prompt. Prompts a
second are of the same prompts, in turns, without compilation; the ratio is of medians, against the
faster of the two ways one at a time.

A shared budget (`total_nfe`) is compared with the same number of evaluations split evenly, where
every prompt spends its own share to the end: exact captions by the held-out checker, which no
search sees, with 95 % bootstraps over captions, and their paired difference; for both rewards.

    python benchmarks/packing.py [--quick] [--json FILE] [--only {speed,methods,shared}]

Keys of the JSON: version, versions {jax, python}, cores; occupancy, lockstep_occupancy and
prompts_per_second_ratio, all of RBF; methods, by name {occupancy, lockstep_occupancy,
surplus_share, padding_share, prompts, nfe (mean charged), nfe_quantiles (10, 50 and 90 %), widths};
speed {prompts, prompts_per_second {packed, width 1, width 4}, seconds, a list over repetitions
each, load (average over a minute, before and after)}; shared {prompts, seeds, share (NFE a prompt),
total (of one seed), rewards, by name {target, split and shared {nfe, accuracy, accuracy_low,
accuracy_high, rss}, gain, gain_low, gain_high, most (NFE that any prompt got)}}; settings.
"""

import dataclasses
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import numpy as np
import tyro
from _files import save_json

import flowsde as fs
from flowsde import shapes
from flowsde.cli import presets
from flowsde.cli.compare.measure import captions
from flowsde.cli.compare.summary import interval
from flowsde.runner.packed.engine import Totals
from flowsde.shapes import checker
from flowsde.shapes.captions import counts, parse

BATCH, OBJECTS = 32, 5
# The likelihood's: about what exact pictures of RBF with 50 NFE have as a median.
TARGETS = {"rss": 0.0, "likelihood": -0.8}
TARGET = TARGETS["rss"]
KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Args:
    """Packed batches against lock-step and one at a time.

    Attributes:
      quick: fewer prompts and evaluations, done in 45 seconds on two cores.
      json: where to write the results; parts of the same settings that are there stay.
      only: one part.
    """

    quick: bool = False
    json: pathlib.Path | None = None
    only: Literal["speed", "methods", "shared"] | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is measured: prompts, their budget, and what the parts of it take."""

    prompts: int
    nfe: int
    steps: int
    methods: tuple[str, ...]
    timed: int
    repetitions: int
    share: int
    seeds: int
    rewards: tuple[str, ...]


FULL = Plan(200, 100, 10, ("rbf", "svdd", "smc", "bon"), 48, 3, 40, 3, ("likelihood", "rss"))
QUICK = Plan(32, 40, 6, ("rbf",), 32, 1, 25, 1, ("rss",))


def make_search(method: str, plan: Plan, **given: Any) -> fs.search.Search:
    """With the recommended settings, but for the plan's."""
    given = {"nfe": plan.nfe, "steps": plan.steps, **given}
    return presets.build(method, presets.resolve("recommended", method, given))


@dataclasses.dataclass(frozen=True)
class Task:
    """Prompts of the embedded model."""

    flow: fs.Flow
    reward: Any
    texts: list[str]

    @property
    def cond(self) -> np.ndarray:
        """Tokens [P, 8]."""
        return np.stack([shapes.encode(text) for text in self.texts])

    def first(self, n: int) -> "Task":
        """The first n prompts."""
        return dataclasses.replace(self, texts=self.texts[:n])


def packed(task: Task, search: fs.search.Search) -> tuple[Totals, list[int]]:
    """Totals, and the NFE of each prompt."""
    results = fs.batch(
        KEY, task.flow, search, task.reward, cond=task.cond, batch_size=BATCH,
        target_reward=TARGET,
    )  # fmt: skip
    nfe = [one.nfe for _, one in results]
    return results.totals, nfe


def lockstep(task: Task, search: fs.search.Search) -> float:
    """Occupancy of prompts that wait for one another."""
    at_once = max(1, BATCH // search.n_candidates)
    charged = computed = 0
    cond, n = task.cond, len(task.texts)
    for start in range(0, n, at_once):
        # The last ones are filled up to the one compiled shape; copies are not charged.
        ids = np.arange(start, start + at_once)
        result = fs.run(
            KEY, task.flow, search, task.reward, cond=cond[np.minimum(ids, n - 1)],
            prompt_ids=ids, chunk_size=BATCH, target_reward=TARGET,
        )  # fmt: skip
        charged += int(result.nfe[ids < n].sum())
        computed += int(result.evaluations.sum())
    return charged / computed


def alone(task: Task, search: fs.search.Search) -> None:
    """One prompt after the other."""
    for i, cond in enumerate(task.cond):
        result = fs.run(
            KEY, task.flow, search, task.reward, cond=cond[None], prompt_ids=[i],
            target_reward=TARGET,
        )  # fmt: skip
        jax.block_until_ready(result.image)


def occupancies(task: Task, plan: Plan) -> dict[str, Any]:
    """Of every method."""
    found = {}
    print(f"{'method':8}{'packed':>8}{'lock-step':>11}{'surplus':>9}{'padding':>9}{'NFE':>7}")
    for method in plan.methods:
        # Of RBF, one child a chain: lock-step computes no surplus either.
        width = {"rbf": {"width": 1}, "bon": {"width": 8}}.get(method, {})
        search = make_search(method, plan, **width)
        totals, nfe = packed(task, search)
        row = found[method] = {
            "occupancy": totals.occupancy,
            "lockstep_occupancy": lockstep(task, search),
            "surplus_share": totals.surplus / totals.evaluations,
            "padding_share": totals.padding / totals.evaluations,
            "prompts": totals.prompts,
            "nfe": float(np.mean(nfe)),
            "nfe_quantiles": np.quantile(nfe, [0.1, 0.5, 0.9]).tolist(),
            "widths": list(totals.widths),
        }
        print(f"{method:8}{row['occupancy']:8.3f}{row['lockstep_occupancy']:11.3f}", end="")
        print(
            f"{row['surplus_share']:9.3f}{row['padding_share']:9.3f}{row['nfe']:7.1f}", flush=True
        )
    return found


def speed(task: Task, plan: Plan) -> dict[str, Any]:
    """Prompts a second of RBF."""
    ways: dict[str, Callable[[], Any]] = {
        "packed": lambda: packed(task, make_search("rbf", plan, width=1)),
        "width 1": lambda: alone(task, make_search("rbf", plan, width=1)),
        "width 4": lambda: alone(task, make_search("rbf", plan, width=4)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    # One prompt compiles what all take.
    packed(task, make_search("rbf", plan, width=1))
    for width in (1, 4):
        alone(task.first(1), make_search("rbf", plan, width=width))
    for turn in range(plan.repetitions):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            began = time.perf_counter()
            ways[name]()
            seconds[name].append(time.perf_counter() - began)
    rates = {name: len(task.texts) / statistics.median(own) for name, own in seconds.items()}
    for name, rate in rates.items():
        print(f"{name:8}{rate:8.2f} prompts/s", flush=True)
    return {"prompts": len(task.texts), "prompts_per_second": rates, "seconds": seconds}


def judged(task: Task, results: Iterable[tuple[int, fs.Result]]) -> dict[str, np.ndarray]:
    """What the held-out checker says of each prompt, and what it cost."""
    found = dict(results)
    every = [found[i] for i in range(len(task.texts))]
    images = np.stack([np.asarray(one.image) for one in every])
    wanted = np.stack([counts(parse(text)) for text in task.texts])
    return {
        "exact": checker.exact(images, wanted),
        "rss": checker.rss(images, wanted),
        "nfe": np.asarray([one.nfe for one in every]),
    }


def shared(task: Task, plan: Plan, target: float) -> dict[str, Any]:
    """A budget shared by all against an even split of it, for a task's reward."""
    search = make_search("rbf", plan, width=1)
    total = plan.share * len(task.texts)
    ways: dict[str, dict[str, Any]] = {
        "split": {"nfe": plan.share},
        "shared": {"total_nfe": total, "target_reward": target},
    }
    rows: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in ways}
    for seed in range(plan.seeds):
        for name, options in ways.items():
            results = fs.batch(
                jax.random.key(seed), task.flow, search, task.reward, cond=task.cond,
                batch_size=BATCH, **options,
            )  # fmt: skip
            rows[name].append(judged(task, results))
            assert rows[name][-1]["nfe"].sum() <= total
    table: dict[str, Any] = {"target": target}
    exact = {name: np.mean([row["exact"] for row in own], 0) for name, own in rows.items()}
    for name, own in rows.items():
        mean, low, high = interval(exact[name], share=True)
        table[name] = {
            "nfe": float(np.mean([row["nfe"].sum() for row in own])),
            "accuracy": mean,
            "accuracy_low": low,
            "accuracy_high": high,
            "rss": float(np.mean([row["rss"] for row in own])),
        }
        print(f"{name:8}{mean:8.3f} [{low:.3f}, {high:.3f}] exact", flush=True)
    gain, low, high = interval(exact["shared"] - exact["split"])
    print(f"{'gain':8}{gain:8.3f} [{low:.3f}, {high:.3f}]", flush=True)
    most = max(int(row["nfe"].max()) for row in rows["shared"])
    return table | {"gain": gain, "gain_low": low, "gain_high": high, "most": most}


def all_shared(task: Task, plan: Plan) -> dict[str, Any]:
    """By reward."""
    rewards: dict[str, Any] = {}
    for name in plan.rewards:
        print(name)
        own = dataclasses.replace(task, reward=shapes.load_reward(name))
        rewards[name] = shared(own, plan, TARGETS[name])
    numbers = {"prompts": len(task.texts), "seeds": plan.seeds, "share": plan.share}
    return {**numbers, "total": plan.share * len(task.texts), "rewards": rewards}


def parts(plan: Plan) -> dict[str, Callable[[], dict[str, Any]]]:
    """What is measured, by name."""
    texts = captions(plan.prompts, OBJECTS)
    task = Task(shapes.load_flow(), shapes.load_reward("rss"), texts)
    return {
        "speed": lambda: speed(task.first(plan.timed), plan),
        "methods": lambda: occupancies(task, plan),
        "shared": lambda: all_shared(task, plan),
    }


def headline(found: dict[str, Any]) -> dict[str, Any]:
    """The numbers that sum it up, of the parts that are there."""
    numbers: dict[str, Any] = {}
    if "methods" in found:
        rbf = found["methods"]["rbf"]
        numbers |= {name: rbf[name] for name in ("occupancy", "lockstep_occupancy")}
    if "speed" in found:
        rates = found["speed"]["prompts_per_second"]
        alone = max(rates["width 1"], rates["width 4"])
        numbers["prompts_per_second_ratio"] = rates["packed"] / alone
    return numbers


def main(args: Args) -> None:
    """Measure part by part, and write each as it comes."""
    plan = QUICK if args.quick else FULL
    settings = dataclasses.asdict(plan) | {
        "batch_size": BATCH, "target_reward": TARGET, "objects": OBJECTS, "reward": "rss"
    }  # fmt: skip
    settings |= {name: list(getattr(plan, name)) for name in ("methods", "rewards")}
    found: dict[str, Any] = {}
    if args.json is not None and args.json.exists():
        found = json.loads(args.json.read_text())
        if found.get("settings") != settings:
            found = {}
    for name, measure in parts(plan).items():
        if args.only is not None and name != args.only:
            continue
        began, load = time.perf_counter(), os.getloadavg()[0]
        found |= {name: measure(), "settings": settings}
        found[name] |= {"load": [load, os.getloadavg()[0]]} if name == "speed" else {}
        found = {
            "version": fs.__version__,
            "versions": {"jax": jax.__version__, "python": platform.python_version()},
            "cores": os.cpu_count(),
            **headline(found),
            **{
                key: found[key]
                for key in ("methods", "speed", "shared", "settings")
                if key in found
            },
        }
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        save_json(args.json, found)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
