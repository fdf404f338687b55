"""What a run gives back, and what it carries from round to round."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde.search.base import Info


class Result(NamedTuple):
    """What a search found; leading axis P for several prompts, none for one.

    Attributes:
      image: what the reward saw of the best particle, the decoded x0.
      x0: its posterior mean, float32 [*flow.shape].
      x, t: the particle, float32 [*flow.shape] and [], in the search's interpolant; evaluating
        the flow there gives x0, and the reward of its decoding is `reward`.
      reward: float32 [].
      nfe: model evaluations charged; never above the budget.
      evaluations: model evaluations computed, surplus and padding included.
      backward_passes: those of them that were differentiated for gradients of the reward.
      verifier_calls: rewards asked for, those with a gradient included.
      verifier_cost: what they cost in model evaluations, by the reward's own word.
      info: `flowsde.search.Info` with a leading axis of rounds.
      state: of the search, after the last round.
    """

    image: Any
    x0: Any
    x: Any
    t: Any
    reward: Any
    nfe: Any
    evaluations: Any
    backward_passes: Any
    verifier_calls: Any
    verifier_cost: Any
    info: Info
    state: Any


class Carry(NamedTuple):
    """State and counters of P prompts."""

    state: Any
    nfe: jax.Array
    evaluations: jax.Array
    backward_passes: jax.Array
    verifier_calls: jax.Array


COUNTERS = Carry._fields[1:]


def carry_of(result: Result, single: bool) -> Carry:
    """What a run goes on from; the axis of prompts is added for a single one."""
    counters = (jnp.asarray(getattr(result, name), jnp.int32) for name in COUNTERS)
    carry = Carry(result.state, *counters)
    return jax.tree.map(lambda a: a[None], carry) if single else carry


def log_of(result: Result, single: bool) -> Info:
    """The rounds so far, NumPy [rounds, P, ...]."""

    def with_prompts(name: str, rows: Any) -> Any:
        # Seconds are of all prompts together.
        return rows if rows is None or not single or name == "seconds" else rows[:, None]

    fields = result.info._asdict()
    return Info(**{name: with_prompts(name, rows) for name, rows in fields.items()})


def of_one_prompt(result: Result) -> Result:
    """Counters as Python numbers, and the log without the axis of prompts."""
    counters = {name: int(getattr(result, name)) for name in COUNTERS}
    info = jax.tree.map(lambda a: a[:, 0], result.info._replace(seconds=None))
    return result._replace(
        **counters,
        verifier_cost=float(result.verifier_cost),
        info=info._replace(seconds=result.info.seconds),
    )


def empty_log(shapes: Info, rounds: int) -> Info:
    """Rows for the log of a run, NumPy [rounds, P, ...]."""
    return jax.tree.map(lambda a: np.zeros((rounds, *a.shape), a.dtype), shapes)
