"""Diffusion coefficients g(t) of the SDE that shares the flow's marginals.

For any g >= 0 the process

    dx = [u - (g^2 / 2) score] dt + g dW,        run from t = 1 down to 0,

has the marginals of the ODE dx = u dt (Song et al., 2021, arXiv 2011.13456; Ma et al., 2024,
arXiv 2401.08740, whose w is g^2 / 2). A coefficient is a callable
``g(interpolant, t) -> array shaped as t``; those below are frozen and hash by value, and any
other callable of that form does as well.

At the ends: `flow_grpo` is infinite at t = 1, and so is `forward` where alpha(1) = 0; the
Euler-Maruyama kernel then takes g at the middle of its step. All others are finite on [0, 1].

A coefficient may also have what `flowsde.kernels.exact` uses: the method
``turnover(interpolant, s, t)``, the integral of g^2 / sigma^2 from s to t in closed form or None,
and ``kinks``, a tuple of the times in (0, 1) at which it is not smooth.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp

from flowsde._checks import check_non_negative, check_positive
from flowsde._static import Static
from flowsde.interpolants import Interpolant, Linear, LinearVP

__all__ = [
    "clipping",
    "constant",
    "exp",
    "flow_grpo",
    "forward",
    "linear",
    "sigma",
    "sin",
    "square",
    "tan",
]

Diffusion = Callable[[Interpolant, jax.Array], jax.Array]


def check_diffusion(g: Any) -> Diffusion:
    """The coefficient, or a TypeError."""
    if not callable(g):
        raise TypeError(f"diffusion must be callable, g(interpolant, t), got {g!r}")
    return g


def coefficient(g: Diffusion, p: Interpolant, t: jax.Array) -> jax.Array:
    """g at a scalar t; AssertionError unless it is a scalar too."""
    value = jnp.asarray(g(p, t))
    chex.assert_rank(value, 0, custom_message="diffusion(interpolant, t), shaped as t")
    return value


_HALF_PI = math.pi / 2
_TAN_END = 0.95
"""Time beyond which `tan` is held constant, as in the paper's public code."""


@dataclasses.dataclass(frozen=True)
class _Scaled(Static):
    """scale times a profile of (interpolant, time)."""

    scale: float
    kinks: ClassVar[tuple[float, ...]] = ()

    def __post_init__(self) -> None:
        check_non_negative("scale", self.scale)

    def profile(self, p: Interpolant, t: jax.Array) -> jax.Array:
        raise TypeError("a diffusion coefficient defines profile(interpolant, t)")

    def __call__(self, p: Interpolant, t: jax.Array) -> jax.Array:
        return self.scale * self.profile(p, t)

    def turnover(self, p: Interpolant, s: jax.Array, t: jax.Array) -> jax.Array | None:
        """Integral of g^2 / sigma^2 from s to t >= s in closed form, finite; None without one."""
        own = self.own_turnover(p, s, t)
        return None if own is None else self.scale**2 * own

    def own_turnover(self, p: Interpolant, s: jax.Array, t: jax.Array) -> jax.Array | None:
        """That of scale 1."""
        return None


def _sigma_is_time(p: Interpolant) -> bool:
    return type(p) in (Linear, LinearVP)


def _quotient(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b of numbers in [0, 1], large but finite where b is 0, and 0 for 0 / 0."""
    return a / jnp.maximum(b, jnp.finfo(b.dtype).tiny)


@dataclasses.dataclass(frozen=True)
class _Constant(_Scaled):
    def profile(self, p, t):
        return jnp.ones_like(t)

    def own_turnover(self, p, s, t):
        return _quotient(t - s, s * t) if _sigma_is_time(p) else None


@dataclasses.dataclass(frozen=True)
class _Sigma(_Scaled):
    def profile(self, p, t):
        return p.sigma(t)

    def own_turnover(self, p, s, t):
        return t - s


@dataclasses.dataclass(frozen=True)
class _Linear(_Scaled):
    def profile(self, p, t):
        return t

    def own_turnover(self, p, s, t):
        return t - s if _sigma_is_time(p) else None


@dataclasses.dataclass(frozen=True)
class _Square(_Scaled):
    def profile(self, p, t):
        return jnp.square(t)

    def own_turnover(self, p, s, t):
        # (t^3 - s^3) / 3 without cancellation.
        return (t - s) * (t * t + t * s + s * s) / 3.0 if _sigma_is_time(p) else None


@dataclasses.dataclass(frozen=True)
class _Sin(_Scaled):
    def profile(self, p, t):
        return jnp.sin(_HALF_PI * t)


@dataclasses.dataclass(frozen=True)
class _Clipping(_Scaled):
    kinks = (0.5,)

    def profile(self, p, t):
        return jnp.maximum(2.0 * t - 1.0, 0.0)


@dataclasses.dataclass(frozen=True)
class _Exp(_Scaled):
    width: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("width", self.width)

    def profile(self, p, t):
        return jnp.exp(-jnp.square((1.0 - t) / self.width))


@dataclasses.dataclass(frozen=True)
class _Tan(_Scaled):
    kinks = (_TAN_END,)

    def profile(self, p, t):
        return jnp.tan(_HALF_PI * jnp.minimum(t, _TAN_END))


@dataclasses.dataclass(frozen=True)
class _FlowGRPO(_Scaled):
    def profile(self, p, t):
        return jnp.sqrt(t / (1.0 - t))

    def own_turnover(self, p, s, t):
        # The logit of t less that of s.
        return jnp.log1p(_quotient(t - s, s * (1.0 - t))) if _sigma_is_time(p) else None


@dataclasses.dataclass(frozen=True)
class _Forward(_Scaled):
    def profile(self, p, t):
        alpha = p.alpha(t)
        some = alpha > 0.0  # alpha' may be 0 as well where alpha is
        decay = jnp.where(some, p.alpha_dot(t) / jnp.where(some, alpha, 1.0), -jnp.inf)
        squared = p.variance_dot(t) - 2.0 * jnp.square(p.sigma(t)) * decay
        return jnp.sqrt(jnp.maximum(squared, 0.0))

    def own_turnover(self, p, s, t):
        # g^2 / sigma^2 is 2 (log tan angle)'.
        ratio = _quotient(p.alpha(t) * p.sigma(s), p.alpha(s) * p.sigma(t))
        return -2.0 * jnp.log(jnp.clip(ratio, jnp.finfo(ratio.dtype).tiny, 1.0))


def constant(scale: float = 0.3) -> Diffusion:
    """g = scale (DanceGRPO uses .3).

    Example:
      >>> g = fs.diffusion.constant(0.3)
      >>> print(f"{g(fs.interpolants.linear(), jnp.float32(0.5)):.2f}")
      0.30
    """
    return _Constant(float(scale))


def sigma(scale: float = 3.0) -> Diffusion:
    """g = scale sigma(t).

    Example:
      >>> g = fs.diffusion.sigma(3.0)
      >>> print(f"{g(fs.interpolants.linear(), jnp.float32(0.5)):.2f}")  # 3 sigma
      1.50
    """
    return _Sigma(float(scale))


def linear(scale: float = 3.0) -> Diffusion:
    """g = scale t.

    Example:
      >>> g = fs.diffusion.linear(3.0)
      >>> print(f"{g(fs.interpolants.linear(), jnp.float32(0.5)):.2f}")  # 3 t
      1.50
    """
    return _Linear(float(scale))


def square(scale: float = 3.0) -> Diffusion:
    """g = scale t^2, the paper's choice with scale 3 (Kim et al., 2025, arXiv 2503.19385).

    Example:
      >>> g = fs.diffusion.square(3.0)
      >>> print(f"{g(fs.interpolants.linear(), jnp.float32(0.5)):.2f}")  # 3 t^2
      0.75
    """
    return _Square(float(scale))


def sin(scale: float = 3.0) -> Diffusion:
    """g = scale sin(pi t / 2).

    Example:
      >>> g = fs.diffusion.sin(3.0)
      >>> print(f"{g(fs.interpolants.linear(), jnp.float32(0.5)):.2f}")  # 3 sin(pi t / 2)
      2.12
    """
    return _Sin(float(scale))


def clipping(scale: float = 3.0) -> Diffusion:
    """g = scale max(2 t - 1, 0): an SDE in the noisy half, an ODE in the other.

    Example:
      >>> g = fs.diffusion.clipping(3.0)
      >>> print(f"{g(fs.interpolants.linear(), jnp.float32(0.75)):.2f}")  # 3 max(2 t - 1, 0)
      1.50
    """
    return _Clipping(float(scale))


def exp(scale: float = 3.0, width: float = 0.1) -> Diffusion:
    """g = scale exp(-((1 - t) / width)^2).

    Example:
      >>> g = fs.diffusion.exp(3.0, width=0.1)
      >>> print(f"{g(fs.interpolants.linear(), jnp.float32(0.9)):.2f}")  # 3 / e
      1.10
    """
    return _Exp(float(scale), float(width))


def tan(scale: float = 3.0) -> Diffusion:
    """g = scale tan(pi t / 2), held at its value at t = .95 beyond that time.

    Example:
      >>> g = fs.diffusion.tan(3.0)
      >>> print(f"{g(fs.interpolants.linear(), jnp.float32(0.5)):.2f}")  # 3 tan(pi t / 2)
      3.00
    """
    return _Tan(float(scale))


def flow_grpo(scale: float = 0.7) -> Diffusion:
    """g = scale sqrt(t / (1 - t)) (Flow-GRPO); infinite at t = 1.

    Example:
      >>> g = fs.diffusion.flow_grpo(0.7)
      >>> print(f"{g(fs.interpolants.linear(), jnp.float32(0.5)):.2f}")  # 0.7 sqrt(t / (1 - t))
      0.70
    """
    return _FlowGRPO(float(scale))


def forward(scale: float = 1.0) -> Diffusion:
    """The interpolant's own forward SDE: g^2 = (sigma^2)' - 2 sigma^2 alpha' / alpha.

    beta(t) for VP; infinite at t = 1 where alpha(1) = 0.

    Example:
      >>> g = fs.diffusion.forward()
      >>> print(f"{g(fs.interpolants.linear(), jnp.float32(0.5)):.2f}")  # sqrt(2 t / (1 - t))
      1.41
    """
    return _Forward(float(scale))
