"""A budget in seconds for a list of prompts, together.

All have the same number of evaluations: a batch is timed, and a prompt's `schedule` says what it
asks for. Batches are full but where prompts have to wait for their own candidates, so that a list
takes no longer than all of them in full batches and the rounds of one prompt together.

Otherwise it is as `flowsde.runner.deadline` says: the clock runs while batches do, prompts that are
late finish what they have, and no batch begins after the deadline.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde.rewards.base import HostReward
from flowsde.runner import clock
from flowsde.runner.ahead import ahead
from flowsde.runner.arguments import Job
from flowsde.runner.clock import Timing
from flowsde.runner.deadline import SCORED, Watch, affordable, with_budget
from flowsde.runner.mesh import EVERYWHERE
from flowsde.runner.packed.engine import Engine
from flowsde.runner.packed.pool import Batch, Prompts
from flowsde.runner.packed.steps import advance, nothing, standing
from flowsde.runner.records import Program, Sizes
from flowsde.runner.result import Result
from flowsde.runner.schedule import Schedule, least_nfe, schedule


def prompts_of(job: Job, numbers: Sequence[int] | None = None) -> Prompts:
    """A job's prompts in their order, or those of such numbers; the shapes are those of all."""
    many, chosen = job.ids.size, range(job.ids.size) if numbers is None else numbers
    order = np.resize(np.asarray(chosen, np.int32), many)
    order, length = job.placement.put((order, np.int32(len(chosen))), EVERYWHERE)
    return Prompts(job.keys, job.nfe, jnp.asarray(order), jnp.asarray(length), job.start)


class Costs(NamedTuple):
    """What was timed.

    Attributes:
      batch: seconds of a full batch, without rewards.
      reward: seconds of a reward.
      evaluations, verifier_calls: computed for that.
      passes: evaluations of the batch.
      drafts: seconds of a full batch of drafts of another flow, without rewards; 0 without.
      draft_passes: evaluations of that flow's model in it.
    """

    batch: float
    reward: float
    evaluations: int
    verifier_calls: int
    passes: int
    drafts: float = 0.0
    draft_passes: int = 1

    def of(self, work: Schedule, prompts: int) -> float:
        """Seconds of so many prompts with such a schedule, at most."""
        whole = work.whole
        seconds = prompts * whole.evaluations / self.passes * self.batch
        seconds += prompts * whole.drafts / self.draft_passes * self.drafts
        waiting = whole.rounds * max(self.batch, self.drafts)
        return seconds + waiting + prompts * whole.rewards * self.reward


def _filled(batch: Batch, scored: int, gradient: bool, drafts: bool = False) -> Batch:
    """A batch whose places all hold a candidate, the first of which want rewards; of drafts of
    another flow, or of none."""
    row = jnp.arange(batch.place.size)[:, None]
    wants_gradient = (row < 1) & gradient
    asked = batch.asked._replace(
        valid=row >= 0, wants_gradient=wants_gradient, wants_reward=(row < scored) & ~wants_gradient
    )
    if asked.draft is not None:
        asked = asked._replace(draft=jnp.full_like(asked.draft, drafts))
    return batch._replace(asked=asked)


def _seconds(engine: Engine, batch: Batch) -> float:
    """Of a batch, the second time that it is evaluated."""
    took, batch = 0.0, engine.held(batch)
    for _ in range(2):
        began = clock.now()
        jax.block_until_ready(engine.judge.begin(batch)())
        took = clock.now() - began
    return took


def _time(job: Job, engine: Engine, size: int) -> tuple[Costs, Program]:
    """Compile, and time a batch; with the program by which the list is searched."""
    prompts, took = prompts_of(job), 0.0
    for _ in range(2):
        pool, program, _ = engine.begin(prompts, marks=True)
        back = engine.held(nothing(program.kind, size, job.flow.shape, job.parts))
        began = clock.now()
        least, stop = np.int32(1), np.asarray(False)
        pool, batch, *rest = advance(
            pool, *back, prompts, job.target, least, stop,
            program=program, placement=job.placement,
        )  # fmt: skip
        jax.block_until_ready((pool, batch, rest))
        took = clock.now() - began
    standing(pool, program=program, placement=job.placement)
    many = min(size, SCORED) if isinstance(job.reward, HostReward) else size
    plain, scored = (_filled(batch, n, job.search.uses_gradient) for n in (0, many))
    model, both = _seconds(engine, plain), _seconds(engine, scored)
    value = program.kind.value
    looking = 0 if value is None else value.cost * int(np.sum(ahead(plain.asked, value)))
    passes = program.cost * (size + looking)
    costs = Costs(model + took, max(both - model, 0.0) / many, 4 * passes, 2 * many, passes)
    if program.kind.drafts:
        each = program.draft * size
        by_draft = _seconds(engine, _filled(batch, 0, gradient=False, drafts=True)) + took
        costs = costs._replace(
            drafts=by_draft, draft_passes=each, evaluations=costs.evaluations + 2 * each
        )
    return costs, program


def timed(job: Job, engine: Engine) -> Iterator[tuple[int, Result]]:
    """(number, result) of each prompt that has one by the deadline; each with the `timing` so far.

    Args:
      job: with `seconds`.
      engine: of it, which is given a `watch`.
    """
    assert job.seconds is not None
    began, many, size = clock.now(), job.ids.size, engine.size
    smallest = job.program.cost * least_nfe(job.search)
    costs, program = _time(with_budget(job, smallest), engine, size)
    # Of one prompt, a candidate at a time: none is padding.
    one = job._replace(ids=job.ids[:1], single=True, program=program, sizes=Sizes(1, 1, 1))
    most = int(np.min(jax.device_get(job.nfe)))
    nfe = affordable(job, smallest, most, lambda nfe: costs.of(schedule(one, nfe), many))
    timing = Timing(
        seconds=job.seconds,
        spent=0.0,
        nfe=nfe,
        cut=False,
        preparing=0.0,
        evaluations=costs.evaluations,
        verifier_calls=costs.verifier_calls,
    )
    finishing = schedule(one, nfe).finishing.rounds * -(-many // size)
    watch = engine.watch = Watch(timing, finishing * costs.batch, began)
    watch.start()
    for number, result in engine.run(prompts_of(with_budget(job, nfe))):
        watch.lap(done=True)
        yield number, result._replace(timing=watch.timing)
        watch.go()
    watch.lap(done=True)
