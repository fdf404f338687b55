"""Tutorials as notebooks, with what their cells print and draw: what the button ".ipynb" gives."""

import base64
import json
import re
from pathlib import Path
from typing import Any

_FRONT = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_CELL = re.compile(
    r"^```\{code-cell\} ipython3\n(?P<code>.*?)^```\n"
    r"(?:\n```text\n(?P<said>.*?)^```\n)?"
    r"(?:\n!\[[^\]]*\]\((?P<picture>\S+\.png)\)\n)?",
    re.MULTILINE | re.DOTALL,
)
# A notebook is alone: pages beside it are not there.
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)]+\)")


def as_notebook(text: str, folder: Path) -> dict[str, Any]:
    """The notebook of a page, whose pictures are in a folder."""
    cells: list[dict[str, Any]] = []

    def say(words: str) -> None:
        if words.strip():
            source = _LINK.sub(r"\1", words.strip())
            cells.append({"cell_type": "markdown", "metadata": {}, "source": source})

    text, end = _FRONT.sub("", text), 0
    for found in _CELL.finditer(text):
        say(text[end : found.start()])
        cell = {"cell_type": "code", "metadata": {}, "execution_count": None}
        code = found["code"].rstrip("\n")
        cells.append({**cell, "source": code, "outputs": _outputs(found, folder)})
        end = found.end()
    say(text[end:])
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"nbformat": 4, "nbformat_minor": 4, "metadata": {"kernelspec": kernel}, "cells": cells}


def _outputs(found: re.Match[str], folder: Path) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    if found["said"]:
        made.append({"output_type": "stream", "name": "stdout", "text": found["said"]})
    if found["picture"]:
        data = base64.b64encode((folder / found["picture"]).read_bytes()).decode()
        made.append({"output_type": "display_data", "metadata": {}, "data": {"image/png": data}})
    return made


def _write(app: Any, pagename: str, templatename: str, context: Any, doctree: Any) -> None:
    page = Path(app.srcdir, f"{pagename}.md")
    if not page.is_file() or not _CELL.search(text := page.read_text(encoding="utf-8")):
        return
    own = Path(app.outdir, "_sources", f"{pagename}.ipynb")
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text(json.dumps(as_notebook(text, page.parent), indent=1), encoding="utf-8")
    context["ipynb_source"] = f"{pagename}.ipynb"


def setup(app: Any) -> dict[str, bool]:
    """Before the theme makes its buttons."""
    app.connect("html-page-context", _write, priority=400)
    return {"parallel_read_safe": True}
