"""The forward process."""

import dataclasses

import jax.numpy as jnp

from flowsde.interpolants import Interpolant
from flowsde.kernels.base import Kernel, check_interpolant


@dataclasses.dataclass(frozen=True)
class Renoise(Kernel):
    """Forward, s > t: (alpha_s / alpha_t) x + sqrt(sigma_s^2 - (alpha_s sigma_t / alpha_t)^2) eps.

    Uses x alone (the means are ignored). Needs alpha_t > 0, which t < s <= 1 implies.
    """

    def moments(self, x, x0, x1, t, s):
        p = self.interpolant
        alpha = p.alpha(t)
        scale = p.alpha(s) / jnp.where(alpha > 0.0, alpha, 1.0)
        sigma = p.sigma(s)
        kept = scale * p.sigma(t)
        return scale * x, jnp.sqrt(jnp.maximum((sigma - kept) * (sigma + kept), 0.0))


def renoise(interpolant: Interpolant) -> Kernel:
    """The forward process from t to a noisier s > t.

    Example:
      >>> kernel = fs.kernels.renoise(fs.interpolants.linear())
      >>> x = jnp.array([1.5])  # clean, and then at t = 0.5
      >>> mean, std = kernel.moments(x, x, x, jnp.float32(0.0), jnp.float32(0.5))
      >>> print(f"{mean[0]:.2f} {std:.2f}")
      0.75 0.50
    """
    return Renoise(check_interpolant(interpolant))
