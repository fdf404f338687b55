"""Shares of successes and what two methods differ by, with 95 % intervals.

Captions are the sample and seeds are within them: `wins` are the successes of each caption, [P],
out of `seeds`. The seeds of a caption are alike, so n = P seeds searches tell no more than

    n_eff = p (1 - p) / Var(p),    Var(p) = var(shares of captions) / P,    P <= n_eff <= n

independent ones (P where all captions agree). A share has Wilson's interval of n_eff. Of two shares
with these intervals (l, u) a difference or a ratio of odds has, with the correlation r of captions,

    low = d - sqrt((m1 - l1)^2 + (u2 - m2)^2 - 2 r (m1 - l1) (u2 - m2)),    d = m1 - m2,

and `high` likewise (Newcombe, 1998, Stat. Med. 17: 873 and 2635; Zou & Donner, 2008, Stat. Med. 27:
1693); m is the share, or for odds log((n p + 1/2) / (n (1 - p) + 1/2)) with the bounds' log odds.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import norm, t

_Z = float(norm.ppf(0.975))
Wins = Sequence[int] | np.ndarray


class Interval(NamedTuple):
    """An estimate and its bounds, which may be infinite."""

    value: float
    low: float
    high: float


def wilson(share: float, n: float) -> Interval:
    """A share of n independent trials."""
    z2 = _Z * _Z / n
    centre = (share + z2 / 2.0) / (1.0 + z2)
    half = _Z / (1.0 + z2) * math.sqrt(share * (1.0 - share) / n + z2 / (4.0 * n))
    # Without rounding at the ends, where odds have no bound.
    low, high = (0.0 if share == 0.0 else centre - half), (1.0 if share == 1.0 else centre + half)
    return Interval(share, low, high)


def effective(wins: np.ndarray, seeds: int) -> float:
    """Independent trials that tell as much as the searches of P captions, from P to P seeds."""
    captions, n = len(wins), len(wins) * seeds
    shares = np.asarray(wins, np.float64) / seeds
    mean = shares.mean()
    if captions < 2 or mean in (0.0, 1.0):
        return float(captions)
    variance = shares.var(ddof=1) / captions
    return float(np.clip(mean * (1.0 - mean) / variance if variance else n, captions, n))


def success(wins: np.ndarray, seeds: int) -> Interval:
    """The share of successes."""
    return wilson(float(np.mean(wins)) / seeds, effective(wins, seeds))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Of captions; 0 where one of them is the same for all."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def contrast(first: Interval, second: Interval, r: float = 0.0) -> Interval:
    """first - second, from intervals of either and their correlation."""

    def reach(a: float, b: float) -> float:
        if math.isinf(a) or math.isinf(b):
            return math.inf
        return math.sqrt(max(a * a + b * b - 2.0 * r * a * b, 0.0))

    d = first.value - second.value
    low = d - reach(first.value - first.low, second.high - second.value)
    return Interval(d, low, d + reach(first.high - first.value, second.value - second.low))


def _log(odds: float) -> float:
    return -math.inf if odds <= 0.0 else math.log(odds)


def _logit(share: float) -> float:
    return math.inf if share >= 1.0 else _log(share / (1.0 - share))


def log_odds(wins: np.ndarray, seeds: int) -> Interval:
    """log p / (1 - p), half a success and half a failure added to the searches."""
    share = success(wins, seeds)
    n = effective(wins, seeds)
    shrunk = (n * share.value + 0.5) / (n + 1.0)
    return Interval(_logit(shrunk), _logit(share.low), _logit(share.high))


def _paired(a: Wins, b: Wins) -> tuple[np.ndarray, np.ndarray]:
    """Captions that both have: sets of captions begin alike."""
    n = min(len(a), len(b))
    return np.asarray(a[:n]), np.asarray(b[:n])


def difference(a: Wins, b: Wins, seeds: int) -> Interval:
    """Share of successes less that of another method on the same captions, by their `wins`."""
    first, second = _paired(a, b)
    r = correlation(first, second)
    return contrast(success(first, seeds), success(second, seeds), r)


def odds_ratio(a: Sequence[int], b: Sequence[int], seeds: int) -> Interval:
    """Ratio of the odds of success to those of another method on the same captions."""
    first, second = _paired(a, b)
    r = correlation(first, second)
    found = contrast(log_odds(first, seeds), log_odds(second, seeds), r)
    return Interval(*(math.exp(bound) if bound < 700.0 else math.inf for bound in found))


def pooled(strata: Sequence[np.ndarray]) -> Interval:
    """Mean over strata (tasks) of mean differences, each of paired captions [P].

    Student's interval with the degrees of freedom of all captions less one for each stratum.
    """
    means = [float(np.mean(values)) for values in strata]
    value, freedom = float(np.mean(means)), sum(len(values) - 1 for values in strata)
    if freedom < 1:
        return Interval(value, -math.inf, math.inf)
    variances = [float(np.var(v, ddof=1)) / len(v) if len(v) > 1 else 0.0 for v in strata]
    half = float(t.ppf(0.975, freedom)) * math.sqrt(sum(variances)) / len(strata)
    return Interval(value, value - half, value + half)
