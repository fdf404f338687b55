"""The runner: evaluates candidates of one or many prompts, and counts.

`run` puts a whole search into one compiled program; `iterate` is a generator around the same
compiled parts, yielding a `Result` after each round. Both give the same answer for the same key,
and both go on from a `Result` of `iterate`, in this process or restored from disk.

A round asks every prompt's search for its candidates, flattens [prompts, width], evaluates
flow -> x0 -> decode -> reward in chunks, valid rows first, and tells. All counting is done here:

- `nfe`, what the method is charged: the candidates it would evaluate one at a time;
- `evaluations`, what the model computed for them: surplus of wide waves and padding of
  chunks included, exactly the rows a counting model sees; `backward_passes`, those of them that
  were differentiated;
- `verifier_calls`, the valid candidates that wanted a reward.

All but the last are in passes of the model: a guided flow costs two a candidate.
"""

import time
import warnings
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from flowsde.flow import Cond, Flow
from flowsde.rewards.base import DeviceReward, HostReward, RewardError
from flowsde.search.base import Candidates, Evaluation, Info, Particle, Search
from flowsde.search.evaluate import (
    Computed,
    Sizes,
    evaluate_model,
    evaluate_on_host,
    evaluate_reward,
)
from flowsde.search.job import Job, check_resume, prepare
from flowsde.search.result import Carry, Result, empty_log, of_one_prompt


def run(
    key: jax.Array,
    flow: Flow,
    search: Search,
    reward: Any,
    *,
    cond: Cond = None,
    prompt_ids: Any = None,
    chunk_size: int | None = None,
    target_reward: float | None = None,
    nfe: Any = None,
    invalid: Literal["error", "warn"] = "error",
    resume: Result | None = None,
) -> Result:
    """Run a search to its end.

    Args:
      key: a JAX random key. Draws depend on (key, prompt id, chain, step, draw) alone.
      flow: the model.
      search: from `flowsde.search`.
      reward: ``reward(images, cond) -> [n]``, higher is better; or one of `flowsde.rewards`.
      cond: of one prompt, without a batch axis; with leading axis P when `prompt_ids` is given.
      prompt_ids: P integers, run together; a prompt's result depends on its id and not on the
        others. None runs one prompt, whose id is 0.
      chunk_size: candidates evaluated at once; all of a round by default.
      target_reward: stop when a reward reaches it; None is +inf, which nothing can improve on.
      nfe: budget of every prompt, or P of them, at most that of the search, which is the default:
        one compiled program serves them all.
      invalid: what to do if every reward was NaN or -inf: raise, or warn and return the first.
      resume: a result of `iterate` for the same arguments, to go on from.

    Returns:
      A `Result`.

    Raises:
      ValueError, TypeError: naming the argument, before any work; or naming the reward.
      RewardError: a reward outside JAX failed; it names the reward and the round, and its
        `result` can be resumed.
    """
    job = prepare(
        key, flow, search, reward, cond=cond, prompt_ids=prompt_ids, chunk_size=chunk_size,
        target_reward=target_reward, nfe=nfe, invalid=invalid, resume=resume,
    )  # fmt: skip
    if isinstance(job.reward, HostReward):
        return deque(_iterate(job), maxlen=1).pop()
    carry, log = _begin(job)
    if resume is not None:
        # The program takes over the arrays that it is given; the user's stay.
        carry = jax.tree.map(jnp.copy, carry)
    carry, more, rounds = _run(carry, job.flow, job.search, job.reward, job.cond, job.sizes)
    more = jax.tree.map(lambda a: a[: int(rounds)], jax.device_get(more))
    old = log._replace(seconds=None)
    return _result(job, carry, jax.tree.map(lambda a, b: np.concatenate([a, b]), old, more))


def iterate(
    key: jax.Array,
    flow: Flow,
    search: Search,
    reward: Any,
    *,
    cond: Cond = None,
    prompt_ids: Any = None,
    chunk_size: int | None = None,
    target_reward: float | None = None,
    nfe: Any = None,
    invalid: Literal["error", "warn"] = "error",
    resume: Result | None = None,
) -> Iterator[Result]:
    """`run`, round by round: yields a `Result` after each, whose last equals that of `run`.

    For progress bars, host rewards, stopping early and saving: any of the results can be
    resumed, see `flowsde.save_search`. Arguments as for `run`; they are checked at the call, not
    at the first round.
    """
    return _iterate(
        prepare(
            key,
            flow,
            search,
            reward,
            cond=cond,
            prompt_ids=prompt_ids,
            chunk_size=chunk_size,
            target_reward=target_reward,
            nfe=nfe,
            invalid=invalid,
            resume=resume,
        )
    )


def _init(
    keys: jax.Array, nfe: jax.Array, search: Search, shape: tuple[int, ...], target: jax.Array
) -> Carry:
    state = jax.vmap(lambda k, n: search.init(k, shape, target, n))(keys, nfe)
    zeros = jnp.zeros(keys.shape[0], jnp.int32)
    return Carry(state, zeros, zeros, zeros, zeros)


def _ask(carry: Carry, search: Search) -> tuple[Carry, Candidates]:
    state, asked = jax.vmap(search.ask)(carry.state)
    return carry._replace(state=state), asked


def _tell(
    carry: Carry,
    flow: Flow,
    search: Search,
    asked: Candidates,
    evals: Evaluation,
    computed: Computed,
) -> tuple[Carry, Info, jax.Array]:
    """Tell all prompts, count and charge, and say whether all are done."""
    state, info = jax.vmap(search.tell)(carry.state, asked, evals)
    verified = asked.valid & (asked.wants_reward | asked.wants_gradient)
    info = info._replace(
        evaluations=flow.evaluations * jnp.sum(computed.forward, 1, dtype=jnp.int32),
        backward_passes=flow.evaluations * jnp.sum(computed.backward, 1, dtype=jnp.int32),
        verifier_calls=jnp.sum(verified, 1, dtype=jnp.int32),
    )
    carry = Carry(
        state=state,
        nfe=carry.nfe + flow.evaluations * info.charged,
        evaluations=carry.evaluations + info.evaluations,
        backward_passes=carry.backward_passes + info.backward_passes,
        verifier_calls=carry.verifier_calls + info.verifier_calls,
    )
    return carry, info, _done(state, search)


def _round(
    carry: Carry, flow: Flow, search: Search, reward: DeviceReward, cond: Cond, sizes: Sizes
) -> tuple[Carry, Info, jax.Array]:
    carry, asked = _ask(carry, search)
    evals, computed = evaluate_model(flow, reward, asked, cond, search, sizes.model)
    evals = evaluate_reward(flow, reward, asked, evals, cond, sizes.reward)
    return _tell(carry, flow, search, asked, evals, computed)


@partial(jax.jit, static_argnames=("search", "sizes"), donate_argnames=("carry",))
def _run(
    carry: Carry, flow: Flow, search: Search, reward: DeviceReward, cond: Cond, sizes: Sizes
) -> tuple[Carry, Info, jax.Array]:
    """The rest of a search: final carry, log [max_rounds, P, ...], and the number of rounds."""

    def body(loop: tuple[Any, ...]) -> tuple[Any, ...]:
        carry, log, r, _ = loop
        carry, info, done = _round(carry, flow, search, reward, cond, sizes)
        return carry, jax.tree.map(lambda rows, row: rows.at[r].set(row), log, info), r + 1, done

    shapes = jax.eval_shape(lambda c: _round(c, flow, search, reward, cond, sizes)[1], carry)
    log = jax.tree.map(lambda a: jnp.zeros((search.max_rounds, *a.shape), a.dtype), shapes)
    done = _done(carry.state, search)
    loop = (carry, log, jnp.zeros((), jnp.int32), done)
    carry, log, rounds, _ = jax.lax.while_loop(lambda loop: ~loop[3], body, loop)
    return carry, log, rounds


_start = jax.jit(_init, static_argnames=("search", "shape"))
_ask_step = jax.jit(_ask, static_argnames=("search",))
_model_step = jax.jit(evaluate_model, static_argnames=("search", "size"))
_reward_step = jax.jit(evaluate_reward, static_argnames=("size",))
_tell_step = jax.jit(_tell, static_argnames=("search",))


@partial(jax.jit, static_argnames=("search",))
def _done(state: Any, search: Search) -> jax.Array:
    return jnp.all(jax.vmap(search.done)(state))


@partial(jax.jit, static_argnames=("search", "single"))
def _answer(
    carry: Carry, flow: Flow, search: Search, single: bool
) -> tuple[Carry, Particle, jax.Array]:
    """(carry, best, its image), without the axis of prompts for a single one."""
    best = jax.vmap(search.best)(carry.state)
    answer = carry, best, flow.decode(best.x0)
    return jax.tree.map(lambda a: a[0], answer) if single else answer


def _begin(job: Job) -> tuple[Carry, Info]:
    """Carry and log before the first round of a job, or those to resume from."""
    carry = _start(job.keys, job.nfe, search=job.search, shape=job.flow.shape, target=job.target)
    if job.resume is not None:
        return check_resume(job, carry)

    # Shapes through the compiled parts, whose traces are kept from call to call.
    _, asked = _ask_step.eval_shape(carry, search=job.search)
    evals = Evaluation(asked.x, asked.x, asked.t, asked.x if job.search.guided else None)
    counts: Any = jax.ShapeDtypeStruct(asked.t.shape, jnp.int32)
    _, shapes, _ = _tell_step.eval_shape(
        carry,
        job.flow,
        search=job.search,
        asked=asked,
        evals=evals,
        computed=Computed(counts, counts),
    )
    return carry, empty_log(shapes._replace(seconds=jax.ShapeDtypeStruct((3,), jnp.float32)), 0)


class _Clock:
    """Seconds since it was last asked, once all work on some arrays is done."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self, arrays: Any) -> float:
        jax.block_until_ready(arrays)
        last, self._last = self._last, time.perf_counter()
        return self._last - last


def _one_round(job: Job, carry: Carry, clock: _Clock) -> tuple[Carry, Info, bool]:
    """A round in four programs, so that each can be timed."""
    carry, asked = _ask_step(carry, search=job.search)
    other = clock.lap(asked)
    evals, computed = _model_step(
        job.flow,
        job.reward if job.search.guided else None,
        asked,
        job.cond,
        search=job.search,
        size=job.sizes.model,
    )
    model = clock.lap(evals)
    if isinstance(job.reward, HostReward):
        verify: Any = evaluate_on_host
    else:
        verify = _reward_step
    evals = verify(job.flow, job.reward, asked, evals, job.cond, size=job.sizes.reward)
    verifier = clock.lap(evals)
    carry, info, done = _tell_step(
        carry, job.flow, search=job.search, asked=asked, evals=evals, computed=computed
    )
    info, finished = jax.device_get((info, done))
    other += clock.lap(carry)
    seconds = np.asarray([model, verifier, other], np.float32)
    return carry, info._replace(seconds=seconds), bool(finished)


def _iterate(job: Job) -> Iterator[Result]:
    carry, log = _begin(job)
    rounds, done = len(log.time), bool(_done(carry.state, job.search))
    if log.seconds is None:  # resumed from what `run` gave
        log = log._replace(seconds=np.full((rounds, 3), np.nan, np.float32))
    if done:
        yield _result(job, carry, log)
        return
    # Room for all rounds, filled as they come.
    left = job.search.max_rounds - rounds
    log = jax.tree.map(lambda a: np.concatenate([a, np.zeros((left, *a.shape[1:]), a.dtype)]), log)
    while not done:
        clock = _Clock()
        try:
            following, info, done = _one_round(job, carry, clock)
        except RewardError as error:
            failure = RewardError(f"{error}, in round {rounds}")
            failure.round = rounds
            failure.result = _result(job, carry, _head(log, rounds), final=False)
            raise failure from error.__cause__
        carry = following
        for all_rows, row in zip(log, info, strict=True):
            all_rows[rounds] = row
        rounds += 1
        yield _result(job, carry, _head(log, rounds), final=done)


def _head(log: Info, rounds: int) -> Info:
    return Info(*(rows[:rounds] for rows in log))


def _result(job: Job, carry: Carry, log: Info, final: bool = True) -> Result:
    carry, best, image = _answer(carry, job.flow, job.search, job.single)
    result = Result(
        image=image,
        x0=best.x0,
        x=best.x,
        t=best.t,
        reward=best.reward,
        nfe=carry.nfe,
        evaluations=carry.evaluations,
        backward_passes=carry.backward_passes,
        verifier_calls=carry.verifier_calls,
        verifier_cost=np.float32(job.reward.cost) * np.asarray(carry.verifier_calls, np.float32),
        info=log,
        state=carry.state,
    )
    hopeless = job.ids[np.isneginf(np.atleast_1d(best.reward))] if final else job.ids[:0]
    if hopeless.size:
        message = (
            f"reward {job.reward.name!r} was NaN or -inf for every candidate of "
            f"prompt ids {hopeless.tolist()}"
        )
        if job.invalid == "error":
            raise ValueError(message)
        warnings.warn(message, stacklevel=3)
    return of_one_prompt(result) if job.single else result
