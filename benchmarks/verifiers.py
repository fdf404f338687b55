"""A dear verifier at equal seconds: asked about everything, behind a cheap one, or elsewhere.

On tasks of the embedded model the learned reward is declared to cost five evaluations of the model
a call. Compared are, of SMC as recommended and of Best-of-N tuned to the price:

- direct: it is asked about every candidate, in the search's process, while nothing else runs;
- cascade: the likelihood of the counts alone, which knows nothing of places, is asked about every
  candidate, and the dear reward about those that it gives a threshold (`fs.rewards.cascade`);
- remote: the dear reward is served by another process, and asked while the device computes the next
  batch (`fs.rewards.remote` with `fs.batch`): as many seconds, and a second device;
- cascade, remote: both, of SMC.

    python benchmarks/verifiers.py [--quick] [--json FILE]

Seconds are counted, not read off a clock that other work on the machine disturbs: those of a model
evaluation are 1, of a dear call 5, of a cheap one what it takes by those of the model, measured in
the same run. What overlapping saves is measured: the reward really takes five evaluations then (it
sleeps for what computing the score did not take, as one on a device of its own), and the ratio of
the seconds with and without overlap, medians of interleaved pairs, is what the price is multiplied
by. Every way then has the budget that one price pays for.

Thresholds are quantiles of the cheap reward of plain samples of development captions, floors those
of the dear reward of the samples above; they and the steps are chosen for Best-of-N on development
captions, SMC has the same, and test captions are reported. Best-of-N's answers are taken from one
pool of plain samples: of N samples the first that it can pay for. Every row is saved as it comes,
and one that FILE has is not measured again.

JSON keys: version, cores, price (evaluations that a search may cost), cost (of a dear call), cheap
(of a cheap one), gates {task: [{share, level, threshold, floor}]}, chosen {task: {steps, gate}},
clock {method and way: seconds, a list over repetitions}, clock_settings, ratio {method and way:
what overlapping multiplies seconds by}, clocked {cascade, counted: seconds of cascade by those of
direct, by the clock and as counted}, agree (largest difference of rewards, remote and direct), and
``rows``: task, method, way, split, gate, steps, nfe, charged, cheap_calls, dear_calls (means of a
search), price (with what overlapping saves), success with _low and _high, prompts, seeds, wins. Of
test rows also difference and odds_ratio (with _low, _high) to direct of the same method, and
bon_difference and bon_odds_ratio to Best-of-N that asks directly. Intervals are 95 %, over
captions.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np
import tyro
from _files import save_json
from _tasks_measure import BATCH
from _verifiers_clock import Clocked, clock
from _verifiers_page import WAYS, compare, table
from _verifiers_rows import (
    COST,
    SLACK,
    Gate,
    Pool,
    Row,
    affordable,
    bon_row,
    bon_size,
    cheap_price,
    draw_pool,
    smc_row,
)

import flowsde as fs


@dataclasses.dataclass(frozen=True)
class Args:
    """Ways of asking a dear verifier, at equal seconds.

    Attributes:
      quick: two captions of a task, one gate, small budgets.
      json: where results are, and are written to.
    """

    quick: bool = False
    json: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
      tasks: by name.
      price: of a search, evaluations; that of SMC with five particles.
      captions, seeds: of development.
      test_captions, test_seeds: of what is reported.
      steps: of Best-of-N, to be chosen from.
      shares: quantiles of the cheap reward that are tried as thresholds.
      levels: quantiles of the dear reward above it that are tried as floors.
      pilot, pilots: NFE and captions with which the share of calls is found.
      prompts, repetitions, clocked: of the clock; NFE of SMC and of Best-of-N.
    """

    tasks: tuple[str, ...] = ("sides", "above")
    price: float = 308.0
    captions: int = 24
    seeds: int = 1
    test_captions: int = 100
    test_seeds: int = 2
    steps: tuple[int, ...] = (4, 8)
    shares: tuple[float, ...] = (0.5, 0.6)
    levels: tuple[float, ...] = (0.05, 0.5)
    pilot: int = 53
    pilots: int = 12
    prompts: int = 8
    repetitions: int = 3
    clocked: tuple[int, int] = (53, 100)


QUICK = Plan(
    tasks=("sides",), price=70.0, captions=2, test_captions=2, test_seeds=1, steps=(4,),
    shares=(0.5,), levels=(0.05,), pilot=13, pilots=1, prompts=4, repetitions=1,
    clocked=(13, 16),
)  # fmt: skip


@dataclasses.dataclass
class Results:
    """The file."""

    path: pathlib.Path | None
    found: dict[str, Any]

    @classmethod
    def read(cls, path: pathlib.Path | None) -> "Results":
        """What there is."""
        there = path is not None and path.exists()
        found = json.loads(path.read_text()) if there and path is not None else {"rows": []}
        return cls(path, found)

    def row(self, **key: Any) -> Row | None:
        """The row with these values."""
        matching = (r for r in self.found["rows"] if all(r[k] == v for k, v in key.items()))
        return next(matching, None)

    def add(self, row: Row) -> Row:
        """One more."""
        self.found["rows"].append(row)
        self.save()
        share = "{success:.3f} [{success_low:.3f}, {success_high:.3f}]".format(**row)
        print(
            f"{row['split']:4} {row['task']:6} {row['method']:3} {row['way']:15} gate "
            f"{row['gate'] or '-':9} NFE {row['nfe']:4} price {row['price']:6.1f} dear "
            f"{row['dear_calls']:5.1f}: {share}",
            flush=True,
        )
        return row

    def save(self) -> None:
        """To the file."""
        save_json(self.path, self.found)


def gates_of(plan: Plan, pool: Pool) -> list[Gate]:
    """What is tried, of plain samples."""
    made = []
    for share in plan.shares:
        threshold = float(np.quantile(pool.cheap, share))
        above = pool.dear[pool.cheap >= threshold]
        made += [
            Gate(share, level, threshold, float(np.quantile(above, level))) for level in plan.levels
        ]
    return made


def _most(plan: Plan, steps: int, ratio: float = 1.0) -> int:
    """Samples that a pool must have: a cascade makes them cheaper by less, and so do few steps."""
    return int(max(1.5, 1.0 / ratio) * SLACK * plan.price / (steps + COST)) + 1


def _gate(made: dict[str, Any]) -> Gate:
    return Gate(**made)


def choose(
    plan: Plan, results: Results, pools: dict[tuple[str, int], Pool], gates: dict[str, list[Gate]]
) -> None:  # fmt: skip
    """Of Best-of-N: the steps if it asks directly, and of as many with a cascade the gate."""
    found, of_cheap = results.found, results.found["cheap"]
    chosen: dict[str, Any] = {}
    for task in plan.tasks:
        best: dict[str, list[Row]] = {"direct": [], "cascade": []}
        for steps in plan.steps:
            pool = pools[task, steps]
            for gate in [None, *gates[task]]:
                way = "direct" if gate is None else "cascade"
                n = bon_size(pool, steps, of_cheap, plan.price, gate)
                made = bon_row(
                    pool, n, task=task, way=way, split="dev", steps=steps, gate=gate,
                    of_cheap=of_cheap, ratio=1.0,
                )  # fmt: skip
                best[way].append(results.add(made))
        steps = max(best["direct"], key=lambda r: r["success"])["steps"]
        same = [row for row in best["cascade"] if row["steps"] == steps]
        gated = max(same, key=lambda r: r["success"])
        chosen[task] = {"steps": steps, "gate": gated["gate"]}
    found["chosen"] = chosen
    results.save()


def pilot(plan: Plan, results: Results, task: str, gate: Gate) -> Row:
    """Searches of a few development captions with about the NFE that the price pays for.

    Twice, as the share of calls depends on how many particles there are.
    """
    nfe = plan.pilot
    for _ in range(2):
        at = {"task": task, "method": "smc", "split": "dev", "gate": gate.name, "nfe": nfe}
        row = results.row(**at) or results.add(
            smc_row(
                task, "cascade", "dev", plan.pilots, plan.seeds, nfe, gate,
                results.found["cheap"], 1.0,
            )
        )  # fmt: skip
        nfe = affordable(row, results.found["cheap"], plan.price)
    return row


def report(
    plan: Plan, results: Results, gates: dict[str, Gate], method: str, ways: tuple[str, ...]
) -> None:
    """Some ways on the test captions."""
    one = _report_smc if method == "smc" else _report_bon
    for way in ways:
        for task in plan.tasks:
            if not results.row(task=task, method=method, way=way, split="test"):
                gate = gates[task] if "cascade" in way else None
                results.add(one(plan, results, task, way, gate))


def _report_smc(plan: Plan, results: Results, task: str, way: str, gate: Gate | None) -> Row:
    found = results.found
    calls: Row = {"charged": plan.pilot, "cheap_calls": 0, "dear_calls": plan.pilot - 2}
    if gate is not None:
        calls = pilot(plan, results, task, gate)
    ratio = found["ratio"][f"smc {way}"] if "remote" in way else 1.0
    nfe = affordable(calls, found["cheap"], plan.price / ratio)
    return smc_row(
        task, way, "test", plan.test_captions, plan.test_seeds, nfe, gate, found["cheap"], ratio
    )


def _report_bon(plan: Plan, results: Results, task: str, way: str, gate: Gate | None) -> Row:
    found = results.found
    steps, overlapping = found["chosen"][task]["steps"], found["ratio"]["bon remote"]
    ratio = overlapping if way == "remote" else 1.0
    pool = draw_pool(
        task, "test", plan.test_captions, plan.test_seeds, steps, _most(plan, steps, overlapping)
    )
    n = bon_size(pool, steps, found["cheap"], plan.price / ratio, gate)
    return bon_row(
        pool, n, task=task, way=way, split="test", steps=steps, gate=gate,
        of_cheap=found["cheap"], ratio=ratio,
    )  # fmt: skip


def measure(plan: Plan, results: Results) -> None:
    """All stages, those of development first."""
    found = results.found
    found |= {
        "version": fs.__version__, "cores": os.cpu_count(), "price": plan.price, "cost": COST
    }  # fmt: skip
    if "cheap" not in found:
        found["cheap"] = cheap_price()
        print(f"a cheap reward costs {found['cheap']:.3f} evaluations", flush=True)
    if "chosen" not in found:
        pools = {
            (task, steps): draw_pool(
                task, "dev", plan.captions, plan.seeds, steps, _most(plan, steps)
            )
            for task in plan.tasks
            for steps in plan.steps
        }
        tried = {task: gates_of(plan, pools[task, max(plan.steps)]) for task in plan.tasks}
        found["gates"] = {t: [dataclasses.asdict(g) for g in own] for t, own in tried.items()}
        choose(plan, results, pools, tried)
    gates = {
        task: next(g for g in map(_gate, own) if g.name == found["chosen"][task]["gate"])
        for task, own in found["gates"].items()
    }
    report(plan, results, gates, "smc", WAYS[:2])
    if "clock" not in found:
        task, nfe = plan.tasks[0], dict(zip(("smc", "bon"), plan.clocked, strict=True))
        clocked = Clocked(task, plan.prompts, nfe, min(plan.steps), BATCH // 2)
        found |= clock(clocked, plan.repetitions, gates[task], found["cheap"])
        results.save()
    report(plan, results, gates, "smc", WAYS[2:3])
    report(plan, results, gates, "bon", WAYS[:3])
    report(plan, results, gates, "smc", WAYS[3:])
    compare(found["rows"])
    results.save()


def main(args: Args) -> None:
    """Measure, print, and write."""
    results = Results.read(args.json)
    measure(QUICK if args.quick else Plan(), results)
    print(table(results.found))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
