"""Intervals and ratios do not break between lines: 8.8 (5.2 – 15.4) in a narrow cell of a table."""

import re
from typing import Any

_DASH = re.compile(r"(?<=\d) – (?=[+\-−]?\.?\d)")
_TIMES = re.compile(r"× (?=\d)")


def unbroken(text: str) -> str:
    """The text of a page, with no-break spaces in them."""
    # A line may end with a dash before such a space, but for a word joiner.
    return _TIMES.sub("×\u00a0", _DASH.sub("\u00a0–\u2060\u00a0", text))


def _read(app: Any, docname: str, source: list[str]) -> None:
    source[0] = unbroken(source[0])


def setup(app: Any) -> dict[str, bool]:
    """Of pages, not of what they include."""
    app.connect("source-read", _read)
    return {"parallel_read_safe": True}
