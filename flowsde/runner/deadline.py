"""Budgets in seconds.

How a search divides its budget, among steps and particles, depends on the number of evaluations,
which it is told at its beginning. So seconds are turned into evaluations first:

1. *Prices.* A round of the smallest search, its chunk filled, is computed twice: the first time
   compiles, the second is timed, by model, verifier and the rest. So is one of drafts, where
   another flow makes them.
2. *Work.* What a search of a budget asks for is known from its `schedule`.
3. The largest budget whose work costs at most `SHARE` of the seconds is the search's: `Timing.nfe`.
   From there on all is as with ``nfe=`` of that number, which repeats it.

The clock runs while rounds do: compiling and measuring come before it, and what the caller does
between two rounds does not count. If rounds take longer than they were measured, the search is cut:
what completes its best particle begins while there is time for it, and no round begins after the
deadline. So a search ends at most one round late, with the best it has found.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde.rewards.base import HostReward
from flowsde.runner import clock
from flowsde.runner.arguments import Job
from flowsde.runner.clock import Timing
from flowsde.runner.result import Carry, Result
from flowsde.runner.schedule import Work, least_nfe, padded_rewards, schedule
from flowsde.search.protocol import Candidates, Info

SHARE = 0.9
"""Of the seconds, what the search is planned for: rounds may take longer than the one timed."""
SCORED = 8
"""Most rewards outside JAX that are asked for to time them."""


class TooFewSeconds(ValueError):
    """Not even the smallest search fits.

    Attributes:
      least: seconds that it takes, with what is kept back.
      why: without the argument.
    """

    def __init__(self, seconds: float, least: float, why: str):
        said = f"seconds must be at least {least:g} for this search, got {seconds:g}"
        super().__init__(f"{said}: {why}")
        self.least, self.why = least, why


class OutOfTime(ValueError):
    """A budget in seconds ended before a prompt had any reward.

    Attributes:
      result: so far; with more seconds it can be resumed.
    """

    def __init__(self, message: str, result: Result):
        super().__init__(message)
        self.result = result


class Prices(NamedTuple):
    """Seconds of an evaluation of the model, of a reward, of a round besides these, and of an
    evaluation of the draft flow's model."""

    evaluation: float
    reward: float
    round: float
    draft: float = 0.0

    def of(self, work: Work) -> float:
        """Seconds of some work."""
        return (
            self.evaluation * work.evaluations
            + self.reward * work.rewards
            + self.round * work.rounds
            + self.draft * work.drafts
        )


class Sample(NamedTuple):
    """What was timed.

    Attributes:
      info: of a round, with its seconds.
      total: seconds of the round from end to end, the decoding of an answer included.
    """

    info: Info
    total: float

    def prices(self, job: Job) -> Prices:
        """What things cost."""
        model, verifier, _ = (float(s) for s in self.info.seconds)
        rewards = int(padded_rewards(job, np.sum(self.info.verifier_calls)))
        evaluations = int(np.sum(self.info.evaluations))
        rest = self.total - model - verifier
        return Prices(model / evaluations, verifier / max(rewards, 1), rest)

    @property
    def draft_price(self) -> float:
        """Seconds of an evaluation of the draft flow's model, of a round of drafts."""
        return float(self.info.seconds[0]) / int(np.sum(self.info.draft_evaluations))


def filled(job: Job, asked: Candidates, drafts: bool = False) -> Candidates:
    """A round to time: as many valid candidates as are computed at once, that want rewards.

    They are all drafts of another flow, or none is.
    """
    row = jnp.arange(asked.t.size).reshape(asked.t.shape)
    many = min(asked.t.size, job.sizes.model)
    scored = min(many, SCORED if isinstance(job.reward, HostReward) else job.sizes.reward)
    # One gradient has its whole chunk differentiated, and leaves rewards to the others.
    wants_gradient = (row < 1) & job.search.uses_gradient
    own = (row < many, (row < scored) & ~wants_gradient, wants_gradient)
    valid, reward, gradient = job.placement.put(own, job.placement.by_prompt)
    if asked.draft is not None:
        asked = asked._replace(draft=valid & drafts)
    return asked._replace(valid=valid, wants_reward=reward, wants_gradient=gradient)


def with_budget(job: Job, nfe: int) -> Job:
    """The job with this budget for every prompt, in model evaluations."""
    return job._replace(nfe=jnp.full_like(job.nfe, nfe))


def marked(job: Job, carry: Carry, stop: bool | None) -> Carry:
    """The carry of a job with seconds, told whether to leave out what is not finishing.

    None takes the mark away: results are without, so that any run of the search can resume them.
    """
    own = getattr(job.search, "with_stop", None)
    if job.seconds is None or own is None:
        return carry
    mark = None if stop is None else jnp.full_like(carry.nfe, stop, jnp.bool)
    mark = job.placement.put(mark, job.placement.by_prompt)
    return carry._replace(state=own(carry.state, mark))


class Watch:
    """The clock of a job with a budget in seconds.

    Args:
      timing: so far.
      reserve: seconds to complete the best particles.
      began: when preparing did.

    Attributes:
      timing: after the last lap.
      reserve: as given.
    """

    def __init__(self, timing: Timing, reserve: float, began: float):
        self.timing, self.reserve, self._began = timing, reserve, began
        self._told = False

    @property
    def now(self) -> float:
        """Seconds spent, while it runs."""
        return self.timing.spent + clock.now() - self._last

    @property
    def late(self) -> bool:
        """Whether what is left is for completing the best particles."""
        return self.reserve > 0.0 and self.now + self.reserve >= self.timing.seconds

    @property
    def over(self) -> bool:
        """Whether the seconds are spent."""
        return self.timing.spent >= self.timing.seconds

    def cut(self) -> None:
        """Note that the deadline changes what is found."""
        self.timing = self.timing._replace(cut=True)

    def start(self) -> None:
        """Let it run, now that all is prepared."""
        self.go()
        preparing = self.timing.preparing + self._last - self._began
        self.timing = self.timing._replace(preparing=preparing)

    def go(self) -> None:
        """Let it run again."""
        self._last = clock.now()

    def lap(self, done: bool) -> bool:
        """Stop it after a round; whether no other begins."""
        self.timing = self.timing._replace(spent=self.now)
        cut = self.over and not done
        self.timing = self.timing._replace(cut=self.timing.cut or cut)
        return done or cut

    def must_finish(self, info: Info) -> bool:
        """Whether it is time to complete what has been found, said once; info of the last round."""
        late = self.timing.spent + self.reserve >= self.timing.seconds
        found = np.all(np.asarray(info.best_reward) > -np.inf)
        if self._told or not (late and self.reserve and found) or np.all(info.finishing):
            return False
        self._told = True
        self.cut()
        return True

    def check(self, result: Result, ids: np.ndarray) -> None:
        """`OutOfTime` if a search that the deadline ended has not come to a reward."""
        # Drafts of another flow and what was seen ahead have rewards, and are no answers.
        seen = np.any(np.asarray(result.info.reward) > -np.inf, axis=(0, -1))
        unknown = seen | (np.asarray(result.verifier_calls) == 0)
        unknown |= result.draft_evaluations is not None
        without = np.atleast_1d(np.isneginf(result.reward) & unknown)
        if without.any():
            raise OutOfTime(
                f"seconds = {self.timing.seconds:g} ended before the first reward of prompt ids "
                f"{ids[without].tolist()}, after {len(result.info.time)} rounds in "
                f"{self.timing.spent:.3g} s, which took longer than the one that was timed; "
                f"expected more seconds",
                result,
            )


def begin(job: Job, time_round: Callable[[Job, bool], Sample]) -> tuple[Job, Watch]:
    """The job with the budget that its seconds pay for, and its clock, which stands still.

    Args:
      job: with `seconds`.
      time_round: computes a round of a job twice, of drafts or not, and times the second.

    Raises:
      TooFewSeconds: not even the smallest search fits.
    """
    assert job.seconds is not None
    began = clock.now()
    before = None if job.resume is None else job.resume.timing
    if before is not None and before.spent >= job.seconds:
        over = before._replace(seconds=job.seconds)
        return with_budget(job, before.nfe), Watch(over, 0.0, began)
    sample = time_round(smallest(job), False)
    prices, to_time = sample.prices(job), 2 * int(np.sum(sample.info.evaluations))
    calls = 2 * int(np.sum(sample.info.verifier_calls))
    if job.program.kind.drafts:
        of_drafts = time_round(smallest(job), True)
        prices = prices._replace(draft=of_drafts.draft_price)
        to_time += 2 * int(np.sum(of_drafts.info.draft_evaluations))
        calls += 2 * int(np.sum(of_drafts.info.verifier_calls))
    if job.resume is None:
        nfe = bought(job, prices)
    else:
        # What it was begun with, whatever things cost now.
        nfe = _most(job) if before is None else before.nfe
    timing = Timing(
        seconds=job.seconds,
        spent=0.0 if before is None else before.spent,
        nfe=nfe,
        cut=before is not None and before.cut,
        preparing=0.0 if before is None else before.preparing,
        evaluations=to_time,
        verifier_calls=calls,
    )
    if before is not None:
        timing = timing._replace(
            evaluations=timing.evaluations + before.evaluations,
            verifier_calls=timing.verifier_calls + before.verifier_calls,
        )
    reserve = prices.of(schedule(job, nfe).finishing)
    return with_budget(job, nfe), Watch(timing, reserve, began)


def smallest(job: Job) -> Job:
    """The job with the smallest budget that its search takes."""
    return with_budget(job, job.program.cost * least_nfe(job.search))


def bought(job: Job, prices: Prices) -> int:
    """The model evaluations that the seconds of a job buy at some prices.

    Raises:
      TooFewSeconds: not even the smallest search fits.
    """
    least = job.program.cost * least_nfe(job.search)
    return affordable(job, least, _most(job), lambda nfe: prices.of(schedule(job, nfe).whole))


def _most(job: Job) -> int:
    return int(np.max(jax.device_get(job.nfe)))


def affordable(job: Job, smallest: int, most: int, takes: Callable[[int], float]) -> int:
    """The largest budget within `SHARE` of the seconds, to a hundredth.

    Args:
      job: with `seconds`.
      smallest, most: budgets that its search takes, in model evaluations.
      takes: seconds of a budget.
    """
    assert job.seconds is not None
    cost, limit = job.program.cost, SHARE * job.seconds
    needed = takes(smallest)
    if needed > limit:
        raise TooFewSeconds(
            job.seconds,
            _rounded_up(needed / SHARE),
            f"the smallest takes {smallest} evaluations, about {needed:.3g} s here, and a tenth is "
            f"kept back",
        )
    low, end = smallest // cost, most // cost  # candidates: enough
    high = min(2 * low, end)
    while low < end and takes(high * cost) <= limit:
        low, high = high, min(2 * high, end)
    if low == end:
        return low * cost
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        if takes(middle * cost) <= limit:
            low = middle
        else:
            high = middle
    return low * cost


def _rounded_up(x: float) -> float:
    """To three digits."""
    unit = 10.0 ** (math.floor(math.log10(x)) - 2)
    return math.ceil(x / unit) * unit
