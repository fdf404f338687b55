"""What candidates are worth: flow -> x0 -> decode -> reward, in chunks of one compiled shape.

A reward of latents is shown x0 itself.

First the model, on the valid rows; then the reward, on those that want one, in chunks of their own
size. A guided search's rows that want a gradient get both at once, by differentiating through
reward, decoder and model. A search that looks ahead has rows go on in between, see
`flowsde.runner.ahead`. Rows that are drafts of another flow are evaluated by that, in chunks of
their own, and decoded as all others are.

Candidates [P, w] of P prompts, or [w] of a single one, are evaluated as rows [m]. On a mesh, each
group of devices picks the next chunk of its own rows, and the model sees those of all together.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowsde._explain import decoded
from flowsde.conds import Cond, for_model, for_reward
from flowsde.flow import Flow, finite_rows
from flowsde.interpolants import Interpolant
from flowsde.predictions import expand
from flowsde.rewards.base import DeviceReward, Scores, as_float32, no_parts
from flowsde.runner import ahead, inner
from flowsde.runner.ahead import to_score
from flowsde.runner.chunks import in_chunks, sizes_below
from flowsde.runner.mesh import ALONE, Placement
from flowsde.runner.parts import with_scores
from flowsde.runner.records import Kind, Model
from flowsde.search.grid import tree_where
from flowsde.search.protocol import Candidates, Evaluation


class Computed(NamedTuple):
    """What was computed for each row, int32 [m].

    Attributes:
      forward, backward: passes of the flow, and those of them that were differentiated.
      drafts: passes of the draft flow; None without one.
    """

    forward: jax.Array
    backward: jax.Array
    drafts: jax.Array | None = None


class Rows(NamedTuple):
    """Candidates with one leading axis, [m]; `prompt` is the number of each one's prompt, int32."""

    x: Any
    t: jax.Array
    wants_reward: jax.Array
    wants_gradient: jax.Array
    valid: jax.Array
    prompt: jax.Array
    key: jax.Array | None = None
    draft: jax.Array | None = None


def of_prompts(cond: Cond, prompts: jax.Array) -> Cond:
    """Cond [P, ...] of rows that belong to `prompts` [n], which count on from those before P."""
    return jax.tree.map(lambda a: a[prompts % a.shape[0]], cond)


def split(asked: Candidates, placement: Placement) -> Rows:
    """The rows of candidates [P, w], or [w] of a single prompt."""

    def own(asked: Candidates) -> Rows:
        lead = asked.t.shape
        flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[len(lead) :]), asked)
        m, width = flat.t.shape[0], lead[-1]
        prompt = placement.first_prompt(m // width) + jnp.arange(m, dtype=jnp.int32) // width
        rows = placement.own(Rows(**flat._asdict(), prompt=prompt))
        return rows._replace(valid=rows.valid & ~placement.repeated(m))

    return placement.local(own, placement.by_prompt, placement.by_row)(asked)


def join(rows: Any, lead: tuple[int, ...], placement: Placement) -> Any:
    """Arrays of rows as of candidates [*lead]; within `Placement.local`."""
    m = math.prod(lead)
    rows = placement.joined(rows) if placement.particles > 1 else rows
    return jax.tree.map(lambda a: a[:m].reshape(*lead, *a.shape[1:]), rows)


def join_counts(computed: Computed, lead: tuple[int, ...], placement: Placement) -> Computed:
    """`join`, with what was computed only to come out even put down to the last row."""
    m = math.prod(lead)
    if placement.particles > 1:
        computed = placement.joined(computed)
        computed = jax.tree.map(lambda a: a.at[m - 1].add(jnp.sum(a[m:])), computed)
    return jax.tree.map(lambda a: a[:m].reshape(lead), computed)


# Compiled on their own so that model and reward are traced once a shape: the check before a run
# and the run itself share the trace.
@partial(jax.jit, static_argnames=("interpolant",))
def means(
    flow: Flow, x: jax.Array, t: jax.Array, cond: Cond, *, interpolant: Interpolant
) -> tuple[jax.Array, jax.Array]:
    """(x0, x1) of rows."""
    return flow.means(x, t, for_model(cond), interpolant)


@jax.jit
def verify(flow: Flow, reward: DeviceReward, x0: jax.Array, cond: Cond) -> Scores:
    """Rewards of rows, float32; NaN where the picture is not finite, whatever the function says."""
    images, finite = shown(flow, x0, reward.latents)
    scores = reward.scores(images, for_reward(cond))
    return scores._replace(reward=jnp.where(finite, as_float32(scores.reward, jnp), jnp.nan))


decode = jax.jit(lambda flow, x0: decoded(flow.decode, x0))


@partial(jax.jit, static_argnames=("latents",))
def shown(flow: Flow, x0: jax.Array, latents: bool) -> tuple[jax.Array, jax.Array]:
    """What a reward is shown of rows, images or latents, and where it is finite, bool [n]."""
    if latents:
        return x0, finite_rows(x0)
    images = decoded(flow.decode, x0)
    # Images may be integers, in which what was not finite no longer shows.
    return images, finite_rows(x0) & finite_rows(images)


def _clean(rewards: jax.Array, wanted: jax.Array) -> jax.Array:
    """NaN counts as -inf, and so does what was not asked for."""
    return jnp.where(wanted & ~jnp.isnan(rewards), rewards, -jnp.inf)


def _model(
    flow: Flow,
    reward: Any,
    interpolant: Interpolant,
    uses_gradient: bool,
    x,
    t,
    cond,
    wants_gradient,
) -> tuple[Evaluation, jax.Array]:
    """Means of rows, reward and gradient where wanted; and whether they were differentiated."""
    nothing = jnp.full(t.shape, -jnp.inf, jnp.float32)
    unseen = no_parts(reward, t.size) if uses_gradient else None

    def forward() -> Evaluation:
        x0, x1 = means(flow, x, t, cond, interpolant=interpolant)
        gradient = jnp.zeros_like(x) if uses_gradient else None
        return Evaluation(x0, x1, nothing, gradient, parts=unseen)

    if not uses_gradient:
        return forward(), jnp.zeros(t.shape, jnp.bool)

    def total(x: jax.Array) -> tuple[jax.Array, tuple[Any, ...]]:
        x0, x1 = means(flow, x, t, cond, interpolant=interpolant)
        scores = verify(flow, reward, x0, cond)
        # Rows do not depend on each other, so the sum's gradient holds that of each.
        own = (x0, x1, scores.reward, scores.parts)
        return jnp.sum(jnp.where(wants_gradient, scores.reward, 0.0)), own

    def backward() -> Evaluation:
        gradient, (x0, x1, rewards, parts) = jax.grad(total, has_aux=True)(x)
        usable = jnp.isfinite(gradient) & expand(jnp.isfinite(rewards) & wants_gradient, x)
        gradient = jnp.where(usable, gradient, 0.0)
        parts = jax.tree.map(lambda part: jnp.where(wants_gradient, part, jnp.nan), parts)
        return Evaluation(x0, x1, _clean(rewards, wants_gradient), gradient, parts=parts)

    some = jnp.any(wants_gradient)
    return jax.lax.cond(some, backward, forward), jnp.full(t.shape, some)


def _picker(placement: Placement, cond: Cond) -> Callable[..., Any]:
    """``(at, prompt, arrays) -> arrays, cond`` of some rows of each group; of all for None."""

    def pick(at: Any, prompt: jax.Array, arrays: Any, cond: Cond) -> tuple[Any, Cond]:
        if at is not None:
            prompt, arrays = jax.tree.map(lambda a: a[at], (prompt, arrays))
        return arrays, of_prompts(cond, prompt)

    ins = (placement.by_row, placement.by_row, placement.by_row, placement.by_prompt)
    local = placement.local(pick, ins, placement.by_row)
    return lambda at, prompt, arrays: local(at, prompt, arrays, cond)


def evaluate_model(
    model: Model,
    asked: Candidates,
    kind: Kind,
    size: int,
    placement: Placement,
    least: int,
) -> tuple[Evaluation, Computed]:
    """Evaluate the rows of candidates; rewards only with gradients.

    Args:
      size: rows of a group at once.
      least: of a group, to which what whole chunks leave is filled up.

    Returns:
      Leaves [m, ...].
    """
    rows, pick = split(asked, placement), _picker(placement, model.cond)
    sizes = sizes_below(size, least)
    if kind.moves is not None:
        rows, moved = _arrive(model.flow, rows, kind, sizes, placement, pick)
    by = partial(_evaluated, model=model, rows=rows, kind=kind, sizes=sizes)
    if rows.draft is None:
        evals, (forward, backward, drafts) = by(model.flow, rows.valid, placement, pick)
    else:
        assert model.draft is not None
        evals, (forward, backward, _) = by(model.flow, rows.valid & ~rows.draft, placement, pick)
        drafted, (drafts, *_) = by(model.draft, rows.valid & rows.draft, placement, pick)
        evals = tree_where(rows.draft, drafted, evals)
    if kind.moves is not None:
        evals, forward = evals._replace(x=rows.x), forward + kind.inner * moved
    if kind.value is None:
        return evals, Computed(forward, backward, drafts)
    seen, looked = _look_ahead(model.flow, rows, evals, kind, sizes, placement, pick)
    return evals._replace(seen=seen), Computed(forward + kind.value.cost * looked, backward, drafts)


def _evaluated(
    flow: Flow,
    wanted: jax.Array,
    placement: Placement,
    pick: Callable[..., Any],
    model: Model,
    rows: Rows,
    kind: Kind,
    sizes: tuple[int, ...],
) -> tuple[Evaluation, Computed]:
    """The rows that are wanted, by a flow; rewards only with gradients."""
    m, wants_gradient = rows.t.shape[0], wanted & rows.wants_gradient
    evaluate = partial(_model, flow, model.reward, kind.interpolant, kind.uses_gradient)

    def chunk(at: jax.Array | None) -> tuple[Evaluation, jax.Array]:
        (x, t, gradient), own = pick(at, rows.prompt, (rows.x, rows.t, wants_gradient))
        with placement.around_model():
            return evaluate(x, t, own, gradient)

    if rows.draft is None and sizes == (m // placement.groups,):
        values, forward = chunk(None), jnp.ones(m, jnp.int32)
    else:
        zeros, nothing = jnp.zeros_like(rows.x), jnp.full(m, -jnp.inf, jnp.float32)
        empty = Evaluation(zeros, zeros, nothing)
        if kind.uses_gradient:
            empty = empty._replace(gradient=zeros, parts=no_parts(model.reward, m))
        # Valid ones first, and of those the ones to be differentiated.
        last = 2 * (~wanted).astype(jnp.int32) + (~wants_gradient).astype(jnp.int32)
        values, forward = in_chunks(
            chunk, wanted, last, sizes, (empty, jnp.zeros(m, jnp.bool)), placement
        )
    evals, differentiated = values
    return evals, Computed(forward, forward * differentiated.astype(jnp.int32))


def _arrive(
    flow: Flow,
    rows: Rows,
    kind: Kind,
    sizes: tuple[int, ...],
    placement: Placement,
    pick: Callable[..., Any],
) -> tuple[Rows, jax.Array]:
    """Rows at their times, and how often each was moved there, int32 [m]."""
    kernel, wanted, drawn = kind.moves, inner.moving(rows), rows.x.drawn
    assert kernel is not None

    def chunk(at: jax.Array | None) -> jax.Array:
        (x, t), own = pick(at, rows.prompt, (rows.x, rows.t))
        with placement.around_model():
            return inner.arrive(partial(means, flow), kernel, x, t, own)

    x, moved = in_chunks(chunk, wanted, (~wanted).astype(jnp.int32), sizes, drawn, placement)
    # What fills the last chunk up stays where it is.
    return rows._replace(x=jnp.where(expand(wanted, x), x, drawn)), moved


def _look_ahead(
    flow: Flow,
    rows: Rows,
    evals: Evaluation,
    kind: Kind,
    sizes: tuple[int, ...],
    placement: Placement,
    pick: Callable[..., Any],
) -> tuple[jax.Array, jax.Array]:
    """x0 of what is seen from each row [m, k, ...], and how often it was looked from, int32 [m]."""
    value = kind.value
    assert value is not None
    wanted = ahead.ahead(rows, value)

    def chunk(at: jax.Array | None) -> jax.Array:
        particles, own = pick(at, rows.prompt, (rows.x, rows.t, evals.x0, evals.x1, rows.key))
        with placement.around_model():
            return ahead.ends(partial(means, flow), value, kind.interpolant, particles, own)

    itself = jnp.broadcast_to(evals.x0[:, None], (wanted.size, value.samples, *flow.shape))
    seen, looked = in_chunks(chunk, wanted, (~wanted).astype(jnp.int32), sizes, itself, placement)
    # What fills the last chunk up is scored by its mean all the same.
    return jnp.where(expand(wanted, seen), seen, itself), looked


def evaluate_reward(
    model: Model,
    asked: Candidates,
    evals: Evaluation,
    kind: Kind,
    size: int,
    placement: Placement = ALONE,
) -> Evaluation:
    """Add the rewards that are still wanted, to rows of `evaluate_model`."""
    rows, pick = split(asked, placement), _picker(placement, model.cond)
    data, wanted, prompt = to_score(rows, evals, kind.value)
    reward = model.reward
    assert reward is not None
    m = wanted.shape[0]
    nothing = Scores(jnp.full(m, -jnp.inf, jnp.float32), no_parts(reward, m))

    def chunk(at: jax.Array | None) -> Scores:
        x0, own = pick(at, prompt, data)
        with placement.around_model():
            return verify(model.flow, reward, x0, own)

    last = (~wanted).astype(jnp.int32)
    scores, _ = in_chunks(chunk, wanted, last, (size,), nothing, placement)
    return with_scores(
        rows, evals, scores._replace(reward=_clean(scores.reward, wanted)), kind.value
    )
