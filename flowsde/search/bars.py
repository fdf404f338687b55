"""Rewards that a particle must reach to go on, as a user gives them."""

import math
from typing import Any

import numpy as np


def as_bars(bar: Any, n: int, of: str) -> tuple[float, ...]:
    """Rewards for each of n, which are called `of`, from one for all or one for each.

    Raises:
      ValueError, TypeError: naming the argument `bar`.
    """
    try:
        bars = np.asarray(bar, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"bar must be a number or numbers, got {bar!r}") from None
    if bars.shape not in ((), (n,)):
        raise ValueError(
            f"bar must be one number or one for each of {n} {of}, got shape {bars.shape}"
        )
    for value in bars.reshape(-1):
        if math.isnan(value):
            raise ValueError(f"bar must be a number, got {value}")
    return tuple(np.broadcast_to(bars, (n,)).tolist())
