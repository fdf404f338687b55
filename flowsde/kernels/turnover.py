"""The integral of g^2 / sigma^2, by which an SDE's noise is renewed.

While x0 stays, the noise n = (x - alpha x0) / sigma of the SDE of g obeys

    dn = (g^2 / 2 sigma^2) n dt + (g / sigma) dW,        run down in t,

an Ornstein-Uhlenbeck process with the law N(0, I): from t to s it keeps the share
rho = exp(-turnover / 2) of n, and the rest is fresh.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowsde.diffusion import Diffusion, coefficient
from flowsde.interpolants import Interpolant

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


def turnover(g: Diffusion, p: Interpolant, s: jax.Array, t: jax.Array) -> jax.Array:
    """Integral of g^2 / sigma^2 from s to t: in closed form where g has one, else by quadrature.

    Args:
      g: the coefficient. Where it is infinite, so is the integral from any time below.
      p: the interpolant of sigma.
      s, t: scalar times, s <= t.

    Returns:
      At least 0; for s = 0, where no noise is left to renew, any such number.
    """
    closed = getattr(g, "turnover", None)
    found = None if closed is None else closed(p, s, t)
    if found is None:
        found = _quadrature(g, p, s, t)
    some = jnp.where(t > s, jnp.maximum(found, 0.0), 0.0)
    return jnp.where(jnp.isinf(coefficient(g, p, t)), jnp.inf, some)


def _quadrature(g: Any, p: Interpolant, s: jax.Array, t: jax.Array) -> jax.Array:
    """Gauss-Legendre in logit(time), between kinks of g.

    In this variable poles at both ends, g^2 ~ 1 / (1 - t) or 1 / sigma^2 ~ 1 / t^2, are
    exponentials, and a step near an end is as long as one in the middle. All terms are positive:
    the sum is exact to the rounding of its terms, for short steps too.
    """
    limits = jnp.finfo(t.dtype)
    edges = np.asarray([0.0, *getattr(g, "kinks", ()), 1.0])
    low, high = (jnp.asarray(a, t.dtype) for a in (edges[:-1], edges[1:]))
    ends = (jnp.clip(time, low, high) for time in (s, t))
    first, last = (jnp.clip(end, limits.eps, 1.0 - limits.epsneg) for end in ends)
    logit = jnp.log(first) - jnp.log1p(-first)
    # logit(last) - logit(first), without cancellation.
    half = 0.5 * jnp.log1p((last - first) / (first * (1.0 - last)))
    nodes, weights = (jnp.asarray(a, t.dtype) for a in (_NODES, _WEIGHTS))
    times = jax.nn.sigmoid(logit[:, None] + jnp.outer(half, 1.0 + nodes))

    def rate(time: jax.Array) -> jax.Array:
        # The factor is that of the time as it is rounded, which may lie next to a pole.
        factor, sigma = time * (1.0 - time), p.sigma(time)
        inside = (factor > 0.0) & (sigma > 0.0)
        return jnp.where(inside, factor * jnp.square(coefficient(g, p, time) / sigma), 0.0)

    integrals = half * jnp.sum(jax.vmap(jax.vmap(rate))(times) * weights[None], axis=1)
    return jnp.sum(jnp.where(half > 0.0, integrals, 0.0))
