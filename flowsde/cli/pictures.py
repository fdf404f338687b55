"""Pictures that a run leaves behind, as files."""

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


def try_to_draw(who: str, path: Path, draw: Callable[[], "Figure | None"]) -> None:
    """Draw a figure as PNG, if there is one; if it cannot be, say so on stderr.

    Args:
      who: says it.
      path: of the file; an older one goes when there is no new one.
      draw: the figure.
    """
    try:
        with warnings.catch_warnings():
            # Letters of a prompt that the font has no picture of.
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            figure = draw()
            if figure is not None:
                save_figure(path, figure)
    except Exception as error:  # Matplotlib's are of many kinds.
        said = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"{who}: {path.name} could not be drawn: {shown(said, 500)}", file=sys.stderr)
        path.unlink(missing_ok=True)


def save_image(path: Path, image: np.ndarray, size: int | None = 256) -> None:
    """An RGB image in [-1, 1], enlarged without smoothing, or as it is.

    Raises:
      FloatingPointError: it has numbers that are not finite.
    """
    from PIL import Image

    if not np.isfinite(image).all():
        raise FloatingPointError("the model's picture has numbers that are not finite")
    large = Image.fromarray(pixels(image))
    if size is not None:
        large = large.resize((size, size), Image.Resampling.NEAREST)
    with replacing(path) as temporary:
        large.save(temporary, format="PNG")
