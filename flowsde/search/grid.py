"""What searches are written with: a base that follows a kernel down a grid, and a few helpers.

The helpers are of three kinds: particles (`to_particles`, `map_valid`, `tree_where`, `tree_take`),
random keys (`fold_in_ids`), and whole shares of a budget (`even_shares`, `affordable_units`).
"""

import dataclasses
from collections.abc import Callable
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._exact import Now
from flowsde._keys import as_key
from flowsde.interpolants import Interpolant
from flowsde.kernels import Kernel, Multistep, Renoise
from flowsde.kernels.base import check_mean, standard_normal
from flowsde.search.protocol import Candidates, Evaluation, Moving, Particle, SearchBase
from flowsde.search.value import LookAhead
from flowsde.start import Start, begin

_ROWS_AT_ONCE = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridSearch(SearchBase):
    """Base of searches that follow a kernel down a grid of times.

    Attributes:
      nfe: budget in candidates.
      kernel: how a particle moves.
      grid: times falling to 0, from 1 or from that of a given start.
      value: how particles above the last time are scored; None by their posterior means.
      early_answers: whether a target is met by the posterior mean of a particle above the last
        time, too. At high noise it may score what no picture does that it is finished to.
      given: what particles of step 0 begin from, while a prompt is asked; else None.

    Example:
      >>> kernel = fs.kernels.ode_euler(fs.interpolants.linear())
      >>> search = fs.search.bon(nfe=8, kernel=kernel, grid=fs.grids.uniform(4), width=2)
      >>> isinstance(search, fs.search.GridSearch), search.grid
      (True, (1.0, 0.75, 0.5, 0.25, 0.0))
    """

    nfe: int
    kernel: Kernel
    grid: tuple[float, ...]
    value: LookAhead | None = None
    early_answers: bool = False
    given: Start | None = None

    @property
    def first_time(self) -> float:
        """At which particles begin; below 1 with a given start."""
        return self.grid[0]

    @property
    def last_time(self) -> float:
        """At which particles are evaluated last."""
        return self.grid[-2]

    def beginning(self, start: Start) -> Self:
        """The same search of a prompt whose first draws are of what is given.

        Within a compiled function: what is given are arrays, by which no search is compared.
        """
        return self.replace(given=start)

    charges_moves: ClassVar[bool] = False
    """Whether it charges by `costs`; else a kernel with `inner_evaluations` is refused."""
    renoises: ClassVar[bool] = False
    """Whether it adds noise to what has been evaluated or given: children differ by any kernel."""

    @property
    def steps(self) -> int:
        """Times at which particles are evaluated; the grid's last, 0, is never."""
        return len(self.grid) - 1

    @property
    def repeats_noise(self) -> bool:
        """Whether it draws several times, and all would be the same from one given noise."""
        own: Any = self  # with what methods add
        several = own.n_candidates * own.max_rounds > self.steps
        return several and not (self.kernel.stochastic or self.renoises)

    @property
    def interpolant(self) -> Interpolant:
        return self.kernel.interpolant

    @property
    def uses_gradient(self) -> bool:
        return self.kernel.uses_gradient

    def costs(self, verified: Any) -> np.ndarray:
        """Evaluations of a candidate at each step, those of its move included, int32 [steps].

        Args:
          verified: bool [steps], where a reward is wanted.
        """
        ahead = 0 if self.value is None else self.value.cost
        step = np.arange(self.steps)
        looks = np.asarray(verified, bool) & (step < self.steps - 1)
        moves = self.kernel.inner_evaluations * (step > 0)
        return (1 + moves + ahead * looks).astype(np.int32)

    def keys_ahead(self, keys: jax.Array) -> jax.Array | None:
        """`Candidates.key` of candidates drawn with these keys [w]."""
        return None if self.value is None else self.value.keys(keys)

    def as_answer(self, particle: Particle) -> Particle:
        """With a reward only if that is of its posterior mean, as the answer's is."""
        if self.value is None:
            return particle
        looks = self.value.looks(particle.t)
        return particle._replace(reward=jnp.where(looks, -jnp.inf, particle.reward))

    def meets(self, particle: Particle, target: jax.Array) -> jax.Array:
        """bool, whether a particle's reward reaches a target, and it may be the answer."""
        reached = self.as_answer(particle).reward >= target
        if self.early_answers:
            return reached
        return reached & (particle.t <= jnp.float32(self.last_time))

    def empty(self, n: int | None, shape: tuple[int, ...]) -> Particle:
        """Particles at t = 1 that have not been evaluated, with leading axis n unless None."""
        lead = () if n is None else (n,)
        zeros = jnp.zeros(lead + shape, jnp.float32)
        ones, nothing = jnp.ones(lead, jnp.float32), jnp.full(lead, -jnp.inf, jnp.float32)
        return Particle(zeros, ones, zeros, zeros, nothing, zeros if self.uses_gradient else None)

    def extend(self, key: jax.Array, parent: Particle, step: jax.Array) -> Any:
        """x of a parent's child at a step of the grid; a start at step 0, whatever the parent.

        An array shaped as x; of a kernel with `inner_evaluations`, `Moving`.
        """
        return self.move(standard_normal(key, parent.x.shape), parent, step)

    def move(self, noise: jax.Array, parent: Particle, step: jax.Array) -> Any:
        """`extend` with the standard normal noise given: drawing it once is most of the work."""
        gradient = () if parent.gradient is None else (parent.gradient,)
        s = jnp.asarray(self.grid, jnp.float32)[step]
        start = begin(self.interpolant, self.grid[0], noise, self.given)
        if self.kernel.inner_evaluations:
            mean, std = self.kernel.begin(parent.x, parent.x0, parent.x1, parent.t, s)
            moving = Moving(mean + std * noise, parent.x, parent.t)
            return tree_where(step == 0, self.arrived(start, s), moving)
        mean, std = self.kernel.moments(parent.x, parent.x0, parent.x1, parent.t, s, *gradient)
        check_mean(self.kernel, mean, parent.x)
        return jnp.where(step == 0, start, mean + std * noise)

    def arrived(self, x: jax.Array, t: jax.Array) -> Any:
        """`Candidates.x` of a point at its time."""
        return Moving(x, x, t) if self.kernel.inner_evaluations else x

    def wants_gradient(self, step: jax.Array) -> jax.Array:
        """Whether candidates at a step want a gradient: not at the last, where none moves on."""
        return (step < self.steps - 1) & self.uses_gradient


def to_particles(candidates: Candidates, evals: Evaluation) -> Particle:
    """Candidates together with their evaluation; a reward only where one was wanted.

    Example:
      >>> kernel = fs.kernels.ode_euler(fs.interpolants.linear())
      >>> search = fs.search.bon(nfe=8, kernel=kernel, grid=fs.grids.uniform(4), width=2)
      >>> state = search.init(jax.random.key(0), (3,), jnp.inf, jnp.int32(8))
      >>> state, candidates = search.ask(state)
      >>> evals = fs.search.Evaluation(candidates.x, candidates.x, reward=jnp.ones(2))
      >>> fs.search.to_particles(candidates, evals).reward.tolist()  # none was wanted
      [-inf, -inf]
    """
    told = candidates.valid & (candidates.wants_reward | candidates.wants_gradient)
    reward = jnp.where(told, evals.reward, -jnp.inf)
    return Particle(candidates.x, candidates.t, evals.x0, evals.x1, reward, evals.gradient)


def further(winner: Particle, best: Particle, anyway: Any = True) -> jax.Array:
    """bool, whether the winner of a round is the answer now: at a later time, or better there.

    Args:
      winner: of the round; only one with a reward takes the place of one with a reward.
      best: the answer so far; of equals it stays.
      anyway: bool, whether the winner is taken while neither has a reward.

    Example:
      >>> x, one = jnp.zeros(2), jnp.ones(())
      >>> early, late = (fs.search.Particle(x, t, x, x, reward=one) for t in (0.8 * one, 0.2 * one))
      >>> bool(fs.search.further(late, early)), bool(fs.search.further(early, late))
      (True, False)
    """
    beyond = (winner.t < best.t) | ((winner.t == best.t) & (winner.reward > best.reward))
    none = best.reward == -jnp.inf
    return jnp.where(winner.reward > -jnp.inf, beyond | none, none & anyway)


@jax.custom_batching.custom_vmap
def any_over_prompts(condition: jax.Array) -> jax.Array:
    """A condition; vmapped over prompts, whether it holds for any, so that `lax.cond` skips work
    that none of them wants.

    Example:
      >>> wanted = jnp.array([True, False])  # of two prompts
      >>> bool(jax.vmap(fs.search.any_over_prompts, out_axes=None)(wanted))
      True
    """
    return condition


@any_over_prompts.def_vmap
def _any_of_batch(size: int, batched: Any, condition: jax.Array) -> tuple[jax.Array, bool]:
    return any_over_prompts(jnp.any(condition, 0)), False


def map_valid(f: Callable[..., Any], valid: jax.Array, *rows: jax.Array) -> Any:
    """x [w, *shape] of candidates, or `Moving`, ``f(*row)`` each.

    Noise takes several times its own memory while it is drawn. So a few rows are drawn at a time,
    and none where no prompt has a valid one.

    Args:
      f: of one row.
      valid: bool [w]; x of other rows is not used.
      rows: arrays [w, ...]. What is as large as a particle is better closed over, and taken by a
        row's number: a loop over it would begin with a copy.

    Example:
      >>> valid, rows = jnp.array([True, True]), jnp.array([1.0, 2.0])
      >>> fs.search.map_valid(lambda row: 10 * row, valid, rows).tolist()
      [10.0, 20.0]
    """
    size = max(k for k in range(1, _ROWS_AT_ONCE + 1) if valid.size % k == 0)
    wanted = any_over_prompts(jnp.any(valid.reshape(-1, size), 1))
    pieces = [a.reshape(-1, size, *a.shape[1:]) for a in rows]

    def some(piece: tuple[jax.Array, list[jax.Array]]) -> Any:
        wanted, rows = piece
        like = jax.eval_shape(jax.vmap(f), *rows)
        nothing = partial(jax.tree.map, lambda a: jnp.zeros(a.shape, a.dtype), like)
        return jax.lax.cond(wanted, jax.vmap(f), lambda *_: nothing(), *rows)

    x = jax.lax.map(some, (wanted, pieces))
    return jax.tree.map(lambda a: a.reshape(valid.size, *a.shape[2:]), x)


_SMALL = 2**17
"""Numbers that are copied in less time than a kernel takes to begin, about."""


def tree_where(condition: jax.Array, a: Any, b: Any) -> Any:
    """`jnp.where` over two pytrees; the condition has the leaves' leading axes.

    Example:
      >>> a, b = {"x": jnp.ones([2, 2])}, {"x": jnp.zeros([2, 2])}
      >>> fs.search.tree_where(jnp.array([True, False]), a, b)["x"].tolist()
      [[1.0, 1.0], [0.0, 0.0]]
    """

    lead = tuple(range(jnp.ndim(condition)))
    small = sum(x.size for x in jax.tree.leaves(a)) <= _SMALL
    if not lead and small and jax.default_backend() == "cpu":
        # Of a choice for each leaf XLA makes a kernel each here, which all work the condition out.
        # Elsewhere the host would be asked which it is; and what is large is better not copied.
        return jax.lax.cond(condition, lambda: a, lambda: b)

    def choose(x: jax.Array, y: jax.Array) -> jax.Array:
        # `jnp.where` is a function of its own for every leaf, which take their time to trace.
        chosen = jax.lax.broadcast_in_dim(condition, x.shape, lead) if lead else condition
        return jax.lax.select(chosen, x, y)

    return jax.tree.map(choose, a, b)


def tree_take(tree: Any, index: jax.Array) -> Any:
    """Row `index` of every leaf, from 0 on: below it is the first, behind the last the last.

    Example:
      >>> fs.search.tree_take({"x": jnp.array([[1.0], [2.0]])}, 1)["x"].tolist()
      [2.0]
    """

    def take(a: jax.Array) -> jax.Array:
        # As `a[index]` is of such an index, without the arithmetic for one from the end.
        return a.at[index].get(mode="clip", wrap_negative_indices=False)

    return jax.tree.map(take, tree)


def fold_in_ids(key: jax.Array, *ids: jax.Array) -> jax.Array:
    """Fold identities into a key, one after the other.

    Example:
      >>> key = jax.random.key(0)
      >>> one_by_one = jax.random.fold_in(jax.random.fold_in(key, 3), 1)
      >>> bool(fs.search.fold_in_ids(key, 3, 1) == one_by_one)
      True
    """

    def fold(key: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        return jax.random.fold_in(key, i), None

    if not ids:
        return as_key(key)
    each = jnp.stack([jnp.uint32(i) for i in ids])
    # A loop on a CPU, where every fold that is written out is a dozen kernels to compile.
    written_out = jax.default_backend() != "cpu"
    return jax.lax.scan(fold, as_key(key), each, unroll=written_out)[0]


def even_shares(total: Any, parts: int) -> Any:
    """A budget in whole shares [parts] that differ by at most one, the larger ones first.

    Like `affordable_units`, for a Python or a traced number: operators alone, so that shapes can
    be computed from it.

    Example:
      >>> fs.search.even_shares(11, 4).tolist()
      [3, 3, 3, 2]
    """
    index = np.arange(parts, dtype=np.int32)
    return total // parts + (index < total % parts).astype(np.int32)


def affordable_units(total: Any, parts: int, cost: int, last: int) -> Any:
    """`affordable` for parts whose units cost the same, but for the last: 1 to `cost`.

    Example:
      >>> fs.search.affordable_units(jnp.int32(11), 3, cost=2, last=1).tolist()
      [2, 2, 3]
    """
    return affordable(total, [cost] * (parts - 1) + [last])


def affordable(total: Any, costs: Any) -> Any:
    """Units [..., parts] that a budget [...] pays for: everywhere as many, then one more each.

    Args:
      total: int32.
      costs: of a unit of each part.

    Returns:
      As many units of each part, then one more of the earlier ones, and one more of the last if
      that is paid for. What is left is less than all parts cost; where the last is much cheaper
      than the others, it may pay for several more of it.
    """
    each = np.asarray(costs, np.int32).reshape([1] * total.ndim + [-1])
    upto = np.cumsum(each, -1, dtype=np.int32)
    whole, last = upto[..., -1:], each[..., -1:]
    units, left = total[..., None] // whole, total[..., None] % whole
    more = (upto <= left).astype(np.int32)
    spent = (more * each).sum(-1, dtype=np.int32)[..., None]
    is_last = (np.arange(each.size) == each.size - 1).astype(np.int32).reshape(each.shape)
    return units + more + is_last * (left - spent >= last).astype(np.int32)


class UnusableKernel(ValueError):
    """A search cannot move particles by the kernel that it is given."""


def check_stochastic(kernel: Kernel, grid: tuple[float, ...], consequence: str) -> None:
    """Raise if a kernel is deterministic on a grid, saying what follows from that."""
    name, expected = type(kernel).__name__, "expected a stochastic one (euler_maruyama, ddim, cps)"
    if not kernel.stochastic:
        raise UnusableKernel(f"kernel {name} is deterministic, so {consequence}; {expected}")
    own = not type(kernel).__module__.startswith("flowsde.")
    if own and not _draws_noise(Now(kernel), grid):
        raise UnusableKernel(
            f"kernel {name} is stochastic by its word, but its std is 0 at all steps of the grid, "
            f"so {consequence}; {expected}"
        )


@lru_cache(maxsize=64)
def _draws_noise(now: Now, grid: tuple[float, ...]) -> bool:
    """Whether a kernel of one's own has a std other than 0 at a step between points of a grid."""
    kernel: Kernel = now.value
    drawn = kernel.begin if kernel.inner_evaluations else kernel.moments
    # A search is made anew within compiled functions.
    with jax.ensure_compile_time_eval():
        x0, x1 = jnp.array([2.0, -1.0]), jnp.array([-0.5, 1.5])
        gradient = (x1,) if kernel.uses_gradient else ()
        try:
            return len(grid) < 3 or any(
                float(drawn(x0 + x1, x0, x1, jnp.float32(t), jnp.float32(s), *gradient)[1]) != 0.0
                for t, s in pairwise(grid[:-1])
            )
        except Exception:  # of particles of another shape, say: it is told of when it is traced
            return True


def check_without_moves(kernel: Any, consequence: str) -> None:
    """Raise if a kernel evaluates the model on its way, saying what follows from that."""
    if getattr(kernel, "inner_evaluations", 0):
        raise UnusableKernel(
            f"kernel {type(kernel).__name__} evaluates the model on its way from one time to the "
            f"next, so {consequence}; expected one that does not (ode_euler, ddim)"
        )


def check_kernel(kernel: Any) -> Kernel:
    """A kernel that a search can use: reverse in time, all evaluations before x_s."""
    if isinstance(kernel, Multistep):
        raise UnusableKernel(
            f"kernel must move a particle that has no step before, got {kernel!r}, which serves "
            f"sample, bon, halving, lidar and zero_order, and finishing as finish='adams'"
        )
    if not isinstance(kernel, Kernel) or isinstance(kernel, Renoise):
        raise TypeError(f"kernel must be a reverse-time flowsde Kernel, got {kernel!r}")
    if kernel.evaluations != 1 + kernel.inner_evaluations:
        raise ValueError(
            f"kernel must take one evaluation a step, got {type(kernel).__name__} with "
            f"{kernel.evaluations}; it serves flowsde.sample"
        )
    return kernel
