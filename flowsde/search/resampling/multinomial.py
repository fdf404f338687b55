"""Multinomial resampling: N independent draws (Gordon, Salmond and Smith, 1993)."""

import jax
import jax.numpy as jnp

from flowsde.search.resampling.inverse import inverse_cdf


def multinomial(key: jax.Array, log_weights: jax.Array, n: jax.Array) -> jax.Array:
    """Ancestors int32 [N], n of them drawn, of log weights [N]."""
    u = jax.random.uniform(key, log_weights.shape, jnp.float32)
    return inverse_cdf(jax.nn.softmax(log_weights), u)
