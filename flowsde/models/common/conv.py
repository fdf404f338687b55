"""Layers of convolutional networks, for images [n, height, width, channels]."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flowsde.models.common.layers import Numerics, kernel_init


def convolution(
    features: int,
    to: int,
    size: int | tuple[int, ...],
    numerics: Numerics,
    rngs: nnx.Rngs,
    **settings: Any,
) -> nnx.Conv:
    """Of size x size pixels, or of several sizes, its axes without names."""
    sizes = (size, size) if isinstance(size, int) else size
    return nnx.Conv(
        features,
        to,
        sizes,
        dtype=numerics.dtype,
        param_dtype=numerics.param_dtype,
        kernel_init=nnx.with_metadata(kernel_init, axes=(None,) * (len(sizes) + 2)),
        bias_init=nnx.with_metadata(nnx.initializers.zeros_init(), axes=(None,)),
        rngs=rngs,
        **settings,
    )


class GroupNorm(nnx.GroupNorm):
    """Flax's for images, in float32; pixels are summed before a group's few channels, which XLA
    does several times faster on CPUs."""

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        x = x.astype(jnp.float32)

        def mean(a: jax.Array) -> jax.Array:
            """Of each group, at each of its channels: [n, 1, 1, width]."""
            groups = jnp.mean(a, (1, 2)).reshape(-1, self.num_groups, self.group_size).mean(-1)
            return jnp.repeat(groups, self.group_size, axis=-1)[:, None, None]

        centred = x - mean(x)
        assert self.scale is not None and self.bias is not None
        scale, bias = (a.get_value().astype(jnp.float32) for a in (self.scale, self.bias))
        slope = jax.lax.rsqrt(mean(jnp.square(centred)) + self.epsilon) * scale[None, None, None]
        return centred * slope + bias[None, None, None]


def group_norm(features: int, groups: int, rngs: nnx.Rngs) -> GroupNorm:
    """In float32, its axes without names."""
    return GroupNorm(
        features,
        groups,
        epsilon=1e-6,
        scale_init=nnx.with_metadata(nnx.initializers.ones_init(), axes=(None,)),
        bias_init=nnx.with_metadata(nnx.initializers.zeros_init(), axes=(None,)),
        rngs=rngs,
    )


def convolve_doubled(conv: nnx.Conv, x: jax.Array) -> jax.Array:
    """A 3x3 convolution of x with each pixel repeated to 2x2, [n, 2 h, 2 w, to].

    Two of its three rows, and columns, always meet the same pixel of x. So it is four 2x2
    convolutions of x, one for each pixel of the 2x2: 16 products where there would be 36.
    """

    def halves(kernel: jax.Array, axis: int) -> list[jax.Array]:
        """Kernels that give the first and the second of a pixel's two."""
        a, b, c = jnp.split(kernel, 3, axis)
        return [jnp.concatenate(pair, axis) for pair in ((a, b + c), (a + b, c))]

    def convolve(kernel: jax.Array, i: int, j: int) -> jax.Array:
        padding = ((1 - i, i), (1 - j, j))
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=layout)

    x = x.astype(conv.dtype)
    # Sums of rows have more digits than weights of 16 bits.
    kernel = conv.kernel.get_value().astype(jnp.float32)
    pixels = [
        jnp.stack([convolve(k.astype(x.dtype), i, j) for j, k in enumerate(halves(rows, 1))], 3)
        for i, rows in enumerate(halves(kernel, 0))
    ]
    assert conv.bias is not None
    bias = conv.bias.get_value().astype(x.dtype)
    n, h, w, _ = x.shape
    return jnp.stack(pixels, 2).reshape(n, 2 * h, 2 * w, -1) + bias[None, None, None]
