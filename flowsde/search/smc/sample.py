"""What SMC is for in science: not one answer, but a weighted sample, and the evidence."""

from typing import Any, NamedTuple

import jax
import numpy as np

from flowsde.search.protocol import Particle, Search
from flowsde.search.smc.policy import SMC, SMCState
from flowsde.search.smc.weights import effective_sample_size
from flowsde.search.wrapper import Wrapper


class WeightedSample(NamedTuple):
    """Particles and their weights; of several prompts with a leading axis of them.

    For any f, sum_i w_i f(x0_i) estimates the mean of f under p(x0) exp(r(x0) / beta) / Z, with p
    the law of the kernel's samples; its error falls with the number of particles, and of `psi` also
    as its chains come closer to the law that they walk towards.

    Attributes:
      particles: N, at the last time that was reached; rows that a funnel left behind, or a budget
        did not pay for, have no weight.
      log_weights: float32 [N], normalised: their exponentials sum to 1; -inf for no weight.
      log_z: float32, of Z = E[exp(r / beta)]; exp(log_z) is unbiased. None of `psi`: its particles
        begin with the law of noise weighed by exp(r_1 / beta), whose own constant chains do not
        tell.
      ess: float32, effective sample size of the weights.
    """

    particles: Particle
    log_weights: jax.Array
    log_z: jax.Array | None
    ess: jax.Array


def weighted_sample(search: Search, state: Any) -> WeightedSample:
    """The weighted sample that a run of `smc` or `psi` ends with.

    Rewards are those of posterior means at the last time of the search's grid, before any
    finishing. A run that met a target ended earlier: then it is the sample of that time, as its
    particles' `t` says.

    Args:
      search: of `smc` or `psi`, also inside `flowsde.search.keep`.
      state: `Result.state` of its run, of one prompt or of several.

    Raises:
      TypeError: the search is another one, or the state is not one of its runs.
      ValueError: there is no state, as from `flowsde.batch`, or the chains of `psi` still walk.
    """
    if state is None:
        raise ValueError("state is None: flowsde.batch keeps none, flowsde.run and iterate do")
    while isinstance(search, Wrapper):
        search, state = search.inner, getattr(state, "inner", state)
    weighing, from_noise = getattr(search, "smc", search), isinstance(search, SMC)
    if not isinstance(weighing, SMC):
        raise TypeError(f"search must be of smc or psi, which weigh particles, got {search!r}")
    if not from_noise:
        state = getattr(state, "smc", state)
    if not isinstance(state, SMCState):
        raise TypeError(f"state must be Result.state of a run of the search, got {state!r}")
    if not from_noise and not np.all(state.step > 0):
        raise ValueError("state is of a run whose chains still walk: no particle is weighed yet")
    one = _sample if state.step.ndim == 0 else jax.vmap(_sample, (None, 0))
    found = one(weighing, state)
    return found if from_noise else found._replace(log_z=None)


def _sample(search: SMC, state: SMCState) -> WeightedSample:
    total = jax.nn.logsumexp(state.log_weights)
    return WeightedSample(
        state.particles,
        state.log_weights - total,
        search.log_z(state),
        effective_sample_size(state.log_weights),
    )
