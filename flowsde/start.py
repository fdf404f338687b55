"""Where particles begin: from noise, or from a given picture with noise added.

A grid that begins at t < 1 begins with alpha(t) x0 + sigma(t) noise of a given x0 (SDEdit: Meng et
al., 2022, arXiv 2108.01073); at t = 1 nothing of x0 is left, and the start is noise whatever is
given. The evaluations of the times above t are saved, not charged.

A mask holds part of x0: in every evaluation the posterior means are replaced there by what they are
when the data are known,

    x0 and (x - alpha x0) / sigma,

so that a kernel carries these values down the noise levels of x0 itself, and the answer has x0
there, to the bit. That is inpainting by replacement (Song et al., 2021, arXiv 2011.13456, appendix
I.2; Lugmayr et al., 2022, arXiv 2201.09865): the rest is drawn as the model sees fit for a noisy
picture of which part is right, at each noise level, and not from the exact conditional law. Where
the model looks no further than its own scale, edges may show; a reward and more steps help.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde.conds import Held
from flowsde.interpolants import Interpolant
from flowsde.predictions import expand


class Start(NamedTuple):
    """What particles begin from, with a leading axis of prompts or particles, or without.

    Attributes:
      x0: data, float32 [*shape]; None begins from noise alone.
      noise: in place of what is drawn, float32 [*shape], standard normal; None draws.
    """

    x0: Any = None
    noise: Any = None


def begin(p: Interpolant, t: float, noise: jax.Array, start: Start | None) -> jax.Array:
    """A particle at the first time of a grid.

    Args:
      p: the interpolant.
      t: the time, below 1 only with an x0.
      noise: standard normal [*shape].
      start: what is given of the particle.
    """
    if start is not None and start.noise is not None:
        noise = start.noise
    scaled = noise_scale(p, t) * noise
    if t == 1.0 or start is None or start.x0 is None:
        return scaled
    return p.alpha(jnp.asarray(t, jnp.float32)) * start.x0 + scaled


def noise_scale(p: Interpolant, t: float) -> jax.Array:
    """By what the noise of a particle at the first time of a grid is multiplied, a scalar."""
    time = jnp.asarray(t, jnp.float32)
    return p.radius(time) if t == 1.0 else p.sigma(time)


def hold(
    p: Interpolant, x: jax.Array, t: jax.Array, x0: jax.Array, x1: jax.Array, held: Held
) -> tuple[jax.Array, jax.Array]:
    """Posterior means [n, *shape] with those of known data where these are held.

    Args:
      p: interpolant of x and t.
      x, t: particles, and their times [n].
      x0, x1: the model's means.
      held: of each.
    """
    alpha, sigma = expand(p.alpha(t), x), expand(p.sigma(t), x)
    some = sigma > 0.0
    noise = jnp.where(some, (x - alpha * held.x0) / jnp.where(some, sigma, 1.0), x1)
    return jnp.where(held.mask, x0, held.x0), jnp.where(held.mask, x1, noise)


def as_start(
    start: Any, mask: Any, noise: Any, shape: tuple[int, ...], n: int, axis: str, single: bool
) -> tuple[Start | None, tuple[jax.Array, jax.Array] | None]:
    """What a user gives, checked: what particles begin from, and (x0, mask) of what is held.

    Args:
      start, mask, noise: as for `flowsde.run`; each of one, or with a leading axis of n.
      shape: of a particle.
      n: prompts or particles.
      axis: what the caller calls n, for errors.
      single: whether there is one, without an axis.

    Returns:
      Both with a leading axis of n; None where nothing is given.

    Raises:
      ValueError, TypeError: naming the argument.
    """
    if mask is not None and start is None:
        raise ValueError("mask says where start is drawn anew: expected a start with it")
    if start is None and noise is None:
        return None, None
    x0 = None if start is None else _rows("start", start, shape, n, axis, single)
    given = Start(x0, None if noise is None else _rows("noise", noise, shape, n, axis, single))
    if mask is None:
        return given, None
    held = _rows("mask", mask, shape, n, axis, single)
    if not isinstance(mask, jax.core.Tracer) and not np.isin(mask, (0, 1)).all():
        raise ValueError("mask must be True where start is drawn anew and False where it stays")
    return given, (given.x0, held.astype(jnp.bool))


def _rows(
    name: str, value: Any, shape: tuple[int, ...], n: int, axis: str, single: bool
) -> jax.Array:
    """Float32 [n, *shape] of one [*shape], or of n."""
    traced = isinstance(value, jax.core.Tracer)
    if name != "mask" and getattr(value, "dtype", None) == np.uint8:
        raise ValueError(
            f"{name} is of bytes, as the pixels of a file are: expected floats of the data that "
            f"the flow makes, pixels / 127.5 - 1 for those from -1 to 1"
        )
    try:
        array = (value if traced else np.asarray(value)).astype(np.float32)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be numbers, got {type(value).__name__}") from None
    if array.shape != shape and (single or array.shape != (n, *shape)):
        more = "" if single else f", or {(n, *shape)} with {axis} = {n}"
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}{more}")
    if not traced and not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are NaN or infinite")
    return jnp.broadcast_to(jnp.asarray(array), (n, *shape))


def check_first_time(name: str, first: float, start: Start | None) -> None:
    """ValueError for a grid that begins below t = 1 with nothing to begin from."""
    if first < 1.0 and (start is None or start.x0 is None):
        raise ValueError(
            f"{name} must run from 1 to 0, got {first} to 0.0: from below 1 it begins with a given "
            f"picture, expected start"
        )
