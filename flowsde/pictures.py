"""Images as pixels and as PNG, for notebooks and files."""

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flowsde._files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pixels(image: np.ndarray) -> np.ndarray:
    """[-1, 1] to uint8."""
    return np.clip(np.round(127.5 * (image + 1.0)), 0, 255).astype(np.uint8)


def png(images: np.ndarray, least: int = 256) -> bytes:
    """RGB images [n, h, w, 3] side by side, in rows about as many as columns.

    Args:
      images: in [-1, 1], or uint8.
      least: pixels a side at least, by enlarging without smoothing.
    """
    from PIL import Image

    if images.dtype != np.uint8:
        images = pixels(np.clip(np.nan_to_num(images.astype(np.float32)), -1.0, 1.0))
    n, height, width, _ = images.shape
    times = max(1, math.ceil(least / min(height, width)))
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    # Places that are left over are white.
    white = np.full((rows * columns - n, *images.shape[1:]), 255, np.uint8)
    sheet = np.concatenate([images, white]).repeat(times, 1).repeat(times, 2)
    sheet = sheet.reshape(rows, columns, *sheet.shape[1:]).swapaxes(1, 2)
    file = io.BytesIO()
    Image.fromarray(sheet.reshape(rows * height * times, columns * width * times, 3)).save(
        file, "png"
    )
    return file.getvalue()


def save_figure(path: Path, figure: "Figure") -> None:
    """A figure as PNG."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def figure_png(figure: "Figure") -> bytes:
    """A figure as PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
