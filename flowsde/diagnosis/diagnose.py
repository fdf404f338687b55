"""`flowsde.diagnose`."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from flowsde._checks import check_count
from flowsde._static import check_static
from flowsde.changed import warn_if_changed
from flowsde.conds import Cond
from flowsde.diagnosis.result import Diagnosis
from flowsde.diagnosis.trajectories import Measured, Plan, measure
from flowsde.flow import Flow
from flowsde.grids import as_grid
from flowsde.kernels import Kernel, Renoise, ode_euler
from flowsde.runner.arguments import Job, prepare
from flowsde.search import Search, bon

CHUNK, FAMILIES = 64, 64
"""Rows evaluated at once, and trajectories with siblings, by default."""


def diagnose(
    key: jax.Array,
    flow: Flow,
    reward: Any,
    *,
    kernel: Kernel,
    grid: Any,
    n: int = 256,
    families: int | None = None,
    siblings: int = 2,
    final: Literal["mean", "kernel"] = "mean",
    cond: Cond = None,
    reward_cond: Any = None,
    prompt_ids: Any = None,
    chunk_size: int | None = None,
) -> Diagnosis:
    """When is a reward worth asking? Measured on trajectories of a model, before any search.

    Follows trajectories of each prompt down the grid and judges every posterior mean on the way.
    From some of them siblings branch off at every step, and are followed to their final pictures
    too. Tells how well the reward of x0 ranks particles at each time, how much it rises by itself,
    what a choice among siblings can still change, and what a reward costs beside an evaluation.

    For M times with a value this takes M n + (siblings - 1) families M (M - 1) / 2 evaluations a
    prompt. Trajectory i of prompt id p is that of `flowsde.sample` with ``fold_in(key, p)``,
    whatever the chunk size and the other arguments.

    Args:
      key: a JAX random key; see `flowsde.run`.
      flow: the model.
      reward: as for `flowsde.run`, in JAX or outside.
      kernel: how a particle moves; a deterministic one has no siblings.
      grid: times falling from 1 to 0.
      n: trajectories of each prompt, at least 8.
      families: trajectories of each prompt that have siblings, 2 to n, or 0; 64, or n if those are
        fewer, by default.
      siblings: children of one state, the trajectory's own included; at least 2.
      final: the picture at a trajectory's end: "mean", the posterior mean at the last time above 0,
        or "kernel", the kernel's own step to t = 0.
      cond: of one prompt, without a batch axis; with leading axis P when `prompt_ids` is given.
      reward_cond: what the reward is told instead, as for `flowsde.run`.
      prompt_ids: P integers, as for `flowsde.run`; estimates are averages over prompts, correlated
        and compared within each. None is one prompt, whose id is 0.
      chunk_size: rows evaluated at once; 64, or all if those are fewer, by default.

    Returns:
      A `flowsde.diagnosis.result.Diagnosis`, to print or to look at in a notebook.

    Raises:
      ValueError, TypeError: naming the argument, before any work; or no final picture of a prompt
        has a finite reward.
      RewardError: a reward outside JAX failed.

    Example:
      >>> flow = fs.analytic.gaussian([0.0, 0.0], 1.0).flow()
      >>> reward = lambda images, cond: images[:, 0]  # of a sample: 0, give or take 1
      >>> kernel, grid = fs.kernels.ddim(flow.interpolant), fs.grids.uniform(4)
      >>> found = fs.diagnose(jax.random.key(0), flow, reward, kernel=kernel, grid=grid, n=32)
      >>> print(found)
      t rank correlation gain ± sd rises siblings' spread ...
    """
    plan = plan_of(kernel, grid, n, families, siblings, final)
    warn_if_changed(3, kernel=kernel)
    search, size = stand_in(flow, plan, chunk_size)
    told = {"cond": cond, "reward_cond": reward_cond, "prompt_ids": prompt_ids}
    job = prepare(key, flow, search, reward, chunk_size=size, **told)
    return Diagnosis.of(plan, [measured(job, i, plan) for i in range(job.ids.size)])


def plan_of(kernel: Any, grid: Any, n: Any, families: Any, siblings: Any, final: Any) -> Plan:
    """Checked arguments; ValueError or TypeError naming the one that is wrong."""
    if not isinstance(kernel, Kernel) or isinstance(kernel, Renoise):
        raise TypeError(f"kernel must be a reverse-time flowsde Kernel, got {kernel!r}")
    if kernel.uses_gradient:
        raise TypeError(
            "kernel is guided by a reward; trajectories are diagnosed without, expected the kernel "
            "that it wraps"
        )
    check_static("kernel", kernel)
    if final not in ("mean", "kernel"):
        raise ValueError(f"final must be 'mean' or 'kernel', got {final!r}")
    n = check_count("n", n, least=8)
    families = min(FAMILIES, n) if families is None else families
    families = check_count("families", families, least=0, most=n)
    if families == 1:
        raise ValueError("families must be at least 2, or 0 for none, got 1")
    siblings = check_count("siblings", siblings, least=2)
    return Plan(
        kernel=kernel,
        grid=as_grid("grid", grid, whole=True),
        n=n,
        families=families if kernel.stochastic else 0,
        siblings=siblings,
        final=final,
    )


def stand_in(flow: Any, plan: Plan, chunk_size: Any) -> tuple[Search, int]:
    """A search as wide as a chunk, with which `prepare` checks the arguments; and the chunk."""
    if not isinstance(flow, Flow):
        raise TypeError(f"flow must be a flowsde.Flow, got {type(flow).__name__}")
    size = CHUNK if chunk_size is None else check_count("chunk_size", chunk_size)
    size = min(size, plan.n)
    budget = flow.evaluations * (len(plan.grid) - 1) * size
    kernel = ode_euler(plan.kernel.interpolant)
    return bon(nfe=budget, kernel=kernel, grid=plan.grid, width=size), size


def measured(
    job: Job, i: int, plan: Plan, tell: Callable[[int], None] = lambda nfe: None
) -> Measured:
    """`measure`; ValueError if no final picture has a finite reward."""
    found = measure(job, i, plan, tell)
    if not np.isfinite(found.rewards[:, -1]).any():
        raise ValueError(
            f"reward {job.reward.name!r} was NaN or -inf for every final picture of prompt ids "
            f"{job.ids[i : i + 1].tolist()}"
        )
    return found
