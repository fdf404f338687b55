"""Collectives of programs that are small enough to count by hand."""

import jax
import jax.numpy as jnp
import pytest
from _hlo import Collective, collectives, loops
from jax.sharding import AxisType, PartitionSpec

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
