"""Ring attention (Liu et al., 2023, arXiv 2310.01889): tokens are split over devices, exactly.

Each device has queries of its own. Blocks of keys and values go around, from each device to the
next, so that all have met after as many steps as there are devices, and no device holds more than
two blocks. The softmax is kept as it comes (Milakov & Gimelshein, 2018, arXiv 1805.02867): with
scores s of a block, m the largest so far, w the sum of weights and o that of weighted values,

    m' = max(m, max s),  w <- w e^(m - m') + sum e^(s - m'),  o <- o e^(m - m') + e^(s - m') v

and o / w in the end, all in float32. Only m and w are kept for the gradient, for which blocks go
around once more, and with them the gradients of theirs. Scores in memory are those of one
block and one head.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from flowsde.models.common.by_head import UNSEEN
from flowsde.sharding import ShardingRules

Seen = jax.Array | None


def ring_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    seen: Seen = None,
    scale: float | None = None,
    rules: ShardingRules,
) -> jax.Array | None:
    """Attention of q [n, queries, heads, d] over k, v [n, keys, heads, d], shaped as q.

    Args:
      q: queries.
      k: keys.
      v: values.
      seen: bool [n, keys], True where queries may look; everywhere by default.
      scale: of the scores; 1 / sqrt(d) by default.
      rules: the axes of the mesh that "prompt", "particle", "heads" and "token" are split over. An
        axis that the heads are split over leaves tokens whole.

    Returns:
      None where there is no mesh, or no axis of it splits both queries and keys.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not mesh.are_all_axes_auto:
        return None
    # What divides the number of both divides both.
    tokens = int(np.gcd(q.shape[1], k.shape[1]))
    names = (("prompt", "particle"), ("heads",), ("token",))
    rows, heads, axes = rules.dividing(mesh, (q.shape[0], k.shape[2], tokens), names)
    if math.prod(mesh.shape[axis] for axis in axes) == 1 or q.shape[2] != k.shape[2]:
        return None
    split = PartitionSpec(rows, axes, heads, None)
    attend = partial(_attend, axes, q.shape[-1] ** -0.5 if scale is None else scale)
    shared = jax.shard_map(
        attend,
        in_specs=(split, split, split, PartitionSpec(rows, axes)),
        out_specs=split,
        check_vma=False,
    )
    return shared(q, k, v, seen)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(
    axes: tuple[str, ...], scale: float, q: jax.Array, k: jax.Array, v: jax.Array, seen: Seen
) -> jax.Array:
    """On one device, of its own queries, keys and values."""
    return _forward(axes, scale, q, k, v, seen)[0]


def _forward(
    axes: tuple[str, ...], scale: float, q: jax.Array, k: jax.Array, v: jax.Array, seen: Seen
) -> tuple[jax.Array, Any]:
    own, *block = _by_head(q, k, v)
    top = jnp.full(own.shape[:3], UNSEEN, jnp.float32)
    state = jnp.zeros((*own.shape[:3], v.shape[-1]), jnp.float32), top, jnp.zeros_like(top)

    def look(state: Any, block: Any) -> Any:
        k, v, seen = block
        one = partial(_look, seen=seen, scale=scale)
        return jax.lax.map(lambda each: one(*each), (state, own, k, v))

    def turn(carry: Any, _: None) -> tuple[Any, None]:
        state, block = carry
        return (look(state, block), _passed(axes, block)), None

    (state, last), _ = jax.lax.scan(turn, (state, (*block, seen)), None, _ways(axes) - 1)
    o, m, w = look(state, last)
    y = (o / w[..., None]).astype(v.dtype).transpose(1, 2, 0, 3)
    return y, (q, k, v, seen, y, m, w)


def _backward(axes: tuple[str, ...], scale: float, kept: Any, dy: jax.Array) -> Any:
    q, k, v, seen, y, m, w = kept
    own, dy, y, *block = _by_head(q, dy, y, k, v)
    mean = jnp.sum(dy.astype(jnp.float32) * y.astype(jnp.float32), axis=-1)

    def look(sums: Any, block: Any) -> Any:
        k, v, seen = block
        one = partial(_gradients, seen=seen, scale=scale)
        more = jax.lax.map(lambda each: one(*each), (own, k, v, m, w, mean, dy))
        return jax.tree.map(jnp.add, sums, more)

    def turn(carry: Any, _: None) -> tuple[Any, None]:
        sums, block = carry
        dq, *of_block = look(sums, block)
        return ((dq, *_passed(axes, of_block)), _passed(axes, block)), None

    sums = tuple(jnp.zeros(a.shape, jnp.float32) for a in (own, *block))
    (sums, last), _ = jax.lax.scan(turn, (sums, (*block, seen)), None, _ways(axes) - 1)
    dq, *of_block = look(sums, last)
    # One step further is where the block is from.
    made = zip((dq, *_passed(axes, of_block)), (q, k, v), strict=True)
    return *(d.transpose(1, 2, 0, 3).astype(a.dtype) for d, a in made), None


_attend.defvjp(_forward, _backward)


def _look(
    state: tuple[jax.Array, jax.Array, jax.Array],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    seen: Seen,
    scale: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """o, m and w of a head after a block: q [n, queries, d], k and v [n, keys, d]."""
    o, m, w = state
    s = _scores(q, k, seen, scale)
    top = jnp.maximum(m, s.max(axis=-1))
    weights, faded = jnp.exp(s - top[..., None]), jnp.exp(m - top)
    o = o * faded[..., None] + _product(weights.astype(v.dtype), v)
    return o, top, w * faded + weights.sum(axis=-1)


def _gradients(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    m: jax.Array,
    w: jax.Array,
    mean: jax.Array,
    dy: jax.Array,
    *,
    seen: Seen,
    scale: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What a block adds to the gradients of q, k and v, of one head, float32."""
    weights = jnp.exp(_scores(q, k, seen, scale) - m[..., None]) / w[..., None]
    ds = weights * (_product(dy, v.mT) - mean[..., None]) * np.float32(scale)
    if seen is not None:
        ds = jnp.where(seen[:, None], ds, np.float32(0.0))
    ds = ds.astype(q.dtype)
    return _product(ds, k), _product(ds.mT, q), _product(weights.astype(v.dtype).mT, dy)


def _scores(q: jax.Array, k: jax.Array, seen: Seen, scale: float) -> jax.Array:
    s = _product(q, k.mT) * np.float32(scale)
    return s if seen is None else jnp.where(seen[:, None], s, UNSEEN)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _by_head(*arrays: jax.Array) -> list[jax.Array]:
    """[heads, n, tokens, d] of [n, tokens, heads, d]."""
    return [a.transpose(2, 0, 1, 3) for a in arrays]


def _ways(axes: tuple[str, ...]) -> int:
    return jax.lax.axis_size(axes)


def _passed(axes: tuple[str, ...], tree: Any) -> Any:
    """From the device before this one."""
    ways = _ways(axes)
    return jax.lax.ppermute(tree, axes, [(i, (i + 1) % ways) for i in range(ways)])
