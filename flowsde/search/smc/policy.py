"""The policy of `smc`: its state, and how a round is asked for and told."""

import dataclasses
from functools import cached_property, partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde.search.grid import (
    GridSearch,
    check_stochastic,
    fold_in_ids,
    map_valid,
    to_particles,
    tree_take,
    tree_where,
)
from flowsde.search.protocol import BudgetTooSmall, Candidates, Evaluation, Info, Lines, Particle
from flowsde.search.resampling import SCHEMES
from flowsde.search.smc import funnel
from flowsde.search.smc.potentials import accumulated, bounded, initial_memory, remembered
from flowsde.search.smc.tempering import adapted
from flowsde.search.smc.weights import (
    effective_sample_size,
    log_mean_exp,
    log_ratio,
    pulled,
    unguided,
)

_RESAMPLE = np.iinfo(np.int32).max
"""In place of a particle's number, the key of a step's resampling."""


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
      share: lambda of the last weighing, float32; None unless tempering is adaptive.
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
    share: jax.Array | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SMC(GridSearch):
    """See `smc`; without finishing.

    Attributes:
      shares: lambda at each step, of a fixed tempering; None for none and for `adaptive`.
    """

    charges_moves: ClassVar[bool] = True

    temperatures: tuple[float, ...]
    potential: str
    scheme: str
    threshold: float
    interval: int
    branch_at: tuple[int, ...] | None = None
    resample_from: int | None = None
    resample_until: int | None = None
    funnel: float | None = None
    shares: tuple[float, ...] | None = None
    adaptive: bool | None = None

    def __post_init__(self) -> None:
        if self.nfe < self._cost:
            raise BudgetTooSmall(
                f"nfe leaves {self.nfe} evaluations for the search, expected at least one "
                f"particle's: the grid takes {self._cost}",
                self._cost,
            )
        for name in ("resample_from", "resample_until", "funnel"):
            if getattr(self, name) is not None and not self.resamples.any():
                raise ValueError(
                    f"{name} has no effect: no step is left at which particles are resampled"
                )
        if self.uses_gradient:
            unguided(self.kernel)
        if self.n_candidates > 1 and self.potential != "final":
            check_stochastic(self.kernel, self.grid, "copies of a particle stay the same")

    @cached_property
    def weighed(self) -> np.ndarray:
        """bool [steps], where rewards are wanted."""
        every = self.branch_at is None and self.potential != "final"
        weighed = np.full(self.steps, every)
        weighed[[*(self.branch_at or ()), self.steps - 1]] = True
        return weighed

    @cached_property
    def resamples(self) -> np.ndarray:
        """bool [steps], where particles may be resampled."""
        position = np.arange(self.steps)
        first, until = self.resample_from, self.resample_until
        counted = position + 1 if first is None else position - first
        within = (position >= (first or 0)) & (position < self.steps - 1)
        within &= position <= (self.steps if until is None else until)
        return self.weighed & within & (counted % self.interval == 0)

    @property
    def _cost(self) -> int:
        """Evaluations of a particle."""
        return int(self.costs(self.weighed).sum())

    @cached_property
    def _parts(self) -> np.ndarray:
        """Of the first step's particles those at each step, in thousandths."""
        return funnel.thousandths(1.0 if self.funnel is None else self.funnel, self.resamples)

    @cached_property
    def n_candidates(self) -> int:
        """Particles at first: what is left of nfe after the whole grid for each is not used."""
        if self.funnel is None:
            return self.nfe // self._cost
        return funnel.most(self.nfe, self._parts, self.costs(self.weighed))

    @property
    def max_rounds(self) -> int:
        return self.steps

    @property
    def path_name(self) -> str:
        return "particle"

    def _in_use(self, nfe: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        """N of a budget at a step, behind the last as there, and which particles they are."""
        if self.funnel is None:
            n = nfe // self._cost
        else:
            costs = self.costs(self.weighed)
            first = funnel.most_of(nfe, self._parts, costs, self.n_candidates)
            at = jnp.minimum(step, self.steps - 1)
            n = funnel.particles(first, jnp.asarray(self._parts)[at])
        return n, jnp.arange(self.n_candidates, dtype=jnp.int32) < n

    def init(self, key, shape, target_reward, nfe) -> SMCState:
        n = self.n_candidates
        zeros, start = jnp.zeros(n, jnp.float32), jnp.zeros((), jnp.int32)
        return SMCState(
            key=key,
            target=target_reward,
            nfe=nfe,
            step=start,
            particles=self.empty(n, shape),
            log_weights=jnp.where(self._in_use(nfe, start)[1], zeros, -jnp.inf),
            potential=zeros,
            memory=initial_memory(self.potential, n),
            log_z=jnp.zeros((), jnp.float32),
            champion=self.empty(None, shape),
            share=jnp.zeros((), jnp.float32) if self.adaptive else None,
        )

    def ask(self, state: SMCState) -> tuple[SMCState, Candidates]:
        step = jnp.minimum(state.step, self.steps - 1)
        n = self.n_candidates
        valid = self._in_use(state.nfe, step)[1] & ~self.done(state)
        particle = jnp.arange(n, dtype=jnp.int32)
        keys = jax.vmap(partial(fold_in_ids, state.key), (0, None))(particle, step)
        pull = self._pull(state, step)

        def extend(key: jax.Array, i: jax.Array) -> jax.Array:
            return self.extend(key, pulled(tree_take(state.particles, i), pull), step)

        return state, Candidates(
            x=map_valid(extend, valid, keys, particle),
            t=jnp.full(n, jnp.asarray(self.grid, jnp.float32)[step]),
            wants_reward=jnp.full(n, jnp.asarray(self.weighed)[step]),
            wants_gradient=jnp.full(n, self.wants_gradient(step)),
            valid=valid,
            key=self.keys_ahead(keys),
        )

    def tell(
        self, state: SMCState, candidates: Candidates, evals: Evaluation
    ) -> tuple[SMCState, Info]:
        active = ~self.done(state)
        step = jnp.minimum(state.step, self.steps - 1)
        particles = to_particles(candidates, evals)
        told = self._weigh(state, particles.reward, self._log_ratio(state, candidates, step))
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
        n, (left, goes_on) = self._in_use(state.nfe, step)[0], self._in_use(state.nfe, step + 1)
        due = (ess <= self._least(n)) | (left < n)
        due &= jnp.asarray(self.resamples)[step]
        ancestors = self._ancestors(told, due, left)
        new = tree_where(active, self._resample(told, ancestors, due, n, goes_on), state)
        # Rows that end here would count as their own children.
        child_of = jnp.where(goes_on, ancestors, self.n_candidates)
        survives = jnp.zeros(self.n_candidates, jnp.bool).at[child_of].set(True, mode="drop")
        return new, Info(
            time=candidates.t,
            reward=particles.reward,
            counted=candidates.valid,
            accepted=candidates.valid & survives,
            ancestors=jnp.where(candidates.valid & goes_on, ancestors, -1),
            ess=ess,
            charged=cost * jnp.sum(candidates.valid, dtype=jnp.int32),
            best_reward=new.champion.reward,
            path_time=new.particles.t,
            path_reward=new.particles.reward,
        )

    def _least(self, n: jax.Array) -> jax.Array:
        """Effective sample size of n particles down to which resampling is due."""
        return self.threshold * n.astype(jnp.float32)

    def _pull(self, state: SMCState, step: jax.Array) -> jax.Array | None:
        """lambda of the gradient that a guided kernel proposes a step by; None for all of it."""
        if self.adaptive:
            return state.share
        beta = self.temperatures
        shares = self.shares or tuple(beta[-1] / one for one in beta)
        if not self.uses_gradient or set(shares) == {1.0}:
            return None
        return jnp.asarray(shares, jnp.float32)[step]

    def _log_ratio(
        self, state: SMCState, candidates: Candidates, step: jax.Array
    ) -> jax.Array | None:
        """log p - log q [N] of what was proposed; None where q is p."""
        if not self.uses_gradient:
            return None
        s, pull = jnp.asarray(self.grid, jnp.float32)[step], self._pull(state, step)
        each = jax.vmap(lambda x, parent: log_ratio(self.kernel, x, pulled(parent, pull), s))
        drawn = candidates.valid & (step > 0)
        return jnp.where(drawn, each(candidates.x, state.particles), 0.0)

    def _weigh(
        self, state: SMCState, reward: jax.Array, ratio: jax.Array | None = None
    ) -> SMCState:
        """Multiply the weights by the potential's change; skip a step at which all would be 0.

        Args:
          state: before.
          reward: of the particles, [N].
          ratio: log p - log q of their proposals, [N].
        """
        last = state.step == self.steps - 1
        step = jnp.minimum(state.step, self.steps - 1)
        beta = jnp.asarray(self.temperatures, jnp.float32)[step]
        weighed = jnp.asarray(self.weighed)[step]
        before = state.log_weights
        if ratio is not None:
            before = jnp.where(jnp.any(before + ratio > -jnp.inf), before + ratio, before)
        scaled = bounded(reward / beta)
        memory = remembered(self.potential, state.memory, reward)
        # A particle without a reward has weight 0, and keeps it until it is resampled away.
        alive = (reward > -jnp.inf) | ~weighed

        def potential(share: jax.Array | None) -> jax.Array:
            kind = self.potential
            phi = accumulated(kind, state.potential, memory, scaled, beta, share)
            phi = jnp.where(last, scaled, phi)
            return jnp.where(weighed, phi, state.potential)

        def log_weights(phi: jax.Array) -> jax.Array:
            return before + jnp.where(alive, phi - state.potential, -jnp.inf)

        now = jnp.ones((), jnp.float32)
        if self.shares is not None:
            now = jnp.asarray(self.shares, jnp.float32)[step]
        if state.share is not None:
            least = self._least(self._in_use(state.nfe, step)[0])
            now = adapted(
                lambda share: effective_sample_size(log_weights(potential(share))),
                least,
                state.share,
            )
        phi = potential(now if self.shares or self.adaptive else None)
        some = jnp.any(log_weights(phi) > -jnp.inf)
        kept = alive & some
        return state._replace(
            log_weights=jnp.where(some, log_weights(phi), before),
            potential=jnp.where(kept, phi, state.potential),
            memory=jnp.where(kept & weighed, memory, state.memory),
            share=None if state.share is None else jnp.where(some & weighed, now, state.share),
        )

    def _ancestors(self, state: SMCState, due: jax.Array, left: jax.Array) -> jax.Array:
        """Which particles go on, int32 [N], of them `left`; each itself if none is due."""
        key = fold_in_ids(state.key, jnp.asarray(_RESAMPLE, jnp.int32), state.step)
        own = jnp.arange(self.n_candidates, dtype=jnp.int32)
        drawn = SCHEMES[self.scheme](key, state.log_weights, left)
        return tree_where(due, jnp.where(own < left, drawn, own), own)

    def _resample(
        self, state: SMCState, ancestors: jax.Array, due: jax.Array, n: jax.Array, kept: jax.Array
    ) -> SMCState:
        """With n weights, all of them or, if due, the `kept` rows of ancestors."""
        particles, potential, memory = tree_take(
            (state.particles, state.potential, state.memory), ancestors
        )
        equal = jnp.where(kept, jnp.zeros_like(state.log_weights), -jnp.inf)
        return state._replace(
            particles=particles,
            potential=potential,
            memory=memory,
            log_z=state.log_z + jnp.where(due, log_mean_exp(state.log_weights, n), 0.0),
            log_weights=jnp.where(due, equal, state.log_weights),
        )

    def whole(self, state: SMCState) -> SMCState:
        """With weights towards exp(reward / beta), as at the last time, where a run ends before.

        On the way they are towards what the potential is there, of all of the reward or not. Where
        no rewards were wanted they stay.
        """
        reward = state.particles.reward
        phi = bounded(reward / jnp.float32(self.temperatures[-1]))
        early = (state.step < self.steps) & (reward > -jnp.inf)
        more = jnp.where(early, phi - state.potential, 0.0)
        return state._replace(log_weights=state.log_weights + more)

    def log_z(self, state: SMCState) -> jax.Array:
        """Estimate of log E[exp(reward / beta)] over the kernel's samples, once done."""
        n = self._in_use(state.nfe, state.step)[0]
        return state.log_z + log_mean_exp(state.log_weights, n)

    def done(self, state: SMCState) -> jax.Array:
        return (state.step >= self.steps) | self.meets(state.champion, state.target)

    def best(self, state: SMCState) -> Particle:
        return state.champion

    def path(self, state: SMCState) -> Particle:
        return state.particles

    def lines(self, state: SMCState, info: Info) -> Lines:
        """Particles cross where they are resampled."""
        return super().lines(state, info)._replace(parent=info.ancestors)
