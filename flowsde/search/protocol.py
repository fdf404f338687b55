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

from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._static import Static
from flowsde.interpolants import Interpolant
from flowsde.kernels import Kernel


class Moving(NamedTuple):
    """`Candidates.x` of a kernel with `inner_evaluations`, which the runner makes.

    A search is told the candidates as they have arrived, x an array.

    Attributes:
      drawn: as `Kernel.begin` says, float32 [w, *shape].
      origin: the particle that it moves from, likewise.
      start: its time, float32 [w]; the candidate's own where x is there already.
    """

    drawn: jax.Array
    origin: jax.Array
    start: jax.Array


class Candidates(NamedTuple):
    """Points to evaluate; w = `Search.n_candidates` rows in every round.

    Attributes:
      x: float32 [w, *shape]; or `Moving`.
      t: float32 [w], times of the search's interpolant.
      wants_reward: bool [w]; the reward of other rows is not used.
      wants_gradient: bool [w]; of the reward in x. Such rows are told their reward too.
      valid: bool [w]; other rows are padding.
      key: uint32 [w, 2], data of random keys, if the search looks ahead at random; else None.
      draft: bool [w], which are evaluated by the draft flow, and cost `draft_cost` each, if the
        search has one (`flowsde.search.drafts`); else None.

    Example:
      >>> kernel = fs.kernels.ode_euler(fs.interpolants.linear())
      >>> search = fs.search.bon(nfe=8, kernel=kernel, grid=fs.grids.uniform(4), width=2)
      >>> state = search.init(jax.random.key(0), (3,), jnp.inf, jnp.int32(8))
      >>> state, candidates = search.ask(state)
      >>> candidates.x.shape, candidates.t.tolist(), candidates.wants_reward.tolist()
      ((2, 3), [1.0, 1.0], [False, False])
    """

    x: Any
    t: jax.Array
    wants_reward: jax.Array
    wants_gradient: jax.Array
    valid: jax.Array
    key: jax.Array | None = None
    draft: jax.Array | None = None


class Evaluation(NamedTuple):
    """What the candidates were worth.

    Attributes:
      x0: posterior means of data, float32 [w, *shape].
      x1: posterior means of noise, likewise.
      reward: float32 [w], of the decoded x0, or of what is seen ahead where the search looks ahead
        (`flowsde.search.value`); -inf for NaN and where none was wanted.
      gradient: of the reward in x, float32 [w, *shape], 0 where none was wanted or it is not
        finite; None unless the search is guided.
      seen: while their rewards are not known, x0 of what is seen ahead, [w, k, *shape]; None when
        told, and without.
      parts: of a combined reward, as `Info.parts`; None when told, and without.
      x: where candidates that were `Moving` have arrived; None when told, and without.
      asked: of parts that are not asked about every picture, how often each was, int32 [w] by name;
        None when told, and without.

    Example:
      >>> kernel = fs.kernels.ode_euler(fs.interpolants.linear())
      >>> search = fs.search.bon(nfe=8, kernel=kernel, grid=fs.grids.uniform(4), width=2)
      >>> state = search.init(jax.random.key(0), (3,), jnp.inf, jnp.int32(8))
      >>> state, candidates = search.ask(state)
      >>> evals = fs.search.Evaluation(x0=candidates.x, x1=candidates.x, reward=jnp.zeros(2))
      >>> state, info = search.tell(state, candidates, evals)
      >>> int(info.charged)
      2
    """

    x0: jax.Array
    x1: jax.Array
    reward: jax.Array
    gradient: jax.Array | None = None
    seen: jax.Array | None = None
    parts: dict[str, jax.Array] | None = None
    x: jax.Array | None = None
    asked: dict[str, jax.Array] | None = None


class Particle(NamedTuple):
    """An evaluated point (or several, with leading axes).

    Attributes:
      x: the point, float32 [*shape].
      t: its time, float32.
      x0: its posterior mean of data, float32 [*shape].
      x1: its posterior mean of noise, likewise.
      reward: of its decoded x0, float32; -inf before there is one.
      gradient: of the reward in x, [*shape]; None unless the search is guided.

    Example:
      >>> kernel = fs.kernels.ode_euler(fs.interpolants.linear())
      >>> search = fs.search.bon(nfe=8, kernel=kernel, grid=fs.grids.uniform(4), width=2)
      >>> state = search.init(jax.random.key(0), (3,), jnp.inf, jnp.int32(8))
      >>> search.best(state).x.shape, float(search.best(state).reward)  # before the first round
      ((3,), -inf)
    """

    x: jax.Array
    t: jax.Array
    x0: jax.Array
    x1: jax.Array
    reward: jax.Array
    gradient: jax.Array | None = None


class Stored(NamedTuple):
    """Particles of a state that are written by rows, and too many to copy every round.

    Asking leaves them as they are, and so does telling where no candidate is valid; what `init`
    puts there is never read. So a runner of many searches in one program need not choose between
    two versions of them.

    Attributes:
      particles: [M].
    """

    particles: Particle


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
      charged: int32, how many more evaluations the `counted` take than before this round, with
        those of looking ahead.
      best_reward: float32, of the answer after this round.
      path_time: float32 [n], of the particle from which each path goes on.
      path_reward: float32 [n], likewise.
      evaluations: int32, as in `Result`, of this round.
      backward_passes: int32, likewise.
      verifier_calls: int32, likewise.
      finishing: bool, whether the round went into completing the best particle.
      seconds: float32 [3], of the model, the verifier and the rest, by the wall clock; the first
        round compiles. None from `run`, whose rounds are inside one program.
      parts: float32 [w] each, what the parts of a combined reward say, by name; NaN where none was
        wanted, the mean where several pictures were seen ahead. None of any other reward.
      draft_evaluations: int32, as in `Result`, of this round; None without a draft flow.

    Example:
      >>> flow = fs.analytic.gaussian([0.0, 0.0], 1.0).flow()
      >>> reward = lambda images, cond: images[:, 0]  # of a sample: 0, give or take 1
      >>> search = fs.search.bon(
      ...     nfe=40, kernel=fs.kernels.ode_euler(flow.interpolant), grid=fs.grids.uniform(8)
      ... )
      >>> info = fs.run(jax.random.key(0), flow, search, reward).info  # of every round
      >>> int(info.charged.sum()), bool(info.best_reward[-1] == info.path_reward.max())
      (40, True)
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
    finishing: Any = None
    seconds: Any = None
    parts: dict[str, Any] | None = None
    draft_evaluations: Any = None


class Lines(NamedTuple):
    """What a round adds to the lines along which accepted particles can be followed back.

    Attributes:
      number: int32 [m], the line that each particle joins, counted from 0; -1 for none.
      parent: int32 [m], the line, as it stood before the round, that the particle continues; -1
        for none.
      particle: [m].

    Example:
      >>> kernel = fs.kernels.ode_euler(fs.interpolants.linear())
      >>> search = fs.search.bon(nfe=8, kernel=kernel, grid=fs.grids.uniform(4), width=2)
      >>> state = search.init(jax.random.key(0), (3,), jnp.inf, jnp.int32(8))
      >>> state, candidates = search.ask(state)
      >>> evals = fs.search.Evaluation(x0=candidates.x, x1=candidates.x, reward=jnp.zeros(2))
      >>> state, info = search.tell(state, candidates, evals)
      >>> search.lines(state, info).parent.tolist()  # of the first round
      [-1, -1]
    """

    number: jax.Array | np.ndarray
    parent: jax.Array | np.ndarray
    particle: Particle


class BudgetTooSmall(ValueError):
    """A budget is too small for a search.

    Attributes:
      least: the smallest budget that would do, in the unit of the budget that was given.

    Example:
      >>> kernel = fs.kernels.ode_euler(fs.interpolants.linear())
      >>> try:
      ...     fs.search.bon(nfe=3, kernel=kernel, grid=fs.grids.uniform(4))
      ... except fs.search.BudgetTooSmall as error:
      ...     print(error.least)
      4
    """

    def __init__(self, message: str, least: int):
        super().__init__(message)
        self.least = least


@runtime_checkable
class Search(Protocol):
    """The protocol of every method; see `flowsde.search.protocol`. `SearchBase` has defaults.

    Example:
      >>> kernel = fs.kernels.ode_euler(fs.interpolants.linear())
      >>> search = fs.search.bon(nfe=8, kernel=kernel, grid=fs.grids.uniform(4), width=2)
      >>> isinstance(search, fs.search.Search), search.n_candidates, search.with_nfe(4).nfe
      (True, 2, 4)
    """

    @property
    def nfe(self) -> int:
        """The budget: evaluations of candidates, and of looking ahead from them, at most."""

    @property
    def interpolant(self) -> Interpolant:
        """The interpolant of candidates' times."""

    @property
    def uses_gradient(self) -> bool:
        """Whether candidates want the gradient of their reward."""

    @property
    def n_candidates(self) -> int:
        """Rows of `Candidates`."""

    @property
    def max_rounds(self) -> int:
        """Rounds after which `done` holds for certain; the runner stops with an error if not."""

    @property
    def path_name(self) -> str:
        """What one of its paths is called: "chain", "particle", "sample", …"""

    def with_nfe(self, nfe: int) -> "Search":
        """The same search with another budget; `BudgetTooSmall` if it takes more."""

    def with_width(self, width: int) -> "Search":
        """The same search, evaluating `width` candidates of a wave at once.

        For searches whose answer, charges and state do not depend on it. Of width w their
        candidates are ``n_candidates // w`` waves, one after the other, in which row k is draw k.
        Others return themselves.
        """

    def init(
        self, key: jax.Array, shape: tuple[int, ...], target_reward: jax.Array, nfe: jax.Array
    ) -> Any:
        """State before the first round, of a budget nfe that `with_nfe` takes and `nfe` covers."""

    def ask(self, state: Any) -> tuple[Any, Candidates]:
        """Points to evaluate."""

    def tell(self, state: Any, candidates: Candidates, evals: Evaluation) -> tuple[Any, Info]:
        """Take in what they were worth.

        It selects: the particles that it puts into the state are as `to_particles` gives them, or
        were there. On a mesh it may be told numbers of them, see `flowsde.runner.exchange`.
        """

    def done(self, state: Any) -> jax.Array:
        """Whether nothing is left to do; a done search asks for nothing."""

    def finishing(self, state: Any) -> jax.Array:
        """Whether all that is left to do is to complete the best particle's trajectory."""

    def best(self, state: Any) -> Particle:
        """The answer so far."""

    def path(self, state: Any) -> Particle:
        """The particles, with a leading axis of paths, from which the search continues."""

    def lines(self, state: Any, info: Info) -> Lines:
        """What a round accepted, and which line each particle of it continues.

        Called between rounds, with concrete arrays of one prompt.

        Args:
          state: after the round.
          info: of the round.
        """


def inner_kernel(search: Any) -> Kernel | None:
    """The kernel of a search whose candidates are `Moving`; None of any other."""
    kernel = getattr(search, "kernel", None)
    return kernel if isinstance(kernel, Kernel) and kernel.inner_evaluations else None


class SearchBase(Static):
    """Base of searches, with what most of them need not say; for the rest see `Search`.

    Example:
      >>> kernel = fs.kernels.ode_euler(fs.interpolants.linear())
      >>> search = fs.search.bon(nfe=8, kernel=kernel, grid=fs.grids.uniform(4), width=2)
      >>> isinstance(search, fs.search.SearchBase), search.uses_gradient
      (True, False)
    """

    @property
    def uses_gradient(self) -> bool:
        return False

    @property
    def path_name(self) -> str:
        return "path"

    def with_nfe(self, nfe: int) -> Self:
        """The same search with another budget."""
        return self.replace(nfe=nfe)

    def with_width(self, width: int) -> Self:
        """Itself: it has no waves."""
        return self

    def finishing(self, state: Any) -> jax.Array:
        """Never."""
        return jnp.zeros((), jnp.bool)

    def with_stop(self, state: Any, stop: Any) -> Any:
        """The state, told whether to begin finishing now, bool; None takes that away.

        A search that does not finish goes on.
        """
        return state

    def lines(self, state: Any, info: Info) -> Lines:
        """Paths that do not cross: each continues itself when the round has decided it."""
        ancestors = np.asarray(info.ancestors)
        number = np.where(ancestors >= 0, np.arange(ancestors.size, dtype=np.int32), -1)
        return Lines(number, number, self.path(state))  # type: ignore[attr-defined]
