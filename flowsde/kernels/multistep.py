"""Multistep solvers of the ODE: second order from one evaluation a step, by remembering the last.

A step takes what the one before returned, besides the particle and its means, so these serve where
steps follow one another: `flowsde.sample`, finishing, and searches that follow trajectories from
noise (`flowsde.search.solver`). Others move particles that have no step before. The first step is
DDIM's with eta = 0.

`ode_adams` goes in the time u = sigma / (alpha + sigma) of the linear interpolant, where the ODE is
d(x / (alpha + sigma)) / du = x1 - x0 under every interpolant, and all is finite at both ends. It
predicts by two-step Adams-Bashforth. The evaluation at the predicted point corrects the step that
led there, by the trapezoidal rule, and then serves the next one: the scheme that UniPC (Zhao et
al., 2023, arXiv 2302.04867) has for log(alpha / sigma).

`dpm_solver_2m` is DPM-Solver++(2M) (Lu et al., 2022, arXiv 2211.01095): x0 is extrapolated in
log(alpha / sigma), which is infinite at pure noise and at data, where its steps are of first order.

`uni_pc` is UniPC of order 2 with B(h) = e^h - 1, for x0: it predicts as `dpm_solver_2m` does, and
corrects by the evaluation at the predicted point and the two before it.
"""

import abc
import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowsde._static import Static
from flowsde.interpolants import Interpolant
from flowsde.kernels.base import as_time, check_interpolant, check_particle
from flowsde.kernels.posterior import noise_ratio


class Before(NamedTuple):
    """The step before.

    Attributes:
      x: the point that it started from, as corrected, [*shape].
      x0: the mean of data that it used, [*shape].
      x1: the mean of noise, likewise.
      t: its time; 0 if there was none.
      earlier: x0 and time of the step before it, of solvers that look back so far.

    Example:
      >>> kernel = fs.kernels.ode_adams(fs.interpolants.linear())
      >>> before = kernel.start(jnp.array([0.0]))
      >>> float(before.t)  # no step yet
      0.0
    """

    x: jax.Array
    x0: jax.Array
    x1: jax.Array
    t: jax.Array
    earlier: tuple[jax.Array, jax.Array] | None = None


@dataclasses.dataclass(frozen=True)
class Multistep(Static, abc.ABC):
    """A deterministic transition of one particle that depends on the one before.

    Attributes:
      interpolant: in which x and times are.
      evaluations: model evaluations a step, 1.
      stochastic: as of a `Kernel`, False.
      inner_evaluations: as of a `Kernel`, 0.

    Example:
      >>> kernel = fs.kernels.ode_adams(fs.interpolants.linear())
      >>> x, x0, x1 = jnp.array([0.0]), jnp.array([2.0]), jnp.array([-2.0])
      >>> before = kernel.start(x)
      >>> for t, s in ((0.5, 0.25), (0.25, 0.0)):
      ...     x, before = kernel(before, x, x0, x1, t, s)
      >>> x.tolist()
      [2.0]
    """

    interpolant: Interpolant

    @property
    def evaluations(self) -> int:
        return 1

    @property
    def stochastic(self) -> bool:
        return False

    @property
    def inner_evaluations(self) -> int:
        return 0

    def start(self, x: jax.Array) -> Before:
        """What the first step, from a particle shaped as x, takes for the one before."""
        zeros = jnp.zeros_like(x)
        return Before(zeros, zeros, zeros, jnp.zeros((), x.dtype))

    def __call__(
        self,
        before: Before,
        x: jax.Array,
        x0: jax.Array,
        x1: jax.Array,
        t: jax.Array,
        s: jax.Array,
    ) -> tuple[jax.Array, Before]:
        """x_s, and what the next step, from there, takes for the one before.

        Args:
          before: what the last step, or `start`, gave.
          x, x0, x1: the particle at t and the means there.
          t, s: scalar times, s < t.
        """
        check_particle(x, x0, x1, before.x)
        t, s = as_time("t", t, x), as_time("s", s, x)
        corrected = self.corrected(before, x, x0, x1, t)
        earlier = None if before.earlier is None else (before.x0, before.t)
        now = Before(corrected, x0, x1, t, earlier)
        return self.predicted(before, now, s), now

    def corrected(
        self, before: Before, x: jax.Array, x0: jax.Array, x1: jax.Array, t: jax.Array
    ) -> jax.Array:
        """The point at t, corrected by the means at the predicted one, x."""
        return x

    @abc.abstractmethod
    def predicted(self, before: Before, now: Before, s: jax.Array) -> jax.Array:
        """x_s."""


@dataclasses.dataclass(frozen=True)
class ODEAdams(Multistep):
    """Adams-Bashforth, corrected by the trapezoidal rule, in the linear interpolant's time."""

    def _scale_and_time(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        alpha, sigma = self.interpolant.alpha(t), self.interpolant.sigma(t)
        return alpha + sigma, sigma / (alpha + sigma)

    def corrected(self, before, x, x0, x1, t):
        (scale, u), (last_scale, last_u) = map(self._scale_and_time, (t, before.t))
        slope = 0.5 * ((before.x1 - before.x0) + (x1 - x0))
        corrected = scale * (before.x / last_scale + (u - last_u) * slope)
        return jnp.where(before.t > t, corrected, x)

    def predicted(self, before, now, s):
        scale, u = self._scale_and_time(now.t)
        next_scale, next_u = self._scale_and_time(s)
        slope, last = now.x1 - now.x0, before.x1 - before.x0
        step, last_step = next_u - u, u - self._scale_and_time(before.t)[1]
        known = last_step < 0.0
        weight = jnp.where(known, 0.5 * step / jnp.where(known, last_step, 1.0), 0.0)
        return next_scale * (now.x / scale + step * (slope + weight * (slope - last)))


@dataclasses.dataclass(frozen=True)
class DPMSolver2M(Multistep):
    """DDIM's step with eta = 0 and an x0 that is extrapolated in log(alpha / sigma)."""

    def predicted(self, before, now, s):
        p = self.interpolant
        ratio, last_ratio = noise_ratio(p, now.t, s), noise_ratio(p, before.t, now.t)
        finite = (ratio > 0.0) & (last_ratio > 0.0) & (last_ratio < 1.0) & (before.t > now.t)
        step, last_step = (jnp.log(jnp.where(finite, r, 0.5)) for r in (ratio, last_ratio))
        weight = jnp.where(finite, 0.5 * step / last_step, 0.0)
        x0 = now.x0 + weight * (now.x0 - before.x0)
        return p.alpha(s) * (now.x0 + (1.0 - ratio) * (x0 - now.x0)) + p.sigma(s) * now.x1


def _phi(h: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """phi_1, phi_2 and phi_3 of -h: means of e^(-h (1 - a)) a^k / k! over a in [0, 1].

    phi_3 is a series where h is small, as differences would cancel.
    """
    small = h < 0.3
    near, far = jnp.where(small, h, 0.0), jnp.where(small, 1.0, h)
    series = sum((-near) ** k / math.factorial(k + 3) for k in range(7))
    phi_3 = jnp.where(small, series, (0.5 - (far + jnp.expm1(-far)) / far**2) / far)
    phi_2 = 0.5 - h * phi_3
    return 1.0 - h * phi_2, phi_2, phi_3


@dataclasses.dataclass(frozen=True)
class UniPC(DPMSolver2M):
    """DPM-Solver++(2M), corrected by UniC of order 2; of order 1 where one step is remembered."""

    def start(self, x: jax.Array) -> Before:
        before = super().start(x)
        return before._replace(earlier=(before.x0, before.t))

    def corrected(self, before, x, x0, x1, t):
        p = self.interpolant
        assert before.earlier is not None
        earlier_x0, earlier_t = before.earlier
        ratio, last_ratio = noise_ratio(p, before.t, t), noise_ratio(p, earlier_t, before.t)
        remembered = earlier_t > before.t
        # A time of pure noise is infinitely far, and says nothing of how x0 changes.
        h, last_h = (-jnp.log(jnp.clip(r, 1e-30, 0.9999999)) for r in (ratio, last_ratio))
        phi_1, phi_2, phi_3 = _phi(h)
        share = (phi_2 - 2.0 * phi_3) / phi_1 / (1.0 + last_h / h)
        share = jnp.where(remembered & (last_ratio > 0.0), share, 0.0)
        weight = jnp.where(remembered, phi_2 / phi_1, 0.5) - share
        slope = share * h / last_h * (before.x0 - earlier_x0) + weight * (x0 - before.x0)
        sigma = jnp.where(before.t > t, p.sigma(before.t), 1.0)
        kept = p.sigma(t) / sigma * before.x
        corrected = kept + p.alpha(t) * (1.0 - ratio) * (before.x0 + slope)
        return jnp.where(before.t > t, corrected, x)

    def predicted(self, before, now, s):
        p = self.interpolant
        # Of the corrected point.
        x1 = (now.x - p.alpha(now.t) * now.x0) / p.sigma(now.t)
        return super().predicted(before, now._replace(x1=x1), s)


def ode_adams(interpolant: Interpolant) -> Multistep:
    """Two-step Adams with a free corrector: order 2, one evaluation a step.

    Example:
      >>> x0, x1 = jnp.array([2.0]), jnp.array([-2.0])
      >>> x = 0.75 * x0 + 0.25 * x1  # at t = 0.25
      >>> kernel = fs.kernels.ode_adams(fs.interpolants.linear())
      >>> x_s, before = kernel(kernel.start(x), x, x0, x1, 0.25, 0.125)
      >>> print(f"{x_s[0]:.2f}")  # exact, as x0 and x1 are constant
      1.50
    """
    return ODEAdams(check_interpolant(interpolant))


def dpm_solver_2m(interpolant: Interpolant) -> Multistep:
    """DPM-Solver++(2M): order 2, one evaluation a step.

    Example:
      >>> x0, x1 = jnp.array([2.0]), jnp.array([-2.0])
      >>> x = 0.75 * x0 + 0.25 * x1  # at t = 0.25
      >>> kernel = fs.kernels.dpm_solver_2m(fs.interpolants.linear())
      >>> x_s, before = kernel(kernel.start(x), x, x0, x1, 0.25, 0.125)
      >>> print(f"{x_s[0]:.2f}")  # exact, as x0 and x1 are constant
      1.50
    """
    return DPMSolver2M(check_interpolant(interpolant))


def uni_pc(interpolant: Interpolant) -> Multistep:
    """UniPC of order 2: DPM-Solver++(2M) with a free corrector of order 3.

    Example:
      >>> x0, x1 = jnp.array([2.0]), jnp.array([-2.0])
      >>> x = 0.75 * x0 + 0.25 * x1  # at t = 0.25
      >>> kernel = fs.kernels.uni_pc(fs.interpolants.linear())
      >>> x_s, before = kernel(kernel.start(x), x, x0, x1, 0.25, 0.125)
      >>> print(f"{x_s[0]:.2f}")  # exact, as x0 and x1 are constant
      1.50
    """
    return UniPC(check_interpolant(interpolant))
