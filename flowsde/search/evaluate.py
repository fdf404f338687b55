"""What candidates are worth: flow -> x0 -> decode -> reward, in chunks of one compiled shape.

First the model, on the valid rows; then the reward, on those that want one, in chunks of their own
size. A guided search's rows that want a gradient get both at once, by differentiating through
reward, decoder and model.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde.flow import Cond, Flow
from flowsde.interpolants import Interpolant
from flowsde.predictions import expand
from flowsde.rewards.base import DeviceReward, HostReward
from flowsde.search.base import Candidates, Evaluation, Search


class Sizes(NamedTuple):
    """Rows computed at once: by the model and by the reward. Static."""

    model: int
    reward: int


class Computed(NamedTuple):
    """What was computed for each row, int32 [m]: passes forward, of those differentiated."""

    forward: jax.Array
    backward: jax.Array


def rows(cond: Cond, prompts: jax.Array) -> Cond:
    """Cond [P, ...] of rows that belong to `prompts` [n]."""
    return jax.tree.map(lambda a: a[prompts], cond)


# Compiled on their own so that model and reward are traced once a shape: the check before a run
# and the run itself share the trace.
@partial(jax.jit, static_argnames=("interpolant",))
def means(
    flow: Flow, x: jax.Array, t: jax.Array, cond: Cond, *, interpolant: Interpolant
) -> tuple[jax.Array, jax.Array]:
    """(x0, x1) of rows."""
    return flow.means(x, t, cond, interpolant)


@jax.jit
def verify(flow: Flow, reward: DeviceReward, x0: jax.Array, cond: Cond) -> jax.Array:
    """Rewards of rows as the function gives them, float32."""
    return reward(flow.decode(x0), cond).astype(jnp.float32)


decode = jax.jit(lambda flow, x0: flow.decode(x0))


def _clean(rewards: jax.Array, wanted: jax.Array) -> jax.Array:
    """NaN counts as -inf, and so does what was not asked for."""
    return jnp.where(wanted & ~jnp.isnan(rewards), rewards, -jnp.inf)


def _model(
    flow: Flow, reward: Any, interpolant: Interpolant, guided: bool, x, t, cond, wants_gradient
) -> tuple[Evaluation, jax.Array]:
    """Means of rows, reward and gradient where wanted; and whether they were differentiated."""
    nothing = jnp.full(t.shape, -jnp.inf, jnp.float32)

    def forward() -> Evaluation:
        x0, x1 = means(flow, x, t, cond, interpolant=interpolant)
        return Evaluation(x0, x1, nothing, jnp.zeros_like(x) if guided else None)

    if not guided:
        return forward(), jnp.zeros(t.shape, jnp.bool)

    def total(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        x0, x1 = means(flow, x, t, cond, interpolant=interpolant)
        rewards = verify(flow, reward, x0, cond)
        # Rows do not depend on each other, so the sum's gradient holds that of each.
        return jnp.sum(jnp.where(wants_gradient, rewards, 0.0)), (x0, x1, rewards)

    def backward() -> Evaluation:
        gradient, (x0, x1, rewards) = jax.grad(total, has_aux=True)(x)
        usable = jnp.isfinite(gradient) & expand(jnp.isfinite(rewards) & wants_gradient, x)
        gradient = jnp.where(usable, gradient, 0.0)
        return Evaluation(x0, x1, _clean(rewards, wants_gradient), gradient)

    some = jnp.any(wants_gradient)
    return jax.lax.cond(some, backward, forward), jnp.full(t.shape, some)


def _in_chunks(
    f: Callable[[jax.Array], Any], order: jax.Array, n: jax.Array, size: int, empty: Any
) -> tuple[Any, jax.Array]:
    """``f(rows)`` for the first n rows of an order, as many whole chunks as they need.

    Returns:
      `empty`, with f's values in the rows computed; and how often each was, int32 [m].
    """
    m = order.shape[0]

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        i, buffers, computed = carry
        at = order[jnp.minimum(i * size + jnp.arange(size, dtype=jnp.int32), m - 1)]
        buffers = jax.tree.map(lambda buffer, new: buffer.at[at].set(new), buffers, f(at))
        return i + 1, buffers, computed.at[at].add(1)

    start = (jnp.zeros((), jnp.int32), empty, jnp.zeros(m, jnp.int32))
    _, values, computed = jax.lax.while_loop(lambda carry: carry[0] * size < n, body, start)
    return values, computed


def evaluate_model(
    flow: Flow, reward: Any, asked: Candidates, cond: Cond, search: Search, size: int
) -> tuple[Evaluation, Computed]:
    """Evaluate candidates [P, w], or [w] of a single prompt; rewards only with gradients.

    Returns:
      Leaves [P, w, ...], or [w, ...].
    """
    lead = asked.t.shape
    flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[len(lead) :]), asked)
    m, width = flat.t.shape[0], lead[-1]
    wants_gradient = flat.valid & flat.wants_gradient
    prompts = jnp.arange(m, dtype=jnp.int32) // width
    model = partial(_model, flow, reward, search.interpolant, search.guided)
    if size == m:
        values = model(flat.x, flat.t, rows(cond, prompts), wants_gradient)
        forward = jnp.ones(m, jnp.int32)
    else:
        zeros = jnp.zeros_like(flat.x)
        empty = Evaluation(
            zeros, zeros, jnp.full(m, -jnp.inf, jnp.float32), zeros if search.guided else None
        )

        def chunk(at: jax.Array) -> tuple[Evaluation, jax.Array]:
            return model(flat.x[at], flat.t[at], rows(cond, prompts[at]), wants_gradient[at])

        # Valid ones first, and of those the ones to be differentiated.
        order = jnp.argsort(
            2 * (~flat.valid).astype(jnp.int32) + (~wants_gradient).astype(jnp.int32), stable=True
        ).astype(jnp.int32)
        n = jnp.sum(flat.valid, dtype=jnp.int32)
        values, forward = _in_chunks(chunk, order, n, size, (empty, jnp.zeros(m, jnp.bool)))
    evals, differentiated = values
    computed = Computed(forward, forward * differentiated.astype(jnp.int32))
    return jax.tree.map(lambda a: a.reshape(*lead, *a.shape[1:]), (evals, computed))


def _wanted(asked: Candidates) -> jax.Array:
    """Rows that still want a reward after `evaluate_model`."""
    return asked.valid & asked.wants_reward & ~asked.wants_gradient


def evaluate_reward(
    flow: Flow, reward: DeviceReward, asked: Candidates, evals: Evaluation, cond: Cond, size: int
) -> Evaluation:
    """Add the rewards that are still wanted."""
    lead = asked.t.shape
    wanted, x0 = _wanted(asked).reshape(-1), evals.x0.reshape(-1, *flow.shape)
    m, width = wanted.shape[0], lead[-1]
    prompts = jnp.arange(m, dtype=jnp.int32) // width
    nothing = jnp.full(m, -jnp.inf, jnp.float32)
    if size == m:

        def every() -> jax.Array:
            return verify(flow, reward, x0, rows(cond, prompts))

        rewards = jax.lax.cond(jnp.any(wanted), every, lambda: nothing)
    else:

        def chunk(at: jax.Array) -> jax.Array:
            return verify(flow, reward, x0[at], rows(cond, prompts[at]))

        order = jnp.argsort(~wanted, stable=True).astype(jnp.int32)
        n = jnp.sum(wanted, dtype=jnp.int32)
        rewards, _ = _in_chunks(chunk, order, n, size, nothing)
    told = jnp.where(wanted, _clean(rewards, wanted), evals.reward.reshape(-1))
    return evals._replace(reward=told.reshape(lead))


def evaluate_on_host(
    flow: Flow, reward: HostReward, asked: Candidates, evals: Evaluation, cond: Cond, size: int
) -> Evaluation:
    """`evaluate_reward` through NumPy."""
    wanted = np.asarray(_wanted(asked))
    told, at_all = np.full(wanted.size, -np.inf, np.float32), np.flatnonzero(wanted)
    x0 = evals.x0.reshape(-1, *flow.shape)
    for start in range(0, at_all.size, size):
        at = at_all[start : start + size]
        # Filled up with further rows to the one compiled shape.
        images = np.asarray(decode(flow, x0[np.resize(at, size)]))[: at.size]
        own = jax.tree.map(lambda a, at=at: np.asarray(a)[at // wanted.shape[-1]], cond)
        rewards = reward(images, own)
        told[at] = np.where(np.isnan(rewards), -np.inf, rewards)
    return evals._replace(reward=jnp.asarray(told.reshape(wanted.shape)))
