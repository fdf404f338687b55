"""Pictures that a user gives a command as files."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flowsde._text import shown

if TYPE_CHECKING:
    from PIL.Image import Image


class _Unusable(Exception):
    """What a file holds is not one picture whose colours are known."""


def opened(option: str, path: Path) -> "Image":
    """A picture of 8 bits, RGB, upright as viewers show it.

    Raises:
      ValueError: naming the option and the file, of which there is no picture to be had, or more
        than one, or one that looks otherwise on another background.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            # Phones keep a preview or a depth map as a second picture.
            frames = 1 if file.format == "MPO" else getattr(file, "n_frames", 1)
            if frames > 1:
                raise _Unusable(f"it has {frames} pictures, expected one")
            return _rgb(ImageOps.exif_transpose(file))
    except Exception as error:  # of a broken file, readers of formats raise nearly anything
        why = str(error) if isinstance(error, _Unusable) else getattr(error, "strerror", None)
        why = why or "it is no picture that can be read"
        raise ValueError(f"{option} {shown(path, 500)}: {why}") from None


def _rgb(picture: "Image") -> "Image":
    """Pillow's own conversion clips what has more than 8 bits, and drops transparency."""
    from PIL import Image

    if picture.mode.startswith("I;16"):
        grey = np.round(np.asarray(picture, np.float32) / 257.0)  # white is 65535
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if picture.mode in ("I", "F"):
        raise _Unusable("which of its numbers is white is not known, expected 8 or 16 bits")
    if picture.has_transparency_data:
        if (np.asarray(picture.convert("RGBA"))[..., 3] < 255).any():
            raise _Unusable("it is transparent in places, expected it on its background")
    return picture.convert("RGB")


def as_array(picture: "Image") -> np.ndarray:
    """As rewards see it: RGB float32 [h, w, 3] in [-1, 1]."""
    return np.asarray(picture.convert("RGB"), np.float32) / np.float32(127.5) - np.float32(1.0)
