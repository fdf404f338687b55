"""Rewards: ``reward(images, cond) -> [n]``, higher is better.

A plain JAX function is a reward. One with parameters is a
``jax.tree_util.Partial(fn, params)``, so that they are arguments of the compiled search and not
constants in it. `host` marks a function that runs outside JAX.
"""

from flowsde.rewards.base import HostReward, host, reward_name

__all__ = ["HostReward", "host", "reward_name"]
