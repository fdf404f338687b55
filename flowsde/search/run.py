"""The runner: evaluates candidates of one or many prompts, and counts.

`run` puts a whole search into one compiled program; `iterate` is a generator around the same
compiled round, yielding a `Result` after each. Both give the same answer for the same key.

A round asks every prompt's search for its candidates, flattens [prompts, width], evaluates
flow -> x0 -> decode -> reward in chunks, valid rows first, and tells. All counting is done here:

- `nfe`, what the method is charged: the candidates it would evaluate one at a time;
- `evaluations`, what the model computed for them: surplus of wide waves and padding of
  chunks included, exactly the rows a counting model sees;
- `verifier_calls`, the valid candidates that wanted a reward.

`nfe` and `evaluations` are in passes of the model: a guided flow costs two a candidate.
"""

import warnings
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._checks import check_count
from flowsde.flow import Cond, Flow, as_partial, check_cond
from flowsde.interpolants import Interpolant
from flowsde.rewards.base import HostReward, check_rewards, reward_name
from flowsde.search.base import Candidates, Evaluation, Info, Particle, Search


class Result(NamedTuple):
    """What a search found; leading axis P for several prompts, none for one.

    Attributes:
      image: what the reward saw of the best particle, the decoded x0.
      x0: its posterior mean, float32 [*flow.shape].
      x, t: the particle, float32 [*flow.shape] and [], in the search's interpolant; evaluating
        the flow there gives x0, and the reward of its decoding is `reward`.
      reward: float32 [].
      nfe: model evaluations charged; never above the budget.
      evaluations: model evaluations computed, surplus and padding included.
      verifier_calls: rewards asked for.
      info: `flowsde.search.Info` with a leading axis of rounds.
      state: of the search, after the last round.
    """

    image: Any
    x0: Any
    x: Any
    t: Any
    reward: Any
    nfe: Any
    evaluations: Any
    verifier_calls: Any
    info: Info
    state: Any


class _Carry(NamedTuple):
    """State and counters of P prompts."""

    state: Any
    nfe: jax.Array
    evaluations: jax.Array
    verifier_calls: jax.Array


class _Job(NamedTuple):
    """Checked arguments of a run."""

    keys: jax.Array
    flow: Flow
    search: Search
    reward: Any
    cond: Cond
    target: jax.Array
    chunk: int
    ids: np.ndarray
    single: bool
    invalid: str


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
    invalid: Literal["error", "warn"] = "error",
) -> Result:
    """Run a search to its end.

    Args:
      key: a JAX random key. Draws depend on (key, prompt id, chain, step, draw) alone.
      flow: the model.
      search: from `flowsde.search`.
      reward: ``reward(images, cond) -> [n]``, higher is better; or `flowsde.rewards.host`.
      cond: of one prompt, without a batch axis; with leading axis P when `prompt_ids` is given.
      prompt_ids: P integers, run together; a prompt's result depends on its id and not on the
        others. None runs one prompt, whose id is 0.
      chunk_size: candidates evaluated at once; all of a round by default.
      target_reward: stop when a reward reaches it; None is +inf, which nothing can improve on.
      invalid: what to do if every reward was NaN or -inf: raise, or warn and return the first.

    Returns:
      A `Result`.

    Raises:
      ValueError, TypeError: naming the argument, before any work; or naming the reward.
    """
    job = _prepare(key, flow, search, reward, cond, prompt_ids, chunk_size, target_reward, invalid)
    if isinstance(job.reward, HostReward):
        return deque(_iterate(job), maxlen=1).pop()
    carry, infos, rounds = _run(
        job.keys, job.flow, job.search, job.reward, job.cond, job.target, job.chunk
    )
    infos = jax.tree.map(lambda a: a[: int(rounds)], jax.device_get(infos))
    return _result(job, carry, infos)


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
    invalid: Literal["error", "warn"] = "error",
) -> Iterator[Result]:
    """`run`, round by round: yields a `Result` after each, whose last equals that of `run`.

    For progress bars, host rewards and stopping early. Arguments as for `run`; they are
    checked at the call, not at the first round.
    """
    return _iterate(
        _prepare(key, flow, search, reward, cond, prompt_ids, chunk_size, target_reward, invalid)
    )


def _prepare(
    key: jax.Array,
    flow: Flow,
    search: Search,
    reward: Any,
    cond: Cond,
    prompt_ids: Any,
    chunk_size: int | None,
    target_reward: float | None,
    invalid: str,
) -> _Job:
    if not isinstance(flow, Flow):
        raise TypeError(f"flow must be a flowsde.Flow, got {type(flow).__name__}")
    if not isinstance(search, Search):
        raise TypeError(f"search must be a flowsde.search.Search, got {type(search).__name__}")
    if invalid not in ("error", "warn"):
        raise ValueError(f"invalid must be 'error' or 'warn', got {invalid!r}")
    target = np.float32(np.inf) if target_reward is None else _check_target(target_reward)
    single = prompt_ids is None
    ids = np.zeros(1, np.int32) if single else np.asarray(prompt_ids)
    if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
        raise ValueError(f"prompt_ids must be at least one integer in a row, got {prompt_ids!r}")
    cond = jax.tree.map(jnp.asarray, cond)
    if single:
        cond = jax.tree.map(lambda a: a[None], cond)
    check_cond(cond, ids.size, "len(prompt_ids)")
    if flow.evaluations != 1:
        # The search counts candidates, the budget is in passes of the model.
        search = search.with_nfe(search.nfe // flow.evaluations)
    rows = ids.size * search.n_candidates
    job = _Job(
        keys=jax.vmap(partial(jax.random.fold_in, key))(jnp.asarray(ids, jnp.uint32)),
        flow=flow,
        search=search,
        reward=reward if isinstance(reward, HostReward) else as_partial("reward", reward),
        cond=cond,
        target=jnp.asarray(target),
        chunk=rows if chunk_size is None else min(rows, check_count("chunk_size", chunk_size)),
        ids=ids,
        single=single,
        invalid=invalid,
    )
    # Trace the model and the reward now, on shapes alone: their errors come before any work.
    host = isinstance(job.reward, HostReward)
    _evaluate.eval_shape(
        job.flow,
        None if host else job.reward,
        jax.ShapeDtypeStruct((job.chunk, *flow.shape), jnp.float32),
        jax.ShapeDtypeStruct((job.chunk,), jnp.float32),
        jax.eval_shape(lambda c: _rows(c, jnp.zeros(job.chunk, jnp.int32)), job.cond),
        jax.ShapeDtypeStruct((job.chunk,), jnp.bool),
        interpolant=job.search.interpolant,
        with_reward=not host,
    )
    return job


def _check_target(target_reward: Any) -> np.float32:
    try:
        target = np.float32(target_reward)
    except (TypeError, ValueError):
        raise TypeError(f"target_reward must be a number, got {target_reward!r}") from None
    # Every reward reaches -inf, that of a NaN too.
    if np.ndim(target) != 0 or not target > -np.inf:
        raise ValueError(f"target_reward must be one number above -inf, got {target_reward!r}")
    return target


def _rows(cond: Cond, prompts: jax.Array) -> Cond:
    return jax.tree.map(lambda a: a[prompts], cond)


@partial(jax.jit, static_argnames=("interpolant", "with_reward"))
def _evaluate(
    flow: Flow,
    reward: Any,
    x: jax.Array,
    t: jax.Array,
    cond: Cond,
    wants: jax.Array,
    *,
    interpolant: Interpolant,
    with_reward: bool,
) -> Evaluation:
    """Means and rewards of rows; rewards only if any row wants one.

    Compiled on its own so that the model is traced once a shape: the check before the run and the
    run itself share the trace.
    """
    x0, x1 = flow.means(x, t, cond, interpolant)
    nothing = jnp.full(t.shape, -jnp.inf, jnp.float32)
    if not with_reward:
        return Evaluation(x0, x1, nothing)

    def verify() -> jax.Array:
        rewards = reward(flow.decode(x0), cond)
        check_rewards(reward_name(reward), rewards, t.shape[0])
        return _clean(rewards, wants)

    return Evaluation(x0, x1, jax.lax.cond(jnp.any(wants), verify, lambda: nothing))


def _clean(rewards: jax.Array, wants: jax.Array) -> jax.Array:
    """NaN counts as -inf, and so does what was not asked for."""
    rewards = rewards.astype(jnp.float32)
    return jnp.where(wants & ~jnp.isnan(rewards), rewards, -jnp.inf)


def _evaluate_in_chunks(
    flow: Flow,
    reward: Any,
    candidates: Candidates,
    cond: Cond,
    search: Search,
    chunk: int,
    with_reward: bool,
) -> tuple[Evaluation, jax.Array]:
    """Evaluate rows [m], valid ones first, as many whole chunks as they need.

    Returns:
      The evaluation, and how often each row was computed, int32 [m].
    """
    m, width = candidates.t.shape[0], search.n_candidates
    wants = candidates.valid & candidates.wants_reward
    evaluate = partial(
        _evaluate, flow, reward, interpolant=search.interpolant, with_reward=with_reward
    )
    prompts = jnp.arange(m, dtype=jnp.int32) // width
    if chunk == m:
        evals = evaluate(candidates.x, candidates.t, _rows(cond, prompts), wants)
        return evals, jnp.ones(m, jnp.int32)

    order = jnp.argsort(~candidates.valid, stable=True)
    n_valid = jnp.sum(candidates.valid, dtype=jnp.int32)
    zeros = jnp.zeros_like(candidates.x)
    empty = Evaluation(zeros, zeros, jnp.full(m, -jnp.inf, jnp.float32))

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        i, buffers, computed = carry
        at = order[jnp.minimum(i * chunk + jnp.arange(chunk, dtype=jnp.int32), m - 1)]
        evals = evaluate(candidates.x[at], candidates.t[at], _rows(cond, prompts[at]), wants[at])
        buffers = jax.tree.map(lambda buffer, new: buffer.at[at].set(new), buffers, evals)
        return i + 1, buffers, computed.at[at].add(1)

    start = (jnp.zeros((), jnp.int32), empty, jnp.zeros(m, jnp.int32))
    _, evals, computed = jax.lax.while_loop(lambda c: c[0] * chunk < n_valid, body, start)
    return evals, computed


def _init(keys: jax.Array, search: Search, shape: tuple[int, ...], target: jax.Array) -> _Carry:
    state = jax.vmap(lambda k: search.init(k, shape, target))(keys)
    zeros = jnp.zeros(keys.shape[0], jnp.int32)
    return _Carry(state, zeros, zeros, zeros)


def _ask(
    carry: _Carry,
    flow: Flow,
    search: Search,
    reward: Any,
    cond: Cond,
    chunk: int,
    with_reward: bool,
) -> tuple[_Carry, Candidates, Evaluation]:
    """Ask all prompts, evaluate, and count what was computed; leaves are [P, width, ...]."""
    prompts = carry.nfe.shape[0]
    state, asked = jax.vmap(search.ask)(carry.state)
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), asked)
    evals, computed = _evaluate_in_chunks(flow, reward, flat, cond, search, chunk, with_reward)
    evals, computed = jax.tree.map(
        lambda a: a.reshape(prompts, -1, *a.shape[1:]), (evals, computed)
    )
    wanted = jnp.sum(asked.valid & asked.wants_reward, axis=1, dtype=jnp.int32)
    carry = carry._replace(
        state=state,
        evaluations=carry.evaluations + flow.evaluations * jnp.sum(computed, 1, dtype=jnp.int32),
        verifier_calls=carry.verifier_calls + wanted,
    )
    return carry, asked, evals


def _tell(
    carry: _Carry, flow: Flow, search: Search, asked: Candidates, evals: Evaluation
) -> tuple[_Carry, Info, jax.Array]:
    """Tell all prompts, charge them, and say whether all are done."""
    state, info = jax.vmap(search.tell)(carry.state, asked, evals)
    carry = carry._replace(state=state, nfe=carry.nfe + flow.evaluations * info.charged)
    return carry, info, jnp.all(jax.vmap(search.done)(state))


def _round(
    carry: _Carry, flow: Flow, search: Search, reward: Any, cond: Cond, chunk: int
) -> tuple[_Carry, Info, jax.Array]:
    carry, asked, evals = _ask(carry, flow, search, reward, cond, chunk, True)
    return _tell(carry, flow, search, asked, evals)


@partial(jax.jit, static_argnames=("search", "chunk"))
def _run(
    keys: jax.Array,
    flow: Flow,
    search: Search,
    reward: Any,
    cond: Cond,
    target: jax.Array,
    chunk: int,
) -> tuple[_Carry, Info, jax.Array]:
    """The whole search: final carry, infos [max_rounds, P, ...], and the number of rounds."""
    carry = _init(keys, search, flow.shape, target)

    def body(loop: tuple[Any, ...]) -> tuple[Any, ...]:
        carry, infos, r, _ = loop
        carry, info, done = _round(carry, flow, search, reward, cond, chunk)
        return carry, jax.tree.map(lambda log, row: log.at[r].set(row), infos, info), r + 1, done

    shapes = jax.eval_shape(lambda c: _round(c, flow, search, reward, cond, chunk)[1], carry)
    infos = jax.tree.map(lambda a: jnp.zeros((search.max_rounds, *a.shape), a.dtype), shapes)
    loop = (carry, infos, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.bool))
    carry, infos, rounds, _ = jax.lax.while_loop(lambda loop: ~loop[3], body, loop)
    return carry, infos, rounds


_start = jax.jit(_init, static_argnames=("search", "shape"))
_step = jax.jit(_round, static_argnames=("search", "chunk"))
_ask_step = jax.jit(_ask, static_argnames=("search", "chunk", "with_reward"))
_tell_step = jax.jit(_tell, static_argnames=("search",))


@partial(jax.jit, static_argnames=("search",))
def _answer(state: Any, flow: Flow, search: Search) -> tuple[Particle, jax.Array]:
    best = jax.vmap(search.best)(state)
    return best, flow.decode(best.x0)


def _iterate(job: _Job) -> Iterator[Result]:
    carry = _start(job.keys, search=job.search, shape=job.flow.shape, target=job.target)
    log: Info | None = None
    for r in range(job.search.max_rounds):
        if isinstance(job.reward, HostReward):
            carry, asked, evals = _ask_step(
                carry,
                job.flow,
                search=job.search,
                reward=None,
                cond=job.cond,
                chunk=job.chunk,
                with_reward=False,
            )
            evals = evals._replace(reward=_verify_on_host(job, asked, evals))
            carry, info, finished = _tell_step(
                carry, job.flow, search=job.search, asked=asked, evals=evals
            )
        else:
            carry, info, finished = _step(
                carry,
                job.flow,
                search=job.search,
                reward=job.reward,
                cond=job.cond,
                chunk=job.chunk,
            )
        info, done = jax.device_get((info, finished))
        if log is None:
            log = jax.tree.map(lambda a: np.zeros((job.search.max_rounds, *a.shape), a.dtype), info)
        for rows, row in zip(log, info, strict=True):
            rows[r] = row
        yield _result(job, carry, Info(*(rows[: r + 1] for rows in log)), bool(done))
        if done:
            return


_decode = jax.jit(lambda flow, x0: flow.decode(x0))


def _verify_on_host(job: _Job, asked: Candidates, evals: Evaluation) -> jax.Array:
    """Rewards [P, width] of the rows that want one, through NumPy."""
    wants = np.asarray(asked.valid & asked.wants_reward)
    wanted = np.flatnonzero(wants)
    rewards = np.full(wants.size, -np.inf, np.float32)
    flat = evals.x0.reshape(-1, *job.flow.shape)
    for start in range(0, wanted.size, job.chunk):
        at = wanted[start : start + job.chunk]
        # Filled up with further rows to the one compiled shape.
        images = np.asarray(_decode(job.flow, flat[np.resize(at, job.chunk)]))[: at.size]
        cond = jax.tree.map(lambda a, at=at: np.asarray(a)[at // wants.shape[1]], job.cond)
        told = job.reward(images, cond)
        rewards[at] = np.where(np.isnan(told), -np.inf, told)
    return jnp.asarray(rewards.reshape(wants.shape))


def _result(job: _Job, carry: _Carry, infos: Info, final: bool = True) -> Result:
    best, image = _answer(carry.state, job.flow, search=job.search)
    result = Result(
        image=image,
        x0=best.x0,
        x=best.x,
        t=best.t,
        reward=best.reward,
        nfe=carry.nfe,
        evaluations=carry.evaluations,
        verifier_calls=carry.verifier_calls,
        info=infos,
        state=carry.state,
    )
    hopeless = job.ids[np.isneginf(np.asarray(best.reward))]
    if final and hopeless.size:
        message = (
            f"reward {reward_name(job.reward)!r} was NaN or -inf for every candidate of "
            f"prompt ids {hopeless.tolist()}"
        )
        if job.invalid == "error":
            raise ValueError(message)
        warnings.warn(message, stacklevel=3)
    if not job.single:
        return result
    one = Result(*(jax.tree.map(lambda a: a[0], part) for part in result._replace(info=infos)))
    return one._replace(
        info=jax.tree.map(lambda a: a[:, 0], infos),
        nfe=int(one.nfe),
        evaluations=int(one.evaluations),
        verifier_calls=int(one.verifier_calls),
    )
