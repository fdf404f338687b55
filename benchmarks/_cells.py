"""Numbers as tables say them."""

from typing import Any


def with_bounds(row: dict[str, Any], name: str, form: str = ".2f") -> str:
    """A value and its interval, `name`, `name_low` and `name_high` of a row."""
    low, high = (format(row[f"{name}_{end}"], form) for end in ("low", "high"))
    return f"{row[name]:{form}} ({low} – {high})"
