"""A picture of all pictures: numbered as in the list, with their rewards."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from flowsde._files import replacing

_SIDE, _TEXT, _GAP = 96, 14, 6
_MOST = 400


def write_sheet(path: Path, pictures: Sequence[Path], labels: Sequence[str]) -> None:
    """A sheet of the first picture files, about square; labels are ASCII."""
    pictures, labels = pictures[:_MOST], labels[:_MOST]
    columns = max(1, round(len(pictures) ** 0.5))
    rows = -(-len(pictures) // columns)
    wide, high = _SIDE + _GAP, _SIDE + _TEXT + _GAP
    sheet = Image.new("RGB", (columns * wide + _GAP, rows * high + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (file, label) in enumerate(zip(pictures, labels, strict=True)):
        row, column = divmod(i, columns)
        left, top = column * wide + _GAP, row * high + _GAP
        with Image.open(file) as picture:
            small = picture.convert("RGB")
            small.thumbnail((_SIDE, _SIDE))
        sheet.paste(small, (left, top))
        draw.text((left, top + _SIDE + 1), label, fill="black")
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")
