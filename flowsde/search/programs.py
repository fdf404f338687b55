"""A round of a search, compiled: for `run` all rounds in one program, for `iterate` in three.

Of many prompts everything has a leading axis of them; of a single one it has none, so that
`lax.cond` can leave work out.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowsde.flow import Cond, Flow
from flowsde.rewards.base import DeviceReward
from flowsde.search.base import Candidates, Evaluation, Info, Particle, Search
from flowsde.search.evaluate import Computed, Sizes, evaluate_model, evaluate_reward
from flowsde.search.result import Carry, Packed


class Told(NamedTuple):
    """What the host hears of a round: info, counters, whether all are done, a new answer."""

    info: Info
    counts: Any
    done: Any
    changed: Any


def _init(
    keys: jax.Array,
    nfe: jax.Array,
    search: Search,
    shape: tuple[int, ...],
    target: jax.Array,
    single: bool = False,
) -> Carry:
    def begin(key: jax.Array, nfe: jax.Array) -> Carry:
        zero = jnp.zeros((), jnp.int32)
        return Carry(search.init(key, shape, target, nfe), zero, zero, zero, zero)

    return begin(keys[0], nfe[0]) if single else jax.vmap(begin)(keys, nfe)


def _of_each(f: Callable[..., Any], carry: Carry) -> Callable[..., Any]:
    """A search's function, of every prompt; a single one has no axis to map over."""
    return jax.vmap(f) if carry.nfe.ndim else f


def _ask(carry: Carry, search: Search) -> tuple[Carry, Candidates]:
    state, asked = _of_each(search.ask, carry)(carry.state)
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
    state, info = _of_each(search.tell, carry)(carry.state, asked, evals)
    verified = asked.valid & (asked.wants_reward | asked.wants_gradient)
    info = info._replace(
        evaluations=flow.evaluations * jnp.sum(computed.forward, -1, dtype=jnp.int32),
        backward_passes=flow.evaluations * jnp.sum(computed.backward, -1, dtype=jnp.int32),
        verifier_calls=jnp.sum(verified, -1, dtype=jnp.int32),
    )
    carry = Carry(
        state=state,
        nfe=carry.nfe + flow.evaluations * info.charged,
        evaluations=carry.evaluations + info.evaluations,
        backward_passes=carry.backward_passes + info.backward_passes,
        verifier_calls=carry.verifier_calls + info.verifier_calls,
    )
    return carry, info, all_done(carry, search)


def _round(
    carry: Carry, flow: Flow, search: Search, reward: DeviceReward, cond: Cond, sizes: Sizes
) -> tuple[Carry, Info, jax.Array]:
    carry, asked = _ask(carry, search)
    evals, computed = evaluate_model(flow, reward, asked, cond, search, sizes.model)
    evals = evaluate_reward(flow, reward, asked, evals, cond, sizes.reward)
    return _tell(carry, flow, search, asked, evals, computed)


@partial(jax.jit, static_argnames=("search", "sizes"), donate_argnames=("carry",))
def run_rounds(
    carry: Carry, flow: Flow, search: Search, reward: DeviceReward, cond: Cond, sizes: Sizes
) -> tuple[Carry, Info, jax.Array]:
    """The rest of a search: final carry, log [max_rounds, ...], and the number of rounds."""

    def body(loop: tuple[Any, ...]) -> tuple[Any, ...]:
        carry, log, r, _ = loop
        carry, info, done = _round(carry, flow, search, reward, cond, sizes)
        return carry, jax.tree.map(lambda rows, row: rows.at[r].set(row), log, info), r + 1, done

    shapes = jax.eval_shape(lambda c: _round(c, flow, search, reward, cond, sizes)[1], carry)
    log = jax.tree.map(lambda a: jnp.zeros((search.max_rounds, *a.shape), a.dtype), shapes)
    done = all_done(carry, search)
    loop = (carry, log, jnp.zeros((), jnp.int32), done)
    carry, log, rounds, _ = jax.lax.while_loop(lambda loop: ~loop[3], body, loop)
    return carry, log, rounds


@partial(jax.jit, static_argnames=("search",))
def all_done(carry: Carry, search: Search) -> jax.Array:
    """Whether no prompt has anything left to do."""
    return jnp.all(_of_each(search.done, carry)(carry.state))


@partial(jax.jit, static_argnames=("search",))
def answer(carry: Carry, flow: Flow, search: Search) -> tuple[Particle, Any]:
    """The best so far and its image."""
    best = _of_each(search.best, carry)(carry.state)
    if carry.nfe.ndim:
        return best, flow.decode(best.x0)
    return best, flow.decode(best.x0[None])[0]


@partial(jax.jit, static_argnames=("search",))
def first_ask(carry: Carry, search: Search) -> Candidates:
    """What the first round asks for; `turn` gives what the others do."""
    return _ask(carry, search)[1]


@partial(jax.jit, static_argnames=("search",))
def turn(
    carry: Carry,
    flow: Flow,
    search: Search,
    asked: Candidates,
    evals: Evaluation,
    computed: Computed,
) -> tuple[Carry, Candidates, Packed]:
    """Carry, what is asked next, and `Told`: the end of a round with the beginning of another."""
    # Asks again for the state: nothing uses the candidates, which are not drawn a second time.
    told, info, done = _tell(_ask(carry, search)[0], flow, search, asked, evals, computed)
    old, new = (_of_each(search.best, c)(c.state) for c in (carry, told))
    # A particle is known by its place and time.
    changed = jnp.any(old.x != new.x) | jnp.any(old.t != new.t)
    return told, _ask(told, search)[1], Packed.of(Told(info, told[1:], done, changed))


start = jax.jit(_init, static_argnames=("search", "shape", "single"))
model_step = jax.jit(evaluate_model, static_argnames=("search", "size"))
reward_step = jax.jit(evaluate_reward, static_argnames=("size",))
