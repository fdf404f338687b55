"""Collectives and FLOPs of programs that are small enough to count by hand."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from _flops import flops
from _hlo import Collective, collectives, loops

KIB = 1024


def found(f, *shapes, specs, out):
    """Collectives of f over 2 x 2 devices."""
    mesh = jax.make_mesh((2, 2), ("a", "b"), (AxisType.Auto,) * 2)
    mapped = jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return collectives(jax.jit(mapped).lower(*args).compile().as_text())


P = PartitionSpec


def test_sum_over_one_axis():
    made = found(lambda x: jax.lax.psum(x, "a"), (2, KIB), specs=P("a"), out=P())
    assert made == [Collective("all-reduce", 4 * KIB, 2, 1)]


def test_sum_over_both_axes():
    made = found(lambda x: jax.lax.psum(x, ("a", "b")), (4, KIB), specs=P(("a", "b")), out=P())
    assert made == [Collective("all-reduce", 4 * KIB, 4, 1)]


def test_what_is_gathered_or_scattered_counts_whole():
    made = found(
        lambda x: jax.lax.all_gather(x, "b", tiled=True), (2 * KIB,), specs=P("b"), out=P()
    )
    assert made == [Collective("all-gather", 8 * KIB, 2, 1)]
    made = found(
        lambda x: jax.lax.psum_scatter(x, "b", tiled=True), (2 * KIB,), specs=P(), out=P("b")
    )
    assert sum(c.bytes for c in made) == 8 * KIB


def test_neighbours_exchange():
    made = found(
        lambda x: jax.lax.ppermute(x, "a", [(0, 1), (1, 0)]), (2 * KIB,), specs=P("a"), out=P("a")
    )
    assert made == [Collective("collective-permute", 4 * KIB, 2, 1)]


def test_a_loop_counts_as_often_as_it_turns():
    def five(x):
        return jax.lax.fori_loop(0, 5, lambda i, x: jnp.sin(jax.lax.psum(x, "a")), x)

    def both(x):
        twice = jax.lax.scan(lambda x, _: (five(x), None), x, length=2)[0]
        return jax.lax.psum(twice, "b")

    made = found(both, (KIB,), specs=P(), out=P())
    assert sorted(c.times for c in made) == [1, 10]


def test_a_program_without_any():
    assert found(jnp.sin, (2 * KIB,), specs=P("a"), out=P("a")) == []


LOOP = """HloModule jit_f, num_partitions=8

%body (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %g.1 = bf16[8,128]{1,0:T(8,128)} all-gather(%x), channel_id=3, replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=4] {'axis_2'}, dimensions={0}, frontend_attributes={chain_id="1"}
  %g.2 = bf16[8,128]{1,0:T(8,128)} all-gather(%y), channel_id=3, replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=4] {'axis_2'}, dimensions={0}, frontend_attributes={chain_id="1"}
}

%condition (p.1: (s32[], bf16[8,128])) -> pred[] {
  %c = s32[]{:T(128)} constant(19)
  ROOT %lt = pred[]{:T(512)} compare(%i, %c), direction=LT
}

%all-reduce-scatter.2 (p.2: f32[64]) -> f32[16] {
  %r = f32[64]{0} all-reduce(%p.2), channel_id=4, replica_groups=[2,4]<=[8], to_apply=%add
}

ENTRY %main (a: bf16[8,128]) -> bf16[8,128] {
  %loop = (s32[], bf16[8,128]) while(%t), condition=%condition, body=%body
  %s = f32[16]{0} fusion(%a), kind=kCustom, calls=%all-reduce-scatter.2
  %m = (bf16[32]{0}, bf16[32]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%b), channel_id=7, source_target_pairs={{0,1},{1,0}}
  %d = bf16[32]{0} collective-permute-done(%m)
}
"""  # noqa: E501


def test_the_way_a_tpu_compiler_writes_them():
    assert loops(LOOP) == 1
    assert collectives(LOOP) == [
        Collective("all-gather", 2 * 8 * 128, 4, 19),
        Collective("reduce-scatter", 4 * 64, 4, 1),
        Collective("collective-permute", 2 * 32, 2, 1),
    ]


def test_text_of_something_else():
    with pytest.raises(ValueError, match="found no ENTRY"):
        collectives("nothing")


def test_flops_of_products_and_convolutions():
    a, b = np.ones((3, 5, 7), np.float32), np.ones((3, 7, 2), np.float32)
    assert flops(lambda a, b: jnp.sin(a @ b), a, b) == 2 * 3 * 5 * 7 * 2

    image, kernel = np.ones((2, 8, 8, 3), np.float32), np.ones((3, 3, 3, 4), np.float32)

    def convolve(x, k):
        return jax.lax.conv_general_dilated(
            x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    assert flops(convolve, image, kernel) == 2 * (2 * 4 * 4 * 4) * (3 * 3 * 3)


def test_flops_of_loops_and_branches():
    x = np.ones((4, 4), np.float32)
    once = 2 * 4**3

    def looped(x):
        return jax.lax.scan(lambda x, _: (jax.jit(jnp.matmul)(x, x), None), x, length=6)[0]

    assert flops(looped, x) == 6 * once

    def either(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert flops(either, x) == 2 * once
    with pytest.raises(ValueError, match="a while loop has matrix products"):
        flops(lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ x, x), x)


def test_flops_do_not_depend_on_the_mesh():
    mesh = jax.make_mesh((2, 2), ("a", "b"), (AxisType.Auto,) * 2)
    split = NamedSharding(mesh, P("a", "b"))
    x = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=split)
    assert flops(lambda x: x @ x, x) == 2 * 8**3
