"""Sequential Monte Carlo: N weighted particles, resampled by their rewards.

The kernel proposes, potentials G weigh. With log potentials phi_i accumulated up to time i, a
particle's weight is multiplied by exp(phi_i - phi_{i-1}), and since phi at the last time is
reward / beta whatever happened before, the weighted particles there target

    p(x0) exp(r(x0) / beta) / Z,    p the law of the kernel's samples,

and E[exp(log_z)] = Z (Del Moral, 2004). The potentials are those of Feynman-Kac steering (Singhal
et al., 2025, arXiv 2501.06848); they differ in when particles are weighed:

* difference: phi_i = r_i / beta_i;
* max: phi_i = phi_{i-1} + max_{j <= i} r_j / beta_i;
* sum: phi_i = phi_{i-1} + sum_{j <= i} r_j / beta_i;
* final: phi_i = 0 until the last time, importance sampling without resampling on the way.

With `branch_at`, particles are weighed and resampled at the steps chosen and at the last alone.
beta_i is constant or falls on a schedule to beta. All weights are logarithms. Weights are carried
where resampling is skipped. The answer is the particle of the highest reward at the last time.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._checks import check_count, check_non_negative, check_positive
from flowsde.grids import as_grid
from flowsde.kernels import Kernel
from flowsde.search.branching import as_steps
from flowsde.search.complete import Finish, finished
from flowsde.search.grid import (
    GridSearch,
    UnusableKernel,
    check_stochastic,
    fold_in_ids,
    map_valid,
    to_particles,
    tree_take,
    tree_where,
)
from flowsde.search.protocol import (
    BudgetTooSmall,
    Candidates,
    Evaluation,
    Info,
    Lines,
    Particle,
    Search,
)
from flowsde.search.resampling import SCHEMES
from flowsde.search.value import Value, as_value

POTENTIALS = ("difference", "max", "sum", "final")
_RESAMPLE = np.iinfo(np.int32).max
"""In place of a particle's number, the key of a step's resampling."""
_LARGE = 1e30


class SMCState(NamedTuple):
    """State of `SMC`; particles have a leading axis, of which the first N are in use.

    Attributes:
      key, target, nfe: of the run.
      step: int32, position in the grid of the next candidates; `SMC.steps` when done.
      particles: after resampling.
      log_weights: float32 [N], since the last resampling; -inf behind the first N.
      potential: phi, float32 [N].
      memory: of the rewards so far, their maximum or sum, float32 [N].
      log_z: float32, log of the normalising constant up to the last resampling.
      champion: best particle of the last time that had one.
    """

    key: jax.Array
    target: jax.Array
    nfe: jax.Array
    step: jax.Array
    particles: Particle
    log_weights: jax.Array
    potential: jax.Array
    memory: jax.Array
    log_z: jax.Array
    champion: Particle


def effective_sample_size(log_weights: jax.Array) -> jax.Array:
    """(sum w)^2 / sum w^2 of log weights [N], between 1 and N."""
    w = jax.nn.softmax(log_weights)
    return 1.0 / jnp.sum(jnp.square(w))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SMC(GridSearch):
    """See `smc`; without finishing."""

    charges_moves: ClassVar[bool] = True

    temperatures: tuple[float, ...]
    potential: str
    scheme: str
    threshold: float
    interval: int
    branch_at: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.nfe < self._cost:
            raise BudgetTooSmall(
                f"nfe leaves {self.nfe} evaluations for the search, expected at least one "
                f"particle's: the grid takes {self._cost}",
                self._cost,
            )
        if self.uses_gradient:
            raise UnusableKernel(
                "kernel is guided: the weights of smc are those of samples of the unguided kernel; "
                "expected that, or another method (svdd, code, rbf, bon)"
            )
        if self.n_candidates > 1 and self.potential != "final":
            check_stochastic(self.kernel, "copies of a particle stay the same")

    @cached_property
    def weighed(self) -> np.ndarray:
        """bool [steps], where rewards are wanted."""
        every = self.branch_at is None and self.potential != "final"
        weighed = np.full(self.steps, every)
        weighed[[*(self.branch_at or ()), self.steps - 1]] = True
        return weighed

    @property
    def _cost(self) -> int:
        """Evaluations of a particle."""
        return int(self.costs(self.weighed).sum())

    @property
    def n_candidates(self) -> int:
        """Particles: what is left of nfe after the whole grid for each is not used."""
        return self.nfe // self._cost

    @property
    def max_rounds(self) -> int:
        return self.steps

    @property
    def path_name(self) -> str:
        return "particle"

    def _in_use(self, nfe: jax.Array) -> tuple[jax.Array, jax.Array]:
        """N of a budget, and which particles they are."""
        n = nfe // self._cost
        return n, jnp.arange(self.n_candidates, dtype=jnp.int32) < n

    def init(self, key, shape, target_reward, nfe) -> SMCState:
        n = self.n_candidates
        zeros = jnp.zeros(n, jnp.float32)
        return SMCState(
            key=key,
            target=target_reward,
            nfe=nfe,
            step=jnp.zeros((), jnp.int32),
            particles=self.empty(n, shape),
            log_weights=jnp.where(self._in_use(nfe)[1], zeros, -jnp.inf),
            potential=zeros,
            memory=jnp.full(n, -jnp.inf, jnp.float32) if self.potential == "max" else zeros,
            log_z=jnp.zeros((), jnp.float32),
            champion=self.empty(None, shape),
        )

    def ask(self, state: SMCState) -> tuple[SMCState, Candidates]:
        step = jnp.minimum(state.step, self.steps - 1)
        n = self.n_candidates
        valid = self._in_use(state.nfe)[1] & ~self.done(state)
        particle = jnp.arange(n, dtype=jnp.int32)
        keys = jax.vmap(partial(fold_in_ids, state.key), (0, None))(particle, step)

        def extend(key: jax.Array, i: jax.Array) -> jax.Array:
            return self.extend(key, tree_take(state.particles, i), step)

        return state, Candidates(
            x=map_valid(extend, valid, keys, particle),
            t=jnp.full(n, jnp.asarray(self.grid, jnp.float32)[step]),
            wants_reward=jnp.full(n, jnp.asarray(self.weighed)[step]),
            wants_gradient=jnp.zeros(n, jnp.bool),
            valid=valid,
            key=self.keys_ahead(keys),
        )

    def tell(
        self, state: SMCState, candidates: Candidates, evals: Evaluation
    ) -> tuple[SMCState, Info]:
        active = ~self.done(state)
        step = jnp.minimum(state.step, self.steps - 1)
        last = state.step == self.steps - 1
        weighed = jnp.asarray(self.weighed)[step]
        particles = to_particles(candidates, evals)
        told = self._weigh(state, particles.reward)
        winner = self.as_answer(tree_take(particles, jnp.argmax(particles.reward)))
        better = active & ((winner.reward > -jnp.inf) | (state.step == 0))
        if self.value is not None:
            # The latest, as long as none has a reward that the answer can have.
            better |= active & (state.champion.reward == -jnp.inf)
        told = told._replace(
            step=state.step + 1,
            particles=particles,
            champion=tree_where(better, winner, state.champion),
        )
        cost = jnp.asarray(self.costs(self.weighed))[step]
        ess = effective_sample_size(told.log_weights)
        n = self._in_use(state.nfe)[0].astype(jnp.float32)
        due = (ess <= self.threshold * n) & ((state.step + 1) % self.interval == 0)
        due &= ~last & weighed
        ancestors = self._ancestors(told, due)
        new = tree_where(active, self._resample(told, ancestors, due), state)
        survives = jnp.zeros(self.n_candidates, jnp.bool).at[ancestors].set(True)
        return new, Info(
            time=candidates.t,
            reward=particles.reward,
            counted=candidates.valid,
            accepted=candidates.valid & survives,
            ancestors=jnp.where(candidates.valid, ancestors, -1),
            ess=ess,
            charged=cost * jnp.sum(candidates.valid, dtype=jnp.int32),
            best_reward=new.champion.reward,
            path_time=new.particles.t,
            path_reward=new.particles.reward,
        )

    def _weigh(self, state: SMCState, reward: jax.Array) -> SMCState:
        """Multiply the weights by the potential's change; skip a step at which all would be 0."""
        last = state.step == self.steps - 1
        step = jnp.minimum(state.step, self.steps - 1)
        beta = jnp.asarray(self.temperatures, jnp.float32)[step]
        weighed = jnp.asarray(self.weighed)[step]
        # Infinity less infinity is no weight; +inf is a very large number here.
        scaled = jnp.clip(reward / beta, -_LARGE, _LARGE)
        memory, potential = state.memory, state.potential
        match self.potential:
            case "difference":
                potential = scaled
            case "max":
                memory = jnp.maximum(memory, jnp.clip(reward, -_LARGE, _LARGE))
                potential = potential + memory / beta
            case "sum":
                memory = memory + jnp.clip(reward, -_LARGE, _LARGE)
                potential = potential + memory / beta
        potential = jnp.where(last, scaled, potential)
        # A particle without a reward has weight 0, and keeps it until it is resampled away.
        alive = (reward > -jnp.inf) | ~weighed
        if self.branch_at is not None:
            potential = jnp.where(weighed, potential, state.potential)
            memory = jnp.where(weighed, memory, state.memory)
        change = jnp.where(alive, potential - state.potential, -jnp.inf)
        log_weights = state.log_weights + change
        some = jnp.any(log_weights > -jnp.inf)
        kept = alive & some
        return state._replace(
            log_weights=jnp.where(some, log_weights, state.log_weights),
            potential=jnp.where(kept, potential, state.potential),
            memory=jnp.where(kept, memory, state.memory),
        )

    def _ancestors(self, state: SMCState, due: jax.Array) -> jax.Array:
        """Which particles go on, int32 [N]; each itself if resampling is not due."""
        key = fold_in_ids(state.key, jnp.asarray(_RESAMPLE, jnp.int32), state.step)
        n, in_use = self._in_use(state.nfe)
        drawn = SCHEMES[self.scheme](key, state.log_weights, n)
        return jnp.where(due & in_use, drawn, jnp.arange(self.n_candidates, dtype=jnp.int32))

    def _resample(self, state: SMCState, ancestors: jax.Array, due: jax.Array) -> SMCState:
        particles, potential, memory = tree_take(
            (state.particles, state.potential, state.memory), ancestors
        )
        n, in_use = self._in_use(state.nfe)
        equal = jnp.where(in_use, jnp.zeros_like(state.log_weights), -jnp.inf)
        return state._replace(
            particles=particles,
            potential=potential,
            memory=memory,
            log_z=state.log_z + jnp.where(due, log_mean_exp(state.log_weights, n), 0.0),
            log_weights=jnp.where(due, equal, state.log_weights),
        )

    def log_z(self, state: SMCState) -> jax.Array:
        """Estimate of log E[exp(reward / beta)] over the kernel's samples, once done."""
        return state.log_z + log_mean_exp(state.log_weights, self._in_use(state.nfe)[0])

    def done(self, state: SMCState) -> jax.Array:
        return (state.step >= self.steps) | (state.champion.reward >= state.target)

    def best(self, state: SMCState) -> Particle:
        return state.champion

    def path(self, state: SMCState) -> Particle:
        return state.particles

    def lines(self, state: SMCState, info: Info) -> Lines:
        """Particles cross where they are resampled."""
        return super().lines(state, info)._replace(parent=info.ancestors)


def log_mean_exp(log_weights: jax.Array, n: jax.Array) -> jax.Array:
    """log of the mean of exp(log_weights), of which n are in use and the others -inf."""
    return jax.nn.logsumexp(log_weights) - jnp.log(n.astype(jnp.float32))


def smc(
    *,
    nfe: int,
    kernel: Kernel,
    grid: Any,
    temperature: float | Any = 0.1,
    potential: Literal["difference", "max", "sum", "final"] = "difference",
    scheme: Literal["multinomial", "stratified", "systematic", "residual", "ssp"] = "systematic",
    threshold: float = 0.5,
    interval: int = 1,
    branch_at: int | Sequence[float] | None = None,
    value: Value = "mean",
    value_steps: int = 4,
    value_samples: int = 4,
    finish: Finish = "complete",
    finish_steps: int | None = None,
) -> Search:
    """Sequential Monte Carlo with as many particles as the budget has trajectories.

    Args:
      nfe: budget in model evaluations, finishing included; a hard cap.
      kernel: a stochastic one, unless the potential is "final".
      grid: times falling from 1 to 0. Particles are evaluated at all but the last.
      temperature: beta > 0, in units of the reward: samples are weighed by exp(reward / beta). A
        sequence with an entry for each evaluated time tempers; the target is that of its last.
      potential: what particles are weighed by at a step: the "difference" of their rewards to those
        of the step before, the "max" or the "sum" of their rewards so far, or nothing but the
        "final" reward.
      scheme: how particles are resampled, see `flowsde.search.resampling`.
      threshold: resample when the effective sample size is at most this share of N, 0 to 1; 1
        resamples always.
      interval: least number of steps from one resampling to the next.
      branch_at: steps at which particles are weighed and may be resampled, besides the last, where
        they are weighed: so many spread evenly, or in Python a tuple of positions in the grid or of
        times. By default all. Not with potential "final".
      value: of a particle before the last time: the reward of its posterior mean, of the end of an
        ODE from there ("ode"), or of samples from there beta log mean exp(reward / beta), at the
        last beta ("samples").
      value_steps: evaluations of an ODE or of a sample, part of `nfe`.
      value_samples: samples of a particle.
      finish: "complete" follows the ODE from the best particle towards t = 0 by Euler steps, "heun"
        by Heun's, scores the final image, and returns the better of the two by reward; "mean"
        returns the posterior mean of the best particle.
      finish_steps: evaluations of finishing, part of `nfe`; a Heun step takes two. By default half
        as many as the grid has steps, and none where its last time is small already.

    Raises:
      ValueError, TypeError: naming the argument.
    """
    for name, word, known in (
        ("potential", potential, POTENTIALS),
        ("scheme", scheme, tuple(SCHEMES)),
    ):
        if word not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {word!r}")
    check_non_negative("threshold", threshold)
    if threshold > 1.0:
        raise ValueError(f"threshold is a share of the particles, 0 to 1, got {threshold}")
    times = as_grid("grid", grid)
    betas = _schedule(temperature, len(times) - 1)
    if potential == "final":
        for name, given in (("branch_at", branch_at is not None), ("value", value != "mean")):
            if given:
                raise ValueError(
                    f"{name} has no effect with potential 'final', which weighs particles at the "
                    f"last time alone; expected another potential"
                )
    return finished(
        SMC,
        nfe,
        finish,
        finish_steps,
        kernel=kernel,
        grid=times,
        value=as_value(value, value_steps, value_samples, times, betas[-1]),
        branch_at=as_steps(branch_at, times),
        temperatures=betas,
        potential=potential,
        scheme=scheme,
        threshold=threshold,
        interval=check_count("interval", interval),
    )


def _schedule(temperature: Any, steps: int) -> tuple[float, ...]:
    betas = np.asarray(temperature, np.float64)
    if betas.shape not in ((), (steps,)):
        raise ValueError(
            f"temperature must be one number or one for each of {steps} times, got shape "
            f"{betas.shape}"
        )
    for beta in betas.reshape(-1):
        check_positive("temperature", float(beta))
    return tuple(np.broadcast_to(betas, (steps,)).tolist())
