"""A network that is causal in time, run over a video piece by piece.

A convolution sees the frames before a piece if they are kept, and zeros before the first: then
pieces of any length give what the whole does. The first frame is a piece of its own, because
layers that change the number of frames leave it as it is.

The first frame needs the last slice of a kernel alone: those before it would meet zeros. On CPUs
frames are convolved as pictures, once for each slice, because XLA takes two to five times as long
for three dimensions there; its estimates for TPUs prefer the three.
"""

import functools
from collections.abc import Callable, Sequence
from functools import partial

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

    def through(self, conv: nnx.Conv, x: jax.Array) -> jax.Array:
        """The convolution of x [n, frames, h, w, c] and the frames before it."""
        x = x.astype(conv.dtype)
        before = _zeros(conv, x) if self.first else next(self._given)
        seen = jnp.concatenate([before, x], axis=1)
        self.kept.append(seen[:, -before.shape[1] :])
        return _convolve(conv, x if self.first else seen)

    def begin(self, conv: nnx.Conv, x: jax.Array, *, seen: bool) -> None:
        """Pass a convolution by with the first frame, which its next piece sees, or zeros."""
        x = x.astype(conv.dtype)
        self.kept.append(x if seen else _zeros(conv, x))


def _zeros(conv: nnx.Conv, x: jax.Array) -> jax.Array:
    """In place of the frames that a convolution sees of the piece before."""
    sizes = conv.kernel_size
    assert isinstance(sizes, tuple)
    return jnp.zeros((x.shape[0], sizes[0] - _stride(conv), *x.shape[2:]), x.dtype)


def _stride(conv: nnx.Conv) -> int:
    """Of frames; pixels are all taken."""
    return conv.strides[0] if isinstance(conv.strides, tuple) else 1


def _convolve(conv: nnx.Conv, x: jax.Array) -> jax.Array:
    """A convolution whose pictures keep their sides.

    Of one frame, it is what zeros before the frame would give.
    """
    kernel = conv.kernel.get_value().astype(x.dtype)[-x.shape[1] :]
    stride = _stride(conv)
    forms = {"cpu": partial(_by_slices, stride), "default": partial(_at_once, stride)}
    made = jax.lax.platform_dependent(x, kernel, **forms)
    assert conv.bias is not None
    return made + conv.bias.get_value().astype(x.dtype).reshape(1, 1, 1, 1, -1)


def _at_once(stride: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    sides = [(size // 2, size // 2) for size in kernel.shape[1:3]]
    layout = ("NTHWC", "THWIO", "NTHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, 1, 1), [(0, 0), *sides], dimension_numbers=layout
    )


def _by_slices(stride: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Added up in float32."""
    frames = (x.shape[1] - kernel.shape[0]) // stride + 1

    def convolve(i: int) -> jax.Array:
        pictures = x[:, i : i + stride * (frames - 1) + 1 : stride]
        return jax.lax.conv_general_dilated(
            pictures.reshape(-1, *x.shape[2:]),
            kernel[i],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            preferred_element_type=jnp.float32,
        )

    total = functools.reduce(jnp.add, map(convolve, range(kernel.shape[0])))
    return total.astype(x.dtype).reshape(x.shape[0], frames, *total.shape[1:])


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
