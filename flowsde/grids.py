"""Grids of times: NumPy float64 arrays of n + 1 times falling from 1 to 0, for n steps.

n is 2**20 at most. Each function raises ValueError or TypeError naming the argument that is wrong.
"""

import math
import reprlib
from typing import Any

import numpy as np

from flowsde._checks import check_count, check_positive

__all__ = ["cosine", "flux", "quadratic", "shifted", "tail", "uniform"]

Grid = np.ndarray
MOST_STEPS = 2**20
"""Most steps of a grid, each of which is one evaluation of a model at least."""


def _steps(n: Any) -> int:
    return check_count("n", n, most=MOST_STEPS)


def uniform(n: int) -> Grid:
    """Times 1 - i / n, i = 0, …, n.

    Args:
      n: steps.

    Returns:
      n + 1 times, from 1 to 0.

    Example:
      >>> fs.grids.uniform(4).tolist()
      [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    return 1.0 - np.arange(_steps(n) + 1) / n


def quadratic(n: int) -> Grid:
    """Times sqrt(1 - (i / n)^2), i = 0, …, n: small steps near the noise (Kim et al., 2025).

    Args:
      n: steps.

    Returns:
      n + 1 times, from 1 to 0.

    Example:
      >>> fs.grids.quadratic(5).round(2).tolist()  # 0.98^2 + 0.2^2 = 1
      [1.0, 0.98, 0.92, 0.8, 0.6, 0.0]
    """
    return np.sqrt(1.0 - (np.arange(_steps(n) + 1) / n) ** 2)


def cosine(n: int) -> Grid:
    """Times cos(pi i / 2 n), i = 0, …, n: small steps near the noise, larger ones near the data.

    Args:
      n: steps.

    Returns:
      n + 1 times, from 1 to 0.

    Example:
      >>> fs.grids.cosine(3).round(2).tolist()  # of 0, 30, 60 and 90 degrees
      [1.0, 0.87, 0.5, 0.0]
    """
    grid = np.cos(0.5 * math.pi * np.arange(_steps(n) + 1) / n)
    grid[-1] = 0.0
    return grid


def shifted(n: int, shift: float) -> Grid:
    """Times shift t / (1 + (shift - 1) t) of the n + 1 uniform times t.

    Args:
      n: steps.
      shift: above 0; 1 is the uniform grid, 3 is that of SD3. The larger, the smaller are the steps
        near the noise.

    Returns:
      n + 1 times, from 1 to 0.

    Example:
      >>> fs.grids.shifted(4, 3.0).round(2).tolist()
      [1.0, 0.9, 0.75, 0.5, 0.0]
    """
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
    """FLUX.1-dev: the n + 1 uniform times shifted by exp(mu), mu linear in the tokens.

    Args:
      n: steps.
      tokens: of the image; 4,096 for 1,024 x 1,024 pixels.
      low, high: two points (tokens, mu) of the line.

    Returns:
      n + 1 times, from 1 to 0.

    Example:
      >>> fs.grids.flux(4, tokens=4096).round(2).tolist()  # 1024 x 1024 pixels
      [1.0, 0.9, 0.76, 0.51, 0.0]
    """
    slope = (high[1] - low[1]) / (high[0] - low[0])
    return shifted(n, math.exp(low[1] + slope * (check_count("tokens", tokens) - low[0])))


def tail(grid: Any, strength: float) -> Grid:
    """The last steps of a grid, for a given picture to begin from (`start` of `flowsde.run`).

    Of n steps the last strength n, rounded up as in diffusers; but of a strength below 1 never all
    of them, which would forget the picture. The first time is how noisy the picture becomes; any
    other grid that begins below 1 will do as well.

    Args:
      grid: n + 1 times falling from 1 to 0.
      strength: above 0, to 1, which is the whole grid and forgets the picture.

    Returns:
      Times falling to 0.

    Raises:
      ValueError, TypeError: naming the argument; a strength below 1 of a single step.

    Example:
      >>> fs.grids.tail(fs.grids.uniform(4), 0.5).tolist()  # half of the steps
      [0.5, 0.25, 0.0]
    """
    times = as_grid("grid", grid, whole=True)
    check_positive("strength", strength)
    if strength > 1.0:
        raise ValueError(f"strength must be at most 1, got {strength}")
    steps = len(times) - 1
    if strength < 1.0 and steps == 1:
        raise ValueError(
            f"strength must be 1 for a grid of one step, which forgets the picture, got "
            f"{strength}; take more steps"
        )
    # Less what a product of floats is off by.
    run = math.ceil(steps * strength - 1e-9)
    return np.asarray(times[-1 - min(run, steps - (strength < 1.0)) :])


def as_grid(name: str, values: Any, whole: bool = False) -> tuple[float, ...]:
    """Check a user's grid and make it hashable.

    Args:
      name: of the argument, for the error.
      values: two times to 2**20 + 1, strictly falling, within [0, 1], to 0.
      whole: whether they must begin at 1; without, those of a given start may begin below.

    Raises:
      ValueError: saying where the grid is wrong.
      TypeError: the values are no numbers.
    """
    hint = f"{name} must hold at least two times, e.g. flowsde.grids.uniform(10)"
    try:
        grid = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{hint}, got {reprlib.repr(values)}") from None
    if grid.ndim != 1 or grid.size < 2:
        got = reprlib.repr(values) if grid.ndim == 0 else f"shape {grid.shape}"
        raise ValueError(f"{hint}, got {got}")
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
    if (whole and grid[0] != 1.0) or grid[-1] != 0.0:
        raise ValueError(f"{name} must run from 1 to 0, got {grid[0]} to {grid[-1]}")
    return tuple(float(t) for t in grid)
