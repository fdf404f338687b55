"""Evolution of finished pictures: noise a good one part of the way, bring it back, keep the better.

The first generation are samples of the kernel, from noise down the whole grid. The children of the
following ones begin at a time between: noise is added to a parent by the forward process up to
there, and the kernel brings the child back. So a child costs part of a sample, shares its parent's
layout, and is a sample of the model too: parents are, and the forward process keeps the marginal.
Of parents and children the best go on, as in a (mu + lambda) evolution strategy. Rewards are asked
of finished pictures alone.

The time between may fall from generation to generation, so that layouts are searched first and
details last. What the first generation leaves of the budget is then shared out evenly among the
times of the grid from the one to the other, and a generation begins at the time whose share it is:
a later one, whose children cost less, has more of them.

EvoSearch (He et al., 2025, arXiv 2505.17618) is the same idea. It mutates the states that a
population has passed, at times that fall from generation to generation, by adding noise without
taking any away, which leaves the marginal; the mutation here is that of SDEdit (Meng et al., 2021,
arXiv 2108.01073).
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from flowsde._checks import check_count
from flowsde.grids import as_grid
from flowsde.kernels import Kernel, renoise
from flowsde.kernels.base import standard_normal
from flowsde.search.branching import as_position
from flowsde.search.grid import (
    GridSearch,
    check_kernel,
    fold_in_ids,
    map_valid,
    to_particles,
    tree_take,
    tree_where,
)
from flowsde.search.protocol import BudgetTooSmall, Candidates, Evaluation, Info, Lines, Particle


class EvolutionState(NamedTuple):
    """State of `Evolution`.

    Attributes:
      key, target, nfe: of the run.
      left: int32, evaluations for the generation under way and the next; 0 after the last.
      generation: int32, those that have ended.
      step: int32, position in the grid at which children are evaluated next.
      children: on their way, or those of the generation that has just ended, [lambda].
      mothers: int32 [lambda], the draws that they come from; -1 for none.
      parents: the best finished pictures, the highest reward first, [mu].
      draws: int32 [mu], their numbers among all that were drawn; -1 before there are any.
    """

    key: jax.Array
    target: jax.Array
    nfe: jax.Array
    left: jax.Array
    generation: jax.Array
    step: jax.Array
    children: Particle
    mothers: jax.Array
    parents: Particle
    draws: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evolution(GridSearch):
    """See `evolution`.

    Attributes:
      start: position in the grid at which children begin.
      until: to which that rises; None for `start`.
    """

    charges_moves: ClassVar[bool] = True
    renoises: ClassVar[bool] = True

    children: int
    parents: int
    start: int
    until: int | None = None

    def __post_init__(self) -> None:
        if self.parents > self.children:
            raise ValueError(
                f"parents must be at most children = {self.children}, got {self.parents}"
            )
        if self.nfe < self._sample:
            raise BudgetTooSmall(
                f"nfe = {self.nfe} is less than one sample: the grid takes {self._sample} "
                f"evaluations",
                self._sample,
            )

    def _cost(self, begins: Any) -> Any:
        """Evaluations of a child that begins at a position of the grid."""
        return 1 + (self.steps - 1 - begins) * (1 + self.kernel.inner_evaluations)

    @property
    def _sample(self) -> int:
        return int(self._cost(0))

    @property
    def n_candidates(self) -> int:
        return min(self.children, self.nfe // self._sample)

    @property
    def _whole(self) -> int:
        """Children of a whole generation; one more than there are, if no budget pays for it."""
        return min(self.children, self.nfe // self._sample + 1)

    @property
    def max_rounds(self) -> int:
        """Of whole generations as many as each child has evaluations; then one that is not."""
        rest, most = max(self.nfe - self.children * self._sample, 0), self.steps - self.start
        return self.steps + rest // self.n_candidates + min(rest, most)

    def init(self, key, shape, target_reward, nfe) -> EvolutionState:
        zero = jnp.zeros((), jnp.int32)
        return EvolutionState(
            key=key,
            target=target_reward,
            nfe=nfe,
            left=nfe,
            generation=zero,
            step=zero,
            children=self.empty(self.n_candidates, shape),
            mothers=jnp.full(self.n_candidates, -1, jnp.int32),
            parents=self.empty(self.parents, shape),
            draws=jnp.full(self.parents, -1, jnp.int32),
        )

    def _begins(self, state: EvolutionState) -> jax.Array:
        """Position in the grid at which a generation begins."""
        first = self._whole * self._sample
        times = (self.start if self.until is None else self.until) - self.start + 1
        share = jnp.maximum((state.nfe - first) // times, 1)
        later = jnp.minimum((state.nfe - state.left - first) // share, times - 1)
        return jnp.where(state.generation > 0, self.start + later, 0)

    def _pays_for(self, state: EvolutionState) -> jax.Array:
        """Children of the generation under way that the budget pays for."""
        return jnp.minimum(state.left // self._cost(self._begins(state)), self._whole)

    def _numbers(self, generation: jax.Array) -> jax.Array:
        """Of a generation's children among all draws."""
        return generation * self.n_candidates + jnp.arange(self.n_candidates, dtype=jnp.int32)

    def ask(self, state: EvolutionState) -> tuple[EvolutionState, Candidates]:
        numbers = self._numbers(state.generation)
        rows = jnp.arange(self.n_candidates, dtype=jnp.int32)
        valid = (rows < self._pays_for(state)) & ~self.done(state)
        keys = jax.vmap(partial(fold_in_ids, state.key), (0, None))(numbers, state.step)
        t = jnp.asarray(self.grid, jnp.float32)[state.step]
        born = (state.generation > 0) & (state.step == self._begins(state))
        forward = renoise(self.interpolant)

        def extend(key: jax.Array, row: jax.Array) -> Any:
            parent = tree_take(state.parents, row % self.parents)
            noise = standard_normal(key, parent.x.shape)
            mean, std = forward.moments(parent.x, parent.x0, parent.x1, parent.t, t)
            down = self.move(noise, tree_take(state.children, row), state.step)
            return tree_where(born, self.arrived(mean + std * noise, t), down)

        mothers = jnp.where(born, state.draws[rows % self.parents], state.mothers)
        last = state.step == self.steps - 1
        return state._replace(mothers=mothers), Candidates(
            x=map_valid(extend, valid, keys, rows),
            t=jnp.full(self.n_candidates, t),
            wants_reward=jnp.full(self.n_candidates, last),
            wants_gradient=jnp.full(self.n_candidates, self.wants_gradient(state.step)),
            valid=valid,
        )

    def tell(
        self, state: EvolutionState, candidates: Candidates, evals: Evaluation
    ) -> tuple[EvolutionState, Info]:
        active, numbers = ~self.done(state), self._numbers(state.generation)
        children = to_particles(candidates, evals)
        ended = active & (state.step == self.steps - 1)
        every = jax.tree.map(lambda *a: jnp.concatenate(a), state.parents, children)
        draws = jnp.concatenate([state.draws, numbers])
        # What was there first is kept of equals; a picture without a reward comes before none.
        there = jnp.concatenate([state.draws >= 0, candidates.valid])
        order = jnp.lexsort((-every.reward, ~there))[: self.parents]
        kept = jnp.full(self.parents, ended)
        begins = self._begins(state)
        left = jnp.maximum(state.left - self._whole * self._cost(begins), 0)
        moves = jnp.where(state.step == begins, 0, self.kernel.inner_evaluations).astype(jnp.int32)
        new = state._replace(
            left=jnp.where(ended, left, state.left),
            generation=state.generation + ended.astype(jnp.int32),
            step=state.step + active.astype(jnp.int32),
            children=children,
            parents=tree_where(kept, tree_take(every, order), state.parents),
            draws=jnp.where(kept, draws[order], state.draws),
        )
        new = new._replace(step=jnp.where(ended, self._begins(new), new.step))
        chosen = ended & (order >= self.parents)
        survives = jnp.zeros(draws.shape, jnp.bool).at[order].set(chosen)[self.parents :]
        return new, Info(
            time=candidates.t,
            reward=children.reward,
            counted=candidates.valid,
            accepted=survives,
            ancestors=jnp.where(chosen, draws[order], -1),
            ess=jnp.full((), self.parents, jnp.float32),
            charged=(1 + moves) * jnp.sum(candidates.valid, dtype=jnp.int32),
            best_reward=new.parents.reward[0],
            path_time=new.parents.t,
            path_reward=new.parents.reward,
        )

    def done(self, state: EvolutionState) -> jax.Array:
        return (self._pays_for(state) == 0) | (state.parents.reward[0] >= state.target)

    def best(self, state: EvolutionState) -> Particle:
        return tree_take(state.parents, jnp.zeros((), jnp.int32))

    def path(self, state: EvolutionState) -> Particle:
        return state.parents

    def lines(self, state: EvolutionState, info: Info) -> Lines:
        """Finished pictures, a line each, that continues its parent's."""
        numbers = self._numbers(state.generation - 1)
        told = info.counted & (info.time == jnp.asarray(self.grid, jnp.float32)[-2])
        return Lines(jnp.where(told, numbers, -1), state.mothers, state.children)


def evolution(
    *,
    nfe: int,
    kernel: Kernel,
    grid: Any,
    children: int = 4,
    parents: int = 1,
    mutate_at: float = 0.75,
    mutate_until: float | None = None,
) -> Evolution:
    """Evolution of finished pictures.

    Args:
      nfe: budget in model evaluations; what is left after whole pictures is not used.
      kernel: usually `kernels.ode_euler`; guided and stochastic ones work too, and `kernels.glass`.
      grid: times falling from 1 to 0, few: a sample takes len(grid) - 1 evaluations, and a child
        those from `mutate_at` on.
      children: pictures of a generation.
      parents: the best ones kept, from which children come in turn.
      mutate_at: time up to which a parent is noised; the nearest one of the grid between the first
        and the last that is evaluated. Near 1 a child is hardly like its parent, near 0 hardly
        different.
      mutate_until: time to which that falls over the generations; by default it stays.

    Raises:
      ValueError, TypeError: naming the argument.

    Example:
      >>> flow = fs.analytic.gaussian([0.0, 0.0], 1.0).flow()
      >>> reward = lambda images, cond: images[:, 0]  # of a sample: 0, give or take 1
      >>> budget = {"nfe": 40, "kernel": fs.kernels.ddim(flow.interpolant)}
      >>> search = fs.search.evolution(grid=fs.grids.uniform(8), children=2, **budget)
      >>> result = fs.run(jax.random.key(1), flow, search, reward)
      >>> bool(result.reward > 0), bool(result.nfe <= 40)
      (True, True)
    """
    times = as_grid("grid", grid)
    start, until = as_position(mutate_at, times, "mutate_at"), None
    if mutate_until is not None:
        until = as_position(mutate_until, times, "mutate_until")
        if mutate_until > mutate_at:
            raise ValueError(
                f"mutate_until must be at most mutate_at = {mutate_at}, got {mutate_until}"
            )
    return Evolution(
        nfe=check_count("nfe", nfe),
        kernel=check_kernel(kernel),
        grid=times,
        children=check_count("children", children),
        parents=check_count("parents", parents),
        start=start,
        until=until,
    )
