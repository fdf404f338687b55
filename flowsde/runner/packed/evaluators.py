"""Who evaluates a batch: the device alone, or the device and a reward outside JAX.

The latter scores one batch in a thread while the device computes the next. Conds of all prompts
stay on the host, where there is room for those of thousands; a batch takes its own along.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from flowsde import _threads
from flowsde.conds import for_reward
from flowsde.flow import finite_rows
from flowsde.rewards.base import HostReward, Scores
from flowsde.runner.ahead import to_score
from flowsde.runner.chunks import least_of
from flowsde.runner.evaluate import Rows, evaluate_model, split
from flowsde.runner.mesh import ALONE, EVERYWHERE, Placement, on_every_device
from flowsde.runner.packed.pool import LEAST, Batch
from flowsde.runner.packed.steps import evaluate
from flowsde.runner.parts import not_scored, with_scores, write_scores
from flowsde.runner.records import Kind, Model
from flowsde.search.protocol import Evaluation

Worth = tuple[Evaluation, jax.Array]
"""What a batch is worth, and which passes were differentiated; [B]."""


class Judge(Protocol):
    """Attributes: depth, how many batches it takes before the first must be waited for."""

    depth: int

    def begin(self, batch: Batch) -> Callable[[], Worth]:
        """Begin to evaluate; the function waits for the end."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class OnDevice:
    """Flow and reward in one program."""

    depth = 1

    def __init__(self, model: Model, kind: Kind, minibatch: int, placement: Placement):
        self._model, self._placement = model, placement
        self._evaluate = partial(evaluate, kind=kind, minibatch=minibatch, placement=placement)

    def begin(self, batch: Batch) -> Callable[[], Worth]:
        worth = self._evaluate(_of_batch(self._model, batch, self._placement), batch)
        return lambda: worth

    def close(self) -> None:
        pass


def _of_batch(model: Model, batch: Batch, placement: Placement) -> Model:
    """The model with the cond [B, ...] of a batch, taken from that of all prompts."""
    numbers = np.asarray(batch.prompt)
    cond = jax.tree.map(lambda a: a[numbers], model.cond)
    return dataclasses.replace(model, cond=placement.put(cond, placement.by_row))


@partial(jax.jit, static_argnames=("kind", "minibatch", "latents", "placement"))
def evaluate_and_show(
    model: Model,
    batch: Batch,
    kind: Kind,
    minibatch: int,
    latents: bool,
    placement: Placement = ALONE,
) -> tuple[Worth, jax.Array, jax.Array, jax.Array, jax.Array]:
    """A batch's means; what is to be scored, with what is wanted first: its numbers, images (or
    latents) in that order, which of these are finite, and numbers of the prompts.

    The model has cond [B, ...]. Images are decoded in the same program, as a later one would wait
    for the next batch.
    """
    flow, size, groups = model.flow, batch.place.size, placement.groups
    own = size // groups
    least = least_of(flow, own, own, LEAST)
    evals, computed = evaluate_model(model, batch.asked, kind, own, placement, least)
    worth = placement.keep((evals, computed.backward), EVERYWHERE)
    x0, wanted, prompt = to_score(_rows(batch), worth[0], kind.value)
    order = jnp.argsort(~wanted, stable=True).astype(jnp.int32)
    at_once = minibatch * groups
    pieces = jnp.pad(order, (0, -order.size % at_once)).reshape(-1, at_once)

    def show(x0: jax.Array) -> jax.Array:
        if latents:
            return x0
        with placement.around_model():
            return flow.decode(placement.keep(x0, placement.by_row))

    like = jax.eval_shape(show, x0[:at_once])

    def piece(at: jax.Array) -> jax.Array:
        return jax.lax.cond(
            jnp.any(wanted[at]),
            lambda: show(x0[at]),
            lambda: jnp.zeros(like.shape, like.dtype),
        )

    images = jax.lax.map(piece, pieces)
    images = images.reshape(-1, *images.shape[2:])[: order.size]
    at = jnp.where(wanted[order], order, -1)
    finite = finite_rows(x0)[order] & finite_rows(images)
    return worth, at, images, finite, prompt


def _rows(batch: Batch) -> Rows:
    return split(batch.asked, ALONE)._replace(prompt=batch.prompt)


@partial(jax.jit, static_argnames=("kind", "placement"))
@on_every_device
def scored(
    batch: Batch, evals: Evaluation, scores: Scores, *, kind: Kind, placement: Placement = ALONE
) -> Evaluation:
    """With the rewards of what was to be scored."""
    return with_scores(_rows(batch), evals, scores, kind.value)


class OnHost:
    """The reward of one batch after the other in a thread of its own."""

    depth = 2

    def __init__(
        self, model: Model, reward: HostReward, kind: Kind, minibatch: int, placement: Placement
    ):
        self._model, self._placement = dataclasses.replace(model, reward=None), placement
        how: dict[str, Any] = {"kind": kind, "minibatch": minibatch, "latents": reward.latents}
        how |= {"placement": placement}
        self._evaluate = partial(evaluate_and_show, **how)
        self._reward, self._minibatch, self._kind = reward, minibatch, kind
        self._cond = for_reward(model.cond)
        self._thread = _threads.Line(f"reward {reward.name}")

    def begin(self, batch: Batch) -> Callable[[], Worth]:
        (evals, backward), *to_score = self._evaluate(
            _of_batch(self._model, batch, self._placement), batch
        )
        rewards = self._thread.submit(self._score, *to_score)

        def wait() -> Worth:
            told = self._placement.put(_threads.wait(rewards), EVERYWHERE)
            own = scored(batch, evals, told, kind=self._kind, placement=self._placement)
            return own, backward

        return wait

    def _score(self, rows: Any, images: Any, finite: Any, prompts: Any) -> Scores:
        rows = np.asarray(rows)
        told, wanted = not_scored(self._reward, rows.size), rows[rows >= 0]
        if wanted.size == 0:
            return told
        images, finite = (np.asarray(a)[: wanted.size] for a in (images, finite))
        prompts = np.asarray(prompts)[wanted]
        for start in range(0, wanted.size, self._minibatch):
            some = slice(start, start + self._minibatch)
            own = jax.tree.map(lambda a, some=some: a[prompts[some]], self._cond)
            write_scores(told, wanted[some], self._reward.scores(images[some], own), finite[some])
        return told

    def close(self) -> None:
        self._thread.close()
