"""A round of a search, compiled: for `run` all rounds in one program, for `iterate` in four.

Of many prompts everything has a leading axis of them; of a single one it has none, so that
`lax.cond` can leave work out.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowsde._explain import decoded
from flowsde.flow import Flow
from flowsde.rewards.base import PartNames, Parts
from flowsde.runner.ahead import verifier_calls
from flowsde.runner.evaluate import (
    Computed,
    evaluate_model,
    evaluate_reward,
    join,
    join_counts,
)
from flowsde.runner.exchange import slots_of, tell_by_number
from flowsde.runner.inner import arrived
from flowsde.runner.mesh import EVERYWHERE
from flowsde.runner.parts import answer_parts, no_answer_parts
from flowsde.runner.records import Model, Program, Sizes
from flowsde.runner.result import Answers, Carry, Given, Packed
from flowsde.runner.traced import ask as ask_one
from flowsde.runner.traced import tell as tell_one
from flowsde.search.keep import answers_of
from flowsde.search.protocol import Candidates, Evaluation, Info, Particle

WITHOUT_PARTS = PartNames()
"""Of a reward that is not combined."""


class Told(NamedTuple):
    """What the host hears of a round: info, counters, whether all are done, a new answer."""

    info: Info
    counts: Any
    done: Any
    changed: Any


def _init(
    keys: jax.Array,
    nfe: jax.Array,
    target: jax.Array,
    program: Program,
    shape: tuple[int, ...],
    single: bool = False,
    live: jax.Array | None = None,
    parts: PartNames = WITHOUT_PARTS,
) -> Carry:
    """Carry before the first round, of prompts with budgets in model evaluations.

    Args:
      parts: names of those of the reward.
    """

    def begin(key: jax.Array, nfe: jax.Array, target: jax.Array) -> Carry:
        zero = jnp.zeros((), jnp.int32)
        given = Given(jax.random.key_data(key), target, program.candidates(nfe))
        state = program.search.init(key, shape, target, given.nfe)
        unknown = no_answer_parts(parts, program.search, state)
        drafts = zero if program.kind.drafts else None
        return Carry(given, state, zero, zero, zero, zero, parts=unknown, draft_evaluations=drafts)

    if single:
        return begin(keys[0], nfe[0], target)
    by_prompt = program.placement.by_prompt
    each = jax.vmap(begin, (0, 0, None))
    begun = program.placement.local(each, (by_prompt, by_prompt, EVERYWHERE), by_prompt)
    return begun(keys, nfe, target)._replace(live=live)


def _of_each(f: Callable[..., Any], carry: Carry) -> Callable[..., Any]:
    """A search's function, of every prompt; a single one has no axis to map over."""
    return jax.vmap(f) if carry.nfe.ndim else f


def _among_live(carry: Carry, valid: jax.Array) -> jax.Array:
    """Candidates [P, w] of the prompts that are not padding."""
    return valid if carry.live is None else valid & carry.live[:, None]


def _done(carry: Carry, program: Program) -> jax.Array:
    """Whether each prompt has nothing left to do."""
    done = _of_each(program.search.done, carry)(carry.state)
    return done if carry.live is None else done | ~carry.live


def _ask(carry: Carry, program: Program) -> tuple[Carry, Candidates]:
    placement = program.placement

    def ask(carry: Carry) -> tuple[Carry, Candidates]:
        one = partial(ask_one, program.search)
        state, asked = _of_each(one, carry)(carry.state, carry.start)
        asked = asked._replace(valid=_among_live(carry, asked.valid))
        return carry._replace(state=state), asked

    return placement.local(ask, placement.by_prompt, placement.by_prompt)(carry)


def counted(
    carry: Carry,
    program: Program,
    state: Any,
    info: Info,
    asked: Candidates,
    computed: Computed,
    parts: Parts | None = None,
    parts_asked: Parts | None = None,
) -> tuple[Carry, Info]:
    """A state that has been told, with all that a round of its prompts is counted and charged.

    Args:
      carry: before the round.
      program: whose search was told.
      state, info: as `Search.tell` gives them.
      asked: candidates [..., w]; with parts, where they have arrived.
      computed: of each of them.
      parts: of a combined reward, [..., w].
      parts_asked: how often some of them were, [..., w].
    """
    passes, search = program.cost, program.search
    verified = verifier_calls(asked, program.kind.value)
    finishing = _of_each(search.finishing, carry)(carry.state)
    info = info._replace(
        evaluations=passes * jnp.sum(computed.forward, -1, dtype=jnp.int32),
        backward_passes=passes * jnp.sum(computed.backward, -1, dtype=jnp.int32),
        verifier_calls=jnp.sum(verified, -1, dtype=jnp.int32),
        finishing=finishing & jnp.any(asked.valid, -1),
        parts=parts,
    )
    if computed.drafts is not None and carry.draft_evaluations is not None:
        drafts = program.draft * jnp.sum(computed.drafts, -1, dtype=jnp.int32)
        info = info._replace(draft_evaluations=drafts)
        carry = carry._replace(draft_evaluations=carry.draft_evaluations + drafts)
    if parts is not None:
        assert carry.parts is not None
        own = _of_each(partial(answer_parts, search), carry)
        answered = own(carry.parts, carry.state, state, asked, parts)
        if parts_asked is not None:
            # Of a place without a candidate, the number is one of before.
            calls = {
                name: n + jnp.sum(jnp.where(asked.valid, parts_asked[name], 0), -1, dtype=jnp.int32)
                for name, n in (answered.calls or {}).items()
            }
            answered = answered._replace(calls=calls)
        carry = carry._replace(parts=answered)
    carry = carry._replace(
        state=state,
        nfe=carry.nfe + passes * info.charged,
        evaluations=carry.evaluations + info.evaluations,
        backward_passes=carry.backward_passes + info.backward_passes,
        verifier_calls=carry.verifier_calls + info.verifier_calls,
    )
    return carry, info


def _tell(
    carry: Carry, program: Program, asked: Candidates, evals: Evaluation, computed: Computed
) -> tuple[Carry, Info, jax.Array]:
    """Tell all prompts, count and charge, and say whether all are done."""
    placement, search = program.placement, program.search

    def tell(
        carry: Carry, asked: Candidates, evals: Evaluation, computed: Computed
    ) -> tuple[Carry, Info, jax.Array]:
        lead = asked.t.shape
        computed = join_counts(computed, lead, placement)
        by_number = None
        parts, parts_asked = join((evals.parts, evals.asked), lead, placement)
        evals = evals._replace(parts=None, asked=None)
        # Where the state holds fewer particles than were asked about, only those are moved.
        if placement.particles > 1 and 0 < slots_of(carry.state).total < lead[-1]:
            rewards = join(evals.reward, lead, placement)
            by_number = tell_by_number(search, carry.state, asked, evals, rewards, placement)
        if by_number is None:
            asked, evals = arrived(asked, join(evals, lead, placement))
            state, info = _of_each(partial(tell_one, search), carry)(carry.state, asked, evals)
        else:
            state, info = by_number
            if parts is not None and evals.x is not None:
                asked = asked._replace(x=join(evals.x, lead, placement))
        carry, info = counted(carry, program, state, info, asked, computed, parts, parts_asked)
        return carry, info, _done(carry, program)

    by_prompt, by_row = placement.by_prompt, placement.by_row
    told = placement.local(tell, (by_prompt, by_prompt, by_row, by_row), by_prompt)
    carry, info, done = told(carry, asked, evals, computed)
    return carry, info, jnp.all(done)


def _round(
    carry: Carry, model: Model, program: Program, sizes: Sizes
) -> tuple[Carry, Info, jax.Array]:
    carry, asked = _ask(carry, program)
    kind, placement = program.kind, program.placement
    evals, computed = evaluate_model(model, asked, kind, sizes.model, placement, sizes.least)
    evals = evaluate_reward(model, asked, evals, kind, sizes.reward, placement)
    return _tell(carry, program, asked, evals, computed)


ROUNDS = 4096
"""Rounds in one call of `run_rounds`, at most: its log has room for all of them."""


@partial(jax.jit, static_argnames=("program", "sizes"), donate_argnames=("carry",))
def run_rounds(
    carry: Carry, model: Model, program: Program, sizes: Sizes
) -> tuple[Carry, Info, jax.Array, jax.Array]:
    """The rest of a search, or `ROUNDS` of it.

    Returns:
      Carry, log [rows, ...], how many of its rows are rounds, and whether all is done.
    """
    rows = min(program.search.max_rounds, ROUNDS)

    def go(carry: Carry) -> tuple[Carry, Info, jax.Array]:
        return _round(carry, model, program, sizes)

    def body(loop: tuple[Any, ...]) -> tuple[Any, ...]:
        carry, log, r, _ = loop
        carry, info, done = go(carry)
        return carry, jax.tree.map(lambda rows, row: rows.at[r].set(row), log, info), r + 1, done

    shapes = jax.eval_shape(go, carry)[1]
    log = jax.tree.map(lambda a: jnp.zeros((rows, *a.shape), a.dtype), shapes)
    done = all_done(carry, program)
    loop = (carry, log, jnp.zeros((), jnp.int32), done)
    return jax.lax.while_loop(lambda loop: ~loop[3] & (loop[2] < rows), body, loop)


@partial(jax.jit, static_argnames=("program",))
def all_done(carry: Carry, program: Program) -> jax.Array:
    """Whether no prompt has anything left to do."""
    placement = program.placement
    done = placement.local(
        partial(_done, program=program), placement.by_prompt, placement.by_prompt
    )
    return jnp.all(done(carry))


def _best(carry: Carry, program: Program) -> tuple[Particle, Particle | None]:
    """The best so far, and what the search keeps beside it."""
    placement = program.placement
    best = _of_each(partial(answers_of, program.search), carry)
    return placement.local(best, placement.by_prompt, placement.by_prompt)(carry.state)


@partial(jax.jit, static_argnames=("program",))
def answer(carry: Carry, flow: Flow, program: Program) -> tuple[Particle, Any, Answers | None]:
    """The best so far, its image, and what is kept beside it."""
    (best, others), placement = _best(carry, program), program.placement
    if carry.nfe.ndim:
        with placement.around_model():
            image = placement.keep(decoded(flow.decode, best.x0), placement.by_prompt)
            if others is None:
                return best, image, None
            flat = others.x0.reshape(-1, *flow.shape)
            images = decoded(flow.decode, flat)
            images = images.reshape(*others.t.shape, *images.shape[1:])
            return best, image, Answers.of(others, placement.keep(images, placement.by_prompt))
    image = decoded(flow.decode, best.x0[None])[0]
    if others is None:
        return best, image, None
    return best, image, Answers.of(others, decoded(flow.decode, others.x0))


@partial(jax.jit, static_argnames=("program",))
def ask(carry: Carry, program: Program) -> Candidates:
    """What the next round asks for."""
    return _ask(carry, program)[1]


@partial(jax.jit, static_argnames=("program",))
def tell(
    carry: Carry, program: Program, asked: Candidates, evals: Evaluation, computed: Computed
) -> tuple[Carry, Packed]:
    """Carry after a round whose candidates are from `ask` of `carry`, and `Told`."""
    # Asks again for the state: nothing uses the candidates, which are not drawn a second time.
    begun = _ask(carry, program)[0]
    told, info, done = _tell(begun, program, asked, evals, computed)
    old, new = (_best(c, program) for c in (carry, told))
    # A particle is known by its place and time.
    known = [[(p.x, p.t) for p in both if p is not None] for both in (old, new)]
    pairs = zip(*map(jax.tree.leaves, known), strict=True)
    changed = functools.reduce(jnp.logical_or, [jnp.any(a != b) for a, b in pairs])
    return told, Packed.of(Told(info, told.counts, done, changed))


start = jax.jit(_init, static_argnames=("program", "shape", "single", "parts"))
model_step = jax.jit(evaluate_model, static_argnames=("kind", "size", "placement", "least"))
reward_step = jax.jit(evaluate_reward, static_argnames=("kind", "size", "placement"))
