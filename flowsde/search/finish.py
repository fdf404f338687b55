"""Finishing: follow the ODE from the best particle down to t = 0, inside the budget.

A search over posterior means ends at some t > 0, where the mean of an undistilled model is still
blurred. `Complete` wraps a search and spends its last `steps` evaluations on completing the best
particle's trajectory; the final image is scored and returned.

The steps are DDIM(0), that is, Euler steps of the *linear* interpolant whatever the search's own:
the ODE's path is the same under all of them, and straightest there. Its times are evenly spaced
in linear time; the posterior mean at the last one is the image.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowsde._checks import check_count
from flowsde.interpolants import Interpolant, Linear
from flowsde.kernels import ddim
from flowsde.search.base import Candidates, Evaluation, Info, Particle, Search, take, where


class CompleteState(NamedTuple):
    """State of `Complete`: the inner search's, and how far the best particle has come."""

    inner: Any
    step: jax.Array
    particle: Particle


@dataclasses.dataclass(frozen=True)
class Complete:
    """`inner`, then `steps` evaluations of ODE from its best particle."""

    inner: Search
    steps: int

    @property
    def nfe(self) -> int:
        return self.inner.nfe + self.steps

    @property
    def interpolant(self) -> Interpolant:
        return self.inner.interpolant

    @property
    def n_candidates(self) -> int:
        return self.inner.n_candidates

    @property
    def max_rounds(self) -> int:
        return self.inner.max_rounds + self.steps

    def with_nfe(self, nfe: int) -> "Complete":
        return dataclasses.replace(self, inner=self.inner.with_nfe(nfe - self.steps))

    def init(self, key, shape, target_reward) -> CompleteState:
        inner = self.inner.init(key, shape, target_reward)
        return CompleteState(inner, jnp.zeros((), jnp.int32), self.inner.best(inner))

    def _finishing(self, state: CompleteState) -> jax.Array:
        return self.inner.done(state.inner)

    def ask(self, state: CompleteState) -> tuple[CompleteState, Candidates]:
        inner, asked = self.inner.ask(state.inner)
        start = self.inner.best(inner)
        particle = where(state.step == 0, start, state.particle)
        p, line = self.interpolant, Linear()
        # The start's linear time, divided evenly: step k of n is at (n - k) / (n + 1) of it.
        begin = line.time(p.angle(start.t))
        done = (state.step + 1).astype(jnp.float32) / (self.steps + 1)
        t = p.time(line.angle(begin * (1.0 - done)))
        key, x, x0, x1 = jax.random.key(0), particle.x, particle.x0, particle.x1
        moved = ddim(p, eta=0.0)(key, x, x0, x1, particle.t, t)

        finishing = self._finishing(state)
        row = jnp.arange(self.n_candidates)
        more = (row == 0) & (state.step < self.steps)
        own = Candidates(
            x=jnp.broadcast_to(moved[None], asked.x.shape),
            t=jnp.full(asked.t.shape, t),
            wants_reward=more & (state.step == self.steps - 1),
            valid=more,
        )
        return CompleteState(inner, state.step, particle), where(
            jnp.full(row.shape, finishing), own, asked
        )

    def tell(
        self, state: CompleteState, candidates: Candidates, evals: Evaluation
    ) -> tuple[CompleteState, Info]:
        finishing = self._finishing(state)
        hidden = candidates._replace(valid=candidates.valid & ~finishing)
        told, info = self.inner.tell(state.inner, hidden, evals)
        inner = where(finishing, state.inner, told)
        row = take((candidates, evals), jnp.zeros((), jnp.int32))
        active = finishing & row[0].valid
        reward = jnp.where(row[0].wants_reward, row[1].reward, -jnp.inf)
        moved = Particle(row[0].x, row[0].t, row[1].x0, row[1].x1, reward)
        new = CompleteState(
            inner, state.step + active.astype(jnp.int32), where(active, moved, state.particle)
        )
        own = Info(
            time=candidates.t,
            reward=jnp.where(candidates.wants_reward, evals.reward, -jnp.inf),
            counted=candidates.valid,
            charged=jnp.sum(candidates.valid, dtype=jnp.int32),
            best_reward=self.best(new).reward,
            path_time=jnp.broadcast_to(moved.t, info.path_time.shape),
            path_reward=jnp.broadcast_to(moved.reward, info.path_reward.shape),
        )
        return new, jax.tree.map(lambda a, b: jnp.where(finishing, a, b), own, info)

    def done(self, state: CompleteState) -> jax.Array:
        return self._finishing(state) & (state.step >= self.steps)

    def best(self, state: CompleteState) -> Particle:
        """The completed particle once there is one with a reward, else the inner search's best."""
        completed = self.done(state) & (state.particle.reward > -jnp.inf)
        return where(completed, state.particle, self.inner.best(state.inner))

    def path(self, state: CompleteState) -> Particle:
        inner = self.inner.path(state.inner)
        own = jax.tree.map(lambda a, b: jnp.broadcast_to(a[None], b.shape), state.particle, inner)
        return where(jnp.full(inner.t.shape, state.step > 0), own, inner)


def complete_or_mean(finish: str, finish_steps: int) -> int:
    """Evaluations of the budget that finishing takes; 0 for "mean".

    Raises:
      ValueError, TypeError: naming the argument.
    """
    if finish not in ("complete", "mean"):
        raise ValueError(f"finish must be 'complete' or 'mean', got {finish!r}")
    return check_count("finish_steps", finish_steps) if finish == "complete" else 0
