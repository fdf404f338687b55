"""What an interpolant is, and where its velocity says nothing."""

import abc

import jax
import jax.numpy as jnp

from flowsde._static import Static


class Interpolant(Static, abc.ABC):
    """A curve (alpha, sigma) with its derivatives and the inverse of its angle.

    Example:
      >>> p = fs.interpolants.linear()
      >>> print(f"{p.angle(0.5):.3f} {p.radius(0.5):.3f}")  # pi / 4, sqrt(1 / 2)
      0.785 0.707
      >>> print(f"{p.time(p.angle(0.3)):.1f}")
      0.3
    """

    @abc.abstractmethod
    def alpha(self, t: jax.Array) -> jax.Array:
        """Weight of the data; alpha(0) = 1, falling."""

    @abc.abstractmethod
    def sigma(self, t: jax.Array) -> jax.Array:
        """Weight of the noise; sigma(0) = 0, rising."""

    @abc.abstractmethod
    def alpha_dot(self, t: jax.Array) -> jax.Array:
        """Derivative of alpha; infinite where the curve has a vertical tangent."""

    @abc.abstractmethod
    def sigma_dot(self, t: jax.Array) -> jax.Array:
        """Derivative of sigma; infinite where the curve has a vertical tangent."""

    @abc.abstractmethod
    def time(self, angle: jax.Array) -> jax.Array:
        """Time in [0, 1] at which the angle is reached, the nearest end if it never is."""

    def angle(self, t: jax.Array) -> jax.Array:
        """atan2(sigma, alpha), in radians, from 0 (data) to at most pi / 2 (noise)."""
        return jnp.arctan2(self.sigma(t), self.alpha(t))

    def radius(self, t: jax.Array) -> jax.Array:
        """sqrt(alpha^2 + sigma^2)."""
        return jnp.hypot(self.alpha(t), self.sigma(t))

    def variance_dot(self, t: jax.Array) -> jax.Array:
        """Derivative of sigma^2; finite also where that of sigma is not."""
        return 2.0 * self.sigma(t) * self.sigma_dot(t)

    def determinant(self, t: jax.Array) -> jax.Array:
        """alpha sigma' - sigma alpha' = r^2 angle', at least 0.

        The pair (x, velocity) determines (x0, x1) where it is above 0 and finite, see `is_silent`.
        """
        return self.alpha(t) * self.sigma_dot(t) - self.sigma(t) * self.alpha_dot(t)


def is_silent(determinant: jax.Array) -> jax.Array:
    """Where a velocity says nothing of x0 and x1: a rate is infinite, or both are 0."""
    return ~((determinant >= jnp.finfo(determinant.dtype).tiny) & jnp.isfinite(determinant))
