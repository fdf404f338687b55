"""Evaluations on the way of a candidate to its time, by a kernel with inner steps.

A candidate asked for as `flowsde.search.protocol.Moving` is moved on before it is evaluated, in
chunks of its own. Where it has arrived waits in `Evaluation.x`, and is what its search is told.
"""

from typing import Any

import jax
import jax.numpy as jnp

from flowsde.kernels import Kernel
from flowsde.search.protocol import Candidates, Evaluation, Moving


def like(x: jax.Array, t: jax.Array, kernel: Kernel | None) -> Any:
    """x of candidates, of zeros, say, as a search with this kernel asks for it."""
    return x if kernel is None else Moving(x, x, t)


def moving(asked: Any) -> jax.Array:
    """Which candidates, or rows, are not at their time yet, bool shaped as it."""
    if not isinstance(asked.x, Moving):
        return jnp.zeros(asked.t.shape, jnp.bool)
    return asked.valid & (asked.x.start > asked.t)


def arrive(means: Any, kernel: Kernel, x: Moving, t: jax.Array, cond: Any) -> jax.Array:
    """x of n rows at their times.

    Args:
      means: ``(x, t, cond, interpolant=…) -> (x0, x1)``.
      kernel: by which they move.
      x: as they were asked for.
      t: their times.
      cond: of each.
    """

    def own(x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        return means(x, t, cond, interpolant=kernel.interpolant)

    return kernel.arrive(own, x.origin, x.drawn, x.start, t)


def arrived(asked: Candidates, evals: Evaluation) -> tuple[Candidates, Evaluation]:
    """What a search is told: candidates where they have arrived."""
    if evals.x is None:
        return asked, evals
    return asked._replace(x=evals.x), evals._replace(x=None)
