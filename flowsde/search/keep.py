"""More than one answer: remember the k best of what could have been the answer of a search.

A search returns one particle. Many others were evaluated at the same time and scored; `Keeping`
wraps a search and keeps those of the highest rewards beside its state, so that they are saved,
resumed and split over a mesh as it is. The search itself, its draws, its answer and its account
are what they were.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowsde._checks import check_count
from flowsde.search.grid import to_particles, tree_take, tree_where
from flowsde.search.protocol import (
    Candidates,
    Evaluation,
    Info,
    Lines,
    Particle,
    Search,
)
from flowsde.search.wrapper import Wrapper


class KeepingState(NamedTuple):
    """State of `Keeping`: the inner search's, and the best [k], the highest reward first.

    Places that nothing has come to have a reward of -inf.
    """

    inner: Any
    kept: Particle


@dataclasses.dataclass(frozen=True)
class Keeping(Wrapper):
    """See `keep`."""

    k: int

    def init(self, key, shape, target_reward, nfe) -> KeepingState:
        inner = self.inner.init(key, shape, target_reward, nfe)
        best = self.inner.best(inner)
        nothing = best._replace(reward=jnp.full((), -jnp.inf, jnp.float32))
        kept = jax.tree.map(lambda a: jnp.broadcast_to(a, (self.k, *a.shape)), nothing)
        return KeepingState(inner, kept)

    def ask(self, state: KeepingState) -> tuple[KeepingState, Candidates]:
        inner, asked = self.inner.ask(state.inner)
        return state._replace(inner=inner), asked

    def tell(
        self, state: KeepingState, candidates: Candidates, evals: Evaluation
    ) -> tuple[KeepingState, Info]:
        finishing = self.inner.finishing(state.inner)
        inner, info = self.inner.tell(state.inner, candidates, evals)
        answer = self.inner.best(inner)
        # What is further up than the answer could not be one, unless finishing led further down
        # from the last time.
        least = jnp.float32(self.last_time)
        last = jnp.where(finishing, jnp.maximum(answer.t, least), answer.t)
        new, old = to_particles(candidates, evals), state.kept
        could_be = info.counted & (new.t <= last)
        if self.value is not None:
            could_be &= ~self.value.looks(new.t)
        if candidates.draft is not None:
            could_be &= ~candidates.draft
        rewards = jnp.concatenate(
            [
                jnp.where(old.t <= last, old.reward, -jnp.inf),
                jnp.where(could_be, new.reward, -jnp.inf),
            ]
        )
        x = jnp.concatenate([_flat(old.x), _flat(new.x)])
        other = ~jnp.all(x == answer.x.reshape(1, -1), axis=1)
        # Of equals, by their own values: which was drawn earlier depends on how wide waves are.
        best = jnp.lexsort((x[:, 0], other, -rewards))[: self.k].astype(jnp.int32)
        row = jnp.maximum(best - self.k, 0)
        kept = tree_where(
            best < self.k, tree_take(old, jnp.minimum(best, self.k - 1)), tree_take(new, row)
        )
        return KeepingState(inner, kept._replace(reward=rewards[best])), info

    def done(self, state: KeepingState) -> jax.Array:
        return self.inner.done(state.inner)

    def finishing(self, state: KeepingState) -> jax.Array:
        return self.inner.finishing(state.inner)

    def with_stop(self, state: KeepingState, stop: Any) -> KeepingState:
        own = getattr(self.inner, "with_stop", None)
        return state if own is None else state._replace(inner=own(state.inner, stop))

    def best(self, state: KeepingState) -> Particle:
        return self.inner.best(state.inner)

    def kept(self, state: KeepingState) -> Particle:
        """The best so far, [k]."""
        return state.kept

    def path(self, state: KeepingState) -> Particle:
        return self.inner.path(state.inner)

    def lines(self, state: KeepingState, info: Info) -> Lines:
        return self.inner.lines(state.inner, info)


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(len(x), -1)


def keep(search: Search, k: int) -> Keeping:
    """The same search, which remembers its k best answers: see `flowsde.Result.top`.

    They are candidates whose reward is of their own posterior mean, at the time of the answer or
    below, the best by reward; of equals the answer first, then by the first number of their
    states. Of RBF's wide waves, those that are counted, and of a chain that was ahead when another
    met a target, what it had read: these others depend on the width, the answer does not. Of
    another flow's drafts none.

    Args:
      search: of any method.
      k: how many, at least 1. Their states are in memory, and their pictures are decoded.

    Raises:
      ValueError, TypeError: naming the argument.

    Example:
      >>> flow = fs.analytic.gaussian([0.0, 0.0], 1.0).flow()
      >>> reward = lambda images, cond: images[:, 0]  # of a sample: 0, give or take 1
      >>> search = fs.search.bon(
      ...     nfe=40, kernel=fs.kernels.ode_euler(flow.interpolant), grid=fs.grids.uniform(8)
      ... )
      >>> search = fs.search.keep(search, 3)
      >>> result = fs.run(jax.random.key(0), flow, search, reward)
      >>> bool(result.top(3)[0].reward == result.reward), len(result.top(3))
      (True, 3)
    """
    if not isinstance(search, Search):
        raise TypeError(f"search must be a flowsde.search.Search, got {type(search).__name__}")
    return Keeping(search, check_count("k", k))


def answers_of(search: Search, state: Any) -> tuple[Particle, Particle | None]:
    """The best so far, and what a search keeps beside it, [k]; None if it is none that does."""
    kept = getattr(search, "kept", None)
    return search.best(state), None if kept is None else kept(state)
