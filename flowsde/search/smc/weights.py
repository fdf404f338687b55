"""Log weights: their effective sample size, their mean, and what a guided proposal owes them.

A guided kernel draws x_s from q = N(m + delta, u^2 I) where the kernel that it guides has
p = N(m, v^2 I): the weight of the draw is p / q. With z = (x_s - m) / v, e = (x_s - m - delta) / u,

    log p - log q = (|e|^2 - |z|^2) / 2 + d log(u / v),

which for u = v, delta = v a is - a . e - |a|^2 / 2.
"""

import jax
import jax.numpy as jnp

from flowsde.kernels import Kernel
from flowsde.search.grid import UnusableKernel
from flowsde.search.protocol import Particle


def effective_sample_size(log_weights: jax.Array) -> jax.Array:
    """(sum w)^2 / sum w^2 of log weights [N], between 1 and N."""
    w = jax.nn.softmax(log_weights)
    return 1.0 / jnp.sum(jnp.square(w))


def log_mean_exp(log_weights: jax.Array, n: jax.Array) -> jax.Array:
    """log of the mean of exp(log_weights), of which n are in use and the others -inf."""
    return jax.nn.logsumexp(log_weights) - jnp.log(n.astype(jnp.float32))


def unguided(kernel: Kernel) -> Kernel:
    """The kernel that a guided one guides; UnusableKernel if it does not say."""
    inner = getattr(kernel, "inner", None)
    if not isinstance(inner, Kernel) or inner.uses_gradient:
        raise UnusableKernel(
            f"kernel {type(kernel).__name__} is guided and smc weighs its samples as those of the "
            f"kernel that it guides; expected that as its attribute `inner`, got {inner!r}"
        )
    return inner


def pulled(parent: Particle, share: jax.Array | None) -> Particle:
    """A parent that pulls its child by a share of its gradient; None is all of it."""
    if parent.gradient is None or share is None:
        return parent
    return parent._replace(gradient=share * parent.gradient)


def log_ratio(kernel: Kernel, x: jax.Array, parent: Particle, s: jax.Array) -> jax.Array:
    """log p(x | parent) - log q(x | parent) of one draw of a guided kernel, a scalar.

    Differences are taken before sums: those of two log densities of a picture would round to
    nothing that can be told from 0.

    Args:
      kernel: guided.
      x: a draw at s, [*shape].
      parent: that it was drawn from, with the gradient.
      s: scalar time.
    """
    assert parent.gradient is not None
    args = (parent.x, parent.x0, parent.x1, parent.t, s)
    mean, std = unguided(kernel).moments(*args)
    own_mean, own_std = kernel.moments(*args, parent.gradient)  # type: ignore[call-arg]
    both = (std > 0.0) & (own_std > 0.0)
    u, v = jnp.where(both, own_std, 1.0), jnp.where(both, std, 1.0)
    e, z = (x - own_mean) / u, (x - mean) / v
    ratio = 0.5 * jnp.sum((e - z) * (e + z)) + x.size * jnp.log(u / v)
    # Where neither has noise they are the same point; where one has, there is no density. Gradients
    # that move a draw out of float32 leave it no weight.
    ratio = jnp.where(both, ratio, jnp.where(std == own_std, 0.0, -jnp.inf))
    return jnp.where(jnp.isnan(ratio), -jnp.inf, ratio)
