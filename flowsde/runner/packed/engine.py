"""The loop around the compiled steps: what is under way, what has ended, what was computed."""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde import interrupts
from flowsde.flow import Flow
from flowsde.rewards import HostReward
from flowsde.runner.arguments import Job
from flowsde.runner.chunks import least_of, rows_of, sizes_below
from flowsde.runner.contract import check_bounds
from flowsde.runner.deadline import Watch
from flowsde.runner.drafts import charged
from flowsde.runner.evaluate import decode
from flowsde.runner.mesh import ALONE, EVERYWHERE, Placement, on_every_device
from flowsde.runner.packed.evaluators import Judge, OnDevice, OnHost, Worth
from flowsde.runner.packed.pool import LEAST, Batch, Pool, Prompts, empty
from flowsde.runner.packed.steps import Ended, Report, advance, marked, nothing, standing
from flowsde.runner.packed.widths import waves, widen, width_for
from flowsde.runner.records import Program
from flowsde.runner.result import COUNTERS, DRAFTS, Answers, Result
from flowsde.search.protocol import Search


class Totals(NamedTuple):
    """What the device has computed, of all prompts; in model evaluations but for the first two.

    A row of a batch is a prompt's, or padding. What the rows of prompts that have not finished are
    worth is known when they have: then ``evaluations + draft_nfe == nfe + surplus + padding``.

    Attributes:
      prompts: searches that have finished.
      batches: of at most B rows each.
      evaluations: all rows of all batches.
      nfe: charged to the prompts that have finished.
      surplus: computed for them and not charged, of wide waves.
      padding: rows that were nobody's.
      backward_passes: of the prompts that have finished, as in `Result`.
      verifier_calls: likewise.
      widths: of waves, in the order in which they were used; empty for other methods.
      draft_nfe: of `nfe`, what was charged for drafts of another flow.
      draft_evaluations: all that the draft flow computed, padding included; no part of the others.
    """

    prompts: int = 0
    batches: int = 0
    evaluations: int = 0
    nfe: int = 0
    surplus: int = 0
    padding: int = 0
    backward_passes: int = 0
    verifier_calls: int = 0
    widths: tuple[int, ...] = ()
    draft_nfe: int = 0
    draft_evaluations: int = 0

    @property
    def occupancy(self) -> float:
        """Share of the flow's rows that were charged; 1 before the first."""
        return (self.nfe - self.draft_nfe) / self.evaluations if self.evaluations else 1.0


def _standing(pool: Pool, program: Program, placement: Placement) -> tuple[Any, Ended]:
    """What is known of the prompts that are under way and have a reward, as `advance` says it."""
    found, packed = standing(pool, program=program, placement=placement)
    report = packed.unpack()
    scored = np.asarray(found.best.reward) > -np.inf
    return report._replace(finished=np.where(scored, report.finished, -1)), found


@partial(jax.jit, static_argnames=("placement",))
@on_every_device
def _row(best: Ended, slot: Any, *, placement: Placement) -> Ended:
    return jax.tree.map(lambda a: a[slot], best)


@partial(jax.jit, static_argnames=("placement",))
def _decoded(flow: Flow, x0: jax.Array, placement: Placement) -> jax.Array:
    """Images of rows, whole on every device."""
    with placement.around_model():
        return placement.keep(decode(flow, x0), EVERYWHERE)


def _power_of_two(n: int) -> int:
    """The smallest that is at least n."""
    return 1 << (n - 1).bit_length()


class _UnderWay(NamedTuple):
    batch: Batch
    wait: Callable[[], Worth]


class Engine:
    """Runs lists of a job's prompts; `totals` is of all of them.

    Args:
      job: checked arguments, with all prompts.
      size: of a batch, or of the part of it that each part of a mesh evaluates.
      slots: prompts under way at once, at most.

    Attributes:
      totals: what was computed so far.
      size: of a batch, all parts of a mesh together.
      judge: evaluates batches.
      computed: called with them after every batch, to show progress; None for nothing.
      watch: clock of a budget in seconds, which runs while batches do; None without.
    """

    computed: Callable[[Totals], None] | None = None
    watch: Watch | None = None

    def __init__(self, job: Job, size: int, slots: int | None):
        self.totals = Totals()
        self._job, self._placement = job, job.placement
        self.size = size * job.placement.groups
        self._sizes = sizes_below(size, least_of(job.flow, size, size, LEAST))
        # One draw at a time computes no surplus; devices of a mesh do it alike, for all slots.
        self._program = job.program.with_width(1).replace(placement=ALONE)
        self._slots = slots
        minibatch = min(size, job.reward.minibatch or size)
        args = (job.program.kind, minibatch, job.placement)
        self.judge: Judge = (
            OnHost(job.model, job.reward, *args)
            if isinstance(job.reward, HostReward)
            else OnDevice(job.model, *args)
        )

    @property
    def _search(self) -> Search:
        return self._program.search

    def close(self) -> None:
        """End the reward's thread."""
        self.judge.close()

    def slots_for(self, prompts: int) -> int:
        """As many as keep two batches' candidates in the pool, one candidate a slot at least."""
        # Of fewer prompts than the job's, a power of two: few shapes to compile.
        most = min(self._job.ids.size, _power_of_two(prompts))
        if self._slots is not None:
            return min(self._slots, most)
        batches, search = self.judge.depth, self._search
        wanted = -(-2 * batches * self.size * search.max_rounds // search.nfe)
        return min(most, batches * self.size, max(wanted, 2))

    def begin(self, prompts: Prompts, marks: bool) -> tuple[Pool, Program, int]:
        """Slots for a list; with what they are advanced by, and the width of its waves.

        Args:
          prompts: the list.
          marks: whether slots can be told to stop.
        """
        n = int(prompts.length)
        slots = self.slots_for(n)
        width = width_for(self._search, min(slots, n), 0, self.size)
        program = self._program.with_width(width)
        job = self._job
        pool = empty(
            prompts, job.target, program=program, slots=slots, shape=job.flow.shape,
            parts=job.parts, placement=self._placement,
        )  # fmt: skip
        if marks:
            never = self.held(jnp.zeros(slots, jnp.bool))
            pool = pool._replace(carry=marked(pool.carry, program.search, never))
        return pool, program, width

    def held(self, tree: Any) -> Any:
        """Arrays where what is not split over a mesh lies: on every device of it."""
        return self._placement.put(tree, EVERYWHERE)

    def run(self, prompts: Prompts) -> Iterator[tuple[int, Result]]:
        """(number, result) of each prompt of a list, as it ends.

        At the deadline of `watch`, those that are under way end with the best so far; without a
        reward, and not begun, they are left out.
        """
        job, n, watch = self._job, int(prompts.length), self.watch
        pool, program, width = self.begin(prompts, marks=watch is not None)
        none = self.held(nothing(program.kind, self.size, job.flow.shape, job.parts))
        under_way: deque[_UnderWay] = deque()
        back, active = none, n
        while active:
            interrupts.check()
            if watch is not None and watch.now >= watch.timing.seconds:
                watch.cut()
                yield from self._ended(*_standing(pool, program, self._placement))
                return
            stop = None if watch is None else np.asarray(watch.late)
            # A batch that is not full waits for those under way, which may bring more.
            least = np.int32(self.size if under_way else 1)
            pool, batch, found, packed = advance(
                pool, *back, prompts, job.target, least, stop,
                program=program, placement=self._placement,
            )  # fmt: skip
            report = packed.unpack()
            if report.cut and watch is not None:
                watch.cut()
            if sent := bool(report.sent.any()):
                self._count(report, width)
                under_way.append(_UnderWay(batch, self.judge.begin(batch)))
            active = int(report.active)
            yield from self._ended(report, found)
            draw, left = int(report.searching), int(report.left)
            wider = width_for(self._search, draw, active - draw, self.size)
            # Another width compiles, which is no part of a budget in seconds.
            if left == 0 and wider > width and watch is None:
                pool, under_way = self._widen(pool, under_way, active, width, wider)
                width, program = wider, self._program.with_width(wider)
            back = none
            if under_way and not (sent and len(under_way) < self.judge.depth):
                first = under_way.popleft()
                back = (first.batch, *first.wait())
                if self.computed is not None:
                    self.computed(self.totals)

    def _widen(
        self, pool: Pool, under_way: deque[_UnderWay], active: int, width: int, wider: int
    ) -> tuple[Pool, deque[_UnderWay]]:
        rows = waves(self._search)
        assert rows is not None
        places = [one.batch.place for one in under_way]
        slots = min(pool.prompt.size, _power_of_two(active))
        pool, places = widen(
            pool, places, slots=slots, waves=rows, before=width, after=wider,
            placement=self._placement,
        )  # fmt: skip
        moved = [
            one._replace(batch=one.batch._replace(place=place))
            for one, place in zip(under_way, places, strict=True)
        ]
        return pool, deque(moved)

    def _count(self, report: Report, width: int) -> None:
        """The batch that a step sent."""
        cost, t, kind = self._program.cost, self.totals, self._program.kind
        own, computed, padding = report.sent - report.drafts, 0, 0
        looking = (0 if kind.value is None else kind.value.cost, report.ahead)
        for each, rows in ((1, own), looking, (kind.inner, report.moving)):
            all_rows = self._rows(rows)
            computed += each * all_rows
            padding += each * (all_rows - int(rows.sum()))
        is_new = waves(self._search) is not None and width not in t.widths
        self.totals = t._replace(
            batches=t.batches + 1,
            evaluations=t.evaluations + cost * computed,
            padding=t.padding + cost * padding,
            widths=(*t.widths, width) if is_new else t.widths,
            draft_evaluations=t.draft_evaluations + self._program.draft * self._rows(report.drafts),
        )

    def _rows(self, rows: Any) -> int:
        """How many rows are computed for those of each part, which take chunks together."""
        return rows.size * rows_of(int(rows.max()), self._sizes)

    def _kept(self, ended: Ended) -> Answers | None:
        """What a search keeps beside its answer, with images."""
        if ended.kept is None:
            return None
        images = _decoded(self._job.flow, ended.kept.x0, self._placement)
        kept = Answers.of(ended.kept, images)
        return kept if ended.parts is None else kept._replace(parts=ended.parts.kept)

    def _part_calls(self, ended: Ended) -> dict[str, int] | None:
        if ended.parts is None or ended.parts.calls is None:
            return None
        return {name: int(n) for name, n in ended.parts.calls.items()}

    def _ended(self, report: Any, found: Ended) -> Iterator[tuple[int, Result]]:
        """Results of the prompts that ended in a step."""
        for slot in np.flatnonzero(report.finished >= 0):
            ended = _row(found, np.int32(slot), placement=self._placement)
            particle = ended.best
            names, counts = (*COUNTERS, DRAFTS), map(int, report.counts[slot])
            own: dict[str, Any] = dict(zip(names, counts, strict=False))
            number = int(report.finished[slot])
            check_bounds(
                self._search, int(report.rounds[slot]), bool(report.done[slot]), own["nfe"],
                report.budgets[slot], self._job.ids[[number]],
            )  # fmt: skip
            result = Result(
                image=_decoded(self._job.flow, particle.x0[None], self._placement)[0],
                x0=particle.x0,
                x=particle.x,
                t=particle.t,
                reward=particle.reward,
                **own,
                verifier_cost=self._job.reward.cost * own["verifier_calls"],
                info=None,
                state=None,
                kept=self._kept(ended),
                parts=None if ended.parts is None else ended.parts.best,
                part_calls=self._part_calls(ended),
                weights=ended.weights,
            )
            t, for_drafts = self.totals, charged(self._program, result.draft_evaluations)
            self.totals = t._replace(
                prompts=t.prompts + 1,
                nfe=t.nfe + result.nfe,
                draft_nfe=t.draft_nfe + for_drafts,
                surplus=t.surplus + result.evaluations + for_drafts - result.nfe,
                backward_passes=t.backward_passes + result.backward_passes,
                verifier_calls=t.verifier_calls + result.verifier_calls,
            )
            yield number, result
