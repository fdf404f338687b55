"""JSON of others: of bounded size, so that what is read costs about what the file is long."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

LONGEST = 100_000_000
"""Most bytes, as of a safetensors header: https://github.com/huggingface/safetensors#format"""
_MOST_PARTS = 2**18
"""Most objects and lists; in memory each takes some hundred times the two bytes of its brackets."""


def parse(data: bytes, hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """A JSON text; ValueError for anything else, or too much of it."""
    if len(data) > LONGEST:
        raise ValueError(f"{len(data)} bytes of JSON, expected at most {LONGEST}")
    parts = data.count(b"{") + data.count(b"[")
    if parts > _MOST_PARTS:
        raise ValueError(f"JSON of {parts} objects and lists, expected at most {_MOST_PARTS}")
    try:
        return json.loads(data.decode(), object_pairs_hook=hook)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None


def read(path: Path) -> Any:
    """The JSON of a file; ValueError says what is wrong, without its name."""
    with path.open("rb") as file:
        # One byte more than there may be, whatever the file says of its length.
        return parse(file.read(LONGEST + 1))
