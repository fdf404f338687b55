"""Epsilon-greedy search over the noise of every step (Ramesh and Mardani, 2025, arXiv 2506.03164).

A step's draws come in rounds: near the best so far, or fresh with a probability that is larger at
the first and the last steps than between them. The best of the step goes on. As in CoDe the start
is one draw, because posterior means hardly differ there; those of a model of few steps are pictures
from the start on, and `branch_at` lets the start compete too.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from flowsde._checks import check_count
from flowsde.grids import as_grid
from flowsde.kernels import Kernel
from flowsde.search.branching import as_steps
from flowsde.search.complete import Finish, finished
from flowsde.search.noise import NoiseSearch
from flowsde.search.protocol import Search
from flowsde.search.value import Value, as_value


def epsilon_greedy(
    *,
    nfe: int,
    kernel: Kernel,
    grid: Any,
    neighbours: int = 4,
    perturbation: float = 0.5,
    epsilon: float = 0.5,
    epsilon_middle: float = 0.1,
    branch_at: int | Sequence[float] | None = None,
    value: Value = "mean",
    value_steps: int = 4,
    value_samples: int = 4,
    finish: Finish = "complete",
    finish_steps: int | None = None,
) -> Search:
    """Epsilon-greedy search over the noise of every step.

    Args:
      nfe: budget in model evaluations, finishing included; a hard cap. It sets the draws of a step.
      kernel: a stochastic one.
      grid: times falling from 1 to 0. Particles are evaluated at all but the last.
      neighbours: draws of a round. Those of a step's first are fresh, those of the others near the
        best so far, or fresh with probability epsilon.
      perturbation: share lambda of the noise's standard deviation that a neighbour redraws, above 0
        and up to 1, which is SVDD of one chain.
      epsilon: probability that a draw is fresh, at the first and the last step.
      epsilon_middle: the same half way between them; linear in the step elsewhere.
      branch_at: steps that have more than one draw: so many spread evenly, or in Python a tuple of
        positions in the grid or of times. By default all but the start; as many as the grid has are
        all, the start too, which is for models of few steps.
      value: of a draw before the last time: the reward of its posterior mean, of the end of an
        ODE from there ("ode"), or the mean reward of samples from there ("samples").
      value_steps: evaluations of an ODE or of a sample, part of `nfe`.
      value_samples: samples of a draw.
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
      >>> search = fs.search.epsilon_greedy(grid=fs.grids.uniform(8), neighbours=2, **budget)
      >>> result = fs.run(jax.random.key(1), flow, search, reward)
      >>> bool(result.reward > 0), bool(result.nfe <= 40)
      (True, True)
    """
    for name, share in (("epsilon", epsilon), ("epsilon_middle", epsilon_middle)):
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"{name} must be a probability from 0 to 1, got {share}")
    times = as_grid("grid", grid)
    last = len(times) - 2
    # A grid of one step is a choice among draws of noise.
    branches = as_steps(branch_at, times, start=True) or tuple(range(min(1, last), last + 1))
    away = np.abs(np.linspace(-1.0, 1.0, last) if last > 1 else np.ones(last))
    epsilons = epsilon_middle + (epsilon - epsilon_middle) * away
    return finished(
        NoiseSearch,
        nfe,
        finish,
        finish_steps,
        kernel=kernel,
        grid=times,
        value=as_value(value, value_steps, value_samples, times),
        neighbours=check_count("neighbours", neighbours),
        perturbation=perturbation,
        epsilons=(epsilon, *map(float, epsilons)),
        starts=tuple(range(last + 1)),
        branch_at=branches,
    )
