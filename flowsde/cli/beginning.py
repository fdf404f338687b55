"""The picture that a command begins from: ``--image``, ``--strength`` and ``--mask``.

As in diffusers: strength is the share of the steps that are run, and a mask is white where the
picture is drawn anew. Both files are cropped to the model's aspect ratio around their centre and
resized to its pictures.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._checks import check_float
from flowsde._text import shown
from flowsde.cli.options import Beginning
from flowsde.cli.picture_files import as_array, opened
from flowsde.flow import Flow

if TYPE_CHECKING:
    from PIL.Image import Image

_WHITE = 128
"""Least brightness of a mask where the picture is drawn anew."""


def check(given: Beginning) -> None:
    """ValueError naming an option that is wrong; the files are read."""
    for name, value in (("mask", given.mask), ("strength", given.strength)):
        if given.image is None and value is not None:
            raise ValueError(f"--{name} has no effect without --image, got {shown(value)}")
    if given.strength is not None:
        check_float("--strength", given.strength)
        if not 0.0 < given.strength <= 1.0:
            raise ValueError(f"--strength must be above 0, to 1, got {given.strength}")
    for name, path in (("image", given.image), ("mask", given.mask)):
        if path is not None:
            picture = opened(f"--{name}", path)
            if name == "mask" and np.asarray(picture.convert("L")).max() < _WHITE:
                raise ValueError(
                    f"--mask: {shown(path)} has no white, so that nothing would be drawn anew: "
                    f"expected white where the picture is to change"
                )


def named(given: Beginning) -> dict[str, Any]:
    """Settings of a result: the files, which another may take the place of, with their digests."""
    files = {"image": given.image, "mask": given.mask}
    return {
        name: f"{path} {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
        for name, path in files.items()
        if path is not None
    }


def read(given: Beginning, flow: Flow) -> dict[str, Any]:
    """`start` and `mask` of `flowsde.run`, for a flow whose `decode` gives RGB pictures."""
    if given.image is None:
        return {}
    like = jax.ShapeDtypeStruct((1, *flow.shape), jnp.float32)
    height, width = jax.eval_shape(flow.decode, like).shape[1:3]
    x0 = as_array(_fitted("image", given.image, height, width))
    if flow.encode is not None:
        encoded = jax.jit(lambda encode, x: encode(x))(flow.encode, jnp.asarray(x0)[None])
        x0 = np.asarray(encoded)[0]
    if given.mask is None:
        return {"start": x0}
    mask = np.asarray(_fitted("mask", given.mask, height, width))
    rows, columns = flow.shape[:2]
    # A latent stays where all of its pixels do.
    anew = mask.reshape(rows, height // rows, columns, width // columns).max((1, 3)) >= _WHITE
    if not anew.any():
        raise ValueError(
            f"--mask: {shown(given.mask)} has no white once it is cropped and resized to {width}x"
            f"{height}: expected white where the picture is to change"
        )
    return {"start": x0, "mask": np.broadcast_to(anew.reshape(rows, columns, 1), flow.shape)}


def _fitted(name: str, path: Path, height: int, width: int) -> "Image":
    """RGB, or grey for a mask, of the model's size."""
    from PIL import Image, ImageOps

    picture = opened(f"--{name}", path)
    if name == "mask":
        return ImageOps.fit(picture.convert("L"), (width, height), Image.Resampling.NEAREST)
    return ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
