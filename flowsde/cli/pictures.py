"""Write the pictures of a run."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flowsde._files import replacing
from flowsde._text import shown
from flowsde.pictures import pixels, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image


def try_to_draw(who: str, path: Path, draw: Callable[[], "Figure | None"]) -> None:
    """Draw a figure as PNG; if that fails, say so on stderr.

    Args:
      who: command that says so.
      path: of the file, removed if the figure could not be drawn.
      draw: makes the figure; None if there is nothing to draw.
    """
    try:
        with warnings.catch_warnings():
            # Characters of a prompt that the font lacks.
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            figure = draw()
            if figure is not None:
                save_figure(path, figure)
    except Exception as error:  # Matplotlib's are of many kinds.
        said = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"{who}: {path.name} could not be drawn: {shown(said, 500)}", file=sys.stderr)
        path.unlink(missing_ok=True)


def save_image(path: Path, image: np.ndarray, size: int | None = 256) -> None:
    """Write an RGB image in [-1, 1] as PNG.

    Args:
      path: of the file.
      image: float [H, W, 3].
      size: pixels a side to enlarge it to, without smoothing; None leaves it as it is.

    Raises:
      FloatingPointError: the image has values that are not finite.
    """
    if not np.isfinite(image).all():
        raise FloatingPointError("the model's picture has numbers that are not finite")
    large = enlarged(pixels(image), size)
    with replacing(path) as temporary:
        large.save(temporary, format="PNG")


def enlarged(image: np.ndarray, size: int | None = 256) -> "Image":
    """A picture uint8 [H, W, 3] as `save_image` writes it."""
    from PIL import Image

    picture = Image.fromarray(image)
    return picture if size is None else picture.resize((size, size), Image.Resampling.NEAREST)
