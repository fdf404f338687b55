"""Best-of-N: draw N samples, keep the one with the highest reward.

Each sample follows the kernel down the whole grid, n evaluations, and only the posterior mean at
its last time, which is the sample, is verified: N = nfe // n. `width` samples go at once.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flowsde._checks import check_count
from flowsde.flow import initial_noise
from flowsde.grids import as_grid
from flowsde.interpolants import Interpolant
from flowsde.kernels import Kernel
from flowsde.search.base import (
    Candidates,
    Evaluation,
    Info,
    Particle,
    check_kernel,
    empty_particles,
    evaluated,
    fold,
    take,
    where,
)


class BestOfNState(NamedTuple):
    """State of `BestOfN`: `width` samples at the same step, and the best finished one."""

    key: jax.Array
    target: jax.Array
    wave: jax.Array
    step: jax.Array
    particles: Particle
    best: Particle


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestOfN:
    """See `bon`."""

    nfe: int
    kernel: Kernel
    grid: tuple[float, ...]
    width: int

    def __post_init__(self) -> None:
        if self.nfe < self.steps:
            raise ValueError(
                f"nfe = {self.nfe} is less than one sample: the grid takes {self.steps} evaluations"
            )

    @property
    def steps(self) -> int:
        """Evaluations of one sample."""
        return len(self.grid) - 1

    @property
    def samples(self) -> int:
        """N."""
        return self.nfe // self.steps

    @property
    def interpolant(self) -> Interpolant:
        return self.kernel.interpolant

    @property
    def n_candidates(self) -> int:
        return min(self.width, self.samples)

    @property
    def max_rounds(self) -> int:
        return -(-self.samples // self.n_candidates) * self.steps

    def with_nfe(self, nfe: int) -> "BestOfN":
        return dataclasses.replace(self, nfe=nfe)

    def init(self, key, shape, target_reward) -> BestOfNState:
        zero = jnp.zeros((), jnp.int32)
        particles = empty_particles(self.n_candidates, shape)
        return BestOfNState(key, target_reward, zero, zero, particles, empty_particles(None, shape))

    def _ids(self, state: BestOfNState) -> jax.Array:
        return state.wave * self.n_candidates + jnp.arange(self.n_candidates, dtype=jnp.int32)

    def ask(self, state: BestOfNState) -> tuple[BestOfNState, Candidates]:
        s = jnp.asarray(self.grid, jnp.float32)[state.step]

        def extend(sample: jax.Array, particle: Particle) -> jax.Array:
            key = fold(state.key, sample, state.step)
            noise = initial_noise(key, particle.x.shape, self.interpolant)
            child = self.kernel(key, particle.x, particle.x0, particle.x1, particle.t, s)
            return jnp.where(state.step == 0, noise, child)

        ids = self._ids(state)
        x = jax.vmap(extend)(ids, state.particles)
        valid = (ids < self.samples) & ~self.done(state)
        last = jnp.full(ids.shape, state.step == self.steps - 1)
        return state, Candidates(x, jnp.full(ids.shape, s), last, valid)

    def tell(
        self, state: BestOfNState, candidates: Candidates, evals: Evaluation
    ) -> tuple[BestOfNState, Info]:
        active = ~self.done(state)
        particles = evaluated(candidates, evals)
        finished = active & (state.step == self.steps - 1)
        reward = jnp.where(candidates.valid & candidates.wants_reward, evals.reward, -jnp.inf)
        winner = take(particles, jnp.argmax(reward))
        first = finished & (state.wave == 0)
        better = finished & (winner.reward > state.best.reward)
        new = BestOfNState(
            key=state.key,
            target=state.target,
            wave=state.wave + finished.astype(jnp.int32),
            step=jnp.where(finished, 0, state.step + active.astype(jnp.int32)),
            particles=particles,
            best=where(first | better, winner, state.best),
        )
        charged = jnp.sum(candidates.valid, dtype=jnp.int32)
        best = new.best
        return new, Info(
            time=candidates.t,
            reward=reward,
            counted=candidates.valid,
            charged=charged,
            best_reward=best.reward,
            path_time=best.t[None],
            path_reward=best.reward[None],
        )

    def done(self, state: BestOfNState) -> jax.Array:
        spent = state.wave * self.n_candidates >= self.samples
        return spent | (state.best.reward >= state.target)

    def best(self, state: BestOfNState) -> Particle:
        return state.best

    def path(self, state: BestOfNState) -> Particle:
        return jax.tree.map(lambda a: a[None], state.best)


def bon(*, nfe: int, kernel: Kernel, grid: Any, width: int = 16) -> BestOfN:
    """Best-of-N.

    Args:
      nfe: budget in model evaluations; what is left after nfe // steps samples is not used.
      kernel: usually `kernels.ode_euler`; a stochastic one gives best-of-N over SDE samples.
      grid: times falling from 1 to 0; a sample takes len(grid) - 1 evaluations.
      width: samples drawn at once; changes speed and memory, and with a target reward how many
        are finished when it is met.

    Raises:
      ValueError, TypeError: naming the argument.
    """
    return BestOfN(
        nfe=check_count("nfe", nfe),
        kernel=check_kernel(kernel),
        grid=as_grid("grid", grid),
        width=check_count("width", width),
    )
