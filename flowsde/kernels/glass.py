"""GLASS: a transition that samples the posterior by an inner ODE (arXiv 2509.25170).

Let rho be the correlation of the noise at t and at s, given the data z. Then x_t and

    x_s = abar z + gamma x_t + sbar eps,    gamma = rho sigma_s / sigma_t,
    abar = alpha_s - gamma alpha_t,         sbar = sigma_s sqrt(1 - rho^2),

with eps independent of x_t, have the right marginals for every rho in [-1, 1]. Kernels of one
evaluation put the mean of z given x_t in its place. GLASS samples z: the ODE of the path

    y_tau = A z + S eps,    A = tau abar,    S = (1 - tau) + tau sbar,

follows from noise at tau = 0 to y_1 = x_s - gamma x_t, conditionally on x_t. Since x_t and y have
independent noise, what they say of z together is

    lambda = (alpha_t / sigma_t)^2 + (A / S)^2,
    m = (alpha_t x_t / sigma_t^2 + A y / S^2) / lambda ~ N(z, 1 / lambda),

an observation at the time t* of the noise level sigma / alpha = lambda^-1/2: E[z | x_t, y] is the
model's x0 at (alpha_{t*} m, t*). A step of Euler in the parameters of the path, DDIM(0), is

    y' = A' E[z | x_t, y] + S' (y - A E[z | x_t, y]) / S.

At tau = 0, y says nothing and the mean is that at the particle itself, which is known: of M inner
steps the first takes no evaluation. What is stored on the way is y + gamma x_t, which ends as x_s.
With M = 1 this is x_s = alpha_s x0 + sigma_s (rho x1 + sqrt(1 - rho^2) eps), as `cps` and `ddim`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from flowsde._checks import check_count, check_float, check_non_negative
from flowsde.interpolants import Interpolant
from flowsde.kernels.base import Kernel, as_time, check_interpolant, check_particle
from flowsde.kernels.posterior import noise_ratio

RHO = 0.4
"""Of the noise where nothing else is said: the best of the paper's on FLUX."""


@dataclasses.dataclass(frozen=True)
class GLASS(Kernel):
    """See `glass`."""

    inner_steps: int
    rho: float | None = None
    kappa: float | None = None

    @property
    def evaluations(self) -> int:
        return self.inner_steps

    @property
    def inner_evaluations(self) -> int:
        return self.inner_steps - 1

    @property
    def stochastic(self) -> bool:
        """Also where no noise is fresh: x0 is drawn, if there are steps to draw it by."""
        fresh = self.kappa != 0.0 and (self.rho is None or abs(self.rho) < 1.0)
        return fresh or self.inner_steps > 1

    def correlation(self, t: jax.Array, s: jax.Array) -> jax.Array:
        """rho of a transition."""
        if self.kappa is None:
            return jnp.full_like(t, RHO if self.rho is None else self.rho)
        return noise_ratio(self.interpolant, t, s) ** self.kappa

    def _ends(self, t: jax.Array, s: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(gamma, abar, sbar)."""
        p, rho = self.interpolant, self.correlation(t, s)
        sigma_t, sigma_s = p.sigma(t), p.sigma(s)
        gamma = rho * sigma_s / jnp.where(sigma_t > 0.0, sigma_t, 1.0)
        return gamma, p.alpha(s) - gamma * p.alpha(t), sigma_s * jnp.sqrt((1.0 - rho) * (1.0 + rho))

    def _path(
        self, step: jax.Array | int, t: jax.Array, s: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(gamma, A, S) after so many inner steps."""
        gamma, alpha, sigma = self._ends(t, s)
        tau = jnp.asarray(step, t.dtype) / self.inner_steps
        return gamma, tau * alpha, (1.0 - tau) + tau * sigma

    def begin(self, x, x0, x1, t, s):
        gamma, alpha, sigma = self._path(1, t, s)
        return alpha * x0 + gamma * x, sigma

    def moments(self, x, x0, x1, t, s):
        self._check_alone()
        return self.begin(x, x0, x1, t, s)

    def __call__(self, key, x, x0, x1, t, s):
        self._check_alone()
        return self.draw(key, x, x0, x1, t, s)

    def _check_alone(self) -> None:
        if self.inner_evaluations:
            raise TypeError(
                f"{self} takes {self.inner_evaluations} evaluations of the model on the way to s, "
                f"which flowsde.sample and searches make; called alone it has inner_steps = 1"
            )

    def observe(
        self, step: jax.Array | int, x: jax.Array, moved: jax.Array, t: jax.Array, s: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(point, t*) at which the model says E[z | x_t, y].

        Args:
          step: inner steps so far, 1 to M - 1.
          x: the particle at t.
          moved: y + gamma x after these steps.
          t, s: scalar times.
        """
        check_particle(x, moved)
        t, s, p = as_time("t", t, x), as_time("s", s, x), self.interpolant
        gamma, alpha, sigma = self._path(step, t, s)
        sigma_t = jnp.where(p.sigma(t) > 0.0, p.sigma(t), 1.0)
        outer, inner = p.alpha(t) / sigma_t, alpha / sigma
        precision = jnp.square(outer) + jnp.square(inner)
        time = jnp.minimum(p.time(jnp.arctan2(jnp.ones_like(t), jnp.sqrt(precision))), t)
        safe = jnp.where(precision > 0.0, precision, 1.0)
        both = (outer / sigma_t) * x + (inner / sigma) * (moved - gamma * x)
        return (p.alpha(time) / safe) * both, time

    def advance(
        self,
        step: jax.Array | int,
        x: jax.Array,
        moved: jax.Array,
        x0: jax.Array,
        t: jax.Array,
        s: jax.Array,
    ) -> jax.Array:
        """`moved` after one inner step more, from x0 at what `observe` said."""
        check_particle(x, moved, x0)
        t, s = as_time("t", t, x), as_time("s", s, x)
        gamma, alpha, sigma = self._path(step, t, s)
        _, next_alpha, next_sigma = self._path(step + 1, t, s)
        noise = (moved - gamma * x - alpha * x0) / sigma
        return next_alpha * x0 + next_sigma * noise + gamma * x

    def arrive(self, means, x, moved, t, s):
        def one(step: jax.Array, moved: jax.Array) -> jax.Array:
            point, time = jax.vmap(self.observe, (None, 0, 0, 0, 0))(step, x, moved, t, s)
            x0, _ = means(point, time)
            return jax.vmap(self.advance, (None, 0, 0, 0, 0, 0))(step, x, moved, x0, t, s)

        return jax.lax.fori_loop(1, self.inner_steps, one, moved)


def glass(
    interpolant: Interpolant,
    inner_steps: int = 4,
    rho: float | None = None,
    kappa: float | None = None,
) -> Kernel:
    """GLASS transitions (Holderrieth et al., 2025, arXiv 2509.25170): x0 is drawn, not its mean.

    A transition takes M evaluations, of which M - 1 are its own: the first inner step needs no
    more than the means at the particle, which all its children share. Without a density in closed
    form unless M = 1.

    Args:
      interpolant: of x and the times.
      inner_steps: M, of the inner ODE from noise to a draw of x_s; first order in 1 / M.
      rho: correlation of the noise at both ends, -1 to 1, by default 0.4; the further from 1, the
        more is redrawn. Towards 1 the spread comes from few inner steps alone, and is too small.
      kappa: in place of rho, the power of that of the reverse SDE, whose kappa is 1; at least 0.

    Raises:
      ValueError, TypeError: naming the argument.

    Example:
      >>> kernel = fs.kernels.glass(fs.interpolants.linear(), inner_steps=4)
      >>> kernel.inner_evaluations, kernel.stochastic  # beside the one at the start
      (3, True)
    """
    p, steps = check_interpolant(interpolant), check_count("inner_steps", inner_steps)
    if kappa is not None:
        if rho is not None:
            raise ValueError(f"rho must be left out with kappa, got {rho} and {kappa}")
        check_non_negative("kappa", kappa)
        return GLASS(p, steps, kappa=float(kappa))
    rho = RHO if rho is None else rho
    check_float("rho", rho)
    if not -1.0 <= rho <= 1.0:
        raise ValueError(f"rho must lie in [-1, 1], got {rho}")
    return GLASS(p, steps, rho=float(rho))
