"""Attention one head after the other, for CPUs.

XLA's CPU backend multiplies two matrices about as fast as anything does, and many pairs of small
ones at once several times more slowly: so each head of each example is a turn of a loop. Its scores
are all that is in memory.
"""

import jax
import jax.numpy as jnp
import numpy as np

UNSEEN = np.float32(-0.7) * np.finfo(np.float32).max
"""A score of what may not be looked at; finite, as of a query that may look at nothing."""


def attention_by_head(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    bias: jax.Array | None,
    mask: jax.Array | None,
    causal: bool,
    scale: float | None,
) -> jax.Array:
    """As `jax.nn.dot_product_attention`, with its arguments: scores and softmax are float32.

    Returns:
      [n, queries, heads, d].
    """
    n, queries, heads, d = q.shape
    factor = np.float32(d**-0.5 if scale is None else scale)
    if causal:
        earlier = jnp.tril(jnp.ones((queries, k.shape[1]), jnp.bool))[None, None]
        mask = earlier if mask is None else mask & earlier

    def by_head(a: jax.Array) -> jax.Array:
        """[n heads, tokens, d]; where a few heads of keys serve more of queries, of each."""
        a = jnp.repeat(a, heads // a.shape[2], axis=2)
        return a.swapaxes(1, 2).reshape(n * heads, a.shape[1], -1)

    def of(table: jax.Array, turn: jax.Array) -> jax.Array:
        """A head's [queries, keys] of a table whose first axes may be 1."""
        table, many = jnp.asarray(table), table.shape[:2]
        return table[turn // heads if many[0] > 1 else 0, turn % heads if many[1] > 1 else 0]

    def one(each: tuple[jax.Array, ...]) -> jax.Array:
        turn, q, k, v = each
        scores = jnp.matmul(q, k.T, preferred_element_type=jnp.float32) * factor
        if bias is not None:
            scores += of(bias, turn).astype(jnp.float32)
        if mask is not None:
            scores = jnp.where(of(mask, turn), scores, UNSEEN)
        return jax.nn.softmax(scores).astype(v.dtype) @ v

    turns = jnp.arange(n * heads, dtype=jnp.int32)
    y = jax.lax.map(one, (turns, by_head(q), by_head(k), by_head(v)))
    return y.reshape(n, heads, queries, -1).swapaxes(1, 2)
