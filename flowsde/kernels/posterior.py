"""Kernels that recombine the posterior means: DDIM and CPS."""

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp

from flowsde._checks import check_non_negative
from flowsde.interpolants import Interpolant
from flowsde.kernels.base import Kernel, check_interpolant


@dataclasses.dataclass(frozen=True)
class _Posterior(Kernel):
    """x_s = alpha_s x0 + rho x1 + zeta eps, with x0 drawn if data_variance > 0."""

    eta: float
    data_variance: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta must lie in [0, 1], got {self.eta}")
        check_non_negative("data_variance", self.data_variance)

    @property
    def stochastic(self) -> bool:
        return self.eta > 0.0 or self.data_variance > 0.0

    @abc.abstractmethod
    def zeta_and_rho(self, t: jax.Array, s: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Fresh noise and kept noise, zeta^2 + rho^2 = sigma_s^2."""

    def moments(self, x, x0, x1, t, s):
        zeta, rho = self.zeta_and_rho(t, s)
        return recombined(self.interpolant, self.data_variance, x0, x1, t, s, zeta, rho)


def recombined(
    p: Interpolant,
    data_variance: float,
    x0: jax.Array,
    x1: jax.Array,
    t: jax.Array,
    s: jax.Array,
    zeta: jax.Array,
    rho: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Mean and std of alpha_s x0 + rho x1 + zeta eps, with x0 drawn if data_variance > 0."""
    v = data_variance
    mean = p.alpha(s) * x0 + rho * x1
    if v == 0.0:
        return mean, zeta
    alpha, sigma = p.alpha(t), p.sigma(t)
    noisy = sigma > 0.0
    safe = jnp.where(noisy, sigma, 1.0)
    # x1 = (x - alpha x0) / sigma, so x0's error enters with this weight.
    weight = p.alpha(s) - rho * alpha / safe
    spread = v * jnp.square(sigma) / (jnp.square(alpha) * v + jnp.square(safe))
    return mean, jnp.sqrt(jnp.square(zeta) + jnp.square(weight) * spread)


def noise_ratio(p: Interpolant, t: jax.Array, s: jax.Array) -> jax.Array:
    """tan(angle_s) / tan(angle_t), at most 1 for s <= t."""
    below = p.alpha(s) * p.sigma(t)
    ratio = p.alpha(t) * p.sigma(s) / jnp.where(below > 0.0, below, 1.0)
    return jnp.clip(jnp.where(below > 0.0, ratio, 1.0), 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class DDIM(_Posterior):
    """zeta = eta sigma_s sqrt(1 - (alpha_t sigma_s / alpha_s sigma_t)^2)."""

    def zeta_and_rho(self, t, s):
        ratio = noise_ratio(self.interpolant, t, s)
        share = self.eta * jnp.sqrt((1.0 - ratio) * (1.0 + ratio))
        sigma = self.interpolant.sigma(s)
        return sigma * share, sigma * jnp.sqrt((1.0 - share) * (1.0 + share))


@dataclasses.dataclass(frozen=True)
class CPS(_Posterior):
    """zeta = sigma_s sin(eta pi / 2), rho = sigma_s cos(eta pi / 2)."""

    def zeta_and_rho(self, t, s):
        sigma = self.interpolant.sigma(s)
        angle = 0.5 * math.pi * self.eta
        return sigma * math.sin(angle), sigma * math.cos(angle)


def ddim(interpolant: Interpolant, eta: float = 1.0, data_variance: float = 0.0) -> Kernel:
    """DDIM (Song et al., 2021, arXiv 2010.02502) for any interpolant.

    Args:
      interpolant: of x and the times.
      eta: 0 keeps all noise (an ODE step), 1 redraws as much as ancestral sampling.
      data_variance: assumed variance of the data, from which each step has x0's posterior spread; 0
        takes x0's mean.

    Example:
      >>> x0, x1 = jnp.array([2.0]), jnp.array([-2.0])
      >>> x = 0.75 * x0 + 0.25 * x1  # at t = 0.25
      >>> kernel = fs.kernels.ddim(fs.interpolants.linear(), eta=0.0)
      >>> mean, std = kernel.moments(x, x0, x1, jnp.float32(0.25), jnp.float32(0.125))
      >>> print(f"{mean[0]:.3f} {std:.3f}")  # eta = 0 is the ODE
      1.500 0.000
    """
    return DDIM(check_interpolant(interpolant), float(eta), float(data_variance))


def cps(interpolant: Interpolant, eta: float = 0.5, data_variance: float = 0.0) -> Kernel:
    """Coefficients-preserving sampling: a fixed share sin(eta pi / 2) of the noise is redrawn.

    Args:
      interpolant: of x and the times.
      eta: share of fresh noise, 0 to 1.
      data_variance: assumed variance of the data, from which each step has x0's posterior spread; 0
        takes x0's mean.

    Example:
      >>> x0, x1 = jnp.array([2.0]), jnp.array([-2.0])
      >>> x = 0.75 * x0 + 0.25 * x1  # at t = 0.25
      >>> kernel = fs.kernels.cps(fs.interpolants.linear(), eta=1.0)
      >>> mean, std = kernel.moments(x, x0, x1, jnp.float32(0.25), jnp.float32(0.125))
      >>> print(f"{mean[0]:.3f} {std:.3f}")  # all noise is drawn anew
      1.750 0.125
    """
    return CPS(check_interpolant(interpolant), float(eta), float(data_variance))
