"""Rollover Budget Forcing (Kim et al., 2025, arXiv 2503.19385, Algorithm 2).

Each chain starts from the best of `seeds` draws of noise, whose reward is r*. At each time of the
grid it draws children of its particle one after the other until one has a reward above r*: that
child is accepted, r* rises to its reward, and what is left of the step's quota rolls over to the
next step. If the quota runs out first, the best child of the step is accepted and r* stays.

``width = w`` evaluates w children of a chain at once and then reads them in draw order, as the
one-at-a-time algorithm would: which children are accepted and what is charged do not depend on w.
Children beyond the first improvement are surplus, evaluated but not charged.

Chains are independent. With a target reward they stop together, at the first count of draws at
which a chain one draw at a time, all chains abreast, would meet it; this too does not depend on w.

What ends a step early is a rule of `flowsde.search.acceptance`. With `branch_at`, only the steps
chosen have quotas; at others a chain has one child, which is accepted, and what was rolled over
goes past it. Quotas and charges are in evaluations: a draw whose value is seen ahead costs several.

The answer is the best particle of the last time that any chain has reached: rewards of posterior
means of different times mean different things (at t = 1 the mean is an average of all data). After
a hit, only what met the target competes.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._checks import check_count
from flowsde.grids import as_grid
from flowsde.kernels import Kernel
from flowsde.search.acceptance import (
    IMPROVE,
    Accept,
    Acceptance,
    Siblings,
    Step,
    as_acceptance,
)
from flowsde.search.branching import as_steps
from flowsde.search.complete import Finish, finished
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
from flowsde.search.protocol import BudgetTooSmall, Candidates, Evaluation, Info, Particle, Search
from flowsde.search.quotas import even_quotas, reserving_quotas
from flowsde.search.value import Value, as_value

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
            _refuse_reserving("kernel of inner steps", self.kernel, None)
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
        `flowsde.search.acceptance`.
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
        _refuse_reserving("accept", accept, "improve")
        _refuse_reserving("branch_at", branch_at, None)
        _refuse_reserving("value", value, "mean")
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


def _refuse_reserving(name: str, value: Any, expected: Any) -> None:
    """ValueError for an option that the public code does not have."""
    if value != expected:
        raise ValueError(
            f"allocation 'reserve' is the public code's and takes no {name}, got {value!r}; "
            f"expected allocation 'even'"
        )
