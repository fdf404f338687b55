"""Searches against the best-tuned Best-of-N of the same task, model and split.

At equal NFE a row is compared with Best-of-N's of the same budget. At equal seconds it is compared
with Best-of-N's of 100, 300 and 500 NFE: a row is eligible if it takes at most the seconds of that,
with a verifier that costs 0, 1 or 5 network evaluations, and of several the one that takes most is.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from _tasks_costs import VERIFIERS
from _tasks_rows import Row, Table

from flowsde.tuning.intervals import Interval, difference, odds_ratio

BUDGETS = (100, 300, 500, 1000)
"""Of Best-of-N, whose seconds others have."""
SLACK = 1.02
"""Seconds are equal to 2 %."""


def best_of_n(table: Table, task: str, model: str, nfe: int, split: str) -> Row | None:
    """The setting of Best-of-N that was best on the development captions, measured on a split.

    One that was measured on more of them comes before any that was not.
    """
    of = {"task": task, "model": model, "method": "bon", "nfe": nfe}
    tried = table.select(**of, split="dev")
    found = {row["setting"]: row for row in table.select(**of, split=split)}
    for row in sorted(tried, key=_measured, reverse=True):
        if row["setting"] in found or split == "test":
            return found.get(row["setting"])
    return None


def _measured(row: Row) -> tuple[int, float]:
    """The order of rows: of many settings on few captions the luckiest looks best."""
    return row["prompts"], row["success"]


def tuned(rows: Iterable[Row]) -> list[Row]:
    """Best-of-N as tuned: of each task, model and budget its row, on the captions that all have."""
    found = []
    for own in grouped((r for r in rows if r["method"] == "bon"), "task", "model", "nfe").values():
        row, captions = max(own, key=_measured), min(r["prompts"] for r in own)
        found.append(row | {"success": success_of(row, captions)})
    return found


def success_of(row: Row, captions: int) -> float:
    """Of the first captions of a row; of all, if it has no more."""
    wins = row["wins"][:captions]
    return sum(wins) / (len(wins) * row["seeds"])


def against(row: Row, base: Row) -> dict[str, Any]:
    """A row less Best-of-N's: paired difference in successes, ratio of odds, 95 % intervals."""
    seeds = min(row["seeds"], base["seeds"])
    if row["seeds"] != base["seeds"]:
        raise ValueError(f"{row['setting']} has {row['seeds']} seeds, expected {base['seeds']}")
    made: dict[str, Any] = {}
    for name, compare in (("difference", difference), ("odds_ratio", odds_ratio)):
        found: Interval = compare(row["wins"], base["wins"], seeds)
        for end, value in zip(("", "_low", "_high"), found, strict=True):
            made[name + end] = value if math.isfinite(value) else None
    return made


def _entry(row: Row, base: Row, verifier: int | None) -> dict[str, Any]:
    same = ("task", "model", "method", "setting", "split")
    return {
        **{name: row[name] for name in same},
        "equal": "nfe" if verifier is None else "seconds",
        "verifier": verifier,
        "bon_nfe": base["nfe"],
        "nfe": row["nfe"],
        "success": row["success"],
        "bon_setting": base["setting"],
        "bon_success": success_of(base, row["prompts"]),
        **against(row, base),
    }


def comparisons(table: Table, split: str) -> list[dict[str, Any]]:
    """Every setting against Best-of-N, at equal NFE and at equal seconds.

    Keys: task, model, method, setting, split, equal ("nfe" or "seconds"), verifier (of equal
    seconds, network evaluations), bon_nfe, nfe, success, bon_setting, bon_success; difference and
    odds_ratio with _low and _high, null where infinite.
    """
    made: list[dict[str, Any]] = []
    rows = [r for r in table.select(split=split) if r["method"] not in ("ode", "bon")]
    for (task, model, _), own in grouped(rows, "task", "model", "setting").items():
        for row in own:
            base = best_of_n(table, task, model, row["nfe"], split)
            if base is not None:
                made.append(_entry(row, base, None))
        for nfe in BUDGETS:
            base = best_of_n(table, task, model, nfe, split)
            for verifier in VERIFIERS if base is not None else ():
                assert base is not None
                seconds = f"seconds_{verifier}"
                within = [row for row in own if row[seconds] <= SLACK * base[seconds]]
                if within:
                    made.append(_entry(max(within, key=lambda r: r[seconds]), base, verifier))
    return made


def grouped(rows: Iterable[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by some of their values, in order of appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def as_text(compared: Sequence[dict[str, Any]]) -> str:
    """A line for each comparison."""

    def number(value: float | None) -> str:
        return "inf" if value is None else f"{value:.2f}"

    lines = []
    for one in compared:
        low, high = one["odds_ratio_low"], one["odds_ratio_high"]
        same = f"{one['equal']} {one['bon_nfe']}"
        same += "" if one["verifier"] is None else f" (verifier {one['verifier']})"
        lines.append(
            f"{one['task']:7} {one['model']:13} {same:24} {one['nfe']:5} "
            f"{one['success']:.3f} against {one['bon_success']:.3f}, odds x "
            f"{number(one['odds_ratio'])} ({number(low)} to {number(high)})  {one['setting']}"
        )
    return "\n".join(lines)
