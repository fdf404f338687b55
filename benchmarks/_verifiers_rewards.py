"""The dear reward of `verifiers.py`, where a search runs and behind ``flowsde serve-reward``.

Served as ``--reward _verifiers_rewards:judge``, of the task that VERIFIER_TASK names.
"""

import dataclasses
import os
import time
from functools import cache
from typing import Any

import jax
import numpy as np

import flowsde as fs
from flowsde import shapes
from flowsde.shapes.tasks import TASKS

VERSION = 1
_ROWS = 8
"""Pictures that are scored at once: few shapes to compile for."""


@cache
def scoring(task: str) -> Any:
    """The learned reward of a task, compiled."""
    return jax.jit(TASKS[task].load_reward())


@dataclasses.dataclass(frozen=True)
class Dear:
    """A task's learned reward that takes so many seconds a picture, as on a device of its own.

    It sleeps for what the scores did not take; with 0 seconds it only computes them.
    """

    task: str
    seconds: float = 0.0

    def __call__(self, images: np.ndarray, cond: Any) -> np.ndarray:
        """Rewards float32 [n] of pictures [n, 32, 32, 3] and tokens [n, MAX_TOKENS]."""
        began, n = time.perf_counter(), len(images)
        # Filled up with further rows to one of few shapes.
        at = np.resize(np.arange(n), -(-n // _ROWS) * _ROWS)
        rewards = np.asarray(scoring(self.task)(images[at], np.asarray(cond)[at]))[:n]
        time.sleep(max(0.0, self.seconds * n - (time.perf_counter() - began)))
        return rewards


def judge(images: np.ndarray, cond: Any) -> np.ndarray:
    """What the server asks: VERIFIER_SECONDS a picture."""
    seconds = float(os.environ.get("VERIFIER_SECONDS", "0"))
    return Dear(os.environ["VERIFIER_TASK"], seconds)(images, cond)


def dear(task: str, seconds: float = 0.0) -> fs.rewards.HostReward:
    """As a reward of this process."""
    return fs.rewards.host(Dear(task, seconds), "dear")


def cheap() -> fs.rewards.DeviceReward:
    """The likelihood of the caption's counts, which knows nothing of places."""
    return fs.rewards.device(shapes.load_reward(), name="cheap")
