"""Best-of-N: draw N samples, keep the one with the highest reward.

Each sample follows the kernel down the whole grid, n evaluations, and only the posterior mean at
its last time, which is the sample, is verified: N = nfe // n. At most `width` samples go at once,
in waves as even as there can be. Of a kernel with inner evaluations n is that many more.
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._checks import check_count
from flowsde.grids import as_grid
from flowsde.kernels import Before, Kernel, Multistep
from flowsde.search.grid import fold_in_ids, map_valid, to_particles, tree_take, tree_where
from flowsde.search.protocol import BudgetTooSmall, Candidates, Evaluation, Info, Lines, Particle
from flowsde.search.solver import SolvedSearch, kernel_and_solver


class BestOfNState(NamedTuple):
    """State of `BestOfN`: a wave of samples at the same step, and the best finished one.

    `before` is what the samples' last step left, of a solver.
    """

    key: jax.Array
    target: jax.Array
    nfe: jax.Array
    wave: jax.Array
    step: jax.Array
    particles: Particle
    best: Particle
    before: Before | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestOfN(SolvedSearch):
    """See `bon`."""

    charges_moves: ClassVar[bool] = True

    width: int

    def __post_init__(self) -> None:
        if self.nfe < self._cost:
            raise BudgetTooSmall(
                f"nfe = {self.nfe} is less than one sample: the grid takes {self._cost} "
                f"evaluations",
                self._cost,
            )

    @property
    def _costs(self) -> np.ndarray:
        """Evaluations of a sample at each step."""
        return self.costs(np.zeros(self.steps, bool))

    @property
    def _cost(self) -> int:
        """Evaluations of a sample."""
        return int(self._costs.sum())

    @property
    def samples(self) -> int:
        """N."""
        return self.nfe // self._cost

    @property
    def _waves(self) -> int:
        return -(-self.samples // self.width)

    @property
    def n_candidates(self) -> int:
        return -(-self.samples // self._waves)

    @property
    def max_rounds(self) -> int:
        return self._waves * self.steps

    @property
    def path_name(self) -> str:
        return "sample" if self.samples > 1 else "trajectory"

    def init(self, key, shape, target_reward, nfe) -> BestOfNState:
        zero = jnp.zeros((), jnp.int32)
        particles = self.empty(self.n_candidates, shape)
        best = self.empty(None, shape)
        before = self.nothing_before(self.n_candidates, shape)
        return BestOfNState(key, target_reward, nfe, zero, zero, particles, best, before)

    def _ids(self, state: BestOfNState) -> jax.Array:
        return state.wave * self.n_candidates + jnp.arange(self.n_candidates, dtype=jnp.int32)

    def ask(self, state: BestOfNState) -> tuple[BestOfNState, Candidates]:
        ids, n = self._ids(state), self.n_candidates
        valid = (ids < state.nfe // self._cost) & ~self.done(state)
        keys = jax.vmap(partial(fold_in_ids, state.key), (0, None))(ids, state.step)

        def extend(key: jax.Array, row: jax.Array) -> tuple[Any, Before | None]:
            parent, before = tree_take((state.particles, state.before), row)
            x = self.extend(key, parent, state.step)
            return self.solved(x, parent, before, state.step)

        x, before = map_valid(extend, valid, keys, jnp.arange(n, dtype=jnp.int32))
        return state._replace(before=before), Candidates(
            x=x,
            t=jnp.full(n, jnp.asarray(self.grid, jnp.float32)[state.step]),
            wants_reward=jnp.full(n, state.step == self.steps - 1),
            wants_gradient=jnp.full(n, self.wants_gradient(state.step)),
            valid=valid,
        )

    def tell(
        self, state: BestOfNState, candidates: Candidates, evals: Evaluation
    ) -> tuple[BestOfNState, Info]:
        active = ~self.done(state)
        particles = to_particles(candidates, evals)
        finished = active & (state.step == self.steps - 1)
        row = jnp.argmax(particles.reward)
        winner = tree_take(particles, row)
        first = finished & (state.wave == 0)
        better = first | (finished & (winner.reward > state.best.reward))
        new = BestOfNState(
            key=state.key,
            target=state.target,
            nfe=state.nfe,
            wave=state.wave + finished.astype(jnp.int32),
            step=jnp.where(finished, 0, state.step + active.astype(jnp.int32)),
            particles=particles,
            best=tree_where(better, winner, state.best),
            before=state.before,
        )
        best = new.best
        return new, Info(
            time=candidates.t,
            reward=particles.reward,
            counted=candidates.valid,
            accepted=better & (jnp.arange(self.n_candidates) == row),
            ancestors=jnp.where(better, self._ids(state)[row], -1)[None],
            ess=jnp.ones((), jnp.float32),
            charged=jnp.asarray(self._costs)[state.step]
            * jnp.sum(candidates.valid, dtype=jnp.int32),
            best_reward=best.reward,
            path_time=best.t[None],
            path_reward=best.reward[None],
        )

    def done(self, state: BestOfNState) -> jax.Array:
        spent = state.wave * self.n_candidates >= state.nfe // self._cost
        return spent | (state.best.reward >= state.target)

    def best(self, state: BestOfNState) -> Particle:
        return state.best

    def path(self, state: BestOfNState) -> Particle:
        return jax.tree.map(lambda a: a[None], state.best)

    def lines(self, state: BestOfNState, info: Info) -> Lines:
        """Finished samples, a line each; of a single one, what every step came to."""
        if self.samples == 1:
            first = jnp.zeros(1, jnp.int32)
            return Lines(first, first, state.particles)
        ids = self._ids(state) - self.n_candidates
        ended = (state.step == 0) & (ids < state.nfe // self._cost)
        return Lines(jnp.where(ended, ids, -1), jnp.full_like(ids, -1), state.particles)


def bon(*, nfe: int, kernel: Kernel | Multistep, grid: Any, width: int = 16) -> BestOfN:
    """Best-of-N.

    Args:
      nfe: budget in model evaluations; what is left after nfe // steps samples is not used.
      kernel: usually `kernels.ode_euler`; a stochastic one gives best-of-N over SDE samples. Or a
        multistep solver, as `kernels.ode_adams`.
      grid: times falling from 1 to 0; a sample takes len(grid) - 1 evaluations, and those of the
        kernel's inner steps.
      width: samples drawn at once, at most; changes speed and memory, and with a target reward
        how many are finished when it is met.

    Raises:
      ValueError, TypeError: naming the argument.

    Example:
      >>> flow = fs.analytic.gaussian([0.0, 0.0], 1.0).flow()
      >>> reward = lambda images, cond: images[:, 0]  # of a sample: 0, give or take 1
      >>> budget = {"nfe": 40, "kernel": fs.kernels.ode_euler(flow.interpolant)}
      >>> search = fs.search.bon(grid=fs.grids.uniform(8), **budget)
      >>> result = fs.run(jax.random.key(1), flow, search, reward)
      >>> bool(result.reward > 0), bool(result.nfe <= 40)
      (True, True)
    """
    moves, solver = kernel_and_solver(kernel)
    return BestOfN(
        nfe=check_count("nfe", nfe),
        kernel=moves,
        solver=solver,
        grid=as_grid("grid", grid),
        width=check_count("width", width),
    )
