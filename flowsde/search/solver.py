"""Searches whose particles go down the grid step by step, by a kernel or by a multistep solver.

A multistep solver (`flowsde.kernels.multistep`) takes what the step before left. So it serves
searches that follow trajectories from noise and never move a particle twice: there the steps before
are known. What they left is kept in the state beside the particles, row for row.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from flowsde.kernels import Before, Kernel, Multistep, ddim
from flowsde.search.grid import GridSearch, check_kernel, tree_where
from flowsde.search.protocol import Particle


@dataclasses.dataclass(frozen=True, kw_only=True)
class SolvedSearch(GridSearch):
    """Base of searches that follow trajectories.

    Attributes:
      solver: by which they go on; None for the kernel, which otherwise is that of a first step.
    """

    solver: Multistep | None = None

    def nothing_before(self, n: int, shape: tuple[int, ...]) -> Before | None:
        """What n particles that have made no step remember; None without a solver."""
        if self.solver is None:
            return None
        return jax.vmap(self.solver.start)(jnp.zeros((n, *shape), jnp.float32))

    def solved(
        self, x: Any, parent: Particle, before: Before | None, step: jax.Array
    ) -> tuple[Any, Before | None]:
        """x of a child, and what it remembers.

        Args:
          x: as `extend` or `move` gives it: the start at step 0, and the child without a solver.
          parent: the particle.
          before: what it remembers.
          step: of the grid, the child's.
        """
        if self.solver is None or before is None:
            return x, None
        s = jnp.asarray(self.grid, jnp.float32)[step]
        moved, now = self.solver(before, parent.x, parent.x0, parent.x1, parent.t, s)
        begins = step == 0
        return jnp.where(begins, x, moved), tree_where(begins, self.solver.start(x), now)


def kernel_and_solver(kernel: Any) -> tuple[Kernel, Multistep | None]:
    """What a `SolvedSearch` keeps of its argument: a solver begins by DDIM with eta = 0.

    Raises:
      ValueError, TypeError: it is neither a solver nor a kernel that a search can use.
    """
    if isinstance(kernel, Multistep):
        return ddim(kernel.interpolant, eta=0.0), kernel
    return check_kernel(kernel), None
