"""Kernels that discretise the flow's ODE or SDE in t: Euler, Heun, Euler-Maruyama."""

import abc
import dataclasses

import jax
import jax.numpy as jnp

from flowsde.diffusion import Diffusion, check_diffusion, coefficient
from flowsde.interpolants import Interpolant
from flowsde.kernels.base import Kernel, as_time, check_interpolant, check_particle


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


def _middle(t: jax.Array, other: jax.Array) -> jax.Array:
    middle = 0.5 * (t + other)
    # Between neighbouring floats the middle rounds to an end.
    return jnp.where(middle == t, other, middle)


@dataclasses.dataclass(frozen=True)
class _Euler(Kernel):
    """x + (s - t) drift(t) + noise; `correct` replaces the drift by the mean of both ends'."""

    @abc.abstractmethod
    def drift(self, x0: jax.Array, x1: jax.Array, t: jax.Array, other: jax.Array) -> jax.Array:
        """dx / dt at t, in a step between t and `other`."""

    def correct(self, x, x0, x1, moved, next_x0, next_x1, t, s):
        check_particle(x, x0, x1, moved, next_x0, next_x1)
        t, s = as_time("t", t, x), as_time("s", s, x)
        change = self.drift(next_x0, next_x1, s, t) - self.drift(x0, x1, t, s)
        return moved + 0.5 * (s - t) * change


@dataclasses.dataclass(frozen=True)
class ODEEuler(_Euler):
    """x + (s - t) velocity."""

    @property
    def stochastic(self) -> bool:
        return False

    def drift(self, x0, x1, t, other):
        return _ode_velocity(self.interpolant, x0, x1, t, other)

    def moments(self, x, x0, x1, t, s):
        return x + (s - t) * self.drift(x0, x1, t, s), jnp.zeros_like(t)


@dataclasses.dataclass(frozen=True)
class ODEHeun(ODEEuler):
    """Euler predictor, then `correct` with the mean of both ends' velocities."""

    @property
    def evaluations(self) -> int:
        return 2


@dataclasses.dataclass(frozen=True)
class EulerMaruyama(_Euler):
    """x + (s - t) [velocity - (g^2 / 2) score] + g sqrt(t - s) eps."""

    diffusion: Diffusion

    def coefficient(self, t: jax.Array, other: jax.Array) -> jax.Array:
        """g at t, at the step's middle where it is infinite."""
        g = self._g(t)
        return jnp.where(jnp.isfinite(g), g, self._g(_middle(t, other)))

    def _g(self, t: jax.Array) -> jax.Array:
        return coefficient(self.diffusion, self.interpolant, t)

    def drift(self, x0, x1, t, other):
        p = self.interpolant
        g = self.coefficient(t, other)
        sigma = p.sigma(t)
        noisy = sigma > 0.0
        score = jnp.where(noisy, -x1 / jnp.where(noisy, sigma, 1.0), 0.0)
        return _ode_velocity(p, x0, x1, t, other) - 0.5 * jnp.square(g) * score

    def moments(self, x, x0, x1, t, s):
        g = self.coefficient(t, s)
        return x + (s - t) * self.drift(x0, x1, t, s), g * jnp.sqrt(jnp.maximum(t - s, 0.0))


@dataclasses.dataclass(frozen=True)
class SDEHeun(EulerMaruyama):
    """Euler-Maruyama predictor with g at the step's middle in the noise, then `correct`."""

    @property
    def evaluations(self) -> int:
        return 2

    def moments(self, x, x0, x1, t, s):
        g = self._g(_middle(t, s))
        return x + (s - t) * self.drift(x0, x1, t, s), g * jnp.sqrt(jnp.maximum(t - s, 0.0))

    def correct(self, x, x0, x1, moved, next_x0, next_x1, t, s):
        corrected = super().correct(x, x0, x1, moved, next_x0, next_x1, t, s)
        # The score at s is not computable from x1 = 0 there.
        return jnp.where(self.interpolant.sigma(as_time("s", s, x)) > 0.0, corrected, moved)


def ode_euler(interpolant: Interpolant) -> Kernel:
    """First-order step of the probability-flow ODE.

    Example:
      >>> x0, x1 = jnp.array([2.0]), jnp.array([-2.0])
      >>> x = 0.75 * x0 + 0.25 * x1  # at t = 0.25
      >>> kernel = fs.kernels.ode_euler(fs.interpolants.linear())
      >>> kernel(jax.random.key(0), x, x0, x1, 0.25, 0.125).tolist()  # x + (s - t) (x1 - x0)
      [1.5]
    """
    return ODEEuler(check_interpolant(interpolant))


def ode_heun(interpolant: Interpolant) -> Kernel:
    """Second-order step of the probability-flow ODE, two evaluations; for `sample`.

    Example:
      >>> kernel = fs.kernels.ode_heun(fs.interpolants.linear())
      >>> kernel.evaluations, kernel.stochastic
      (2, False)
    """
    return ODEHeun(check_interpolant(interpolant))


def euler_maruyama(interpolant: Interpolant, diffusion: Diffusion) -> Kernel:
    """First-order step of the SDE with the given diffusion coefficient (weak order 1).

    Args:
      interpolant: of x and the times.
      diffusion: ``g(interpolant, t)``, see `flowsde.diffusion`.

    Example:
      >>> x0, x1 = jnp.array([2.0]), jnp.array([-2.0])
      >>> x = 0.75 * x0 + 0.25 * x1  # at t = 0.25
      >>> kernel = fs.kernels.euler_maruyama(fs.interpolants.linear(), fs.diffusion.square(3.0))
      >>> mean, std = kernel.moments(x, x0, x1, jnp.float32(0.25), jnp.float32(0.125))
      >>> print(f"{mean[0]:.3f} {std:.3f}")
      1.518 0.066
    """
    return EulerMaruyama(check_interpolant(interpolant), check_diffusion(diffusion))


def sde_heun(interpolant: Interpolant, diffusion: Diffusion) -> Kernel:
    """Stochastic Heun step of the SDE (weak order 2), two evaluations; for `sample`.

    With drift f = velocity - (g^2 / 2) score, h = s - t and one draw of noise eps,

        x_p = x + h f(x, t) + g(middle) sqrt(|h|) eps,
        x_s = x_p + (h / 2) [f(x_p, s) - f(x, t)]

    (Kloeden & Platen, 1992, chapter 15, for additive noise: g depends on time alone). g at the
    middle makes the noise's variance the integral of g^2 to within O(h^3). Where sigma_s = 0 the
    score at s is not computable and x_s = x_p: one step with a local error of O(h^2), which
    leaves the order of the whole at 2. Explicit as `euler_maruyama` is, it needs
    g^2 |h| < 4 (alpha^2 v + sigma^2) at modes of variance v, or its score term no longer contracts.

    Args:
      interpolant: of x and the times.
      diffusion: ``g(interpolant, t)``, see `flowsde.diffusion`.

    Example:
      >>> kernel = fs.kernels.sde_heun(fs.interpolants.linear(), fs.diffusion.square(3.0))
      >>> kernel.evaluations, kernel.stochastic
      (2, True)
    """
    return SDEHeun(check_interpolant(interpolant), check_diffusion(diffusion))
