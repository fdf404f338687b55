"""A decoder run over a large latent in overlapping tiles, one after another.

Tiles have one size and are spread evenly, the outer ones flush with the border. Where they overlap
their images are averaged with weights that rise linearly from each tile's edge and sum to one at
every pixel. Peak memory is a tile's, beside the image itself.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def decode_in_tiles(
    decode: Callable[[jax.Array], jax.Array],
    latents: jax.Array,
    *,
    tile: int,
    overlap: int,
    factor: int,
    channels: int,
) -> jax.Array:
    """Images of `latents` [n, h, w, c] from a decoder of pieces of them.

    Args:
      decode: [n, a, b, c] to [n, a factor, b factor, channels] of float32.
      latents: of any size; a side shorter than a tile is one shorter tile.
      tile: latents a side.
      overlap: latents that neighbours share at least, at most half a tile.
      factor: pixels a latent.
      channels: of an image.

    Returns:
      float32 [n, h factor, w factor, channels]; where one tile covers all, what `decode` gives.

    Raises:
      ValueError: an overlap that is not from 1 to half a tile.
    """
    if not 1 <= overlap <= tile // 2:
        raise ValueError(
            f"overlap must be from 1 to half a tile, got overlap {overlap} and tile {tile}"
        )
    n, height, width, depth = latents.shape
    ys, rows = _tiles(height, min(tile, height), overlap, factor)
    xs, columns = _tiles(width, min(tile, width), overlap, factor)
    size = (n, rows.shape[1] // factor, columns.shape[1] // factor, depth)

    def add(images: jax.Array, at: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        y, x, row, column = at
        piece = decode(jax.lax.dynamic_slice(latents, (0, y, x, 0), size))
        piece = piece * row[None, :, None, None] * column[None, None, :, None]
        corner = (0, y * factor, x * factor, 0)
        before = jax.lax.dynamic_slice(images, corner, piece.shape)
        return jax.lax.dynamic_update_slice(images, before + piece, corner), None

    # Every row of tiles with every column.
    i, j = (a.ravel() for a in np.meshgrid(range(len(ys)), range(len(xs)), indexing="ij"))
    images = jnp.zeros((n, height * factor, width * factor, channels), jnp.float32)
    return jax.lax.scan(add, images, (ys[i], xs[j], rows[i], columns[j]))[0]


def _tiles(size: int, tile: int, overlap: int, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the tiles of one axis start, and the weights [tiles, tile factor] of their pixels."""
    count = max(1, math.ceil((size - overlap) / (tile - overlap))) if size > tile else 1
    starts = np.round(np.linspace(0, size - tile, count)).astype(np.int32)
    rise = np.minimum((np.arange(tile * factor) + 0.5) / (overlap * factor), 1.0)
    flat = np.ones_like(rise)
    weights = [
        np.minimum(rise if s > 0 else flat, rise[::-1] if s < size - tile else flat) for s in starts
    ]
    total = np.zeros(size * factor)
    for start, weight in zip(starts, weights, strict=True):
        total[start * factor : (start + tile) * factor] += weight
    # Rounded starts overlap by more than was asked for.
    parts = [
        weight / total[start * factor : (start + tile) * factor]
        for start, weight in zip(starts, weights, strict=True)
    ]
    return starts, np.asarray(parts, np.float32)
