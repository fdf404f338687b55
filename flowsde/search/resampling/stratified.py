"""Stratified resampling: one draw from each Nth of the total weight (Kitagawa, 1996)."""

import jax
import jax.numpy as jnp

from flowsde.search.resampling.inverse import inverse_cdf


def stratified(key: jax.Array, log_weights: jax.Array) -> jax.Array:
    """Ancestors int32 [N] of log weights [N], ascending."""
    n = log_weights.shape[0]
    u = jax.random.uniform(key, (n,), jnp.float32)
    return inverse_cdf(jax.nn.softmax(log_weights), (jnp.arange(n, dtype=jnp.float32) + u) / n)
