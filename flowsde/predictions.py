"""Velocity, score, x0 and x1: four ways to say what a model knows at (x, t).

With x_t = alpha x0 + sigma x1 and x1 ~ N(0, I), write x0 and x1 for the posterior means
E[data | x_t] and E[noise | x_t]. Everything else is linear in them:

    x        = alpha x0 + sigma x1
    velocity = alpha' x0 + sigma' x1
    score    = -x1 / sigma

so each conversion goes through the pair. x0 and x1 do not depend on the interpolant at matched
angle, which is what makes `reparameterise` possible without retraining
(Kim et al., 2025, arXiv 2503.19385).

Shapes: x and predictions are [*time, ...], t is [*time]: a scalar time serves one particle of
any shape, times [n] serve a batch. What cannot be finite is said in each docstring;
velocities are infinite where the interpolant's own derivatives are (VP's sigma' at 0, linear-VP's
alpha' at 1), and there the conversions *from* a velocity take their limits.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import chex
import jax
import jax.numpy as jnp

from flowsde._arrays import check_output, check_times
from flowsde.interpolants import Interpolant, match_time
from flowsde.interpolants.base import is_silent

Prediction = Literal["velocity", "negative_velocity", "x0", "x1", "score"]
"""What a model may give; the negative velocity, data - noise, is that of reversed time."""
PREDICTIONS: tuple[str, ...] = get_args(Prediction)
_LEAST_ALPHA = 2.0**-11
"""Of the radius: below it, x0 from the noise or the score is mostly float32's rounding of those."""


def expand(t: jax.Array, x: jax.Array) -> jax.Array:
    """Append axes to t [*time] so that it broadcasts against x [*time, ...]."""
    if t.ndim > x.ndim or x.shape[: t.ndim] != t.shape:
        raise ValueError(f"t has shape {t.shape}, expected the leading axes of x, {x.shape}")
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def _prepare(x: Any, t: Any, prediction: Any, name: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, prediction = jnp.asarray(x), jnp.asarray(prediction)
    if x.shape != prediction.shape:
        raise ValueError(f"{name} has shape {prediction.shape}, expected that of x, {x.shape}")
    return x, expand(check_times("t", t), x), prediction


def _rates_over_determinant(p: Interpolant, t: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(alpha', sigma', 1) / (alpha sigma' - sigma alpha').

    Where the velocity is silent: the limits of an infinite sigma', (0, 1 / alpha, 0), nearer the
    data, and those of an infinite alpha', (-1 / sigma, 0, 0), nearer the noise.
    """
    alpha, sigma, determinant = p.alpha(t), p.sigma(t), p.determinant(t)
    silent = is_silent(determinant)
    inverse = 1.0 / jnp.where(silent, 1.0, determinant)
    data, larger = alpha > sigma, jnp.maximum(alpha, sigma)
    a = jnp.where(silent, jnp.where(data, 0.0, -1.0 / larger), p.alpha_dot(t) * inverse)
    s = jnp.where(silent, jnp.where(data, 1.0 / larger, 0.0), p.sigma_dot(t) * inverse)
    return a, s, jnp.where(silent, 0.0, inverse)


def means_from_velocity(
    p: Interpolant, x: chex.Array, t: chex.Numeric, velocity: chex.Array
) -> tuple[jax.Array, jax.Array]:
    """(x0, x1) from the velocity: both finite on [0, 1] for every interpolant.

    For the linear interpolant x0 = x - t u and x1 = x + (1 - t) u: no division at all. Where the
    velocity says nothing of the means, they are what x alone says: x0 = x / alpha and x1 = 0 at
    the data end (VP, exact), x0 = 0 and x1 = x / sigma at the noise end (linear-VP and
    `polynomial(n > 1)`: x1 is exact, x0 is not; `match_time` keeps models off that point).
    """
    x, t, velocity = _prepare(x, t, velocity, "velocity")
    a, s, one = _rates_over_determinant(p, t)
    return s * x - p.sigma(t) * one * velocity, p.alpha(t) * one * velocity - a * x


def velocity_to_x0(
    p: Interpolant, x: chex.Array, t: chex.Numeric, velocity: chex.Array
) -> jax.Array:
    """E[data | x_t] from the velocity; finite on [0, 1], see `means_from_velocity` for t = 1.

    Example:
      >>> linear = fs.interpolants.linear()  # x = 0.75 x0 + 0.25 x1, of x0 = 2 and x1 = -2
      >>> float(fs.velocity_to_x0(linear, 1.0, 0.25, -4.0))
      2.0
    """
    return means_from_velocity(p, x, t, velocity)[0]


def velocity_to_x1(
    p: Interpolant, x: chex.Array, t: chex.Numeric, velocity: chex.Array
) -> jax.Array:
    """E[noise | x_t] from the velocity; finite on [0, 1].

    Example:
      >>> linear = fs.interpolants.linear()  # x = 0.75 x0 + 0.25 x1, of x0 = 2 and x1 = -2
      >>> float(fs.velocity_to_x1(linear, 1.0, 0.25, -4.0))
      -2.0
    """
    return means_from_velocity(p, x, t, velocity)[1]


def velocity_to_score(
    p: Interpolant, x: chex.Array, t: chex.Numeric, velocity: chex.Array
) -> jax.Array:
    """Score of p_t from the velocity; not finite at t = 0, where it is -x1 / sigma = 0 / 0.

    Example:
      >>> linear = fs.interpolants.linear()  # x = 0.75 x0 + 0.25 x1, of x0 = 2 and x1 = -2
      >>> float(fs.velocity_to_score(linear, 1.0, 0.25, -4.0))
      8.0
    """
    return x1_to_score(p, x, t, velocity_to_x1(p, x, t, velocity))


def x0_to_x1(p: Interpolant, x: chex.Array, t: chex.Numeric, x0: chex.Array) -> jax.Array:
    """E[noise | x_t] from E[data | x_t]; undetermined, hence not finite, at t = 0.

    Example:
      >>> linear = fs.interpolants.linear()  # x = 0.75 x0 + 0.25 x1, of x0 = 2 and x1 = -2
      >>> float(fs.x0_to_x1(linear, 1.0, 0.25, 2.0))
      -2.0
    """
    x, t, x0 = _prepare(x, t, x0, "x0")
    return (x - p.alpha(t) * x0) / p.sigma(t)


def x1_to_x0(p: Interpolant, x: chex.Array, t: chex.Numeric, x1: chex.Array) -> jax.Array:
    """E[data | x_t] from E[noise | x_t]; undetermined, hence not finite, where alpha = 0.

    Example:
      >>> linear = fs.interpolants.linear()  # x = 0.75 x0 + 0.25 x1, of x0 = 2 and x1 = -2
      >>> float(fs.x1_to_x0(linear, 1.0, 0.25, -2.0))
      2.0
    """
    x, t, x1 = _prepare(x, t, x1, "x1")
    return (x - p.sigma(t) * x1) / p.alpha(t)


def means_to_velocity(p: Interpolant, t: chex.Numeric, x0: chex.Array, x1: chex.Array) -> jax.Array:
    """alpha' x0 + sigma' x1; infinite where the interpolant's derivatives are."""
    x0, t, x1 = _prepare(x0, t, x1, "x1")
    return p.alpha_dot(t) * x0 + p.sigma_dot(t) * x1


def x0_to_velocity(p: Interpolant, x: chex.Array, t: chex.Numeric, x0: chex.Array) -> jax.Array:
    """Velocity from E[data | x_t]; not finite at t = 0, where x0 = x says nothing of the noise.

    Example:
      >>> linear = fs.interpolants.linear()  # x = 0.75 x0 + 0.25 x1, of x0 = 2 and x1 = -2
      >>> float(fs.x0_to_velocity(linear, 1.0, 0.25, 2.0))
      -4.0
    """
    return means_to_velocity(p, t, x0, x0_to_x1(p, x, t, x0))


def x1_to_velocity(p: Interpolant, x: chex.Array, t: chex.Numeric, x1: chex.Array) -> jax.Array:
    """Velocity from E[noise | x_t]; not finite where alpha = 0.

    Example:
      >>> linear = fs.interpolants.linear()  # x = 0.75 x0 + 0.25 x1, of x0 = 2 and x1 = -2
      >>> float(fs.x1_to_velocity(linear, 1.0, 0.25, -2.0))
      -4.0
    """
    return means_to_velocity(p, t, x1_to_x0(p, x, t, x1), x1)


def x1_to_score(p: Interpolant, x: chex.Array, t: chex.Numeric, x1: chex.Array) -> jax.Array:
    """Score -x1 / sigma; not finite at t = 0.

    Example:
      >>> linear = fs.interpolants.linear()  # x = 0.75 x0 + 0.25 x1, of x0 = 2 and x1 = -2
      >>> float(fs.x1_to_score(linear, 1.0, 0.25, -2.0))
      8.0
    """
    x, t, x1 = _prepare(x, t, x1, "x1")
    return -x1 / p.sigma(t)


def score_to_x1(p: Interpolant, x: chex.Array, t: chex.Numeric, score: chex.Array) -> jax.Array:
    """E[noise | x_t] = -sigma score; finite on [0, 1].

    Example:
      >>> linear = fs.interpolants.linear()  # x = 0.75 x0 + 0.25 x1, of x0 = 2 and x1 = -2
      >>> float(fs.score_to_x1(linear, 1.0, 0.25, 8.0))
      -2.0
    """
    x, t, score = _prepare(x, t, score, "score")
    return -p.sigma(t) * score


def score_to_x0(p: Interpolant, x: chex.Array, t: chex.Numeric, score: chex.Array) -> jax.Array:
    """Tweedie: (x + sigma^2 score) / alpha; not finite where alpha = 0.

    Example:
      >>> linear = fs.interpolants.linear()  # x = 0.75 x0 + 0.25 x1, of x0 = 2 and x1 = -2
      >>> float(fs.score_to_x0(linear, 1.0, 0.25, 8.0))
      2.0
    """
    return x1_to_x0(p, x, t, score_to_x1(p, x, t, score))


def score_to_velocity(
    p: Interpolant, x: chex.Array, t: chex.Numeric, score: chex.Array
) -> jax.Array:
    """(alpha' / alpha) (x + sigma^2 score) - sigma sigma' score; not finite where alpha = 0.

    Finite at t = 0 also for VP, because sigma sigma' is.

    Example:
      >>> linear = fs.interpolants.linear()  # x = 0.75 x0 + 0.25 x1, of x0 = 2 and x1 = -2
      >>> float(fs.score_to_velocity(linear, 1.0, 0.25, 8.0))
      -4.0
    """
    x, t, score = _prepare(x, t, score, "score")
    x0 = (x + jnp.square(p.sigma(t)) * score) / p.alpha(t)
    return p.alpha_dot(t) * x0 - 0.5 * p.variance_dot(t) * score


def x0_to_score(p: Interpolant, x: chex.Array, t: chex.Numeric, x0: chex.Array) -> jax.Array:
    """(alpha x0 - x) / sigma^2; not finite at t = 0.

    Example:
      >>> linear = fs.interpolants.linear()  # x = 0.75 x0 + 0.25 x1, of x0 = 2 and x1 = -2
      >>> float(fs.x0_to_score(linear, 1.0, 0.25, 2.0))
      8.0
    """
    return x1_to_score(p, x, t, x0_to_x1(p, x, t, x0))


def informative_time(prediction: str, p: Interpolant, t: jax.Array) -> jax.Array:
    """The nearest time at which a prediction says what x0 and x1 are.

    Noise and score say nothing of x0 where alpha = 0: there, a time just before is used instead.
    """
    if prediction not in ("x1", "score"):
        return t
    angle = jnp.full_like(t, math.acos(_LEAST_ALPHA))
    return jnp.minimum(t, p.time(angle))


def prediction_to_velocity(
    prediction: str, p: Interpolant, x: jax.Array, t: jax.Array, value: Any
) -> jax.Array:
    """Velocity of a model's prediction, at an `informative_time`.

    Finite where the interpolant's derivatives are, and at t = 0 also where that of sigma is not
    (VP): x0 = x is all that can be known there, and E[noise | x_0] is its limit, 0.

    Args:
      prediction: one of `PREDICTIONS`.
      p: the model's interpolant.
      x: [n, ...].
      t: [n].
      value: shaped as x, of any floating dtype.

    Returns:
      The value as it is for "velocity", else in the dtype of x.
    """
    if prediction == "velocity":
        return value
    check_output(f"the model's {prediction}", value, x)
    value = value.astype(x.dtype)
    if prediction == "negative_velocity":
        return -value
    t = expand(t, x)
    alpha, sigma = p.alpha(t), p.sigma(t)
    at_data = sigma == 0
    if prediction == "x0":
        x0, x1 = value, (x - alpha * value) / jnp.where(at_data, 1.0, sigma)
    else:
        x1 = value if prediction == "x1" else -sigma * value
        x0 = (x - sigma * x1) / alpha
    rate = jnp.where(at_data, 0.0, p.sigma_dot(t))
    return p.alpha_dot(t) * x0 + rate * jnp.where(at_data, 0.0, x1)


def reparameterise(
    velocity_fn: Callable[..., jax.Array], source: Interpolant, target: Interpolant
) -> Callable[..., jax.Array]:
    """The velocity field of `target` of a model trained on `source`, without retraining.

    Args:
      velocity_fn: ``(x, t)`` or ``(params, x, t, cond)`` -> velocity of the source; x is
        [*time, ...] and t [*time].
      source: interpolant of `velocity_fn`.
      target: interpolant wanted.

    Returns:
      A function of the same arguments, taking points and times of the target. Infinite where the
      target's own derivatives are.

    Example:
      >>> linear, cosine = fs.interpolants.linear(), fs.interpolants.cosine()
      >>> data = fs.analytic.gaussian([3.0], 1.0)
      >>> velocity = fs.reparameterise(lambda x, t: data.velocity(linear, x, t), linear, cosine)
      >>> x, t = jnp.array([[1.0]]), jnp.array([0.5])
      >>> bool(jnp.allclose(velocity(x, t), data.velocity(cosine, x, t)))
      True
    """

    def converted(*args: Any) -> jax.Array:
        if len(args) not in (2, 4):
            raise TypeError(f"expected (x, t) or (params, x, t, cond), got {len(args)} arguments")
        at = 0 if len(args) == 2 else 1
        x, s = jnp.asarray(args[at]), args[at + 1]
        t, scale = match_time(source, target, s)
        point = expand(scale, x) * x
        velocity = velocity_fn(*args[:at], point, t, *args[at + 2 :])
        x0, x1 = means_from_velocity(source, point, t, velocity)
        return means_to_velocity(target, s, x0, x1)

    return converted
