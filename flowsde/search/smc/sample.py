"""What SMC is for in science: not one answer, but a weighted sample, and the evidence."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde.search.keep import answers_of
from flowsde.search.protocol import Particle, Search
from flowsde.search.smc.policy import SMC, SMCState
from flowsde.search.smc.restarts import Restarts
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


class Weights(NamedTuple):
    """A weighted sample without its particles; `flowsde.batch` gives it, which keeps no state.

    Attributes:
      t: float32, the last time that was reached.
      reward: float32 [N], of the particles.
      log_weights, log_z, ess: as of `WeightedSample`; of `psi`, while its chains still walk, no
        particle has a weight.
      best: float32, log weight of the answer, together with particles that are equal to it; -inf
        where it is none of them, as where finishing moved it on.
      kept: float32 [k], the same of what `flowsde.search.keep` remembers; None without.

    Example:
      >>> flow = fs.analytic.gaussian([0.0, 0.0], 1.0).flow()
      >>> reward = lambda images, cond: images[:, 0]  # of a sample: 0, give or take 1
      >>> search = fs.search.smc(
      ...     nfe=40, kernel=fs.kernels.ddim(flow.interpolant), grid=fs.grids.uniform(8)
      ... )
      >>> found = dict(fs.batch(jax.random.key(0), flow, search, reward, prompt_ids=[0, 1]))
      >>> type(found[0].weights).__name__
      'Weights'
    """

    t: jax.Array
    reward: jax.Array
    log_weights: jax.Array
    log_z: jax.Array | None
    ess: jax.Array
    best: jax.Array
    kept: jax.Array | None


def weighted_sample(search: Search, state: Any) -> WeightedSample:
    """The weighted sample that a run of `smc` or `psi` ends with.

    Rewards are those of posterior means at the last time of the search's grid, before any
    finishing. A run that met a target, or its deadline, ended earlier: then it is the sample of
    that time, as its particles' `t` says, weighed by all of their reward whatever the potential and
    tempering; at a step without rewards (`branch_at`) as at the last that had some.

    Args:
      search: of `smc` or `psi`, also inside `flowsde.search.keep`.
      state: `Result.state` of its run, of one prompt or of several.

    Raises:
      TypeError: the search is another one, or the state is not one of its runs.
      ValueError: there is no state, as from `flowsde.batch`, or the chains of `psi` still walk.

    Example:
      >>> flow = fs.analytic.gaussian([0.0, 0.0], 1.0).flow()
      >>> reward = lambda images, cond: images[:, 0]  # of a sample: 0, give or take 1
      >>> search = fs.search.smc(
      ...     nfe=40, kernel=fs.kernels.ddim(flow.interpolant), grid=fs.grids.uniform(8)
      ... )
      >>> result = fs.run(jax.random.key(0), flow, search, reward)
      >>> sample = fs.search.weighted_sample(search, result.state)
      >>> print(f"{np.sum(np.exp(sample.log_weights)):.3f}")
      1.000
    """
    if state is None:
        raise ValueError("state is None: flowsde.batch keeps none, flowsde.run and iterate do")
    weighing, from_noise = _weighing(search)
    if weighing is None:
        raise TypeError(
            f"search must be of psi, or of smc without restart_at, which weigh particles, got "
            f"{search!r}"
        )
    state = _own(search, state)
    if not isinstance(state, SMCState):
        raise TypeError(f"state must be Result.state of a run of the search, got {state!r}")
    if not from_noise and not np.all(state.step > 0):
        raise ValueError("state is of a run whose chains still walk: no particle is weighed yet")
    one = _sample if state.step.ndim == 0 else jax.vmap(_sample, (None, 0))
    found = one(weighing, state)
    return found if from_noise else found._replace(log_z=None)


def weights_of(search: Search, state: Any) -> Weights | None:
    """What the weighted sample of one prompt's run says of its answers; None of other searches."""
    weighing, from_noise = _weighing(search)
    if weighing is None:
        return None
    own = _own(search, state)
    found = _sample(weighing, own)
    if not from_noise:
        nothing = jnp.full_like(found.log_weights, -jnp.inf)
        found = found._replace(
            log_weights=jnp.where(own.step > 0, found.log_weights, nothing), log_z=None
        )
    there = found.particles

    def weight(answer: Particle) -> jax.Array:
        axes = tuple(range(1, there.x.ndim))
        same = (there.t == answer.t) & jnp.all(there.x == answer.x[None], axis=axes)
        return jax.nn.logsumexp(jnp.where(same, found.log_weights, -jnp.inf))

    best, kept = answers_of(search, state)
    return Weights(
        t=there.t[0],
        reward=there.reward,
        log_weights=found.log_weights,
        log_z=found.log_z,
        ess=found.ess,
        best=weight(best),
        kept=None if kept is None else jax.vmap(weight)(kept),
    )


def _weighing(search: Search) -> tuple[SMC | None, bool]:
    """The SMC in a search, None if there is none; and whether it starts from noise, unlike psi."""
    while isinstance(search, Wrapper):
        if isinstance(search, Restarts):
            return None, False
        search = search.inner
    weighing = getattr(search, "smc", search)
    return (weighing if isinstance(weighing, SMC) else None), isinstance(search, SMC)


def _own(search: Search, state: Any) -> Any:
    """The state of the SMC in a search."""
    while isinstance(search, Wrapper):
        search, state = search.inner, getattr(state, "inner", state)
    return state if isinstance(search, SMC) else getattr(state, "smc", state)


def _sample(search: SMC, state: SMCState) -> WeightedSample:
    state = search.whole(state)
    total = jax.nn.logsumexp(state.log_weights)
    return WeightedSample(
        state.particles,
        state.log_weights - total,
        search.log_z(state),
        effective_sample_size(state.log_weights),
    )
