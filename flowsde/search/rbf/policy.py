"""The chains of RBF: what they draw next, and how they read a wave of children."""

import dataclasses
from functools import cached_property, partial
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde.search.grid import (
    GridSearch,
    check_stochastic,
    even_shares,
    fold_in_ids,
    map_valid,
    to_particles,
    tree_take,
    tree_where,
)
from flowsde.search.protocol import BudgetTooSmall, Candidates, Evaluation, Info, Particle
from flowsde.search.rbf.acceptance import IMPROVE, Acceptance, Siblings, Step
from flowsde.search.rbf.quotas import even_quotas, reserving_quotas

_NEVER = np.iinfo(np.int32).max


class Chains(NamedTuple):
    """State of the C chains; every leaf has leading axis C.

    Attributes:
      stage: int32, position in the grid whose children are being drawn; `RBF.steps` when done.
      quota: int32, evaluations of this stage, rolled-over budget included.
      drawn: int32, its draws so far.
      charged: int32, evaluations counted so far.
      hit: int32, the count at which the target was met.
      incumbent_reward: float32, r*.
      parent: the accepted particle.
      child: best child of this stage so far.
      child_draw: int32, its number among the stage's draws.
      champion: best particle of the last stage that had one with a reward.
      siblings: the stage's children; None if the rule of acceptance takes no interest in them.
    """

    stage: jax.Array
    quota: jax.Array
    drawn: jax.Array
    charged: jax.Array
    hit: jax.Array
    incumbent_reward: jax.Array
    parent: Particle
    child: Particle
    child_draw: jax.Array
    champion: Particle
    siblings: Siblings | None


class RBFState(NamedTuple):
    """State of `RBF`."""

    key: jax.Array
    target: jax.Array
    nfe: jax.Array
    chains: Chains


@dataclasses.dataclass(frozen=True, kw_only=True)
class RBF(GridSearch):
    """See `rbf`; without finishing."""

    charges_moves: ClassVar[bool] = True

    chains: int
    seeds: int
    width: int
    last: Literal["exhaust", "improve"]
    allocation: Literal["even", "reserve"]
    branch_at: tuple[int, ...] | None = None
    accept: Acceptance | None = None

    def __post_init__(self) -> None:
        reserves = self.allocation == "reserve"
        if reserves and self.steps == 1:
            raise ValueError("allocation 'reserve' needs a grid of at least 2 steps, got 1")
        if reserves and self.kernel.inner_evaluations:
            refuse_reserving("kernel of inner steps", self.kernel, None)
        costs = self._draw_costs
        least = self.chains * (self.seeds * int(costs[0]) + int(costs[1:].sum()))
        steps = self.steps - 1
        if reserves:
            steps, least = self.steps, least + self.chains
        if self.nfe < least:
            raise BudgetTooSmall(
                f"nfe leaves {self.nfe} evaluations for the search, expected at least {least}: "
                f"{self.chains} chains of {self.seeds} seeds and {steps} "
                f"{'quotas' if reserves else 'steps'}",
                least,
            )
        if self.steps > 1 and self.nfe > least:
            check_stochastic(self.kernel, self.grid, "all children of a particle are the same")

    @property
    def _rule(self) -> Acceptance:
        return IMPROVE if self.accept is None else self.accept

    @cached_property
    def _branches(self) -> np.ndarray:
        """bool [steps], where a chain has a quota; elsewhere it has one child."""
        branches = np.full(self.steps, self.branch_at is None)
        branches[[0, *(self.branch_at or ())]] = True
        return branches

    @cached_property
    def _verified(self) -> np.ndarray:
        """bool [steps], where rewards are wanted."""
        verified = self._branches | (np.arange(self.steps) == self.steps - 1)
        if self._rule.wants_parent:
            verified |= np.append(self._branches[1:], False)
        return verified

    @property
    def _draw_costs(self) -> np.ndarray:
        """Evaluations of a draw at each step."""
        return self.costs(self._verified)

    def quotas(self, nfe: jax.Array) -> jax.Array:
        """int32 [C, steps]: evaluations of each chain at each time, summing to nfe at most."""
        if self.allocation == "reserve":
            return reserving_quotas(nfe, self.chains, self.seeds, self.steps)
        totals = jnp.asarray(even_shares(nfe, self.chains))
        if self.steps == 1:
            return totals[:, None]
        seeds, costs = self.seeds * self._draw_costs[:1], self._draw_costs[1:]
        even = self._rule.has_quotas
        return even_quotas(totals, seeds, costs, self._branches[1:], even=even)

    @property
    def n_candidates(self) -> int:
        return self.chains * self.width

    @property
    def max_rounds(self) -> int:
        return -(-self.nfe // self.chains)

    @property
    def path_name(self) -> str:
        return "chain"

    def with_width(self, width: int) -> "RBF":
        return self.replace(width=width)

    def init(self, key, shape, target_reward, nfe) -> RBFState:
        zeros = jnp.zeros(self.chains, jnp.int32)
        particles = self.empty(self.chains, shape)
        chains = Chains(
            stage=zeros,
            quota=self.quotas(nfe)[:, 0],
            drawn=zeros,
            charged=zeros,
            hit=jnp.full(self.chains, _NEVER, jnp.int32),
            incumbent_reward=jnp.full(self.chains, -jnp.inf, jnp.float32),
            parent=particles,
            child=particles,
            child_draw=zeros,
            champion=particles,
            siblings=Siblings.none((self.chains,)) if self._rule.wants_siblings else None,
        )
        return RBFState(key, target_reward, nfe, chains)

    def ask(self, state: RBFState) -> tuple[RBFState, Candidates]:
        chains = state.chains
        # Chain and offset of each candidate.
        chain, offset = jnp.divmod(jnp.arange(self.n_candidates, dtype=jnp.int32), self.width)
        stage = jnp.minimum(chains.stage, self.steps - 1)[chain]
        number = chains.drawn[chain] + offset
        cost, draws = self._draws(stage, chains.quota[chain])
        valid = self._active(chains)[chain] & (number < draws)
        valid &= chains.charged[chain] + cost * offset < _limit(chains)
        keys = jax.vmap(partial(fold_in_ids, state.key))(chain, stage, number)

        def extend(key: jax.Array, chain: jax.Array, stage: jax.Array) -> jax.Array:
            return self.extend(key, tree_take(chains.parent, chain), stage)

        return state, Candidates(
            x=map_valid(extend, valid, keys, chain, stage),
            t=jnp.asarray(self.grid, jnp.float32)[stage],
            wants_reward=valid & jnp.asarray(self._verified)[stage],
            wants_gradient=valid & self.wants_gradient(stage),
            valid=valid,
            key=self.keys_ahead(keys),
        )

    def _draws(self, stage: jax.Array, quota: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What a draw of a stage costs, and how many the quota pays for, int32."""
        stage = jnp.minimum(stage, self.steps - 1)
        cost = jnp.asarray(self._draw_costs)[stage]
        return cost, jnp.where(jnp.asarray(self._branches)[stage], quota // cost, 1)

    def tell(
        self, state: RBFState, candidates: Candidates, evals: Evaluation
    ) -> tuple[RBFState, Info]:
        particles = to_particles(candidates, evals)
        # Told with a gradient where nothing competes, a reward is neither a bar nor an answer.
        wanted = jnp.where(candidates.wants_reward, particles.reward, -jnp.inf)
        particles = particles._replace(reward=wanted)
        waves, valid = jax.tree.map(
            lambda a: a.reshape(self.chains, self.width, *a.shape[1:]),
            (particles, candidates.valid),
        )
        read = jax.vmap(self._read_wave, (None, 0, 0, 0, 0))
        quotas = jnp.pad(self.quotas(state.nfe), ((0, 0), (0, 1)))
        chains, counted = read(state.target, state.chains, waves, valid, quotas)
        new = state._replace(chains=chains)
        moved = chains.stage > state.chains.stage
        draws = state.chains.drawn[:, None] + jnp.arange(self.width, dtype=jnp.int32)[None]
        accepted = moved[:, None] & valid & (draws == chains.child_draw[:, None])
        return new, Info(
            time=candidates.t,
            reward=particles.reward,
            counted=counted.reshape(-1),
            accepted=accepted.reshape(-1),
            ancestors=jnp.where(moved, chains.child_draw, -1),
            ess=jnp.full((), self.chains, jnp.float32),
            charged=_charged(chains) - _charged(state.chains),
            best_reward=self.best(new).reward,
            path_time=chains.parent.t,
            path_reward=chains.parent.reward,
        )

    def _read_wave(
        self,
        target: jax.Array,
        chain: Chains,
        wave: Particle,
        valid: jax.Array,
        quotas: jax.Array,
    ) -> tuple[Chains, jax.Array]:
        """One chain reads its wave in draw order; also says which candidates counted."""
        keeps_drawing = chain.stage == 0
        if self.last == "exhaust":
            keeps_drawing |= chain.stage == int(np.flatnonzero(self._branches)[-1])
        cost, draws = self._draws(chain.stage, chain.quota)
        step = Step(chain.stage, draws, chain.incumbent_reward, chain.parent.reward)
        bars, siblings = self._rule.read(step, chain.siblings, wave.reward, valid)
        hits = valid & self.meets(wave, target)
        passes = valid & (wave.reward > bars) & ~keeps_drawing
        stopped = jnp.any(hits | passes)
        first = jnp.argmax(hits | passes)
        counted = valid & (~stopped | (jnp.arange(self.width) <= first))
        n = jnp.sum(counted, dtype=jnp.int32)
        siblings = tree_where(n > 0, tree_take(siblings, n - 1), chain.siblings)

        row = jnp.argmax(jnp.where(counted, wave.reward, -jnp.inf)).astype(jnp.int32)
        winner = tree_take(wave, row)
        better = (n > 0) & ((chain.drawn == 0) | (winner.reward > chain.child.reward))
        child = tree_where(better, winner, chain.child)
        drawn, charged = chain.drawn + n, chain.charged + cost * n
        over = (n > 0) & (stopped | (drawn == draws))
        following = jnp.minimum(chain.stage + 1, self.steps)
        carried = jnp.where(jnp.any(passes & counted), -jnp.inf, self._rule.carried(step, siblings))
        fresh = None if siblings is None else Siblings.none()
        new = Chains(
            stage=jnp.where(over, following, chain.stage),
            quota=jnp.where(over, quotas[following] + chain.quota - cost * drawn, chain.quota),
            drawn=jnp.where(over, 0, drawn),
            charged=charged,
            hit=jnp.where(jnp.any(hits & counted), charged, chain.hit),
            incumbent_reward=jnp.where(
                over, jnp.maximum(carried, child.reward), chain.incumbent_reward
            ),
            parent=tree_where(over, child, chain.parent),
            child=child,
            child_draw=jnp.where(better, chain.drawn + row, chain.child_draw),
            champion=self._crowned(chain, child, n > 0),
            siblings=tree_where(over, fresh, siblings),
        )
        return new, counted

    def _crowned(self, chain: Chains, child: Particle, told: jax.Array) -> Particle:
        """The champion after a wave of which `child` is the best of its stage."""
        child = self.as_answer(child)
        best = (child.reward > -jnp.inf) | (chain.charged == 0)
        if self.value is not None:
            # The latest, as long as none has a reward that the answer can have.
            best |= chain.champion.reward == -jnp.inf
        return tree_where(told & best, child, chain.champion)

    def _active(self, chains: Chains) -> jax.Array:
        """bool [C]: draws are left, below the count at which the run stops."""
        unmet = (chains.hit == _NEVER) & (chains.charged < _limit(chains))
        return unmet & (chains.stage < self.steps)

    def done(self, state: RBFState) -> jax.Array:
        return ~jnp.any(self._active(state.chains))

    def best(self, state: RBFState) -> Particle:
        # After a hit, only what was met at that very count is eligible.
        champion, limit = state.chains.champion, _limit(state.chains)
        eligible = (champion.reward > -jnp.inf) & ((limit == _NEVER) | (state.chains.hit == limit))
        last = jnp.min(jnp.where(eligible, champion.t, jnp.inf))
        eligible &= champion.t == last
        return tree_take(champion, jnp.argmax(jnp.where(eligible, champion.reward, -jnp.inf)))

    def path(self, state: RBFState) -> Particle:
        return state.chains.parent


def _limit(chains: Chains) -> jax.Array:
    """The count of evaluations a chain at which the first chain met the target."""
    return jnp.min(chains.hit)


def _charged(chains: Chains) -> jax.Array:
    """Evaluations of all chains, each up to the limit; fewer when a slower chain lowers it."""
    return jnp.sum(jnp.minimum(chains.charged, _limit(chains)), dtype=jnp.int32)


def refuse_reserving(name: str, value: Any, expected: Any) -> None:
    """ValueError for an option that the public code does not have."""
    if value != expected:
        raise ValueError(
            f"allocation 'reserve' is the public code's and takes no {name}, got {value!r}; "
            f"expected allocation 'even'"
        )
