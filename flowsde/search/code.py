"""CoDe, blockwise best-of-K (Singh et al., 2025, arXiv 2502.00968); with blocks of 1 step, SVDD.

Each chain starts from one draw of noise. From its particle K children follow the kernel for a block
of steps, the reward at the block's end picks one of them, and the chain goes on from it. Within
the budget every block gets as many children as it can, earlier blocks one more: no evaluation is
spent on copies of the start, where there is nothing to choose.

With `branch_at`, blocks begin at the steps chosen alone, and end before the next of them. At the
other steps a chain has one child, whose reward is wanted at the last only.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._checks import check_count, check_non_negative
from flowsde.grids import as_grid
from flowsde.kernels import Kernel
from flowsde.search.branching import as_steps
from flowsde.search.complete import Finish, finished
from flowsde.search.grid import (
    GridSearch,
    affordable,
    check_stochastic,
    even_shares,
    fold_in_ids,
    map_valid,
    to_particles,
    tree_take,
    tree_where,
)
from flowsde.search.protocol import BudgetTooSmall, Candidates, Evaluation, Info, Particle, Search
from flowsde.search.value import Value, as_value

_SELECT = np.iinfo(np.int32).max
"""In place of a draw's number, the key of a stage's selection."""


class CoDeState(NamedTuple):
    """State of `CoDe`.

    Attributes:
      key, target, nfe: of the run.
      step: int32, position in the grid of the next candidates; `CoDe.steps` when done.
      parents: the particle of each chain, [C].
      children: on their way through the block, [C, K]; None if a block is one step.
      champion: the best of the last time that had one with a reward.
    """

    key: jax.Array
    target: jax.Array
    nfe: jax.Array
    step: jax.Array
    parents: Particle
    children: Particle | None
    champion: Particle


class Blocks(NamedTuple):
    """A grid in blocks, of which the start is the first; NumPy.

    Attributes:
      number: int32 [steps], the block that each step is in.
      begins, ends: bool [steps], where a block does.
      branches: bool [blocks], where a chain has K children; else it has one.
    """

    number: Any
    begins: Any
    ends: Any
    branches: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoDe(GridSearch):
    """See `code`; without finishing."""

    charges_moves: ClassVar[bool] = True

    chains: int
    block: int
    temperature: float
    branch_at: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        least = self.chains * int(self._block_costs.sum())
        if self.nfe < least:
            raise BudgetTooSmall(
                f"nfe leaves {self.nfe} evaluations for the search, expected at least {least}: "
                f"{self.chains} chains of one child and {self.steps} steps",
                least,
            )
        if self.n_children > 1:
            check_stochastic(self.kernel, self.grid, "all children of a particle are the same")

    @cached_property
    def blocks(self) -> Blocks:
        """Where blocks begin and end."""
        starts = range(1, self.steps, self.block) if self.branch_at is None else self.branch_at
        begins = np.ones(self.steps, bool)
        for start in starts:
            begins[start + 1 : start + self.block] = False
            begins[start] = True
        number = np.cumsum(begins, dtype=np.int32) - 1
        branches = np.zeros(int(number[-1]) + 1, bool)
        branches[number[list(starts)]] = True
        # A grid of one step is a choice among draws of noise.
        branches |= self.steps == 1
        return Blocks(number, begins, np.append(begins[1:], True), branches)

    @cached_property
    def verified(self) -> np.ndarray:
        """bool [steps], where rewards are wanted."""
        chosen = self.blocks.ends & self.blocks.branches[self.blocks.number]
        return chosen | (np.arange(self.steps) == self.steps - 1)

    @property
    def _block_costs(self) -> np.ndarray:
        """Evaluations that a child takes in each block."""
        return np.bincount(self.blocks.number, self.costs(self.verified)).astype(np.int32)

    def _children(self, nfe: Any) -> Any:
        """int32 [C, blocks]: children of each chain in each block.

        They cost nfe, less what is left over by `affordable`.
        """
        branches, costs = self.blocks.branches, self._block_costs
        left = even_shares(nfe, self.chains) - int(costs[~branches].sum())
        several = branches.astype(np.int32)[None]
        place = np.maximum(np.cumsum(branches) - 1, 0)
        children = affordable(left, costs[branches])[:, place]
        return children * several + (1 - several)

    def quotas(self, nfe: jax.Array) -> jax.Array:
        """int32 [C, steps]: children of each chain at each time, the same within a block."""
        return self._children(nfe)[:, self.blocks.number]

    @property
    def n_children(self) -> int:
        """Most children of a chain, K."""
        return int(self._children(np.int32(self.nfe)).max())

    @property
    def n_candidates(self) -> int:
        return self.chains * self.n_children

    @property
    def max_rounds(self) -> int:
        return self.steps

    @property
    def path_name(self) -> str:
        return "chain"

    def init(self, key, shape, target_reward, nfe) -> CoDeState:
        parents = self.empty(self.chains, shape)
        children = None if self.block == 1 else self._by_chain(self.empty(self.n_candidates, shape))
        step = jnp.zeros((), jnp.int32)
        champion = self.empty(None, shape)
        return CoDeState(key, target_reward, nfe, step, parents, children, champion)

    def _by_chain(self, particles: Particle) -> Particle:
        """Particles [C K] as [C, K]."""
        split = (self.chains, self.n_children)
        return jax.tree.map(lambda a: a.reshape(*split, *a.shape[1:]), particles)

    def ask(self, state: CoDeState) -> tuple[CoDeState, Candidates]:
        begins = jnp.asarray(self.blocks.begins)[state.step]
        step = jnp.minimum(state.step, self.steps - 1)
        n = self.n_candidates
        # Chain and number of each candidate.
        chain, number = jnp.divmod(jnp.arange(n, dtype=jnp.int32), self.n_children)
        keys = jax.vmap(partial(fold_in_ids, state.key), (0, None, 0))(chain, step, number)
        valid = (number < self.quotas(state.nfe)[:, step][chain]) & ~self.done(state)

        def extend(key: jax.Array, chain: jax.Array, number: jax.Array) -> jax.Array:
            origin = tree_take(state.parents, chain)
            if state.children is not None:
                origin = tree_where(
                    begins, origin, tree_take(tree_take(state.children, chain), number)
                )
            return self.extend(key, origin, step)

        return state, Candidates(
            x=map_valid(extend, valid, keys, chain, number),
            t=jnp.full(n, jnp.asarray(self.grid, jnp.float32)[step]),
            wants_reward=jnp.full(n, jnp.asarray(self.verified)[step]),
            wants_gradient=jnp.full(n, self.wants_gradient(step)),
            valid=valid,
            key=self.keys_ahead(keys),
        )

    def tell(
        self, state: CoDeState, candidates: Candidates, evals: Evaluation
    ) -> tuple[CoDeState, Info]:
        active = ~self.done(state)
        step = jnp.minimum(state.step, self.steps - 1)
        flat = to_particles(candidates, evals)
        children = self._by_chain(flat)
        chain = jnp.arange(self.chains, dtype=jnp.int32)
        pick = jax.vmap(self._select, (None, 0, None, 0))
        chosen = pick(state.key, chain, state.step, children.reward)
        selected = jax.vmap(tree_take)(children, chosen)
        winner = self.as_answer(tree_take(flat, jnp.argmax(flat.reward)))
        better = active & ((winner.reward > -jnp.inf) | (state.champion.reward == -jnp.inf))
        decided = active & jnp.asarray(self.blocks.ends)[step]
        cost = jnp.asarray(self.costs(self.verified))[step]
        new = state._replace(
            step=state.step + active.astype(jnp.int32),
            parents=tree_where(jnp.full(self.chains, decided), selected, state.parents),
            children=None if self.block == 1 else children,
            champion=tree_where(better, winner, state.champion),
        )
        return new, Info(
            time=candidates.t,
            reward=flat.reward,
            counted=candidates.valid,
            accepted=(decided & (jnp.arange(self.n_children)[None] == chosen[:, None])).reshape(-1),
            ancestors=jnp.where(decided, chosen, -1).astype(jnp.int32),
            ess=jnp.full((), self.chains, jnp.float32),
            charged=cost * jnp.sum(candidates.valid, dtype=jnp.int32),
            best_reward=new.champion.reward,
            path_time=new.parents.t,
            path_reward=new.parents.reward,
        )

    def _select(
        self, key: jax.Array, chain: jax.Array, step: jax.Array, rewards: jax.Array
    ) -> jax.Array:
        """Index of the child [K] to go on from; child 0 if none has a reward."""
        if self.temperature == 0.0:
            return jnp.argmax(rewards)
        key = fold_in_ids(key, chain, step, jnp.asarray(_SELECT, jnp.int32))
        best = jnp.max(rewards)
        # Less the best first: scaled differences are finite for rewards of any size.
        log_weights = jnp.where(rewards == best, 0.0, rewards - best) / self.temperature
        drawn = jnp.argmax(log_weights + jax.random.gumbel(key, rewards.shape, jnp.float32))
        return jnp.where(best > -jnp.inf, drawn, 0)

    def done(self, state: CoDeState) -> jax.Array:
        return (state.step >= self.steps) | self.meets(state.champion, state.target)

    def best(self, state: CoDeState) -> Particle:
        return state.champion

    def path(self, state: CoDeState) -> Particle:
        return state.parents


def code(
    *,
    nfe: int,
    kernel: Kernel,
    grid: Any,
    chains: int = 2,
    block: int = 2,
    temperature: float = 0.0,
    branch_at: int | Sequence[float] | None = None,
    value: Value = "mean",
    value_steps: int = 4,
    value_samples: int = 4,
    finish: Finish = "complete",
    finish_steps: int | None = None,
) -> Search:
    """CoDe: K children of each chain follow the kernel for a block of steps, one is kept.

    Args:
      nfe: budget in model evaluations, finishing included; a hard cap. It sets K.
      kernel: a stochastic one.
      grid: times falling from 1 to 0. Particles are evaluated at all but the last.
      chains: independent chains, which share the budget; the best of all is returned.
      block: steps between selections.
      temperature: beta >= 0, in units of the reward. A child is drawn with probability
        proportional to exp(reward / beta); 0 takes the best.
      branch_at: steps at which blocks begin, of which only these have more than one child: so many
        spread evenly, or in Python a tuple of positions in the grid or of times. By default every
        `block`-th.
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
      >>> search = fs.search.code(grid=fs.grids.uniform(8), chains=2, block=2, **budget)
      >>> result = fs.run(jax.random.key(1), flow, search, reward)
      >>> bool(result.reward > 0), bool(result.nfe <= 40)
      (True, True)
    """
    check_non_negative("temperature", temperature)
    times = as_grid("grid", grid)
    return finished(
        CoDe,
        nfe,
        finish,
        finish_steps,
        kernel=kernel,
        grid=times,
        value=as_value(value, value_steps, value_samples, times, temperature),
        branch_at=as_steps(branch_at, times),
        chains=check_count("chains", chains),
        block=check_count("block", block),
        temperature=temperature,
    )
