"""A network that is causal in time, run over a video piece by piece.

A convolution sees the frames before a piece if they are kept, and zeros before the first: then
pieces of any length give what the whole does. The first frame is a piece of its own, because
layers that change the number of frames leave it as it is.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx


class Past:
    """Frames that convolutions saw last, in the order in which a network meets them.

    Args:
      frames: that another `Past` kept of the piece before; None for the first frame.

    Attributes:
      first: whether the piece is the first frame.
      kept: frames for the next piece.
    """

    def __init__(self, frames: Sequence[jax.Array] | None = None):
        self.first = frames is None
        self._given = iter(frames or ())
        self.kept: list[jax.Array] = []

    def through(self, conv: nnx.Conv, x: jax.Array, count: int = 2) -> jax.Array:
        """The convolution of x [n, frames, h, w, c] and `count` frames before it."""
        x = x.astype(conv.dtype)
        x = jnp.concatenate([_zeros(x, count) if self.first else next(self._given), x], axis=1)
        self.kept.append(x[:, -count:])
        return conv(x)

    def begin(self, conv: nnx.Conv, x: jax.Array, count: int = 2, *, seen: bool) -> None:
        """Pass a convolution by with the first frame, which its next piece sees, or zeros."""
        x = x.astype(conv.dtype)
        self.kept.append(x if seen else _zeros(x, count))


def _zeros(x: jax.Array, count: int) -> jax.Array:
    return jnp.zeros((x.shape[0], count, *x.shape[2:]), x.dtype)


def through_time(
    network: Callable[[jax.Array, Past], jax.Array], x: jax.Array, piece: int, streamed: bool
) -> jax.Array:
    """A network's output of x [n, frames, ...], the first frame alone and then all others.

    Args:
      network: of a piece and its `Past`.
      x: one frame and some pieces.
      piece: frames.
      streamed: run the others piece by piece, in memory that does not grow with them.
    """
    past = Past()
    first, rest = network(x[:, :1], past), x[:, 1:]
    if not rest.shape[1]:
        return first
    if not streamed:
        return jnp.concatenate([first, network(rest, Past(past.kept))], axis=1)

    def step(frames: list[jax.Array], one: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        past = Past(frames)
        made = network(one, past)
        return past.kept, made

    pieces = rest.reshape(x.shape[0], -1, piece, *x.shape[2:])
    _, made = jax.lax.scan(step, past.kept, jnp.moveaxis(pieces, 1, 0))
    made = jnp.moveaxis(made, 0, 1)
    return jnp.concatenate([first, made.reshape(first.shape[0], -1, *first.shape[2:])], axis=1)
