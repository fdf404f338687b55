"""What the parts of a combined reward say of candidates, and of the answer.

They are arrays by name, as `flowsde.search.Info.parts`; None for a reward without parts.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowsde.rewards.base import HostReward, Parts, Scores
from flowsde.runner.ahead import ahead, with_rewards
from flowsde.search.protocol import Candidates, Evaluation, Particle
from flowsde.search.value import LookAhead


def row_parts(
    rows: Any, parts: Parts | None, before: Parts | None, value: LookAhead | None
) -> Parts | None:
    """What parts say of rows [m], of those [m k] of what was scored; else of before."""
    if parts is None:
        return None
    wanted = rows.valid & rows.wants_reward & ~rows.wants_gradient
    looked = ahead(rows, value)

    def of_rows(part: jax.Array, before: jax.Array) -> jax.Array:
        each = part.reshape(wanted.size, -1)
        part = jnp.where(looked, jnp.mean(each, -1), each[:, 0])
        return jnp.where(wanted | looked, part, before)

    given = before or jax.tree.map(lambda part: jnp.full(wanted.size, jnp.nan, part.dtype), parts)
    return jax.tree.map(of_rows, parts, given)


def with_scores(
    rows: Any, evals: Evaluation, scores: Scores, value: LookAhead | None
) -> Evaluation:
    """Rows [m] with what was scored [m k]."""
    parts = row_parts(rows, scores.parts, evals.parts, value)
    return with_rewards(rows, evals, scores.reward, value)._replace(parts=parts)


def not_scored(reward: HostReward, n: int) -> Scores:
    """NumPy rewards of n pictures before they are asked for, to be written to."""
    nothing = Scores(np.full(n, -np.inf, np.float32))
    if reward.combination is None:
        return nothing
    names = reward.combination.names
    return nothing._replace(parts={name: np.full(n, np.nan, np.float32) for name in names})


def write_scores(told: Scores, at: np.ndarray, scores: Scores, finite: np.ndarray) -> None:
    """Write what pictures were worth to their places; NaN counts as -inf."""
    told.reward[at] = np.where(finite & ~np.isnan(scores.reward), scores.reward, -np.inf)
    for name, part in (scores.parts or {}).items():
        assert told.parts is not None
        told.parts[name][at] = part


def answer_parts(
    before: Parts, old: Particle, new: Particle, asked: Candidates, parts: Parts
) -> Parts:
    """What parts say of one prompt's answer after a round.

    Args:
      before: of the answer before it.
      old, new: the answer before and after it.
      asked: the round's candidates [w].
      parts: of them.
    """

    def is_new(x: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.all(x == new.x) & (t == new.t)

    found = jax.vmap(is_new)(asked.x, asked.t) & asked.valid
    kept, row = is_new(old.x, old.t), jnp.argmax(found)

    def of_answer(before: jax.Array, part: jax.Array) -> jax.Array:
        return jnp.where(jnp.any(found), part[row], jnp.where(kept, before, jnp.nan))

    return jax.tree.map(of_answer, before, parts)
