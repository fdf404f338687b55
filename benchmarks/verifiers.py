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

import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

import _tasks_costs
import _tasks_settings as settings
import jax
import numpy as np
import tyro
from _files import save_json
from _tasks_measure import BATCH, conds, load_flow, numbers
from _verifiers_page import WAYS, compare, table
from _verifiers_rewards import cheap, dear, scoring

import flowsde as fs
from flowsde import shapes
from flowsde.rewards.combination import Cascaded
from flowsde.shapes.tasks import TASKS
from flowsde.tuning.intervals import success

COST = 5.0
"""Evaluations of the model that a call of the dear reward costs."""
MODEL = "shapes"
SMC = settings.make(
    "smc", settings.VP, steps=10, finish_steps=3, temperature=0.25, potential="difference"
)
"""As recommended: the default that `tasks.py` chose."""
SLACK = 1.02
Row = dict[str, Any]


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


@dataclasses.dataclass(frozen=True)
class Gate:
    """What the dear reward is asked about.

    Attributes:
      share, level: quantiles, of the cheap reward and of the dear one above the threshold.
      threshold, floor: of `fs.rewards.cascade`.
    """

    share: float
    level: float
    threshold: float
    floor: float

    @property
    def name(self) -> str:
        """By quantiles, which tasks share."""
        return f"{self.share:g} {self.level:g}"


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


# ---------------------------------------------------------------------------------- prices


def price(charged: float, cheap_calls: float, dear_calls: float, of_cheap: float) -> float:
    """Of a search that overlaps nothing, in evaluations of the model."""
    return charged + of_cheap * cheap_calls + COST * dear_calls


def affordable(row: Row, of_cheap: float, budget: float) -> int:
    """The largest NFE of SMC, k particles of ten steps and three to finish, for a price.

    Args:
      row: of one budget, whose calls an evaluation are taken to be those of any other.
      of_cheap: price of a cheap call.
      budget: what may be spent, with `SLACK`.
    """
    cheap_calls, dear_calls = (row[name] / row["charged"] for name in ("cheap_calls", "dear_calls"))
    each = price(1.0, cheap_calls, dear_calls, of_cheap)
    return max(1, int((SLACK * budget / each - 3.0) // 10.0)) * 10 + 3


def cheap_price() -> float:
    """Of the cheap reward, by the seconds of an evaluation; both at their best, in turns."""
    pairs = [
        (_tasks_costs.forward("reward", "counts", 3), _tasks_costs.forward("network", MODEL, 3))
        for _ in range(3)
    ]
    return min(first for first, _ in pairs) / min(second for _, second in pairs)


# ---------------------------------------------------------------------------------- Best-of-N


@dataclasses.dataclass(frozen=True)
class Pool:
    """Plain samples: rewards float [P, M, N] of captions and seeds, and whether they succeed."""

    cheap: np.ndarray
    dear: np.ndarray
    success: np.ndarray


@cache
def plain(texts: tuple[str, ...], seeds: int, steps: int, n: int) -> list[np.ndarray]:
    """N pictures of each seed and caption in so many steps of the ODE; tasks share them."""
    kernel, grid = fs.kernels.ode_euler(fs.interpolants.linear()), fs.grids.uniform(steps)
    made = []
    for seed, i in np.ndindex(seeds, len(texts)):
        key = jax.random.fold_in(jax.random.key(seed), i)
        cond = np.stack([shapes.encode(texts[i])] * n)
        images = fs.sample(key, load_flow(MODEL), kernel=kernel, grid=grid, n=n, cond=cond)
        made.append(np.asarray(images))
    return made


def draw_pool(task: str, split: str, captions: int, seeds: int, steps: int, n: int) -> Pool:
    """N samples of each caption and seed."""
    challenge = TASKS[task]
    texts = challenge.captions(split, captions)
    rewards = jax.jit(shapes.load_reward()), scoring(task)
    each: list[list[np.ndarray]] = []
    for images, text in zip(plain(tuple(texts), seeds, steps, n), texts * seeds, strict=True):
        cond = conds([text] * n, task, 1)
        verdicts = challenge.judge(images, [text] * n).success
        each.append([*(np.asarray(reward(images, cond)) for reward in rewards), verdicts])
    arrays = (np.stack(one).reshape(seeds, len(texts), n) for one in zip(*each, strict=True))
    return Pool(*(np.swapaxes(a, 0, 1) for a in arrays))


def best_of(pool: Pool, n: int, gate: Gate | None) -> tuple[np.ndarray, float]:
    """Whether the best of the first n succeeds, [P, M]; and dear calls of a search."""
    if gate is None:
        worth, calls = pool.dear[..., :n], float(n)
    else:
        asked = pool.cheap[..., :n] >= gate.threshold
        told = np.where(asked, pool.dear[..., :n], np.nan)
        worth = Cascaded(gate.threshold, gate.floor)([pool.cheap[..., :n], told], np)
        calls = float(asked.sum(-1).mean())
    best = np.argmax(worth, -1)[..., None]
    return np.take_along_axis(pool.success[..., :n], best, -1)[..., 0], calls


def bon_size(pool: Pool, steps: int, of_cheap: float, budget: float, gate: Gate | None) -> int:
    """Samples that a price pays for, by the share of the pool that is asked about."""
    share = 1.0 if gate is None else float((pool.cheap >= gate.threshold).mean())
    each = price(steps, float(gate is not None), share, of_cheap)
    return max(1, min(int(SLACK * budget / each), pool.dear.shape[-1]))


def bon_row(
    pool: Pool, n: int, *, task: str, way: str, split: str, steps: int, gate: Gate | None,
    of_cheap: float, ratio: float,
) -> Row:  # fmt: skip
    """A row of the first n samples of a pool."""
    won, calls = best_of(pool, n, gate)
    wins, charged = won.sum(1), float(n * steps)
    cheap_calls = 0.0 if gate is None else float(n)
    return _row(
        wins, won.shape[1], task=task, method="bon", way=way, split=split,
        gate=None if gate is None else gate.name, steps=steps, nfe=n * steps, charged=charged,
        cheap_calls=cheap_calls, dear_calls=calls,
        price=ratio * price(charged, cheap_calls, calls, of_cheap),
    )  # fmt: skip


def _row(wins: np.ndarray, seeds: int, **more: Any) -> Row:
    share = success(wins, seeds)
    return more | {
        "success": share.value, "success_low": share.low, "success_high": share.high,
        "prompts": len(wins), "seeds": seeds, "wins": np.asarray(wins).tolist(),
    }  # fmt: skip


# ---------------------------------------------------------------------------------- SMC


def reward_of(task: str, gate: Gate | None, asked: fs.rewards.HostReward) -> fs.rewards.HostReward:
    """The dear reward, or the cascade in front of it."""
    if gate is None:
        return asked
    return fs.rewards.cascade(cheap(), asked, threshold=gate.threshold, floor=gate.floor)


def calls_of(result: Any, gate: Gate | None) -> tuple[Any, Any]:
    """Cheap calls and dear ones."""
    if gate is None:
        return 0, result.verifier_calls
    return result.verifier_calls, result.part_calls["dear"]


def smc_row(
    task: str, way: str, split: str, captions: int, seeds: int, nfe: int, gate: Gate | None,
    of_cheap: float, ratio: float,
) -> Row:  # fmt: skip
    """Searches; where a reward is computed changes no answer, so that it is here, without sleep."""
    texts, ids = TASKS[task].captions(split, captions), numbers(captions, seeds)
    found = dict(
        fs.batch(
            jax.random.key(0), load_flow(MODEL), SMC.search(nfe),
            reward_of(task, gate, dear(task)), cond=conds(texts, task, seeds), prompt_ids=ids,
            batch_size=BATCH, invalid="warn",
        )
    )  # fmt: skip
    results = [found[int(i)] for i in ids]
    images = np.stack([np.asarray(result.image) for result in results])
    verdicts = TASKS[task].judge(images, texts * seeds).success
    charged = float(np.mean([result.nfe for result in results]))
    cheap_calls, dear_calls = (
        float(n) for n in np.mean([calls_of(result, gate) for result in results], 0)
    )
    return _row(
        verdicts.reshape(seeds, captions).sum(0), seeds, task=task, method="smc", way=way,
        split=split, gate=None if gate is None else gate.name, steps=SMC["steps"], nfe=nfe,
        charged=charged, cheap_calls=cheap_calls, dear_calls=dear_calls,
        price=ratio * price(charged, cheap_calls, dear_calls, of_cheap),
    )  # fmt: skip


# ---------------------------------------------------------------------------------- the clock


@contextlib.contextmanager
def served(task: str, seconds: float) -> Iterator[str]:
    """The URL of a server of the dear reward, in a process of its own."""
    words = ["serve-reward", "--reward", "_verifiers_rewards:judge", "--port", "0"]
    given = {"VERIFIER_TASK": task, "VERIFIER_SECONDS": str(seconds)}
    process = subprocess.Popen(
        [sys.executable, "-m", "flowsde", *words], cwd=pathlib.Path(__file__).parent,
        env=os.environ | given, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = dict(process.stdout.readline().split() for _ in range(3))
        yield said["url"]
    finally:
        process.terminate()
        process.wait(60)


def evaluation_seconds() -> float:
    """Of the model in full batches, as the machine is now: the median of several."""
    return statistics.median(_tasks_costs.forward_each("network", MODEL))


@dataclasses.dataclass(frozen=True)
class Clocked:
    """Searches that are timed."""

    task: str
    prompts: int
    nfe: dict[str, int]
    """By method."""
    steps: int
    """Of Best-of-N."""
    batch: int
    """Candidates evaluated at once: few, so that several batches are under way."""

    def seconds(
        self, method: str, overlapping: bool, reward: Any, seed: int
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """Seconds, rewards of the answers [P], and dear calls of a search, all prompts' mean."""
        made = settings.make("bon", settings.ODE, steps=self.steps) if method == "bon" else SMC
        texts = TASKS[self.task].captions("dev", self.prompts)
        given: dict[str, Any] = {
            "cond": conds(texts, self.task, 1), "prompt_ids": np.arange(self.prompts)
        }  # fmt: skip
        flow, search, key = load_flow(MODEL), made.search(self.nfe[method]), jax.random.key(seed)
        began = time.perf_counter()
        if overlapping:
            found = dict(fs.batch(key, flow, search, reward, batch_size=self.batch, **given))
            results = [found[i] for i in range(self.prompts)]
            rewards = np.array([float(result.reward) for result in results])
            counts = np.array([_dear_calls(result) for result in results])
        else:
            result = fs.run(key, flow, search, reward, chunk_size=self.batch, **given)
            rewards, counts = np.asarray(result.reward), np.asarray(_dear_calls(result))
        return time.perf_counter() - began, rewards, counts


def _dear_calls(result: Any) -> Any:
    return (result.part_calls or {}).get("dear", result.verifier_calls)


_OVERLAPPING = {
    ("smc", "direct"): "remote", ("smc", "cascade"): "cascade, remote", ("bon", "direct"): "remote"
}  # fmt: skip
"""What overlaps the same calls."""


def clock(plan: Plan, gate: Gate, of_cheap: float) -> dict[str, Any]:
    """Seconds of the same searches with and without overlap."""
    task = plan.tasks[0]
    nfe = dict(zip(("smc", "bon"), plan.clocked, strict=True))
    steps = min(plan.steps)
    clocked = Clocked(task, plan.prompts, nfe, steps, BATCH // 2)
    each = COST * evaluation_seconds()
    ways = {
        ("smc", "direct"): (None, False), ("smc", "remote"): (None, True),
        ("smc", "cascade"): (gate, False), ("smc", "cascade, remote"): (gate, True),
        ("bon", "direct"): (None, False), ("bon", "remote"): (None, True),
    }  # fmt: skip
    seconds: dict[str, list[float]] = {" ".join(at): [] for at in ways}
    agree, counted = 0.0, []
    with served(task, each) as url:
        far, near = fs.rewards.remote(url), dear(task, each)
        far = dataclasses.replace(far, name="dear")
        for number in range(-1, plan.repetitions):  # the first one compiles
            rewards, calls = {}, {}
            for at, (own, overlapping) in ways.items():
                # A server remembers pictures: none are asked about in two ways that overlap.
                seed = 100 * (number + 2) + 10 * (own is not None) + (at[0] == "bon")
                reward = reward_of(task, own, far if overlapping else near)
                took, rewards[at], calls[at] = clocked.seconds(at[0], overlapping, reward, seed)
                if number >= 0:
                    seconds[" ".join(at)].append(took)
            for (method, first), second in _OVERLAPPING.items():
                apart = np.abs(rewards[method, first] - rewards[method, second]).max()
                agree = max(agree, float(apart))
            every, some = (float(calls["smc", way].mean()) for way in ("direct", "cascade"))
            charged = every + 2.0  # of finishing, which is rewarded once in three
            counted.append(
                price(charged, every, some, of_cheap) / price(charged, 0.0, every, of_cheap)
            )
            print("  ".join(f"{k} {v[-1]:.1f} s" for k, v in seconds.items() if v), flush=True)

    def ratio(method: str, first: str, second: str) -> float:
        pairs = zip(seconds[f"{method} {first}"], seconds[f"{method} {second}"], strict=True)
        return statistics.median(a / b for a, b in pairs)

    return {
        "clock": seconds,
        "clock_settings": {
            "task": task, "prompts": plan.prompts, "batch": clocked.batch, "nfe": nfe,
            "steps": steps, "gate": gate.name, "reward_seconds": each, "load": os.getloadavg()[0],
        },
        "ratio": {
            f"{method} {second}": ratio(method, second, first)
            for (method, first), second in _OVERLAPPING.items()
        },
        "clocked": {
            "cascade": ratio("smc", "cascade", "direct"), "counted": statistics.mean(counted)
        },
        "agree": agree,
    }  # fmt: skip


# ---------------------------------------------------------------------------------- stages


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
        first = plan.tasks[0]
        found |= clock(plan, gates[first], found["cheap"])
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
