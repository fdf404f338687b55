"""Rows in chunks of two sizes, so that little is computed for nobody.

A round has as many rows as its search likes, and compiled code a fixed number of them. What whole
chunks leave is computed one by one, by a second copy of the model in the same program. That takes
its time to compile, as would each further size. So there are no more, and what is left fills up a
chunk after all where the model or the whole round is small, where much is left, or where at most
one row is computed for nobody to every `SPARE` of the round.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowsde.flow import Flow
from flowsde.runner.mesh import EVERYWHERE, Placement

LARGE, TINY = 10_000_000, 1_000_000
"""Parameters of a model that is worth compiling twice for any search, and of one that is for none.
Between them, as the embedded models are, for rounds of more than `FEW` rows: compiling again takes
half a second, and finishing one particle would otherwise compute it as many times as that."""
SPARE = 12
"""Of so many rows of a round, one more may be computed for nobody."""
FEW, _FEW_ON_CPU = 4, 32


def few(size: int) -> int:
    """How many rows of a round are computed one by one, at most, beside chunks of a size.

    On a CPU a row alone takes about twice its share of a chunk. Elsewhere a chunk of a small model
    takes hardly longer than a row; of a large one, chunks are small, and so is what they leave.
    """
    return max(_FEW_ON_CPU, size // 2) if jax.default_backend() == "cpu" else FEW


def least_of(flow: Flow, size: int, rows: int, least: int = 1) -> int:
    """The rows to which what is left is filled up: `least`, or a whole chunk.

    Args:
      flow: by whose model.
      size: of a chunk.
      rows: of a round, at most.
      least: where the model is compiled twice.
    """
    parameters = sum(leaf.size for leaf in jax.tree.leaves(flow) if hasattr(leaf, "size"))
    twice = parameters >= (LARGE if rows <= FEW else TINY)
    return min(size, least) if twice else size


def even_size(rows: int, size: int, left: int) -> int:
    """The size of as many chunks as a round takes, or less where that is more even.

    Args:
      rows: of the round.
      size: of a chunk, at most.
      left: rows that chunks may leave, for which the model is compiled again.
    """
    return size if rows % size <= left else -(-rows // -(-rows // size))


def sizes_below(size: int, least: int) -> tuple[int, ...]:
    """Sizes of chunks of at most `size` rows, the largest first, down to `least`."""
    return (size, least) if size > least else (size,)


def chunks_of(n: Any, sizes: tuple[int, ...], xp: Any = jnp) -> list[Any]:
    """How many chunks of each size n rows take, int32; `xp` is the module that n is an array of."""
    counts, left = [], n
    for size in sizes:
        whole, rest = left // size, left % size
        filled = rest > 0
        if size > sizes[-1]:
            filled &= (SPARE * (size - rest) <= n) | (rest > few(size) * sizes[-1])
        counts.append(xp.where(filled, whole + 1, whole))
        left = xp.where(filled, 0, rest)
    return counts


def rows_of(n: int, sizes: tuple[int, ...]) -> int:
    """How many rows are computed for n."""
    chunks = chunks_of(np.int32(n), sizes, np)
    return sum(size * int(count) for size, count in zip(sizes, chunks, strict=True))


def in_chunks(
    f: Callable[[jax.Array | None], Any],
    wanted: jax.Array,
    last: jax.Array,
    sizes: tuple[int, ...],
    empty: Any,
    placement: Placement,
) -> tuple[Any, jax.Array]:
    """``f(at)`` for the rows of each group that are wanted, in chunks of some sizes.

    Groups take the same chunks: those of the one with the most rows.

    Args:
      f: of the places of some rows in their group; None for all of them as they are.
      wanted: bool [m].
      last: int32 [m], the greater the later; rows that are not wanted come last.
      sizes: rows of a group at once, the largest first.
      empty: what rows that are not computed are given.
      placement: of the groups.

    Returns:
      `empty`, with f's values in the rows computed; and how often each was, int32 [m].
    """
    rows = wanted.size // placement.groups

    def plan(wanted: jax.Array, last: jax.Array) -> tuple[jax.Array, jax.Array]:
        order = jnp.argsort(last, stable=True).astype(jnp.int32)
        return order, jnp.sum(wanted, dtype=jnp.int32)[None]

    def put(buffers: Any, computed: jax.Array, at: jax.Array, new: Any) -> tuple[Any, jax.Array]:
        buffers = jax.tree.map(lambda buffer, rows: buffer.at[at].set(rows), buffers, new)
        return buffers, computed.at[at].add(1)

    order, counts = placement.rowwise(plan)(wanted, last)

    def loop(size: int, first: Any, count: jax.Array, done: tuple[Any, jax.Array]) -> Any:
        def places(order: jax.Array, start: jax.Array) -> jax.Array:
            return order[jnp.minimum(start + jnp.arange(size, dtype=jnp.int32), order.size - 1)]

        next_places = placement.local(places, (placement.by_row, EVERYWHERE), placement.by_row)

        def body(i: jax.Array, done: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
            at = next_places(order, first + i * size)
            return placement.rowwise(put)(*done, at, f(at))

        return jax.lax.fori_loop(jnp.zeros((), jnp.int32), count, body, done)

    def whole(done: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        return f(None), jnp.ones(wanted.shape, jnp.int32)

    done, first = (empty, jnp.zeros(wanted.shape, jnp.int32)), jnp.zeros((), jnp.int32)
    for size, count in zip(sizes, chunks_of(jnp.max(counts), sizes), strict=True):
        if size == rows:
            # All of them, in the order that they are in.
            done = jax.lax.cond(count > 0, whole, lambda done: done, done)
        else:
            done = loop(size, first, count, done)
        first = first + size * count
    return done
