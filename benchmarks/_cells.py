"""Numbers as tables say them."""

from typing import Any

from _tasks_choose import gap
from _tasks_rows import Row

from flowsde.tuning.intervals import Interval


def with_bounds(row: dict[str, Any], name: str, form: str = ".2f") -> str:
    """A value and its interval, `name`, `name_low` and `name_high` of a row."""
    low, high = (format(row[f"{name}_{end}"], form) for end in ("low", "high"))
    return f"{row[name]:{form}} ({low} – {high})"


def difference(found: Interval) -> str:
    """A difference and its interval, in bold where that is on one side of 0."""
    said = f"{found.value:+.2f} ({found.low:+.2f} – {found.high:+.2f})"
    return f"**{said}**" if found.low > 0.0 or found.high < 0.0 else said


def less(row: Row, other: Row | None) -> str:
    """A row's success less another's, whatever that one's NFE, paired; a dash without another."""
    found = None if other is None else gap([row], [other | {"nfe": row["nfe"]}])
    return "–" if found is None else difference(found)
