"""Looking ahead from candidates, and scoring what is seen.

After the model has given the posterior means of a round's rows, those to be scored by
`flowsde.search.value.LookAhead` go on from there, in chunks of their own; x0 of their k ends waits
in `Evaluation.seen`. The reward is then asked of k times as many rows, of which a row scored by its
mean has the first alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowsde.interpolants import Interpolant
from flowsde.search.protocol import Candidates, Evaluation
from flowsde.search.value import LookAhead


class ToScore(NamedTuple):
    """Data to be decoded and scored, [m k, ...].

    Attributes:
      x0: float32.
      wanted: bool, whether its reward is.
      prompt: int32, the number of its prompt.
    """

    x0: jax.Array
    wanted: jax.Array
    prompt: jax.Array


def ahead(asked: Any, value: LookAhead | None) -> jax.Array:
    """Which candidates, or rows, are scored by looking ahead, bool shaped as their t."""
    if value is None:
        return jnp.zeros(asked.t.shape, jnp.bool)
    return asked.valid & asked.wants_reward & value.looks(asked.t)


def ends(
    means: Callable[..., tuple[jax.Array, jax.Array]],
    value: LookAhead,
    interpolant: Interpolant,
    rows: tuple[Any, ...],
    cond: Any,
) -> jax.Array:
    """x0 of the ends seen from rows (x, t, x0, x1, keys), [n, k, *shape].

    Args:
      means: ``(x, t, cond, interpolant=…) -> (x0, x1)``.
      value: how far is looked.
      interpolant: of x and t.
      rows: of n candidates.
      cond: of each.
    """
    own = partial(_means, means, interpolant, cond)
    return value.ends(interpolant, own, *rows)


def _means(
    means: Callable[..., Any], interpolant: Interpolant, cond: Any, x: jax.Array, t: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return means(x, t, cond, interpolant=interpolant)


def to_score(rows: Any, evals: Evaluation, value: LookAhead | None) -> ToScore:
    """What rewards are still asked of, of rows [m] that the model has evaluated."""
    wanted = rows.valid & rows.wants_reward & ~rows.wants_gradient
    if value is None:
        return ToScore(evals.x0, wanted, rows.prompt)
    assert evals.seen is not None
    k = value.samples
    first = jnp.arange(k)[None] == 0
    every = jnp.where(ahead(rows, value)[:, None], True, first & wanted[:, None])
    x0 = evals.seen.reshape(-1, *evals.seen.shape[2:])
    return ToScore(x0, every.reshape(-1), jnp.repeat(rows.prompt, k))


def with_rewards(
    rows: Any, evals: Evaluation, rewards: jax.Array, value: LookAhead | None
) -> Evaluation:
    """Rows [m] with the rewards [m k] of `to_score`, -inf where none was wanted."""
    wanted = rows.valid & rows.wants_reward & ~rows.wants_gradient
    if value is None:
        return evals._replace(reward=jnp.where(wanted, rewards, evals.reward))
    each = rewards.reshape(-1, value.samples)
    reward = jnp.where(wanted, each[:, 0], evals.reward)
    reward = jnp.where(ahead(rows, value), value.combine(each), reward)
    return evals._replace(reward=reward, seen=None)


def verifier_calls(asked: Candidates, value: LookAhead | None) -> jax.Array:
    """Rewards that each candidate takes, int32 shaped as its t."""
    alone = asked.valid & (asked.wants_reward | asked.wants_gradient)
    if value is None:
        return alone.astype(jnp.int32)
    both = value.samples + (asked.valid & asked.wants_gradient).astype(jnp.int32)
    return jnp.where(ahead(asked, value), both, alone.astype(jnp.int32))
