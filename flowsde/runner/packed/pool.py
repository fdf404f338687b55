"""Slots, and the pool of their candidates that wait to be evaluated.

A slot holds one prompt's search: its state, what it asks for, and what has been evaluated of that.
Slots advance independently. Everything has a leading axis of S slots; candidates have w columns.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowsde.rewards.base import PartNames
from flowsde.runner.inner import like
from flowsde.runner.mesh import ALONE, Placement, on_every_device
from flowsde.runner.records import Kind, Program
from flowsde.runner.result import Carry
from flowsde.runner.rounds import WITHOUT_PARTS, start
from flowsde.search.protocol import Candidates, Evaluation
from flowsde.start import Start

LEAST = 2
"""Rows of a batch that is not full are computed so many at once: a CPU takes no longer for each of
two than for each of a full batch, but two thirds as long again for one alone."""


class Prompts(NamedTuple):
    """The list: every leaf but `length` has a leading axis of P prompts.

    Attributes:
      keys: of each prompt.
      nfe: int32, budget of each in model evaluations.
      order: int32, numbers of the prompts, in which slots take them.
      length: int32, how many of `order` there are to take.
      start: what each begins from; None without.
    """

    keys: jax.Array
    nfe: jax.Array
    order: jax.Array
    length: jax.Array
    start: Start | None = None

    def start_of(self, prompts: jax.Array) -> Start | None:
        """What some of them begin from."""
        return jax.tree.map(lambda a: a[prompts], self.start)


class Pool(NamedTuple):
    """S slots.

    Attributes:
      carry: states and counters.
      prompt: int32 [S], number of the prompt; -1 in a free slot.
      asked: candidates [S, w] of this round.
      evals: of those that are back.
      backward: int32 [S, w], passes that were differentiated.
      waiting: bool [S, w], to be evaluated.
      due: bool [S, w], not back yet, waiting or in a batch that is under way.
      rounds: int32 [S], that each slot's prompt has been told.
      taken: int32, how many prompts of the list have been begun.
    """

    carry: Carry
    prompt: jax.Array
    asked: Candidates
    evals: Evaluation
    backward: jax.Array
    waiting: jax.Array
    due: jax.Array
    rounds: jax.Array
    taken: jax.Array


class Batch(NamedTuple):
    """B candidates of any slots, evaluated together.

    Attributes:
      place: int32 [B], slot * w + column; S * w where there is none.
      asked: [B, 1], as one candidate of each of B prompts.
      prompt: int32 [B], numbers of the prompts.
    """

    place: jax.Array
    asked: Candidates
    prompt: jax.Array


@partial(jax.jit, static_argnames=("program", "slots", "shape", "parts", "placement"))
@on_every_device
def empty(
    prompts: Prompts,
    target: jax.Array,
    *,
    program: Program,
    slots: int,
    shape: tuple[int, ...],
    parts: PartNames = WITHOUT_PARTS,
    placement: Placement = ALONE,
) -> Pool:
    """S free slots, for particles of a shape, of as many columns as the search has candidates."""
    first, search = jnp.zeros(slots, jnp.int32), program.search
    carry = start(
        prompts.keys[first], prompts.nfe[first], target, program, shape=shape, parts=parts
    )
    carry = carry._replace(start=prompts.start_of(first))
    lead = (slots, search.n_candidates)
    x, number = jnp.zeros(lead + shape, jnp.float32), jnp.zeros(lead, jnp.float32)
    no, value = jnp.zeros(lead, jnp.bool), program.kind.value
    key = jnp.zeros((*lead, 2), jnp.uint32) if value is not None and value.draws else None
    draft = no if program.kind.drafts else None
    return Pool(
        carry=carry,
        prompt=jnp.full(slots, -1, jnp.int32),
        asked=Candidates(like(x, number, program.kind.moves), number, no, no, no, key, draft),
        evals=unknown(x, number, program.kind, parts),
        backward=jnp.zeros(lead, jnp.int32),
        waiting=no,
        due=no,
        rounds=jnp.zeros(slots, jnp.int32),
        taken=jnp.zeros((), jnp.int32),
    )


def unknown(x: jax.Array, number: jax.Array, kind: Kind, parts: PartNames) -> Evaluation:
    """An evaluation of zeros, given those of one's x and of its reward, and the reward's parts."""
    gradient, arrived = x if kind.uses_gradient else None, x if kind.moves is not None else None
    said = dict.fromkeys(parts.every, number) or None
    asked = dict.fromkeys(parts.unasked, number.astype(jnp.int32)) or None
    return Evaluation(x, x, number, gradient, parts=said, x=arrived, asked=asked)


def flat(tree: Any) -> Any:
    """Leaves [S, w, ...] as [S w, ...]."""
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)
