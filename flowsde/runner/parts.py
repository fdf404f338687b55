"""What the parts of a combined reward say of candidates, and of answers.

They are arrays by name, as `flowsde.search.Info.parts`; None for a reward without parts.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowsde.rewards.base import HostReward, PartNames, Parts, Scores
from flowsde.runner.ahead import ahead, with_rewards
from flowsde.runner.result import AnswerParts
from flowsde.search.keep import answers_of
from flowsde.search.protocol import Candidates, Evaluation, Particle, Search
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
    m = rows.t.shape[0]
    asked = jax.tree.map(lambda a: jnp.sum(a.reshape(m, -1), -1, dtype=jnp.int32), scores.asked)
    return with_rewards(rows, evals, scores.reward, value)._replace(parts=parts, asked=asked)


def not_scored(reward: HostReward, n: int) -> Scores:
    """NumPy rewards of n pictures before they are asked for, to be written to."""
    nothing = Scores(np.full(n, -np.inf, np.float32))
    if reward.combination is None:
        return nothing
    names, unasked = reward.combination.names, reward.combination.unasked
    return nothing._replace(
        parts={name: np.full(n, np.nan, np.float32) for name in names},
        asked={name: np.zeros(n, np.int32) for name in unasked} or None,
    )


def write_scores(told: Scores, at: np.ndarray, scores: Scores, finite: np.ndarray) -> None:
    """Write what pictures were worth to their places; NaN counts as -inf."""
    told.reward[at] = np.where(finite & ~np.isnan(scores.reward), scores.reward, -np.inf)
    for name, part in (scores.parts or {}).items():
        assert told.parts is not None
        told.parts[name][at] = part
    for name, asked in (told.asked or {}).items():
        assert scores.parts is not None
        asked[at] = ~np.isnan(scores.parts[name])


def no_answer_parts(names: PartNames, search: Search, state: Any) -> AnswerParts | None:
    """What is known of one prompt's answers before any round: NaN."""
    if not names.every:
        return None
    best, kept = answers_of(search, state)

    def unknown(of: Particle) -> Parts:
        return {name: jnp.full(of.t.shape, jnp.nan, jnp.float32) for name in names.every}

    calls = {name: jnp.zeros((), jnp.int32) for name in names.unasked} or None
    return AnswerParts(unknown(best), None if kept is None else unknown(kept), calls)


def answer_parts(
    search: Search, before: AnswerParts, old: Any, new: Any, asked: Candidates, parts: Parts
) -> AnswerParts:
    """What parts say of one prompt's answers after a round.

    Args:
      search: of the prompt.
      before: of the answers before it.
      old, new: states before and after it.
      asked: the round's candidates [w], where they have arrived.
      parts: of them.
    """
    (old_best, old_kept), (best, kept) = (answers_of(search, state) for state in (old, new))
    one, was, now = jax.tree.map(lambda a: a[None], (before.best, old_best, best))
    of_best = jax.tree.map(lambda a: a[0], _followed(one, was, now, asked, parts))
    if before.kept is None or old_kept is None or kept is None:
        return before._replace(best=of_best, kept=None)
    kept_parts = _followed(before.kept, old_kept, kept, asked, parts)
    return before._replace(best=of_best, kept=kept_parts)


def _followed(
    before: Parts, old: Particle, new: Particle, asked: Candidates, parts: Parts
) -> Parts:
    """What parts say of new particles [k], of which each is a candidate [w], or an old one [k]."""

    def origin(x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        def same(xs: jax.Array, ts: jax.Array) -> jax.Array:
            return jnp.all(xs == x[None], axis=tuple(range(1, xs.ndim))) & (ts == t)

        found = jnp.concatenate([same(asked.x, asked.t) & asked.valid, same(old.x, old.t)])
        return jnp.argmax(found), jnp.any(found)

    row, known = jax.vmap(origin)(new.x, new.t)

    def of_new(before: jax.Array, part: jax.Array) -> jax.Array:
        return jnp.where(known, jnp.concatenate([part, before])[row], jnp.nan)

    return jax.tree.map(of_new, before, parts)
