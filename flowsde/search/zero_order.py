"""Zero-order search over the noise that samples begin with (Ma et al., 2025, arXiv 2501.09732).

Rounds of samples, of which those of the first are fresh, and those of the others begin near the
noise of the best so far. Rewards are asked of finished samples alone.
"""

from typing import Any

from flowsde._checks import check_count
from flowsde.grids import as_grid
from flowsde.kernels import Kernel, Multistep
from flowsde.search.noise import NoiseSearch
from flowsde.search.solver import kernel_and_solver


def zero_order(
    *,
    nfe: int,
    kernel: Kernel | Multistep,
    grid: Any,
    neighbours: int = 4,
    perturbation: float = 0.5,
) -> NoiseSearch:
    """Zero-order search over the noise that a sample begins with.

    Args:
      nfe: budget in model evaluations; what is left after whole samples is not used.
      kernel: usually `kernels.ode_euler`; guided and stochastic ones work too, and multistep
        solvers, as `kernels.ode_adams`.
      grid: times falling from 1 to 0, few; a sample takes len(grid) - 1 evaluations, and those of
        the kernel's inner steps.
      neighbours: samples of a round. Those of the first are fresh, those of the others near the
        best so far.
      perturbation: share lambda of the noise's standard deviation that a neighbour redraws, above 0
        and up to 1, which is Best-of-N.

    Raises:
      ValueError, TypeError: naming the argument.

    Example:
      >>> flow = fs.analytic.gaussian([0.0, 0.0], 1.0).flow()
      >>> reward = lambda images, cond: images[:, 0]  # of a sample: 0, give or take 1
      >>> budget = {"nfe": 40, "kernel": fs.kernels.ode_euler(flow.interpolant)}
      >>> search = fs.search.zero_order(grid=fs.grids.uniform(8), neighbours=2, **budget)
      >>> result = fs.run(jax.random.key(1), flow, search, reward)
      >>> bool(result.reward > 0), bool(result.nfe <= 40)
      (True, True)
    """
    times = as_grid("grid", grid)
    moves, solver = kernel_and_solver(kernel)
    return NoiseSearch(
        nfe=check_count("nfe", nfe),
        kernel=moves,
        solver=solver,
        grid=times,
        neighbours=check_count("neighbours", neighbours),
        perturbation=perturbation,
        epsilons=(0.0,) * (len(times) - 1),
        starts=(0,),
        branch_at=(0,),
    )
