"""LiDAR: a bank of drafts moves the means towards those of high reward (arXiv 2602.03211).

Drafts y_i, samples of few steps, and their rewards r_i stand for the samples of the model weighed
by exp(r / beta). Of such a bank the posterior means at x, a point of time t, are

    m  = sum_i w_i y_i,     w_i  proportional to exp(-|x - alpha y_i|^2 / 2 sigma^2),
    m' = sum_i w'_i y_i,    w'_i proportional to exp(r_i / beta - |x - alpha y_i|^2 / 2 sigma^2),

without the rewards and with them. Trajectories follow the kernel from

    x0' = x0 + scale (m' - m),    x1' = x1 - alpha / sigma (x0' - x0).

For scale 1 that adds the gradient of log E[exp(r / beta) | x], as the bank has it, to the score:
x0' tends to the posterior mean of the weighed samples as the bank grows. The reward has no
gradient, and nothing is evaluated more. In many dimensions distances outweigh rewards: at moderate
noise one draft has all weight, with the rewards and without, and the pull fades by itself.
"""

import dataclasses
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._checks import check_count, check_non_negative, check_positive
from flowsde.grids import as_grid
from flowsde.kernels import Before, Kernel, Multistep
from flowsde.predictions import expand
from flowsde.search.branching import as_steps
from flowsde.search.grid import (
    any_over_prompts,
    check_without_moves,
    fold_in_ids,
    further,
    map_valid,
    to_particles,
    tree_take,
    tree_where,
)
from flowsde.search.protocol import BudgetTooSmall, Candidates, Evaluation, Info, Lines, Particle
from flowsde.search.smc.potentials import bounded
from flowsde.search.solver import SolvedSearch, kernel_and_solver


class LiDARState(NamedTuple):
    """State of `LiDAR`.

    Attributes:
      key, target, nfe: of the run.
      slot: int32, position in `LiDAR.schedule`.
      particles: as last evaluated, [w].
      bank: the drafts, once they have ended, [n]; rows behind those in the budget have no reward.
      best: the answer so far.
      before: what the last step of `particles` left, of a solver.
    """

    key: jax.Array
    target: jax.Array
    nfe: jax.Array
    slot: jax.Array
    particles: Particle
    bank: Particle
    best: Particle
    before: Before | None = None


class Schedule(NamedTuple):
    """What is evaluated in each slot, NumPy int32 and bool [slots].

    Attributes:
      step: position in the grid.
      drafting: whether it is of drafts, else of trajectories.
      ends: whether they end.
      pulled: whether trajectories come from moved means.
    """

    step: Any
    drafting: Any
    ends: Any
    pulled: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class LiDAR(SolvedSearch):
    """See `lidar`.

    Attributes:
      draft: positions in the grid at which drafts are evaluated, rising from 0.
    """

    draft: tuple[int, ...]
    trajectories: int
    temperature: float
    scale: float
    pull_until: float

    def __post_init__(self) -> None:
        least = self.trajectories * self.steps + len(self.draft)
        if self.nfe < least:
            raise BudgetTooSmall(
                f"nfe = {self.nfe} is less than one draft and trajectories = {self.trajectories} "
                f"times the grid's {self.steps} evaluations, {least}",
                least,
            )

    @cached_property
    def schedule(self) -> Schedule:
        """Slots of drafts, then of trajectories."""
        step = np.asarray([*self.draft, *range(self.steps)], np.int32)
        slot = np.arange(step.size)
        drafting = slot < len(self.draft)
        ends = (slot == len(self.draft) - 1) | (slot == step.size - 1)
        # By the time that they come from.
        before = np.asarray(self.grid, np.float32)[np.maximum(step - 1, 0)]
        pulled = ~drafting & (step > 0) & (before > self.pull_until)
        return Schedule(step, drafting, ends, pulled)

    def drafts(self, nfe: Any) -> Any:
        """n of a budget: what trajectories leave."""
        return (nfe - self.trajectories * self.steps) // len(self.draft)

    @property
    def n_candidates(self) -> int:
        return max(self.drafts(self.nfe), self.trajectories)

    @property
    def max_rounds(self) -> int:
        return len(self.schedule.step)

    @property
    def path_name(self) -> str:
        return "trajectory"

    def init(self, key, shape, target_reward, nfe) -> LiDARState:
        return LiDARState(
            key=key,
            target=target_reward,
            nfe=nfe,
            slot=jnp.zeros((), jnp.int32),
            particles=self.empty(self.n_candidates, shape),
            bank=self.empty(self.drafts(self.nfe), shape),
            best=self.empty(None, shape),
            before=self.nothing_before(self.n_candidates, shape),
        )

    def _at(self, slot: jax.Array) -> Schedule:
        """The schedule's row of a slot, the last one's when done."""
        slot = jnp.minimum(slot, self.max_rounds - 1)
        return Schedule(*(jnp.asarray(rows)[slot] for rows in self.schedule))

    def _in_use(self, state: LiDARState, at: Schedule) -> jax.Array:
        """Rows that are evaluated, bool [w]."""
        n = jnp.where(at.drafting, self.drafts(state.nfe), self.trajectories)
        return jnp.arange(self.n_candidates, dtype=jnp.int32) < n

    def ask(self, state: LiDARState) -> tuple[LiDARState, Candidates]:
        at, n = self._at(state.slot), self.n_candidates
        rows = jnp.arange(n, dtype=jnp.int32)
        valid = self._in_use(state, at) & ~self.done(state)
        keys = jax.vmap(partial(fold_in_ids, state.key), (0, None))(rows, state.slot)

        def extend(key: jax.Array, row: jax.Array) -> tuple[Any, Before | None]:
            parent, before = tree_take((state.particles, state.before), row)
            pulled = jax.lax.cond(
                any_over_prompts(at.pulled), partial(self.pulled, state), lambda p: p, parent
            )
            parent = tree_where(at.pulled, pulled, parent)
            return self.solved(self.extend(key, parent, at.step), parent, before, at.step)

        x, before = map_valid(extend, valid, keys, rows)
        return state._replace(before=before), Candidates(
            x=x,
            t=jnp.full(n, jnp.asarray(self.grid, jnp.float32)[at.step]),
            wants_reward=jnp.full(n, at.ends),
            wants_gradient=jnp.full(n, ~at.ends & self.uses_gradient),
            valid=valid,
        )

    def pulled(self, state: LiDARState, particle: Particle) -> Particle:
        """A particle whose means are moved as the bank says; its other arrays are kept."""
        alpha, sigma = self.interpolant.alpha(particle.t), self.interpolant.sigma(particle.t)
        drafts, reward = state.bank.x0, state.bank.reward
        away = jnp.square(particle.x[None] - alpha * drafts).reshape(reward.size, -1).sum(1)
        near = -away / (2.0 * jnp.square(sigma))
        there = jnp.arange(reward.size, dtype=jnp.int32) < self.drafts(state.nfe)
        plain = jnp.where(there, near, -jnp.inf)
        # A draft without a reward is none of the weighed samples. Beside large rewards distances
        # would round away: less the best first.
        alive = there & (reward > -jnp.inf)
        value = jnp.where(alive, bounded(reward), -jnp.inf)
        below = jnp.where(alive, value - jnp.max(value), -jnp.inf)
        rewarded = jnp.where(jnp.any(alive), plain + below / self.temperature, plain)
        gain = jax.nn.softmax(rewarded) - jax.nn.softmax(plain)
        shift = self.scale * jnp.sum(expand(gain, drafts) * drafts, 0)
        return particle._replace(x0=particle.x0 + shift, x1=particle.x1 - alpha / sigma * shift)

    def tell(
        self, state: LiDARState, candidates: Candidates, evals: Evaluation
    ) -> tuple[LiDARState, Info]:
        at, active = self._at(state.slot), ~self.done(state)
        particles = to_particles(candidates, evals)
        drafted = jnp.full(state.bank.t.shape, active & at.drafting & at.ends)
        own = tree_take(particles, jnp.arange(drafted.size))

        rows = jnp.arange(self.n_candidates, dtype=jnp.int32)
        row = jnp.argmax(particles.reward).astype(jnp.int32)
        winner = tree_take(particles, row)
        better = active & further(winner, state.best, at.ends)
        best = tree_where(better, winner, state.best)
        new = state._replace(
            slot=state.slot + active.astype(jnp.int32),
            particles=particles,
            bank=tree_where(drafted, own, state.bank),
            best=best,
        )
        number = self._first(state, at) + row
        return new, Info(
            time=candidates.t,
            reward=particles.reward,
            counted=candidates.valid,
            accepted=better & (rows == row),
            ancestors=jnp.where(better, number, -1)[None],
            ess=jnp.ones((), jnp.float32),
            charged=jnp.sum(candidates.valid, dtype=jnp.int32),
            best_reward=best.reward,
            path_time=best.t[None],
            path_reward=best.reward[None],
        )

    def _first(self, state: LiDARState, at: Schedule) -> jax.Array:
        """Number of the first row: trajectories are counted on behind drafts."""
        return jnp.where(at.drafting, 0, self.drafts(state.nfe))

    def done(self, state: LiDARState) -> jax.Array:
        return (state.slot >= self.max_rounds) | self.meets(state.best, state.target)

    def best(self, state: LiDARState) -> Particle:
        return state.best

    def path(self, state: LiDARState) -> Particle:
        return jax.tree.map(lambda a: a[None], state.best)

    def lines(self, state: LiDARState, info: Info) -> Lines:
        """Finished drafts and trajectories, a line each."""
        at = self._at(state.slot - 1)
        rows = jnp.arange(self.n_candidates, dtype=jnp.int32)
        ended = at.ends & self._in_use(state, at)
        number = jnp.where(ended, self._first(state, at) + rows, -1)
        return Lines(number, jnp.full_like(rows, -1), state.particles)


_DRAFT_STEPS = 4


def lidar(
    *,
    nfe: int,
    kernel: Kernel | Multistep,
    grid: Any,
    trajectories: int = 2,
    draft_steps: int | None = None,
    temperature: float = 0.1,
    scale: float = 1.0,
    pull_until: float = 0.2,
) -> LiDAR:
    """LiDAR: drafts, then trajectories pulled towards those of high reward.

    Rewards are asked of finished drafts and trajectories alone; the best of all is returned.

    Args:
      nfe: budget in model evaluations. It sets the number of drafts; what is left, less than one
        more takes, is not used.
      kernel: usually `kernels.ode_euler`; guided and stochastic ones work too, and multistep
        solvers, as `kernels.ode_adams`.
      grid: times falling from 1 to 0. Trajectories are evaluated at all but the last.
      trajectories: that are pulled. Each takes as many evaluations as the grid has steps.
      draft_steps: evaluations of a draft, at times of the grid from its first to its last. By
        default 4, but at most half of the grid's.
      temperature: beta > 0, in units of the reward, of the weights exp(reward / beta) of the
        drafts. Best such that rewards of drafts spread over some betas.
      scale: of the pull; 1 is exact as the number of drafts grows, 12.5 is published.
      pull_until: time above which trajectories are pulled, 0 to 1; below, drafts are too far apart
        to say anything.

    Raises:
      ValueError, TypeError: naming the argument.

    Example:
      >>> flow = fs.analytic.gaussian([0.0, 0.0], 1.0).flow()
      >>> reward = lambda images, cond: images[:, 0]  # of a sample: 0, give or take 1
      >>> budget = {"nfe": 40, "kernel": fs.kernels.ode_euler(flow.interpolant)}
      >>> search = fs.search.lidar(grid=fs.grids.uniform(8), trajectories=2, **budget)
      >>> result = fs.run(jax.random.key(1), flow, search, reward)
      >>> bool(result.reward > 0), bool(result.nfe <= 40)
      (True, True)
    """
    times = as_grid("grid", grid)
    check_positive("temperature", temperature)
    check_non_negative("scale", scale)
    if not 0.0 <= pull_until < 1.0:
        raise ValueError(f"pull_until must be a time from 0 and below 1, got {pull_until}")
    last = len(times) - 2
    few = min(_DRAFT_STEPS, max((last + 1) // 2, 1)) if draft_steps is None else draft_steps
    behind = check_count("draft_steps", few, most=last + 1) - 1
    check_without_moves(kernel, "means that are not pulled would move it")
    moves, solver = kernel_and_solver(kernel)
    return LiDAR(
        nfe=check_count("nfe", nfe),
        kernel=moves,
        solver=solver,
        grid=times,
        draft=(0, *(as_steps(behind, times, "draft_steps") or ())) if behind else (0,),
        trajectories=check_count("trajectories", trajectories),
        temperature=float(temperature),
        scale=float(scale),
        pull_until=float(pull_until),
    )
