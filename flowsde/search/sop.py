"""Search over Paths (Ma et al., 2025, arXiv 2501.09732): noise forwards, ODE back, keep the best.

N particles follow the kernel from noise down to the grid's time number `start`. Then, round after
round, each gets K children: noise is added by the forward process for `forward` steps of the grid,
and the kernel brings the child back by `backward` > `forward` steps. The N children of the highest
rewards go on, until the last time is reached. Children differ by the noise added, so an ODE kernel
is the usual one.
"""

import dataclasses
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._checks import check_count
from flowsde.grids import as_grid
from flowsde.kernels import Kernel, renoise
from flowsde.kernels.base import standard_normal
from flowsde.search.complete import Finish, finished
from flowsde.search.grid import (
    GridSearch,
    affordable,
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
from flowsde.search.value import Value, as_value


class SoPState(NamedTuple):
    """State of `SoP`.

    Attributes:
      key, target, nfe: of the run.
      slot: int32, evaluations of each particle so far; position in `SoP.schedule`.
      parents: the N particles kept, [N].
      children: on their way, [K N].
      champion: the best of the last round that had one.
    """

    key: jax.Array
    target: jax.Array
    nfe: jax.Array
    slot: jax.Array
    parents: Particle
    children: Particle
    champion: Particle


class Schedule(NamedTuple):
    """What is evaluated in each slot, NumPy int32 and bool [slots].

    Attributes:
      step: position in the grid.
      round: 0 on the way down from noise, then 1 and up.
      noised: whether they come from their parents by the forward process.
      ends: whether a round ends, and the best are kept.
    """

    step: Any
    round: Any
    noised: Any
    ends: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoP(GridSearch):
    """See `sop`; without finishing."""

    charges_moves: ClassVar[bool] = True
    renoises: ClassVar[bool] = True

    paths: int
    start: int
    forward: int
    backward: int

    def __post_init__(self) -> None:
        if not 1 <= self.forward <= self.start:
            raise ValueError(
                f"forward must lie in 1 to start = {self.start}, the steps above it, "
                f"got {self.forward}"
            )
        if self.backward <= self.forward:
            raise ValueError(
                f"backward must be more steps than forward = {self.forward}, got {self.backward}"
            )
        if self.start >= self.steps - 1:
            raise ValueError(
                f"start must be below the last evaluated time, number {self.steps - 1} of the "
                f"grid, got {self.start}"
            )
        least = self.paths * sum(self._costs)
        if self.nfe < least:
            raise BudgetTooSmall(
                f"nfe leaves {self.nfe} evaluations for the search, expected at least {least}: "
                f"{self.paths} paths of one child in each of {len(self._lengths)} rounds",
                least,
            )

    @property
    def _arrivals(self) -> list[int]:
        """Position in the grid that each round ends at."""
        net, last = self.backward - self.forward, self.steps - 1
        return [min(i, last) for i in range(self.start + net, last + net, net)]

    @property
    def _lengths(self) -> list[int]:
        """Evaluations that a child takes in each round: at both ends and in between."""
        begins = [self.start, *self._arrivals[:-1]]
        return [
            there - here + self.forward + 1
            for here, there in zip(begins, self._arrivals, strict=True)
        ]

    @cached_property
    def slot_costs(self) -> np.ndarray:
        """Evaluations of a particle in each slot, int32 [slots]."""
        at, every = self.schedule, np.ones(self.steps, bool)
        looks = at.ends & (at.round > 0)
        costs = np.where(looks, self.costs(every)[at.step], self.costs(~every)[at.step])
        return np.where(at.noised, 1, costs).astype(np.int32)

    @property
    def _costs(self) -> list[int]:
        """Evaluations on the way down from noise, then of a child in each round."""
        return [int(n) for n in np.bincount(self.schedule.round, self.slot_costs)]

    def children(self, nfe: Any) -> Any:
        """int32 [rounds]: children in each, K N or one more.

        They cost nfe, less what is left over by `affordable`.
        """
        down, *costs = self._costs
        return affordable(nfe - self.paths * down, costs)

    @cached_property
    def schedule(self) -> Schedule:
        """Slots of all rounds."""
        starts = [0, *(end - n + 1 for end, n in zip(self._arrivals, self._lengths, strict=True))]
        lengths = [self.start + 1, *self._lengths]
        round = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        within = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
        return Schedule(
            step=np.asarray(starts, np.int32)[round] + within,
            round=round,
            noised=(within == 0) & (round > 0),
            ends=within == np.asarray(lengths)[round] - 1,
        )

    @property
    def n_candidates(self) -> int:
        """Most particles in a slot."""
        return max(self.paths, int(self.children(np.int32(self.nfe)).max()))

    @property
    def max_rounds(self) -> int:
        return len(self.schedule.step)

    def init(self, key, shape, target_reward, nfe) -> SoPState:
        return SoPState(
            key=key,
            target=target_reward,
            nfe=nfe,
            slot=jnp.zeros((), jnp.int32),
            parents=self.empty(self.paths, shape),
            children=self.empty(self.n_candidates, shape),
            champion=self.empty(None, shape),
        )

    def _at(self, slot: jax.Array) -> Schedule:
        """The schedule's row of a slot, the last one's when done."""
        slot = jnp.minimum(slot, self.max_rounds - 1)
        return Schedule(*(jnp.asarray(rows)[slot] for rows in self.schedule))

    def ask(self, state: SoPState) -> tuple[SoPState, Candidates]:
        at, n = self._at(state.slot), self.n_candidates
        t = jnp.asarray(self.grid, jnp.float32)[at.step]
        n_now = jnp.append(jnp.int32(self.paths), self.children(state.nfe))[at.round]
        forward = renoise(self.interpolant)

        number = jnp.arange(n, dtype=jnp.int32)
        valid = (number < n_now) & ~self.done(state)
        keys = jax.vmap(partial(fold_in_ids, state.key), (0, None))(number, state.slot)

        def extend(key: jax.Array, number: jax.Array) -> jax.Array:
            parent = tree_take(state.parents, number % self.paths)
            child = tree_take(state.children, number)
            noise = standard_normal(key, parent.x.shape)
            mean, std = forward.moments(parent.x, parent.x0, parent.x1, parent.t, t)
            noised = self.arrived(mean + std * noise, t)
            return jax.tree.map(
                partial(jnp.where, at.noised), noised, self.move(noise, child, at.step)
            )

        return state, Candidates(
            x=map_valid(extend, valid, keys, number),
            t=jnp.full(n, t),
            wants_reward=jnp.full(n, self._verifies(state.slot)),
            wants_gradient=jnp.full(n, ~at.ends & self.uses_gradient),
            valid=valid,
            key=self.keys_ahead(keys),
        )

    def _verifies(self, slot: jax.Array) -> jax.Array:
        """Whether rewards are wanted in a slot; the first N are kept whatever they are worth."""
        return self._at(slot).ends & (slot > self.start)

    def tell(
        self, state: SoPState, candidates: Candidates, evals: Evaluation
    ) -> tuple[SoPState, Info]:
        at, active = self._at(state.slot), ~self.done(state)
        children = to_particles(candidates, evals)
        # Highest reward first; padding last, also behind what has no reward.
        order = jnp.lexsort((-children.reward, ~candidates.valid)).astype(jnp.int32)
        kept = order[: self.paths]
        decided = active & at.ends
        selected = tree_take(children, kept)
        parents = tree_where(jnp.full(self.paths, decided), selected, state.parents)
        winner = self.as_answer(tree_take(children, kept[0]))
        better = decided & ((winner.reward > -jnp.inf) | (state.champion.reward == -jnp.inf))
        new = state._replace(
            slot=state.slot + active.astype(jnp.int32),
            parents=parents,
            children=children,
            champion=tree_where(better, winner, state.champion),
        )
        cost = jnp.asarray(self.slot_costs)[jnp.minimum(state.slot, self.max_rounds - 1)]
        survives = jnp.zeros(self.n_candidates, jnp.bool).at[kept].set(True)
        return new, Info(
            time=candidates.t,
            reward=children.reward,
            counted=candidates.valid,
            accepted=decided & survives,
            ancestors=jnp.where(decided, kept, -1),
            ess=jnp.full((), self.paths, jnp.float32),
            charged=cost * jnp.sum(candidates.valid, dtype=jnp.int32),
            best_reward=new.champion.reward,
            path_time=parents.t,
            path_reward=parents.reward,
        )

    def done(self, state: SoPState) -> jax.Array:
        return (state.slot >= self.max_rounds) | self.meets(state.champion, state.target)

    def best(self, state: SoPState) -> Particle:
        return state.champion

    def path(self, state: SoPState) -> Particle:
        return state.parents

    def lines(self, state: SoPState, info: Info) -> Lines:
        """Paths cross: child j is of path j modulo their number."""
        return super().lines(state, info)._replace(parent=info.ancestors % self.paths)


def sop(
    *,
    nfe: int,
    kernel: Kernel,
    grid: Any,
    paths: int = 2,
    start: int = 2,
    forward: int = 2,
    backward: int = 4,
    value: Value = "mean",
    value_steps: int = 4,
    value_samples: int = 4,
    finish: Finish = "complete",
    finish_steps: int | None = None,
) -> Search:
    """Search over Paths.

    Args:
      nfe: budget in model evaluations, finishing included; a hard cap. It sets the number of
        children, K to each path.
      kernel: usually `kernels.ode_euler`; guided and stochastic ones work too.
      grid: times falling from 1 to 0. Particles are evaluated at all but the last.
      paths: particles kept, N.
      start: position in the grid down to which the N particles are sampled first.
      forward: steps of the grid for which noise is added.
      backward: steps back down, more than `forward`; a child takes one evaluation more than these.
      value: of a child before the last time: the reward of its posterior mean, of the end of an
        ODE from there ("ode"), or the mean reward of samples from there ("samples").
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
      >>> search = fs.search.sop(grid=fs.grids.uniform(8), paths=2, **budget)
      >>> result = fs.run(jax.random.key(1), flow, search, reward)
      >>> bool(result.reward > 0), bool(result.nfe <= 40)
      (True, True)
    """
    times = as_grid("grid", grid)
    return finished(
        SoP,
        nfe,
        finish,
        finish_steps,
        kernel=kernel,
        grid=times,
        value=as_value(value, value_steps, value_samples, times),
        paths=check_count("paths", paths),
        start=check_count("start", start),
        forward=check_count("forward", forward),
        backward=check_count("backward", backward),
    )
