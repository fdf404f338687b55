"""Systematic resampling: N evenly spaced points from one random start (Carpenter et al., 1999)."""

import jax
import jax.numpy as jnp

from flowsde.search.resampling.inverse import inverse_cdf


def systematic(key: jax.Array, log_weights: jax.Array, n: jax.Array) -> jax.Array:
    """Ancestors int32 [N], n of them drawn, of log weights [N]; ascending."""
    point = jnp.arange(log_weights.shape[0], dtype=jnp.float32)
    u = jax.random.uniform(key, (), jnp.float32)
    return inverse_cdf(jax.nn.softmax(log_weights), (point + u) / jnp.float32(n))
