"""Psi-Sampler: SMC that starts where Markov chains over the noise have come to.

The chains walk as `flowsde.search.pcn` says, by the reward of the posterior mean at t = 1, or where
a grid for a given picture begins: their law is that of the noise added to it, weighed. Evenly
spaced states of each chain's second half become the particles of SMC, which goes on from there as
`flowsde.search.smc` with potential "difference" (Yoon et al., 2025, arXiv 2506.01320). Both have
the same reward and temperature, and if the kernel is guided, both follow the gradient.

The law of the chains has exp(r_1 / beta) in it. So particles start with equal weights, and their
next weights are exp((r_2 - r_1) / beta); weighing them by exp(r_1 / beta) too would count it twice.
Rewards and gradients at t = 1 are those that the chains were told: nothing is evaluated twice.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._checks import check_count
from flowsde.grids import as_grid
from flowsde.kernels import Kernel
from flowsde.search.branching import as_steps
from flowsde.search.complete import Finish, finished
from flowsde.search.grid import GridSearch, fold_in_ids, tree_take, tree_where
from flowsde.search.pcn import PCN, PCNState, check_walk
from flowsde.search.protocol import (
    BudgetTooSmall,
    Candidates,
    Evaluation,
    Info,
    Lines,
    Particle,
    Search,
)
from flowsde.search.resampling import SCHEMES
from flowsde.search.smc import SMC, SMCState
from flowsde.search.smc.potentials import bounded

_SMC = np.iinfo(np.int32).max - 1
"""In place of a chain's number, the key of SMC."""


class PsiState(NamedTuple):
    """State of `PsiSampler`.

    Attributes:
      walk: the chains'.
      smc: of which the particles are gathered while chains walk; it is at step 0 then.
    """

    walk: PCNState
    smc: SMCState


@dataclasses.dataclass(frozen=True, kw_only=True)
class PsiSampler(GridSearch):
    """See `psi`; without finishing.

    Example:
      >>> kernel = fs.kernels.ddim(fs.interpolants.linear())
      >>> grid = fs.grids.uniform(8)
      >>> search = fs.search.psi(nfe=60, kernel=kernel, grid=grid, finish="mean")
      >>> type(search).__name__, search.nfe
      ('PsiSampler', 60)
    """

    charges_moves: ClassVar[bool] = True

    temperature: float
    walk: int
    chains: int
    step_size: float
    clip: float | None = None
    scheme: str
    threshold: float
    branch_at: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError("grid must have at least 2 steps: chains walk at the first, got 1")
        if self.nfe < self._cost:
            raise BudgetTooSmall(
                f"nfe leaves {self.nfe} evaluations for the search, expected at least "
                f"{self._cost}: {self.walk} proposals and a particle's {self.steps - 1} steps",
                self._cost,
            )
        # They refuse kernels that they cannot use.
        assert self._chains and self.smc

    @property
    def _cost(self) -> int:
        """Evaluations of a particle, with those of the chains for it."""
        return self.walk + self._way

    @property
    def _way(self) -> int:
        """Evaluations of a particle behind the first time, those of its moves included."""
        return (self.steps - 1) * (1 + self.kernel.inner_evaluations)

    @property
    def _most_proposals(self) -> int:
        """Of this and all smaller budgets."""
        return self.particles(self.nfe) * self.walk + self._cost - 1

    def particles(self, nfe: Any) -> Any:
        """N of a budget."""
        return nfe // self._cost

    def proposals(self, nfe: Any) -> Any:
        """What is left of a budget for the chains."""
        return nfe - self.particles(nfe) * self._way

    @cached_property
    def _chains(self) -> PCN:
        return PCN(
            nfe=self._most_proposals,
            kernel=self.kernel,
            grid=(self.grid[0], 0.0),
            given=self.given,
            chains=self.chains,
            step_size=self.step_size,
            temperature=self.temperature,
            langevin=self.uses_gradient,
            clip=self.clip,
        )

    @cached_property
    def smc(self) -> SMC:
        """Of the particles; its first step is that of the chains."""
        return SMC(
            nfe=self.particles(self.nfe) * (1 + self._way),
            kernel=self.kernel,
            grid=self.grid,
            temperatures=(self.temperature,) * self.steps,
            potential="difference",
            scheme=self.scheme,
            threshold=self.threshold,
            interval=1,
            branch_at=self.branch_at,
            early_answers=self.early_answers,
        )

    @property
    def n_candidates(self) -> int:
        return max(self._chains.n_candidates, self.smc.n_candidates)

    @property
    def max_rounds(self) -> int:
        return self._chains.max_rounds + self.steps - 1

    @property
    def path_name(self) -> str:
        return "particle"

    def init(self, key, shape, target_reward, nfe) -> PsiState:
        n, own = self.particles(nfe), fold_in_ids(key, jnp.asarray(_SMC, jnp.int32))
        # Chains compare means at the first time.
        early = target_reward if self.early_answers else jnp.full_like(target_reward, jnp.inf)
        return PsiState(
            walk=self._chains.init(key, shape, early, self.proposals(nfe)),
            smc=self.smc.init(own, shape, target_reward, n * (1 + self._way)),
        )

    def _walks(self, state: PsiState) -> jax.Array:
        return state.smc.step == 0

    def _wide(self, tree: Any) -> Any:
        """Rows of a phase, the last of them repeated up to `n_candidates`."""
        rows = jnp.arange(self.n_candidates)
        return jax.tree.map(lambda a: a[jnp.minimum(rows, a.shape[0] - 1)], tree)

    def _rows(self, walking: jax.Array, walk: Any, smc: Any) -> Any:
        """Rows of the phase that it is."""
        condition = jnp.full(self.n_candidates, walking)
        return tree_where(condition, self._wide(walk), self._wide(smc))

    def _real(self, flags: jax.Array) -> jax.Array:
        """Flags of a phase's rows, False behind them."""
        return jnp.pad(flags, (0, self.n_candidates - flags.shape[0]))

    def ask(self, state: PsiState) -> tuple[PsiState, Candidates]:
        walking = self._walks(state)
        walk, one = self._chains.ask(state.walk)
        # Without a budget it draws nothing.
        idle = state.smc._replace(nfe=jnp.where(walking, 0, state.smc.nfe))
        _, other = self.smc.ask(idle)
        asked = self._rows(walking, one._replace(x=self.arrived(one.x, one.t)), other)
        valid = jnp.where(walking, self._real(one.valid), self._real(other.valid))
        return state._replace(walk=walk), asked._replace(valid=valid)

    def tell(
        self, state: PsiState, candidates: Candidates, evals: Evaluation
    ) -> tuple[PsiState, Info]:
        walking, draw = self._walks(state), state.walk.draw
        chains, particles = self._chains.n_candidates, self.smc.n_candidates
        of_walk = jax.tree.map(lambda a: a[:chains], (candidates, evals))
        of_smc = jax.tree.map(lambda a: a[:particles], (candidates, evals))
        walk, one = self._chains.tell(state.walk, *of_walk)
        told, other = self.smc.tell(state.smc, *of_smc)
        smc = self._gathered(state.smc, walk, draw)
        smc = tree_where(self._chains.done(walk), self._begun(smc, walk), smc)
        new = PsiState(walk, tree_where(walking, smc, told))

        def rows(name: str) -> jax.Array:
            return self._rows(walking, getattr(one, name), getattr(other, name))

        def flags(name: str) -> jax.Array:
            return tree_where(walking, *(self._real(getattr(of, name)) for of in (one, other)))

        path = self.path(new)
        rows_now = jnp.where(walking, jnp.int32(chains), jnp.int32(particles))
        real = jnp.arange(self.n_candidates, dtype=jnp.int32) < rows_now
        return new, Info(
            time=candidates.t,
            reward=rows("reward"),
            counted=flags("counted"),
            accepted=flags("accepted"),
            ancestors=jnp.where(real, rows("ancestors"), -1),
            ess=jnp.where(walking, one.ess, other.ess),
            charged=jnp.where(walking, one.charged, other.charged),
            best_reward=self.best(new).reward,
            path_time=path.t,
            path_reward=path.reward,
        )

    def _sources(self, walk: PCNState, n: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(chain, which of its draws) of each of n particles, int32 [N]; of rows behind, any."""
        i, most = jnp.arange(self.smc.n_candidates, dtype=jnp.int32), walk.nfe
        used = jnp.minimum(most, self.chains)
        chain, turn = i % used, i // used
        draws = (most - chain - 1) // used + 1
        turns = jnp.maximum((n - chain - 1) // used + 1, 1)
        kept = draws - draws // 2
        each, rest = kept // turns, kept % turns
        # Evenly over what is kept, the last state included: ceil((turn + 1) kept / turns) of it.
        upto = (turn + 1) * each + ((turn + 1) * rest + turns - 1) // turns
        return chain, draws // 2 + upto - 1

    def _gathered(self, smc: SMCState, walk: PCNState, draw: jax.Array) -> SMCState:
        """With the particles that chains have come to by their draw of this number."""
        chain, wanted = self._sources(walk, smc.nfe // (1 + self._way))
        current = tree_take(walk.current.ended, chain)
        return smc._replace(particles=tree_where(wanted == draw, current, smc.particles))

    def _begun(self, smc: SMCState, walk: PCNState) -> SMCState:
        """SMC behind its first step, of particles whose law is weighed already."""
        reward = smc.particles.reward
        in_use = jnp.arange(reward.shape[0], dtype=jnp.int32) < smc.nfe // (1 + self._way)
        # One without a reward is none of that law.
        alive = in_use & (reward > -jnp.inf)
        kept = jnp.where(jnp.any(alive), alive, in_use)
        return smc._replace(
            step=jnp.ones_like(smc.step),
            log_weights=jnp.where(kept, jnp.zeros_like(reward), -jnp.inf),
            potential=jnp.where(alive, bounded(reward / self.temperature), 0.0),
            champion=walk.best,
        )

    def done(self, state: PsiState) -> jax.Array:
        return ~self._walks(state) & self.smc.done(state.smc)

    def best(self, state: PsiState) -> Particle:
        return tree_where(self._walks(state), state.walk.best, state.smc.champion)

    def path(self, state: PsiState) -> Particle:
        ended = state.walk.current.ended
        return self._rows(self._walks(state), ended, state.smc.particles)

    def lines(self, state: PsiState, info: Info) -> Lines:
        """Particles, which begin where chains left them and cross where they are resampled."""
        rows = jnp.arange(self.n_candidates, dtype=jnp.int32)
        particles = self._wide(state.smc.particles)
        if bool(state.smc.step > 1):
            number = jnp.where(info.ancestors >= 0, rows, -1)
            return Lines(number, info.ancestors, particles)
        n = state.smc.nfe // (1 + self._way)
        _, wanted = self._sources(state.walk, n)
        begins = (state.smc.step == 1) & (wanted < state.walk.draw)
        begins &= jnp.arange(wanted.shape[0], dtype=jnp.int32) < n
        return Lines(jnp.where(self._real(begins), rows, -1), jnp.full_like(rows, -1), particles)


def psi(
    *,
    nfe: int,
    kernel: Kernel,
    grid: Any,
    temperature: float = 0.1,
    chains: int = 4,
    walk: int | None = None,
    step_size: float = 0.5,
    clip: float | None = None,
    scheme: Literal["multinomial", "stratified", "systematic", "residual", "ssp"] = "ssp",
    threshold: float = 0.5,
    branch_at: int | Sequence[float] | None = None,
    finish: Finish = "complete",
    finish_steps: int | None = None,
) -> Search:
    """Psi-Sampler: SMC from states of Markov chains over the noise.

    It is for models whose posterior mean at t = 1 is a picture, as those of a few steps have it.

    Args:
      nfe: budget in model evaluations, finishing included; a hard cap. It sets the number of
        particles.
      kernel: a stochastic one. With one that is guided by the reward's gradient chains follow the
        gradient too, and SMC weighs what it proposes; its temperature is best that of the search.
      grid: times falling from 1 to 0. Chains are evaluated at the first, particles at all others
        but the last.
      temperature: beta > 0, in units of the reward: samples are weighed by exp(reward / beta).
      chains: independent chains, at most as many as there are particles are of use.
      walk: proposals of the chains for each particle. By default one less than the grid's steps,
        which gives half of the budget to the chains.
      step_size: e, above 0 and at most 4. A proposal keeps the share (1 - e / 4) / (1 + e / 4) of
        the noise where the chain is; at 4 nothing.
      clip: longest that the gradient of reward / temperature is in a proposal, beyond which it is
        shortened; a chain with longer ones hardly ever moves. By default any.
      scheme: how particles are resampled, see `flowsde.search.resampling`.
      threshold: resample when the effective sample size is at most this share of N, 0 to 1; 1
        resamples always.
      branch_at: steps at which particles are weighed and may be resampled, besides the first, that
        of the chains, and the last: so many spread evenly, or in Python a tuple of positions in the
        grid or of times. By default all. What is weighed is always the posterior mean, as chains
        walk by its reward.
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
      >>> budget = {"nfe": 60, "kernel": fs.kernels.ddim(flow.interpolant)}
      >>> search = fs.search.psi(grid=fs.grids.uniform(8), temperature=0.5, **budget)
      >>> result = fs.run(jax.random.key(1), flow, search, reward)
      >>> bool(result.reward > 0), bool(result.nfe <= 60)
      (True, True)
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"threshold is a share of the particles, 0 to 1, got {threshold}")
    check_walk(step_size, temperature, clip)
    times = as_grid("grid", grid)
    if clip is not None and not getattr(kernel, "uses_gradient", False):
        raise ValueError(f"clip has no effect with a kernel that is not guided, got {clip}")
    return finished(
        PsiSampler,
        nfe,
        finish,
        finish_steps,
        kernel=kernel,
        grid=times,
        temperature=float(temperature),
        walk=max(len(times) - 2, 1) if walk is None else check_count("walk", walk),
        chains=check_count("chains", chains),
        step_size=float(step_size),
        clip=None if clip is None else float(clip),
        scheme=scheme,
        threshold=float(threshold),
        branch_at=as_steps(branch_at, times),
    )
