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
- `verifier_calls`, the valid candidates that wanted a reward;
- `draft_evaluations`, what a draft flow computed, which `evaluations` leaves out.

All but the last are in passes of the model: a guided flow costs two a candidate.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from flowsde.conds import Cond
from flowsde.flow import Flow
from flowsde.rewards import HostReward, RewardError
from flowsde.runner import clock, deadline, rounds
from flowsde.runner.arguments import Job, prepare
from flowsde.runner.compiling import compile_rounds, for_model
from flowsde.runner.contract import check_bounds
from flowsde.runner.found import check_found
from flowsde.runner.mesh import fetch
from flowsde.runner.on_host import evaluate_on_host
from flowsde.runner.result import Carry, Result, head, longer, with_numbers
from flowsde.runner.resumed import resumed
from flowsde.search.protocol import Candidates, Info, Search
from flowsde.sharding import ShardingRules


def run(
    key: jax.Array,
    flow: Flow,
    search: Search,
    reward: Any,
    *,
    cond: Cond = None,
    reward_cond: Any = None,
    prompt_ids: Any = None,
    chunk_size: int | None = None,
    target_reward: float | None = None,
    nfe: Any = None,
    seconds: float | None = None,
    invalid: Literal["error", "warn"] = "error",
    resume: Result | None = None,
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
    start: Any = None,
    mask: Any = None,
    noise: Any = None,
    draft: Flow | None = None,
) -> Result:
    """Run a search to its end.

    Args:
      key: a JAX random key. Draws depend on (key, prompt id, chain, step, draw) alone. Those of
        another implementation than threefry, whose batched draws would depend on their neighbours,
        are turned into one: "rbg" of a seed gives what threefry of that seed does.
      flow: the model.
      search: from `flowsde.search`.
      reward: ``reward(images, cond) -> [n]``, higher is better; or one of `flowsde.rewards`.
        What is too large for float32, and +inf, counts as the largest float32.
      cond: of one prompt, without a batch axis; with leading axis P when `prompt_ids` is given.
      reward_cond: what the reward is told instead of `cond`, arrays as there. A reward outside JAX
        may be told any object, a prompt's text for one, or a list of P with `prompt_ids`: it gets a
        list of those of its images. Of a reward of several, parts in JAX are then told `cond`.
      prompt_ids: P integers from 0 to 2**32 - 1, run together; a prompt's result depends on its id
        and not on the others. None runs one prompt, whose id is 0.
      chunk_size: candidates evaluated at once; all of a round by default.
      target_reward: stop when a reward reaches it, of a picture or of a posterior mean at the last
        time of the grid (with finish="mean" at any time); None, as +inf, is never reached.
      nfe: budget of every prompt, or P of them, at most that of the search, which is the default:
        one compiled program serves them all. No more evaluations than int32 counts, surplus and
        padding included.
      seconds: budget of the run instead, of all its prompts together: what a search takes is
        measured first, verifier included, and turned into `nfe`, at most that of the search.
        Compiling and measuring do not count, and no round begins after so many seconds: see
        `Result.timing`. Candidates are then evaluated 32 at once by default.
      invalid: what to do about a prompt without an answer, whose every reward was NaN or -inf, as
        that of a picture that is not finite always is: raise, or warn and return the first.
      resume: a result of `iterate` for the same arguments, to go on from; the mesh may be another.
      mesh: of devices that share the work, with some of the axes "prompt", "particle", "token" and
        "model", or what the rules name. Prompts are split over the first, the rows of a round over
        the first two, tokens of published models over the third, and parameters by the logical
        names of their axes; `chunk_size` is of one part.
        Prompts that do not come out even are filled up with some that are charged nothing.
      rules: of the mesh, `ShardingRules()` by default.
      start: data [*flow.shape] to begin from, or P of them: all first draws are of it, with noise
        of the first time of the search's grid, as of `flowsde.grids.tail` for image-to-image. A
        flow of latents takes `flow.encode` of images. At t = 1 it is forgotten.
      mask: bool, shaped as start, True where it is drawn anew; the rest stays to the bit. By
        replacement, see `flowsde.start` for what that is not.
      noise: standard normal [*flow.shape], or P of them, of which all first draws are made; what
        follows them is drawn as ever. Searches over noise have the first draw of it, and others
        near it.
      draft: a cheaper flow, of a search that takes drafts of one, `flowsde.search.halving` with
        `draft_cost`: of particles of the same shape, decoded by the flow's decoder and not its
        own, so their latents are those of the flow; given the same cond. Its `interpolant` may be
        another. Of rewards, the first are of its pictures. What it computed is in
        `Result.draft_evaluations`.

    Returns:
      A `Result`.

    Raises:
      ValueError, TypeError: naming the argument, before any work; or naming the reward.
      RewardError: a reward outside JAX failed; it names the reward and the round, and its
        `result` can be resumed.
      OutOfTime: `seconds` ended before any reward, for rounds were slower than measured; likewise.

    Example:
      >>> flow = fs.analytic.gaussian([0.0, 0.0], 1.0).flow()
      >>> reward = lambda images, cond: images[:, 0]  # of a sample: 0, give or take 1
      >>> search = fs.search.svdd(
      ...     nfe=40, kernel=fs.kernels.ddim(flow.interpolant), grid=fs.grids.uniform(8)
      ... )
      >>> result = fs.run(jax.random.key(0), flow, search, reward)
      >>> bool(result.reward > 0), int(result.nfe)
      (True, 40)
    """
    job = prepare(**locals())
    if isinstance(job.reward, HostReward) or job.seconds is not None:
        return deque(_iterate(job), maxlen=1).pop()
    carry = _begin(job)
    if resume is not None:
        # The program takes over the arrays that it is given; the user's stay.
        carry = jax.tree.map(jnp.copy, carry)
    logs = [] if resume is None else [resume.info._replace(seconds=None)]
    done = False
    while not done:
        carry, *heard = rounds.run_rounds(carry, job.model, job.program, job.sizes)
        log, n, done, counts = fetch((*heard, carry.counts))
        logs.append(job.trim(head(log, int(n)), axis=1))
        rounds_done = sum(len(log.time) for log in logs)
        check_bounds(
            job.search, rounds_done, bool(done), counts["nfe"], _budgets(job, carry), job.ids
        )
    log = jax.tree.map(lambda *parts: np.concatenate(parts), *logs)
    return _result(job, carry, counts, log)


def iterate(
    key: jax.Array,
    flow: Flow,
    search: Search,
    reward: Any,
    *,
    cond: Cond = None,
    reward_cond: Any = None,
    prompt_ids: Any = None,
    chunk_size: int | None = None,
    target_reward: float | None = None,
    nfe: Any = None,
    seconds: float | None = None,
    invalid: Literal["error", "warn"] = "error",
    resume: Result | None = None,
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
    start: Any = None,
    mask: Any = None,
    noise: Any = None,
    draft: Flow | None = None,
) -> Iterator[Result]:
    """`run`, round by round: yields a `Result` after each, whose last equals that of `run`.

    For progress bars, host rewards, stopping early and saving: any of the results can be
    resumed, see `flowsde.save_search`. Arguments as for `run`; they are checked at the call, not
    at the first round.

    Example:
      >>> flow = fs.analytic.gaussian([0.0, 0.0], 1.0).flow()
      >>> reward = lambda images, cond: images[:, 0]  # of a sample: 0, give or take 1
      >>> search = fs.search.svdd(
      ...     nfe=40, kernel=fs.kernels.ddim(flow.interpolant), grid=fs.grids.uniform(8)
      ... )
      >>> for result in fs.iterate(jax.random.key(0), flow, search, reward):
      ...     pass  # result.reward and result.nfe of so many rounds
      >>> int(result.nfe)
      40
    """
    return _iterate(prepare(**locals()))


def _begin(job: Job) -> Carry:
    """Carry before the first round of a job, or the one to resume from."""
    carry = rounds.start(
        job.keys,
        job.nfe,
        job.target,
        job.program,
        shape=job.flow.shape,
        single=job.single and job.placement.mesh is None,
        live=job.live,
        parts=job.parts,
    )
    if job.start is not None:
        # The program takes over the arrays that it is given.
        one = job.single and job.placement.mesh is None
        start = jax.tree.map(lambda a: jnp.copy(a[0] if one else a), job.start)
        carry = carry._replace(start=start)
    return carry if job.resume is None else resumed(job, carry)


def _budgets(job: Job, carry: Carry) -> np.ndarray:
    """Of each prompt, in model evaluations."""
    return fetch(carry.given.nfe) * job.program.cost


def _log_of(job: Job, carry: Carry) -> Info:
    """The rounds before the first of `iterate`, NumPy [rounds, ...]."""
    if job.resume is not None:
        log = job.resume.info
        # `run` gives none.
        seconds = np.full((len(log.time), 3), np.nan, np.float32)
        return log if log.seconds is not None else log._replace(seconds=seconds)

    # Shapes through the compiled parts, whose traces are kept from call to call.
    asked = rounds.ask.eval_shape(carry, job.program)
    evals, computed = rounds.model_step.eval_shape(*for_model(job, asked))
    parts = dict.fromkeys(job.parts.every, evals.reward) or None
    count = jax.ShapeDtypeStruct(evals.reward.shape, jnp.int32)
    parts_asked = dict.fromkeys(job.parts.unasked, count) or None
    evals = evals._replace(seen=None, parts=parts, asked=parts_asked)
    _, told = rounds.tell.eval_shape(carry, job.program, asked, evals, computed)
    info = jax.tree.map(lambda a: np.zeros((0, *a.shape), a.dtype), told.shapes().info)
    return job.trim(info, axis=1)._replace(seconds=np.zeros((0, 3), np.float32))


_ROOM = 256
"""Rounds that a log has room for at first."""


class _Clock:
    """Seconds since it was last asked, once all work on some arrays is done."""

    def __init__(self) -> None:
        self._last = clock.now()

    def lap(self, arrays: Any) -> float:
        jax.block_until_ready(arrays)
        last, self._last = self._last, clock.now()
        return self._last - last


def _one_round(job: Job, carry: Carry, asked: Candidates) -> tuple[Carry, Candidates, rounds.Told]:
    """A round in programs of its own, so that each can be timed.

    The model is waited for before anything follows: a host that is slow to notice its end would
    count what follows as the model's. The reward and what comes after it are under way together.
    """
    clock, kind = _Clock(), job.program.kind
    evals, computed = rounds.model_step(*for_model(job, asked))
    model = clock.lap(evals)
    if isinstance(job.reward, HostReward):
        evals = evaluate_on_host(
            job.model, job.reward, asked, evals, kind, job.sizes.reward, job.placement
        )
    else:
        evals = rounds.reward_step(job.model, asked, evals, kind, job.sizes.reward, job.placement)
    carry, packed = rounds.tell(carry, job.program, asked, evals, computed)
    following = rounds.ask(carry, job.program)
    verifier = clock.lap(evals)
    told = fetch(packed).unpack()
    seconds = np.asarray([model, verifier, clock.lap(following)], np.float32)
    info = job.trim(told.info)._replace(seconds=seconds)
    return carry, following, told._replace(info=info)


def time_round(job: Job, drafts: bool = False) -> deadline.Sample:
    """A full round of a job, the second time that it is computed, and the decoding of an answer.

    The round is of drafts of another flow, or of none.
    """
    carry = deadline.marked(job, _begin(job._replace(resume=None)), False)
    asked = deadline.filled(job, rounds.ask(carry, job.program), drafts)
    total = 0.0
    for _ in range(2):
        began = clock.now()
        told = _one_round(job, carry, asked)[2]
        jax.block_until_ready(rounds.answer(carry, job.flow, job.program))
        total = clock.now() - began
    return deadline.Sample(told.info, total)


def _iterate(job: Job) -> Iterator[Result]:
    watch = None
    if job.seconds is not None:
        job, watch = deadline.begin(job, time_round)
    carry = deadline.marked(job, _begin(job), False)
    log = _log_of(job, carry)
    counts, n, answer = fetch(carry.counts), len(log.time), None
    done = bool(fetch(rounds.all_done(carry, job.program)))
    over = done or (watch is not None and watch.over)
    if over:
        if watch is not None and not done:
            watch.cut()
            watch.check(_result(job, carry, counts, log, None, False, watch), job.ids)
        yield _result(job, carry, counts, log, watch=watch)
        return
    budgets = _budgets(job, carry)
    check_bounds(job.search, n, done, counts["nfe"], budgets, job.ids)
    if watch is None:  # else it has timed them
        compile_rounds(job, carry)
    asked = rounds.ask(carry, job.program)
    if watch is not None:
        watch.start()
    while not over:
        try:
            carry, asked, told = _one_round(job, carry, asked)
        except RewardError as error:
            failure = RewardError(f"{error}, in round {n}")
            failure.round = n
            failure.result = _result(job, carry, counts, head(log, n), answer, False, watch)
            raise failure from error.__cause__
        if n == len(log.time):
            # Twice as long: room for all that a budget might take may be more than there is.
            log = longer(log, min(max(n, _ROOM), job.search.max_rounds - n))
        for all_rows, row in zip(*map(jax.tree.leaves, (log, told.info)), strict=True):
            all_rows[n] = row
        n += 1
        counts, done = told.counts, bool(told.done)
        check_bounds(job.search, n, done, counts["nfe"], budgets, job.ids)
        if told.changed or answer is None:
            answer = rounds.answer(carry, job.flow, job.program)
        over = done
        if watch is not None:
            jax.block_until_ready(answer)
            over = watch.lap(done)
            if not over and watch.must_finish(told.info):
                carry = deadline.marked(job, carry, True)
                asked = rounds.ask(carry, job.program)
            if over and not done:
                so_far = _result(job, carry, counts, head(log, n), answer, False, watch)
                watch.check(so_far, job.ids)
        yield _result(job, carry, counts, head(log, n), answer, over, watch)
        if watch is not None:
            watch.go()


def _result(
    job: Job,
    carry: Carry,
    counts: Any,
    log: Info,
    answer: tuple[Any, ...] | None = None,
    final: bool = True,
    watch: deadline.Watch | None = None,
) -> Result:
    """What has been found, from `carry`; its counters and answer if they are there already."""
    if answer is None:
        answer = rounds.answer(carry, job.flow, job.program)
    (best, image, kept), said = job.trim((answer, carry.parts))
    if kept is not None and said is not None:
        kept = kept._replace(parts=said.kept)
    counters = job.trim(counts)
    cost = np.float32(job.reward.cost) * np.asarray(counters["verifier_calls"], np.float32)
    result = Result(
        image=image,
        x0=best.x0,
        x=best.x,
        t=best.t,
        reward=best.reward,
        **counters,
        verifier_cost=cost,
        info=log,
        state=job.trim(deadline.marked(job, carry, None).state),
        given=job.trim(carry.given),
        run=job.run[0] if job.single and job.run is not None else job.run,
        kept=kept,
        parts=None if said is None else said.best,
        part_calls=None if said is None else said.calls,
        timing=None if watch is None else watch.timing,
    )
    if final:
        check_found(job, job.ids, fetch(best.reward), (best.x0, image))
    return with_numbers(result) if job.single else result
