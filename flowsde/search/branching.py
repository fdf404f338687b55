"""At which steps of a grid particles compete (`branch_at`).

Elsewhere a particle has one child, of which no reward is wanted, and the budget goes to the steps
at which rewards say something.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowsde._checks import check_count


def as_steps(
    branch_at: Any, grid: Sequence[float], name: str = "branch_at", *, start: bool = False
) -> tuple[int, ...] | None:
    """Positions in a grid, rising, from what a user says of them.

    Args:
      branch_at: None for every step, which gives None; a number of steps, spread evenly over
        positions; or a sequence, integers for positions from 1 to the last that is evaluated,
        floats for times, the nearest position each.
      grid: times falling from 1 to 0.
      name: of the argument.
      start: whether position 0 can be one too: by its number, by times next to its own, and as
        the last that a number of steps reaches.

    Raises:
      ValueError, TypeError: naming the argument.
    """
    if branch_at is None:
        return None
    first, last = 0 if start else 1, len(grid) - 2
    if last < first:
        raise ValueError(f"{name} needs a grid of at least 2 steps, got 1")
    span = "above 0 and up to 1" if start else "between 0 and 1"
    expected = f"positions in the grid from {first} to {last}, or times {span}"
    if isinstance(branch_at, str) or (np.ndim(branch_at) == 0 and not _is_count(branch_at)):
        raise TypeError(f"{name} must be a number of steps, or {expected}, got {branch_at!r}")
    if np.ndim(branch_at) == 0:
        n = check_count(name, branch_at, most=last + 1 - first)
        if n > last:
            return tuple(range(n))
        return tuple(int(i) for i in np.ceil(np.arange(1, n + 1) * last / n))
    values = list(branch_at)
    if not values:
        raise ValueError(f"{name} must have at least one of {expected}, got none")
    times = np.asarray(grid[first:-1])
    steps = []
    for value in values:
        if _is_count(value) and first <= value <= last:
            steps.append(int(value))
        elif _is_time(value, start):
            steps.append(first + int(np.argmin(np.abs(times - value))))
        else:
            raise ValueError(f"{name} must hold {expected}, got {value!r}")
    if len(set(steps)) < len(steps):
        raise ValueError(f"{name} must hold different steps of the grid, got {branch_at!r}")
    return tuple(sorted(steps))


def steps_between(name: str, values: Any, grid: Sequence[float], start: int) -> tuple[int, ...]:
    """Positions in a grid between one and the last that is evaluated, rising.

    Args:
      name: of the argument.
      values: a number of steps, 0 and up, spread evenly; or a sequence as for `as_steps`.
      grid: times falling from 1 to 0.
      start: the position that they lie behind.

    Raises:
      ValueError, TypeError: naming the argument.
    """
    last = len(grid) - 2
    if np.ndim(values) == 0:
        n = check_count(name, values, least=0, most=max(last - start - 1, 0))
        return tuple(start + -(-k * (last - start) // (n + 1)) for k in range(1, n + 1))
    steps = as_steps(values, grid, name) or ()
    if not all(start < i < last for i in steps):
        raise ValueError(
            f"{name} must lie behind position {start} of the grid, from which particles go on, "
            f"and before the last, {last}, got {values!r}"
        )
    return steps


def as_position(time: Any, grid: Sequence[float], name: str) -> int:
    """Position in a grid at which begins what is noised from the last time: that nearest to a time.

    Args:
      time: between 0 and 1.
      grid: times falling from 1 to 0. The first is noise alone, and to the last that is evaluated
        none is added.
      name: of the argument.

    Raises:
      ValueError, TypeError: naming the argument.
    """
    if len(grid) < 4:
        raise ValueError(
            f"{name} needs a grid of at least 3 steps, so that there is a time between the first "
            f"and the last that is evaluated, got {len(grid) - 1}"
        )
    if not isinstance(time, float | np.floating):
        raise TypeError(f"{name} must be a time between 0 and 1, got {time!r}")
    if not _is_time(time, start=False):
        raise ValueError(f"{name} must be a time between 0 and 1, got {time!r}")
    return 1 + int(np.argmin(np.abs(np.asarray(grid[1:-2]) - time)))


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_time(value: Any, start: bool) -> bool:
    if not isinstance(value, float | np.floating):
        return False
    return bool(0.0 < value < 1.0 or (start and value == 1.0))
