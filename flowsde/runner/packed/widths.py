"""Few prompts left: RBF's waves grow to fill the batch.

Which children RBF accepts, and what it is charged, does not depend on the width of its waves, so a
slot may change it between two rounds. While there are prompts enough the width is 1, which computes
no surplus; then it is the largest power of two with which all candidates fit into one batch.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flowsde.runner.packed.pool import Pool
from flowsde.search.complete import Complete
from flowsde.search.protocol import Search
from flowsde.search.rbf import RBF


def chains(search: Search) -> int | None:
    """Of an RBF search; None of others, whose width is theirs."""
    inner = search.inner if isinstance(search, Complete) else search
    return inner.chains if isinstance(inner, RBF) else None


def with_width(search: Search, width: int) -> Search:
    """An RBF search with another width; others as they are."""
    if isinstance(search, Complete):
        return search.replace(inner=with_width(search.inner, width))
    return search.replace(width=width) if isinstance(search, RBF) else search


def searching(search: Search, state: Any) -> jax.Array:
    """Whether a prompt may yet draw waves: RBF's that is not completing its best particle."""
    if isinstance(search, Complete):
        return searching(search.inner, state.inner)
    return ~search.done(state) & isinstance(search, RBF)


def width_for(search: Search, searching: int, others: int, size: int) -> int:
    """The largest power of two with which all candidates fit into a batch; at least 1.

    Args:
      search: of any method.
      searching: prompts that draw waves.
      others: prompts of one candidate.
      size: of a batch.
    """
    rows = chains(search)
    width = 1
    while rows is not None and searching and searching * rows * 2 * width + others <= size:
        width *= 2
    return width


@partial(jax.jit, static_argnames=("slots", "chains", "before", "after"))
def widen(
    pool: Pool, places: list[jax.Array], slots: int, chains: int, before: int, after: int
) -> tuple[Pool, list[jax.Array]]:
    """A pool of fewer slots with more columns.

    Args:
      pool: with at most `slots` prompts under way.
      places: of batches that are under way.
      slots: to keep.
      chains, before, after: columns are C waves of this width, before and after.

    Returns:
      Both, moved: candidate k of a chain's wave stays that.
    """
    total = pool.prompt.size
    kept = jnp.argsort(pool.prompt < 0, stable=True)[:slots].astype(jnp.int32)
    new_slot = jnp.full(total + 1, slots, jnp.int32)
    new_slot = new_slot.at[kept].set(jnp.arange(slots, dtype=jnp.int32))

    def columns(a: jax.Array) -> jax.Array:
        waves = a[kept].reshape(slots, chains, before, *a.shape[2:])
        more = [(0, 0), (0, 0), (0, after - before)] + [(0, 0)] * (a.ndim - 2)
        return jnp.pad(waves, more).reshape(slots, chains * after, *a.shape[2:])

    def move(place: jax.Array) -> jax.Array:
        slot, column = jnp.divmod(place, chains * before)
        chain, number = jnp.divmod(column, before)
        # No place stays none.
        slot = new_slot[jnp.minimum(slot, total)]
        moved = (slot * chains + chain) * after + number
        return jnp.where(slot < slots, moved, slots * chains * after)

    def rows(tree: Any) -> Any:
        return jax.tree.map(lambda a: a[kept], tree)

    wide = Pool(
        carry=rows(pool.carry),
        prompt=rows(pool.prompt),
        asked=jax.tree.map(columns, pool.asked),
        evals=jax.tree.map(columns, pool.evals),
        backward=columns(pool.backward),
        waiting=columns(pool.waiting),
        due=columns(pool.due),
        taken=pool.taken,
    )
    return wide, [move(place) for place in places]
