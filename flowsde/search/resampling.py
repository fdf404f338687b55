"""Resampling schemes: which particles continue, and how often.

Each is ``scheme(key, log_weights, n) -> ancestors``: log weights [N], not necessarily normalised,
-inf for weight zero, at least one finite; ancestors int32 [N], of which the first n <= N are drawn.
Particle i has n w_i copies among them on average, where w are the normalised weights, and a
particle of weight zero has none: with the weights behind n zero, N is only room. With more weights
than n, fewer particles go on. The schemes
differ in the variance of the numbers of copies (Douc and Cappé, 2005, arXiv cs/0507025; Gerber,
Chopin and Whiteley, 2019, arXiv 1708.01207).
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

_BELOW_1 = float(np.nextafter(np.float32(1.0), np.float32(0.0)))


def inverse_cdf(weights: jax.Array, u: jax.Array) -> jax.Array:
    """Index at which the share u of the total weight is passed, int32 shaped as u.

    Args:
      weights: float32 [N], not negative, not all zero.
      u: in [0, 1]; 1 counts as the float below it.

    Returns:
      Indices of positive weight: those of weight zero add nothing to be passed.
    """
    total = jnp.cumsum(weights)
    # Divided by its last entry, the sum reaches 1 exactly, at the last positive weight.
    share = total / total[-1]
    u = jnp.minimum(u, _BELOW_1)
    return jnp.searchsorted(share, u, side="right", method="scan_unrolled").astype(jnp.int32)


def multinomial(key: jax.Array, log_weights: jax.Array, n: jax.Array) -> jax.Array:
    """Ancestors int32 [N], n of them drawn, of log weights [N].

    Independent draws (Gordon, Salmond and Smith, 1993).
    """
    chex.assert_rank(log_weights, 1)
    u = jax.random.uniform(key, log_weights.shape, jnp.float32)
    return inverse_cdf(jax.nn.softmax(log_weights), u)


def stratified(key: jax.Array, log_weights: jax.Array, n: jax.Array) -> jax.Array:
    """Ancestors int32 [N], n of them drawn, of log weights [N]; ascending.

    One draw from each nth of the total weight (Kitagawa, 1996).
    """
    chex.assert_rank(log_weights, 1)
    point = jnp.arange(log_weights.shape[0], dtype=jnp.float32)
    u = jax.random.uniform(key, point.shape, jnp.float32)
    return inverse_cdf(jax.nn.softmax(log_weights), (point + u) / jnp.float32(n))


def systematic(key: jax.Array, log_weights: jax.Array, n: jax.Array) -> jax.Array:
    """Ancestors int32 [N], n of them drawn, of log weights [N]; ascending.

    Evenly spaced points from one random start (Carpenter et al., 1999).
    """
    chex.assert_rank(log_weights, 1)
    point = jnp.arange(log_weights.shape[0], dtype=jnp.float32)
    u = jax.random.uniform(key, (), jnp.float32)
    return inverse_cdf(jax.nn.softmax(log_weights), (point + u) / jnp.float32(n))


def residual(key: jax.Array, log_weights: jax.Array, n: jax.Array) -> jax.Array:
    """Ancestors int32 [N], n of them drawn, of log weights [N].

    The whole parts of n w for certain, the rest drawn (Liu and Chen, 1998).
    """
    chex.assert_rank(log_weights, 1)
    room = log_weights.shape[0]
    expected = jnp.float32(n) * jax.nn.softmax(log_weights)
    whole = jnp.floor(expected)
    copies = whole.astype(jnp.int32)
    certain = jnp.sum(copies, dtype=jnp.int32)
    kept = jnp.repeat(jnp.arange(room, dtype=jnp.int32), copies, total_repeat_length=room)
    # With nothing left over no draw is used, whatever its weights.
    rest = jnp.where(certain == n, expected, expected - whole)
    drawn = inverse_cdf(rest, jax.random.uniform(key, (room,), jnp.float32))
    return jnp.where(jnp.arange(room, dtype=jnp.int32) < certain, kept, drawn)


def ssp(key: jax.Array, log_weights: jax.Array, n: jax.Array) -> jax.Array:
    """Ancestors int32 [N], n of them drawn, of log weights [N]; ascending.

    Srinivasan's process: n w rounded up or down at random (Gerber, Chopin and Whiteley, 2019).
    Fractional parts meet in pairs: mass moves from one to the other, either way with the
    probability that keeps both means, until one of them is whole; the other meets the next.
    """
    chex.assert_rank(log_weights, 1)
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
    used = jnp.max(jnp.where(log_weights > -jnp.inf, jnp.arange(1, room + 1, dtype=jnp.int32), 0))
    copies, left, _ = jax.lax.fori_loop(1, jnp.maximum(n, used), meet, start)
    copies = copies.at[left].add(n - jnp.sum(copies, dtype=jnp.int32))
    return jnp.repeat(jnp.arange(room, dtype=jnp.int32), copies, total_repeat_length=room)


SCHEMES = {
    "multinomial": multinomial,
    "stratified": stratified,
    "systematic": systematic,
    "residual": residual,
    "ssp": ssp,
}
"""By name."""
