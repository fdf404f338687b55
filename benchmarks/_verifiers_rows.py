"""Rows of `verifiers.py`: what a search costs, Best-of-N of a pool, and SMC."""

import dataclasses
from functools import cache
from typing import Any

import _tasks_costs
import _tasks_settings as settings
import jax
import numpy as np
from _tasks_measure import BATCH, conds, load_flow, numbers
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
