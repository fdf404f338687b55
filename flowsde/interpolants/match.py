"""One interpolant's times in another's."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._arrays import check_times
from flowsde._exact import Now
from flowsde.interpolants.base import Interpolant, is_silent
from flowsde.interpolants.curves import Linear


@functools.lru_cache
def _last_time(now: Now, dtype: Any) -> float:
    """The last of 1, 1 - 2^-24, 1 - 2^-23, … 1/2 (in float32) at which a velocity speaks."""
    p: Interpolant = now.value
    if type(p) is Linear:
        return 1.0  # without compiling for it: of nearly all models
    times = np.append(1.0, 1.0 - 0.5 ** np.arange(jnp.finfo(dtype).nmant + 1, 0, -1))
    with jax.ensure_compile_time_eval():
        silent = jax.jit(lambda t: is_silent(p.determinant(t)))(jnp.asarray(times, dtype))
        speaks = ~np.asarray(silent)
    return float(times[np.argmax(speaks)]) if speaks.any() else 1.0


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
    last = _last_time(Now(source), s.dtype)
    if source == target:
        return jnp.minimum(s, last), jnp.ones_like(s)
    t = jnp.minimum(source.time(target.angle(s)), last)
    return t, source.radius(t) / target.radius(s)
