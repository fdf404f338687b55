"""Contact sheet of a batch, and of the answers to a prompt: pictures with their rewards.

Below each its number, reward, weight in a weighted sample and prompt; the frame is the verdict.
"""

import math
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from flowsde._files import replacing
from flowsde._schema import maybe, number
from flowsde._text import shown
from flowsde.cli.results import IMAGE
from flowsde.shapes.verdict import is_right

_SIDE, _FRAME, _GAP = 136, 3, 10
_LINE, _LINES = 14, 4
_MOST = 400
_FRAMES = {True: "#4d9a4d", False: "#d6604d", None: "#cccccc"}
"""As on a comparison's page: green for an exact match, red for none, grey if not judged."""


class Cell(NamedTuple):
    """One picture of the sheet.

    Attributes:
      picture: its file.
      label: a line below it.
      prompt: written below it, in three lines at most, with `note` in two.
      exact: the held-out verdict; None without one.
      note: a second line, if there is something to say.
    """

    picture: Path
    label: str
    prompt: str
    exact: bool | None
    note: str = ""


def cells_of(i: int | None, values: dict[str, Any], folder: Path) -> list[Cell]:
    """The pictures of a prompt, the best first.

    Args:
      i: its place in the list, from 0; of one prompt alone None, whose answers are numbered.
      values: of its result.json.
      folder: of its pictures.
    """
    kept = values.get("kept", [values | {"image": IMAGE}])
    return [
        _cell(k if i is None else i, values["prompt"], one, folder / one["image"])
        for k, one in enumerate(kept)
    ]


def _cell(i: int, prompt: str, one: dict[str, Any], picture: Path) -> Cell:
    reward, weight = (maybe(number)(one.get(n), n) for n in ("reward", "log_weight"))
    exact = is_right(one["heldout"]) if "heldout" in one else None
    word = "right" if "task" in one.get("heldout", {}) else "exact"
    verdict = "" if exact is None else f" {word}" if exact else f" not {word}"
    label = f"{i + 1}" if reward is None else f"{i + 1}: {reward:.3g}{verdict}"
    note = "" if weight is None else f"weight {math.exp(weight):.3g}"
    return Cell(picture, label, prompt, exact, note)


def _below(cell: Cell, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[str]:
    """Lines that fit below a picture; the prompt is wrapped."""
    first, prompt = [line for line in (cell.label, cell.note) if line], cell.prompt
    letters = max(4, int(_SIDE * len(prompt) / max(1.0, font.getlength(prompt))))
    lines = textwrap.wrap(prompt, letters, max_lines=_LINES - len(first), placeholder=" …")
    return [_cut(line, font) for line in (*first, *lines)]


def _cut(line: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    while font.getlength(line) > _SIDE:
        line = line[:-2] + "…"
    return line


def write_sheet(path: Path, cells: Sequence[Cell]) -> None:
    """Write a sheet of the first 400 pictures, about square."""
    cells = cells[:_MOST]
    columns = max(1, round(len(cells) ** 0.5))
    rows = -(-len(cells) // columns)
    wide, high = _SIDE + 2 * _FRAME + _GAP, _SIDE + 2 * _FRAME + _LINES * _LINE + _GAP
    sheet = Image.new("RGB", (columns * wide + _GAP, rows * high + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, cell in enumerate(cells):
        row, column = divmod(i, columns)
        left, top = column * wide + _GAP, row * high + _GAP
        with Image.open(cell.picture) as picture:
            small = picture.convert("RGB")
            small.thumbnail((_SIDE, _SIDE))
        frame = (left, top, left + small.width + 2 * _FRAME, top + small.height + 2 * _FRAME)
        draw.rectangle(frame, fill=_FRAMES[cell.exact])
        sheet.paste(small, (left + _FRAME, top + _FRAME))
        for k, line in enumerate(_below(cell, font)):
            below = top + _SIDE + 2 * _FRAME + 1 + k * _LINE
            draw.text((left, below), line, fill="black" if k == 0 else "#555555", font=font)
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


def try_sheet(who: str, path: Path, cells: Sequence[Cell]) -> None:
    """`write_sheet`, or say on stderr why there is none; `who` is the command that says so."""
    try:
        write_sheet(path, cells)
    except Exception as error:  # Pillow's are of many kinds.
        said = shown(f"{type(error).__name__}: {error}", 500)
        print(f"{who}: {path.name} could not be drawn: {said}", file=sys.stderr)
        path.unlink(missing_ok=True)
