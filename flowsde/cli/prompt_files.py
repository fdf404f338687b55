"""Files of prompts: a line each, or the entry "prompt" of CSV, TSV or JSON lines.

Rows of the latter may have an id of the user's own, in a column or an entry that --id-column names.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from flowsde._text import names, shown

_COLUMN = "prompt"
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")
_IDS = "--id-column"
_REFUSED = (".json", ".parquet", ".xlsx", ".xls", ".gz", ".zip")


class _Row(NamedTuple):
    """Of a table; the id is None without a column of ids, and empty where it is missing."""

    line: int
    prompt: str
    id: str | None = None


def read(path: Path) -> list[tuple[int, str]]:
    """(line, prompt) of each prompt; what is empty is skipped.

    By the end of the file's name: `.csv` and `.tsv` have a column "prompt", named by the first
    line, `.jsonl` and `.ndjson` a text or an object with "prompt" a line. All others have a prompt
    a line, as it stands, quotes included; lines that begin with # are comments.

    Raises:
      ValueError: naming the file and the line.
    """
    return [(row.line, row.prompt) for row in _rows(path, None)]


def ids(path: Path, column: str) -> list[str]:
    """The id of each prompt of `read`, in their order.

    Args:
      path: of a table, or of JSON lines, in which an id may also be a whole number.
      column: name of the column, in any case, or of the objects' entry.

    Raises:
      ValueError: naming the file and the lines without an id, or with one that is there twice.
    """
    if path.suffix.lower() not in (*_DELIMITERS, *_JSON_LINES):
        raise ValueError(
            f"{_IDS} wants a file with columns, {', '.join((*_DELIMITERS, *_JSON_LINES))}, got "
            f"{path}"
        )
    rows, where = _rows(path, column), f"{_IDS}: {path}"
    if missing := [row.line for row in rows if not row.id]:
        raise ValueError(
            f"{where}: expected an id '{shown(column)}' of every prompt, got none in line "
            f"{names(missing)}"
        )
    first: dict[str, int] = {}
    for line, _, id in rows:
        assert id is not None
        if not id.isprintable():
            raise ValueError(f"{where}: line {line}: an id must be printable, got '{shown(id)}'")
        if first.setdefault(id, line) != line:
            raise ValueError(
                f"{where}: line {line}: id '{shown(id)}' is given twice, first in line {first[id]}"
            )
    return [*first]


def _rows(path: Path, column: str | None) -> list[_Row]:
    """Of all prompts that are not empty, with the ids of a column."""
    kind = path.suffix.lower()
    if kind in _REFUSED:
        raise ValueError(
            f"--prompts-file: {path} is neither text nor {', '.join(_JSON_LINES)}, .csv or .tsv "
            f"with '{_COLUMN}'"
        )
    text = _text(path)
    try:
        if kind in _DELIMITERS:
            found = list(_columns(text, _DELIMITERS[kind], column))
        elif kind in _JSON_LINES:
            found = list(_objects(text, column))
        else:
            found = [_Row(i, line.strip()) for i, line in enumerate(text.split("\n"), 1)]
            found = [row for row in found if not row.prompt.startswith("#")]
            _check_no_table(found)
    except ValueError as error:
        raise ValueError(f"--prompts-file: {path}: {error}") from None
    return [row._replace(prompt=row.prompt.strip()) for row in found if row.prompt.strip()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"--prompts-file: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"--prompts-file: {path} is not UTF-8 text") from None


def _check_no_table(lines: list[_Row]) -> None:
    """ValueError if the first line is the head of a table: each row would be a prompt."""
    number, first, _ = next((row for row in lines if row.prompt), _Row(0, ""))
    for suffix, delimiter in _DELIMITERS.items():
        heads = [head.strip().strip('"').lower() for head in first.split(delimiter)]
        # Of single words: a prompt may have commas.
        if len(heads) > 1 and _COLUMN in heads and not any(" " in head for head in heads):
            raise ValueError(
                f"line {number} names columns, {shown(first)}, and the file has a prompt a line by "
                f"its name: expected a name that ends in {suffix}"
            )


def _columns(text: str, delimiter: str, column: str | None) -> Iterator[_Row]:
    """Of the column that the first line calls "prompt"; lines are those at which a row ends."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        heads = [head.strip().lower() for head in next(rows, [])]
        at = _place(heads, _COLUMN)
        own = None if column is None else _place(heads, column.strip().lower())
        for row in rows:
            if row and len(row) != len(heads):
                raise ValueError(
                    f"line {rows.line_num} has {len(row)} columns, expected {len(heads)}: a text "
                    "with a separator in it wants quotes"
                )
            row = row or [""] * len(heads)
            yield _Row(rows.line_num, row[at], None if own is None else row[own].strip())
    except csv.Error as error:
        raise ValueError(f"line {rows.line_num}: {error}") from None


def _place(heads: list[str], name: str) -> int:
    """The number of the column of this name."""
    if heads.count(name) != 1:
        raise ValueError(
            f"the first line names the columns, expected one '{shown(name)}' among them, "
            f"got {names(heads) or 'none'}"
        )
    return heads.index(name)


def _objects(text: str, column: str | None) -> Iterator[_Row]:
    """Of a text or an object a line."""
    for i, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_once)
        except _Twice as error:
            raise ValueError(f"line {i} has '{shown(str(error))}' twice in an object") from None
        except (ValueError, RecursionError):
            raise ValueError(f"line {i} is not JSON, got {shown(line)}") from None
        prompt = value.get(_COLUMN) if isinstance(value, dict) else value
        if not isinstance(prompt, str):
            raise ValueError(
                f"line {i}: expected a text, or an object with '{_COLUMN}', got {shown(line)}"
            )
        yield _Row(i, prompt, None if column is None else _id(value, column))


class _Twice(Exception):
    """A name that an object has twice, of which Python would take the last value."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise _Twice(name)
        made[name] = value
    return made


def _id(value: object, column: str) -> str:
    """Of an object, as text; empty without one."""
    own = value.get(column) if isinstance(value, dict) else None
    return str(own).strip() if isinstance(own, str | int) and not isinstance(own, bool) else ""
