"""Few prompts left: waves grow to fill the batch.

What a search with waves finds, and what it is charged, does not depend on their width
(`Search.with_width`), so a slot may change it between two rounds. While there are prompts enough
the width is 1, which computes no surplus; then it is the largest power of two with which all
candidates fit into one batch.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from flowsde.runner.mesh import ALONE, Placement, on_every_device
from flowsde.runner.packed.pool import Pool
from flowsde.search.protocol import Search


def waves(search: Search) -> int | None:
    """Waves of a round; None of a search without, whose width is its own."""
    narrow = search.with_width(1)
    return None if search.with_width(2) == narrow else narrow.n_candidates


def searching(search: Search, state: Any) -> jax.Array:
    """Whether a prompt may yet draw waves: it is neither done nor finishing."""
    return ~search.done(state) & ~search.finishing(state) & (waves(search) is not None)


def width_for(search: Search, searching: int, others: int, size: int) -> int:
    """The largest power of two with which all candidates fit into a batch; at least 1.

    Args:
      search: of any method.
      searching: prompts that draw waves.
      others: prompts of one candidate.
      size: of a batch.
    """
    rows = waves(search)
    width = 1
    while rows is not None and searching and searching * rows * 2 * width + others <= size:
        width *= 2
    return width


@partial(jax.jit, static_argnames=("slots", "waves", "before", "after", "placement"))
@on_every_device
def widen(
    pool: Pool,
    places: list[jax.Array],
    *,
    slots: int,
    waves: int,
    before: int,
    after: int,
    placement: Placement = ALONE,
) -> tuple[Pool, list[jax.Array]]:
    """A pool of fewer slots with more columns.

    Args:
      pool: with at most `slots` prompts under way.
      places: of batches that are under way.
      slots: to keep.
      waves, before, after: columns are so many waves of this width, before and after.

    Returns:
      Both, moved: candidate k of a wave stays that.
    """
    total = pool.prompt.size
    kept = jnp.argsort(pool.prompt < 0, stable=True)[:slots].astype(jnp.int32)
    new_slot = jnp.full(total + 1, slots, jnp.int32)
    new_slot = new_slot.at[kept].set(jnp.arange(slots, dtype=jnp.int32))

    def columns(a: jax.Array) -> jax.Array:
        grouped = a[kept].reshape(slots, waves, before, *a.shape[2:])
        more = [(0, 0), (0, 0), (0, after - before)] + [(0, 0)] * (a.ndim - 2)
        return jnp.pad(grouped, more).reshape(slots, waves * after, *a.shape[2:])

    def move(place: jax.Array) -> jax.Array:
        slot, column = jnp.divmod(place, waves * before)
        wave, number = jnp.divmod(column, before)
        # No place stays none.
        slot = new_slot[jnp.minimum(slot, total)]
        moved = (slot * waves + wave) * after + number
        return jnp.where(slot < slots, moved, slots * waves * after)

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
        rounds=rows(pool.rounds),
        taken=pool.taken,
    )
    return wide, [move(place) for place in places]
