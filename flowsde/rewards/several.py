"""One reward of several: `weighted`, `minimum`, `lexicographic`, `normalised`.

What each part says of a candidate is kept next to the reward: `flowsde.search.Info.parts` and
`flowsde.Result.parts`, by the parts' names.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowsde import _threads
from flowsde._checks import check_float, check_positive
from flowsde._static import check_static
from flowsde.conds import check_arrays
from flowsde.rewards.base import (
    DeviceReward,
    HostReward,
    Reward,
    RewardError,
    as_float32,
    as_reward,
    exact,
)
from flowsde.rewards.combination import Combination, Lexicographic, Minimum, Rule, Weighted
from flowsde.rewards.objects import Both, OfRewards


def weighted(rewards: Sequence[Any], weights: Sequence[float]) -> Reward:
    """The sum of several rewards, each times its weight.

    Args:
      rewards: functions, or those of `device` and `host`, of different names.
      weights: one each, finite and not 0; of a penalty, negative.

    Returns:
      A reward whose cost is that of its parts together; it runs outside JAX if a part does, and
      calls such parts side by side, each in a thread of its own. A picture for which a part gives
      NaN or -inf has no reward.

    Raises:
      ValueError, TypeError: naming the argument.

    Example:
      >>> left = fs.rewards.device(lambda images, cond: images[:, 0], name="left")
      >>> right = fs.rewards.device(lambda images, cond: images[:, 1], name="right")
      >>> reward = fs.rewards.weighted([left, right], [1.0, -0.5])
      >>> reward(jnp.array([[3.0, 2.0]]), None).tolist()
      [2.0]
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

    Example:
      >>> left = fs.rewards.device(lambda images, cond: images[:, 0], name="left")
      >>> right = fs.rewards.device(lambda images, cond: images[:, 1], name="right")
      >>> reward = fs.rewards.minimum([left, right])
      >>> reward(jnp.array([[3.0, 2.0]]), None).tolist()
      [2.0]
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

    Example:
      >>> left = fs.rewards.device(lambda images, cond: images[:, 0], name="left")
      >>> right = fs.rewards.device(lambda images, cond: images[:, 1], name="right")
      >>> reward = fs.rewards.lexicographic([left, right], [1.0, 1.0])
      >>> scores = reward(jnp.array([[3.0, 0.0], [2.0, 9.0], [3.0, 1.0]]), None)
      >>> np.argsort(-scores).tolist()
      [2, 0, 1]
    """
    numbers = _one_each("steps", steps, rewards)
    for number in numbers:
        check_positive("steps", number)
    return _combined("lexicographic", rewards, Lexicographic(numbers))


def normalised(
    rewards: Sequence[Any], pool: Mapping[str, Any], weights: Sequence[float] | None = None
) -> Reward:
    """The sum of several rewards, each less its mean over a pool and by its standard deviation.

    The pool is what the rewards say of pictures of this very prompt that were drawn before, for
    example of `Result.info.parts` of a best-of-N of a few, which was charged for them. It stays
    fixed: statistics that went on with the search would depend on which candidates a round happens
    to hold, so on width and batch, and a particle kept from one round could not be compared with
    those of the next. The parts that are kept are normalised.

    Args:
      rewards: as for `weighted`.
      pool: by name of the reward, numbers of any shape, of one prompt; NaN and infinite ones are
        left out. Where all are the same, they are the mean and the deviation counts as 1.
      weights: as for `weighted`; 1 by default.

    Returns, Raises: as `weighted`.

    Example:
      >>> left = fs.rewards.device(lambda images, cond: images[:, 0], name="left")
      >>> right = fs.rewards.device(lambda images, cond: images[:, 1], name="right")
      >>> pool = {"left": [1.0, 3.0], "right": [0.0, 2.0]}  # 2 and 1, give or take 1
      >>> reward = fs.rewards.normalised([left, right], pool)
      >>> reward(jnp.array([[3.0, 2.0]]), None).tolist()
      [2.0]
    """
    parts = [as_reward(one) for one in _listed(rewards)]
    given = [1.0] * len(parts) if weights is None else weights
    if not isinstance(pool, Mapping):
        raise TypeError(
            f"pool must map the names of the rewards to what they say of pictures of the prompt "
            f"that were drawn before, got {type(pool).__name__}: statistics of a search under way "
            f"would depend on its width and batches"
        )
    each = [statistics(part.name, pool) for part in parts]
    scaled = [_scaled(part, *own) for part, own in zip(parts, each, strict=True)]
    reward = weighted(scaled, given)
    return dataclasses.replace(reward, name=reward.name.replace("weighted", "normalised", 1))


def statistics(name: str, pool: Mapping[str, Any]) -> tuple[np.float32, np.float32]:
    """Mean and standard deviation of what a reward says of a pool."""
    if name not in pool:
        raise ValueError(f"pool has nothing of reward {name!r}, expected numbers by that name")
    numbers = np.asarray(pool[name], np.float64)
    numbers = numbers[np.isfinite(numbers)]
    if numbers.size < 2:
        raise ValueError(f"pool must have at least two numbers of reward {name!r}")
    deviation = float(numbers.std())
    return np.float32(numbers.mean()), np.float32(deviation or 1.0)


def _scaled(part: Reward, mean: np.float32, deviation: np.float32) -> Reward:
    """(reward - mean) / deviation; of a JAX function both are parameters, and compile nothing."""
    if isinstance(part, HostReward):
        own = dataclasses.replace(part, combination=None, timeout=None)
        return dataclasses.replace(own, fn=_ScaledOnHost(part, mean, deviation))
    fn = jax.tree_util.Partial(_scale, part, jnp.asarray(mean), jnp.asarray(deviation))
    return dataclasses.replace(part, fn=fn, combination=None)


def _scale(
    part: DeviceReward, mean: jax.Array, deviation: jax.Array, images: jax.Array, cond: Any
) -> jax.Array:
    return (as_float32(part(images, cond), jnp) - mean) / deviation


@dataclasses.dataclass(frozen=True)
class _ScaledOnHost(OfRewards):
    part: HostReward
    mean: np.float32
    deviation: np.float32

    def asked(self) -> tuple[Reward, ...]:
        return (self.part,)

    def __call__(self, images: np.ndarray, cond: Any) -> np.ndarray:
        return (self.part(images, cond) - self.mean) / self.deviation


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
    about = about_parts(kind, parts) | {"combination": Combination(_names(parts), rule)}
    if all(isinstance(part, DeviceReward) for part in parts):
        return DeviceReward(fn=jax.tree_util.Partial(_each, parts), **about)
    version = version_of(parts)
    return HostReward(fn=_EachOnHost(parts), timeout=None, version=version, **about)


def _names(parts: Sequence[Reward]) -> tuple[str, ...]:
    return tuple(part.name for part in parts)


def about_parts(kind: str, parts: Sequence[Reward]) -> dict[str, Any]:
    """Name, cost and minibatch of a reward of several; ValueError for parts that cannot be."""
    names = _names(parts)
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"rewards must have different names, got {twice[0]!r} twice: give one another with "
            f"flowsde.rewards.device(fn, name=…) or host(fn, name=…)"
        )
    sizes = [part.minibatch for part in parts if part.minibatch is not None]
    shown = {part.latents: part.name for part in parts}
    if len(shown) > 1:
        raise ValueError(
            f"rewards must all be shown the same, got {shown[True]!r} of latents and "
            f"{shown[False]!r} of images"
        )
    for part in parts:
        if isinstance(part, DeviceReward):
            check_static("reward", part.fn)
    return {
        "name": f"{kind}({', '.join(names)})",
        "cost": sum(part.cost for part in parts),
        "minibatch": min(sizes, default=None),
        "latents": parts[0].latents,
    }


def version_of(parts: Sequence[Reward]) -> str | None:
    """Versions of those outside JAX that have one."""
    versions = {p.name: p.version for p in parts if isinstance(p, HostReward) and p.version}
    return ", ".join(f"{name} {own}" for name, own in versions.items()) or None


def _each(parts: tuple[DeviceReward, ...], images: jax.Array, cond: Any) -> dict[str, jax.Array]:
    """Rewards float32 [n] of every part, by name."""
    return {part.name: as_float32(part(images, cond), jnp) for part in parts}


_on_device = jax.jit(lambda part, images, cond: as_float32(part(images, cond), jnp))


@dataclasses.dataclass(frozen=True)
class _EachOnHost(OfRewards):
    """`_each` of rewards of which some run outside JAX."""

    parts: tuple[Reward, ...]

    def asked(self) -> tuple[Reward, ...]:
        return self.parts

    def __call__(self, images: np.ndarray, cond: Any) -> dict[str, np.ndarray]:
        return each_on_host(self.parts, images, cond)


def each_on_host(parts: Sequence[Reward], images: np.ndarray, cond: Any) -> dict[str, np.ndarray]:
    """Rewards float32 [n] of every part, by name."""
    on_device = [part for part in parts if isinstance(part, DeviceReward)]
    given = cond.cond if isinstance(cond, Both) else cond
    for part in on_device:
        check_arrays(f"cond of reward {part.name!r}, which is in JAX,", given)
    # These are computed while those outside JAX are waited for.
    said = {part.name: _on_device(exact(part, given), images, given) for part in on_device}
    said |= _side_by_side([p for p in parts if isinstance(p, HostReward)], images, cond)
    return {part.name: np.asarray(said[part.name]) for part in parts}


def _side_by_side(parts: list[HostReward], images: np.ndarray, cond: Any) -> dict[str, np.ndarray]:
    """Rewards of parts by name, each in a thread of its own; what one raises when all have ended.

    So the failure of one leaves no other behind, which would run into the next round. One that is
    given up at its timeout has only its own copies to write to.
    """
    given = [jax.tree.map(_copied, (images, cond)) for _ in parts]
    if len(parts) == 1:
        return {parts[0].name: parts[0](*given[0])}
    lines = [_threads.Line(f"reward {part.name}") for part in parts]
    try:
        under_way = [
            line.submit(part, *own) for line, part, own in zip(lines, parts, given, strict=True)
        ]
        for one in under_way:
            with suppress(RewardError):
                _threads.wait(one)
        return {part.name: one.result() for part, one in zip(parts, under_way, strict=True)}
    finally:
        for line in lines:
            line.close()


def _copied(leaf: Any) -> Any:
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf
