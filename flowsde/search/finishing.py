"""The times of finishing: evenly spaced in the time of the linear interpolant, down to `END`.

There the posterior mean is the image: further down the mean is sharp already, and models that were
rarely asked for such times add speckle (benchmarks/finishing.py). From below `END`, times are
spaced evenly towards 0.
"""

import jax
import jax.numpy as jnp

from flowsde.interpolants import Interpolant, Linear

LINE = Linear()
END = 0.07
"""Linear time at which finishing ends."""


def finishing_time(
    interpolant: Interpolant, start: jax.Array, done: jax.Array, steps: int
) -> tuple[jax.Array, jax.Array]:
    """(linear time, time of the interpolant) with a share of the steps done, 0 to 1.

    Args:
      interpolant: of the particle.
      start: its time.
      done: the share.
      steps: of them all.
    """
    first = LINE.time(interpolant.angle(start))
    last = jnp.where(first > END, END, first / (steps + 1))
    line_t = first + (last - first) * done
    return line_t, interpolant.time(LINE.angle(line_t))


def line_time(interpolant: Interpolant, start: jax.Array, share: jax.Array) -> jax.Array:
    """Time of the interpolant at a share of a particle's linear time."""
    return interpolant.time(LINE.angle(share * LINE.time(interpolant.angle(start))))
