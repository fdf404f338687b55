"""The curve of two functions of time."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from flowsde._exact import Now
from flowsde.interpolants.base import Interpolant


@dataclasses.dataclass(frozen=True)
class FromFunctions(Interpolant):
    """Any curve given by two elementwise functions of time whose angle rises.

    Derivatives are exact (forward mode); the inverse of the angle is found by bisection, to
    the last bit of the dtype, and carries no gradient.
    """

    alpha_fn: Callable[[jax.Array], jax.Array]
    sigma_fn: Callable[[jax.Array], jax.Array]

    def alpha(self, t):
        return self.alpha_fn(t)

    def sigma(self, t):
        return self.sigma_fn(t)

    def alpha_dot(self, t):
        return _derivative(self.alpha_fn, t)

    def sigma_dot(self, t):
        return _derivative(self.sigma_fn, t)

    def time(self, angle):
        return jax.lax.stop_gradient(_bisect(Now(self), angle))


@functools.partial(jax.jit, static_argnums=0)
def _bisect(now: Now, angle: jax.Array) -> jax.Array:
    p: Interpolant = now.value

    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        above = p.angle(middle) > angle
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    start = (jnp.zeros_like(angle), jnp.ones_like(angle))
    low, high = jax.lax.fori_loop(0, 80, halve, start)
    # The bracket never touches the ends themselves: return them when the angle does.
    inside = jnp.where(angle >= p.angle(jnp.ones_like(angle)), 1.0, 0.5 * (low + high))
    return jnp.where(angle <= 0.0, 0.0, inside).astype(angle.dtype)


def _derivative(fn: Callable[[jax.Array], jax.Array], t: jax.Array) -> jax.Array:
    return jax.jvp(fn, (t,), (jnp.ones_like(t),))[1]


def _check_curve(curve: FromFunctions) -> None:
    t = jnp.linspace(0.0, 1.0, 65, dtype=jnp.float32)
    a, s = curve.alpha(t), curve.sigma(t)
    for name, values in (("alpha", a), ("sigma", s)):
        if jnp.shape(values) != t.shape or not bool(jnp.isfinite(values).all()):
            raise ValueError(f"{name} must map times [n] in [0, 1] to finite values [n]")
    if abs(float(a[0]) - 1.0) > 1e-5 or abs(float(s[0])) > 1e-5:
        raise ValueError(f"expected alpha(0) = 1 and sigma(0) = 0, got {a[0]} and {s[0]}")
    if not bool((jnp.diff(curve.angle(t)) > 0.0).all()):
        raise ValueError("atan2(sigma, alpha) must rise strictly from t = 0 to t = 1")


def from_functions(
    alpha: Callable[[jax.Array], jax.Array], sigma: Callable[[jax.Array], jax.Array]
) -> Interpolant:
    """Interpolant of two elementwise, differentiable functions of time.

    Args:
      alpha: with alpha(0) = 1, falling.
      sigma: with sigma(0) = 0, rising.

    Raises:
      ValueError: the ends are wrong, a value is not finite, or the angle does not rise.

    Example:
      >>> p = fs.interpolants.from_functions(lambda t: 1 - t**2, lambda t: t**2)
      >>> print(f"{p.alpha(0.5):.2f} {p.sigma(0.5):.2f} {p.sigma_dot(0.5):.2f}")
      0.75 0.25 1.00
    """
    curve = FromFunctions(alpha, sigma)
    with jax.ensure_compile_time_eval():  # so that it may be built while tracing
        _check_curve(curve)
    return curve
