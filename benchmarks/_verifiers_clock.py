"""The clock of `verifiers.py`: the same searches with and without overlap."""

import dataclasses
import os
import statistics
import time
from typing import Any

import _tasks_costs
import _tasks_settings as settings
import jax
import numpy as np
from _served import served
from _tasks_measure import conds, load_flow
from _verifiers_rewards import dear
from _verifiers_rows import COST, MODEL, SMC, Gate, price, reward_of

import flowsde as fs
from flowsde.shapes.tasks import TASKS


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


def clock(clocked: Clocked, repetitions: int, gate: Gate, of_cheap: float) -> dict[str, Any]:
    """Seconds of the same searches with and without overlap."""
    each = COST * evaluation_seconds()
    ways = {
        ("smc", "direct"): (None, False), ("smc", "remote"): (None, True),
        ("smc", "cascade"): (gate, False), ("smc", "cascade, remote"): (gate, True),
        ("bon", "direct"): (None, False), ("bon", "remote"): (None, True),
    }  # fmt: skip
    seconds: dict[str, list[float]] = {" ".join(at): [] for at in ways}
    agree, counted = 0.0, []
    told = {"VERIFIER_TASK": clocked.task, "VERIFIER_SECONDS": str(each)}
    with served("_verifiers_rewards:judge", **told) as url:
        far, near = fs.rewards.remote(url), dear(clocked.task, each)
        far = dataclasses.replace(far, name="dear")
        for number in range(-1, repetitions):  # the first one compiles
            rewards, calls = {}, {}
            for at, (own, overlapping) in ways.items():
                # A server remembers pictures: none are asked about in two ways that overlap.
                seed = 100 * (number + 2) + 10 * (own is not None) + (at[0] == "bon")
                reward = reward_of(clocked.task, own, far if overlapping else near)
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
            **dataclasses.asdict(clocked),
            "gate": gate.name,
            "reward_seconds": each,
            "load": os.getloadavg()[0],
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
