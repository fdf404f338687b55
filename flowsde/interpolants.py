"""Interpolants x_t = alpha(t) x0 + sigma(t) x1, from data (t = 0) to noise (t = 1).

An interpolant is a curve in the (alpha, sigma) quarter plane, written in polar form

    alpha = r cos(angle),   sigma = r sin(angle),

where the angle rises from 0 (data) towards pi / 2 (noise). The angle is the
signal-to-noise ratio in a form that is finite at both ends, and converting one
interpolant into another is: match the angle, rescale by the radius r
(`match_time`). Kim et al., 2025, arXiv 2503.19385, section 3.2, write the same map with
t' and c'; Albergo et al., 2023, arXiv 2303.08797, call the curves stochastic interpolants.

All methods act elementwise on float arrays of times in [0, 1], keep their dtype, and
are differentiable where the curve is. Instances are frozen and hash by value, by all that they
keep, so they can be static arguments of compiled functions.
"""

import abc
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._arrays import check_times
from flowsde._checks import check_positive
from flowsde._static import Static

__all__ = [
    "VP",
    "Cosine",
    "FromFunctions",
    "Interpolant",
    "Linear",
    "LinearVP",
    "Polynomial",
    "cosine",
    "from_functions",
    "linear",
    "linear_vp",
    "match_time",
    "polynomial",
    "vp",
]

_HALF_PI = math.pi / 2


class Interpolant(Static, abc.ABC):
    """A curve (alpha, sigma) with its derivatives and the inverse of its angle.

    Example:
      >>> p = fs.interpolants.linear()
      >>> print(f"{p.angle(0.5):.3f} {p.radius(0.5):.3f}")  # pi / 4, sqrt(1 / 2)
      0.785 0.707
      >>> print(f"{p.time(p.angle(0.3)):.1f}")
      0.3
    """

    @abc.abstractmethod
    def alpha(self, t: jax.Array) -> jax.Array:
        """Weight of the data; alpha(0) = 1, falling."""

    @abc.abstractmethod
    def sigma(self, t: jax.Array) -> jax.Array:
        """Weight of the noise; sigma(0) = 0, rising."""

    @abc.abstractmethod
    def alpha_dot(self, t: jax.Array) -> jax.Array:
        """Derivative of alpha; infinite where the curve has a vertical tangent."""

    @abc.abstractmethod
    def sigma_dot(self, t: jax.Array) -> jax.Array:
        """Derivative of sigma; infinite where the curve has a vertical tangent."""

    @abc.abstractmethod
    def time(self, angle: jax.Array) -> jax.Array:
        """Time in [0, 1] at which the angle is reached, the nearest end if it never is."""

    def angle(self, t: jax.Array) -> jax.Array:
        """atan2(sigma, alpha), in radians, from 0 (data) to at most pi / 2 (noise)."""
        return jnp.arctan2(self.sigma(t), self.alpha(t))

    def radius(self, t: jax.Array) -> jax.Array:
        """sqrt(alpha^2 + sigma^2)."""
        return jnp.hypot(self.alpha(t), self.sigma(t))

    def variance_dot(self, t: jax.Array) -> jax.Array:
        """Derivative of sigma^2; finite also where that of sigma is not."""
        return 2.0 * self.sigma(t) * self.sigma_dot(t)

    def determinant(self, t: jax.Array) -> jax.Array:
        """alpha sigma' - sigma alpha' = r^2 angle', at least 0.

        The pair (x, velocity) determines (x0, x1) where it is above 0 and finite, see `is_silent`.
        """
        return self.alpha(t) * self.sigma_dot(t) - self.sigma(t) * self.alpha_dot(t)


@dataclasses.dataclass(frozen=True)
class Linear(Interpolant):
    """alpha = 1 - t, sigma = t: rectified flow, SiT, FLUX, SD3."""

    def alpha(self, t):
        return 1.0 - t

    def sigma(self, t):
        return t

    def alpha_dot(self, t):
        return -jnp.ones_like(t)

    def sigma_dot(self, t):
        return jnp.ones_like(t)

    def time(self, angle):
        sine = jnp.sin(angle)
        return jnp.clip(sine / (sine + jnp.cos(angle)), 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class VP(Interpolant):
    """Variance preserving: alpha = exp(-T / 2), sigma^2 = 1 - exp(-T).

    T(t) = (beta_max - beta_min) t^2 / 2 + beta_min t. The curve ends short of pure
    noise, at alpha(1) = exp(-T(1) / 2) (.0066 for the usual betas); `time` maps every noisier
    angle to 1. The derivative of sigma is infinite at t = 0.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self):
        check_positive("beta_min", self.beta_min)
        if not self.beta_min <= self.beta_max < math.inf:
            raise ValueError(
                f"beta_max must be finite and at least beta_min = {self.beta_min}, "
                f"got {self.beta_max}"
            )

    def integral(self, t):
        """T(t), the integral of beta from 0 to t."""
        return (0.5 * (self.beta_max - self.beta_min) * t + self.beta_min) * t

    def beta(self, t):
        """beta(t) = beta_min + (beta_max - beta_min) t."""
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def alpha(self, t):
        return jnp.exp(-0.5 * self.integral(t))

    def sigma(self, t):
        return jnp.sqrt(-jnp.expm1(-self.integral(t)))

    def alpha_dot(self, t):
        return -0.5 * self.beta(t) * self.alpha(t)

    def sigma_dot(self, t):
        return 0.5 * self.variance_dot(t) / self.sigma(t)

    def variance_dot(self, t):
        return self.beta(t) * jnp.exp(-self.integral(t))

    def time(self, angle):
        # Each form of T = -2 log cos(angle) is exact in its half; each branch sees a safe angle.
        small = angle < 0.25 * math.pi
        near = -jnp.log1p(-jnp.square(jnp.sin(jnp.where(small, angle, 0.0))))
        cosine = jnp.cos(jnp.where(small, 0.0, angle))
        end = math.exp(-0.5 * self.integral(1.0))
        far = -2.0 * jnp.log(jnp.maximum(cosine, end))
        total = jnp.where(small, near, far)
        slope = 2.0 * (self.beta_max - self.beta_min)
        root = jnp.sqrt(self.beta_min**2 + slope * total)
        t = jnp.clip(2.0 * total / (self.beta_min + root), 0.0, 1.0)
        return jnp.where(cosine <= end, 1.0, t)


@dataclasses.dataclass(frozen=True)
class Cosine(Interpolant):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): the angle is the time."""

    def alpha(self, t):
        # 1 - t is exact near 1, where cos(pi t / 2) would lose every digit.
        return jnp.sin(_HALF_PI * (1.0 - t))

    def sigma(self, t):
        return jnp.sin(_HALF_PI * t)

    def alpha_dot(self, t):
        return -_HALF_PI * self.sigma(t)

    def sigma_dot(self, t):
        return _HALF_PI * self.alpha(t)

    def time(self, angle):
        return jnp.clip(angle / _HALF_PI, 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Polynomial(Interpolant):
    """alpha = (1 - t)^n, sigma = 1 - (1 - t)^n; n = 1 is the linear interpolant."""

    n: float = 2.0

    def __post_init__(self):
        if not 1.0 <= self.n < math.inf:
            raise ValueError(f"n must be at least 1 and finite, got {self.n}")

    def alpha(self, t):
        return jnp.power(1.0 - t, float(self.n))

    def sigma(self, t):
        return -jnp.expm1(self.n * jnp.log1p(-t))

    def alpha_dot(self, t):
        return -self.n * jnp.power(1.0 - t, self.n - 1.0)

    def sigma_dot(self, t):
        return -self.alpha_dot(t)

    def time(self, angle):
        sine = jnp.sin(angle)
        sigma = jnp.clip(sine / (sine + jnp.cos(angle)), 0.0, 1.0)
        return -jnp.expm1(jnp.log1p(-sigma) / self.n)


@dataclasses.dataclass(frozen=True)
class LinearVP(Interpolant):
    """alpha = sqrt(1 - t^2), sigma = t; the derivative of alpha is infinite at t = 1."""

    def alpha(self, t):
        return jnp.sqrt((1.0 - t) * (1.0 + t))

    def sigma(self, t):
        return t

    def alpha_dot(self, t):
        return -t / self.alpha(t)

    def sigma_dot(self, t):
        return jnp.ones_like(t)

    def time(self, angle):
        return jnp.clip(jnp.sin(angle), 0.0, 1.0)


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
        return jax.lax.stop_gradient(_bisect(self, angle))


@functools.partial(jax.jit, static_argnums=0)
def _bisect(p: Interpolant, angle: jax.Array) -> jax.Array:
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


def is_silent(determinant: jax.Array) -> jax.Array:
    """Where a velocity says nothing of x0 and x1: a rate is infinite, or both are 0."""
    return ~((determinant >= jnp.finfo(determinant.dtype).tiny) & jnp.isfinite(determinant))


@functools.lru_cache
def _last_time(p: Interpolant, dtype: Any) -> float:
    """The last of 1, 1 - 2^-24, 1 - 2^-23, … 1/2 (in float32) at which a velocity speaks."""
    if type(p) is Linear:
        return 1.0  # without compiling for it: of nearly all models
    times = np.append(1.0, 1.0 - 0.5 ** np.arange(jnp.finfo(dtype).nmant + 1, 0, -1))
    with jax.ensure_compile_time_eval():
        silent = jax.jit(lambda t: is_silent(p.determinant(t)))(jnp.asarray(times, dtype))
        speaks = ~np.asarray(silent)
    return float(times[np.argmax(speaks)]) if speaks.any() else 1.0


def linear() -> Interpolant:
    """alpha = 1 - t, sigma = t.

    Example:
      >>> p = fs.interpolants.linear()
      >>> print(f"{p.alpha(0.25):.3f} {p.sigma(0.25):.3f}")
      0.750 0.250
    """
    return Linear()


def vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Interpolant:
    """Variance-preserving interpolant with linear beta (Song et al., 2021, arXiv 2011.13456).

    Example:
      >>> p = fs.interpolants.vp(beta_min=0.1, beta_max=20.0)
      >>> print(f"{p.alpha(1.0):.3f} {p.sigma(1.0):.3f}")
      0.007 1.000
    """
    return VP(float(beta_min), float(beta_max))


def cosine() -> Interpolant:
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2).

    Example:
      >>> p = fs.interpolants.cosine()
      >>> print(f"{p.alpha(0.5):.3f} {p.sigma(0.5):.3f}")
      0.707 0.707
    """
    return Cosine()


def polynomial(n: float = 2.0) -> Interpolant:
    """alpha = (1 - t)^n, sigma = 1 - (1 - t)^n.

    Example:
      >>> p = fs.interpolants.polynomial(2.0)
      >>> print(f"{p.alpha(0.5):.3f} {p.sigma(0.5):.3f}")
      0.250 0.750
    """
    return Polynomial(float(n))


def linear_vp() -> Interpolant:
    """alpha = sqrt(1 - t^2), sigma = t.

    Example:
      >>> p = fs.interpolants.linear_vp()
      >>> print(f"{p.alpha(0.6):.3f} {p.sigma(0.6):.3f}")
      0.800 0.600
    """
    return LinearVP()


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


def match_time(
    source: Interpolant, target: Interpolant, s: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Where the source interpolant has the signal-to-noise ratio of the target at time s.

    A point x_bar of the target at s is the point ``x_bar * scale`` of the source at t.

    Args:
      source: what the model was trained on.
      target: what is sampled.
      s: target times in [0, 1], any shape.

    Returns:
      t, scale: shaped as s; scale = r_source(t) / r_target(s). Where the source has no time of
      the target's noise, t is the nearest it has: VP ends at t = 1 with alpha = .0066. At t = 1
      the velocity of linear-VP is infinite and that of `polynomial(n > 1)` is 0, so it says
      nothing of x0: t stops at the float below 1, which for linear-VP is alpha = 3.5e-4 in
      float32 (also the resolution of its times there), for the polynomials below rounding.

    Raises:
      ValueError: a concrete time outside [0, 1].

    Example:
      >>> t, scale = fs.match_time(fs.interpolants.linear(), fs.interpolants.cosine(), 0.5)
      >>> print(f"{t:.3f} {scale:.3f}")  # alpha = sigma in both
      0.500 0.707
    """
    s = check_times("s", s)
    last = _last_time(source, s.dtype)
    if source == target:
        return jnp.minimum(s, last), jnp.ones_like(s)
    t = jnp.minimum(source.time(target.angle(s)), last)
    return t, source.radius(t) / target.radius(s)
