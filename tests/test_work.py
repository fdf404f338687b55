"""Products are counted as often as they run, in the ports as on paper."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from flowsde.models.layers import Numerics
from flowsde.models.sit import SiT, SiTConfig


@pytest.fixture(scope="module")
def product_flops():
    folder = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        from _work import product_flops
    finally:
        sys.path.remove(folder)
    return product_flops


def test_a_product_counts_two_for_each_pair(product_flops):
    a, b = jnp.zeros((7, 3, 4)), jnp.zeros((7, 4, 5))
    assert product_flops(jnp.matmul, a, b) == 2 * 7 * 3 * 4 * 5


def test_a_loop_counts_as_often_as_it_runs(product_flops):
    a = jnp.zeros((4, 4))
    looped = jax.jit(lambda a: jax.lax.scan(lambda x, _: (x @ a, None), a, length=9)[0])
    assert product_flops(looped, a) == 9 * 2 * 4**3
    endless = lambda a: jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ a, a)  # noqa: E731
    with pytest.raises(ValueError, match="while"):
        product_flops(endless, a)


def test_of_branches_the_longest_counts(product_flops):
    a = jnp.zeros((4, 4))
    branches = lambda a: jax.lax.cond(a[0, 0] > 0, lambda: a @ a @ a, lambda: a @ a)  # noqa: E731
    assert product_flops(branches, a) == 2 * 2 * 4**3


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_counts_its_window(product_flops, groups):
    x, w = jnp.zeros((2, 8, 8, 4)), jnp.zeros((3, 3, 4 // groups, 6))
    convolve = lambda x, w: jax.lax.conv_general_dilated(  # noqa: E731
        x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )
    assert product_flops(convolve, x, w) == 2 * (2 * 4 * 4 * 6) * (3 * 3 * 4 // groups)


def test_a_transformer_counts_what_its_sizes_say(product_flops):
    config = SiTConfig(width=32, depth=3, heads=2, size=8, classes=5)
    numerics = Numerics(attention="xla")
    graph, state = nnx.split(nnx.eval_shape(lambda: SiT(config, numerics, rngs=nnx.Rngs(0))))
    n, tokens, width = 2, 16, 32
    found = product_flops(
        lambda state, *args: nnx.merge(graph, state)(*args),
        state,
        jnp.zeros((n, 8, 8, 4)),
        jnp.zeros(n),
        jnp.zeros(n, jnp.int32),
    )
    block = 12 * width**2 * tokens + 2 * tokens**2 * width + 6 * width**2
    ends = tokens * (16 * width + width * 32) + 2 * width**2 + 256 * width + width**2
    assert found == 2 * n * (config.depth * block + ends)
