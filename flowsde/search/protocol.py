"""What a search is: a policy for which particle to extend next.

A search never sees a model. It asks for points to be evaluated and is told what they were
worth; its state is a pytree of arrays of fixed shapes:

    state                = search.init(key, shape, target_reward, nfe)
    state, candidates    = search.ask(state)
    state, info          = search.tell(state, candidates, evaluation)

until ``search.done(state)``; ``search.best(state)`` is the answer. All methods are pure and for
one prompt; the runner (`flowsde.runner.run`) vmaps them over prompts, evaluates the candidates in
chunks, and counts. The budget is part of the state: a search's own is the most it has shapes for,
and one compiled program serves every smaller one.

A search hashes by value, by all that it keeps, so that it can be a static argument. Random
keys are folded in by (chain, step, draw), never by position in a batch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._keys import as_key
from flowsde._static import Static
from flowsde.interpolants import Interpolant
from flowsde.kernels import Kernel, Renoise
from flowsde.kernels.base import standard_normal

_ROWS_AT_ONCE = 4


class Candidates(NamedTuple):
    """Points to evaluate; w = `Search.n_candidates` rows in every round.

    Attributes:
      x: float32 [w, *shape].
      t: float32 [w], times of the search's interpolant.
      wants_reward: bool [w]; the reward of other rows is not used.
      wants_gradient: bool [w]; of the reward in x. Such rows are told their reward too.
      valid: bool [w]; other rows are padding.
    """

    x: jax.Array
    t: jax.Array
    wants_reward: jax.Array
    wants_gradient: jax.Array
    valid: jax.Array


class Evaluation(NamedTuple):
    """What the candidates were worth.

    Attributes:
      x0, x1: posterior means of data and noise, float32 [w, *shape].
      reward: float32 [w], of the decoded x0; -inf for NaN and where none was wanted.
      gradient: of the reward in x, float32 [w, *shape], 0 where none was wanted or it is not
        finite; None unless the search is guided.
    """

    x0: jax.Array
    x1: jax.Array
    reward: jax.Array
    gradient: jax.Array | None = None


class Particle(NamedTuple):
    """An evaluated point (or several, with leading axes).

    Attributes:
      x, x0, x1: the point and its posterior means, float32 [*shape].
      t: its time, float32.
      reward: of its decoded x0, float32; -inf before there is one.
      gradient: of the reward in x, [*shape]; None unless the search is guided.
    """

    x: jax.Array
    t: jax.Array
    x0: jax.Array
    x1: jax.Array
    reward: jax.Array
    gradient: jax.Array | None = None


class Info(NamedTuple):
    """What happened in a round; not carried in the state.

    The search tells the first group, for w candidates and the n particles of its `path`; the
    runner adds the second.

    Attributes:
      time: float32 [w], of the candidates.
      reward: float32 [w], -inf where none was wanted.
      counted: bool [w], the candidates that the method, one draw at a time, would have evaluated.
      accepted: bool [w], the candidates that a path goes on from after this round.
      ancestors: int32 [n], the number, among the draws of a step, of the one that each path goes
        on from; -1 where this round decided nothing.
      ess: float32, effective sample size of the weights, before resampling; n without weights.
      charged: int32, how many more `counted` are than before this round.
      best_reward: float32, of the answer after this round.
      path_time, path_reward: float32 [n], of the particle from which each path goes on.
      evaluations, backward_passes, verifier_calls: int32, as in `Result`, of this round.
      seconds: float32 [3], of the model, the verifier and the rest, by the wall clock; the first
        round compiles. None from `run`, whose rounds are inside one program.
    """

    time: jax.Array
    reward: jax.Array
    counted: jax.Array
    accepted: jax.Array
    ancestors: jax.Array
    ess: jax.Array
    charged: jax.Array
    best_reward: jax.Array
    path_time: jax.Array
    path_reward: jax.Array
    evaluations: Any = None
    backward_passes: Any = None
    verifier_calls: Any = None
    seconds: Any = None


@runtime_checkable
class Search(Protocol):
    """The protocol of every method; see the module's docstring."""

    @property
    def nfe(self) -> int:
        """The budget: candidates the method may be charged for, at most."""

    @property
    def interpolant(self) -> Interpolant:
        """In which candidates are."""

    @property
    def guided(self) -> bool:
        """Whether candidates want the gradient of their reward."""

    @property
    def n_candidates(self) -> int:
        """Rows of `Candidates`."""

    @property
    def max_rounds(self) -> int:
        """Rounds after which `done` is certain."""

    def with_nfe(self, nfe: int) -> "Search":
        """The same search with another budget."""

    def init(
        self, key: jax.Array, shape: tuple[int, ...], target_reward: jax.Array, nfe: jax.Array
    ) -> Any:
        """State before the first round, of a budget nfe that `with_nfe` takes and `nfe` covers."""

    def ask(self, state: Any) -> tuple[Any, Candidates]:
        """Points to evaluate."""

    def tell(self, state: Any, candidates: Candidates, evals: Evaluation) -> tuple[Any, Info]:
        """Take in what they were worth.

        It selects: what it puts into the state are particles as `evaluated` gives them, or that
        were there. On a mesh it may be told numbers of them, see `flowsde.runner.exchange`.
        """

    def done(self, state: Any) -> jax.Array:
        """Whether nothing is left to do; a done search asks for nothing."""

    def best(self, state: Any) -> Particle:
        """The answer so far."""

    def path(self, state: Any) -> Particle:
        """The particles, with a leading axis of chains, from which the search goes on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridSearch(Static):
    """What searches have in common that follow a kernel down a grid of times.

    Attributes:
      nfe: budget in candidates.
      kernel: how a particle moves.
      grid: times falling from 1 to 0.
    """

    nfe: int
    kernel: Kernel
    grid: tuple[float, ...]

    @property
    def steps(self) -> int:
        """Times at which particles are evaluated; the grid's last, 0, is never."""
        return len(self.grid) - 1

    @property
    def interpolant(self) -> Interpolant:
        return self.kernel.interpolant

    @property
    def guided(self) -> bool:
        return self.kernel.guided

    def with_nfe(self, nfe: int) -> Self:
        """The same search with another budget."""
        return self.replace(nfe=nfe)

    def empty(self, n: int | None, shape: tuple[int, ...]) -> Particle:
        """Particles at t = 1 that have not been evaluated, with leading axis n unless None."""
        lead = () if n is None else (n,)
        zeros = jnp.zeros(lead + shape, jnp.float32)
        ones, nothing = jnp.ones(lead, jnp.float32), jnp.full(lead, -jnp.inf, jnp.float32)
        return Particle(zeros, ones, zeros, zeros, nothing, zeros if self.guided else None)

    def extend(self, key: jax.Array, parent: Particle, step: jax.Array) -> jax.Array:
        """x of a parent's child at a step of the grid; noise at step 0, whatever the parent."""
        return self.move(standard_normal(key, parent.x.shape), parent, step)

    def move(self, noise: jax.Array, parent: Particle, step: jax.Array) -> jax.Array:
        """`extend` with the standard normal noise given: drawing it once is most of the work."""
        gradient = () if parent.gradient is None else (parent.gradient,)
        s = jnp.asarray(self.grid, jnp.float32)[step]
        start = self.interpolant.radius(jnp.ones((), jnp.float32)) * noise
        mean, std = self.kernel.moments(parent.x, parent.x0, parent.x1, parent.t, s, *gradient)
        return jnp.where(step == 0, start, mean + std * noise)

    def wants_gradient(self, step: jax.Array) -> jax.Array:
        """Whether candidates at a step want a gradient: not at the last, where none moves on."""
        return (step < self.steps - 1) & self.guided


def evaluated(candidates: Candidates, evals: Evaluation) -> Particle:
    """Candidates together with their evaluation; a reward only where one was wanted."""
    told = candidates.valid & (candidates.wants_reward | candidates.wants_gradient)
    reward = jnp.where(told, evals.reward, -jnp.inf)
    return Particle(candidates.x, candidates.t, evals.x0, evals.x1, reward, evals.gradient)


@jax.custom_batching.custom_vmap
def any_prompt(condition: jax.Array) -> jax.Array:
    """A condition; vmapped over prompts, whether it holds for any, so that `lax.cond` skips work
    that none of them wants."""
    return condition


@any_prompt.def_vmap
def _any_of_batch(size: int, batched: Any, condition: jax.Array) -> tuple[jax.Array, bool]:
    return any_prompt(jnp.any(condition, 0)), False


def draw(f: Callable[..., jax.Array], valid: jax.Array, *rows: jax.Array) -> jax.Array:
    """x [w, *shape] of candidates, ``f(*row)`` each.

    Noise takes several times its own memory while it is drawn. So a few rows are drawn at a time,
    and none where no prompt has a valid one.

    Args:
      f: of one row.
      valid: bool [w]; x of other rows is not used.
      rows: arrays [w, ...]. What is as large as a particle is better closed over, and taken by a
        row's number: a loop over it would begin with a copy.
    """
    size = max(k for k in range(1, _ROWS_AT_ONCE + 1) if valid.size % k == 0)
    wanted = any_prompt(jnp.any(valid.reshape(-1, size), 1))
    pieces = [a.reshape(-1, size, *a.shape[1:]) for a in rows]

    def some(piece: tuple[jax.Array, list[jax.Array]]) -> jax.Array:
        wanted, rows = piece
        like = jax.eval_shape(jax.vmap(f), *rows)
        return jax.lax.cond(
            wanted, jax.vmap(f), lambda *_: jnp.zeros(like.shape, like.dtype), *rows
        )

    x = jax.lax.map(some, (wanted, pieces))
    return x.reshape(valid.size, *x.shape[2:])


def where(condition: jax.Array, a: Any, b: Any) -> Any:
    """`jnp.where` over two pytrees; the condition has the leaves' leading axes."""

    def choose(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.where(
            condition.reshape(condition.shape + (1,) * (x.ndim - condition.ndim)), x, y
        )

    return jax.tree.map(choose, a, b)


def take(tree: Any, index: jax.Array) -> Any:
    """Row `index` of every leaf."""
    return jax.tree.map(lambda a: a[index], tree)


def fold(key: jax.Array, *ids: jax.Array) -> jax.Array:
    """Fold identities into a key, one after the other."""
    key = as_key(key)
    for i in ids:
        key = jax.random.fold_in(key, i)
    return key


def shares(total: Any, parts: int) -> Any:
    """A budget in whole shares [parts] that differ by at most one, the larger ones first.

    Like `spread`, of a number or a traced one: operators alone, so that shapes can be had of it.
    """
    index = np.arange(parts, dtype=np.int32)
    return total // parts + (index < total % parts).astype(np.int32)


def spread(total: Any, parts: int, cost: int, last: int) -> Any:
    """Units [..., parts] that a budget [...] pays for: everywhere as many, then one more each.

    Args:
      total: int32.
      parts: how many ways it goes.
      cost: of a unit of each part but the last.
      last: of one of the last part, 1 to `cost`.

    Returns:
      Units that leave less than any part's next; earlier parts are the first to have one more.
    """
    index = np.arange(parts, dtype=np.int32).reshape([1] * total.ndim + [parts])
    whole = cost * (parts - 1) + last
    units, left = total[..., None] // whole, total[..., None] % whole
    more = (index < left // cost) | ((index == parts - 1) & (left % cost >= last))
    return units + more.astype(np.int32)


def check_stochastic(kernel: Kernel, consequence: str) -> None:
    """Raise if a kernel is deterministic, saying what follows from that."""
    if not kernel.stochastic:
        raise ValueError(
            f"kernel {type(kernel).__name__} is deterministic, so {consequence}; expected a "
            f"stochastic one (euler_maruyama, ddim, cps)"
        )


def check_kernel(kernel: Any) -> Kernel:
    """A kernel that a search can use: reverse in time, one evaluation a step."""
    if not isinstance(kernel, Kernel) or isinstance(kernel, Renoise):
        raise TypeError(f"kernel must be a reverse-time flowsde Kernel, got {kernel!r}")
    if kernel.evaluations != 1:
        raise ValueError(
            f"kernel must take one evaluation a step, got {type(kernel).__name__} with "
            f"{kernel.evaluations}; it serves flowsde.sample"
        )
    return kernel
