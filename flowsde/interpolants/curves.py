"""Curves in closed form, and what makes them."""

import dataclasses
import math

import jax.numpy as jnp

from flowsde._checks import check_positive
from flowsde.interpolants.base import Interpolant

_HALF_PI = math.pi / 2


@dataclasses.dataclass(frozen=True)
class Linear(Interpolant):
    """alpha = 1 - t, sigma = t: rectified flow, SiT, FLUX, SD3."""

    def alpha(self, t):
        return 1.0 - t

    def sigma(self, t):
        return t

    def alpha_dot(self, t):
        return -jnp.ones_like(t)

    def sigma_dot(self, t):
        return jnp.ones_like(t)

    def time(self, angle):
        sine = jnp.sin(angle)
        return jnp.clip(sine / (sine + jnp.cos(angle)), 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class VP(Interpolant):
    """Variance preserving: alpha = exp(-T / 2), sigma^2 = 1 - exp(-T).

    T(t) = (beta_max - beta_min) t^2 / 2 + beta_min t. The curve ends short of pure
    noise, at alpha(1) = exp(-T(1) / 2) (.0066 for the usual betas); `time` maps every noisier
    angle to 1. The derivative of sigma is infinite at t = 0.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self):
        check_positive("beta_min", self.beta_min)
        if not self.beta_min <= self.beta_max < math.inf:
            raise ValueError(
                f"beta_max must be finite and at least beta_min = {self.beta_min}, "
                f"got {self.beta_max}"
            )

    def integral(self, t):
        """T(t), the integral of beta from 0 to t."""
        return (0.5 * (self.beta_max - self.beta_min) * t + self.beta_min) * t

    def beta(self, t):
        """beta(t) = beta_min + (beta_max - beta_min) t."""
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def alpha(self, t):
        return jnp.exp(-0.5 * self.integral(t))

    def sigma(self, t):
        return jnp.sqrt(-jnp.expm1(-self.integral(t)))

    def alpha_dot(self, t):
        return -0.5 * self.beta(t) * self.alpha(t)

    def sigma_dot(self, t):
        return 0.5 * self.variance_dot(t) / self.sigma(t)

    def variance_dot(self, t):
        return self.beta(t) * jnp.exp(-self.integral(t))

    def time(self, angle):
        # Each form of T = -2 log cos(angle) is exact in its half; each branch sees a safe angle.
        small = angle < 0.25 * math.pi
        near = -jnp.log1p(-jnp.square(jnp.sin(jnp.where(small, angle, 0.0))))
        cosine = jnp.cos(jnp.where(small, 0.0, angle))
        end = math.exp(-0.5 * self.integral(1.0))
        far = -2.0 * jnp.log(jnp.maximum(cosine, end))
        total = jnp.where(small, near, far)
        slope = 2.0 * (self.beta_max - self.beta_min)
        root = jnp.sqrt(self.beta_min**2 + slope * total)
        t = jnp.clip(2.0 * total / (self.beta_min + root), 0.0, 1.0)
        return jnp.where(cosine <= end, 1.0, t)


@dataclasses.dataclass(frozen=True)
class Cosine(Interpolant):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): the angle is the time."""

    def alpha(self, t):
        # 1 - t is exact near 1, where cos(pi t / 2) would lose every digit.
        return jnp.sin(_HALF_PI * (1.0 - t))

    def sigma(self, t):
        return jnp.sin(_HALF_PI * t)

    def alpha_dot(self, t):
        return -_HALF_PI * self.sigma(t)

    def sigma_dot(self, t):
        return _HALF_PI * self.alpha(t)

    def time(self, angle):
        return jnp.clip(angle / _HALF_PI, 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Polynomial(Interpolant):
    """alpha = (1 - t)^n, sigma = 1 - (1 - t)^n; n = 1 is the linear interpolant."""

    n: float = 2.0

    def __post_init__(self):
        if not 1.0 <= self.n < math.inf:
            raise ValueError(f"n must be at least 1 and finite, got {self.n}")

    def alpha(self, t):
        return jnp.power(1.0 - t, float(self.n))

    def sigma(self, t):
        return -jnp.expm1(self.n * jnp.log1p(-t))

    def alpha_dot(self, t):
        return -self.n * jnp.power(1.0 - t, self.n - 1.0)

    def sigma_dot(self, t):
        return -self.alpha_dot(t)

    def time(self, angle):
        sine = jnp.sin(angle)
        sigma = jnp.clip(sine / (sine + jnp.cos(angle)), 0.0, 1.0)
        return -jnp.expm1(jnp.log1p(-sigma) / self.n)


@dataclasses.dataclass(frozen=True)
class LinearVP(Interpolant):
    """alpha = sqrt(1 - t^2), sigma = t; the derivative of alpha is infinite at t = 1."""

    def alpha(self, t):
        return jnp.sqrt((1.0 - t) * (1.0 + t))

    def sigma(self, t):
        return t

    def alpha_dot(self, t):
        return -t / self.alpha(t)

    def sigma_dot(self, t):
        return jnp.ones_like(t)

    def time(self, angle):
        return jnp.clip(jnp.sin(angle), 0.0, 1.0)


def linear() -> Interpolant:
    """alpha = 1 - t, sigma = t.

    Example:
      >>> p = fs.interpolants.linear()
      >>> print(f"{p.alpha(0.25):.3f} {p.sigma(0.25):.3f}")
      0.750 0.250
    """
    return Linear()


def vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Interpolant:
    """Variance-preserving interpolant with linear beta (Song et al., 2021, arXiv 2011.13456).

    Example:
      >>> p = fs.interpolants.vp(beta_min=0.1, beta_max=20.0)
      >>> print(f"{p.alpha(1.0):.3f} {p.sigma(1.0):.3f}")
      0.007 1.000
    """
    return VP(float(beta_min), float(beta_max))


def cosine() -> Interpolant:
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2).

    Example:
      >>> p = fs.interpolants.cosine()
      >>> print(f"{p.alpha(0.5):.3f} {p.sigma(0.5):.3f}")
      0.707 0.707
    """
    return Cosine()


def polynomial(n: float = 2.0) -> Interpolant:
    """alpha = (1 - t)^n, sigma = 1 - (1 - t)^n.

    Example:
      >>> p = fs.interpolants.polynomial(2.0)
      >>> print(f"{p.alpha(0.5):.3f} {p.sigma(0.5):.3f}")
      0.250 0.750
    """
    return Polynomial(float(n))


def linear_vp() -> Interpolant:
    """alpha = sqrt(1 - t^2), sigma = t.

    Example:
      >>> p = fs.interpolants.linear_vp()
      >>> print(f"{p.alpha(0.6):.3f} {p.sigma(0.6):.3f}")
      0.800 0.600
    """
    return LinearVP()
