"""SVDD: at every step draw K children, keep one by its reward (Li et al., 2024, arXiv 2408.08252).

The value of a child is the reward of its posterior mean, or what `flowsde.search.value` says. This
is CoDe with blocks of one step.
"""

from collections.abc import Sequence
from typing import Any

from flowsde.kernels import Kernel
from flowsde.search.code import code
from flowsde.search.complete import Finish
from flowsde.search.protocol import Search
from flowsde.search.value import Value


def svdd(
    *,
    nfe: int,
    kernel: Kernel,
    grid: Any,
    chains: int = 2,
    temperature: float = 0.0,
    branch_at: int | Sequence[float] | None = None,
    value: Value = "mean",
    value_steps: int = 4,
    value_samples: int = 4,
    finish: Finish = "complete",
    finish_steps: int | None = None,
) -> Search:
    """SVDD: K children of each chain at every step, one is kept.

    Args:
      nfe: budget in model evaluations, finishing included; a hard cap. It sets K.
      kernel: a stochastic one.
      grid: times falling from 1 to 0. Particles are evaluated at all but the last.
      chains: independent chains, which share the budget; the best of all is returned.
      temperature: beta >= 0, in units of the reward. A child is drawn with probability
        proportional to exp(reward / beta), as published; 0 takes the best, as in the RBF paper.
      branch_at: steps that have more than one child: so many spread evenly, or in Python a tuple of
        positions in the grid or of times. By default all.
      value: of a child before the last time: the reward of its posterior mean, of the end of an
        ODE from there ("ode"), or the mean reward of samples from there ("samples"), at a
        temperature beta log mean exp(reward / beta).
      value_steps: evaluations of an ODE or of a sample, part of `nfe`.
      value_samples: samples of a child.
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
      >>> search = fs.search.svdd(grid=fs.grids.uniform(8), chains=2, **budget)
      >>> result = fs.run(jax.random.key(1), flow, search, reward)
      >>> bool(result.reward > 0), bool(result.nfe <= 40)
      (True, True)
    """
    return code(
        nfe=nfe,
        kernel=kernel,
        grid=grid,
        chains=chains,
        block=1,
        temperature=temperature,
        branch_at=branch_at,
        value=value,
        value_steps=value_steps,
        value_samples=value_samples,
        finish=finish,
        finish_steps=finish_steps,
    )
