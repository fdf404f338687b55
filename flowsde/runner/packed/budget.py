"""One budget for a list of prompts: what the easy ones leave goes to the hard ones.

Prompts have attempts, searches with draws of their own. All attempts of a number end before any of
the next one begins: what is left of the budget is then known, whatever shared a batch with what.

First, everyone has an equal share. What is left when all have ended is shared among the prompts
that have not reached the target, and so on. Where it is not enough for all of them, those closest
to the target come first. A prompt's answer is its best attempt's.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde.runner.arguments import Job
from flowsde.runner.mesh import EVERYWHERE
from flowsde.runner.packed.engine import Engine
from flowsde.runner.packed.pool import Prompts
from flowsde.runner.result import COUNTERS, DRAFTS, Result
from flowsde.runner.schedule import least_nfe
from flowsde.search.grid import fold_in_ids
from flowsde.search.protocol import Search

_ATTEMPT = 2**32 - 1
"""In place of a chain, the key of another attempt."""


class Outcome(NamedTuple):
    """Of an attempt: model evaluations charged, and the reward."""

    nfe: int
    reward: float


class Attempt(NamedTuple):
    """An attempt that has ended: of a prompt, counted from 0; its outcome and result."""

    prompt: int
    number: int
    outcome: Outcome
    result: Result


def check_total(
    name: str,
    total: int,
    target_name: str,
    target: float | None,
    search: Search,
    evaluations: int,
    prompts: int,
) -> None:
    """ValueError unless there is a target, and enough for a first attempt of every prompt.

    Args:
      name, total, target_name, target: arguments, as the user calls them.
      search: with its budget in candidates.
      evaluations: of the model that a candidate costs.
      prompts: how many.
    """
    if target is None:
        raise ValueError(f"{name} is shared by what prompts have reached: it wants {target_name}")
    least = evaluations * least_nfe(search) * prompts
    if total < least:
        raise ValueError(
            f"{name} must be at least {least}, the smallest budget of {prompts} searches, "
            f"got {total}"
        )


def next_budgets(
    total: int,
    least: int,
    most: Sequence[int],
    ids: Sequence[int],
    target: float,
    ended: Sequence[Mapping[int, Outcome]],
) -> dict[int, int]:
    """Budgets of the next attempts, by number of the prompt; none when all is done.

    Args:
      total: of all attempts.
      least, most: of an attempt, most by prompt.
      ids: of the prompts, by which equals are ordered.
      target: reward to reach.
      ended: outcomes of all attempts so far, by number of the attempt and of the prompt.
    """
    left = total - sum(outcome.nfe for attempts in ended for outcome in attempts.values())
    best = dict.fromkeys(range(len(ids)), -np.inf)
    for attempts in ended:
        for prompt, outcome in attempts.items():
            best[prompt] = max(best[prompt], outcome.reward)
    unmet = [prompt for prompt, reward in best.items() if not reward >= target]
    closest = sorted(unmet, key=lambda prompt: (-best[prompt], ids[prompt]))
    chosen = closest[: left // least]
    if not chosen:
        return {}
    share, more = divmod(left, len(chosen))
    return {
        prompt: min(most[prompt], share + (place < more)) for place, prompt in enumerate(chosen)
    }


def attempts(
    job: Job, engine: Engine, total: int, known: Sequence[Mapping[int, Outcome]] = ()
) -> Iterator[Attempt]:
    """Attempts as they end.

    Args:
      job, engine: of all prompts.
      total: model evaluations of all.
      known: outcomes of attempts that ended in an earlier run, which are not made again.
    """
    ended: list[dict[int, Outcome]] = []
    least = job.program.cost * least_nfe(job.search)
    most = [int(n) for n in job.nfe]
    while True:
        number = len(ended)
        budgets = next_budgets(total, least, most, job.ids.tolist(), float(job.target), ended)
        if not budgets:
            return
        before = known[number] if number < len(known) else {}
        outcomes = {prompt: before[prompt] for prompt in budgets if prompt in before}
        ended.append(outcomes)
        missing = {p: n for p, n in budgets.items() if p not in outcomes}
        if not missing:
            continue
        for prompt, result in engine.run(_prompts(job, missing, number)):
            outcome = Outcome(result.nfe, float(result.reward))
            outcomes[prompt] = outcome
            yield Attempt(prompt, number, outcome, result)


def _prompts(job: Job, budgets: Mapping[int, int], attempt: int) -> Prompts:
    """Some of a job's prompts, with budgets and draws of an attempt."""
    keys = job.keys
    if attempt:
        again = (jnp.uint32(_ATTEMPT), jnp.uint32(attempt))
        keys = jax.vmap(lambda key: fold_in_ids(key, *again))(keys)
    own = np.array(job.nfe)
    own[list(budgets)] = list(budgets.values())
    taken = np.resize(np.asarray(sorted(budgets), np.int32), job.ids.size)
    placed = job.placement.put((own, taken, np.int32(len(budgets))), EVERYWHERE)
    nfe, order, length = map(jnp.asarray, placed)
    return Prompts(keys, nfe, order, length, job.start)


def added(one: Result | None, other: Result) -> Result:
    """The better of two attempts, the first of equals, with what both cost."""
    if one is None:
        return other
    better = other if other.reward > one.reward else one
    names = (*COUNTERS, "verifier_cost")
    both = {n: getattr(one, n) + getattr(other, n) for n in names}
    if one.draft_evaluations is not None:
        both[DRAFTS] = one.draft_evaluations + other.draft_evaluations
    if one.part_calls is not None and other.part_calls is not None:
        both["part_calls"] = {n: k + other.part_calls[n] for n, k in one.part_calls.items()}
    return better._replace(**both)


def shared(job: Job, engine: Engine, total: int) -> Iterator[tuple[int, Result]]:
    """(number, result) of each prompt: once it reaches the target, the others at the end."""
    results: dict[int, Result] = {}
    for attempt in attempts(job, engine, total):
        best = results[attempt.prompt] = added(results.get(attempt.prompt), attempt.result)
        if best.reward >= job.target:
            yield attempt.prompt, results.pop(attempt.prompt)
    yield from results.items()
