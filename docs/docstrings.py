"""Docstrings are plain text for `help`; what Sphinx reads of them is reStructuredText."""

import ast
import re
from itertools import groupby
from typing import Any

_SECTION = re.compile(r"(Args|Attributes|Example|Raises|References|Returns|Yields):$")
# Literals and emphasis, which stay; and characters that would begin a markup of their own.
_MARKUP = re.compile(r"``.+?``|`[^`]+`|(?<![\w*])\*[A-Za-z][^*\[\]]*\*(?![\w*])|([*|\\])")


def as_rst(lines: list[str]) -> list[str]:
    """The lines of a docstring, with indented formulas and code in literal blocks.

    They are blocks that follow an empty line, outside Google's sections.
    """
    made: list[str] = []
    section = ""
    for empty, group in groupby(lines, lambda line: not line.strip()):
        block = list(group)
        heads = [line for line in block if line[:1].strip()]
        if not empty and not section and not heads and made:
            made += [f".. code-block:: {_language(block)}", "", *block]
            continue
        if heads:
            named = _SECTION.match(heads[-1])
            section = named[1] if named else ""
        # An example is code, which stays as it is.
        made += block if section == "Example" else [_MARKUP.sub(_escaped, line) for line in block]
    return made


def _escaped(found: re.Match[str]) -> str:
    return f"\\{found[1]}" if found[1] else found[0]


def _language(block: list[str]) -> str:
    margin = min(len(line) - len(line.lstrip()) for line in block)
    try:
        ast.parse("\n".join(line[margin:] for line in block))
    except SyntaxError:
        return "text"
    return "python"


def _process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = as_rst(lines)
    if what in ("attribute", "data", "property"):
        # An empty comment: before a colon of the first line Napoleon expects a type.
        lines[:0] = ["..", ""]


def _skip(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Whether to leave out a member: fields of a named tuple are among its attributes."""
    return True if str(obj.__doc__).startswith("Alias for field number") else None


def setup(app: Any) -> dict[str, bool]:
    """Before Napoleon, which turns sections into fields."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", _process, priority=100)
    app.connect("autodoc-skip-member", _skip)
    return {"parallel_read_safe": True}
