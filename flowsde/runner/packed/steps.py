"""A step of all slots, in two compiled programs.

`advance` takes in what a batch was worth, tells the slots that have all their candidates back,
gives the slots of finished prompts to the next ones of the list, asks, and selects the next batch;
`evaluate` computes one. The state stays on the device: the host hears a few numbers.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowsde.rewards.base import PartNames
from flowsde.runner.ahead import ahead
from flowsde.runner.chunks import least_of
from flowsde.runner.drafts import drafts
from flowsde.runner.evaluate import Computed, evaluate_model, evaluate_reward
from flowsde.runner.inner import arrived, like, moving
from flowsde.runner.mesh import ALONE, EVERYWHERE, Placement, on_every_device
from flowsde.runner.packed.pool import LEAST, Batch, Pool, Prompts, flat, unknown
from flowsde.runner.packed.widths import searching
from flowsde.runner.records import Kind, Model, Program
from flowsde.runner.result import AnswerParts, Carry, Packed
from flowsde.runner.rounds import WITHOUT_PARTS, counted, start
from flowsde.runner.traced import ask, tell
from flowsde.search.grid import tree_where
from flowsde.search.keep import answers_of
from flowsde.search.protocol import Candidates, Evaluation, Particle, Search, Stored
from flowsde.search.smc import Weights, weights_of


class Report(NamedTuple):
    """What the host hears of a step.

    Attributes:
      finished: int32 [S], number of the prompt that ended in each slot, -1 for none.
      counts: int32 [S, 4], its counters, as in `Carry`; [S, 5] with drafts of another flow.
      rounds: int32 [S], that it took.
      budgets: int32 [S], its budget in model evaluations.
      done: bool [S], whether its search says that it is.
      sent: int32 [G], candidates in the next batch, of each part of it that a part of the mesh has;
        one without a mesh.
      ahead: int32 [G], those of them that are scored by looking ahead.
      moving: int32 [G], those of them that inner steps move.
      drafts: int32 [G], those of them that a draft flow evaluates.
      active: int32, prompts under way.
      searching: int32, those of them that draw waves.
      left: int32, prompts that have not begun.
      cut: bool, whether the deadline had a prompt finish, or not begin.
    """

    finished: jax.Array
    counts: jax.Array
    rounds: jax.Array
    budgets: jax.Array
    done: jax.Array
    sent: jax.Array
    ahead: jax.Array
    moving: jax.Array
    drafts: jax.Array
    active: jax.Array
    searching: jax.Array
    left: jax.Array
    cut: jax.Array


class Ended(NamedTuple):
    """Of each slot the best particle, what is kept beside it, and what a reward's parts say.

    And how particles are weighed, where a slot has finished.
    """

    best: Particle
    kept: Particle | None
    parts: AnswerParts | None
    weights: Weights | None


def _budgets(pool: Pool, program: Program) -> jax.Array:
    """Of each slot, in model evaluations."""
    return pool.carry.given.nfe * program.cost


def _chosen(slots: jax.Array, new: Any, old: Any, stored: Any) -> Any:
    """`tree_where` of states; what is `Stored`, which would take a copy, from those given last."""

    def choose(a: Any, b: Any, own: Any) -> Any:
        return own if isinstance(own, Stored) else tree_where(slots, a, b)

    return jax.tree.map(choose, new, old, stored, is_leaf=lambda leaf: isinstance(leaf, Stored))


def _take_in(pool: Pool, batch: Batch, evals: Evaluation, backward: jax.Array) -> Pool:
    """Write what a batch was worth to where its candidates are."""

    def write(buffer: jax.Array, new: jax.Array) -> jax.Array:
        whole = buffer.reshape(-1, *buffer.shape[2:])
        return whole.at[batch.place].set(new, mode="drop").reshape(buffer.shape)

    back = jnp.zeros_like(backward, jnp.bool)
    return pool._replace(
        evals=jax.tree.map(write, pool.evals, evals),
        backward=write(pool.backward, backward),
        due=write(pool.due, back),
    )


def _tell(pool: Pool, program: Program, ready: jax.Array) -> Pool:
    """Tell the slots that are ready, and count."""
    carry, (asked, evals) = (
        pool.carry,
        arrived(pool.asked, pool.evals._replace(parts=None, asked=None)),
    )
    asked = asked._replace(valid=asked.valid & ready[:, None])
    state, info = jax.vmap(partial(tell, program.search))(carry.state, asked, evals)
    forward, value = asked.valid.astype(jnp.int32), program.kind.value
    if program.kind.inner:
        forward += program.kind.inner * moving(pool.asked).astype(jnp.int32)
    if value is not None:
        forward += value.cost * ahead(asked, value).astype(jnp.int32)
    backward, by_draft = jnp.where(asked.valid, pool.backward, 0), None
    if asked.draft is not None:
        by_draft, forward = (jnp.where(of, forward, 0) for of in (asked.draft, ~asked.draft))
    computed = Computed(forward, backward, by_draft)
    told, _ = counted(
        carry, program, state, info, asked, computed, pool.evals.parts, pool.evals.asked
    )
    rounds = pool.rounds + ready.astype(jnp.int32)
    return pool._replace(carry=_chosen(ready, told, carry, told), rounds=rounds)


def marked(carry: Carry, search: Search, stop: jax.Array) -> Carry:
    """The carry of slots that are told, each, whether to finish; bool [S]."""
    own = getattr(search, "with_stop", None)
    return carry if own is None else carry._replace(state=own(carry.state, stop))


def _stop(pool: Pool, search: Search, ready: jax.Array, stop: jax.Array) -> tuple[Pool, jax.Array]:
    """Have the slots that are ready finish, if they have a reward; says whether that is news.

    The others are still to be told what they asked for before.
    """
    found = jax.vmap(search.best)(pool.carry.state).reward > -jnp.inf
    told = marked(pool.carry, search, stop & found)
    carry = _chosen(ready, told, pool.carry, pool.carry)
    before, after = (jax.vmap(search.finishing)(c.state) for c in (pool.carry, carry))
    return pool._replace(carry=carry), jnp.any((pool.prompt >= 0) & after & ~before)


@partial(jax.jit, static_argnames=("program", "placement"))
@on_every_device
def standing(pool: Pool, *, program: Program, placement: Placement = ALONE) -> tuple[Ended, Packed]:
    """As `advance` gives of slots that have ended, of all that are under way."""
    found = _ended(pool, program.search, jnp.ones((), jnp.bool))
    none, nothing = jnp.zeros((), jnp.int32), jnp.zeros_like(pool.prompt, jnp.bool)
    report = Report(
        finished=pool.prompt,
        counts=jnp.stack(list(pool.carry.counts.values()), 1),
        rounds=pool.rounds,
        budgets=_budgets(pool, program),
        done=nothing,
        sent=none[None],
        ahead=none[None],
        moving=none[None],
        drafts=none[None],
        active=none,
        searching=none,
        left=none,
        cut=jnp.ones((), jnp.bool),
    )
    return found, Packed.of(report)


def _ended(pool: Pool, search: Search, some: jax.Array) -> Ended:
    """What each slot has found so far; weights only where some slot has finished."""
    state = pool.carry.state
    answers = jax.vmap(partial(answers_of, search))(state)
    weigh = jax.vmap(partial(weights_of, search))
    shapes = jax.eval_shape(weigh, state)

    def none(state: Any) -> Weights | None:
        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)

    # Answers are looked for among all particles, which is not free.
    return Ended(*answers, pool.carry.parts, jax.lax.cond(some, weigh, none, state))


def _fill(
    pool: Pool, prompts: Prompts, target: jax.Array, program: Program, free: jax.Array, stop: Any
) -> tuple[Pool, jax.Array]:
    """Give free slots to the next prompts; says which have begun one."""
    turn = pool.taken + jnp.cumsum(free, dtype=jnp.int32) - 1
    begins = free & (turn < prompts.length)
    if stop is not None:
        begins &= ~stop
    prompt = prompts.order[jnp.minimum(turn, prompts.order.size - 1)]
    shape = pool.evals.x0.shape[2:]
    own = pool.carry.parts
    parts = PartNames() if own is None else PartNames(tuple(own.best), tuple(own.calls or ()))
    fresh = start(
        prompts.keys[prompt], prompts.nfe[prompt], target, program, shape=shape, parts=parts
    )
    fresh = fresh._replace(start=prompts.start_of(prompt))
    if stop is not None:
        fresh = marked(fresh, program.search, jnp.zeros_like(begins))
    return pool._replace(
        carry=_chosen(begins, fresh, pool.carry, pool.carry),
        rounds=jnp.where(begins, 0, pool.rounds),
        prompt=jnp.where(begins, prompt, jnp.where(free, -1, pool.prompt)),
        taken=pool.taken + jnp.sum(begins, dtype=jnp.int32),
    ), begins


def _ask(pool: Pool, search: Search, asks: jax.Array) -> Pool:
    """New candidates of the slots that ask."""
    state, asked = jax.vmap(partial(ask, search))(pool.carry.state, pool.carry.start)
    mine = asks[:, None]
    return pool._replace(
        carry=pool.carry._replace(state=_chosen(asks, state, pool.carry.state, state)),
        asked=tree_where(asks, asked, pool.asked),
        waiting=jnp.where(mine, asked.valid, pool.waiting),
        due=jnp.where(mine, asked.valid, pool.due),
    )


def _select(
    pool: Pool, program: Program, groups: int, size: int, least: jax.Array
) -> tuple[Pool, Batch, jax.Array]:
    """The next batch, of prompts with the most budget left: so all end at about the same time.

    None if fewer than `least` candidates wait. Also which of its places hold one, bool: those of a
    batch that is not full are dealt out evenly to its `groups` parts.
    """
    number = jnp.maximum(pool.prompt, 0)
    columns = pool.waiting.shape[1]
    waiting = pool.waiting.reshape(-1)
    left = jnp.repeat(_budgets(pool, program) - pool.carry.nfe, columns)
    order = jnp.lexsort((-left, ~waiting)).astype(jnp.int32)
    at = jnp.pad(order, (0, max(0, size - order.size)))[:size]
    n = jnp.sum(waiting, dtype=jnp.int32)
    sent = jnp.where(n >= least, jnp.minimum(n, size), 0)
    dealt = jnp.arange(size, dtype=jnp.int32).reshape(-1, groups).T.reshape(-1)
    at, is_one = at[dealt], dealt < sent
    place = jnp.where(is_one, at, waiting.size)
    asked: Candidates = jax.tree.map(lambda a: a[at][:, None], flat(pool.asked))
    some = is_one[:, None]
    asked = asked._replace(
        wants_reward=asked.wants_reward & some,
        wants_gradient=asked.wants_gradient & some,
        valid=asked.valid & some,
    )
    prompt = number[at // columns]
    batch = Batch(place, asked, prompt)
    waiting = waiting.at[place].set(False, mode="drop").reshape(pool.waiting.shape)
    return pool._replace(waiting=waiting), batch, is_one


@partial(jax.jit, static_argnames=("program", "placement"), donate_argnames=("pool",))
@on_every_device
def advance(
    pool: Pool,
    batch: Batch,
    evals: Evaluation,
    backward: jax.Array,
    prompts: Prompts,
    target: jax.Array,
    least: jax.Array,
    stop: jax.Array | None = None,
    *,
    program: Program,
    placement: Placement = ALONE,
) -> tuple[Pool, Batch, Ended, Packed]:
    """All that happens between two batches; on a mesh, on every device.

    Args:
      pool: of the search's columns.
      batch: that is back, of B places.
      evals, backward: what it was worth [B].
      prompts, target: of the run.
      least: candidates that are worth sending.
      stop: bool, whether none begins any more, and those with a reward finish; None for never.
      program: whose search asks and is told.
      placement: of the batch.

    Returns:
      The pool, the next batch, what each slot had found before it was given to another prompt, and
      a `Report`.
    """
    search, groups = program.search, placement.groups
    pool = _take_in(pool, batch, evals, backward)
    ready = (pool.prompt >= 0) & ~jnp.any(pool.due, 1)
    pool = _tell(pool, program, ready)
    cut = jnp.zeros((), jnp.bool)
    if stop is not None:
        pool, cut = _stop(pool, search, ready, stop)
    done = jax.vmap(search.done)(pool.carry.state)
    budgets = _budgets(pool, program)
    # One that breaks its bounds ends too: the host says so.
    finished = ready & (done | (pool.rounds >= search.max_rounds) | (pool.carry.nfe > budgets))
    rounds = pool.rounds
    found = _ended(pool, search, jnp.any(finished))
    ended = jnp.where(finished, pool.prompt, -1)
    counts = jnp.stack(list(pool.carry.counts.values()), 1)
    free = finished | (pool.prompt < 0)
    if stop is not None:
        cut |= stop & jnp.any(free) & (pool.taken < prompts.length)
    pool, begins = _fill(pool, prompts, target, program, free, stop)
    pool = _ask(pool, search, begins | (ready & ~finished))
    pool, following, sent = _select(pool, program, groups, batch.place.size, least)
    active = pool.prompt >= 0
    draws = active & jax.vmap(partial(searching, search))(pool.carry.state)

    def by_part(rows: jax.Array) -> jax.Array:
        return jnp.sum(rows.reshape(groups, -1), 1, dtype=jnp.int32)

    report = Report(
        finished=ended,
        counts=counts,
        rounds=rounds,
        budgets=budgets,
        done=done,
        sent=by_part(sent),
        ahead=by_part(ahead(following.asked, program.kind.value)),
        moving=by_part(moving(following.asked)),
        drafts=by_part(drafts(following.asked)),
        active=jnp.sum(active, dtype=jnp.int32),
        searching=jnp.sum(draws, dtype=jnp.int32),
        left=prompts.length - pool.taken,
        cut=cut,
    )
    return pool, following, found, Packed.of(report)


@partial(jax.jit, static_argnames=("kind", "minibatch", "placement"))
def evaluate(
    model: Model, batch: Batch, kind: Kind, minibatch: int, placement: Placement = ALONE
) -> tuple[Evaluation, jax.Array]:
    """A batch's evaluation [B], and which passes were differentiated, on every device of a mesh;
    the model has cond [B]."""
    size = batch.place.size // placement.groups
    least = least_of(model.flow, size, size, LEAST)
    evals, computed = evaluate_model(model, batch.asked, kind, size, placement, least)
    evals = evaluate_reward(model, batch.asked, evals, kind, minibatch, placement)
    return placement.keep((evals, computed.backward), EVERYWHERE)


def nothing(
    kind: Kind,
    size: int,
    shape: tuple[int, ...],
    parts: PartNames = WITHOUT_PARTS,
) -> Any:
    """(batch, evals, backward) with which the first step begins: no candidates."""
    zeros = jnp.zeros((size, 1), jnp.float32)
    x, no = jnp.zeros((size, 1, *shape), jnp.float32), jnp.zeros((size, 1), jnp.bool)
    number = jnp.zeros(size, jnp.int32)
    key = jnp.zeros((size, 1, 2), jnp.uint32) if kind.value and kind.value.draws else None
    draft = no if kind.drafts else None
    batch = Batch(
        place=jnp.full(size, jnp.iinfo(jnp.int32).max, jnp.int32),
        asked=Candidates(like(x, zeros, kind.moves), zeros, no, no, no, key, draft),
        prompt=number,
    )
    return batch, unknown(x[:, 0], zeros[:, 0], kind, parts), number
