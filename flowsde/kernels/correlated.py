"""Kernels that keep a share rho of the noise, at the noise level of the interpolant.

    x_s = alpha_s x0 + sigma_s (rho x1 + sqrt(1 - rho^2) eps).

DDIM and CPS are of this form too. `correlated` has a free rho, or a power of ancestral sampling's
(the family of Holderrieth et al., 2025, arXiv 2509.25170, in one inner step). `exact` has the rho
of an SDE: with x0 and x1 frozen during the step, the SDE of any g is solved by it exactly, see
`flowsde.kernels.turnover`. Euler-Maruyama, with the same g and as many evaluations, freezes
coefficients of t as well, and leaves the interpolant's noise level.
"""

import abc
import dataclasses

import jax
import jax.numpy as jnp

from flowsde._checks import check_non_negative
from flowsde.diffusion import Diffusion, check_diffusion
from flowsde.interpolants import Interpolant
from flowsde.kernels.base import Kernel, check_interpolant
from flowsde.kernels.posterior import noise_ratio, recombined
from flowsde.kernels.turnover import turnover


@dataclasses.dataclass(frozen=True)
class _KeepsNoise(Kernel):
    data_variance: float = dataclasses.field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        check_non_negative("data_variance", self.data_variance)

    @abc.abstractmethod
    def shares(self, t: jax.Array, s: jax.Array) -> tuple[jax.Array, jax.Array]:
        """rho and sqrt(1 - rho^2), scalars: shares of the noise that are kept and fresh."""

    def moments(self, x, x0, x1, t, s):
        p = self.interpolant
        kept, fresh = self.shares(t, s)
        sigma = p.sigma(s)
        return recombined(p, self.data_variance, x0, x1, t, s, sigma * fresh, sigma * kept)


@dataclasses.dataclass(frozen=True)
class Correlated(_KeepsNoise):
    """rho itself, or (alpha_t sigma_s / alpha_s sigma_t)^kappa, whichever is not None."""

    rho: float | None
    kappa: float | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.rho is None) == (self.kappa is None):
            raise ValueError(
                f"rho excludes kappa: one of them must be a number, got rho = {self.rho} and "
                f"kappa = {self.kappa}"
            )
        if self.rho is not None and not -1.0 <= self.rho <= 1.0:
            raise ValueError(f"rho must lie in [-1, 1], got {self.rho}")
        if self.kappa is not None:
            check_non_negative("kappa", self.kappa)

    @property
    def stochastic(self) -> bool:
        keeps_all = self.kappa == 0.0 if self.rho is None else abs(self.rho) == 1.0
        return not keeps_all or self.data_variance > 0.0

    def shares(self, t, s):
        if self.kappa is not None:
            kept = jnp.power(noise_ratio(self.interpolant, t, s), self.kappa)
        else:
            assert self.rho is not None
            kept = jnp.full_like(t, self.rho)
        return kept, jnp.sqrt((1.0 - kept) * (1.0 + kept))


@dataclasses.dataclass(frozen=True)
class Exact(_KeepsNoise):
    """rho = exp(-1/2 integral of g^2 / sigma^2 from s to t)."""

    diffusion: Diffusion

    def shares(self, t, s):
        renewed = turnover(self.diffusion, self.interpolant, s, t)
        return jnp.exp(-0.5 * renewed), jnp.sqrt(-jnp.expm1(-renewed))


def correlated(
    interpolant: Interpolant,
    rho: float | None = None,
    kappa: float | None = None,
    data_variance: float = 0.0,
) -> Kernel:
    """Keep the share rho of the noise at every step, whatever its length, or a power of DDPM's.

    Args:
      interpolant: of x and the times.
      rho: share of the noise that is kept, -1 to 1; 1 is an ODE step, cos(eta pi / 2) CPS.
      kappa: instead of rho, the power of ancestral sampling's share: 0 is an ODE step, 1, the
        default, DDIM with eta 1, and more adds more noise.
      data_variance: assumed variance of the data, from which each step has x0's posterior spread; 0
        takes x0's mean.

    Example:
      >>> x0, x1 = jnp.array([2.0]), jnp.array([-2.0])
      >>> x = 0.75 * x0 + 0.25 * x1  # at t = 0.25
      >>> kernel = fs.kernels.correlated(fs.interpolants.linear(), rho=0.5)
      >>> mean, std = kernel.moments(x, x0, x1, jnp.float32(0.25), jnp.float32(0.125))
      >>> print(f"{mean[0]:.3f} {std:.3f}")
      1.625 0.108
    """
    if rho is None and kappa is None:
        kappa = 1.0
    numbers = (None if a is None else float(a) for a in (rho, kappa))
    return Correlated(check_interpolant(interpolant), *numbers, data_variance=float(data_variance))


def exact(interpolant: Interpolant, diffusion: Diffusion, data_variance: float = 0.0) -> Kernel:
    """The SDE with the given diffusion coefficient, solved exactly while x0 and x1 are frozen.

    For `diffusion.forward` it is DDIM with eta 1; for `diffusion.constant` and
    `diffusion.flow_grpo` under the linear interpolant it has the closed forms of Precise-SDE
    (arXiv 2605.23522).

    Args:
      interpolant: of x and the times.
      diffusion: ``g(interpolant, t)``, see `flowsde.diffusion`. Of one's own it is integrated
        numerically; where it is infinite at t = 1, g^2 must grow at least as 1 / (1 - t) does.
      data_variance: assumed variance of the data, from which each step has x0's posterior spread; 0
        takes x0's mean.

    Example:
      >>> x0, x1 = jnp.array([2.0]), jnp.array([-2.0])
      >>> x = 0.75 * x0 + 0.25 * x1  # at t = 0.25
      >>> kernel = fs.kernels.exact(fs.interpolants.linear(), fs.diffusion.square(3.0))
      >>> mean, std = kernel.moments(x, x0, x1, jnp.float32(0.25), jnp.float32(0.125))
      >>> print(f"{mean[0]:.3f} {std:.3f}")
      1.505 0.025
    """
    p, g = check_interpolant(interpolant), check_diffusion(diffusion)
    return Exact(p, g, data_variance=float(data_variance))
