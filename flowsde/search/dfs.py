"""Depth-first search with backtracking (after Zhang et al., 2025, arXiv 2505.23614).

Each chain follows the kernel down the grid. At the times of checks the reward of its particle is
asked: one below the bar is noised by the forward process, up by some steps, and comes down again.
After so many tries the best of them goes on, so that no bar is too high. A chain that has come to
its end begins anew while the budget pays for the whole way, then goes back from the end alone.

No more than the budget is spent, and every chain comes to its end: it goes back only where what is
left also pays for the rest of the way. Memory is a particle for each chain and each check.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._checks import check_count
from flowsde.grids import as_grid
from flowsde.kernels import Kernel, renoise
from flowsde.kernels.base import standard_normal
from flowsde.search.bars import as_bars
from flowsde.search.branching import as_steps
from flowsde.search.complete import Finish, finished
from flowsde.search.grid import (
    GridSearch,
    even_shares,
    fold_in_ids,
    further,
    map_valid,
    to_particles,
    tree_take,
    tree_where,
)
from flowsde.search.protocol import (
    BudgetTooSmall,
    Candidates,
    Evaluation,
    Info,
    Lines,
    Particle,
    Search,
)
from flowsde.search.value import Value, as_value


class Chain(NamedTuple):
    """A chain; in the state with a leading axis [C].

    Attributes:
      left: int32, evaluations that it has still.
      draw: int32, candidates so far.
      step: int32, position in the grid of the next one; `DFS.steps` when done.
      noised: bool, whether that comes by the forward process.
      particle: that it comes from.
      tries: int32 [K], at each check since it was last passed.
      held: the best of them, [K].
      held_draw: int32 [K], their numbers among the draws.
      descended: bool, whether a check has been passed since the chain began from noise.
      continues: bool, whether one had been when the last was passed.
    """

    left: jax.Array
    draw: jax.Array
    step: jax.Array
    noised: jax.Array
    particle: Particle
    tries: jax.Array
    held: Particle
    held_draw: jax.Array
    descended: jax.Array
    continues: jax.Array


class DFSState(NamedTuple):
    """State of `DFS`.

    Attributes:
      key, target: of the run.
      chains: [C].
      champion: the best of the last time that had one with a reward.
    """

    key: jax.Array
    target: jax.Array
    chains: Chain
    champion: Particle


@dataclasses.dataclass(frozen=True, kw_only=True)
class DFS(GridSearch):
    """See `dfs`; without finishing.

    Attributes:
      checks: positions in the grid, rising to the last that is evaluated.
      bars: of each, a reward; inf for none that is high enough.
    """

    charges_moves: ClassVar[bool] = True
    renoises: ClassVar[bool] = True

    chains: int
    checks: tuple[int, ...]
    bars: tuple[float, ...]
    tries: int
    backtrack: int

    def __post_init__(self) -> None:
        least = self.chains * self._whole
        if self.nfe < least:
            raise BudgetTooSmall(
                f"nfe leaves {self.nfe} evaluations for the search, expected at least {least}: "
                f"{self.chains} chains of {self.steps} steps",
                least,
            )

    @cached_property
    def verified(self) -> np.ndarray:
        """bool [steps], where rewards are wanted."""
        return np.isin(np.arange(self.steps), self.checks)

    @property
    def _whole(self) -> int:
        """Evaluations of the way from noise to the end."""
        return int(self.costs(self.verified).sum())

    @cached_property
    def _up(self) -> np.ndarray:
        """int32 [steps]: where a particle of each step is noised to."""
        return np.maximum(np.arange(self.steps) - self.backtrack, 0).astype(np.int32)

    @cached_property
    def _again(self) -> np.ndarray:
        """int32 [steps]: evaluations of going back from each step, and then to the end."""
        costs = self.costs(self.verified)
        rest, up = costs.sum() - np.cumsum(costs), self._up
        return (costs[up] - self.kernel.inner_evaluations * (up > 0) + rest[up]).astype(np.int32)

    @property
    def n_candidates(self) -> int:
        return self.chains

    @property
    def max_rounds(self) -> int:
        return -(-self.nfe // self.chains)

    @property
    def path_name(self) -> str:
        return "chain"

    def init(self, key, shape, target_reward, nfe) -> DFSState:
        n, k = self.chains, len(self.checks)
        number, no = jnp.zeros((n, k), jnp.int32), jnp.zeros(n, jnp.bool)
        held = self.empty(n * k, shape)
        chains = Chain(
            left=even_shares(nfe, n),
            draw=jnp.zeros(n, jnp.int32),
            step=jnp.zeros(n, jnp.int32),
            noised=no,
            particle=self.empty(n, shape),
            tries=number,
            held=jax.tree.map(lambda a: a.reshape(n, k, *a.shape[1:]), held),
            held_draw=number,
            descended=no,
            continues=no,
        )
        return DFSState(key, target_reward, chains, self.empty(None, shape))

    def ask(self, state: DFSState) -> tuple[DFSState, Candidates]:
        chains, number = state.chains, jnp.arange(self.chains, dtype=jnp.int32)
        step = jnp.minimum(chains.step, self.steps - 1)
        keys = jax.vmap(partial(fold_in_ids, state.key))(number, step, chains.draw)
        valid = (chains.step < self.steps) & ~self.done(state)
        t, forward = jnp.asarray(self.grid, jnp.float32)[step], renoise(self.interpolant)

        def extend(key: jax.Array, number: jax.Array) -> jax.Array:
            p, at, s = tree_take((chains.particle, step, t), number)
            noise = standard_normal(key, p.x.shape)
            mean, std = forward.moments(p.x, p.x0, p.x1, p.t, s)
            noised = self.arrived(mean + std * noise, s)
            down = self.move(noise, p, at)
            return jax.tree.map(partial(jnp.where, chains.noised[number]), noised, down)

        return state, Candidates(
            x=map_valid(extend, valid, keys, number),
            t=t,
            wants_reward=jnp.asarray(self.verified)[step],
            wants_gradient=self.wants_gradient(step),
            valid=valid,
            key=self.keys_ahead(keys),
        )

    def tell(
        self, state: DFSState, candidates: Candidates, evals: Evaluation
    ) -> tuple[DFSState, Info]:
        told = to_particles(candidates, evals)
        moved, passed, accepted = jax.vmap(partial(self._moved, state.target))(state.chains, told)
        chains = tree_where(candidates.valid, moved, state.chains)
        passed &= candidates.valid
        champion = self._crowned(state.champion, told, candidates.valid)
        return DFSState(state.key, state.target, chains, champion), Info(
            time=candidates.t,
            reward=told.reward,
            counted=candidates.valid,
            accepted=passed & (accepted == state.chains.draw),
            ancestors=jnp.where(passed, accepted, -1),
            ess=jnp.full((), self.chains, jnp.float32),
            charged=jnp.sum(state.chains.left - chains.left, dtype=jnp.int32),
            best_reward=champion.reward,
            path_time=chains.particle.t,
            path_reward=chains.particle.reward,
        )

    def _moved(
        self, target: jax.Array, chain: Chain, particle: Particle
    ) -> tuple[Chain, jax.Array, jax.Array]:
        """A chain that is told its candidate; whether it goes on from a check, and which draw."""
        step = jnp.minimum(chain.step, self.steps - 1)
        check = jnp.searchsorted(jnp.asarray(self.checks, jnp.int32), step).astype(jnp.int32)
        check = jnp.minimum(check, len(self.checks) - 1)
        checked, is_last = jnp.asarray(self.verified)[step], step == self.steps - 1
        inner = jnp.where(chain.noised, self.kernel.inner_evaluations, 0).astype(jnp.int32)
        left = chain.left - jnp.asarray(self.costs(self.verified))[step] + inner

        # The best of the tries at this check; of equals the first.
        place = jnp.arange(len(self.checks), dtype=jnp.int32)
        here = place == check
        first = chain.tries[check] == 0
        better = checked & (first | (particle.reward > chain.held.reward[check]))
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), chain.held, particle)
        held = tree_take(both, jnp.where(here & better, len(self.checks), place))
        held_draw = jnp.where(here & better, chain.draw, chain.held_draw)
        tries = chain.tries + (here & checked).astype(jnp.int32)

        passes = particle.reward >= jnp.asarray(self.bars, jnp.float32)[check]
        passes |= self.meets(particle, target)
        pays = left >= jnp.asarray(self._again)[step]
        back = checked & ~passes & (tries[check] < self.tries) & pays
        on = checked & ~back
        best = tree_take(held, check)
        # Behind the end: anew, or back from there, or nothing.
        anew, ended = on & is_last & (left >= self._whole), on & is_last
        back |= ended & ~anew & pays
        following = jnp.where(ended, jnp.where(anew, 0, self.steps), step + 1)
        step = jnp.where(back, jnp.asarray(self._up)[step], following)
        new = chain._replace(
            left=left,
            draw=chain.draw + 1,
            step=step,
            noised=back & (step > 0),
            particle=tree_where(on & ~passes, best, particle),
            tries=jnp.where(here & on, 0, tries),
            held=held,
            held_draw=held_draw,
            descended=(chain.descended | on) & ~anew,
            continues=chain.descended,
        )
        return new, on, jnp.where(passes, chain.draw, held_draw[check])

    def _crowned(self, champion: Particle, told: Particle, valid: jax.Array) -> Particle:
        """The answer after a round of candidates at different times."""
        own = self.as_answer(told)
        scored = valid & (own.reward > -jnp.inf)
        last = jnp.min(jnp.where(scored, own.t, jnp.inf))
        row = jnp.argmax(jnp.where(scored & (own.t == last), own.reward, -jnp.inf))
        winner = tree_take(own, jnp.where(jnp.any(scored), row, jnp.argmax(valid)))
        return tree_where(jnp.any(valid) & further(winner, champion), winner, champion)

    def done(self, state: DFSState) -> jax.Array:
        return jnp.all(state.chains.step >= self.steps) | self.meets(state.champion, state.target)

    def best(self, state: DFSState) -> Particle:
        return state.champion

    def path(self, state: DFSState) -> Particle:
        return state.chains.particle

    def lines(self, state: DFSState, info: Info) -> Lines:
        """What has passed a check, which continues the one before on the way from noise."""
        own = super().lines(state, info)
        return own._replace(parent=jnp.where(state.chains.continues, own.number, -1))


def dfs(
    *,
    nfe: int,
    kernel: Kernel,
    grid: Any,
    chains: int = 2,
    check_at: int | Sequence[float] | None = None,
    bar: float | Sequence[float] | None = None,
    tries: int = 3,
    backtrack: int = 2,
    value: Value = "mean",
    value_steps: int = 4,
    value_samples: int = 4,
    finish: Finish = "complete",
    finish_steps: int | None = None,
) -> Search:
    """Depth-first search with backtracking.

    Args:
      nfe: budget in model evaluations, finishing included; a hard cap.
      kernel: usually `kernels.ode_euler`; guided and stochastic ones work too.
      grid: times falling from 1 to 0. Particles are evaluated at all but the last.
      chains: independent chains, which share the budget; the best of all is returned.
      check_at: steps with a check: so many spread evenly, or in Python a tuple of positions in the
        grid or of times. There is always one at the last that is evaluated. By default up to 3.
      bar: reward from which on a particle goes on at once; in Python also one for each check. By
        default none is high enough: every check is tried `tries` times.
      tries: at a check before the best of them goes on.
      backtrack: steps of the grid by which a particle is noised.
      value: of a particle before the last time: the reward of its posterior mean, of the end of an
        ODE from there ("ode"), or the mean reward of samples from there ("samples").
      value_steps: evaluations of an ODE or of a sample, part of `nfe`.
      value_samples: samples of a particle.
      finish: "complete" follows the ODE from the best particle towards t = 0 by Euler steps, "heun"
        by Heun's, "adams" by `ode_adams`'s, scores the final image, and returns the better of the
        two by reward; "mean" returns the posterior mean of the best particle.
      finish_steps: evaluations of finishing, part of `nfe`; a Heun step takes two. By default half
        as many as the grid has steps, and none where its last time is small already.

    Raises:
      ValueError, TypeError: naming the argument.

    Example:
      >>> flow = fs.analytic.gaussian([0.0, 0.0], 1.0).flow()
      >>> reward = lambda images, cond: images[:, 0]  # of a sample: 0, give or take 1
      >>> budget = {"nfe": 40, "kernel": fs.kernels.ddim(flow.interpolant)}
      >>> search = fs.search.dfs(grid=fs.grids.uniform(8), chains=1, **budget)
      >>> result = fs.run(jax.random.key(1), flow, search, reward)
      >>> bool(result.reward > 0), bool(result.nfe <= 40)
      (True, True)
    """
    times = as_grid("grid", grid)
    last = len(times) - 2
    if check_at is None and last > 0:
        check_at = min(3, last)
    checks = as_steps(check_at, times, "check_at") or ()
    checks = checks if last in checks else (*checks, last)
    return finished(
        DFS,
        nfe,
        finish,
        finish_steps,
        kernel=kernel,
        grid=times,
        value=as_value(value, value_steps, value_samples, times),
        chains=check_count("chains", chains),
        checks=checks,
        bars=as_bars(math.inf if bar is None else bar, len(checks), "checks"),
        tries=check_count("tries", tries),
        backtrack=check_count("backtrack", backtrack),
    )
