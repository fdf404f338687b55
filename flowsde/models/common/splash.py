"""Attention by the kernel for TPUs that ships with JAX, which keeps scores out of memory.

The kernel wants blocks of whole lanes: tokens and features of a head are filled up to multiples of
128, and queries are kept from looking at what was filled in. XLA cannot divide a kernel among
devices, so under a mesh, see `jax.set_mesh`, each device runs it on examples, heads and queries of
its own, where the mesh divides them; keys and values are gathered when tokens are divided.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from flowsde.sharding import ShardingRules

LANES = 128
LONG = 1024
"""Tokens from which on the kernel is chosen for attention to themselves: of fewer, filling up costs
more than scores in memory do, as `benchmarks/tpu_plan.py` estimates it for SiT."""
LARGEST = 1024
"""Tokens of a block, at most; its scores, in float32, take 4 MiB of 16 that a kernel may use."""
_WIDEST = 2304
"""Queries of a block that is not square, at most, and as many scores."""


def block_of(tokens: int) -> int:
    """Tokens of a block: the largest that fills up least."""
    whole = -(-tokens // LANES) * LANES
    if whole <= LARGEST:
        return whole
    sizes = range(LARGEST, LARGEST // 2, -LANES)
    return min(sizes, key=lambda size: -(-tokens // size) * size)


def blocks_of(queries: int, keys: int) -> tuple[int, int]:
    """Queries and keys of a block.

    Filling up copies all that the kernel reads and writes: where it can be done without, blocks are
    as nearly square as may be, rather of many queries, for which keys are read less often.
    """
    square = block_of(queries), block_of(keys)
    if queries % square[0] == 0 and keys % square[1] == 0:
        return square
    exact = [
        (q, k)
        for q in range(_WIDEST, 0, -LANES)
        for k in range(LARGEST, LANES, -LANES)
        if q * k <= LARGEST**2 and queries % q == 0 and keys % k == 0
    ]
    return max(exact, key=min, default=square)


def filled(queries: int, keys: int) -> tuple[int, int]:
    """Queries and keys that the kernel computes for so many."""
    q, k = blocks_of(queries, keys)
    return -(-queries // q) * q, -(-keys // k) * k


def splash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    seen: jax.Array | None = None,
    causal: bool = False,
    scale: float | None = None,
    rules: ShardingRules,
    interpret: bool = False,
) -> jax.Array:
    """Attention of q [n, queries, heads, d] over k, v [n, keys, heads, d], shaped as q.

    Args:
      q: queries.
      k: keys.
      v: values.
      seen: bool [n, keys], True where queries may look; everywhere by default.
      causal: whether queries see no later keys; then as many keys as queries.
      scale: of the scores; 1 / sqrt(d) by default.
      rules: the axes of the mesh that "prompt", "particle", "token" and "heads" are divided over.
      interpret: run it without a TPU, slowly.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q = (q.astype(jnp.float32) * scale).astype(v.dtype)
    k = k.astype(v.dtype)
    arrays = (q, k, v) if seen is None else (q, k, v, seen)
    attend = partial(_attend, causal=causal, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.are_all_axes_manual:
        return attend(*arrays)

    # A causal query's place is its place in the whole text.
    names = (("prompt", "particle"), ("heads",), () if causal else ("token",))
    rows, heads, tokens = rules.dividing(mesh, (q.shape[0], q.shape[2], q.shape[1]), names)
    queries = PartitionSpec(rows, tokens, heads, None)
    keys = PartitionSpec(rows, None, heads, None)
    divided = jax.shard_map(
        attend,
        in_specs=(queries, keys, keys, PartitionSpec(rows, None))[: len(arrays)],
        out_specs=queries,
        check_vma=False,
    )
    return divided(*arrays)


def _attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    seen: jax.Array | None = None,
    *,
    causal: bool,
    interpret: bool,
) -> jax.Array:
    """On one device, of scaled queries."""
    # Only a TPU's users wait for this import.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    queries, keys, heads, features = q.shape[1], k.shape[1], q.shape[2], q.shape[3]
    by_q, by_k = blocks_of(queries, keys)
    shape = filled(queries, keys)
    blocks = splash.BlockSizes(
        block_q=by_q, block_kv=by_k, block_q_dkv=by_q, block_kv_dkv=by_k, block_q_dq=by_q,
        block_kv_dq=by_k,
    )  # fmt: skip

    def fill(x: jax.Array, tokens: int) -> jax.Array:
        """[n, heads, tokens, features], both filled up."""
        more = ((0, 0), (0, tokens - x.shape[1]), (0, 0), (0, -features % LANES))
        return jnp.pad(x, more).transpose(0, 2, 1, 3)

    mask = splash.CausalMask(shape) if causal else splash.FullMask(shape)
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([mask] * heads), block_sizes=blocks, interpret=interpret
    )
    # Without segments a block needs no mask at all.
    segments = None
    if seen is not None or shape[1] != keys:
        seen = jnp.ones((len(k), keys), bool) if seen is None else seen
        segments = splash.SegmentIds(
            q=jnp.ones((len(q), shape[0]), jnp.int32),
            kv=jnp.pad(seen.astype(jnp.int32), ((0, 0), (0, shape[1] - keys))),
        )
    arrays = fill(q, shape[0]), fill(k, shape[1]), fill(v, shape[1])
    y = jax.vmap(kernel)(*arrays, segment_ids=segments)
    return y[:, :, :queries, :features].transpose(0, 2, 1, 3)
