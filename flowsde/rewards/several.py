"""One reward of several: `weighted`, `minimum`, `lexicographic`.

What each part says of a candidate is kept next to the reward: `flowsde.search.Info.parts` and
`flowsde.Result.parts`, by the parts' names.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._checks import check_float, check_positive
from flowsde._static import check_static
from flowsde.rewards.base import DeviceReward, HostReward, Reward, as_float32, as_reward
from flowsde.rewards.combination import Combination, Lexicographic, Minimum, Rule, Weighted


def weighted(rewards: Sequence[Any], weights: Sequence[float]) -> Reward:
    """The sum of several rewards, each times its weight.

    Args:
      rewards: functions, or those of `device` and `host`, of different names.
      weights: one each, finite and not 0; of a penalty, negative.

    Returns:
      A reward whose cost is that of its parts together; it runs outside JAX if a part does. A
      picture for which a part gives NaN or -inf has no reward.

    Raises:
      ValueError, TypeError: naming the argument.
    """
    numbers = _one_each("weights", weights, rewards)
    if 0.0 in numbers:
        raise ValueError(f"weights must not be 0, got {list(numbers)}: leave that reward out")
    return _combined("weighted", rewards, Weighted(numbers))


def minimum(rewards: Sequence[Any], scales: Sequence[float] | None = None) -> Reward:
    """The least of several rewards: all of them have to be good.

    Args:
      rewards: as for `weighted`.
      scales: positive, by which they are multiplied before they are compared; 1 by default.

    Returns, Raises: as `weighted`.
    """
    given = [1.0] * len(_listed(rewards)) if scales is None else scales
    numbers = _one_each("scales", given, rewards)
    for number in numbers:
        check_positive("scales", number)
    return _combined("minimum", rewards, Minimum(numbers))


def lexicographic(rewards: Sequence[Any], steps: Sequence[float]) -> Reward:
    """The first of several rewards; where that is equal the second, and so on.

    Each but the last is rounded down to whole steps, within which pictures are equal. As a search
    compares numbers, these are packed into one, which float32 limits: it tells some million values
    apart in all, and of a later reward whole steps up to some hundred from 0. Choose steps that
    make them few; beyond that pictures become equal, and never change their order.

    Args:
      rewards: as for `weighted`, the most important first.
      steps: positive, one each, in units of the rewards; 1 for counts. The last one's is the
        difference that matters.

    Returns, Raises: as `weighted`.
    """
    numbers = _one_each("steps", steps, rewards)
    for number in numbers:
        check_positive("steps", number)
    return _combined("lexicographic", rewards, Lexicographic(numbers))


def _listed(rewards: Any) -> list[Any]:
    if not isinstance(rewards, Sequence) or isinstance(rewards, str) or len(rewards) < 2:
        raise ValueError(f"rewards must be a list of at least two, got {rewards!r}")
    return list(rewards)


def _one_each(name: str, values: Any, rewards: Any) -> tuple[float, ...]:
    """Finite numbers, as many as rewards."""
    n = len(_listed(rewards))
    if not isinstance(values, Sequence | np.ndarray) or len(values) != n:
        raise ValueError(f"{name} must be {n} numbers, one for each reward, got {values!r}")
    for value in values:
        check_float(name, value)
    return tuple(float(value) for value in values)


def _combined(kind: str, rewards: Sequence[Any], rule: Rule) -> Reward:
    """A reward of several by a rule."""
    parts = tuple(as_reward(one) for one in _listed(rewards))
    names = tuple(part.name for part in parts)
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"rewards must have different names, got {twice[0]!r} twice: give one another with "
            f"flowsde.rewards.device(fn, name=…) or host(fn, name=…)"
        )
    sizes = [part.minibatch for part in parts if part.minibatch is not None]
    about: dict[str, Any] = {
        "name": f"{kind}({', '.join(names)})",
        "cost": sum(part.cost for part in parts),
        "minibatch": min(sizes, default=None),
        "combination": Combination(names, rule),
    }
    for part in parts:
        if isinstance(part, DeviceReward):
            check_static("reward", part.fn)
    if all(isinstance(part, DeviceReward) for part in parts):
        return DeviceReward(fn=jax.tree_util.Partial(_each, parts), **about)
    return HostReward(fn=_EachOnHost(parts), timeout=None, **about)


def _each(
    parts: tuple[DeviceReward, ...], images: jax.Array, cond: Any
) -> dict[str, jax.Array]:
    """Rewards float32 [n] of every part, by name."""
    return {part.name: as_float32(part(images, cond), jnp) for part in parts}


_on_device = jax.jit(lambda part, images, cond: as_float32(part(images, cond), jnp))


@dataclasses.dataclass(frozen=True)
class _EachOnHost:
    """`_each` of rewards of which some run outside JAX."""

    parts: tuple[Reward, ...]

    def __call__(self, images: np.ndarray, cond: Any) -> dict[str, np.ndarray]:
        return {
            part.name: part(images, cond)
            if isinstance(part, HostReward)
            else np.asarray(_on_device(part, images, cond))
            for part in self.parts
        }
