"""What a kernel is."""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from flowsde._keys import as_key
from flowsde._static import Static
from flowsde.interpolants import Interpolant

Means = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Kernel(Static, abc.ABC):
    """A transition of one particle, Gaussian but for `correct`.

    Attributes:
      interpolant: in which x and times are.
      evaluations: model evaluations a step, 1; 2 where `correct` is to follow the call; with
        `inner_evaluations` one more than these.

    Example:
      >>> x0, x1 = jnp.array([2.0]), jnp.array([-2.0])  # of one particle of any shape
      >>> kernel = fs.kernels.ddim(fs.interpolants.linear())
      >>> kernel(jax.random.key(0), 0.5 * (x0 + x1), x0, x1, 0.5, 0.0).tolist()  # at 0 it is x0
      [2.0]
    """

    interpolant: Interpolant

    @property
    def evaluations(self) -> int:
        return 1

    @property
    def stochastic(self) -> bool:
        """Whether two keys give two children."""
        return True

    @property
    def inner_evaluations(self) -> int:
        """Those on the way from what `begin` says to x_s, which `arrive` makes; 0 if it is x_s."""
        return 0

    @property
    def uses_gradient(self) -> bool:
        """Whether a call takes, last, the gradient of the reward in x."""
        return False

    @abc.abstractmethod
    def moments(
        self, x: jax.Array, x0: jax.Array, x1: jax.Array, t: jax.Array, s: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(mean shaped as x, scalar std) of x_s, before `correct`."""

    def __call__(
        self,
        key: chex.PRNGKey,
        x: jax.Array,
        x0: jax.Array,
        x1: jax.Array,
        t: jax.Array,
        s: jax.Array,
    ) -> jax.Array:
        """Draw x_s, before `correct`."""
        return self.draw(key, x, x0, x1, t, s)

    def begin(
        self, x: jax.Array, x0: jax.Array, x1: jax.Array, t: jax.Array, s: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """(mean, std) of what is drawn, from which `arrive` goes on: here `moments`."""
        return self.moments(x, x0, x1, t, s)

    def draw(
        self,
        key: chex.PRNGKey,
        x: jax.Array,
        x0: jax.Array,
        x1: jax.Array,
        t: jax.Array,
        s: jax.Array,
    ) -> jax.Array:
        """Draw as `begin` says."""
        check_particle(x, x0, x1)
        t, s = as_time("t", t, x), as_time("s", s, x)
        mean, std = self.begin(x, x0, x1, t, s)
        check_mean(self, mean, x)
        if not self.stochastic:
            return mean
        return mean + std * standard_normal(key, x.shape, x.dtype)

    def arrive(
        self, means: Means, x: jax.Array, drawn: jax.Array, t: jax.Array, s: jax.Array
    ) -> jax.Array:
        """x_s of n particles [n, ...] from what was drawn.

        Args:
          means: ``(x, t) -> (x0, x1)`` of n points; called `inner_evaluations` times.
          x: at t.
          drawn: as `begin` says.
          t, s: times [n].
        """
        return drawn

    def correct(
        self,
        x: jax.Array,
        x0: jax.Array,
        x1: jax.Array,
        moved: jax.Array,
        next_x0: jax.Array,
        next_x1: jax.Array,
        t: jax.Array,
        s: jax.Array,
    ) -> jax.Array:
        """x_s of a kernel with two evaluations.

        Args:
          x, x0, x1: the particle at t and the means there.
          moved: what the call gave, the predicted point at s.
          next_x0, next_x1: the means at (moved, s).
          t, s: scalar times.

        Raises:
          TypeError: the kernel has one evaluation a step.
        """
        raise TypeError(f"{self} has one evaluation a step and nothing to correct")

    def log_prob(
        self,
        x_s: jax.Array,
        x: jax.Array,
        x0: jax.Array,
        x1: jax.Array,
        t: jax.Array,
        s: jax.Array,
    ) -> jax.Array:
        """Log density of x_s given x, a scalar.

        Where std = 0 (DDIM and CPS to s = 0, `euler_maruyama` where g = 0) its limit for
        std -> 0: inf at the mean itself, -inf elsewhere.

        Raises:
          ValueError: the kernel is deterministic, or has several evaluations, of which those behind
            the first make x_s a nonlinear function of the noise: no density in closed form.
        """
        if not self.stochastic:
            raise ValueError(f"{self} is deterministic and has no density")
        if self.evaluations > 1:
            raise ValueError(
                f"{self} evaluates the model at its noisy point and has no density in closed form"
            )
        check_particle(x, x0, x1, x_s)
        mean, std = self.moments(x, x0, x1, as_time("t", t, x), as_time("s", s, x))
        return normal_log_prob(x_s, mean, std)


def normal_log_prob(x: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Log density of N(mean, std^2 I), a scalar; at std = 0 its limit, inf at the mean."""
    point = std == 0.0
    safe = jnp.where(point, 1.0, std)
    quadratic = jnp.sum(jnp.square((x - mean) / safe))
    density = -0.5 * quadratic - x.size * (jnp.log(safe) + 0.5 * math.log(2.0 * math.pi))
    return jnp.where(point, jnp.where(jnp.all(x == mean), jnp.inf, -jnp.inf), density)


def standard_normal(
    key: chex.PRNGKey, shape: tuple[int, ...], dtype: Any = jnp.float32
) -> jax.Array:
    """`jax.random.normal` of a threefry key, bit for bit, drawn in one row.

    XLA compiles a loop over the last axis, for pictures their few channels: drawn in their own
    shape they take twice as long on a CPU, and five times as long to compile.
    """
    return jax.random.normal(as_key(key), (math.prod(shape),), dtype).reshape(shape)


def check_particle(*arrays: jax.Array) -> None:
    """AssertionError unless x, x0 and x1, and what comes with them, have one shape and dtype.

    Others would broadcast, silently, to the mean of another particle.
    """
    of = "a kernel's x, x0 and x1 are of one particle"
    chex.assert_equal_shape(arrays, custom_message=of)
    chex.assert_type(arrays, float, custom_message=of)


def check_mean(kernel: Any, mean: jax.Array, x: jax.Array) -> None:
    """AssertionError unless a kernel's mean is shaped as x: noise would make it of that shape."""
    of = f"the mean of kernel {type(kernel).__name__} is that of one particle x"
    chex.assert_shape(mean, x.shape, custom_message=of)


def as_time(name: str, t: Any, x: jax.Array) -> jax.Array:
    """A scalar time in x's dtype; ValueError for a batch of them."""
    if jnp.ndim(t) != 0:
        raise ValueError(
            f"{name} has shape {jnp.shape(t)}, expected a scalar: a kernel moves one particle, "
            f"use jax.vmap for a batch"
        )
    return jnp.asarray(t, x.dtype)


def check_interpolant(p: Any) -> Interpolant:
    """The interpolant, or a TypeError."""
    if not isinstance(p, Interpolant):
        raise TypeError(f"interpolant must be a flowsde Interpolant, got {type(p).__name__}")
    return p
