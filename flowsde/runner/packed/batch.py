"""`flowsde.batch`: the searches of many prompts, packed into full batches."""

import warnings
from collections.abc import Generator, Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from flowsde._checks import check_count
from flowsde.conds import Cond, check_arrays, stacked
from flowsde.flow import Flow
from flowsde.runner.arguments import Job, check_ids, prepare
from flowsde.runner.clock import Timing
from flowsde.runner.found import check_found
from flowsde.runner.packed.budget import check_total, shared
from flowsde.runner.packed.engine import Engine, Totals
from flowsde.runner.packed.timed import prompts_of, timed
from flowsde.runner.result import Result
from flowsde.search.protocol import Search
from flowsde.sharding import ShardingRules


class Packing(Iterator[tuple[int, Result]]):
    """(prompt id, `Result`) of each prompt as it ends; made by `batch`.

    A prompt's result is that of `flowsde.run` alone, without `info` and `state`. Its `evaluations`
    are those computed for it, and with its `verifier_calls` hold the surplus of RBF's waves that
    had been widened to fill a batch.
    """

    def __init__(self, engine: Engine, results: Generator[tuple[int, Result], None, None]):
        self._engine, self._results = engine, results

    @property
    def totals(self) -> Totals:
        """Of all batches so far."""
        return self._engine.totals

    @property
    def timing(self) -> Timing | None:
        """Of a budget in seconds, as `Result.timing`: after the last result, of all."""
        return None if self._engine.watch is None else self._engine.watch.timing

    def __next__(self) -> tuple[int, Result]:
        return next(self._results)

    def close(self) -> None:
        """Stop; what has not ended is dropped."""
        self._results.close()


def batch(
    key: jax.Array,
    flow: Flow,
    search: Search,
    reward: Any,
    *,
    cond: Cond = None,
    reward_cond: Any = None,
    prompt_ids: Any = None,
    batch_size: int = 32,
    slots: int | None = None,
    target_reward: float | None = None,
    nfe: Any = None,
    total_nfe: int | None = None,
    seconds: float | None = None,
    invalid: Literal["error", "warn"] = "error",
    start: Any = None,
    mask: Any = None,
    noise: Any = None,
    draft: Flow | None = None,
    mesh: Mesh | None = None,
    rules: ShardingRules | None = None,
) -> Packing:
    """Run a search for each of many prompts, their candidates packed into batches of one size.

    Every prompt advances at a pace of its own. A batch takes candidates of any of them, each at its
    own time; a prompt that ends makes room for the next of the list at once. When few are left,
    RBF's waves grow to fill the batch. While a reward outside JAX scores a batch, the device
    computes the next. What a prompt finds does not depend on any of that.

    Args:
      key, flow, search, reward: as for `flowsde.run`.
      cond: with leading axis P, or a list of P conds without one.
      reward_cond: what the reward is told instead, the same or P objects, as for `flowsde.run`.
      prompt_ids: P different integers from 0 to 2**32 - 1; 0, 1, … by default. A prompt's draws
        depend on (key, id).
      batch_size: candidates evaluated at once, B.
      slots: prompts under way at once, at most; by default as many as keep the batches full. Their
        states are in memory.
      target_reward: a prompt ends when a reward of its own reaches it, as for `flowsde.run`.
      nfe: budget of every prompt, or P of them; that of the search by default.
      total_nfe: budget of all prompts together, a hard cap, for a `target_reward`. `nfe` is then
        that of an attempt: prompts have equal shares first, and what those leave that reach the
        target goes to further attempts of the others, whose answer is the best one's. Their
        results come at the end.
      seconds: budget of all prompts together, instead of `nfe`: what a batch takes is measured
        first, rewards included, and turned into evaluations, as many for each prompt, as
        `timing.nfe` says. The clock runs while batches do. At the deadline prompts under way end
        with the best so far; one that has no reward yet, or has not begun, gives no result: a
        warning says how many.
      invalid: what to do with a prompt whose every reward was NaN or -inf, as that of a picture
        that is not finite is: raise when it ends, or warn and give its first particle.
      start, mask, noise: as for `flowsde.run`, one for all prompts or P of each.
      draft: as for `flowsde.run`; a batch may hold candidates of both flows.
      mesh, rules: of devices that share the work, as for `flowsde.run`: the rows of a batch are
        split over the axes of prompts and of particles together, of which each part has
        `batch_size`, and parameters as the rules say. Every device holds the states of all slots,
        and asks and tells alike. Of several processes all are given all results.

    Returns:
      An iterator over (prompt id, `Result`), with `totals`.

    Raises:
      ValueError, TypeError: naming the argument, at the call; or naming the reward.
      RewardError: a reward outside JAX failed. Prompts that have ended were given before.

    Example:
      >>> flow = fs.analytic.gaussian([0.0, 0.0], 1.0).flow()
      >>> reward = lambda images, cond: images[:, 0]  # of a sample: 0, give or take 1
      >>> search = fs.search.svdd(
      ...     nfe=40, kernel=fs.kernels.ddim(flow.interpolant), grid=fs.grids.uniform(8)
      ... )
      >>> found = dict(fs.batch(jax.random.key(0), flow, search, reward, prompt_ids=[3, 1, 2]))
      >>> sorted(found), int(found[3].nfe)
      ([1, 2, 3], 40)
    """
    size = check_count("batch_size", batch_size)
    many = None if slots is None else check_count("slots", slots)
    cond, ids = as_list(cond, prompt_ids)
    job = prepare(
        key, flow, search, reward, cond=cond, reward_cond=reward_cond, prompt_ids=ids,
        chunk_size=size, target_reward=target_reward, nfe=nfe, seconds=seconds, invalid=invalid,
        start=start, mask=mask, noise=noise, draft=draft, mesh=mesh, rules=rules, packed=True,
    )  # fmt: skip
    if seconds is not None and total_nfe is not None:
        raise ValueError(
            f"total_nfe and seconds are both given, {total_nfe!r} and {seconds!r}, expected one"
        )
    if total_nfe is not None:
        total_nfe = check_count("total_nfe", total_nfe, most=2**63 - 1)
        check_total(
            "total_nfe", total_nfe, "target_reward", target_reward,
            job.search, flow.evaluations, ids.size,
        )  # fmt: skip
    engine = Engine(job, size, many)
    return Packing(engine, _results(job, engine, total_nfe))


def as_list(cond: Cond, prompt_ids: Any) -> tuple[Cond, np.ndarray]:
    """Cond [P, ...] and P ids, either of which may be left to the other."""
    check_arrays("cond", cond)
    if isinstance(cond, list):
        cond = stacked("cond", cond)
    if prompt_ids is None:
        leaves = jax.tree.leaves(cond)
        if not leaves or jnp.ndim(leaves[0]) == 0:
            raise ValueError("prompt_ids is missing: without a cond there is no telling how many")
        prompt_ids = np.arange(leaves[0].shape[0])
    ids = check_ids(prompt_ids)
    if np.unique(ids).size < ids.size:
        raise ValueError(f"prompt_ids must be different integers, got {ids.tolist()}")
    return cond, ids


def _results(
    job: Job, engine: Engine, total: int | None
) -> Generator[tuple[int, Result], None, None]:
    if job.seconds is not None:
        found = timed(job, engine)
    else:
        found = engine.run(prompts_of(job)) if total is None else shared(job, engine, total)
    try:
        for number, result in found:
            check_found(job, job.ids[[number]], result.reward, (result.x0, result.image))
            yield int(job.ids[number]), result
        missing, many = job.ids.size - engine.totals.prompts, job.ids.size
        if job.seconds is not None and missing:
            warnings.warn(
                f"seconds = {job.seconds} ended before {missing} of {many} prompts had a reward",
                stacklevel=3,
            )
    finally:
        engine.close()
