"""How time enters: sinusoids, a small MLP, and the shifts, scales and gates it gives each block.

Adaptive layer norm (Peebles & Xie, 2023, arXiv 2212.09748): with c the embedding of the time and
of what else is global,

    x <- x + gate(c) f(norm(x) (1 + scale(c)) + shift(c)).

All of it is float32; only what goes into f has the model's activation dtype.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from flowsde.models.common.layers import Numerics

SINUSOIDS = 256
"""Features of a time before its MLP, in every family."""
_MAX_PERIOD = 1e4
_EPSILON = 1e-6


def in_float32(numerics: Numerics) -> Numerics:
    """The same weights, with float32 activations."""
    return dataclasses.replace(numerics, dtype=jnp.float32)


def sinusoids(t: jax.Array, features: int = SINUSOIDS) -> jax.Array:
    """Cosines, then sines, of t [n] at angular frequencies from 1 to almost 1e-4.

    Returns:
      float32 [n, features], for even `features`.
    """
    half = features // 2
    # Published models were trained with exponents rounded to float32. With times up to thousands
    # that rounding shows, so it is repeated here; the exponential itself is exact.
    exponents = np.float32(-math.log(_MAX_PERIOD)) * np.arange(half, dtype=np.float32) / half
    frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class Embedding(nnx.Module):
    """Two linear layers with a SiLU between them, float32 [n, features] to [n, width]."""

    def __init__(
        self,
        features: int,
        width: int,
        numerics: Numerics,
        rngs: nnx.Rngs,
        *,
        bias: bool = True,
    ):
        exact = in_float32(numerics)
        self.first = exact.linear(features, width, (None, "embed"), bias=bias, rngs=rngs)
        self.second = exact.linear(width, width, ("embed", None), bias=bias, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.second(jax.nn.silu(self.first(x)))


class Modulation(nnx.Module):
    """`count` float32 vectors [n, 1, width] from an activated embedding [n, width]."""

    def __init__(
        self, width: int, count: int, numerics: Numerics, rngs: nnx.Rngs, *, bias: bool = True
    ):
        self.count = count
        # A quarter of FLUX's weights are here: divided among devices as the MLPs are.
        axes = ("embed", "mlp")
        exact = in_float32(numerics)
        self.linear = exact.linear(width, count * width, axes, bias=bias, rngs=rngs)

    def __call__(self, c: jax.Array) -> list[jax.Array]:
        return jnp.split(self.linear(c)[:, None, :], self.count, axis=-1)


def adaptive_norm(
    x: jax.Array, shift: jax.Array, scale: jax.Array, dtype: DTypeLike | None = None
) -> jax.Array:
    """Layer norm of x [n, tokens, width] without parameters, scaled and shifted [n, 1, width].

    Computed in float32; the result has `dtype`, that of x by default.
    """
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    normal = centred * jax.lax.rsqrt(variance + _EPSILON)
    return (normal * (1.0 + scale) + shift).astype(x.dtype if dtype is None else dtype)


def add_gated(x: jax.Array, gate: jax.Array, y: jax.Array) -> jax.Array:
    """x + gate y in the dtype of x, rounded once; x and y are [n, tokens, width]."""
    return (x.astype(jnp.float32) + gate * y.astype(jnp.float32)).astype(x.dtype)
