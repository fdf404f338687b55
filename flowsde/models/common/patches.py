"""Latents as tokens: square patches in row order, one token each, and back.

Families differ in how a token's values are ordered: with the channel fastest, (row, column,
channel), or slowest, (channel, row, column), as in FLUX.1.
"""

from typing import Literal

import jax
import numpy as np

Order = Literal["channels_last", "channels_first"]
# From the axes (n, tall, row, wide, column, channel) of latents cut into patches to tokens' axes.
_AXES: dict[Order, tuple[int, ...]] = {
    "channels_last": (0, 1, 3, 2, 4, 5),
    "channels_first": (0, 1, 3, 5, 2, 4),
}


def pack(x: jax.Array, patch: int = 2, order: Order = "channels_last") -> jax.Array:
    """Tokens [n, (H / patch) (W / patch), patch patch C] of latents [n, H, W, C].

    Raises:
      ValueError: when `patch` does not divide H and W.
    """
    tall, wide = _patches(x.shape[1], x.shape[2], patch)
    x = x.reshape(x.shape[0], tall, patch, wide, patch, x.shape[3])
    return x.transpose(_AXES[order]).reshape(x.shape[0], tall * wide, -1)


def unpack(
    tokens: jax.Array, height: int, width: int, patch: int = 2, order: Order = "channels_last"
) -> jax.Array:
    """Latents [n, height, width, C] of tokens; undoes `pack`.

    Raises:
      ValueError: when the tokens are not as many as these latents have.
    """
    tall, wide = _patches(height, width, patch)
    n, count, values = tokens.shape
    if count != tall * wide:
        raise ValueError(f"{height} x {width} latents have {tall * wide} tokens, got {count}")
    axes = _AXES[order]
    whole = (n, tall, patch, wide, patch, values // patch**2)
    x = tokens.reshape([whole[axis] for axis in axes]).transpose(np.argsort(axes))
    return x.reshape(n, height, width, -1)


def grid_ids(height: int, width: int, patch: int = 2) -> np.ndarray:
    """Positions int32 [tokens, 3] of latents' tokens: (0, row, column), in patches.

    Raises:
      ValueError: when `patch` does not divide height and width.
    """
    tall, wide = _patches(height, width, patch)
    rows, columns = np.indices((tall, wide), dtype=np.int32)
    return np.stack([np.zeros_like(rows), rows, columns], axis=-1).reshape(-1, 3)


def _patches(height: int, width: int, patch: int) -> tuple[int, int]:
    if height % patch or width % patch:
        raise ValueError(f"patches of {patch} must divide the latents, got {height} x {width}")
    return height // patch, width // patch
