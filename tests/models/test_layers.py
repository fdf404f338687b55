"""Shapes of a module without tracing how its weights are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowsde.models.common.conv import convolution
from flowsde.models.common.layers import FLOAT32, Numerics, parameter, shapes_of, stack


class Small(nnx.Module):
    """One of each kind of layer, some of them stacked."""

    def __init__(self, numerics: Numerics, rngs: nnx.Rngs):
        self.stem = convolution(3, 4, 3, numerics, rngs)
        self.place = parameter((5, 4), (None, "embed"), numerics, rngs)
        self.blocks = stack(lambda one: numerics.linear(4, 6, ("embed", "mlp"), rngs=one), 2, rngs)
        self.plain = nnx.Linear(6, 2, rngs=rngs)


def test_shapes_are_those_of_a_module() -> None:
    numerics = Numerics(param_dtype=jnp.bfloat16)
    graph, state = nnx.split(shapes_of(lambda: Small(numerics, nnx.Rngs(0))))
    wanted, drawn = nnx.split(Small(numerics, nnx.Rngs(0)))
    assert graph == wanted
    leaves, others = jax.tree.leaves(state), jax.tree.leaves(drawn)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
    assert [(x.shape, x.dtype) for x in leaves] == [(x.shape, x.dtype) for x in others]
    for made, other in zip(nnx.to_flat_state(state), nnx.to_flat_state(drawn), strict=True):
        assert made[0] == other[0] and made[1].get_metadata() == other[1].get_metadata()


def test_weights_are_drawn_again_afterwards() -> None:
    def broken() -> nnx.Module:
        raise RuntimeError("no module")

    shapes_of(lambda: Small(FLOAT32, nnx.Rngs(0)))
    with pytest.raises(RuntimeError, match="no module"):
        shapes_of(broken)
    made = Small(FLOAT32, nnx.Rngs(0))
    for weight in (made.stem.kernel, made.place, made.blocks.kernel, made.plain.kernel):
        assert np.asarray(weight[...]).all()
