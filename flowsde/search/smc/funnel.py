"""A funnel: fewer particles at later steps, of the same budget.

Many particles early explore, few late suffice (F-SMC, arXiv 2508.12361).
Of N particles at the first step a share that falls geometrically goes on; it can fall where
particles are resampled alone. Shares are in thousandths, so that counts of a static and of a traced
budget are the same whole numbers.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

WHOLE = 1000


def thousandths(share: float, resamples: np.ndarray) -> np.ndarray:
    """Of the first step's particles those at each step, int32 [steps], falling.

    Args:
      share: at the last step, in (0, 1].
      resamples: bool [steps], where particles are resampled after they are evaluated.
    """
    last = max(len(resamples) - 1, 1)
    wanted = np.ceil(WHOLE * share ** (np.arange(len(resamples)) / last))
    falls = np.append(True, resamples[:-1])
    # Elsewhere as many as at the step that the last resampling led to.
    since = np.maximum.accumulate(np.where(falls, np.arange(len(resamples)), 0))
    return wanted[since].astype(np.int32)


def particles(first: Any, parts: Any) -> Any:
    """Particles at each step [..., steps] of so many at the first [...]; rounded up."""
    whole, rest = first // WHOLE, first % WHOLE
    return whole * parts + (rest * parts + WHOLE - 1) // WHOLE


def most(nfe: int, parts: np.ndarray, costs: np.ndarray) -> int:
    """Particles at the first step that a budget pays for.

    Args:
      nfe: the budget.
      parts: of `thousandths`.
      costs: evaluations of a particle at each step, int32 [steps].
    """
    low, high = 0, nfe + 1
    parts, costs = parts.astype(np.int64), costs.astype(np.int64)
    while high - low > 1:
        middle = (low + high) // 2
        pays = int(np.sum(particles(middle, parts) * costs)) <= nfe
        low, high = (middle, high) if pays else (low, middle)
    return low


def most_of(nfe: jax.Array, parts: np.ndarray, costs: np.ndarray, at_most: int) -> jax.Array:
    """`most` of a traced budget, int32, that is known to be no more than `at_most`."""

    def halve(_: jax.Array, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        # No more than `at_most`, of which the cost is known to fit.
        middle = (low + high) // 2
        pays = jnp.sum(particles(middle, parts) * costs, dtype=jnp.int32) <= nfe
        return jnp.where(pays, middle, low), jnp.where(pays, high, middle)

    ends = (jnp.zeros((), jnp.int32), jnp.asarray(at_most + 1, jnp.int32))
    return jax.lax.fori_loop(0, at_most.bit_length() + 1, halve, ends)[0]
