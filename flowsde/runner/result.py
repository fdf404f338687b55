"""What a run gives back, and what it carries from round to round."""

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._checks import check_count
from flowsde.pictures import png
from flowsde.search.protocol import Info, Particle
from flowsde.search.smc import Weights
from flowsde.start import Start


class Given(NamedTuple):
    """What `Search.init` was given, by which a run knows its own when it resumes.

    Attributes:
      key: data of the prompt's key, uint32 [2].
      target: float32, the reward at which the search stops.
      nfe: int32, budget in candidates.
    """

    key: jax.Array
    target: jax.Array
    nfe: jax.Array


class Answers(NamedTuple):
    """Particles as in `Result`, one or with leading axes: image, x0, x, t, reward and parts.

    And the `log_weight` that each has among `Result.weights`, None where there are none.
    """

    image: Any
    x0: Any
    x: Any
    t: Any
    reward: Any
    parts: Any = None
    log_weight: Any = None

    @classmethod
    def of(cls, particle: Particle, image: Any) -> "Answers":
        """Of evaluated particles and their decoded x0."""
        return cls(image, particle.x0, particle.x, particle.t, particle.reward)


class AnswerParts(NamedTuple):
    """What the parts of a combined reward say of answers, float32 by name.

    Attributes:
      best: of the best so far, [].
      kept: of those that `flowsde.search.keep` remembers beside it, [k]; None without.
      calls: how often those parts were asked that are not asked about every picture, int32 [];
        None without.
    """

    best: dict[str, Any]
    kept: dict[str, Any] | None = None
    calls: dict[str, Any] | None = None


class Result(NamedTuple):
    """What a search found; leading axis P for several prompts, none for one.

    Attributes:
      image: of the best particle, the decoded x0: what a reward saw that is not one of latents.
      x0: its posterior mean, float32 [*flow.shape].
      x: the particle, float32 [*flow.shape], in the search's interpolant; evaluating the flow
        there, at `t`, gives x0, whose reward is `reward`.
      t: its time, float32 [].
      reward: float32 [].
      nfe: model evaluations charged; never above the budget.
      evaluations: model evaluations computed, surplus and padding included.
      backward_passes: those of them that were differentiated for gradients of the reward.
      verifier_calls: rewards asked for, those with a gradient included.
      verifier_cost: what they cost in model evaluations, by the reward's own word.
      info: `flowsde.search.Info` with a leading axis of rounds; None from `flowsde.batch`.
      state: of the search, after the last round; None from `flowsde.batch`.
      given: `Given`, what the search began with; None from `flowsde.batch`.
      run: uint32, checksum of the search's settings, of cond and reward_cond, and of the version
        that a reward outside JAX may have, by which a run that resumes knows its own; None from
        `flowsde.batch`.
      kept: `Answers` with a further axis of k, of a search made by `flowsde.search.keep`, the
        highest reward first and -inf where there are fewer; else None. `top` reads them.
      parts: float32 [] each, what the parts of a combined reward say of the answer, by name; NaN
        before it has been scored. None of any other reward.
      timing: `flowsde.runner.clock.Timing` of a budget in seconds: what was spent, and the `nfe`
        that it was turned into; else None.
      part_calls: int32 [] each, how often those parts were asked that are not asked about every
        picture, by name: the dear one of a cascade. None without such parts.
      weights: `flowsde.search.Weights` of `smc` and `psi`, from `flowsde.batch`; None from others,
        whose `state` has them: `flowsde.search.weighted_sample`.
      draft_evaluations: evaluations of the draft flow's model that were computed, padding included,
        which `evaluations` leaves out; `nfe` has what they are charged. None without a draft flow.

    Example:
      >>> flow = fs.analytic.gaussian([0.0, 0.0], 1.0).flow()
      >>> reward = lambda images, cond: images[:, 0]  # of a sample: 0, give or take 1
      >>> search = fs.search.svdd(
      ...     nfe=40, kernel=fs.kernels.ddim(flow.interpolant), grid=fs.grids.uniform(8)
      ... )
      >>> result = fs.run(jax.random.key(0), flow, search, reward, prompt_ids=[0, 1])
      >>> result.x0.shape, result.reward.shape, result.nfe.tolist()
      ((2, 2), (2,), [40, 40])
    """

    image: Any
    x0: Any
    x: Any
    t: Any
    reward: Any
    nfe: Any
    evaluations: Any
    backward_passes: Any
    verifier_calls: Any
    verifier_cost: Any
    info: Any
    state: Any
    given: Any = None
    run: Any = None
    kept: Any = None
    parts: dict[str, Any] | None = None
    timing: Any = None
    part_calls: dict[str, Any] | None = None
    weights: Weights | None = None
    draft_evaluations: Any = None

    def top(self, k: int) -> list[Any]:
        """The k best different answers, the search's own first and then by falling reward.

        Args:
          k: at most that of `flowsde.search.keep`; 1 for any search.

        Returns:
          `Answers` of one prompt each, fewer than k if no more were found; of several prompts a
          list of them for each.

        Raises:
          ValueError, TypeError: k is none, or more than were kept.
        """
        there = 1 if self.kept is None else np.shape(self.kept.reward)[-1]
        if check_count("k", k) > there:
            raise ValueError(
                f"k must be at most {there}, which the search kept, got {k}; "
                f"flowsde.search.keep(search, {k}) keeps more"
            )
        own = Answers(self.image, self.x0, self.x, self.t, self.reward, self.parts)
        others = self.kept
        if self.weights is not None:
            own = own._replace(log_weight=self.weights.best)
            others = others and others._replace(log_weight=self.weights.kept)
        if np.ndim(self.reward) == 0:
            return _different(own, others, k)
        every = []
        for i in range(len(self.t)):
            best, kept = jax.tree.map(lambda a, i=i: a[i], (own, others))
            every.append(_different(best, kept, k))
        return every

    def __repr__(self) -> str:
        numbers = ("reward", "nfe", "evaluations", "verifier_calls")
        parts = [f"{name}={_short(getattr(self, name))}" for name in numbers]
        parts += [f"{name}={_shape(getattr(self, name))}" for name in ("image", "x0")]
        return f"Result({', '.join(parts)})"

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: the picture, or those of all prompts, if they are pictures."""
        lead, shape = np.ndim(self.reward), np.shape(self.image)
        if len(shape) != 3 + lead or shape[-1] != 3 or not _is_here(self.image):
            return None
        return png(np.asarray(self.image).reshape(-1, *shape[-3:]))


def _different(own: Answers, kept: Answers | None, k: int) -> list[Answers]:
    """An answer and the others that were kept, up to k that differ in x0."""
    found = [own]
    for i in range(0 if kept is None else len(kept.t)):
        one = jax.tree.map(lambda a, i=i: a[i], kept)
        seen = any(np.array_equal(one.x0, other.x0) for other in found)
        if len(found) < k and not seen and one.reward > -np.inf:
            found.append(one)
    return found


def _is_here(array: Any) -> bool:
    """Whether this process has all of it."""
    return getattr(array, "is_fully_addressable", True)


def _short(values: Any) -> str:
    """A number, or the first of several."""
    if not _is_here(values):
        return _shape(values)
    numbers = np.asarray(values)
    if numbers.ndim == 0:
        return f"{numbers[()]:.4g}" if numbers.dtype.kind == "f" else str(numbers)
    return np.array2string(numbers, precision=4, separator=", ", threshold=8, edgeitems=3)


def _shape(array: Any) -> str:
    return f"{getattr(array, 'dtype', '?')}{list(np.shape(array))}"


class Carry(NamedTuple):
    """State and counters of P prompts, with a leading axis of them; of a single one, without.

    On a mesh, prompts that are there only to come out even are not `live`, bool [P]. `parts` are
    those of a combined reward, and `start` is what prompts begin from; None without.
    """

    given: Given
    state: Any
    nfe: jax.Array
    evaluations: jax.Array
    backward_passes: jax.Array
    verifier_calls: jax.Array
    live: jax.Array | None = None
    parts: AnswerParts | None = None
    start: Start | None = None
    draft_evaluations: jax.Array | None = None

    @property
    def counts(self) -> dict[str, jax.Array]:
        """As `counts_of` gives them."""
        return counts_of(self)


COUNTERS = ("nfe", "evaluations", "backward_passes", "verifier_calls")
"""Of every search."""
DRAFTS = "draft_evaluations"
"""The counter of searches with a draft flow alone."""


def counts_of(counted: Any) -> dict[str, Any]:
    """The counters of a carry or a result by name, those of drafts last and only where there are.

    In no order but that: JAX sorts the names.
    """
    also = () if counted.draft_evaluations is None else (DRAFTS,)
    return {name: getattr(counted, name) for name in (*COUNTERS, *also)}


@partial(jax.tree_util.register_dataclass, data_fields=("bits",), meta_fields=("like", "structure"))
@dataclasses.dataclass(frozen=True)
class Packed:
    """A pytree of small arrays as one, so that they take one transfer to the host.

    Attributes:
      bits: int32 [n].
      like: shapes and dtypes (float32, int32 or bool) of the leaves.
      structure: of the tree.
    """

    bits: jax.Array
    like: tuple[jax.ShapeDtypeStruct, ...]
    structure: Any

    @classmethod
    def of(cls, tree: Any) -> "Packed":
        """Pack, in a compiled program."""
        leaves, structure = jax.tree.flatten(tree)
        numbers = [a.astype(jnp.int32) if a.dtype == jnp.bool else a for a in leaves]
        bits = [jax.lax.bitcast_convert_type(a, jnp.int32).reshape(-1) for a in numbers]
        like = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in leaves)
        return cls(jnp.concatenate(bits), like, structure)

    def shapes(self) -> Any:
        """The tree's shapes and dtypes."""
        return self.structure.unflatten(self.like)

    def unpack(self) -> Any:
        """The tree, NumPy."""
        every, leaves, begin = np.asarray(self.bits), [], 0
        for a in self.like:
            bits = every[begin : (begin := begin + math.prod(a.shape))]
            own = bits.astype(bool) if a.dtype == bool else bits.view(a.dtype)
            leaves.append(own.reshape(a.shape))
        return self.structure.unflatten(leaves)


def carry_of(result: Result) -> Carry:
    """What a run goes on from."""
    counts: dict[str, Any] = {n: jnp.asarray(a, jnp.int32) for n, a in counts_of(result).items()}
    if result.parts is None:
        return Carry(result.given, result.state, **counts)
    kept = None if result.kept is None else result.kept.parts
    parts = jax.tree.map(jnp.asarray, AnswerParts(result.parts, kept, result.part_calls))
    return Carry(result.given, result.state, **counts, parts=parts)


def with_numbers(result: Result) -> Result:
    """Counters of a single prompt as Python numbers."""
    counters: dict[str, Any] = {name: int(count) for name, count in counts_of(result).items()}
    calls = result.part_calls and {name: int(n) for name, n in result.part_calls.items()}
    cost = float(result.verifier_cost)
    return result._replace(**counters, verifier_cost=cost, part_calls=calls)


def longer(log: Info, rows: int) -> Info:
    """A log with room for further rounds."""
    return jax.tree.map(lambda a: np.concatenate([a, np.zeros((rows, *a.shape[1:]), a.dtype)]), log)


def head(log: Info, rounds: int) -> Info:
    """The first rounds of a log."""
    return jax.tree.map(lambda a: a[:rounds], log)
