"""A round of a search, compiled: for `run` all rounds in one program, for `iterate` in three.

Of many prompts everything has a leading axis of them; of a single one it has none, so that
`lax.cond` can leave work out.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowsde.conds import Cond
from flowsde.flow import Flow
from flowsde.rewards import DeviceReward
from flowsde.runner.evaluate import (
    Computed,
    Sizes,
    evaluate_model,
    evaluate_reward,
    join,
    join_counts,
)
from flowsde.runner.exchange import slots_of, tell_by_number
from flowsde.runner.mesh import ALONE, EVERYWHERE, Layout
from flowsde.runner.result import Carry, Given, Packed
from flowsde.search.protocol import Candidates, Evaluation, Info, Particle, Search


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
    live: jax.Array | None = None,
    layout: Layout = ALONE,
) -> Carry:
    def begin(key: jax.Array, nfe: jax.Array, target: jax.Array) -> Carry:
        zero = jnp.zeros((), jnp.int32)
        state = search.init(key, shape, target, nfe)
        return Carry(Given(key, target, nfe), state, zero, zero, zero, zero)

    if single:
        return begin(keys[0], nfe[0], target)
    by_prompt = layout.by_prompt
    each = jax.vmap(begin, (0, 0, None))
    carry = layout.local(each, (by_prompt, by_prompt, EVERYWHERE), by_prompt)(keys, nfe, target)
    return carry._replace(live=live)


def _of_each(f: Callable[..., Any], carry: Carry) -> Callable[..., Any]:
    """A search's function, of every prompt; a single one has no axis to map over."""
    return jax.vmap(f) if carry.nfe.ndim else f


def _among_live(carry: Carry, valid: jax.Array) -> jax.Array:
    """Candidates [P, w] of the prompts that are not padding."""
    return valid if carry.live is None else valid & carry.live[:, None]


def _done(carry: Carry, search: Search) -> jax.Array:
    """Whether each prompt has nothing left to do."""
    done = _of_each(search.done, carry)(carry.state)
    return done if carry.live is None else done | ~carry.live


def _ask(carry: Carry, search: Search, layout: Layout) -> tuple[Carry, Candidates]:
    def ask(carry: Carry) -> tuple[Carry, Candidates]:
        state, asked = _of_each(search.ask, carry)(carry.state)
        asked = asked._replace(valid=_among_live(carry, asked.valid))
        return carry._replace(state=state), asked

    return layout.local(ask, layout.by_prompt, layout.by_prompt)(carry)


def counted(
    carry: Carry,
    search: Search,
    state: Any,
    info: Info,
    asked: Candidates,
    computed: Computed,
    passes: int,
) -> tuple[Carry, Info]:
    """A state that has been told, with all that a round of its prompts is counted and charged.

    Args:
      carry: before the round.
      search: that was told.
      state, info: as `Search.tell` gives them.
      asked: candidates [..., w].
      computed: of each of them.
      passes: of the model, that a candidate takes.
    """
    verified = asked.valid & (asked.wants_reward | asked.wants_gradient)
    finishing = _of_each(search.finishing, carry)(carry.state)
    info = info._replace(
        evaluations=passes * jnp.sum(computed.forward, -1, dtype=jnp.int32),
        backward_passes=passes * jnp.sum(computed.backward, -1, dtype=jnp.int32),
        verifier_calls=jnp.sum(verified, -1, dtype=jnp.int32),
        finishing=finishing & jnp.any(asked.valid, -1),
    )
    carry = carry._replace(
        state=state,
        nfe=carry.nfe + passes * info.charged,
        evaluations=carry.evaluations + info.evaluations,
        backward_passes=carry.backward_passes + info.backward_passes,
        verifier_calls=carry.verifier_calls + info.verifier_calls,
    )
    return carry, info


def _tell(
    carry: Carry,
    flow: Flow,
    search: Search,
    asked: Candidates,
    evals: Evaluation,
    computed: Computed,
    layout: Layout,
) -> tuple[Carry, Info, jax.Array]:
    """Tell all prompts, count and charge, and say whether all are done."""

    def tell(
        carry: Carry, asked: Candidates, evals: Evaluation, computed: Computed
    ) -> tuple[Carry, Info, jax.Array]:
        lead = asked.t.shape
        computed = join_counts(computed, lead, layout)
        # Where the state holds fewer particles than were asked about, only those are moved.
        if layout.particles > 1 and 0 < slots_of(carry.state).total < lead[-1]:
            rewards = join(evals.reward, lead, layout)
            state, info = tell_by_number(search, carry.state, asked, evals, rewards, layout)
        else:
            evals = join(evals, lead, layout)
            state, info = _of_each(search.tell, carry)(carry.state, asked, evals)
        carry, info = counted(carry, search, state, info, asked, computed, flow.evaluations)
        return carry, info, _done(carry, search)

    by_prompt, by_row = layout.by_prompt, layout.by_row
    told = layout.local(tell, (by_prompt, by_prompt, by_row, by_row), by_prompt)
    carry, info, done = told(carry, asked, evals, computed)
    return carry, info, jnp.all(done)


def _round(
    carry: Carry,
    flow: Flow,
    search: Search,
    reward: DeviceReward,
    cond: Cond,
    sizes: Sizes,
    layout: Layout,
) -> tuple[Carry, Info, jax.Array]:
    carry, asked = _ask(carry, search, layout)
    evals, computed = evaluate_model(flow, reward, asked, cond, search, sizes.model, layout)
    evals = evaluate_reward(flow, reward, asked, evals, cond, sizes.reward, layout)
    return _tell(carry, flow, search, asked, evals, computed, layout)


ROUNDS = 4096
"""Rounds in one call of `run_rounds`, at most: its log has room for all of them."""


@partial(jax.jit, static_argnames=("search", "sizes", "layout"), donate_argnames=("carry",))
def run_rounds(
    carry: Carry,
    flow: Flow,
    search: Search,
    reward: DeviceReward,
    cond: Cond,
    sizes: Sizes,
    layout: Layout = ALONE,
) -> tuple[Carry, Info, jax.Array, jax.Array]:
    """The rest of a search, or `ROUNDS` of it.

    Returns:
      Carry, log [rows, ...], how many of its rows are rounds, and whether all is done.
    """
    rows = min(search.max_rounds, ROUNDS)

    def go(carry: Carry) -> tuple[Carry, Info, jax.Array]:
        return _round(carry, flow, search, reward, cond, sizes, layout)

    def body(loop: tuple[Any, ...]) -> tuple[Any, ...]:
        carry, log, r, _ = loop
        carry, info, done = go(carry)
        return carry, jax.tree.map(lambda rows, row: rows.at[r].set(row), log, info), r + 1, done

    shapes = jax.eval_shape(go, carry)[1]
    log = jax.tree.map(lambda a: jnp.zeros((rows, *a.shape), a.dtype), shapes)
    done = all_done(carry, search, layout)
    loop = (carry, log, jnp.zeros((), jnp.int32), done)
    return jax.lax.while_loop(lambda loop: ~loop[3] & (loop[2] < rows), body, loop)


@partial(jax.jit, static_argnames=("search", "layout"))
def all_done(carry: Carry, search: Search, layout: Layout = ALONE) -> jax.Array:
    """Whether no prompt has anything left to do."""
    done = layout.local(partial(_done, search=search), layout.by_prompt, layout.by_prompt)
    return jnp.all(done(carry))


def _best(carry: Carry, search: Search, layout: Layout) -> Particle:
    best = _of_each(search.best, carry)
    return layout.local(best, layout.by_prompt, layout.by_prompt)(carry.state)


@partial(jax.jit, static_argnames=("search", "layout"))
def answer(
    carry: Carry, flow: Flow, search: Search, layout: Layout = ALONE
) -> tuple[Particle, Any]:
    """The best so far and its image."""
    best = _best(carry, search, layout)
    if carry.nfe.ndim:
        with layout.around_model():
            return best, layout.keep(flow.decode(best.x0), layout.by_prompt)
    return best, flow.decode(best.x0[None])[0]


@partial(jax.jit, static_argnames=("search", "layout"))
def first_ask(carry: Carry, search: Search, layout: Layout = ALONE) -> Candidates:
    """What the first round asks for; `turn` gives what the others do."""
    return _ask(carry, search, layout)[1]


@partial(jax.jit, static_argnames=("search", "layout"))
def turn(
    carry: Carry,
    flow: Flow,
    search: Search,
    asked: Candidates,
    evals: Evaluation,
    computed: Computed,
    layout: Layout = ALONE,
) -> tuple[Carry, Candidates, Packed]:
    """Carry, what is asked next, and `Told`: the end of a round with the beginning of another."""
    # Asks again for the state: nothing uses the candidates, which are not drawn a second time.
    begun = _ask(carry, search, layout)[0]
    told, info, done = _tell(begun, flow, search, asked, evals, computed, layout)
    old, new = (_best(c, search, layout) for c in (carry, told))
    # A particle is known by its place and time.
    changed = jnp.any(old.x != new.x) | jnp.any(old.t != new.t)
    packed = Packed.of(Told(info, told.counts, done, changed))
    return told, _ask(told, search, layout)[1], packed


start = jax.jit(_init, static_argnames=("search", "shape", "single", "layout"))
model_step = jax.jit(evaluate_model, static_argnames=("search", "size", "layout"))
reward_step = jax.jit(evaluate_reward, static_argnames=("size", "layout"))
