"""Multistep solvers of the ODE: second order from one evaluation a step, by remembering the last.

A step takes what the one before returned, besides the particle and its means, so these serve where
steps follow one another, `flowsde.sample` and finishing; searches move particles that have no step
before. The first step is DDIM's with eta = 0.

`ode_adams` goes in the time u = sigma / (alpha + sigma) of the linear interpolant, where the ODE is
d(x / (alpha + sigma)) / du = x1 - x0 under every interpolant, and all is finite at both ends. It
predicts by two-step Adams-Bashforth. The evaluation at the predicted point corrects the step that
led there, by the trapezoidal rule, and then serves the next one: the scheme that UniPC (Zhao et
al., 2023, arXiv 2302.04867) has for log(alpha / sigma).

`dpm_solver_2m` is DPM-Solver++(2M) (Lu et al., 2022, arXiv 2211.01095): x0 is extrapolated in
log(alpha / sigma), which is infinite at pure noise and at data, where its steps are of first order.
"""

import abc
import dataclasses
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
      x0, x1: the means that it used, [*shape].
      t: its time; 0 if there was none.
    """

    x: jax.Array
    x0: jax.Array
    x1: jax.Array
    t: jax.Array


@dataclasses.dataclass(frozen=True)
class Multistep(Static, abc.ABC):
    """A deterministic transition of one particle that depends on the one before.

    Attributes:
      interpolant: in which x and times are.
      evaluations: model evaluations a step, 1.
    """

    interpolant: Interpolant

    @property
    def evaluations(self) -> int:
        return 1

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
        now = Before(self.corrected(before, x, x0, x1, t), x0, x1, t)
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


def ode_adams(interpolant: Interpolant) -> Multistep:
    """Two-step Adams with a free corrector: order 2, one evaluation a step; for `sample`."""
    return ODEAdams(check_interpolant(interpolant))


def dpm_solver_2m(interpolant: Interpolant) -> Multistep:
    """DPM-Solver++(2M): order 2, one evaluation a step; for `sample`."""
    return DPMSolver2M(check_interpolant(interpolant))
