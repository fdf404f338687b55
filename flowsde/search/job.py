"""The arguments of a run, checked before any work."""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._checks import check_count
from flowsde.flow import Cond, Flow, check_cond
from flowsde.rewards.base import HostReward, Reward, as_reward
from flowsde.search.base import Search
from flowsde.search.evaluate import Sizes, means, rows, verify
from flowsde.search.result import Carry, Result, carry_of


class Job(NamedTuple):
    """Checked arguments of a run."""

    keys: jax.Array
    flow: Flow
    search: Search
    reward: Reward
    cond: Cond
    target: jax.Array
    nfe: jax.Array
    sizes: Sizes
    ids: np.ndarray
    single: bool
    invalid: str
    resume: Result | None


def prepare(
    key: jax.Array,
    flow: Flow,
    search: Search,
    reward: Any,
    *,
    cond: Cond,
    prompt_ids: Any,
    chunk_size: int | None,
    target_reward: float | None,
    nfe: Any,
    invalid: Literal["error", "warn"],
    resume: Result | None,
) -> Job:
    """Check all; arguments as for `flowsde.run`."""
    if not isinstance(flow, Flow):
        raise TypeError(f"flow must be a flowsde.Flow, got {type(flow).__name__}")
    if not isinstance(search, Search):
        raise TypeError(f"search must be a flowsde.search.Search, got {type(search).__name__}")
    if invalid not in ("error", "warn"):
        raise ValueError(f"invalid must be 'error' or 'warn', got {invalid!r}")
    if resume is not None and not isinstance(resume, Result):
        raise TypeError(f"resume must be a flowsde.Result, got {type(resume).__name__}")
    target = np.float32(np.inf) if target_reward is None else _check_target(target_reward)
    single = prompt_ids is None
    ids = np.zeros(1, np.int32) if single else np.asarray(prompt_ids)
    if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
        raise ValueError(f"prompt_ids must be at least one integer in a row, got {prompt_ids!r}")
    cond = jax.tree.map(jnp.asarray, cond)
    if single:
        cond = jax.tree.map(lambda a: a[None], cond)
    check_cond(cond, ids.size, "len(prompt_ids)")
    budgets = _budgets(search, ids.size, nfe) // flow.evaluations
    if flow.evaluations != 1:
        # The search counts candidates, the budget is in passes of the model.
        search = search.with_nfe(search.nfe // flow.evaluations)
    for budget in np.unique(budgets):
        search.with_nfe(int(budget))  # or raises
    verifier = as_reward(reward)
    if search.guided and isinstance(verifier, HostReward):
        raise TypeError(
            f"reward {verifier.name!r} runs outside JAX and has no gradient, which the search's "
            f"guided kernel wants; expected a JAX function"
        )
    job = Job(
        keys=jax.vmap(partial(jax.random.fold_in, key))(jnp.asarray(ids, jnp.uint32)),
        flow=flow,
        search=search,
        reward=verifier,
        cond=cond,
        target=jnp.asarray(target),
        nfe=jnp.asarray(budgets),
        sizes=_sizes(ids.size * search.n_candidates, chunk_size, verifier.minibatch),
        ids=ids,
        single=single,
        invalid=invalid,
        resume=resume,
    )
    _trace(job)
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


def _budgets(search: Search, prompts: int, nfe: Any) -> np.ndarray:
    """Model evaluations of each prompt, int32 [prompts]."""
    given = np.asarray(search.nfe if nfe is None else nfe)
    if given.dtype.kind not in "iu" or given.shape not in ((), (prompts,)):
        raise ValueError(
            f"nfe must be an integer or one for each of {prompts} prompts, got {nfe!r}"
        )
    if given.max() > search.nfe:
        raise ValueError(f"nfe must be at most that of the search, {search.nfe}, got {given.max()}")
    return np.broadcast_to(given, (prompts,)).astype(np.int32)


def _sizes(most: int, chunk_size: int | None, minibatch: int | None) -> Sizes:
    model = most if chunk_size is None else min(most, check_count("chunk_size", chunk_size))
    return Sizes(model, model if minibatch is None else min(most, minibatch))


def _trace(job: Job) -> None:
    """Trace the model and the reward on shapes alone: their errors come before any work."""

    def shapes(n: int) -> tuple[Any, Any, Any]:
        own = jax.eval_shape(lambda c: rows(c, jnp.zeros(n, jnp.int32)), job.cond)
        x = jax.ShapeDtypeStruct((n, *job.flow.shape), jnp.float32)
        return x, jax.ShapeDtypeStruct((n,), jnp.float32), own

    x, t, cond = shapes(job.sizes.model)
    means.eval_shape(job.flow, x, t, cond, interpolant=job.search.interpolant)
    if not isinstance(job.reward, HostReward):
        # A guided search takes rewards with the model's chunks as well.
        for n in {job.sizes.reward, *([job.sizes.model] if job.search.guided else [])}:
            x, _, cond = shapes(n)
            verify.eval_shape(job.flow, job.reward, x, cond)


def _identity(state: Any) -> tuple[Any, ...]:
    """Key, target and budget that a state was begun with."""
    while hasattr(state, "inner"):
        state = state.inner
    return jax.random.key_data(state.key), state.target, state.nfe


def check_resume(job: Job, fresh: Carry) -> Carry:
    """Carry to go on from; ValueError unless they are of this very job.

    Args:
      job: with `resume`.
      fresh: what the job would begin with.
    """
    assert job.resume is not None
    carry = carry_of(job.resume)
    like, found = jax.tree.structure(fresh), jax.tree.structure(carry)
    if str(like) != str(found) or any(
        a.shape != b.shape or a.dtype != b.dtype
        for a, b in zip(jax.tree.leaves(fresh), jax.tree.leaves(carry), strict=True)
    ):
        raise ValueError(
            "resume is of another search, or of other prompts or shapes, than this run's"
        )
    names = ("key or prompt_ids", "target_reward", "nfe")
    for name, wanted, got in zip(
        names, _identity(fresh.state), _identity(carry.state), strict=True
    ):
        if not np.array_equal(wanted, got):
            raise ValueError(f"resume was begun with another {name} than this run's")
    return carry
