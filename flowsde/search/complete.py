"""Finishing: follow the ODE from the best particle down to t = 0, inside the budget.

A search over posterior means ends at some t > 0, where the mean of an undistilled model is still
blurred. `Complete` wraps a search and spends its last evaluations on completing the best
particle's trajectory. The final image is scored, and returned unless the mean that it started from
is one of the search's last time and has a higher reward. A mean above that time, from which
finishing begins where a run is stopped early, is no answer: at high noise it may score what none of
its pictures does. For the same reason it meets no target (`GridSearch.early_answers`).

The steps are those of the *linear* interpolant whatever the search's own: the ODE's path is the
same under all of them, and straightest there. A step of Euler is DDIM(0) and takes one evaluation;
a step of Heun predicts by Euler, evaluates, and corrects with the mean of both velocities x1 - x0:
two. A step of Adams (`flowsde.kernels.multistep`) takes one and what the step before left. Their
times are those of `flowsde.search.finishing`.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._checks import check_count
from flowsde._exact import Now
from flowsde._static import check_static
from flowsde.grids import Grid, as_grid
from flowsde.interpolants import Interpolant
from flowsde.kernels import Before, Kernel, Multistep, ddim, ode_adams
from flowsde.search.finishing import END, LINE, finishing_time
from flowsde.search.grid import any_over_prompts, check_kernel, to_particles, tree_take, tree_where
from flowsde.search.protocol import (
    BudgetTooSmall,
    Candidates,
    Evaluation,
    Info,
    Lines,
    Moving,
    Particle,
    Search,
)
from flowsde.search.wrapper import Wrapper


class CompleteState(NamedTuple):
    """State of `Complete`.

    Attributes:
      inner: the inner search's.
      step: int32, evaluations of finishing so far.
      particle: the last one evaluated.
      base: the one before a Heun step's predictor, or what the last step of a multistep solver
        left; None without.
      stop: bool, whether to finish before the inner search is done; None for never.
    """

    inner: Any
    step: jax.Array
    particle: Particle
    base: Particle | None
    stop: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Complete(Wrapper):
    """`inner`, then `steps` evaluations of ODE from its best particle.

    Attributes:
      inner: the search.
      steps: evaluations of finishing.
      order: evaluations a step, 1 of Euler or 2 of Heun.
      solver: of the steps, of one evaluation each, in place of Euler; or None.

    Example:
      >>> kernel = fs.kernels.ddim(fs.interpolants.linear())
      >>> search = fs.search.svdd(nfe=40, kernel=kernel, grid=fs.grids.uniform(8), finish_steps=5)
      >>> type(search).__name__, search.steps, search.inner.nfe
      ('Complete', 5, 35)
    """

    steps: int
    order: int = 1
    solver: Multistep | None = None

    @property
    def nfe(self) -> int:
        return self.inner.nfe + self.steps

    @property
    def max_rounds(self) -> int:
        return self.inner.max_rounds + self.steps

    def with_nfe(self, nfe: int) -> "Complete":
        with _costing(self.steps):
            return self.replace(inner=self.inner.with_nfe(nfe - self.steps))

    def init(self, key, shape, target_reward, nfe) -> CompleteState:
        inner = self.inner.init(key, shape, target_reward, nfe - self.steps)
        best = self.inner.best(inner)
        base = best if self.order == 2 or self.solver else None
        return CompleteState(inner, jnp.zeros((), jnp.int32), best, base)

    def finishing(self, state: CompleteState) -> jax.Array:
        # What was begun before the inner search was done goes on.
        begun = self.inner.done(state.inner) | (state.step > 0)
        return begun if state.stop is None else begun | state.stop

    def with_stop(self, state: CompleteState, stop: Any) -> CompleteState:
        return state._replace(stop=stop)

    def _next(self, state: CompleteState, start: Particle) -> tuple[Particle, jax.Array, jax.Array]:
        """(particle that the step is from, x to evaluate, its time)."""
        p = self.interpolant
        particle = tree_where(state.step == 0, start, state.particle)
        n = self.steps // self.order
        done = (state.step // self.order + 1).astype(jnp.float32) / n
        line_t, t = finishing_time(p, start.t, done, n)
        base = particle
        if self.solver is not None:
            return self._multistep(state, particle, t)
        if state.base is not None:
            base = tree_where(state.step % 2 == 0, particle, state.base)
        euler = ddim(p, eta=0.0)
        x = euler(jax.random.key(0), base.x, base.x0, base.x1, base.t, t)
        if state.base is not None:
            turn = (particle.x1 - particle.x0) - (base.x1 - base.x0)
            scale = p.radius(t) / LINE.radius(line_t)
            step = line_t - LINE.time(p.angle(base.t))
            x = jnp.where(state.step % 2 == 0, x, x + 0.5 * scale * step * turn)
        return base, x, t

    def _multistep(
        self, state: CompleteState, particle: Particle, t: jax.Array
    ) -> tuple[Particle, jax.Array, jax.Array]:
        """As `_next`, by the solver; the particle is the step's, as it is remembered."""
        assert self.solver is not None and state.base is not None
        last = state.base
        before = Before(last.x, last.x0, last.x1, jnp.where(state.step == 0, 0.0, last.t))
        x, now = self.solver(before, particle.x, particle.x0, particle.x1, particle.t, t)
        return particle._replace(x=now.x, x0=now.x0, x1=now.x1, t=now.t), x, t

    def ask(self, state: CompleteState) -> tuple[CompleteState, Candidates]:
        inner, asked = self.inner.ask(state.inner)
        finishing = self.finishing(state)

        def finish(asked: Candidates) -> tuple[Any, Candidates]:
            base, x, t = self._next(state, self.inner.best(inner))
            row = jnp.arange(self.n_candidates)
            more = (row == 0) & (state.step < self.steps)
            there = Moving(x, x, t) if isinstance(asked.x, Moving) else x
            own = Candidates(
                x=jax.tree.map(lambda rows, row: rows.at[0].set(row), asked.x, there),
                t=jnp.full(row.shape, t),
                wants_reward=more & (state.step == self.steps - 1),
                wants_gradient=jnp.zeros_like(more),
                valid=more,
                key=asked.key,
            )
            kept = None if state.base is None else base
            return kept, tree_where(jnp.full(row.shape, finishing), own, asked)

        # Apart from the drawing of `asked`, so that no second array of all candidates is made.
        base, chosen = jax.lax.cond(
            any_over_prompts(finishing), finish, lambda asked: (state.base, asked), asked
        )
        return state._replace(inner=inner, base=base), chosen

    def tell(
        self, state: CompleteState, candidates: Candidates, evals: Evaluation
    ) -> tuple[CompleteState, Info]:
        finishing = self.finishing(state)
        hidden = candidates._replace(valid=candidates.valid & ~finishing)
        told, info = self.inner.tell(state.inner, hidden, evals)
        particles = to_particles(candidates, evals)
        moved, active = tree_take((particles, candidates.valid), jnp.zeros((), jnp.int32))
        active &= finishing
        new = state._replace(
            inner=tree_where(finishing, state.inner, told),
            step=state.step + active.astype(jnp.int32),
            particle=tree_where(active, moved, state.particle),
        )
        own = Info(
            time=candidates.t,
            reward=particles.reward,
            counted=candidates.valid,
            accepted=candidates.valid,
            ancestors=jnp.where(active, 0, -jnp.ones_like(info.ancestors)),
            ess=jnp.ones((), jnp.float32),
            charged=jnp.sum(candidates.valid, dtype=jnp.int32),
            best_reward=self.best(new).reward,
            path_time=jnp.broadcast_to(moved.t, info.path_time.shape),
            path_reward=jnp.broadcast_to(moved.reward, info.path_reward.shape),
        )
        return new, jax.tree.map(lambda a, b: jnp.where(finishing, a, b), own, info)

    def done(self, state: CompleteState) -> jax.Array:
        return self.finishing(state) & (state.step >= self.steps)

    def best(self, state: CompleteState) -> Particle:
        """The better of the completed particle, once there is one, and the inner search's best.

        Of one above the last time, the completed particle whatever its reward.
        """
        start = self.inner.best(state.inner)
        completed = self.done(state) & (state.particle.reward > -jnp.inf)
        early = start.t > jnp.float32(self.last_time)
        wins = early | (state.particle.reward >= start.reward)
        return tree_where(completed & wins, state.particle, start)

    def path(self, state: CompleteState) -> Particle:
        inner = self.inner.path(state.inner)
        own = jax.tree.map(lambda a, b: jnp.broadcast_to(a[None], b.shape), state.particle, inner)
        return tree_where(jnp.full(inner.t.shape, state.step > 0), own, inner)

    def lines(self, state: CompleteState, info: Info) -> Lines:
        """Those of the inner search; of a round of finishing, its one particle."""
        if not bool(info.finishing):
            return self.inner.lines(state.inner, info)
        first = np.zeros(1, np.int32)
        return Lines(first, first, jax.tree.map(lambda a: np.asarray(a)[None], state.particle))


@contextlib.contextmanager
def _costing(steps: int) -> Iterator[None]:
    """Makes `BudgetTooSmall` of an inner search one of the budget with the steps of finishing."""
    try:
        yield
    except BudgetTooSmall as error:
        raise BudgetTooSmall(str(error), error.least + steps) from None


Finish = Literal["complete", "heun", "adams", "mean"]
_ORDERS = {"complete": 1, "heun": 2, "adams": 1}
"""Evaluations a step."""


@partial(jax.jit, static_argnames=("now",))
def _linear_time(now: Now, t: Any) -> jax.Array:
    """The linear interpolant's time of an interpolant's; one program, compiled at the start."""
    return LINE.time(now.value.angle(t))


def default_steps(
    finish: str, interpolant: Interpolant, grid: Grid | Sequence[float], most: int | None = None
) -> int:
    """Evaluations that finishing takes unless told otherwise: half as many as the grid has steps.

    Where `most` is given, no more than that. 0 if the search's last time is below twice `END`:
    there is next to nothing to finish.
    """
    check_static("interpolant", interpolant)
    last = np.float32(grid[-2])
    with jax.ensure_compile_time_eval():
        start = float(last if interpolant == LINE else _linear_time(Now(interpolant), last))
    order = _ORDERS[finish]
    half = (len(grid) - 1) // 2
    steps = max((half if most is None else min(half, most)) // order, 1)
    return steps * order if start >= 2.0 * END else 0


def _check(finish: str, finish_steps: int | None) -> None:
    if finish not in get_args(Finish):
        raise ValueError(f"finish must be 'complete', 'heun', 'adams' or 'mean', got {finish!r}")
    if finish_steps is None:
        return
    if finish == "mean":
        raise ValueError(f"finish_steps has no effect with finish 'mean', got {finish_steps}")
    order = _ORDERS[finish]
    if check_count("finish_steps", finish_steps) % order:
        raise ValueError(
            f"finish_steps must be even for finish 'heun', whose steps take two evaluations, "
            f"got {finish_steps}"
        )


def finished(
    make: Callable[..., Search],
    nfe: int,
    finish: str,
    finish_steps: int | None,
    *,
    kernel: Kernel,
    grid: Any,
    **options: Any,
) -> Search:
    """``make(nfe=budget, …)`` completed within `nfe`, or alone where there is nothing to finish.

    Raises:
      ValueError, TypeError: naming the argument.
    """
    kernel, times = check_kernel(kernel), as_grid("grid", grid)
    _check(finish, finish_steps)
    steps = 0
    if finish != "mean":
        steps = finish_steps or default_steps(finish, kernel.interpolant, times)
    left = check_count("nfe", nfe) - steps
    with _costing(steps):
        early = finish == "mean"
        search = make(nfe=left, kernel=kernel, grid=times, early_answers=early, **options)
    solver = ode_adams(kernel.interpolant) if finish == "adams" else None
    return Complete(search, steps, _ORDERS[finish], solver) if steps else search


def finishing_evaluations(search: Search) -> int | None:
    """Evaluations that a search takes to finish; None of one that does not."""
    return search.steps if isinstance(search, Complete) else None
