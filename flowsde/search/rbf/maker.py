"""`rbf`."""

from collections.abc import Sequence
from typing import Any, Literal

from flowsde._checks import check_count
from flowsde.grids import as_grid
from flowsde.kernels import Kernel
from flowsde.search.branching import as_steps
from flowsde.search.complete import Finish, finished
from flowsde.search.protocol import Search
from flowsde.search.rbf.acceptance import IMPROVE, Accept, as_acceptance
from flowsde.search.rbf.policy import RBF, refuse_reserving
from flowsde.search.value import Value, as_value


def rbf(
    *,
    nfe: int,
    kernel: Kernel,
    grid: Any,
    chains: int = 2,
    seeds: int = 1,
    width: int = 1,
    last: Literal["exhaust", "improve"] = "exhaust",
    allocation: Literal["even", "reserve"] = "even",
    accept: Accept = "improve",
    quantile: float | None = None,
    bar: float | Sequence[float] | None = None,
    branch_at: int | Sequence[float] | None = None,
    value: Value = "mean",
    value_steps: int = 4,
    value_samples: int = 4,
    finish: Finish = "complete",
    finish_steps: int | None = None,
) -> Search:
    """Rollover Budget Forcing.

    Args:
      nfe: budget in model evaluations, finishing included; a hard cap.
      kernel: a stochastic one.
      grid: times falling from 1 to 0. Particles are evaluated at all but the last.
      chains: independent chains, which share the budget; the best of all is returned.
      seeds: draws of noise of which a chain starts from the best (the public code uses 25).
      width: children of a chain evaluated at once; changes speed and `evaluations` only.
      last: what the last step does with the rest of the budget: "exhaust" draws on and keeps the
        best, "improve" stops at the first improvement, as Algorithm 2 is printed.
      allocation: of a chain's draws, after its seeds, to the steps: "even" gives all the same,
        and spends the whole budget; "reserve" is the public code's: a share for each of
        len(grid) - 1 steps, rounded down, of which the last step has what the others leave. It
        ends before the round in which the budget would be reached: up to `chains` are not spent.
      accept: when a step ends before its quota: "improve" at the first child above r*, "calibrated"
        above r* and the natural gain of the step, as its siblings have it, "quantile" above a
        quantile of its siblings' distribution, "threshold" above `bar`, without quotas. See
        `flowsde.search.rbf.acceptance`.
      quantile: of "quantile", within 0 and 1; by default 1 - 1 / Q with the quota Q.
      bar: of "threshold", a reward, in Python also one for each evaluated time but the first.
      branch_at: steps that have quotas; the others have one child. So many spread evenly, or in
        Python a tuple of positions in the grid or of times. By default all. The last of them
        takes the place of the last step in `last`.
      value: of a particle before the last time: the reward of its posterior mean, of the end of an
        ODE from there ("ode"), or the mean reward of samples from there ("samples").
      value_steps: evaluations of an ODE or of a sample, part of `nfe`.
      value_samples: samples of a particle.
      finish: "complete" follows the ODE from the best particle towards t = 0 by Euler steps, "heun"
        by Heun's, "adams" by `ode_adams`'s, scores the final image, and returns the better of the
        two by reward; "mean" returns the posterior mean of the best particle.
      finish_steps: evaluations of finishing, part of `nfe`; a Heun step takes two. By default half
        as many as the grid has steps, and none where its last time is small already.

    Raises:
      ValueError, TypeError: naming the argument.

    Example:
      >>> flow = fs.analytic.gaussian([0.0, 0.0], 1.0).flow()
      >>> reward = lambda images, cond: images[:, 0]  # of a sample: 0, give or take 1
      >>> budget = {"nfe": 40, "kernel": fs.kernels.ddim(flow.interpolant)}
      >>> search = fs.search.rbf(grid=fs.grids.uniform(8), chains=2, **budget)
      >>> result = fs.run(jax.random.key(1), flow, search, reward)
      >>> bool(result.reward > 0), bool(result.nfe <= 40)
      (True, True)
    """
    if last not in ("exhaust", "improve"):
        raise ValueError(f"last must be 'exhaust' or 'improve', got {last!r}")
    if allocation not in ("even", "reserve"):
        raise ValueError(f"allocation must be 'even' or 'reserve', got {allocation!r}")
    times = as_grid("grid", grid)
    rule = as_acceptance(accept, quantile, bar, len(times) - 2)
    ahead, steps = as_value(value, value_steps, value_samples, times), as_steps(branch_at, times)
    if allocation == "reserve":
        refuse_reserving("accept", accept, "improve")
        refuse_reserving("branch_at", branch_at, None)
        refuse_reserving("value", value, "mean")
    if ahead is not None and last == "improve" and (steps is None or steps[-1] == len(times) - 2):
        raise ValueError(
            f"last must be 'exhaust' with value {value!r}, got 'improve': particles of the last "
            f"time are scored by their posterior means, which no look-ahead compares with"
        )
    return finished(
        RBF,
        nfe,
        finish,
        finish_steps,
        kernel=kernel,
        grid=times,
        value=ahead,
        branch_at=steps,
        accept=None if rule == IMPROVE else rule,
        chains=check_count("chains", chains),
        seeds=check_count("seeds", seeds),
        width=check_count("width", width),
        last=last,
        allocation=allocation,
    )
