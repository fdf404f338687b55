"""Files of prompts: a line each, or the entry "prompt" of CSV, TSV or JSON lines."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from flowsde._text import names, shown

_COLUMN = "prompt"
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")
_REFUSED = (".json", ".parquet", ".xlsx", ".xls", ".gz", ".zip")


def read(path: Path) -> list[tuple[int, str]]:
    """(line, prompt) of each prompt; what is empty is skipped.

    By the end of the file's name: `.csv` and `.tsv` have a column "prompt", named by the first
    line, `.jsonl` and `.ndjson` a text or an object with "prompt" a line. All others have a prompt
    a line, as it stands, quotes included; lines that begin with # are comments.

    Raises:
      ValueError: naming the file and the line.
    """
    kind = path.suffix.lower()
    if kind in _REFUSED:
        raise ValueError(
            f"--prompts-file: {path} is neither text nor {', '.join(_JSON_LINES)}, .csv or .tsv "
            f"with '{_COLUMN}'"
        )
    text = _text(path)
    try:
        if kind in _DELIMITERS:
            found = list(_columns(text, _DELIMITERS[kind]))
        elif kind in _JSON_LINES:
            found = list(_objects(text))
        else:
            found = [(i, line.strip()) for i, line in enumerate(text.split("\n"), 1)]
            found = [(i, line) for i, line in found if not line.startswith("#")]
            _check_no_table(found)
    except ValueError as error:
        raise ValueError(f"--prompts-file: {path}: {error}") from None
    return [(i, prompt.strip()) for i, prompt in found if prompt.strip()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"--prompts-file: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"--prompts-file: {path} is not UTF-8 text") from None


def _check_no_table(lines: list[tuple[int, str]]) -> None:
    """ValueError if the first line is the head of a table: each row would be a prompt."""
    number, first = next(((i, line) for i, line in lines if line), (0, ""))
    for suffix, delimiter in _DELIMITERS.items():
        heads = [head.strip().strip('"').lower() for head in first.split(delimiter)]
        # Of single words: a prompt may have commas.
        if len(heads) > 1 and _COLUMN in heads and not any(" " in head for head in heads):
            raise ValueError(
                f"line {number} names columns, {shown(first)}, and the file has a prompt a line by "
                f"its name: expected a name that ends in {suffix}"
            )


def _columns(text: str, delimiter: str) -> Iterator[tuple[int, str]]:
    """Of the column that the first line calls "prompt"; lines are those at which a row ends."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        heads = [head.strip().lower() for head in next(rows, [])]
        if heads.count(_COLUMN) != 1:
            raise ValueError(
                f"the first line names the columns, expected one '{_COLUMN}' among them, "
                f"got {names(heads) or 'none'}"
            )
        at = heads.index(_COLUMN)
        for row in rows:
            if row and len(row) != len(heads):
                raise ValueError(
                    f"line {rows.line_num} has {len(row)} columns, expected {len(heads)}: a text "
                    "with a separator in it wants quotes"
                )
            yield rows.line_num, row[at] if row else ""
    except csv.Error as error:
        raise ValueError(f"line {rows.line_num}: {error}") from None


def _objects(text: str) -> Iterator[tuple[int, str]]:
    """Of a text or an object a line."""
    for i, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError(f"line {i} is not JSON, got {shown(line)}") from None
        prompt = value.get(_COLUMN) if isinstance(value, dict) else value
        if not isinstance(prompt, str):
            raise ValueError(
                f"line {i}: expected a text, or an object with '{_COLUMN}', got {shown(line)}"
            )
        yield i, prompt
