"""What is estimated of measured rewards, each within prompts and then averaged over them.

With r_i the value of a trajectory at time i, f its final value, and children a of one state at
time i with values v_a at time i + 1 and final values f_a:

    correlation     Spearman's of r_i and f
    gain            E[r_{i+1} - r_i], and its standard deviation
    rises           P(r_{i+1} > r_i), ties by half
    spread          root of E[Var(v_a | state)] / Var(r_{i+1}); final_spread the same of f_a and f
    agreement       P(f_a > f_b given v_a > v_b), ties by half
    choice          E[f of the child of highest v] - E[f_a], in standard deviations of f
    worth           choice for its evaluations over what the best of as many trajectories gains for
                    theirs

Intervals are percentiles of a stratified bootstrap: a trajectory is drawn with its whole family, of
those with and those without siblings as many as there are. Prompts are not resampled. Values that
are not finite are left out, but of ranks and comparisons, where -inf is below all.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flowsde.diagnosis.trajectories import Measured

LEVEL = 0.95
"""Of the intervals."""
_DRAWS, _AT_ONCE = 500, 100


class Estimate(NamedTuple):
    """A number for each time or step, float64, and the ends of its interval; NaN for none."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def at(self, i: int, digits: int = 2) -> str:
        """One of them in words: "0.62 [0.54, 0.69]"."""
        if not np.isfinite(self.value[i]):
            return "–"
        value, low, high = (f"{part[i]:.{digits}f}".replace("-", "−") for part in self)
        return f"{value} [{low}, {high}]"


def ranks(a: np.ndarray) -> np.ndarray:
    """Ranks from 0 along the first axis but one, [..., n, T], equal values sharing their mean."""
    a = np.moveaxis(a, -2, -1)
    order = np.argsort(a, -1, kind="stable")
    ordered = np.take_along_axis(a, order, -1)
    n = a.shape[-1]
    place = np.arange(n)
    new = np.concatenate(
        [np.ones_like(ordered[..., :1], bool), ordered[..., 1:] != ordered[..., :-1]], -1
    )
    first = np.maximum.accumulate(np.where(new, place, 0), -1)
    ends = np.concatenate([new[..., 1:], np.ones_like(new[..., :1])], -1)
    last = np.minimum.accumulate(np.where(ends, place, n)[..., ::-1], -1)[..., ::-1]
    ranked = np.empty(a.shape)
    np.put_along_axis(ranked, order, 0.5 * (first + last), -1)
    return np.moveaxis(ranked, -1, -2)


def _mean(a: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """Of what is finite; NaN of nothing."""
    finite = np.isfinite(a)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(finite, a, 0.0).sum(axis) / finite.sum(axis)


def _variance(a: np.ndarray, axis: int) -> np.ndarray:
    """Unbiased, of what is finite; NaN of less than two."""
    finite = np.isfinite(a)
    count = finite.sum(axis)
    off = np.where(finite, a, 0.0) - np.expand_dims(_mean(a, axis), axis)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(finite, np.square(off), 0.0).sum(axis) / np.where(count > 1, count - 1, 0)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(b > 0.0, a / b, np.nan)


def _wins(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 where a > b, 0 where a < b, 1/2 where neither."""
    return 0.5 + 0.5 * ((a > b).astype(np.float64) - (a < b))


def spearman(values: np.ndarray, finals: np.ndarray) -> np.ndarray:
    """Rank correlation [..., T] of values [..., n, T] with finals [..., n]; NaN where all agree."""
    a, b = ranks(values), ranks(finals[..., None])
    a, b = a - a.mean(-2, keepdims=True), b - b.mean(-2, keepdims=True)
    return _ratio((a * b).sum(-2), np.sqrt(np.square(a).sum(-2) * np.square(b).sum(-2)))


def _best_of(finals: np.ndarray, many: int) -> np.ndarray:
    """E[highest of `many` of the values [..., n], drawn without repetition] - their mean.

    Of what is finite; NaN of less than `many`.
    """
    ordered = np.sort(np.where(np.isfinite(finals), finals, -np.inf), -1)
    known = np.isfinite(ordered)
    k = known.sum(-1, keepdims=True)
    # C(j, many - 1) / C(k, many) for the value with j of the k below it.
    j = np.arange(finals.shape[-1]) - (finals.shape[-1] - k)
    below = np.arange(1, many)
    with np.errstate(invalid="ignore", divide="ignore"):
        chances = np.maximum(j[..., None] - below + 1, 0) / (k[..., None] - below)
        weights = many / k * np.prod(chances, -1)
        best = np.sum(np.where(known, ordered, 0.0) * weights, -1)
    return np.where(k[..., 0] >= many, best - _mean(ordered, -1), np.nan)


def _of_prompt(r: np.ndarray, near: np.ndarray, last: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics [B, T] or [B, T - 1] of resampled rewards [B, n, T], [B, F, T - 1, c]."""
    with np.errstate(invalid="ignore"):
        gains = r[..., 1:] - r[..., :-1]
    found = {
        "correlation": spearman(r, r[..., -1]),
        "gain": _mean(gains, 1),
        "gain_variance": _variance(gains, 1),
        "rises": _wins(r[..., 1:], r[..., :-1]).mean(1),
        "between": _variance(r, 1)[..., 1:],
        "final_between": np.broadcast_to(_variance(r[..., -1], 1)[:, None], gains[:, 0].shape),
    }
    if not near.size:
        return found
    many = near.shape[-1]
    pairs = [(a, b) for a in range(many) for b in range(a)]
    agree = np.mean([_pair_agrees(near, last, a, b) for a, b in pairs], axis=0)
    chosen = np.take_along_axis(last, np.argmax(near, -1)[..., None], -1)[..., 0]
    with np.errstate(invalid="ignore"):
        choice = chosen - last.mean(-1)
    strangers = _best_of(r[..., -1], many)
    return found | {
        "within": _mean(_variance(near, -1), 1),
        "final_within": _mean(_variance(last, -1), 1),
        "agreement": agree.mean(1),
        "choice": _mean(choice, 1),
        "strangers": np.broadcast_to(strangers[:, None], gains[:, 0].shape),
    }


def _pair_agrees(near: np.ndarray, last: np.ndarray, a: int, b: int) -> np.ndarray:
    first, second = (2.0 * _wins(v[..., a], v[..., b]) - 1.0 for v in (near, last))
    return 0.5 + 0.5 * first * second


def _derived(found: dict[str, np.ndarray], along: int, each: int) -> dict[str, np.ndarray]:
    """What is reported, of averages over prompts.

    Args:
      found: of `_of_prompt`.
      along: evaluations of a trajectory.
      each: of one step.
    """
    names = ("correlation", "gain", "rises")
    derived = {name: found[name] for name in names}
    derived["gain_spread"] = np.sqrt(found["gain_variance"])
    if "within" not in found:
        return derived
    return derived | {
        "spread": np.sqrt(_ratio(found["within"], found["between"])),
        "final_spread": np.sqrt(_ratio(found["final_within"], found["final_between"])),
        "agreement": found["agreement"],
        "choice": _ratio(found["choice"], np.sqrt(found["final_between"])),
        "worth": _ratio(found["choice"] * along, found["strangers"] * each),
    }


NAMES = (
    *("correlation", "gain", "gain_spread", "rises"),
    *("spread", "final_spread", "agreement", "choice", "worth"),
)
"""Of the estimates; the last five are NaN without siblings."""


def _resampled(
    rng: np.random.Generator, one: Measured, draws: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n, families = len(one.rewards), len(one.sibling_rewards)
    first = rng.integers(0, max(families, 1), (draws, families))
    rest = rng.integers(min(families, n - 1), n, (draws, n - families))
    at = np.concatenate([first, rest], 1)
    r, near, last = (np.asarray(a, np.float64) for a in one[:3])
    return r[at], near[first], last[first]


def estimate(measured: Sequence[Measured], along: int, each: int) -> dict[str, Estimate]:
    """Estimates by name.

    Args:
      measured: of each prompt, of the same shapes.
      along: evaluations of one trajectory.
      each: evaluations of one step.
    """

    def averaged(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        over = {name: _mean(np.stack([part[name] for part in parts]), 0) for name in parts[0]}
        return _derived(over, along, each)

    own = [[np.asarray(a, np.float64)[None] for a in one[:3]] for one in measured]
    point = averaged([_of_prompt(*one) for one in own])
    rng, drawn = np.random.default_rng(0), []
    for _ in range(_DRAWS // _AT_ONCE):
        parts = [_of_prompt(*_resampled(rng, one, _AT_ONCE)) for one in measured]
        drawn.append(averaged(parts))
    estimates = {}
    for name in NAMES:
        if name not in point:
            nothing = np.full_like(point["gain"][0], np.nan)
            estimates[name] = Estimate(nothing, nothing, nothing)
            continue
        every = np.concatenate([part[name] for part in drawn])
        known = np.isfinite(every).mean(0) > LEVEL
        # Rarely a draw has no number: all of its values may be the same.
        low, high = (_percentile(every, end) for end in (0.5 - LEVEL / 2, 0.5 + LEVEL / 2))
        value = np.where(known, point[name][0], np.nan)
        estimates[name] = Estimate(value, *(np.where(known, end, np.nan) for end in (low, high)))
    return estimates


def _percentile(a: np.ndarray, q: float) -> np.ndarray:
    """Along the first axis, of what is finite."""
    columns = (column[np.isfinite(column)] for column in a.T)
    return np.asarray([np.quantile(column, q) if column.size else np.nan for column in columns])
