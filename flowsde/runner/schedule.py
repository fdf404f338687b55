"""What a search of a budget will ask for, found by letting it search a toy.

How many rounds a budget takes, how full their chunks are and which want rewards is the search's own
business, and follows from no formula: Best-of-N scores only at its end, waves of RBF are charged up
to the first improvement. So the search itself is run, in one compiled program, on particles of one
number, Gaussian data whose reward is that number. Where a schedule does not depend on rewards it is
exact; RBF's is that of a typical reward.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde.analytic import gaussian
from flowsde.flow import Flow
from flowsde.rewards.base import DeviceReward, HostReward, as_reward
from flowsde.runner import rounds
from flowsde.runner.arguments import Job
from flowsde.runner.mesh import ALONE, fetch
from flowsde.runner.records import Model, Sizes
from flowsde.runner.result import head
from flowsde.search.protocol import Search


class Work(NamedTuple):
    """What some rounds compute, of all prompts.

    Attributes:
      rounds: how many.
      evaluations: of the model, surplus and padding included.
      rewards: padding included where a reward is a JAX function.
      drafts: evaluations of the draft flow, likewise.
    """

    rounds: int
    evaluations: int
    rewards: int
    drafts: int = 0


class Schedule(NamedTuple):
    """The work of a whole search, and the part of it that completes the best particle."""

    whole: Work
    finishing: Work


def least_nfe(search: Search) -> int:
    """The smallest budget that a search takes."""
    low, high = 0, search.nfe  # too small, enough
    while high - low > 1:
        middle = (low + high) // 2
        try:
            search.with_nfe(middle)
            high = middle
        except ValueError:
            low = middle
    return high


@functools.cache
def _toy() -> tuple[Flow, DeviceReward]:
    """Gaussian data of one number, which is its reward."""
    flow = gaussian(jnp.zeros(1, jnp.float32), jnp.ones((1, 1), jnp.float32)).flow()
    reward = as_reward(lambda images, cond: images[:, 0])
    assert isinstance(reward, DeviceReward)
    return flow, reward


def padded_rewards(job: Job, wanted: np.ndarray) -> np.ndarray:
    """Rewards that rounds compute for those that they want."""
    if isinstance(job.reward, HostReward):
        return wanted
    size = job.sizes.reward * job.placement.groups
    return -(-wanted // size) * size


def schedule(job: Job, nfe: int) -> Schedule:
    """That of a job whose prompts all have this budget in model evaluations."""
    flow, reward = _toy()
    groups, many = job.placement.groups, job.ids.size
    # Groups take chunks together, of as many rows each.
    sizes = Sizes(*(size * groups for size in job.sizes))
    program = job.program.replace(placement=ALONE)
    carry = rounds.start(
        jax.random.split(jax.random.key(0), many),
        jnp.full(many, nfe, jnp.int32),
        jnp.float32(jnp.inf),
        program,
        shape=flow.shape,
        single=job.single,
    )
    model = Model(flow, reward, None, flow if program.kind.drafts else None)
    logs, done = [], False
    while not done:
        carry, *heard = rounds.run_rounds(carry, model, program, sizes)
        log, n, done = fetch(heard)
        log = head(log, int(n))
        by_draft = log.draft_evaluations if program.kind.drafts else np.zeros_like(log.evaluations)
        logs.append((log.evaluations, by_draft, log.verifier_calls, log.finishing, log.charged))
    columns = [np.concatenate(parts) for parts in zip(*logs, strict=True)]
    evaluations, drafts, calls, finishing, charged = (a.reshape(len(a), -1) for a in columns)
    computed, drafts, rewards = evaluations.sum(1), drafts.sum(1), padded_rewards(job, calls.sum(1))
    # Of many prompts, a round is of finishing if all that is under way in it is.
    last = np.all(finishing | (charged == 0), axis=1)

    def work(some: np.ndarray) -> Work:
        of = (int(a[some].sum()) for a in (computed, rewards, drafts))
        return Work(int(some.sum()), *of)

    return Schedule(work(np.ones(len(last), bool)), work(last))
