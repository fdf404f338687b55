"""A kernel tilted by the gradient of a reward."""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from flowsde._checks import check_non_negative, check_positive
from flowsde.kernels.base import Kernel, as_time, standard_normal
from flowsde.kernels.renoise import Renoise


@dataclasses.dataclass(frozen=True)
class ByGradient(Kernel):
    """Base of kernels that take the gradient of the reward, last; Gaussian given it.

    Attributes:
      inner: the kernel that it moves, see `check_tiltable`.
    """

    inner: Kernel

    @property
    def uses_gradient(self) -> bool:
        return True

    @abc.abstractmethod
    def tilted(
        self, mean: jax.Array, std: jax.Array, gradient: jax.Array, t: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(mean, std) of the inner kernel's, moved by the gradient [shape] at t."""

    def moments(self, x, x0, x1, t, s, gradient=None):
        if gradient is None:
            raise TypeError(
                f"{type(self).__name__} needs the gradient of a reward, which searches give it"
            )
        t, s = as_time("t", t, x), as_time("s", s, x)
        return self.tilted(*self.inner.moments(x, x0, x1, t, s), gradient, t)

    def __call__(self, key, x, x0, x1, t, s, gradient=None):
        mean, std = self.moments(x, x0, x1, t, s, gradient)
        return mean + std * standard_normal(key, x.shape, x.dtype)


@dataclasses.dataclass(frozen=True)
class Guided(ByGradient):
    """The inner kernel's draw, moved by std^2 / temperature times the gradient of the reward."""

    temperature: float
    curvature: float | None = None
    data_variance: float | None = None

    def tilted(self, mean, std, gradient, t):
        return mean + (jnp.square(std) / self._temperature(t)) * gradient, std

    def _temperature(self, t: jax.Array) -> Any:
        """beta; with damping beta + 2 c times the posterior variance of x0."""
        if self.curvature is None or self.data_variance is None:
            return self.temperature
        alpha, sigma = jnp.square(self.interpolant.alpha(t)), jnp.square(self.interpolant.sigma(t))
        spread = self.data_variance * sigma / (alpha * self.data_variance + sigma)
        return self.temperature + 2.0 * self.curvature * spread

    def log_prob(self, x_s, x, x0, x1, t, s, gradient=None):
        """Log density of x_s given x and the gradient there."""
        plain, _ = self.inner.moments(x, x0, x1, as_time("t", t, x), as_time("s", s, x))
        mean, _ = self.moments(x, x0, x1, t, s, gradient)
        return self.inner.log_prob(x_s - (mean - plain), x, x0, x1, t, s)


def check_tiltable(kernel: Any) -> Kernel:
    """A kernel that a gradient can move, by its variance; TypeError or ValueError."""
    reverse = isinstance(kernel, Kernel) and not isinstance(kernel, Renoise)
    if not reverse or kernel.uses_gradient:
        raise TypeError(f"kernel must be a reverse-time flowsde Kernel, got {kernel!r}")
    if not kernel.stochastic or kernel.evaluations != 1:
        raise ValueError(
            f"kernel must be stochastic with one evaluation a step (euler_maruyama, ddim, cps): "
            f"the gradient moves it in proportion to its variance; got {type(kernel).__name__}"
        )
    return kernel


def reward_gradient(
    kernel: Kernel,
    temperature: float,
    curvature: float | None = None,
    data_variance: float | None = None,
) -> Kernel:
    """A stochastic kernel tilted by the reward's linearisation at the particle.

    N(mean, std^2 I) times exp(gradient . x_s / temperature) is N(mean + std^2 gradient /
    temperature, std^2 I): the drift of DPS (Chung et al., 2023, arXiv 2209.14687) with g^2 for its
    step size, and the proposal of twisted diffusion samplers (Wu et al., 2023, arXiv 2306.17775).
    The gradient is that of the reward of the decoded posterior mean in x, through the model; a
    search with such a kernel asks for it, one backward pass a candidate.

    The reward of the mean is not the mean of exp(reward / temperature): where x0 is uncertain the
    plain gradient pulls too far. Damping (arXiv 2606.02884) divides it by 1 + 2 c v_t / temperature
    with v_t = v sigma_t^2 / (alpha_t^2 v + sigma_t^2), the posterior variance of x0 for data of
    variance v. For isotropic Gaussian data and a reward -c |x0 - a|^2 that is the exact gradient of
    log E[exp(reward / temperature) | x_t].

    Args:
      kernel: stochastic, with one evaluation a step.
      temperature: beta > 0, in units of the reward; the less, the stronger the pull.
      curvature: c >= 0 of the reward, in its units by those of x0 squared; None does not damp.
      data_variance: v, above 0, of the damping; None is that of the kernel.

    Raises:
      ValueError, TypeError: naming the argument.

    Example:
      >>> ddim = fs.kernels.ddim(fs.interpolants.linear())
      >>> kernel = fs.kernels.reward_gradient(ddim, temperature=0.1)
      >>> kernel.uses_gradient, ddim.uses_gradient
      (True, False)
    """
    check_positive("temperature", temperature)
    kernel = check_tiltable(kernel)
    if curvature is None:
        if data_variance is not None:
            raise ValueError(
                f"data_variance is of the damping, which a curvature makes, got {data_variance} "
                f"without"
            )
        return Guided(kernel.interpolant, kernel, float(temperature))
    check_non_negative("curvature", curvature)
    own = getattr(kernel, "data_variance", 0.0) if data_variance is None else data_variance
    check_positive("data_variance", own)
    return Guided(kernel.interpolant, kernel, float(temperature), float(curvature), float(own))


guided = reward_gradient
"""The former name of `reward_gradient`, for one release."""
