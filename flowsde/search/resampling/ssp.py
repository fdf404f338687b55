"""Srinivasan's process: N w rounded up or down at random (Gerber, Chopin and Whiteley, 2019).

Fractional parts meet in pairs: mass moves from one to the other, either way with the probability
that keeps both means, until one of them is whole; the other meets the next.
"""

import jax
import jax.numpy as jnp


def ssp(key: jax.Array, log_weights: jax.Array, n: jax.Array) -> jax.Array:
    """Ancestors int32 [N], n of them drawn, of log weights [N]; ascending."""
    room = log_weights.shape[0]
    expected = jnp.float32(n) * jax.nn.softmax(log_weights)
    whole = jnp.floor(expected)
    u = jax.random.uniform(key, (room,), jnp.float32)

    def meet(
        i: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        copies, left, part = carry
        other = expected[i] - whole[i]
        # Either `left` gains what it lacks or `other` has, or it loses what it has or other lacks.
        gain, loss = jnp.minimum(1.0 - part, other), jnp.minimum(part, 1.0 - other)
        gains = u[i] * (gain + loss) < loss
        part = jnp.where(gains, part + gain, part - loss)
        other = jnp.where(gains, other - gain, other + loss)
        # One of the two is whole now, up to rounding; the other stays.
        done = (part <= 0.0) | (part >= 1.0)
        closed, value = jnp.where(done, left, i), jnp.where(done, part, other)
        copies = copies.at[closed].add(jnp.round(value).astype(jnp.int32))
        return copies, jnp.where(done, i, left), jnp.where(done, other, part)

    start = (whole.astype(jnp.int32), jnp.zeros((), jnp.int32), expected[0] - whole[0])
    copies, left, _ = jax.lax.fori_loop(1, n, meet, start)
    copies = copies.at[left].add(n - jnp.sum(copies))
    return jnp.repeat(jnp.arange(room, dtype=jnp.int32), copies, total_repeat_length=room)
