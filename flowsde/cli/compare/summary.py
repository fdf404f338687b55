"""From measurements to a table: means over prompts with 95 % intervals, and paired differences.

Prompts are the sample: a prompt's value is its mean over seeds, and intervals are bootstraps over
prompts. Where all prompts agree a bootstrap has no width; the interval of a share is then that of a
binomial one, as if each prompt had been seen once: exact at 0 and 1, else Wilson's. A difference of
two shares has the interval of `flowsde.tuning.intervals.difference`, which has a width always.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import binomtest, bootstrap

from flowsde._text import shown
from flowsde.cli.compare.measure import Measured
from flowsde.cli.compare.rows import Row, labels
from flowsde.tuning.intervals import difference, wilson

_RESAMPLES = 4000
HELDOUT = "heldout "
"""What keys of held-out rewards begin with."""


def interval(values: np.ndarray, share: bool = False) -> tuple[float, float, float]:
    """(mean, low, high) of values a prompt [P], at 95 %; NaN bounds for a single prompt."""
    values = np.asarray(values, np.float64)
    mean = float(values.mean())
    if np.ptp(values) == 0.0:
        if share and mean in (0.0, 1.0):
            exact = binomtest(round(mean * values.size), values.size).proportion_ci()
            return mean, float(exact.low), float(exact.high)
        if share:
            found = wilson(mean, values.size)
            return mean, found.low, found.high
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


def _named(name: str, found: tuple[float, float, float] | None) -> dict[str, Any]:
    """A value and its bounds by their keys."""
    values = (None,) * 3 if found is None else map(_number, found)
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def _with_interval(name: str, values: np.ndarray | None, share: bool = False) -> dict[str, Any]:
    return _named(name, None if values is None else interval(values, share))


def _heldout(measured: Measured) -> dict[str, Any]:
    """Means of what held-out rewards say; None where that is no number for some picture."""
    found: dict[str, Any] = {}
    for name, scores in measured.heldout.items():
        known = np.isfinite(scores).all()
        found |= _with_interval(f"{HELDOUT}{name}", scores.mean(1) if known else None)
    return found


def heldout_columns(table: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys of the held-out rewards of a table, without those of their intervals."""
    first = table[0] if table else {}
    return [key for key in first if key.startswith(HELDOUT) and f"{key}_low" in first]


def summarise(rows: Sequence[Row], measured: Mapping[Row, Measured]) -> list[dict[str, Any]]:
    """One dict a row, in their order.

    Keys: table, label, method, interpolant, kernel, grid, steps, nfe (the budget; of
    seconds the mean that they bought), budget_seconds (of those), charged,
    evaluations, backward_passes, verifier_calls, seconds (a prompt's means); given, accuracy (share
    of pictures that are what the task asks for), exact (share whose counts are), rss and diversity,
    each with _low and _high; given_right and given_wrong, the medians of the given
    reward over pictures that are right and that are not; "heldout NAME" of every held-out reward,
    with _low and _high; clean (share of objects that are clean
    shapes); gain, the difference in accuracy from the first row of the table with this budget,
    paired over prompts, with _low and _high, and against, the label of that row, None for itself;
    prompts, seeds.
    """
    names, table = labels(rows), []
    first: dict[Any, tuple[str, np.ndarray]] = {}
    for row, label in zip(rows, names, strict=True):
        m, s = measured[row], row.settings
        right, wins = m.success.mean(1), m.success.sum(1)
        reference = first.setdefault((row.table, row.budget), (label, wins))
        is_first = reference[1] is wins
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
                **_heldout(m),
                "given_right": _median(m.reward[m.success]),
                "given_wrong": _median(m.reward[~m.success]),
                "clean": float(m.objects.sum() / seen) if seen else 0.0,
                **_named(
                    "gain",
                    None if is_first else difference(wins, reference[1], m.success.shape[1]),
                ),
                "against": None if is_first else reference[0],
                "prompts": right.size,
                "seeds": m.success.shape[1],
            }
        )
    return table


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def describe(table: Sequence[dict[str, Any]], success: str = "exact captions") -> str:
    """The table in plain text, with this name for pictures that are right."""
    width = max(len(row["label"]) for row in table)
    held_out = [(key, shown(key, 40)) for key in heldout_columns(table)]
    lines = [
        f"{'':{width}} {'NFE':>5} {success:>19} {'given reward':>12} {'RSS':>6} "
        f"{'diversity':>9} {'s/prompt':>8}" + "".join(f"  {words}" for _, words in held_out)
    ]
    for row in table:
        spread = _shown(row["diversity"])
        accuracy = f"{row['accuracy']:.2f} [{row['accuracy_low']:.2f}, {row['accuracy_high']:.2f}]"
        lines.append(
            f"{row['label']:{width}} {row['nfe']:5} {accuracy:>19} {row['given']:12.3f} "
            f"{row['rss']:6.2f} {spread:>9} {row['seconds']:8.2f}"
            + "".join(f"  {_shown(row[key]):>{len(words)}}" for key, words in held_out)
        )
    return "\n".join(lines)
