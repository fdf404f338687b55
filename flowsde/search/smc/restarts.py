"""Restarts: what a pass of SMC finds is noised part of the way, and the next pass begins there.

The first pass takes N particles down the whole grid. Each later one begins with N copies of the
best particle so far, noised by the forward process up to a time between, every copy with noise of
its own, and takes them down the rest of the grid, resampled as before. So a pass costs part of the
first one, keeps the layout that has been found, and improves on it with rewards on the way, where a
larger population would search the first steps again, at which rewards say least. The forward
process and the kernel keep the marginal, so that what is found stays a sample of the model.

Passes of a local search from a perturbed best solution are iterated local search (Lourenço, Martin
and Stützle, 2003, arXiv math/0102188); the perturbation is that of SDEdit (Meng et al., 2022, arXiv
2108.01073). With Best-of-N in the place of SMC it is `flowsde.search.evolution` with one parent.
"""

import dataclasses
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde.kernels import renoise
from flowsde.kernels.base import standard_normal
from flowsde.search.grid import UnusableKernel, fold_in_ids, tree_where
from flowsde.search.protocol import Candidates, Evaluation, Info, Lines, Particle
from flowsde.search.smc.policy import SMC, SMCState
from flowsde.search.smc.potentials import initial_memory
from flowsde.search.wrapper import Wrapper

_PASS = np.iinfo(np.int32).max - 1
"""In place of a particle's number, the key of a pass."""


class RestartsState(NamedTuple):
    """State of `Restarts`.

    Attributes:
      key: of the run.
      smc: of the pass under way.
      left: int32, evaluations for the passes after it.
      passes: int32, those that have ended and were followed by another.
      best: the best particle of the passes that have ended, or of the first one so far.
    """

    key: jax.Array
    smc: SMCState
    left: jax.Array
    passes: jax.Array
    best: Particle


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass(SMC):
    """SMC of particles that may begin with one of a later time, which is noised."""

    def extend(self, key: jax.Array, parent: Particle, step: jax.Array) -> Any:
        noise = standard_normal(key, parent.x.shape)
        t = jnp.asarray(self.grid, jnp.float32)[step]
        mean, std = renoise(self.interpolant).moments(parent.x, parent.x0, parent.x1, parent.t, t)
        noised = self.arrived(mean + std * noise, t)
        return tree_where(parent.t < t, noised, self.move(noise, parent, step))


@dataclasses.dataclass(frozen=True)
class Restarts(Wrapper):
    """`inner` of at most so many particles, again and again from its best one.

    Attributes:
      inner: SMC of the whole budget.
      particles: of a pass.
      at: position in the grid at which passes behind the first begin.

    Example:
      >>> kernel = fs.kernels.ddim(fs.interpolants.vp())
      >>> search = fs.search.smc(
      ...     nfe=40, kernel=kernel, grid=fs.grids.uniform(6), restart_at=0.5, finish="mean"
      ... )
      >>> type(search).__name__, search.particles, search.at, search.inner.nfe
      ('Restarts', 4, 3, 40)
    """

    inner: Pass
    particles: int
    at: int

    def __post_init__(self) -> None:
        if self.uses_gradient:
            raise UnusableKernel(
                f"kernel {type(self.kernel).__name__} is guided by the reward's gradient, but a "
                f"pass from restart_at on begins with copies that it has not proposed; expected "
                f"one without a gradient, or restart_at 0"
            )

    @cached_property
    def smc(self) -> Pass:
        """A pass."""
        return self.inner.with_nfe(min(self.inner.nfe, self.particles * self._first))

    @cached_property
    def _first(self) -> int:
        """Evaluations of a particle of the first pass."""
        return int(self.inner.costs(self.inner.weighed).sum())

    @cached_property
    def _again(self) -> int:
        """Of a later one: noise is added without."""
        return int(self.inner.costs(self.inner.weighed)[self.at :].sum()) - self._moves

    @property
    def _moves(self) -> int:
        """Evaluations of a move from one time to the next."""
        return self.inner.kernel.inner_evaluations

    @property
    def n_candidates(self) -> int:
        return self.smc.n_candidates

    @property
    def max_rounds(self) -> int:
        steps, again = self.inner.steps, self._again
        # Of a budget of fewer particles, less than one more of them is left.
        rest = max(self.nfe - self.n_candidates * self._first, 0)
        passes = max(rest, self._first - 1) // (self.n_candidates * again) + 1
        return steps + passes * (steps - self.at)

    def init(self, key, shape, target_reward, nfe) -> RestartsState:
        n = jnp.minimum(nfe // self._first, self.n_candidates)
        smc = self.smc.init(key, shape, target_reward, n * self._first)
        zero = jnp.zeros((), jnp.int32)
        return RestartsState(key, smc, nfe - n * self._first, zero, smc.champion)

    def ask(self, state: RestartsState) -> tuple[RestartsState, Candidates]:
        smc, asked = self.smc.ask(state.smc)
        return state._replace(smc=smc), asked

    def tell(
        self, state: RestartsState, candidates: Candidates, evals: Evaluation
    ) -> tuple[RestartsState, Info]:
        # Copies of the best particle, which noise has been added to, not moved.
        born = (state.passes > 0) & (state.smc.step == self.at)
        active = ~self.done(state)
        smc, info = self.smc.tell(state.smc, candidates, evals)
        ended = active & (smc.step >= self.inner.steps)
        met = active & self.inner.meets(smc.champion, smc.target)
        # Within a pass the champion may be of an earlier time than the best one.
        better = (ended | met) & (smc.champion.reward > state.best.reward)
        improved = better | (active & (state.passes == 0))
        best = tree_where(improved, smc.champion, state.best)
        n = jnp.minimum(state.left // self._again, self.n_candidates)
        again = ended & ~met & (n > 0)
        # Without any reward it may be a particle of the first times.
        again &= best.t < jnp.asarray(self.inner.grid, jnp.float32)[self.at]
        new = state._replace(
            smc=tree_where(again, self._begun(state, smc, best, n), smc),
            left=jnp.where(again, state.left - n * self._again, state.left),
            passes=state.passes + again.astype(jnp.int32),
            best=best,
        )
        rows = jnp.arange(self.n_candidates, dtype=jnp.int32)
        winner = jnp.argmax(info.reward).astype(jnp.int32)
        goes_on = improved & (info.reward[winner] > -jnp.inf)
        moved = jnp.sum(candidates.valid & born, dtype=jnp.int32)
        path = self.path(new)
        return new, info._replace(
            accepted=jnp.where(again, goes_on & (rows == winner), info.accepted),
            ancestors=jnp.where(again, jnp.where(goes_on, winner, -1), info.ancestors),
            charged=info.charged - self._moves * moved,
            best_reward=best.reward,
            path_time=path.t,
            path_reward=path.reward,
        )

    def _begun(self, state: RestartsState, smc: SMCState, best: Particle, n: jax.Array) -> SMCState:
        """The next pass, of n copies of the best particle."""
        width = self.n_candidates
        zeros = jnp.zeros(width, jnp.float32)
        number = jnp.asarray(_PASS, jnp.int32)
        return smc._replace(
            key=fold_in_ids(state.key, number, state.passes),
            nfe=n * self._first,
            step=jnp.full_like(smc.step, self.at),
            particles=jax.tree.map(lambda a: jnp.broadcast_to(a[None], (width, *a.shape)), best),
            log_weights=jnp.where(jnp.arange(width, dtype=jnp.int32) < n, zeros, -jnp.inf),
            potential=zeros,
            memory=initial_memory(self.inner.potential, width),
            log_z=jnp.zeros_like(smc.log_z),
            # A target is met by what this pass finds.
            champion=smc.champion._replace(reward=jnp.full((), -jnp.inf, jnp.float32)),
            share=None if smc.share is None else jnp.zeros_like(smc.share),
        )

    def done(self, state: RestartsState) -> jax.Array:
        return self.smc.done(state.smc)

    def best(self, state: RestartsState) -> Particle:
        return state.best

    def path(self, state: RestartsState) -> Particle:
        return self.smc.path(state.smc)

    def lines(self, state: RestartsState, info: Info) -> Lines:
        """Those of SMC, and behind them the best particle's, from which passes begin."""
        times, own = np.asarray(self.inner.grid, np.float32), self.n_candidates
        ended = info.time[0] == times[-2] and int(state.smc.step) == self.at
        born = info.time[0] == times[self.at] and int(state.passes) - ended > 0
        if ended:
            winner = int(info.ancestors[0])
            one = np.ones(1, np.int32)
            best = jax.tree.map(lambda a: np.asarray(a)[None], state.best)
            return Lines(one * (own if winner >= 0 else -1), one * (own if born else winner), best)
        lines = self.smc.lines(state.smc, info)
        return lines._replace(parent=np.full_like(lines.parent, own)) if born else lines
