"""The programs of a search compiled before they are called, while others are lowered.

Each is lowered here, from shapes; JAX finds what was compiled when the round calls for it. XLA
compiles one program on several cores, and takes a hundred megabytes meanwhile, so only where there
are many cores are more compiled at once. On a mesh programs are compiled when they are called: how
their arguments are split is known only then.
"""

import dataclasses
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from flowsde.rewards import HostReward
from flowsde.runner import rounds
from flowsde.runner.arguments import Job
from flowsde.runner.mesh import Placement, committed_to
from flowsde.runner.result import Carry
from flowsde.search.protocol import Candidates

_CORES = 4
"""That are busy with one program, about."""


def for_model(job: Job, asked: Candidates) -> tuple[Any, ...]:
    """Arguments of `rounds.model_step`; a reward is one only if its gradient is taken there."""
    model = job.model
    if not job.search.uses_gradient:
        model = dataclasses.replace(model, reward=None)
    return model, asked, job.program.kind, job.sizes.model, job.placement, job.sizes.least


def compile_rounds(job: Job, carry: Carry) -> None:
    """Compile what the rounds of a job call, from such a carry on."""
    placement, program, kind = job.placement, job.program, job.program.kind
    at = [] if placement.device is None else [{placement.device}]
    if placement.mesh is not None or committed_to((carry, job.model)) != at:
        return
    if (placement.device or jax.devices()[0]).platform == "gpu":
        # It times kernels while it compiles, which others would disturb.
        return
    asked = results_of(rounds.ask, placement, carry, program)
    to_model = for_model(job, asked)
    evals, computed = results_of(rounds.model_step, placement, *to_model)
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (rounds.model_step, to_model),
        (rounds.ask, (carry, program)),
        (rounds.answer, (carry, job.flow, program)),
    ]
    if not isinstance(job.reward, HostReward):
        to_reward = (job.model, asked, evals, kind, job.sizes.reward, placement)
        calls.append((rounds.reward_step, to_reward))
        evals = results_of(rounds.reward_step, placement, *to_reward)
        calls.append((rounds.tell, (carry, program, asked, evals, computed)))
    compile_all(calls)


def results_of(program: Any, placement: Placement, *args: Any) -> Any:
    """Shapes of what a compiled function gives, and the device that it is committed to."""
    shapes = program.eval_shape(*args)
    if placement.device is None:
        return shapes
    sharding = SingleDeviceSharding(placement.device)
    return jax.tree.map(lambda a: a.update(sharding=sharding), shapes)


def compile_all(calls: Sequence[tuple[Any, tuple[Any, ...]]]) -> None:
    """Compile functions for arguments, arrays or their shapes; errors are those of compiling."""
    pool = ThreadPoolExecutor(max((os.cpu_count() or 1) // _CORES, 1))
    try:
        compiled = [pool.submit(program.lower(*args).compile) for program, args in calls]
        for one in as_completed(compiled):
            one.result()
    finally:
        # An error, or an interrupt, does not wait for the others: a model may take minutes.
        pool.shutdown(wait=False, cancel_futures=True)
