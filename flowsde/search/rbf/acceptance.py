"""When a chain of RBF goes on: the reward that a child must be above.

A step draws children y_1, y_2, … of one parent, at most Q of them within its quota. The first
child above its bar ends the step; the best child so far is accepted. A bar depends on children
drawn before, never on the child itself nor on what was drawn beside it.

* `IMPROVE`: the bar is r*, the best reward so far (Kim et al., 2025, arXiv 2503.19385, Algorithm
  2). As noise falls the reward of a posterior mean rises by itself, on a model that is not
  distilled at every step: nearly every first child passes, and the last step has the budget.
* `Calibrated`: r* + g, with g the natural gain of the step, by how much a child's reward is above
  its parent's whatever is chosen. It is estimated by the siblings, g_j = mean(y_1 … y_{j-1}) -
  r(parent), so that the first child never passes. Where none does, r* rises by g: it is not
  lowered, in the terms of the next step.
* `Quantile`: the q-quantile of the step's rewards, a normal distribution of the mean m and the
  standard deviation s of the siblings: m_{j-1} + s_{j-1} Phi^-1(q), from the third child on. The
  first of independent draws above the q-quantile is draw 1 / (1 - q) on average, so that
  q = 1 - 1 / Q spends in expectation what the step has, if the distribution is known: a rule of
  optimal stopping with full information (Gilbert and Mosteller, 1966, J. Am. Stat. Assoc. 61), of
  a constant threshold, as what is not drawn is not lost but rolls over.
* `Threshold`: a number for each step, given by the user, and no quotas: a step draws on from all
  that is left but one draw for each later step (after Verifier-Threshold, arXiv 2512.08985).

Statistics of siblings are updated in draw order, one at a time. A child without a reward, -inf, is
no sibling. A parent without one has no gain.
"""

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from flowsde._static import Static
from flowsde.search.bars import as_bars

Accept = Literal["improve", "calibrated", "quantile", "threshold"]


class Siblings(NamedTuple):
    """Rewards of the children of a step so far, by Welford's recursion.

    Attributes:
      n: int32, how many have one.
      mean: float32.
      squares: float32, the sum of squared deviations from the mean.
    """

    n: jax.Array
    mean: jax.Array
    squares: jax.Array

    @classmethod
    def none(cls, shape: tuple[int, ...] = ()) -> "Siblings":
        zero = jnp.zeros(shape, jnp.float32)
        return cls(jnp.zeros(shape, jnp.int32), zero, zero)

    def add(self, reward: jax.Array, valid: jax.Array) -> "Siblings":
        """With one more, if it is `valid` and has a reward."""
        counts = valid & (reward > -jnp.inf)
        n = self.n + counts.astype(jnp.int32)
        deviation = reward - self.mean
        mean = self.mean + deviation / n.astype(jnp.float32)
        squares = self.squares + deviation * (reward - mean)
        more = Siblings(n, mean, squares)
        return jax.tree.map(lambda a, b: jnp.where(counts, a, b), more, self)


class Step(NamedTuple):
    """What a bar depends on besides the siblings, of one chain.

    Attributes:
      stage: int32, position in the grid.
      quota: int32, draws that the step has, Q.
      incumbent: float32, r*.
      parent: float32, its reward.
    """

    stage: jax.Array
    quota: jax.Array
    incumbent: jax.Array
    parent: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Acceptance(Static):
    """Base of the rules; itself Algorithm 2."""

    @property
    def wants_siblings(self) -> bool:
        """Whether bars depend on siblings."""
        return False

    @property
    def wants_parent(self) -> bool:
        """Whether bars depend on the parent's reward."""
        return False

    @property
    def has_quotas(self) -> bool:
        """Whether steps have quotas; else the first has all but a draw of each other."""
        return True

    def bar(self, step: Step, siblings: Siblings | None) -> jax.Array:
        """The reward that the next child must be above."""
        return step.incumbent

    def carried(self, step: Step, siblings: Siblings | None) -> jax.Array:
        """r* after a step in which no child was above the bar, if it is not the best child's."""
        return step.incumbent

    def read(
        self, step: Step, siblings: Siblings | None, rewards: jax.Array, valid: jax.Array
    ) -> tuple[jax.Array, Siblings | None]:
        """Bars of children [w] in draw order, and the siblings [w] after each of them."""
        if siblings is None:
            return jnp.broadcast_to(self.bar(step, None), rewards.shape), None

        def one(before: Siblings, child: Any) -> tuple[Siblings, Any]:
            after = before.add(*child)
            return after, (self.bar(step, before), after)

        return jax.lax.scan(one, siblings, (rewards, valid))[1]


IMPROVE = Acceptance()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibrated(Acceptance):
    """r* and the natural gain of the step."""

    @property
    def wants_siblings(self) -> bool:
        return True

    @property
    def wants_parent(self) -> bool:
        return True

    def bar(self, step: Step, siblings: Siblings | None) -> jax.Array:
        assert siblings is not None
        gained = step.incumbent + _gain(step, siblings)
        return jnp.where(siblings.n > 0, gained, jnp.inf)

    def carried(self, step: Step, siblings: Siblings | None) -> jax.Array:
        assert siblings is not None
        gained = step.incumbent + _gain(step, siblings)
        return jnp.where(jnp.isfinite(gained), gained, step.incumbent)


def _gain(step: Step, siblings: Siblings) -> jax.Array:
    known = (step.parent > -jnp.inf) & (siblings.n > 0)
    return jnp.where(known, siblings.mean - step.parent, 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantile(Acceptance):
    """A quantile of the rewards that the step has.

    Attributes:
      q: within (0, 1); None is 1 - 1 / Q.
    """

    q: float | None = None

    @property
    def wants_siblings(self) -> bool:
        return True

    def bar(self, step: Step, siblings: Siblings | None) -> jax.Array:
        assert siblings is not None
        q = jnp.float32(self.q) if self.q is not None else 1.0 - 1.0 / _float(step.quota)
        variance = siblings.squares / _float(siblings.n - 1)
        spread = jnp.sqrt(jnp.where(siblings.n > 1, variance, 0.0))
        return jnp.where(siblings.n > 1, siblings.mean + spread * ndtri(q), jnp.inf)


def _float(count: jax.Array) -> jax.Array:
    return jnp.maximum(count, 1).astype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threshold(Acceptance):
    """A number for each step.

    Attributes:
      bars: of each position in the grid from 1 on that is evaluated.
    """

    bars: tuple[float, ...]

    @property
    def has_quotas(self) -> bool:
        return False

    def bar(self, step: Step, siblings: Siblings | None) -> jax.Array:
        bars = jnp.asarray((jnp.inf, *self.bars), jnp.float32)
        return bars[jnp.minimum(step.stage, len(self.bars))]


def as_acceptance(accept: str, quantile: Any, bar: Any, steps: int) -> Acceptance:
    """A rule from the options of `rbf`.

    Args:
      accept, quantile, bar: of `rbf`.
      steps: evaluated times but the first.

    Raises:
      ValueError, TypeError: naming the argument.
    """
    if accept not in get_args(Accept):
        raise ValueError(f"accept must be one of {', '.join(get_args(Accept))}, got {accept!r}")
    for name, value, owner in (("quantile", quantile, "quantile"), ("bar", bar, "threshold")):
        if value is not None and accept != owner:
            raise ValueError(f"{name} is of accept {owner!r}, got {value!r} with {accept!r}")
    if accept == "quantile":
        if quantile is not None and not 0.0 < quantile < 1.0:
            raise ValueError(f"quantile must lie within 0 and 1, got {quantile}")
        return Quantile(q=None if quantile is None else float(quantile))
    if accept == "threshold":
        if bar is None:
            raise ValueError("bar is missing: accept 'threshold' goes on when a child is above it")
        return Threshold(bars=as_bars(bar, steps, "evaluated times but the first"))
    return Calibrated() if accept == "calibrated" else IMPROVE
