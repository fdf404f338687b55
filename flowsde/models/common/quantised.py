"""Linear layers whose weights are held in eight bits, with a scale for each output feature.

    W[i, j] ~ values[i, j] scale[j],    scale[j] = max_i |W[i, j]| / largest value of the format

Activations keep their dtype: what is saved is memory, half of bfloat16's, and its bandwidth. Every
product has the weights widened to the dtype of its activations, a block at a time.
"""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from flowsde.sharding import axes_of

Format = Literal["int8", "float8_e4m3fn"]
"""Of weights. Whole numbers have the smaller error where a feature's weights are of one size."""
FORMATS = get_args(Format)


class NotFiniteError(ValueError):
    """A weight is NaN or infinite."""


class QuantisedLinear(nnx.Module):
    """An `nnx.Linear` of stacked blocks [layer, in, out] in a format; its arrays are shapes."""

    def __init__(self, linear: nnx.Linear, name: Format):
        kernel = linear.kernel
        layers, inputs, outputs = kernel.get_value().shape
        layer, embed, to = axes_of(kernel)
        assert linear.dtype is not None
        self.dtype, self.bias = linear.dtype, linear.bias
        self.values = nnx.Param(
            jax.ShapeDtypeStruct((layers, inputs, outputs), name), axes=(layer, embed, to)
        )
        self.scale = nnx.Param(
            jax.ShapeDtypeStruct((layers, outputs), jnp.float32), axes=(layer, to)
        )

    def kernel_in(self, dtype: DTypeLike) -> jax.Array:
        """The kernel [in, out] of one block, rounded to a dtype once."""
        values: Any = self.values.get_value()
        scale: Any = self.scale.get_value()
        return (values.astype(jnp.float32) * scale[None, :]).astype(dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """As `nnx.Linear`: x [..., in] to [..., out] in the layer's dtype."""
        y = x.astype(self.dtype) @ self.kernel_in(self.dtype)
        if self.bias is None:
            return y
        bias = self.bias.get_value().astype(self.dtype)
        return y + jnp.broadcast_to(bias, y.shape)


def quantise_layers(model: nnx.Module, name: Format) -> list[str]:
    """Replace the linear layers of stacked blocks, of a model of shapes.

    What stands outside of blocks stays: it is small, and what enters and leaves a model needs its
    digits most.

    Returns:
      Paths of the kernels that are gone; for "a.kernel" there are "a.values" and "a.scale".
    """
    found = [
        (path, node)
        for path, node in nnx.iter_graph(model)
        if isinstance(node, nnx.Linear) and len(node.kernel.get_value().shape) == 3
    ]
    for path, linear in found:
        parent: Any = model
        for key in path[:-1]:
            parent = getattr(parent, str(key))
        setattr(parent, str(path[-1]), QuantisedLinear(linear, name))
    return [".".join(map(str, (*path, "kernel"))) for path, _ in found]


def quantised_of(kernel: np.ndarray, name: Format) -> tuple[np.ndarray, np.ndarray]:
    """Values [in, out] and scale [out] of a kernel [in, out].

    Each value is the nearest of the format. A feature that is zero has scale 0, and so has one
    whose scale would be subnormal: devices may take it for 0, and it has few digits.

    Raises:
      NotFiniteError: a weight is NaN or infinite.
    """
    wide = kernel.astype(np.float32)
    scale = np.abs(wide).max(axis=0) / _largest(name)
    if not np.isfinite(scale).all():
        raise NotFiniteError("a weight is NaN or infinite")
    scale[scale < np.finfo(np.float32).tiny] = 0.0
    units = wide / np.where(scale > 0, scale, 1.0).astype(np.float32)
    if name == "int8":
        units = np.rint(units)
    return units.astype(name), scale.astype(np.float32)


def _largest(name: Format) -> np.float32:
    return np.float32(jnp.iinfo(name).max if name == "int8" else jnp.finfo(name).max)
