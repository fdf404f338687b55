"""From measurements to a table: means over prompts with 95 % intervals, and paired differences.

Prompts are the sample: a prompt's value is its mean over seeds, and intervals are bootstraps over
prompts. Where all prompts agree a bootstrap has no width; the interval of a share is then the exact
binomial one, as if each prompt had been seen once.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import binomtest, bootstrap

from flowsde.cli.compare.measure import Measured
from flowsde.cli.compare.rows import Row, labels

_RESAMPLES = 4000


def interval(values: np.ndarray, share: bool = False) -> tuple[float, float, float]:
    """(mean, low, high) of values a prompt [P], at 95 %; NaN bounds for a single prompt."""
    values = np.asarray(values, np.float64)
    mean = float(values.mean())
    if np.ptp(values) == 0.0:
        if share and mean in (0.0, 1.0):
            exact = binomtest(round(mean * values.size), values.size).proportion_ci()
            return mean, float(exact.low), float(exact.high)
        return mean, *((mean, mean) if values.size > 1 else (np.nan, np.nan))
    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return mean, float(found.low), float(found.high)


def diversity(images: np.ndarray) -> np.ndarray | None:
    """Mean root-mean-square pixel distance between a prompt's results, [P]; None for one seed.

    Args:
      images: uint8 [P, M, H, W, 3]; distances are of colours in [0, 1].
    """
    pairs = list(combinations(range(images.shape[1]), 2))
    if not pairs:
        return None
    colours = images.astype(np.float64) / 255.0
    apart = [
        np.sqrt(np.mean(np.square(colours[:, i] - colours[:, j]), axis=(1, 2, 3))) for i, j in pairs
    ]
    return np.mean(apart, axis=0)


def _number(value: float) -> float | None:
    """For JSON, which has no NaN or infinity."""
    return float(value) if np.isfinite(value) else None


def _median(values: np.ndarray) -> float | None:
    return _number(np.median(values)) if values.size else None


def _with_interval(name: str, values: np.ndarray | None, share: bool = False) -> dict[str, Any]:
    keys = (name, f"{name}_low", f"{name}_high")
    if values is None:
        return dict.fromkeys(keys)
    return dict(zip(keys, map(_number, interval(values, share)), strict=True))


def summarise(rows: Sequence[Row], measured: Mapping[Row, Measured]) -> list[dict[str, Any]]:
    """One dict a row, in their order.

    Keys: table, label, method, interpolant, kernel, grid, steps, nfe (the budget; of
    seconds the mean that they bought), budget_seconds (of those), charged,
    evaluations, backward_passes, verifier_calls, seconds (a prompt's means); given, accuracy (share
    of pictures that are what the task asks for), exact (share whose counts are), rss and diversity,
    each with _low and _high; given_right and given_wrong, the medians of the given
    reward over pictures that are right and that are not; clean (share of objects that are clean
    shapes); gain, the difference in accuracy from the first row of the table with this budget,
    paired over prompts, with _low and _high, and against, the label of that row, None for itself;
    prompts, seeds.
    """
    names, table = labels(rows), []
    first: dict[Any, tuple[str, np.ndarray]] = {}
    for row, label in zip(rows, names, strict=True):
        m, s = measured[row], row.settings
        right = m.success.mean(1)
        reference = first.setdefault((row.table, row.budget), (label, right))
        is_first = reference[1] is right
        seen = m.objects.sum() + m.unclear.sum()
        table.append(
            {
                "table": row.table,
                "label": label,
                "method": row.method,
                "interpolant": s.interpolant,
                "kernel": s.kernel,
                "grid": s.grid,
                "steps": s.steps,
                "nfe": s.nfe if row.seconds is None else round(m.nfe.mean()),
                **({} if row.seconds is None else {"budget_seconds": row.seconds}),
                "charged": float(m.nfe.mean()),
                "evaluations": float(m.evaluations.mean()),
                "backward_passes": float(m.backward_passes.mean()),
                "verifier_calls": float(m.verifier_calls.mean()),
                "seconds": m.seconds,
                **_with_interval("given", m.reward.mean(1)),
                **_with_interval("accuracy", right, share=True),
                **_with_interval("exact", m.exact.mean(1), share=True),
                **_with_interval("rss", m.rss.mean(1)),
                **_with_interval("diversity", diversity(m.images)),
                "given_right": _median(m.reward[m.success]),
                "given_wrong": _median(m.reward[~m.success]),
                "clean": float(m.objects.sum() / seen) if seen else 0.0,
                **_with_interval("gain", None if is_first else right - reference[1]),
                "against": None if is_first else reference[0],
                "prompts": right.size,
                "seeds": m.success.shape[1],
            }
        )
    return table
