"""Local search over noise: draw around the best noise so far, keep what its result is worth.

A stage is a stretch of the grid, of which the noise of its first step is searched. A round draws N
noises, each is followed by the kernel to the stage's end, and the best of all rounds so far is the
pivot. Draws of later rounds are fresh with probability epsilon, or neighbours of the pivot's noise
z,

    sqrt(1 - lambda^2) z + lambda eps,    eps ~ N(0, I),

standard normal if z is. (z + lambda eps is not: it raises the noise level, round by round.) What
follows the stage goes on from the pivot. A given noise is the first pivot: the first draw of the
first stage is that noise, and the others of its round are neighbours of it.

`zero_order` has one stage, the whole grid; in `epsilon_greedy` every step is one.
"""

import dataclasses
import math
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde.kernels import Before
from flowsde.kernels.base import standard_normal
from flowsde.search.grid import (
    affordable,
    check_stochastic,
    fold_in_ids,
    further,
    map_valid,
    to_particles,
    tree_take,
    tree_where,
)
from flowsde.search.protocol import BudgetTooSmall, Candidates, Evaluation, Info, Particle
from flowsde.search.solver import SolvedSearch

_FRESH = np.iinfo(np.int32).max - 2
"""What the key of a draw is folded with to decide whether it is fresh."""


class NoiseState(NamedTuple):
    """State of `NoiseSearch`.

    Attributes:
      key, target, nfe: of the run.
      stage: int32, `len(NoiseSearch.starts)` when done.
      step: int32, position in the grid of the next candidates.
      drawn: int32, draws of the stage that have come to its end.
      parent: that the stage begins from.
      children: on their way through the stage, [N]; None if stages are one step each.
      pivot: the stage's best so far.
      pivot_draw: int32, its number among the stage's draws; -1 for a given noise, before there are
        any.
      noise: the pivot's, float32 [*shape].
      champion: the best of the last time that had one with a reward.
      before: what the last step of `children` left, of a solver.
    """

    key: jax.Array
    target: jax.Array
    nfe: jax.Array
    stage: jax.Array
    step: jax.Array
    drawn: jax.Array
    parent: Particle
    children: Particle | None
    pivot: Particle
    pivot_draw: jax.Array
    noise: jax.Array
    champion: Particle
    before: Before | None = None


class Stages(NamedTuple):
    """Where stages begin and end, NumPy int32 and bool [stages].

    Attributes:
      first, last: positions in the grid.
      cost: evaluations of a draw.
      several: whether there are several draws; else there is one.
    """

    first: Any
    last: Any
    cost: Any
    several: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseSearch(SolvedSearch):
    """See `zero_order` and `epsilon_greedy`; without finishing.

    Attributes:
      neighbours: draws of a round, N.
      perturbation: lambda.
      epsilons: of each position in the grid that is evaluated.
      starts: positions at which stages begin, rising from 0.
      branch_at: those of them with several draws.
    """

    charges_moves: ClassVar[bool] = True
    renoises: ClassVar[bool] = True

    neighbours: int
    perturbation: float
    epsilons: tuple[float, ...]
    starts: tuple[int, ...]
    branch_at: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 0.0 < self.perturbation <= 1.0:
            raise ValueError(
                f"perturbation must be a share of the noise above 0 and up to 1, "
                f"got {self.perturbation}"
            )
        least = int(self.stages.cost.sum())
        if self.nfe < least:
            raise BudgetTooSmall(
                f"nfe leaves {self.nfe} evaluations for the search, expected at least {least}: "
                f"one draw of each of {self.steps} steps",
                least,
            )
        if self.branch_at != (0,) and self.n_candidates > 1:
            check_stochastic(self.kernel, self.grid, "all draws of a step are the same")

    @cached_property
    def stages(self) -> Stages:
        first = np.asarray(self.starts, np.int32)
        last = np.append(first[1:], np.int32(self.steps)) - np.int32(1)
        upto = np.append(0, np.cumsum(self.costs(self.verified)))
        cost = (upto[last + 1] - upto[first]).astype(np.int32)
        return Stages(first, last, cost, np.isin(first, self.branch_at))

    @cached_property
    def verified(self) -> np.ndarray:
        """bool [steps], where rewards are wanted."""
        ends = np.append(self.starts[1:], self.steps) - 1
        chosen = ends[np.isin(self.starts, self.branch_at)]
        return np.isin(np.arange(self.steps), [*chosen, self.steps - 1])

    def draws(self, nfe: Any) -> Any:
        """int32 [stages]: draws of each.

        They cost nfe, less what is left over by `affordable`.
        """
        several, cost = self.stages.several, self.stages.cost
        place = np.maximum(np.cumsum(several) - 1, 0)
        draws = affordable(nfe - int(cost[~several].sum()), cost[several])[place]
        more = several.astype(np.int32)
        return draws * more + (1 - more)

    @property
    def n_candidates(self) -> int:
        return min(self.neighbours, int(self.draws(np.int32(self.nfe)).max()))

    @property
    def max_rounds(self) -> int:
        # Of a smaller budget, what is left over may be one draw more of the last stage.
        rounds = -(-(self.draws(np.int32(self.nfe)).astype(np.int64) + 1) // self.n_candidates)
        return int((rounds * (self.stages.last - self.stages.first + 1)).sum())

    @property
    def path_name(self) -> str:
        return "chain"

    def init(self, key, shape, target_reward, nfe) -> NoiseState:
        zero, long = jnp.zeros((), jnp.int32), len(self.starts) < self.steps
        return NoiseState(
            key=key,
            target=target_reward,
            nfe=nfe,
            stage=zero,
            step=zero,
            drawn=zero,
            parent=self.empty(None, shape),
            children=self.empty(self.n_candidates, shape) if long else None,
            pivot=self.empty(None, shape),
            pivot_draw=zero,
            noise=jnp.zeros(shape, jnp.float32),
            champion=self.empty(None, shape),
            before=self.nothing_before(self.n_candidates, shape),
        )

    def _at(self, stage: jax.Array) -> Stages:
        """The row of a stage, the last one's when done."""
        stage = jnp.minimum(stage, len(self.starts) - 1)
        return Stages(*(jnp.asarray(rows)[stage] for rows in self.stages))

    def _draw(self, state: NoiseState, step: jax.Array, number: jax.Array) -> jax.Array:
        """The noise of a draw, at a step of its way."""
        key = fold_in_ids(state.key, jnp.zeros((), jnp.int32), step, number)
        eps = standard_normal(key, state.noise.shape)
        kept = math.sqrt(1.0 - self.perturbation**2)
        near = kept * state.noise + jnp.float32(self.perturbation) * eps
        coin = jax.random.uniform(jax.random.fold_in(key, _FRESH), (), jnp.float32)
        fresh = coin < jnp.asarray(self.epsilons, jnp.float32)[step]
        around_given, begins = state.pivot_draw < 0, step == self._at(state.stage).first
        fresh = jnp.where(number < self.neighbours, ~around_given, fresh) | ~begins
        near = jnp.where(around_given & (number == 0), state.noise, near)
        return jnp.where(fresh, eps, near)

    def ask(self, state: NoiseState) -> tuple[NoiseState, Candidates]:
        given = self.given
        if given is not None and given.noise is not None:
            # The first pivot, and not what every draw begins with.
            first = (state.stage == 0) & (state.drawn == 0)
            around = state._replace(
                noise=jnp.where(first, given.noise, state.noise),
                pivot_draw=jnp.where(first, -1, state.pivot_draw),
            )
            return self.replace(given=given._replace(noise=None)).ask(around)
        n, begins = self.n_candidates, state.step == self._at(state.stage).first
        step, rows = jnp.minimum(state.step, self.steps - 1), jnp.arange(n, dtype=jnp.int32)
        numbers = state.drawn + rows
        most = self.draws(state.nfe)[jnp.minimum(state.stage, len(self.starts) - 1)]
        valid = (numbers < most) & ~self.done(state)
        zero = jnp.zeros((), jnp.int32)
        keys = jax.vmap(partial(fold_in_ids, state.key, zero, step))(numbers)

        def extend(row: jax.Array) -> tuple[Any, Before | None]:
            origin, before = state.parent, tree_take(state.before, row)
            if state.children is not None:
                origin = tree_where(begins, origin, tree_take(state.children, row))
            x = self.move(self._draw(state, step, state.drawn + row), origin, step)
            return self.solved(x, origin, before, step)

        x, before = map_valid(extend, valid, rows)
        return state._replace(before=before), Candidates(
            x=x,
            t=jnp.full(n, jnp.asarray(self.grid, jnp.float32)[step]),
            wants_reward=jnp.full(n, jnp.asarray(self.verified)[step]),
            wants_gradient=jnp.full(n, self.wants_gradient(step)),
            valid=valid,
            key=self.keys_ahead(keys),
        )

    def tell(
        self, state: NoiseState, candidates: Candidates, evals: Evaluation
    ) -> tuple[NoiseState, Info]:
        at, active = self._at(state.stage), ~self.done(state)
        step = jnp.minimum(state.step, self.steps - 1)
        children = to_particles(candidates, evals)
        ends = active & (step == at.last)
        row = jnp.argmax(children.reward).astype(jnp.int32)
        winner, number = tree_take(children, row), state.drawn + row
        # Of equals the first stays; where none has a reward, that is the first draw.
        better = ends & ((state.drawn == 0) | (winner.reward > state.pivot.reward))
        pivot = tree_where(better, winner, state.pivot)
        pivot_draw = jnp.where(better, number, state.pivot_draw)
        answer = self.as_answer(winner)
        crowned = ends & further(answer, state.champion)
        champion = tree_where(crowned, answer, state.champion)

        valid = jnp.sum(candidates.valid, dtype=jnp.int32)
        drawn = state.drawn + valid * ends.astype(jnp.int32)
        stage = jnp.minimum(state.stage, len(self.starts) - 1)
        over = ends & ((drawn >= self.draws(state.nfe)[stage]) | self.meets(champion, state.target))
        # A single stage goes on from nothing but its pivots.
        decided = better if len(self.starts) == 1 else over
        stage = state.stage + over.astype(jnp.int32)
        # The noise is drawn again, rather than kept of all candidates.
        noise = self._draw(state, at.first, number)
        new = state._replace(
            stage=stage,
            step=jnp.where(ends, self._at(stage).first, state.step + active.astype(jnp.int32)),
            drawn=jnp.where(over, 0, drawn),
            parent=tree_where(decided, pivot, state.parent),
            children=None if state.children is None else children,
            pivot=pivot,
            pivot_draw=pivot_draw,
            noise=jnp.where(better, noise, state.noise),
            champion=champion,
        )
        rows = jnp.arange(self.n_candidates, dtype=jnp.int32)
        return new, Info(
            time=candidates.t,
            reward=children.reward,
            counted=candidates.valid,
            accepted=decided & (state.drawn + rows == pivot_draw),
            ancestors=jnp.where(decided, pivot_draw, -1)[None],
            ess=jnp.ones((), jnp.float32),
            charged=jnp.asarray(self.costs(self.verified))[step] * valid,
            best_reward=champion.reward,
            path_time=new.parent.t[None],
            path_reward=new.parent.reward[None],
        )

    def done(self, state: NoiseState) -> jax.Array:
        return (state.stage >= len(self.starts)) | self.meets(state.champion, state.target)

    def best(self, state: NoiseState) -> Particle:
        return state.champion

    def path(self, state: NoiseState) -> Particle:
        return jax.tree.map(lambda a: a[None], state.parent)
