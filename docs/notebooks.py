"""Tutorials as notebooks, with what their cells print and draw: what the button ".ipynb" gives."""

import base64
import json
import re
from pathlib import Path
from typing import Any

_FRONT = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
CELL = re.compile(
    r"^```\{code-cell\} ipython3\n(?P<code>.*?)^```\n(?:\n```text\n(?P<said>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)
"""A cell of a page, and what it prints."""
_PICTURE = re.compile(r"\n!\[[^\]]*\]\((?P<file>\S+\.png)\)\n")
# A notebook is alone: pages and pictures beside it are not there.
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)]+\)")
_IMAGE = re.compile(r"(!\[[^\]]*\])\((\S+/(\S+\.png))\)")


def as_notebook(text: str, folder: Path) -> dict[str, Any]:
    """The notebook of a page, whose pictures are in a folder."""
    cells: list[dict[str, Any]] = []

    def say(words: str) -> None:
        if words.strip():
            source = _LINK.sub(r"\1", words.strip())
            attached = {name: _png(folder / path) for _, path, name in _IMAGE.findall(source)}
            source = _IMAGE.sub(r"\1(attachment:\3)", source)
            cell = {"cell_type": "markdown", "metadata": {}, "source": source}
            cells.append(cell | ({"attachments": attached} if attached else {}))

    text, end = _FRONT.sub("", text), 0
    for found in CELL.finditer(text):
        say(text[end : found.start()])
        drawn = _PICTURE.match(text, found.end())
        picture = None if drawn is None else folder / drawn["file"]
        cell = {"cell_type": "code", "metadata": {}, "execution_count": None}
        code = found["code"].rstrip("\n")
        cells.append({**cell, "source": code, "outputs": _outputs(found["said"], picture)})
        end = (drawn or found).end()
    say(text[end:])
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"nbformat": 4, "nbformat_minor": 4, "metadata": {"kernelspec": kernel}, "cells": cells}


def _outputs(said: str | None, picture: Path | None) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    if said:
        made.append({"output_type": "stream", "name": "stdout", "text": said})
    if picture:
        made.append({"output_type": "display_data", "metadata": {}, "data": _png(picture)})
    return made


def _png(path: Path) -> dict[str, str]:
    return {"image/png": base64.b64encode(path.read_bytes()).decode()}


def _write(app: Any, pagename: str, templatename: str, context: Any, doctree: Any) -> None:
    page = Path(app.srcdir, f"{pagename}.md")
    if not page.is_file() or not CELL.search(text := page.read_text(encoding="utf-8")):
        return
    own = Path(app.outdir, "_sources", f"{pagename}.ipynb")
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text(json.dumps(as_notebook(text, page.parent), indent=1), encoding="utf-8")
    context["ipynb_source"] = f"{pagename}.ipynb"


def setup(app: Any) -> dict[str, bool]:
    """Before the theme makes its buttons."""
    app.connect("html-page-context", _write, priority=400)
    return {"parallel_read_safe": True}
