"""A kernel tilted by the gradient of a reward."""

import dataclasses

import jax.numpy as jnp

from flowsde._checks import check_positive
from flowsde.kernels.base import Kernel, as_time, standard_normal
from flowsde.kernels.renoise import Renoise


@dataclasses.dataclass(frozen=True)
class Guided(Kernel):
    """The inner kernel's draw, moved by std^2 / temperature times the gradient of the reward."""

    inner: Kernel
    temperature: float

    @property
    def uses_gradient(self) -> bool:
        return True

    def moments(self, x, x0, x1, t, s, gradient=None):
        if gradient is None:
            raise TypeError(
                f"{type(self).__name__} needs the gradient of a reward, which searches give it"
            )
        mean, std = self.inner.moments(x, x0, x1, as_time("t", t, x), as_time("s", s, x))
        return mean + (jnp.square(std) / self.temperature) * gradient, std

    def __call__(self, key, x, x0, x1, t, s, gradient=None):
        mean, std = self.moments(x, x0, x1, t, s, gradient)
        return mean + std * standard_normal(key, x.shape, x.dtype)

    def log_prob(self, x_s, x, x0, x1, t, s, gradient=None):
        """Log density of x_s given x and the gradient there."""
        plain, _ = self.inner.moments(x, x0, x1, as_time("t", t, x), as_time("s", s, x))
        mean, _ = self.moments(x, x0, x1, t, s, gradient)
        return self.inner.log_prob(x_s - (mean - plain), x, x0, x1, t, s)


def reward_gradient(kernel: Kernel, temperature: float) -> Kernel:
    """A stochastic kernel tilted by the reward's linearisation at the particle.

    N(mean, std^2 I) times exp(gradient . x_s / temperature) is N(mean + std^2 gradient /
    temperature, std^2 I): the drift of DPS (Chung et al., 2023, arXiv 2209.14687) with g^2 for its
    step size, and the proposal of twisted diffusion samplers (Wu et al., 2023, arXiv 2306.17775).
    The gradient is that of the reward of the decoded posterior mean in x, through the model; a
    search with such a kernel asks for it, one backward pass a candidate.

    Args:
      kernel: stochastic, with one evaluation a step.
      temperature: beta > 0, in units of the reward; the less, the stronger the pull.
    """
    check_positive("temperature", temperature)
    if not isinstance(kernel, Kernel) or isinstance(kernel, Renoise | Guided):
        raise TypeError(f"kernel must be a reverse-time flowsde Kernel, got {kernel!r}")
    if not kernel.stochastic or kernel.evaluations != 1:
        raise ValueError(
            f"kernel must be stochastic with one evaluation a step (euler_maruyama, ddim, cps): "
            f"the gradient moves it in proportion to its variance; got {type(kernel).__name__}"
        )
    return Guided(kernel.interpolant, kernel, float(temperature))


guided = reward_gradient
"""The former name of `reward_gradient`, for one release."""
