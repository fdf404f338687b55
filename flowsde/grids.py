"""Grids of times: NumPy float64 arrays of n + 1 values falling from 1 to 0; n is 2**20 at most."""

import math
from typing import Any

import numpy as np

from flowsde._checks import check_count, check_positive

__all__ = ["cosine", "flux", "quadratic", "shifted", "uniform"]

Grid = np.ndarray
MOST_STEPS = 2**20
"""Of a grid: a step is at least one evaluation of a model."""


def _steps(n: Any) -> int:
    return check_count("n", n, most=MOST_STEPS)


def uniform(n: int) -> Grid:
    """1 - i / n."""
    return 1.0 - np.arange(_steps(n) + 1) / n


def quadratic(n: int) -> Grid:
    """sqrt(1 - (i / n)^2): small steps where there is most noise (Kim et al., 2025)."""
    return np.sqrt(1.0 - (np.arange(_steps(n) + 1) / n) ** 2)


def cosine(n: int) -> Grid:
    """cos(pi i / 2 n): small steps near the noise, larger ones near the data."""
    grid = np.cos(0.5 * math.pi * np.arange(_steps(n) + 1) / n)
    grid[-1] = 0.0
    return grid


def shifted(n: int, shift: float) -> Grid:
    """shift t / (1 + (shift - 1) t) of the uniform grid; SD3 uses shift 3."""
    check_positive("shift", shift)
    t = uniform(n)
    return shift * t / (1.0 + (shift - 1.0) * t)


def flux(
    n: int,
    tokens: int,
    *,
    low: tuple[float, float] = (256, 0.5),
    high: tuple[float, float] = (4096, 1.15),
) -> Grid:
    """FLUX.1-dev: the uniform times (1, 1 - 1/n, …, 1/n, 0) shifted by exp(mu(tokens)).

    mu is linear in the number of image tokens, .5 at 256 and 1.15 at 4,096, or whatever it is at
    the two points (tokens, mu).
    """
    slope = (high[1] - low[1]) / (high[0] - low[0])
    return shifted(n, math.exp(low[1] + slope * (check_count("tokens", tokens) - low[0])))


def as_grid(name: str, values: Any) -> tuple[float, ...]:
    """Check a user's grid and make it hashable.

    Args:
      name: of the argument, for the error.
      values: two times to 2**20 + 1, strictly falling, within [0, 1], from 1 to 0.

    Raises:
      ValueError: saying where the grid is wrong.
    """
    grid = np.asarray(values, np.float64)
    if grid.ndim != 1 or grid.size < 2:
        raise ValueError(f"{name} must hold at least two times, got shape {grid.shape}")
    if grid.size > MOST_STEPS + 1:
        raise ValueError(f"{name} must hold at most {MOST_STEPS + 1} times, got {grid.size}")
    if not np.all((grid >= 0.0) & (grid <= 1.0)):
        raise ValueError(f"{name} must lie in [0, 1], got {grid[~((grid >= 0) & (grid <= 1))][0]}")
    rising = np.flatnonzero(np.diff(grid) >= 0.0)
    if rising.size:
        i = int(rising[0])
        raise ValueError(
            f"{name} must fall strictly, got {grid[i]} then {grid[i + 1]} at position {i + 1}"
        )
    if grid[0] != 1.0 or grid[-1] != 0.0:
        raise ValueError(f"{name} must run from 1 to 0, got {grid[0]} to {grid[-1]}")
    return tuple(float(t) for t in grid)
