"""The policy of `halving`: which drafts and trajectories go on, and what they are charged."""

import bisect
import dataclasses
from fractions import Fraction
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._checks import MOST
from flowsde.kernels import Before
from flowsde.search.drafts import price
from flowsde.search.grid import (
    fold_in_ids,
    further,
    map_valid,
    to_particles,
    tree_take,
    tree_where,
)
from flowsde.search.protocol import BudgetTooSmall, Candidates, Evaluation, Info, Lines, Particle
from flowsde.search.solver import SolvedSearch


class HalvingState(NamedTuple):
    """State of `SuccessiveHalving`.

    Attributes:
      key, target, nfe: of the run.
      slot: int32, evaluations of each trajectory so far; position in the schedule.
      ids: int32 [N], numbers of the drafts. Those that go on are the first rows, in their order.
      particles: as last evaluated, [N].
      kept: where the drafts are resumed, [N]; None if that is at their end.
      best: the answer so far.
      before, kept_before: what the last step left of `particles` and `kept`, by a solver; what
        drafts of another flow left is not kept.
    """

    key: jax.Array
    target: jax.Array
    nfe: jax.Array
    slot: jax.Array
    ids: jax.Array
    particles: Particle
    kept: Particle | None
    best: Particle
    before: Before | None = None
    kept_before: Before | None = None


class Schedule(NamedTuple):
    """What is evaluated in each slot, NumPy int32 and bool [slots].

    Attributes:
      step: position in the grid.
      leg: 0 for drafts, then one more after each rung.
      keeps: whether drafts are resumed from here.
      resumes: whether what is evaluated comes from where they are.
      ends: whether a leg ends, and rewards are wanted.
      moves: whether something comes from what is evaluated.
    """

    step: Any
    leg: Any
    keeps: Any
    resumes: Any
    ends: Any
    moves: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuccessiveHalving(SolvedSearch):
    """See `halving`.

    Attributes:
      factor: one of so many goes on at a rung.
      draft: positions in the grid at which drafts are evaluated, rising from 0.
      resumed: that of them from which drafts go on.
      rungs: positions below it at which trajectories compete, but for the last.
      draft_cost: of an evaluation of the draft flow, in those of the flow; None for drafts of the
        flow itself.
    """

    charges_moves: ClassVar[bool] = True

    factor: int
    draft: tuple[int, ...]
    resumed: int
    rungs: tuple[int, ...] = ()
    draft_cost: Fraction | None = None

    def __post_init__(self) -> None:
        least = self._cost(1)
        if self.nfe < least:
            raise BudgetTooSmall(
                f"nfe = {self.nfe} is less than one draft and its continuation, which take "
                f"{least} evaluations",
                least,
            )

    @cached_property
    def _legs(self) -> tuple[tuple[int, ...], ...]:
        """Positions in the grid that are evaluated from one rung to the next."""
        # Of another flow's drafts, the state that is resumed is evaluated anew.
        known = self.resumed if self.draft_cost is None else self.resumed - 1
        ends = [known, *self.rungs, self.steps - 1]
        rest = [tuple(range(a + 1, b + 1)) for a, b in pairwise(ends)]
        return self.draft, *(leg for leg in rest if leg)

    @property
    def _lengths(self) -> list[int]:
        """Evaluations of each leg."""
        each = self.costs(np.zeros(self.steps, bool))
        return [int(each[list(leg)].sum()) for leg in self._legs]

    @cached_property
    def schedule(self) -> Schedule:
        """Slots of all legs."""
        step = np.asarray([step for leg in self._legs for step in leg], np.int32)
        leg = np.repeat(np.arange(len(self._legs), dtype=np.int32), list(map(len, self._legs)))
        ends = np.append(np.diff(leg) > 0, True)
        keeps = (leg == 0) & (step == self.resumed)
        resumes = np.arange(step.size) == len(self.draft)
        moves = (keeps | ~ends | (leg > 0)) & (np.arange(step.size) < step.size - 1)
        return Schedule(step, leg, keeps, resumes, ends, moves)

    def _shares(self, drafts: Any) -> list[Any]:
        """Trajectories in each leg: one in `factor` goes on, rounded up."""
        return [-(-drafts // min(self.factor**r, MOST)) for r in range(len(self._legs))]

    def _price(self, evaluations: Any) -> Any:
        """What so many evaluations of drafts are charged as."""
        return evaluations if self.draft_cost is None else price(evaluations, self.draft_cost)

    def _cost(self, drafts: Any) -> Any:
        """Evaluations of so many drafts and their continuations."""
        first, *others = zip(self._shares(drafts), self._lengths, strict=True)
        return self._price(first[0] * first[1]) + sum(n * length for n, length in others)

    @cached_property
    def drafts(self) -> int:
        """N, that the whole budget pays for."""
        most = self.nfe if self.draft_cost is None else min(self.nfe // self.draft_cost, MOST)
        possible = range(most // len(self.draft) + 1)
        return bisect.bisect_right(possible, self.nfe, key=self._cost) - 1

    def trajectories(self, nfe: jax.Array) -> jax.Array:
        """int32 [legs]: how many there are in each leg.

        As many drafts as the budget pays for with their continuations; what is left goes to more of
        the last leg.
        """
        drafts = jnp.zeros((), jnp.int32)
        # Bit by bit, the highest first: costs of no more than `self.drafts` fit into int32.
        for bit in reversed(range(self.drafts.bit_length())):
            more = drafts + (1 << bit)
            fits = self._cost(jnp.minimum(more, self.drafts)) <= nfe
            drafts = jnp.where(fits & (more <= self.drafts), more, drafts)
        shares, left = self._shares(drafts), nfe - self._cost(drafts)
        if len(shares) > 1:
            shares[-1] += jnp.minimum(left // self._lengths[-1], shares[-2] - shares[-1])
        return jnp.stack(shares)

    @property
    def n_candidates(self) -> int:
        return self.drafts

    @property
    def max_rounds(self) -> int:
        return len(self.schedule.step)

    @property
    def path_name(self) -> str:
        return "draft"

    def init(self, key, shape, target_reward, nfe) -> HalvingState:
        n = self.n_candidates
        resumed_later = self.resumed != self.draft[-1]
        anew = self.draft_cost is not None
        return HalvingState(
            key=key,
            target=target_reward,
            nfe=nfe,
            slot=jnp.zeros((), jnp.int32),
            ids=jnp.arange(n, dtype=jnp.int32),
            particles=self.empty(n, shape),
            kept=self.empty(n, shape) if resumed_later else None,
            best=self.empty(None, shape),
            before=self.nothing_before(n, shape),
            kept_before=self.nothing_before(n, shape) if resumed_later and not anew else None,
        )

    def _at(self, slot: jax.Array) -> Schedule:
        """The schedule's row of a slot, the last one's when done."""
        slot = jnp.minimum(slot, self.max_rounds - 1)
        return Schedule(*(jnp.asarray(rows)[slot] for rows in self.schedule))

    def ask(self, state: HalvingState) -> tuple[HalvingState, Candidates]:
        at, n = self._at(state.slot), self.n_candidates
        rows = jnp.arange(n, dtype=jnp.int32)
        valid = (rows < self.trajectories(state.nfe)[at.leg]) & ~self.done(state)
        keys = jax.vmap(partial(fold_in_ids, state.key), (0, None))(state.ids, state.slot)

        def extend(key: jax.Array, row: jax.Array) -> tuple[Any, Before | None]:
            parent, before = tree_take((state.particles, state.before), row)
            if state.kept is not None and self.draft_cost is None:
                kept = tree_take((state.kept, state.kept_before), row)
                parent, before = tree_where(at.resumes, kept, (parent, before))
            x, now = self.solved(self.extend(key, parent, at.step), parent, before, at.step)
            if self.draft_cost is None:
                return x, now
            # To be evaluated by the flow, which has made no step yet.
            there = parent.x if state.kept is None else state.kept.x[row]
            begun = None if self.solver is None else self.solver.start(there)
            return tree_where(at.resumes, (there, begun), (x, now))

        x, before = map_valid(extend, valid, keys, rows)
        return state._replace(before=before), Candidates(
            x=x,
            t=jnp.full(n, jnp.asarray(self.grid, jnp.float32)[at.step]),
            wants_reward=jnp.full(n, at.ends),
            wants_gradient=jnp.full(n, at.moves & self.uses_gradient),
            valid=valid,
            draft=None if self.draft_cost is None else jnp.full(n, at.leg == 0),
        )

    def tell(
        self, state: HalvingState, candidates: Candidates, evals: Evaluation
    ) -> tuple[HalvingState, Info]:
        at, active, n = self._at(state.slot), ~self.done(state), self.n_candidates
        particles = to_particles(candidates, evals)
        here, kept = (particles, state.before), (state.kept, state.kept_before)
        if state.kept is not None:
            left = here if self.draft_cost is None else (particles, None)
            kept = tree_where(jnp.full(n, active & at.keeps), left, kept)

        row = jnp.argmax(particles.reward).astype(jnp.int32)
        winner = tree_take(particles, row)
        better = active & further(winner, state.best, at.ends)
        if self.draft_cost is not None:
            better &= at.leg > 0
        best = tree_where(better, winner, state.best)

        # Highest reward first; padding last, also behind what has no reward.
        order = jnp.lexsort((-particles.reward, ~candidates.valid))
        rows = jnp.arange(n, dtype=jnp.int32)
        rank = jnp.zeros(n, jnp.int32).at[order].set(rows)
        # Behind the last leg, where none goes on, nothing moves.
        goes_on = rank < jnp.append(self.trajectories(state.nfe)[1:], n)[at.leg]
        decided = active & at.ends
        place = jnp.where(decided, jnp.argsort(~goes_on).astype(jnp.int32), rows)
        ids, survivors, kept = tree_take((state.ids, here, kept), place)
        slot = state.slot + active.astype(jnp.int32)
        new = HalvingState(
            state.key, state.target, state.nfe, slot, ids, survivors[0], kept[0], best,
            before=survivors[1], kept_before=kept[1],
        )  # fmt: skip
        is_last = at.leg == len(self._legs) - 1
        return new, Info(
            time=candidates.t,
            reward=particles.reward,
            counted=candidates.valid,
            accepted=decided & jnp.where(is_last, better & (rows == row), goes_on),
            ancestors=jnp.where(better, state.ids[row], -1)[None],
            ess=jnp.ones((), jnp.float32),
            charged=self._charged(at, state.slot, jnp.sum(candidates.valid, dtype=jnp.int32)),
            best_reward=best.reward,
            path_time=best.t[None],
            path_reward=best.reward[None],
        )

    def _charged(self, at: Schedule, slot: jax.Array, n: jax.Array) -> jax.Array:
        """What n candidates in a slot are charged; `at` is its row of the schedule."""
        each = jnp.where(at.step > 0, 1 + self.kernel.inner_evaluations, 1).astype(jnp.int32)
        if self.draft_cost is None:
            return each * n
        # Of another flow's drafts all are rounded up together, as many in each slot.
        drafts = self._price(n * (slot + 1)) - self._price(n * slot)
        return jnp.where(at.leg == 0, drafts, each * n)

    def done(self, state: HalvingState) -> jax.Array:
        return (state.slot >= self.max_rounds) | self.meets(state.best, state.target)

    def best(self, state: HalvingState) -> Particle:
        return state.best

    def path(self, state: HalvingState) -> Particle:
        return jax.tree.map(lambda a: a[None], state.best)

    def lines(self, state: HalvingState, info: Info) -> Lines:
        """What has come to a rung or to the end; what was there before continues its own line."""
        at = self._at(state.slot - 1)
        rows = jnp.arange(self.n_candidates, dtype=jnp.int32)
        here = at.ends & (rows < self.trajectories(state.nfe)[at.leg])
        parent = jnp.where(here & (at.leg > 0), state.ids, -1)
        return Lines(jnp.where(here, state.ids, -1), parent, state.particles)
