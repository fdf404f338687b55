"""What a setting is chosen on, and what it is reported on: no search is in both.

The sample is a prompt with a seed. Of 8 prompts or more every other one is held out, and what is
said holds for prompts like these; prompts are then what varies, seeds lie within them. Of fewer
prompts all race with the first seeds, and as many further seeds are held out: what is said holds
for these prompts alone, and seeds are what varies.
"""

from typing import NamedTuple

import numpy as np

from flowsde._checks import check_count
from flowsde.tuning.intervals import Interval, difference, pooled

ENOUGH = 8
"""Prompts from which on some are held out."""
_SEARCHES = 24
"""Searches of each half, by default and at least."""


class Unit(NamedTuple):
    """One search of the sample."""

    prompt: int
    seed: int


class Split(NamedTuple):
    """The two halves.

    Attributes:
      by: what is held out, "prompts" or "seeds".
      seeds: of each prompt in a half.
      race, final: units of either, so that any first ones have as many prompts as possible. Of an
        odd number of prompts the last one races.
    """

    by: str
    seeds: int
    race: tuple[Unit, ...]
    final: tuple[Unit, ...]


def prompts_of(units: tuple[Unit, ...]) -> int:
    """How many prompts there are."""
    return len({unit.prompt for unit in units})


def split(prompts: int, seeds: int | None = None) -> Split:
    """The halves of some prompts.

    Args:
      prompts: their number.
      seeds: of each prompt in a half; as many as make 24 searches by default.

    Raises:
      ValueError: fewer than two seeds of fewer than 8 prompts, which have no interval.
    """
    by = "prompts" if prompts >= ENOUGH else "seeds"
    half = prompts // 2 if by == "prompts" else prompts
    if seeds is None:
        seeds = max(-(-_SEARCHES // half), 1 if by == "prompts" else 2)
    if check_count("seeds", seeds) == 1 and by == "seeds":
        raise ValueError(
            f"seeds must be at least 2 of fewer than {ENOUGH} prompts, which seeds share out, got 1"
        )
    if by == "prompts":
        race, final = range(0, prompts, 2), range(1, prompts, 2)
        first = second = range(seeds)
    else:
        race = final = range(prompts)
        first, second = range(seeds), range(seeds, 2 * seeds)
    return Split(
        by,
        seeds,
        tuple(Unit(p, s) for s in first for p in race),
        tuple(Unit(p, s) for s in second for p in final),
    )


def gap(
    a: np.ndarray, b: np.ndarray, units: tuple[Unit, ...], by: str, shares: bool = False
) -> Interval:
    """What a setting's outcomes are above another's on the same units, with a 95 % interval.

    Args:
      a, b: outcomes, float64 [n]; one without a finite reward has -inf, and loses to any other.
      units: n of them, of one half.
      by: of the split.
      shares: whether outcomes are 1 for a success and 0 for none: Newcombe's interval, else
        Student's.
    """
    lost, won = ~np.isfinite(a) & np.isfinite(b), np.isfinite(a) & ~np.isfinite(b)
    if lost.any() or won.any():
        sign = float(won.sum()) - float(lost.sum())
        value = np.inf * sign if sign else np.nan
        return Interval(value, -np.inf if lost.any() else value, np.inf if won.any() else value)
    known = np.isfinite(a)
    if not known.any():
        return Interval(np.nan, -np.inf, np.inf)
    a, b = a[known], b[known]
    prompts = np.asarray([u.prompt for u in units])[known]
    if by == "prompts":
        a, b, most = *(_by_prompt(own, prompts) for own in (a, b)), np.bincount(prompts).max()
        if shares:
            return difference(a * most, b * most, int(most))
        return pooled([a - b])
    if shares:
        return difference(a, b, 1)
    return pooled([(a - b)[prompts == prompt] for prompt in np.unique(prompts)])


def _by_prompt(outcomes: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Means over the seeds of each prompt."""
    counts = np.bincount(prompts)
    sums = np.bincount(prompts, outcomes)
    return sums[counts > 0] / counts[counts > 0]
