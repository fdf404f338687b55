"""NoiseTilt: the gradient of a reward, made to look like noise, in the place of some of it.

A kernel's draw mean + std eps becomes (arXiv 2606.18066)

    mean + std (sqrt(rho) w + sqrt(1 - rho) eps),    w = W(gradient),

so that x_s stays at the model's own noise level whatever the size of the gradient, which a step in
proportion to it does not. W scales the gradient to the norm sqrt(N) of noise and then clips it to
what a standard normal vector is nearly sure to be, level 1 - a each:

* order statistics on two levels: of the N values in M tiles of D, sorted within their tile and then
  over the tiles at each rank, the value of ranks (r, j) is the r-th of M draws of the j-th of D.
  Its p-quantile is Phi^-1(q), q = BetaInv(BetaInv(p; r, M + 1 - r); j, D + 1 - j);
* the tiles' energies |.|^2, the r-th of M draws of chi^2 with D degrees of freedom;
* the tiles' means times sqrt(D), the r-th of M draws of N(0, 1).

First all of these for the coefficients of an orthonormal cosine transform, which a smooth gradient
has all at low frequencies, then for the values themselves. Noise passes but for the rare value.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._checks import check_count
from flowsde.kernels.base import Kernel, normal_log_prob
from flowsde.kernels.gradient import ByGradient, check_tiltable

LEVEL = 1e-4
"""a: how seldom a value of noise is clipped."""


class Bounds(NamedTuple):
    """Least and greatest values in order of their ranks, NumPy float32.

    Attributes:
      values: two of [M, D].
      energies: of tiles, two of [M, 1].
      means: of tiles, times sqrt(D), likewise.
    """

    values: tuple[np.ndarray, np.ndarray]
    energies: tuple[np.ndarray, np.ndarray]
    means: tuple[np.ndarray, np.ndarray]


@functools.lru_cache(maxsize=16)
def bounds(tiles: int, size: int, level: float = LEVEL) -> Bounds:
    """Of a standard normal vector in so many tiles of a size."""
    # A quarter of a second, which all who import kernels would wait for.
    from scipy.special import betaincinv, gammaincinv, ndtri

    r, j = np.arange(1.0, tiles + 1)[:, None], np.arange(1.0, size + 1)[None]

    def both(quantile: Any) -> tuple[np.ndarray, np.ndarray]:
        ends = (betaincinv(r, tiles + 1 - r, p) for p in (0.5 * level, 1.0 - 0.5 * level))
        low, high = (np.asarray(quantile(end), np.float32) for end in ends)
        return low, high

    return Bounds(
        values=both(lambda p: ndtri(betaincinv(j, size + 1 - j, p))),
        energies=both(lambda p: 2.0 * gammaincinv(0.5 * size, p)),
        means=both(ndtri),
    )


def _in_order(z: jax.Array, axis: int, then: Any) -> jax.Array:
    """``then`` applied to values sorted along an axis, and these put back."""
    order = jnp.argsort(z, axis)
    clipped = then(jnp.take_along_axis(z, order, axis))
    return jnp.take_along_axis(clipped, jnp.argsort(order, axis), axis)


def _clipped(z: jax.Array, limits: tuple[np.ndarray, np.ndarray]) -> jax.Array:
    """Values [M, n], sorted over tiles, within their bounds."""
    low, high = (jnp.asarray(limit, z.dtype) for limit in limits)
    return _in_order(z, 0, lambda ordered: jnp.clip(ordered, low, high))


def as_noise(z: jax.Array, limits: Bounds) -> jax.Array:
    """Tiles [M, D] within all bounds, one after the other."""
    size = z.shape[1]
    z = _in_order(z, 1, lambda ordered: _clipped(ordered, limits.values))
    energies = jnp.sum(jnp.square(z), 1, keepdims=True)
    ratio = _clipped(energies, limits.energies) / jnp.where(energies > 0.0, energies, 1.0)
    z = z * jnp.sqrt(ratio)
    means = math.sqrt(size) * jnp.mean(z, 1, keepdims=True)
    return z + (_clipped(means, limits.means) - means) / math.sqrt(size)


def whiten(gradient: jax.Array, tile: int | None = None) -> jax.Array:
    """W: a vector of any shape as noise, with the signs and the order that it has; 0 stays 0.

    Args:
      gradient: float32 [*shape].
      tile: D, a divisor of the number of values; by default the largest up to its square root.
    """
    n = gradient.size
    size = _tile(n) if tile is None else tile
    if n % size:
        raise ValueError(f"tile must divide the {n} values of a particle, got {size}")
    limits = bounds(n // size, size)
    # By the largest first, whose square may be infinite or 0.
    largest = jnp.max(jnp.abs(gradient))
    some = largest > 0.0
    scaled = gradient / jnp.where(some, largest, 1.0)
    norm = jnp.sqrt(jnp.sum(jnp.square(scaled)))
    z = scaled * (math.sqrt(n) / jnp.where(some, norm, 1.0))
    for there, back in ((_cosine, _uncosine), (_same, _same)):
        tiles = there(z).reshape(-1, size)
        z = back(as_noise(tiles, limits).reshape(z.shape))
    return jnp.where(some, z, 0.0)


def _tile(n: int) -> int:
    return next(d for d in range(math.isqrt(n), 0, -1) if n % d == 0)


def _same(z: jax.Array) -> jax.Array:
    return z


def _cosine(z: jax.Array) -> jax.Array:
    return jax.scipy.fft.dctn(z, norm="ortho")


def _uncosine(z: jax.Array) -> jax.Array:
    return jax.scipy.fft.idctn(z, norm="ortho")


@dataclasses.dataclass(frozen=True)
class NoiseTilt(ByGradient):
    """See `noise_tilt`."""

    rho: float
    tile: int | None = None

    def tilted(self, mean, std, gradient, t):
        # Without a gradient, where the reward has none, the inner kernel's own draw.
        rho = jnp.where(jnp.any(gradient != 0.0), jnp.asarray(self.rho, std.dtype), 0.0)
        return (
            mean + std * jnp.sqrt(rho) * whiten(gradient, self.tile),
            std * jnp.sqrt(1.0 - rho),
        )

    def log_prob(self, x_s, x, x0, x1, t, s, gradient=None):
        """Log density of x_s given x and the gradient there."""
        return normal_log_prob(x_s, *self.moments(x, x0, x1, t, s, gradient))


def noise_tilt(kernel: Kernel, rho: float = 0.25, tile: int | None = None) -> Kernel:
    """A stochastic kernel part of whose noise is the whitened gradient of the reward.

    The gradient is that of the reward of the decoded posterior mean in x, through the model, as for
    `reward_gradient`: a search asks for it, one backward pass a candidate. Only its direction
    counts, so that there is no temperature.

    Args:
      kernel: `euler_maruyama`, `ddim` or `cps`.
      rho: share of the noise's variance that the gradient takes, 0 to 1; the same at all times.
        What the paper uses is not known: the default is a choice.
      tile: D, values of a tile in the order of the flattened particle, which they divide. By
        default the largest divisor of their number up to its square root.

    Raises:
      ValueError, TypeError: naming the argument.

    Example:
      >>> kernel = fs.kernels.noise_tilt(fs.kernels.ddim(fs.interpolants.linear()), rho=0.25)
      >>> kernel.uses_gradient, kernel.stochastic
      (True, True)
    """
    kernel = check_tiltable(kernel)
    if not 0.0 <= rho <= 1.0:
        raise ValueError(f"rho must lie in [0, 1], got {rho}")
    own = None if tile is None else check_count("tile", tile)
    return NoiseTilt(kernel.interpolant, kernel, float(rho), own)
