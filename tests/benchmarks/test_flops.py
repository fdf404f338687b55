"""Products are counted as often as they run, in the ports as on paper."""

import jax
import jax.numpy as jnp
import pytest
from _flops import flops
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flowsde.models.common.layers import Numerics
from flowsde.models.sit.model import SiT, SiTConfig


def test_a_product_counts_two_for_each_pair():
    a, b = jnp.zeros((7, 3, 4)), jnp.zeros((7, 4, 5))
    assert flops(jnp.matmul, a, b) == 2 * 7 * 3 * 4 * 5


def test_a_loop_counts_as_often_as_it_runs():
    a = jnp.zeros((4, 4))
    looped = jax.jit(lambda a: jax.lax.scan(lambda x, _: (x @ a, None), a, length=9)[0])
    assert flops(looped, a) == 9 * 2 * 4**3
    endless = lambda a: jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ a, a)  # noqa: E731
    with pytest.raises(ValueError, match="while"):
        flops(endless, a)


def test_of_branches_the_longest_counts():
    a = jnp.zeros((4, 4))
    branches = lambda a: jax.lax.cond(a[0, 0] > 0, lambda: a @ a @ a, lambda: a @ a)  # noqa: E731
    assert flops(branches, a) == 2 * 2 * 4**3


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_counts_its_window(groups):
    x, w = jnp.zeros((2, 8, 8, 4)), jnp.zeros((3, 3, 4 // groups, 6))
    convolve = lambda x, w: jax.lax.conv_general_dilated(  # noqa: E731
        x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )
    assert flops(convolve, x, w) == 2 * (2 * 4 * 4 * 6) * (3 * 3 * 4 // groups)


def test_a_transformer_counts_what_its_sizes_say():
    config = SiTConfig(width=32, depth=3, heads=2, size=8, classes=5)
    numerics = Numerics(attention="xla")
    graph, state = nnx.split(nnx.eval_shape(lambda: SiT(config, numerics, rngs=nnx.Rngs(0))))
    n, tokens, width = 2, 16, 32
    found = flops(
        lambda state, *args: nnx.merge(graph, state)(*args),
        state,
        jnp.zeros((n, 8, 8, 4)),
        jnp.zeros(n),
        jnp.zeros(n, jnp.int32),
    )
    block = 12 * width**2 * tokens + 2 * tokens**2 * width + 6 * width**2
    ends = tokens * (16 * width + width * 32) + 2 * width**2 + 256 * width + width**2
    assert found == 2 * n * (config.depth * block + ends)


def test_products_do_not_depend_on_the_mesh():
    mesh = jax.make_mesh((2, 2), ("a", "b"), (AxisType.Auto,) * 2)
    split = NamedSharding(mesh, PartitionSpec("a", "b"))
    x = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=split)
    assert flops(lambda x: x @ x, x) == 2 * 8**3
