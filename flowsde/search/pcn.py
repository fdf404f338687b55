"""pCN: Markov chains over the noise that a picture begins with.

A deterministic kernel makes the picture, and its reward r, a function of the noise x. Pictures of
the model that are weighed by exp(r / beta) begin with noise of the law

    pi(x) proportional to N(x; 0, I) exp(r(x) / beta).

A chain proposes, for a step size e with rho = (1 - e / 4) / (1 + e / 4) and s^2 = 1 - rho^2,

    y = rho x + s (z + sqrt(e) / 2 G(x)),    z ~ N(0, I),

and goes to y with probability min(1, exp(g(y, x) - g(x, y))), else it stays, where

    g(a, b) = r(a) / beta + sqrt(e) / 2 G(a) . (b - rho a) / s - e / 8 |G(a)|^2.

That leaves pi as it is, whatever function of the noise G is. With G = 0 (preconditioned
Crank-Nicolson; Cotter et al., 2013, arXiv 1202.0709) proposals keep the law of noise, in any
dimension, and rewards alone decide. With the gradient, G = grad r / beta (its Langevin form, pCNL),
all proposals for a linear reward are accepted. Here G is that of the reward of the posterior mean
at the first time, which takes one backward pass, and may be shortened: the chain stays exact.

With a given picture x0, on a grid from T < 1, x is the noise of alpha(T) x0 + sigma(T) x, and pi as
above: the law of what image-to-image makes of x0, weighed by exp(r / beta). Given noise is where
the first chain begins; the others begin with rho x + s z of it, which is noise of the same law.
"""

import dataclasses
import math
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._checks import check_count, check_positive
from flowsde.grids import as_grid
from flowsde.kernels import Kernel
from flowsde.kernels.base import standard_normal
from flowsde.search.grid import (
    GridSearch,
    UnusableKernel,
    check_kernel,
    check_without_moves,
    fold_in_ids,
    further,
    map_valid,
    to_particles,
    tree_take,
    tree_where,
)
from flowsde.search.protocol import BudgetTooSmall, Candidates, Evaluation, Info, Particle
from flowsde.search.smc.potentials import bounded
from flowsde.start import Start, begin, noise_scale

_ACCEPT = np.iinfo(np.int32).max
"""In place of a step, the key by which a chain decides."""


class Walker(NamedTuple):
    """Where chains are, [C].

    Attributes:
      noise: standard normal before it is weighed, float32 [C, *shape].
      gradient: of the reward in it, at the first time, likewise; None unless it is followed.
      ended: the picture, or what it is on its way.
    """

    noise: jax.Array
    gradient: jax.Array | None
    ended: Particle


class PCNState(NamedTuple):
    """State of `PCN`.

    Attributes:
      key, target, nfe: of the run.
      draw: int32, proposals of each chain that have ended.
      step: int32, position in the grid at which the next are evaluated.
      current: of the chains.
      proposed: on their way.
      best: the answer so far.
    """

    key: jax.Array
    target: jax.Array
    nfe: jax.Array
    draw: jax.Array
    step: jax.Array
    current: Walker
    proposed: Walker
    best: Particle


@dataclasses.dataclass(frozen=True, kw_only=True)
class PCN(GridSearch):
    """See `pcn`.

    Attributes:
      langevin: whether proposals follow the gradient, whatever the kernel says.
    """

    renoises: ClassVar[bool] = True

    chains: int
    step_size: float
    temperature: float
    langevin: bool
    clip: float | None = None

    def __post_init__(self) -> None:
        check_walk(self.step_size, self.temperature, self.clip)
        if self.kernel.stochastic and self.steps > 1:
            raise UnusableKernel(
                f"kernel {type(self.kernel).__name__} is stochastic, so the noise that a picture "
                f"begins with does not decide its reward, and pcn walks there; expected a "
                f"deterministic one (ode_euler)"
            )
        if self.nfe < self.steps:
            raise BudgetTooSmall(
                f"nfe = {self.nfe} is less than one picture: the grid takes {self.steps} "
                f"evaluations",
                self.steps,
            )

    @property
    def uses_gradient(self) -> bool:
        return self.langevin

    @property
    def n_candidates(self) -> int:
        return min(self.chains, self.nfe // self.steps)

    @property
    def max_rounds(self) -> int:
        return -(-(self.nfe // self.steps) // self.chains) * self.steps

    @property
    def path_name(self) -> str:
        return "chain"

    @property
    def rho(self) -> float:
        """Share of a chain's noise that a proposal keeps."""
        return (1.0 - self.step_size / 4.0) / (1.0 + self.step_size / 4.0)

    def init(self, key, shape, target_reward, nfe) -> PCNState:
        nothing, zero = self.empty(self.n_candidates, shape), jnp.zeros((), jnp.int32)
        walker = Walker(nothing.x, nothing.gradient, nothing)
        best = self.empty(None, shape)
        return PCNState(key, target_reward, nfe, zero, zero, walker, walker, best)

    def ask(self, state: PCNState) -> tuple[PCNState, Candidates]:
        n = self.n_candidates
        chain = jnp.arange(n, dtype=jnp.int32)
        valid = self._in_budget(state) & ~self.done(state)
        keys = jax.vmap(partial(fold_in_ids, state.key), (0, None))(chain, state.draw)

        def extend(key: jax.Array, i: jax.Array) -> tuple[jax.Array, jax.Array]:
            noise = self._propose(key, tree_take(state.current, i), i, state.draw == 0)
            x = begin(self.interpolant, self.grid[0], noise, self._picture)
            if self.steps > 1:
                way = tree_take(state.proposed.ended, i)._replace(gradient=None)
                # The kernel adds no noise: what it is given for that is not used.
                x = jnp.where(state.step == 0, x, self.move(way.x, way, state.step))
            return x, noise

        x, noise = map_valid(extend, valid, keys, chain)
        noise = jnp.where(state.step == 0, noise, state.proposed.noise)
        asked = state._replace(proposed=state.proposed._replace(noise=noise))
        return asked, Candidates(
            x=x,
            t=jnp.full(n, jnp.asarray(self.grid, jnp.float32)[state.step]),
            wants_reward=jnp.full(n, state.step == self.steps - 1),
            wants_gradient=jnp.full(n, (state.step == 0) & self.langevin),
            valid=valid,
        )

    @property
    def _picture(self) -> Start | None:
        """What is given but for noise, which a proposal has of its own."""
        return None if self.given is None else self.given._replace(noise=None)

    def _in_budget(self, state: PCNState) -> jax.Array:
        """Whether each chain has another proposal, bool [C]: earlier chains may have one more."""
        chain = jnp.arange(self.n_candidates, dtype=jnp.int32)
        return state.draw * self.chains + chain < state.nfe // self.steps

    def _propose(
        self, key: jax.Array, current: Walker, chain: jax.Array, first: jax.Array
    ) -> jax.Array:
        """Noise of a chain's next proposal, [*shape]; its first is fresh, or near what is given."""
        fresh = standard_normal(key, current.noise.shape)
        rho, s = self.rho, math.sqrt(1.0 - self.rho**2)
        pulled = fresh
        if self.langevin:
            pulled = fresh + 0.5 * math.sqrt(self.step_size) * self._pull(current)
        given = None if self.given is None else self.given.noise
        if given is not None:
            fresh = jnp.where(chain == 0, given, rho * given + s * fresh)
        return jnp.where(first, fresh, rho * current.noise + s * pulled)

    def _pull(self, at: Walker) -> jax.Array:
        """G of one chain, [*shape]."""
        assert at.gradient is not None
        pull = at.gradient / self.temperature
        if self.clip is None:
            return pull
        length = jnp.sqrt(jnp.sum(jnp.square(pull)))
        return pull * jnp.where(length > self.clip, self.clip / length, 1.0)

    def _forth(self, a: Walker, b: Walker) -> jax.Array:
        """g(a, b) without the reward, a scalar: log density of proposing b at a, less pCN's."""
        pull, s = self._pull(a), math.sqrt(1.0 - self.rho**2)
        along = jnp.sum(pull * (b.noise - self.rho * a.noise) / s)
        half = 0.5 * math.sqrt(self.step_size)
        return half * along - 0.5 * half**2 * jnp.sum(jnp.square(pull))

    def log_ratio(self, current: Walker, proposed: Walker) -> jax.Array:
        """Log of the Metropolis ratio of each chain, [C], before it is cut at 0.

        A chain whose picture has no reward leaves it, and no chain goes to one without.
        """
        new, old = proposed.ended.reward, current.ended.reward
        ratio = bounded(new / self.temperature) - bounded(old / self.temperature)
        if self.langevin:
            forth = jax.vmap(self._forth)
            ratio += forth(proposed, current) - forth(current, proposed)
        ratio = jnp.where((new > -jnp.inf) & ~jnp.isnan(ratio), ratio, -jnp.inf)
        return jnp.where(old > -jnp.inf, ratio, jnp.inf)

    def _accepts(self, state: PCNState, proposed: Walker) -> jax.Array:
        """Which chains go to where they proposed, bool [C]."""

        def threshold(chain: jax.Array) -> jax.Array:
            key = fold_in_ids(state.key, chain, state.draw, jnp.asarray(_ACCEPT, jnp.int32))
            return -jax.random.exponential(key, (), jnp.float32)

        log_u = jax.vmap(threshold)(jnp.arange(self.n_candidates, dtype=jnp.int32))
        return (state.draw == 0) | (log_u < self.log_ratio(state.current, proposed))

    def tell(
        self, state: PCNState, candidates: Candidates, evals: Evaluation
    ) -> tuple[PCNState, Info]:
        active = ~self.done(state)
        particles = to_particles(candidates, evals)
        gradient = state.proposed.gradient
        if gradient is not None:
            assert evals.gradient is not None
            scale = noise_scale(self.interpolant, self.grid[0])
            gradient = jnp.where(state.step == 0, scale * evals.gradient, gradient)
        proposed = Walker(state.proposed.noise, gradient, particles)
        ended = active & (state.step == self.steps - 1)
        accepted = ended & candidates.valid & self._accepts(state, proposed)
        best = self._better(state, particles)
        new = state._replace(
            draw=state.draw + ended.astype(jnp.int32),
            step=jnp.where(ended, 0, state.step + active.astype(jnp.int32)),
            current=tree_where(accepted, proposed, state.current),
            proposed=proposed,
            best=best,
        )
        return new, Info(
            time=candidates.t,
            reward=particles.reward,
            counted=candidates.valid,
            accepted=accepted,
            ancestors=jnp.where(accepted, state.draw, -1),
            ess=jnp.full((), self.n_candidates, jnp.float32),
            charged=jnp.sum(candidates.valid, dtype=jnp.int32),
            best_reward=best.reward,
            path_time=new.current.ended.t,
            path_reward=new.current.ended.reward,
        )

    def _better(self, state: PCNState, particles: Particle) -> Particle:
        """The best of the lowest time that has a reward; what was first of equals."""
        winner = tree_take(particles, jnp.argmax(particles.reward).astype(jnp.int32))
        better = further(winner, state.best, state.draw == 0)
        return tree_where(better & ~self.done(state), winner, state.best)

    def done(self, state: PCNState) -> jax.Array:
        return ~self._in_budget(state)[0] | self.meets(state.best, state.target)

    def best(self, state: PCNState) -> Particle:
        return state.best

    def path(self, state: PCNState) -> Particle:
        return state.current.ended


def check_walk(step_size: float, temperature: float, clip: float | None) -> None:
    """ValueError unless these are what a chain takes."""
    if not 0.0 < step_size <= 4.0:
        raise ValueError(f"step_size must be above 0 and at most 4, got {step_size}")
    check_positive("temperature", temperature)
    if clip is not None:
        check_positive("clip", clip)


def pcn(
    *,
    nfe: int,
    kernel: Kernel,
    grid: Any,
    chains: int = 4,
    step_size: float = 0.5,
    temperature: float = 0.1,
    proposal: Literal["random", "langevin"] = "random",
    clip: float | None = None,
) -> PCN:
    """Markov chains over the noise that pictures begin with: pCN, and its Langevin form pCNL.

    The answer is the best picture that was seen. `path` of the final state has where the chains
    are: samples of the model weighed by exp(reward / temperature), after enough steps.

    Args:
      nfe: budget in model evaluations; what is left after whole pictures is not used.
      kernel: a deterministic one, usually `kernels.ode_euler`.
      grid: times falling from 1 to 0, few: a proposal takes len(grid) - 1 evaluations. Of one step
        the picture is the posterior mean at t = 1, for models of a single step. From below 1 it is
        for a given picture, of which chains walk over the noise that is added.
      chains: independent chains, which take turns.
      step_size: e, above 0 and at most 4. A proposal keeps the share (1 - e / 4) / (1 + e / 4) of
        the noise where the chain is; at 4 nothing.
      temperature: beta > 0, in units of the reward, of the law that chains sample.
      proposal: "random", or "langevin", which moves along the gradient of the reward of the
        posterior mean at the first time, one backward pass a proposal.
      clip: longest that the gradient of reward / temperature is, beyond which it is shortened; a
        chain with longer ones hardly ever moves unless the reward is linear. By default any.

    Raises:
      ValueError, TypeError: naming the argument.

    Example:
      >>> flow = fs.analytic.gaussian([0.0, 0.0], 1.0).flow()
      >>> reward = lambda images, cond: images[:, 0]  # of a sample: 0, give or take 1
      >>> budget = {"nfe": 40, "kernel": fs.kernels.ode_euler(flow.interpolant)}
      >>> search = fs.search.pcn(grid=fs.grids.uniform(4), chains=2, **budget)
      >>> result = fs.run(jax.random.key(1), flow, search, reward)
      >>> bool(result.reward > 0), bool(result.nfe <= 40)
      (True, True)
    """
    if proposal not in ("random", "langevin"):
        raise ValueError(f"proposal must be 'random' or 'langevin', got {proposal!r}")
    if clip is not None and proposal == "random":
        raise ValueError(f"clip has no effect with proposal 'random', got {clip}")
    check_without_moves(kernel, "the noise that a picture begins with does not decide its reward")
    return PCN(
        nfe=check_count("nfe", nfe),
        kernel=check_kernel(kernel),
        grid=as_grid("grid", grid),
        chains=check_count("chains", chains),
        step_size=float(step_size),
        temperature=float(temperature),
        langevin=proposal == "langevin",
        clip=None if clip is None else float(clip),
    )
