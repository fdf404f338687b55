"""What the rows of `verifiers.py` are compared with, and their table."""

import math
from typing import Any

from _cells import with_bounds

from flowsde.tuning.intervals import difference, odds_ratio

WAYS = ("direct", "cascade", "remote", "cascade, remote")
_METHODS = {"smc": "SMC", "bon": "Best-of-N"}


def compare(rows: list[dict[str, Any]]) -> None:
    """Add to test rows what they differ by from asking directly, paired over captions."""
    test = {(r["task"], r["method"], r["way"]): r for r in rows if r["split"] == "test"}
    for (task, method, way), row in test.items():
        bases = {"": (method, "direct"), "bon_": ("bon", "direct")}
        for prefix, base in bases.items():
            other = test.get((task, *base))
            if other is None or base == (method, way):
                continue
            for name, of in (("difference", difference), ("odds_ratio", odds_ratio)):
                found = of(row["wins"], other["wins"], row["seeds"])
                for end, value in zip(("", "_low", "_high"), found, strict=True):
                    row[prefix + name + end] = value if math.isfinite(value) else None


def _ratio(row: dict[str, Any], name: str) -> str:
    if name not in row:
        return "–"
    low, value, high = (row[name + end] for end in ("_low", "", "_high"))
    bounds = ("∞" if bound is None else f"{bound:.1f}" for bound in (low, high))
    return f"× {value:.1f} ({' – '.join(bounds)})"


def _of_test(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["split"] == "test"]


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    """Tasks from the hardest on; SMC first, and ways from the plainest on."""
    return row["task"] != "sides", row["method"] != "smc", WAYS.index(row["way"])


def table(found: dict[str, Any]) -> str:
    """All ways on the test captions."""
    lines = [
        "| task | method | the dear reward is asked | NFE | dear calls | success | odds, by those "
        "of direct | by those of Best-of-N, direct |",
        "|---" * 8 + "|",
    ]
    for row in sorted(_of_test(found["rows"]), key=_place):
        cells = [
            row["task"],
            f"{_METHODS[row['method']]}, {row['steps']} steps",
            row["way"],
            f"{row['charged']:.0f}",
            f"{row['dear_calls']:.0f}",
            with_bounds(row, "success"),
            _ratio(row, "odds_ratio"),
            _ratio(row, "bon_odds_ratio"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"A search costs {found['price']:.0f} evaluations, a dear call {found['cost']:.0f} and a "
        f"cheap one {found['cheap']:.2f}. {_clocked(found)}",
    ]
    return "\n".join(lines)


def _clocked(found: dict[str, Any]) -> str:
    """What overlapping takes, once that has been measured."""
    if "ratio" not in found:
        return "What overlapping saves has not been measured."
    ratio, clocked = found["ratio"], found["clocked"]
    return (
        f"By the clock, overlapping takes {ratio['smc remote']:.2f} of the seconds of SMC and "
        f"{ratio['bon remote']:.2f} of those of Best-of-N, with a cascade "
        f"{ratio['smc cascade, remote']:.2f} of those of SMC with it; a cascade that overlaps "
        f"nothing takes {clocked['cascade']:.2f} of the seconds of SMC without, where "
        f"{clocked['counted']:.2f} are counted."
    )
