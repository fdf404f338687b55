"""What a run goes on from when it resumes: a result of the same search, key, budgets and target."""

import jax
import jax.numpy as jnp
import numpy as np

from flowsde.runner.arguments import Job
from flowsde.runner.mesh import EVERYWHERE, fetch, gather
from flowsde.runner.result import Carry, carry_of


def resumed(job: Job, fresh: Carry) -> Carry:
    """The carry of `resume`; ValueError unless they are of this very job.

    Args:
      job: with `resume`.
      fresh: what the job would begin with.
    """
    assert job.resume is not None
    if job.resume.state is None:
        raise ValueError("resume has no state to go on from, expected a result of run or iterate")
    own = job.trim(fresh._replace(live=None))
    carry = _with_calls(job, carry_of(job.resume)._replace(start=own.start))
    like, found = jax.tree.structure(own), jax.tree.structure(carry)
    if str(like) != str(found) or any(
        a.shape != b.shape or a.dtype != b.dtype
        for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(carry), strict=True)
    ):
        raise ValueError(
            "resume is of another search, or of other prompts or shapes, or of other parts of a "
            "reward, than this run's"
        )
    names = ("key or prompt_ids", "target_reward", "nfe")
    for name, wanted, got in zip(names, *fetch((own.given, carry.given)), strict=True):
        if not np.array_equal(wanted, got):
            raise ValueError(f"resume was begun with another {name} than this run's")
    # A save of an earlier version has none.
    if job.run is not None and job.resume.run is not None:
        if not np.array_equal(job.run, np.atleast_1d(np.asarray(job.resume.run))):
            version = getattr(job.reward, "version", None)
            also = f", or with another version of the reward than {version}" if version else ""
            raise ValueError(
                f"resume was begun with another search, cond or reward_cond than this run's{also}"
            )
    if job.placement.mesh is None:
        return job.placement.put(carry, EVERYWHERE)
    return _padded(job, carry, fresh)


def _with_calls(job: Job, carry: Carry) -> Carry:
    """A carry of a save that has no calls of parts yet: they are counted in its log."""
    names, said = job.parts.unasked, job.resume.info.parts if job.resume else None
    if not names or carry.parts is None or carry.parts.calls is not None or said is None:
        return carry
    # [rounds, ..., w]; a part that was not asked is NaN there.
    calls = {n: jnp.asarray((~np.isnan(said[n])).sum((0, -1)), jnp.int32) for n in names}
    return carry._replace(parts=carry.parts._replace(calls=calls))


def _padded(job: Job, carry: Carry, fresh: Carry) -> Carry:
    """A carry of the job's own prompts, on the mesh with its padding, which is as at the start."""

    def pad(own: jax.Array, begun: jax.Array) -> jax.Array:
        own = own[None] if job.single else own
        if len(own) < len(begun):
            # The one may lie on another mesh, or be committed to a device.
            parts = gather([own, begun[len(own) :]])
            own = jnp.concatenate(job.placement.put(parts, EVERYWHERE))
        return job.placement.put(own, job.placement.by_prompt)

    # Which prompts are padding is no part of what was saved.
    own = jax.tree.map(pad, carry._replace(live=None), fresh._replace(live=None))
    return own._replace(live=job.live)
