"""The reward protocol: names, and functions that run outside JAX."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class HostReward:
    """A reward outside JAX: NumPy images [n, ...] and cond in, n floats out."""

    fn: Callable[[np.ndarray, Any], Any]
    name: str

    def __call__(self, images: np.ndarray, cond: Any) -> np.ndarray:
        """Rewards float32 [n]; ValueError if the function returns anything else."""
        rewards = np.asarray(self.fn(images, cond))
        check_rewards(self.name, rewards, images.shape[0])
        return rewards.astype(np.float32)


def host(fn: Callable[[np.ndarray, Any], Any], name: str | None = None) -> HostReward:
    """Mark a reward that runs outside JAX: PyTorch, an HTTP service, a human.

    Args:
      fn: ``fn(images, cond) -> n floats`` on NumPy arrays with a leading axis n.
      name: for messages; the function's own by default.
    """
    if not callable(fn):
        raise TypeError(f"fn must be callable, fn(images, cond), got {fn!r}")
    return HostReward(fn, reward_name(fn) if name is None else name)


def reward_name(reward: Any) -> str:
    """What messages call a reward."""
    if isinstance(reward, HostReward):
        return reward.name
    inner = getattr(reward, "func", reward)
    return getattr(inner, "__name__", type(inner).__name__)


def check_rewards(name: str, rewards: Any, n: int) -> None:
    """Raise unless `rewards` are n floating-point numbers."""
    if not hasattr(rewards, "shape") or not hasattr(rewards, "dtype"):
        raise TypeError(f"reward {name!r} returned {rewards!r}, expected an array of shape ({n},)")
    if rewards.shape != (n,) or not jnp.issubdtype(rewards.dtype, jnp.floating):
        raise ValueError(
            f"reward {name!r} returned shape {rewards.shape} and dtype {rewards.dtype}, "
            f"expected shape ({n},) and a floating dtype"
        )
