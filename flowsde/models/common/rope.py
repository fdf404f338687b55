"""Rotary positions over several axes (Su et al., 2021, arXiv 2104.09864).

A head's features are pairs, of neighbours or (`rotate_halves`) of one from either half; each axis
of a position turns pairs of its own, by the position times theta^(-2 i / d) for the i-th pair of
the axis' d features, or (`interleaved_angles`) of all d features of the head.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from flowsde.models.common.layers import Numerics, attention

THETA = 1e4


def angles(ids: jax.Array, features: tuple[int, ...], theta: float = THETA) -> jax.Array:
    """Angles float32 [tokens, sum(features) / 2] of positions [tokens, axes].

    Args:
      ids: position of each token along each axis.
      features: of a head that each axis turns, even numbers.
      theta: sets the slowest turn.

    Raises:
      ValueError: when `ids` and `features` differ in their axes.
    """
    if ids.ndim != 2 or ids.shape[1] != len(features):
        raise ValueError(f"ids must have shape (tokens, {len(features)}), got {ids.shape}")
    speeds = [(theta ** (-np.arange(0, d, 2) / d)).astype(np.float32) for d in features]
    places = jnp.asarray(ids, jnp.float32)
    return jnp.concatenate(
        [places[:, axis, None] * speed[None] for axis, speed in enumerate(speeds)], axis=1
    )


def interleaved_angles(
    ids: jax.Array, sections: tuple[int, int, int], theta: float = THETA
) -> jax.Array:
    """Angles float32 [tokens, sum(sections)] of positions [tokens, 3], whose axes take turns.

    Pair i belongs to the axis i mod 3 as long as that has pairs left of its section, and to the
    first axis else: Qwen3-VL's M-RoPE.

    Args:
      ids: position of each token along each axis.
      sections: pairs of each axis.
      theta: sets the slowest turn.

    Raises:
      ValueError: when there are not three axes.
    """
    if ids.ndim != 2 or ids.shape[1] != 3 or len(sections) != 3:
        raise ValueError(f"ids must have shape (tokens, 3), got {ids.shape} for {sections}")
    pairs = np.arange(sum(sections))
    axis = pairs % 3
    axis[pairs >= 3 * np.asarray(sections)[axis]] = 0
    speeds = (theta ** (-pairs / len(pairs))).astype(np.float32)
    return jnp.asarray(ids, jnp.float32)[:, axis] * speeds[None]


def rotate_halves(x: jax.Array, turn: jax.Array) -> jax.Array:
    """x [n, tokens, heads, d], each pair (i, i + d / 2) turned by `turn` [tokens, d / 2]."""
    cos, sin = (f(turn)[None, :, None] for f in (jnp.cos, jnp.sin))
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def rotate(x: jax.Array, turn: jax.Array, *, dtype: DTypeLike | None = None) -> jax.Array:
    """x [n, tokens, heads, d], each pair (2 i, 2 i + 1) turned by `turn` [tokens, d / 2].

    Where tokens of each example stand elsewhere, `turn` is [n, tokens, d / 2].

    Pairs change places, one with its sign changed, by a product: on a TPU neighbours are far from
    each other, and taking every second feature costs more than all else here. The product is exact
    in float32, which by default it is not on a TPU; of what is rounded to another `dtype` then,
    half of a TPU's passes are enough, with 16 of the 24 bits.
    """
    turn = turn if turn.ndim == 3 else turn[None]
    cos, sin = (jnp.repeat(f(turn), 2, axis=-1)[:, :, None] for f in (jnp.cos, jnp.sin))
    quarter = np.kron(np.eye(turn.shape[-1]), [[0.0, 1.0], [-1.0, 0.0]])
    to = x.dtype if dtype is None else jnp.dtype(dtype)
    precision = jax.lax.Precision.HIGHEST if to == jnp.float32 else jax.lax.Precision.HIGH
    crossed = jnp.matmul(x, jnp.asarray(quarter, x.dtype), precision=precision)
    return (x * cos + crossed * sin).astype(to)


def turned_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    turn: jax.Array,
    *,
    numerics: Numerics,
    mask: jax.Array | None = None,
) -> jax.Array:
    """`attention` of q and k turned by `turn`, in their float32, and rounded to v's dtype then.

    Tokens may be split over devices, see `flowsde.models.common.sequence`.
    """
    q, k = (rotate(a, turn, dtype=v.dtype) for a in (q, k))
    return attention(q, k, v, numerics=numerics, mask=mask, split=True)
