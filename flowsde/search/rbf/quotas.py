"""How the budget of a chain of RBF is divided among its steps."""

import jax
import jax.numpy as jnp
import numpy as np

from flowsde.search.grid import affordable


def even_quotas(
    totals: jax.Array, seeds: np.ndarray, costs: np.ndarray, branches: np.ndarray, *, even: bool
) -> jax.Array:
    """Evaluations of each chain at each time, int32 [C, steps], summing to its budget.

    Args:
      totals: budgets of the chains, int32 [C].
      seeds: evaluations of the draws of noise, int32 [1].
      costs: of a draw at each step behind them, int32 [steps - 1].
      branches: bool [steps - 1], the steps that have quotas; the others have one draw.
      even: whether these have as many draws each, and the last of them what is left over; else
        the first has all but one draw of each other.
    """
    spent = np.append(seeds, np.where(branches, 0, costs))
    left, own = totals - int(spent.sum()), costs[branches]
    if even:
        shares = affordable(left, own) * own[None]
    else:
        shares = jnp.broadcast_to(jnp.asarray(own)[None], (totals.size, own.size))
    place = -1 if even else 0
    shares = shares.at[:, place].add(left - jnp.sum(shares, 1, dtype=jnp.int32))
    every = jnp.broadcast_to(jnp.asarray(spent, jnp.int32)[None], (totals.size, spent.size))
    return every.at[:, 1 + np.flatnonzero(branches)].set(shares)


def reserving_quotas(nfe: jax.Array, chains: int, seeds: int, steps: int) -> jax.Array:
    """As the public code: it stops when another draw of every chain would reach nfe."""
    children = nfe - seeds * chains
    each, total = children // (steps * chains), (children - 1) // chains
    moves = jnp.full(steps - 2, each)
    last = total - each * (steps - 2)
    quotas = jnp.concatenate([jnp.asarray([seeds], jnp.int32), moves, last[None]])
    return jnp.broadcast_to(quotas, (chains, steps))
