"""The clock of a run, what is said of a budget in seconds, and its check."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

now: Callable[[], float] = time.perf_counter
"""Seconds."""


class Timing(NamedTuple):
    """How a budget in seconds is spent.

    Attributes:
      seconds: the budget.
      spent: of it so far, by all rounds: model, verifier, what lies between them, the decoding of
        the answer.
      nfe: model evaluations that it was turned into, of each prompt; ``nfe=`` of it repeats a
        search that was not cut.
      cut: whether the deadline ended the search, or made it finish, before it had spent them.
      preparing: seconds before the first round, in which programs were compiled and timed; no part
        of `spent`.
      evaluations: computed to time them, drafts of another flow included; no part of the
        result's counters.
      verifier_calls: likewise.
    """

    seconds: float
    spent: float
    nfe: int
    cut: bool
    preparing: float
    evaluations: int
    verifier_calls: int


def check_seconds(seconds: Any, nfe: Any) -> float | None:
    """A budget in seconds; ValueError or TypeError naming the argument."""
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, int | float | np.number):
        raise TypeError(f"seconds must be a number, got {seconds!r}")
    if not 0.0 < seconds < math.inf:
        raise ValueError(f"seconds must be a finite number above 0, got {seconds!r}")
    if nfe is not None:
        raise ValueError(
            f"nfe and seconds are both given, {nfe!r} and {seconds!r}, expected one: seconds is "
            f"turned into evaluations, at most those of the search"
        )
    if jax.process_count() > 1:
        raise ValueError("seconds wants a single process: clocks of several do not agree")
    return float(seconds)
