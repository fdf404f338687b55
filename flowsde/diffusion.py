"""Diffusion coefficients g(t) of the SDE that shares the flow's marginals.

For any g >= 0 the process

    dx = [u - (g^2 / 2) score] dt + g dW,        run from t = 1 down to 0,

has the marginals of the ODE dx = u dt (Song et al., 2021, arXiv 2011.13456; Ma et al., 2024,
arXiv 2401.08740, whose w is g^2 / 2). A coefficient is a callable
``g(interpolant, t) -> array shaped as t``; those below are frozen and hash by value, and any
other callable of that form does as well.

At the ends: `flow_grpo` is infinite at t = 1, and so is `forward` where alpha(1) = 0; the
Euler-Maruyama kernel then takes g at the middle of its step. All others are finite on [0, 1].
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from flowsde._checks import check_non_negative, check_positive
from flowsde._static import Static
from flowsde.interpolants import Interpolant

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

_HALF_PI = math.pi / 2
_TAN_END = 0.95
"""Time beyond which `tan` is held constant, as in the paper's public code."""


@dataclasses.dataclass(frozen=True)
class _Scaled(Static):
    """scale times a profile of (interpolant, time)."""

    scale: float

    def __post_init__(self) -> None:
        check_non_negative("scale", self.scale)

    def profile(self, p: Interpolant, t: jax.Array) -> jax.Array:
        raise TypeError("a diffusion coefficient defines profile(interpolant, t)")

    def __call__(self, p: Interpolant, t: jax.Array) -> jax.Array:
        return self.scale * self.profile(p, t)


@dataclasses.dataclass(frozen=True)
class _Constant(_Scaled):
    def profile(self, p, t):
        return jnp.ones_like(t)


@dataclasses.dataclass(frozen=True)
class _Sigma(_Scaled):
    def profile(self, p, t):
        return p.sigma(t)


@dataclasses.dataclass(frozen=True)
class _Linear(_Scaled):
    def profile(self, p, t):
        return t


@dataclasses.dataclass(frozen=True)
class _Square(_Scaled):
    def profile(self, p, t):
        return jnp.square(t)


@dataclasses.dataclass(frozen=True)
class _Sin(_Scaled):
    def profile(self, p, t):
        return jnp.sin(_HALF_PI * t)


@dataclasses.dataclass(frozen=True)
class _Clipping(_Scaled):
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
    def profile(self, p, t):
        return jnp.tan(_HALF_PI * jnp.minimum(t, _TAN_END))


@dataclasses.dataclass(frozen=True)
class _FlowGRPO(_Scaled):
    def profile(self, p, t):
        return jnp.sqrt(t / (1.0 - t))


@dataclasses.dataclass(frozen=True)
class _Forward(_Scaled):
    def profile(self, p, t):
        alpha = p.alpha(t)
        some = alpha > 0.0  # alpha' may be 0 as well where alpha is
        decay = jnp.where(some, p.alpha_dot(t) / jnp.where(some, alpha, 1.0), -jnp.inf)
        squared = p.variance_dot(t) - 2.0 * jnp.square(p.sigma(t)) * decay
        return jnp.sqrt(jnp.maximum(squared, 0.0))


def constant(scale: float = 0.3) -> Diffusion:
    """g = scale (DanceGRPO uses .3)."""
    return _Constant(float(scale))


def sigma(scale: float = 3.0) -> Diffusion:
    """g = scale sigma(t)."""
    return _Sigma(float(scale))


def linear(scale: float = 3.0) -> Diffusion:
    """g = scale t."""
    return _Linear(float(scale))


def square(scale: float = 3.0) -> Diffusion:
    """g = scale t^2, the paper's choice with scale 3 (Kim et al., 2025, arXiv 2503.19385)."""
    return _Square(float(scale))


def sin(scale: float = 3.0) -> Diffusion:
    """g = scale sin(pi t / 2)."""
    return _Sin(float(scale))


def clipping(scale: float = 3.0) -> Diffusion:
    """g = scale max(2 t - 1, 0): an SDE in the noisy half, an ODE in the other."""
    return _Clipping(float(scale))


def exp(scale: float = 3.0, width: float = 0.1) -> Diffusion:
    """g = scale exp(-((1 - t) / width)^2)."""
    return _Exp(float(scale), float(width))


def tan(scale: float = 3.0) -> Diffusion:
    """g = scale tan(pi t / 2), held at its value at t = .95 beyond that time."""
    return _Tan(float(scale))


def flow_grpo(scale: float = 0.7) -> Diffusion:
    """g = scale sqrt(t / (1 - t)) (Flow-GRPO); infinite at t = 1."""
    return _FlowGRPO(float(scale))


def forward(scale: float = 1.0) -> Diffusion:
    """The interpolant's own forward SDE: g^2 = (sigma^2)' - 2 sigma^2 alpha' / alpha.

    beta(t) for VP; infinite at t = 1 where alpha(1) = 0.
    """
    return _Forward(float(scale))
