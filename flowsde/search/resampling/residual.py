"""Residual resampling: the whole parts of N w for certain, the rest drawn (Liu and Chen, 1998)."""

import jax
import jax.numpy as jnp

from flowsde.search.resampling.inverse import inverse_cdf


def residual(key: jax.Array, log_weights: jax.Array, n: jax.Array) -> jax.Array:
    """Ancestors int32 [N], n of them drawn, of log weights [N]."""
    room = log_weights.shape[0]
    expected = jnp.float32(n) * jax.nn.softmax(log_weights)
    whole = jnp.floor(expected)
    copies = whole.astype(jnp.int32)
    certain = jnp.sum(copies)
    kept = jnp.repeat(jnp.arange(room, dtype=jnp.int32), copies, total_repeat_length=room)
    # With nothing left over no draw is used, whatever its weights.
    rest = jnp.where(certain == n, expected, expected - whole)
    drawn = inverse_cdf(rest, jax.random.uniform(key, (room,), jnp.float32))
    return jnp.where(jnp.arange(room) < certain, kept, drawn)
