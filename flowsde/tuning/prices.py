"""What a budget in seconds buys of each setting, so that settings race at equal seconds.

A setting's search is timed as `flowsde.run` with ``seconds=`` times it: of one prompt by itself, in
rounds whose chunks are filled, by model, verifier and the rest. The setting's budget is the largest
whose work costs no more than the seconds, less what is kept back: `flowsde.runner.deadline`. That
is done once, before the race. Searches then race with so many evaluations, many side by side: what
is found does not depend on what the machine does meanwhile, and ``nfe=`` of that number repeats it.

What else a machine does makes rounds slower and never faster: short ones are timed a few times, and
the fastest counts.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from flowsde.runner import deadline
from flowsde.runner.arguments import prepare
from flowsde.runner.deadline import TooFewSeconds
from flowsde.runner.run import time_round
from flowsde.search import Search
from flowsde.tuning.device import device
from flowsde.tuning.measure import Subject
from flowsde.tuning.settings import Setting

MOST = 2_000
"""Model evaluations that seconds buy at most."""
_TIMES, _LONG = 3, 1.0
"""How often rounds are timed that take less than so many seconds."""


class Timed(NamedTuple):
    """A budget in seconds.

    Attributes:
      seconds: of one search.
      search_of: the search of a setting as it is run by itself, with a budget of `MOST`.
      chunk_size: as for `flowsde.run`, where it is run by itself.
    """

    seconds: float
    search_of: Callable[[Setting], Search]
    chunk_size: int | None


class Price(NamedTuple):
    """What seconds buy of a setting, and what was timed.

    Attributes:
      buys: model evaluations of a search; 0 if not even the smallest fits.
      evaluation, reward, round: seconds of a model evaluation, of a reward, and of a round besides.
      least, why: of the smallest search that does not fit, the seconds that it needs, and why; else
        0 and nothing.
      evaluations, verifier_calls: computed to time them.
      seconds: that timing took, compilation included.
      device: that was timed, in words.
    """

    buys: int
    evaluation: float
    reward: float
    round: float
    least: float
    why: str
    evaluations: int
    verifier_calls: int
    seconds: float
    device: str


def price(subject: Subject, timed: Timed, setting: Setting, prompt: int) -> Price:
    """Time a setting's search of a prompt.

    Args:
      subject: what it is run on.
      timed: the budget.
      setting: whose search it is.
      prompt: its number.
    """
    began = time.perf_counter()
    job = prepare(
        subject.key, subject.flow, timed.search_of(setting), subject.reward,
        **subject.rows([prompt]), prompt_ids=[prompt], chunk_size=timed.chunk_size,
        seconds=timed.seconds,
    )  # fmt: skip
    rounds = [time_round(deadline.smallest(job))]
    while len(rounds) < _TIMES and rounds[-1].total < _LONG:
        rounds.append(time_round(deadline.smallest(job)))
    prices = min(rounds, key=lambda one: one.total).prices(job)
    buys, least, why = 0, 0.0, ""
    try:
        buys = deadline.bought(job, prices)
    except TooFewSeconds as error:
        least, why = error.least, error.why
    return Price(
        buys=buys,
        evaluation=prices.evaluation,
        reward=prices.reward,
        round=prices.round,
        least=least,
        why=why,
        # A round is computed twice, the first time to compile it.
        evaluations=2 * sum(int(np.sum(one.info.evaluations)) for one in rounds),
        verifier_calls=2 * sum(int(np.sum(one.info.verifier_calls)) for one in rounds),
        seconds=time.perf_counter() - began,
        device=device(),
    )
