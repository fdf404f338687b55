"""What goes on to be measured, and what is chosen: by intervals on the development captions.

- `race`: within a method, a setting goes on unless it is clearly worse than the method's best; of
  a method that is clearly worse than another, only the best. Best-of-N is tuned to every task.
- `contenders`: of all methods, those that are not clearly worse than the best of all, and the best
  of each method, so that every method is in the table.
- `choose`: never clearly worse than Best-of-N on any task, and of those the largest least ratio of
  odds on the tasks where search is needed.

Clearly worse: the 95 % interval of the difference in successes, paired over captions and averaged
over what both have been measured on, lies below 0.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from _tasks_compare import grouped
from _tasks_rows import Row

from flowsde.tuning.intervals import Interval, pooled

HARD = 0.05
"""Success of a plain sample below which search is needed."""


def shares(rows: Sequence[Row]) -> dict[Any, np.ndarray]:
    """Successes of a setting's rows, by task, model and NFE: shares of captions [P]."""
    return {
        (row["task"], row["model"], row["nfe"]): np.asarray(row["wins"]) / row["seeds"]
        for row in rows
    }


def gap(first: Sequence[Row], second: Sequence[Row]) -> Interval | None:
    """Difference of two settings; None if they have nothing in common.

    A task's budgets share captions, and are averaged first.
    """
    one, other = shares(first), shares(second)
    strata: dict[Any, list[np.ndarray]] = {}
    for key in one.keys() & other.keys():
        n = min(len(one[key]), len(other[key]))
        strata.setdefault((*key[:2], n), []).append(one[key][:n] - other[key][:n])
    return pooled([np.mean(v, axis=0) for v in strata.values()]) if strata else None


def _mean(rows: Sequence[Row]) -> float:
    """Success, each task, model and NFE alike."""
    return float(np.mean([row["success"] for row in rows]))


def _most_measured(settings: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Settings that have been measured on as much as any; others cannot be called best."""
    most = max(len(rows) for rows in settings.values())
    return {name: rows for name, rows in settings.items() if len(rows) == most}


def best(settings: dict[str, list[Row]]) -> str:
    """The name of the setting with the largest success."""
    full = _most_measured(settings)
    return max(full, key=lambda name: _mean(full[name]))


def clearly_worse(rows: Sequence[Row], than: Sequence[Row]) -> bool:
    """Whether the interval of the difference lies below 0."""
    found = gap(rows, than)
    return found is not None and found.high < 0.0


def race(rows: Sequence[Row]) -> set[str]:
    """Names of the settings that go on, of rows of one model."""
    every = {name: r for (name,), r in grouped(rows, "setting").items()}
    leader, going = every[best(every)], set()
    for (method,), own in grouped(rows, "method").items():
        settings = {name: r for (name,), r in grouped(own, "setting").items()}
        first = best(settings)
        if method != "bon" and clearly_worse(settings[first], leader):
            going.add(first)
        else:
            going |= {n for n, r in settings.items() if not clearly_worse(r, settings[first])}
    return going


def contenders(rows: Sequence[Row], most: int) -> list[str]:
    """Names of the settings that go on, best first, at most so many beside each method's best."""
    settings = {name: r for (name,), r in grouped(rows, "setting").items()}
    full = _most_measured(settings)
    order = sorted(full, key=lambda name: -_mean(full[name]))
    going = [name for name in order if not clearly_worse(full[name], full[order[0]])][:most]
    for own in grouped(rows, "method").values():
        settings = {name: r for (name,), r in grouped(own, "setting").items()}
        going.append(best(settings))
    return list(dict.fromkeys(going))


def worth(compared: Sequence[dict[str, Any]], hard: Sequence[str]) -> float:
    """The least ratio of odds on hard tasks; -inf if clearly worse than Best-of-N on any task.

    Without a hard task all of them are.
    """
    if any(one["difference_high"] < 0.0 for one in compared):
        return -math.inf
    counted = [one for one in compared if one["task"] in hard] or compared
    return min(math.inf if one["odds_ratio"] is None else one["odds_ratio"] for one in counted)


def choose(compared: Sequence[dict[str, Any]], hard: Sequence[str]) -> tuple[str, float] | None:
    """The setting to recommend and its least ratio of odds; None if none does.

    Args:
      compared: comparisons of one model, with the tasks and budgets that it is to be good at; a
        setting that lacks some of them is no candidate.
      hard: tasks on which search is needed.
    """

    def places(own: Sequence[dict[str, Any]]) -> set[Any]:
        return {(c["task"], c["equal"], c["verifier"], c["bon_nfe"]) for c in own}

    every = places(compared)
    worths = {
        name: worth(own, hard)
        for (name,), own in grouped(compared, "setting").items()
        if places(own) == every
    }
    name = max(worths, key=lambda name: worths[name], default=None)
    if name is None or worths[name] < 1.0:
        return None
    return name, worths[name]


def hard_tasks(rows: Sequence[Row]) -> list[str]:
    """Tasks with rows of plain samples that succeed less often than `HARD`."""
    return [row["task"] for row in rows if row["method"] == "ode" and row["success"] < HARD]
