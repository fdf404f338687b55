"""Kernels move one particle from time t to time s < t (`renoise`: to s > t).

Each is Gaussian given the model's posterior means x0 and x1 at (x, t):

    x_s ~ N(mean, std^2 I),      kernel(key, x, x0, x1, t, s) -> x_s,

pure, for one particle of any shape and scalar times; `jax.vmap` gives the batch. Deterministic
kernels have std = 0 and ignore the key.

`ode_euler`, `ode_heun`, `euler_maruyama` discretise the flow's ODE or SDE in t. `ddim` and `cps`
instead recombine the means, x_s = alpha_s x0 + rho x1 + zeta eps with rho^2 + zeta^2 = sigma_s^2,
so that the noise level is right at any step size. They still lose x0's
posterior spread: with ``data_variance`` = v they draw x0 with the covariance that isotropic
Gaussian data of variance v would have, v sigma_t^2 / (alpha_t^2 v + sigma_t^2), instead of using
its mean (the idea of Analytic-DPM, Bao et al., 2022, arXiv 2201.06503), which is exact for such
data at any step size.

Ends: all are finite on [0, 1]. Where alpha', sigma' or g is infinite at an end of [0, 1], the
step uses the secant slope of alpha and sigma, and g at its middle; where sigma_t = 0 there is no
noise to remove and the score term is dropped.
"""

import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from flowsde._checks import check_non_negative
from flowsde.diffusion import Diffusion
from flowsde.interpolants import Interpolant


@dataclasses.dataclass(frozen=True)
class Kernel(abc.ABC):
    """A Gaussian transition of one particle.

    Attributes:
      interpolant: in which x and times are.
      evaluations: model evaluations a step, 1 or 2.
    """

    interpolant: Interpolant

    @property
    def evaluations(self) -> int:
        return 1

    @property
    def stochastic(self) -> bool:
        """Whether two keys give two children."""
        return True

    @abc.abstractmethod
    def moments(
        self, x: jax.Array, x0: jax.Array, x1: jax.Array, t: jax.Array, s: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(mean shaped as x, scalar std) of x_s."""

    def __call__(
        self,
        key: jax.Array,
        x: jax.Array,
        x0: jax.Array,
        x1: jax.Array,
        t: jax.Array,
        s: jax.Array,
    ) -> jax.Array:
        """Draw x_s."""
        t, s = _as_time("t", t, x), _as_time("s", s, x)
        mean, std = self.moments(x, x0, x1, t, s)
        if not self.stochastic:
            return mean
        return mean + std * jax.random.normal(key, x.shape, x.dtype)

    def log_prob(
        self,
        x_s: jax.Array,
        x: jax.Array,
        x0: jax.Array,
        x1: jax.Array,
        t: jax.Array,
        s: jax.Array,
    ) -> jax.Array:
        """Log density of x_s given x, a scalar; defined where std > 0.

        Raises:
          ValueError: the kernel is deterministic.
        """
        if not self.stochastic:
            raise ValueError(f"{self} is deterministic and has no density")
        mean, std = self.moments(x, x0, x1, _as_time("t", t, x), _as_time("s", s, x))
        quadratic = jnp.sum(jnp.square((x_s - mean) / std))
        return -0.5 * quadratic - x.size * (jnp.log(std) + 0.5 * math.log(2.0 * math.pi))


def _as_time(name: str, t: Any, x: jax.Array) -> jax.Array:
    if jnp.ndim(t) != 0:
        raise ValueError(
            f"{name} has shape {jnp.shape(t)}, expected a scalar: a kernel moves one particle, "
            f"use jax.vmap for a batch"
        )
    return jnp.asarray(t, x.dtype)


def _rates(p: Interpolant, t: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(alpha', sigma') at t, the secant towards `other` where they are infinite."""
    alpha_dot, sigma_dot = p.alpha_dot(t), p.sigma_dot(t)
    span = jnp.where(other == t, 1.0, other - t)
    alpha_secant = (p.alpha(other) - p.alpha(t)) / span
    sigma_secant = (p.sigma(other) - p.sigma(t)) / span
    return (
        jnp.where(jnp.isfinite(alpha_dot), alpha_dot, alpha_secant),
        jnp.where(jnp.isfinite(sigma_dot), sigma_dot, sigma_secant),
    )


def _ode_velocity(p, x0, x1, t, other):
    alpha_dot, sigma_dot = _rates(p, t, other)
    return alpha_dot * x0 + sigma_dot * x1


@dataclasses.dataclass(frozen=True)
class ODEEuler(Kernel):
    """x + (s - t) velocity."""

    @property
    def stochastic(self) -> bool:
        return False

    def moments(self, x, x0, x1, t, s):
        return x + (s - t) * _ode_velocity(self.interpolant, x0, x1, t, s), jnp.zeros_like(t)


@dataclasses.dataclass(frozen=True)
class ODEHeun(ODEEuler):
    """Euler predictor, then `correct` with the mean of both ends' velocities."""

    @property
    def evaluations(self) -> int:
        return 2

    def correct(
        self,
        x: jax.Array,
        x0: jax.Array,
        x1: jax.Array,
        next_x0: jax.Array,
        next_x1: jax.Array,
        t: jax.Array,
        s: jax.Array,
    ) -> jax.Array:
        """x_s from x at t, given the means there and at the predicted point at s."""
        t, s = _as_time("t", t, x), _as_time("s", s, x)
        here = _ode_velocity(self.interpolant, x0, x1, t, s)
        there = _ode_velocity(self.interpolant, next_x0, next_x1, s, t)
        return x + 0.5 * (s - t) * (here + there)


@dataclasses.dataclass(frozen=True)
class EulerMaruyama(Kernel):
    """x + (s - t) [velocity - (g^2 / 2) score] + g sqrt(t - s) eps."""

    diffusion: Diffusion

    def moments(self, x, x0, x1, t, s):
        p = self.interpolant
        g = self.diffusion(p, t)
        middle = 0.5 * (t + s)
        # Between neighbouring floats the middle rounds to an end.
        middle = jnp.where(middle < t, middle, s)
        g = jnp.where(jnp.isfinite(g), g, self.diffusion(p, middle))
        sigma = p.sigma(t)
        noisy = sigma > 0.0
        score = jnp.where(noisy, -x1 / jnp.where(noisy, sigma, 1.0), 0.0)
        drift = _ode_velocity(p, x0, x1, t, s) - 0.5 * jnp.square(g) * score
        return x + (s - t) * drift, g * jnp.sqrt(jnp.maximum(t - s, 0.0))


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
        p, v = self.interpolant, self.data_variance
        zeta, rho = self.zeta_and_rho(t, s)
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


def _noise_ratio(p: Interpolant, t: jax.Array, s: jax.Array) -> jax.Array:
    """tan(angle_s) / tan(angle_t), at most 1 for s <= t."""
    below = p.alpha(s) * p.sigma(t)
    ratio = p.alpha(t) * p.sigma(s) / jnp.where(below > 0.0, below, 1.0)
    return jnp.clip(jnp.where(below > 0.0, ratio, 1.0), 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class DDIM(_Posterior):
    """zeta = eta sigma_s sqrt(1 - (alpha_t sigma_s / alpha_s sigma_t)^2)."""

    def zeta_and_rho(self, t, s):
        ratio = _noise_ratio(self.interpolant, t, s)
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


def _interpolant(p: Any) -> Interpolant:
    if not isinstance(p, Interpolant):
        raise TypeError(f"interpolant must be a flowsde Interpolant, got {type(p).__name__}")
    return p


def ode_euler(interpolant: Interpolant) -> Kernel:
    """First-order step of the probability-flow ODE."""
    return ODEEuler(_interpolant(interpolant))


def ode_heun(interpolant: Interpolant) -> Kernel:
    """Second-order step of the probability-flow ODE, two evaluations; for `sample`."""
    return ODEHeun(_interpolant(interpolant))


def euler_maruyama(interpolant: Interpolant, diffusion: Diffusion) -> Kernel:
    """First-order step of the SDE with the given diffusion coefficient (weak order 1).

    Args:
      interpolant: of x and the times.
      diffusion: ``g(interpolant, t)``, see `flowsde.diffusion`.
    """
    if not callable(diffusion):
        raise TypeError(f"diffusion must be callable, g(interpolant, t), got {diffusion!r}")
    return EulerMaruyama(_interpolant(interpolant), diffusion)


def ddim(interpolant: Interpolant, eta: float = 1.0, data_variance: float = 0.0) -> Kernel:
    """DDIM (Song et al., 2021, arXiv 2010.02502) for any interpolant.

    Args:
      interpolant: of x and the times.
      eta: 0 keeps all noise (an ODE step), 1 redraws as much as ancestral sampling.
      data_variance: v of the module's docstring; 0 uses x0's mean.
    """
    return DDIM(_interpolant(interpolant), float(eta), float(data_variance))


def cps(interpolant: Interpolant, eta: float = 0.5, data_variance: float = 0.0) -> Kernel:
    """Coefficients-preserving sampling: a fixed share sin(eta pi / 2) of the noise is redrawn."""
    return CPS(_interpolant(interpolant), float(eta), float(data_variance))


def renoise(interpolant: Interpolant) -> Kernel:
    """The forward process from t to a noisier s > t."""
    return Renoise(_interpolant(interpolant))
