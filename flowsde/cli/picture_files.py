"""Pictures that a user gives a command as files."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flowsde._text import shown

if TYPE_CHECKING:
    from PIL.Image import Image


def opened(option: str, path: Path) -> "Image":
    """A picture, upright as viewers show it; ValueError naming the option and the file."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            return ImageOps.exif_transpose(file)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        why = getattr(error, "strerror", None) or "it is no picture that can be read"
        raise ValueError(f"{option} {shown(path, 500)}: {why}") from None


def as_array(picture: "Image") -> np.ndarray:
    """As rewards see it: RGB float32 [h, w, 3] in [-1, 1]."""
    return np.asarray(picture.convert("RGB"), np.float32) / np.float32(127.5) - np.float32(1.0)
