"""`halving`, and where its drafts are in the grid."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from flowsde._checks import check_count
from flowsde.grids import as_grid
from flowsde.kernels import Kernel, Multistep
from flowsde.search.branching import as_steps, steps_between
from flowsde.search.drafts import as_draft_cost
from flowsde.search.grid import UnusableKernel
from flowsde.search.halving.policy import SuccessiveHalving
from flowsde.search.solver import kernel_and_solver

_DRAFT_STEPS = 4


def halving(
    *,
    nfe: int,
    kernel: Kernel | Multistep,
    grid: Any,
    factor: int = 4,
    draft_steps: int | Sequence[float] | None = None,
    resume_at: float = 1.0,
    rungs: int | Sequence[float] | None = None,
    draft_cost: Fraction | float | None = None,
) -> SuccessiveHalving:
    """Best-of-N with drafts, by successive halving.

    Args:
      nfe: budget in model evaluations. It sets the number of drafts; what is left, less than one
        more draft with its continuation takes, is for more trajectories in the last leg.
      kernel: usually `kernels.ode_euler`; guided and stochastic ones work too, and multistep
        solvers, as `kernels.ode_adams`.
      grid: times falling from 1 to 0. Trajectories that are not stopped are evaluated at all but
        the last.
      factor: one of so many goes on at a rung, rounded up; 1 keeps all.
      draft_steps: evaluations of a draft, at times of the grid from its first to its last; in
        Python also a tuple of positions in the grid or of times, beside the first. By default 4,
        but at most half of the grid's; and none with `rungs`, so that trajectories go down the grid
        from the start, but for drafts of another flow.
      resume_at: time from which the best drafts are resumed, the nearest one of a draft's. Steps
        that a draft made as the grid does are not made again.
      rungs: steps behind it, so many spread evenly, at which trajectories compete on their way to
        the last time; in Python also a tuple of positions in the grid or of times. By default none.
      draft_cost: of drafts by another, cheaper flow, the ``draft`` of `flowsde.run`: what a
        candidate costs there as a share of what it costs in the flow, above 0 and at most 1, each
        with its guidance. The nearest fraction with a denominator of at most 1000. Drafts are
        charged so much, together rounded up to a whole evaluation of the flow. Those that go on
        are evaluated anew by the flow at `resume_at`, its first step from there, with all of the
        grid's times below; no draft is an answer. With kernels that ask for nothing but means.

    Raises:
      ValueError, TypeError: naming the argument.

    Example:
      >>> flow = fs.analytic.gaussian([0.0, 0.0], 1.0).flow()
      >>> reward = lambda images, cond: images[:, 0]  # of a sample: 0, give or take 1
      >>> budget = {"nfe": 40, "kernel": fs.kernels.ode_euler(flow.interpolant)}
      >>> search = fs.search.halving(grid=fs.grids.uniform(8), draft_steps=2, **budget)
      >>> result = fs.run(jax.random.key(1), flow, search, reward)
      >>> bool(result.reward > 0), bool(result.nfe <= 40)
      (True, True)
    """
    times, cost = as_grid("grid", grid), None if draft_cost is None else as_draft_cost(draft_cost)
    if draft_steps is None:
        few = min(_DRAFT_STEPS, max((len(times) - 1) // 2, 1))
        draft_steps = few if rungs is None or cost is not None else 0
    stops_at = 0 if rungs is None else rungs
    draft, resumed, stops = _plan(times, draft_steps, resume_at, stops_at, own=cost is None)
    moves, solver = kernel_and_solver(kernel)
    if cost is not None and (moves.uses_gradient or moves.inner_evaluations):
        raise UnusableKernel(
            f"kernel {type(moves).__name__} takes more of the model than means, which drafts of "
            f"another flow are not asked for: expected one that does not (ode_euler, ddim), or no "
            f"draft_cost"
        )
    return SuccessiveHalving(
        nfe=check_count("nfe", nfe),
        kernel=moves,
        solver=solver,
        grid=times,
        factor=check_count("factor", factor),
        draft=draft,
        resumed=resumed,
        rungs=stops,
        draft_cost=cost,
    )


def _plan(
    grid: Sequence[float], draft_steps: Any, resume_at: float, rungs: Any, own: bool
) -> tuple[tuple[int, ...], int, tuple[int, ...]]:
    """Positions of drafts, that at which they are resumed, and those of rungs behind it.

    Args:
      grid, draft_steps, resume_at, rungs: as for `flowsde.search.halving`.
      own: whether drafts are of the flow itself, whose steps need not be made again.
    """
    last, counts = len(grid) - 2, np.ndim(draft_steps) == 0
    if not 0.0 <= resume_at <= 1.0:
        raise ValueError(f"resume_at must be a time between 0 and 1, got {resume_at}")
    least = 0 if own else 1
    if counts and check_count("draft_steps", draft_steps, least, most=last + 1) == 0:
        first, *others = *steps_between("rungs", rungs, grid, 0), last
        return tuple(range(first + 1)), first, tuple(others[:-1])
    behind = draft_steps - 1 if counts else draft_steps
    draft = (0,) if counts and behind == 0 else (0, *(as_steps(behind, grid, "draft_steps") or ()))
    # Of drafts that reach the last time nothing is left to do there.
    before = [i for i in draft if i < last] or [last]
    resumed = min(before, key=lambda i: abs(grid[i] - resume_at))
    while own and resumed + 1 in draft:
        resumed += 1
    return draft, resumed, steps_between("rungs", rungs, grid, resumed)
