"""Measure a setting: its search on some prompts and seeds, which run together.

The search of prompt p with seed s is that of prompt id p + P s, for P prompts, under one key: all
settings see the same first noises, which pairs them, and no search of one half shares draws with
the other.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from flowsde.conds import Cond
from flowsde.flow import Flow
from flowsde.grids import uniform
from flowsde.interpolants import linear
from flowsde.kernels import ode_euler
from flowsde.runner.run import run
from flowsde.search import Search, bon
from flowsde.tuning.split import Unit

Heldout = Callable[[np.ndarray, list[int]], Any]
"""``heldout(images, prompts) -> [n]``: pictures float32 [n, ...] and their prompts' numbers."""


class Block(NamedTuple):
    """What was measured of a setting on n units.

    Attributes:
      rewards: float64 [n]; -inf where none was finite.
      heldout: float64 [n], of a score that nothing is chosen by; empty without.
      nfe, evaluations, verifier_calls: of all units, as in `flowsde.Result`.
      seconds: of the wall clock, compilation included where the block is the setting's first.
    """

    rewards: np.ndarray
    heldout: np.ndarray
    nfe: int
    evaluations: int
    verifier_calls: int
    seconds: float


class Subject(NamedTuple):
    """What settings are measured on, as for `flowsde.run`; conditions have a leading axis P.

    Attributes:
      key, flow, reward, chunk_size, target_reward: as there.
      cond, reward_cond: arrays, or a list of P for a reward outside JAX.
      prompts: their number, P.
      heldout: a score of pictures that nothing is chosen by; None for none.
    """

    key: jax.Array
    flow: Flow
    reward: Any
    cond: Cond
    reward_cond: Any
    prompts: int
    chunk_size: int | None
    target_reward: float | None
    heldout: Heldout | None

    def rows(self, prompts: Sequence[int]) -> dict[str, Any]:
        """The conditions of some prompts, as arguments."""
        told = self.reward_cond
        if isinstance(told, list):
            told = [told[i] for i in prompts]
        elif told is not None:
            told = _rows(told, prompts)
        return {"cond": _rows(self.cond, prompts), "reward_cond": told}


def _rows(tree: Any, prompts: Sequence[int]) -> Any:
    return jax.tree.map(lambda a: a[np.asarray(prompts)], tree)


def measure(subject: Subject, search: Search, units: Sequence[Unit], final: bool = False) -> Block:
    """Run a search on some units.

    Args:
      subject: what it is run on.
      search: with its budget.
      units: what it is run for.
      final: whether to ask for the held-out score.
    """
    began = time.perf_counter()
    result = _run(subject, search, units)
    seconds = time.perf_counter() - began
    scores = np.empty(0)
    if final and subject.heldout is not None:
        said = subject.heldout(np.asarray(result.image), [unit.prompt for unit in units])
        scores = np.asarray(said, np.float64)
        if scores.shape != (len(units),):
            raise ValueError(
                f"heldout must return one number for each of {len(units)} pictures, got shape "
                f"{scores.shape}"
            )
    return Block(
        rewards=np.asarray(result.reward, np.float64),
        heldout=scores,
        nfe=int(np.sum(result.nfe)),
        evaluations=int(np.sum(result.evaluations)),
        verifier_calls=int(np.sum(result.verifier_calls)),
        seconds=seconds,
    )


def _run(subject: Subject, search: Search, units: Sequence[Unit]) -> Any:
    with warnings.catch_warnings():
        # A search without a finite reward loses; it is counted and said.
        warnings.filterwarnings("ignore", ".*(for every candidate|is not finite: )")
        return run(
            subject.key, subject.flow, search, subject.reward,
            **subject.rows([unit.prompt for unit in units]),
            prompt_ids=[unit.prompt + subject.prompts * unit.seed for unit in units],
            chunk_size=subject.chunk_size, target_reward=subject.target_reward, invalid="warn",
        )  # fmt: skip


def probe(subject: Subject) -> list[float]:
    """Numbers by which a model and a reward are known again: of one evaluation of prompt 0.

    The posterior mean of pure noise, by its mean and its standard deviation, and its reward.
    """
    kernel = ode_euler(linear())
    once = bon(nfe=subject.flow.evaluations, kernel=kernel, grid=uniform(1))
    result = _run(subject, once, [Unit(0, 0)])
    x0 = np.asarray(result.x0, np.float64)
    return [float(x0.mean()), float(x0.std()), float(np.asarray(result.reward)[0])]
