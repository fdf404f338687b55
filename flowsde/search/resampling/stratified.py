"""Stratified resampling: one draw from each Nth of the total weight (Kitagawa, 1996)."""

import jax
import jax.numpy as jnp

from flowsde.search.resampling.inverse import inverse_cdf


def stratified(key: jax.Array, log_weights: jax.Array, n: jax.Array) -> jax.Array:
    """Ancestors int32 [N], n of them drawn, of log weights [N]; ascending."""
    point = jnp.arange(log_weights.shape[0], dtype=jnp.float32)
    u = jax.random.uniform(key, point.shape, jnp.float32)
    return inverse_cdf(jax.nn.softmax(log_weights), (point + u) / jnp.float32(n))
