"""Measure one row: all captions and seeds of a setting, packed into full batches.

Draws depend on the number of the caption and the seed alone, so all rows of a task see the same
noise, and rows of more captions hold those of fewer.
"""

import dataclasses
import time
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from _tasks_rows import Case, Row

import flowsde as fs
from flowsde import shapes
from flowsde.cli.settings import SEARCHES
from flowsde.shapes import weights
from flowsde.shapes.tasks import TASKS
from flowsde.tuning.intervals import Interval, success

BATCH = 32
_SEED_STRIDE = 1_000_000


def weights_file(model: str) -> Path:
    """Weights of an embedded flow, or of the scorer."""
    return weights.packaged(getattr(shapes, "MODELS", {}).get(model, model))


def is_here(model: str) -> bool:
    """Whether this version has an embedded flow of that name."""
    return model in getattr(shapes, "MODELS", {"shapes"}) and weights_file(model).exists()


@cache
def load_flow(model: str) -> fs.Flow:
    """An embedded flow by name."""
    load: Any = shapes.load_flow
    # Of versions with several flows.
    return load() if model == "shapes" else load(model=model)


def conds(texts: list[str], task: str, seeds: int) -> Any:
    """Conditions of all captions, once a seed."""
    encoded = [TASKS[task].encode(text) for text in texts]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *(encoded * seeds))


def numbers(captions: int, seeds: int) -> np.ndarray:
    """Of the prompts, of which their random keys are made."""
    at = np.arange(captions) + _SEED_STRIDE * np.arange(seeds)[:, None]
    return at.reshape(-1)


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a case found, arrays [P, M] over captions and seeds; `images` [P, M, 32, 32, 3]."""

    images: np.ndarray
    reward: np.ndarray
    nfe: np.ndarray
    backward_passes: np.ndarray
    verifier_calls: np.ndarray
    occupancy: float
    seconds: float


def answers(case: Case, texts: list[str]) -> Answers:
    """Run a case."""
    task, ids = TASKS[case.task], numbers(len(texts), case.seeds)
    began = time.perf_counter()
    results = fs.batch(
        jax.random.key(0), task.flow(load_flow(case.model)), case.setting.search(case.nfe),
        task.load_reward(), cond=conds(texts, case.task, case.seeds), prompt_ids=ids,
        batch_size=BATCH, invalid="warn",
    )  # fmt: skip
    found = dict(results)
    seconds = time.perf_counter() - began

    def of(name: str) -> np.ndarray:
        values = np.stack([np.asarray(getattr(found[int(i)], name)) for i in ids])
        return np.swapaxes(values.reshape(case.seeds, len(texts), *values.shape[1:]), 0, 1)

    return Answers(
        of("image"), of("reward"), of("nfe"), of("backward_passes"), of("verifier_calls"),
        results.totals.occupancy, seconds / len(ids),
    )  # fmt: skip


def _value_of(case: Case) -> str | None:
    """What particles on their way are worth, of a method that asks."""
    asks = "value" in SEARCHES.get(case.setting.method, ())
    return case.setting.get("value", "mean") if asks else None


def measure(case: Case) -> Row:
    """A row without `seconds`, which depend on costs.

    Keys: those of the table; setting, steps, finish_steps, chains (None where there are none);
    exact (share of pictures with the caption's objects), charged (mean NFE), backward_passes (mean
    number of evaluations that were differentiated too), verifier_calls (mean), occupancy and
    wall_seconds (a search's share of the packed run, compiling included), wins (of each caption).
    """
    texts, option = case.captions, case.setting.get
    found = answers(case, texts)
    flat = found.images.reshape(-1, *found.images.shape[2:])
    verdicts = TASKS[case.task].judge(flat, np.repeat(texts, case.seeds).tolist())
    wins = verdicts.success.reshape(len(texts), case.seeds).sum(1)
    share: Interval = success(wins, case.seeds)
    accept = "improve" if case.setting.method == "rbf" else None
    return {
        "task": case.task,
        "model": case.model,
        "method": case.setting.label,
        "interpolant": option("interpolant"),
        "kernel": option("kernel"),
        "accept": option("accept", accept),
        "value": _value_of(case),
        "nfe": case.nfe,
        "success": share.value,
        "success_low": share.low,
        "success_high": share.high,
        "given": float(found.reward.mean()),
        "prompts": len(texts),
        "seeds": case.seeds,
        "split": case.split,
        "setting": case.setting.name,
        "steps": option("steps"),
        "finish_steps": option("finish_steps", 0),
        "chains": option("chains", option("paths")),
        "exact": float(verdicts.exact.mean()),
        "charged": float(found.nfe.mean()),
        "backward_passes": float(found.backward_passes.mean()),
        "verifier_calls": float(found.verifier_calls.mean()),
        "occupancy": found.occupancy,
        "wall_seconds": found.seconds,
        "wins": wins.tolist(),
    }


def digests(models: tuple[str, ...]) -> dict[str, str]:
    """SHA-256 of the weights of models and the scorer."""
    return {name: weights.sha256(weights_file(name)) for name in (*models, "scorer")}


def budget_by_step(case: Case) -> list[float]:
    """Evaluations at each step of the grid, then of finishing; means over captions."""
    task, texts = TASKS[case.task], case.captions
    result = fs.run(
        jax.random.key(0), task.flow(load_flow(case.model)), case.setting.search(case.nfe),
        task.load_reward(), cond=conds(texts, case.task, 1), chunk_size=BATCH, invalid="warn",
        prompt_ids=np.arange(len(texts)),
    )  # fmt: skip
    info = result.info
    counted, finishing = np.asarray(info.counted), np.asarray(info.finishing)
    times = np.asarray(info.time)
    searching = counted & ~finishing[..., None]
    levels = np.unique(times[searching])[::-1]
    by_step = [float((searching & (times == t)).sum()) / len(texts) for t in levels]
    return [*by_step, float((counted & finishing[..., None]).sum()) / len(texts)]
