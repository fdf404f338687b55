"""Rewards: ``reward(images, cond) -> [n]``, higher is better.

A plain JAX function is a reward. One with parameters is a
``jax.tree_util.Partial(fn, params)``, so that they are arguments of the compiled search and not
constants in it. `device` gives one a name, a cost and a minibatch; `host` marks a function that
runs outside JAX, `remote` asks one that runs elsewhere, `judge` a served vision language model, and
`judge_pairs` one for the better of two. `weighted`, `minimum`, `lexicographic` and
`normalised` make one reward of several, `cascade` one of a cheap and a dear one.
"""

from flowsde.rewards.base import DeviceReward, HostReward, RewardError, device, host
from flowsde.rewards.cascade import cascade
from flowsde.rewards.client import remote
from flowsde.rewards.judge import judge
from flowsde.rewards.pairs import judge_pairs
from flowsde.rewards.several import lexicographic, minimum, normalised, weighted

__all__ = [
    "DeviceReward",
    "HostReward",
    "RewardError",
    "cascade",
    "device",
    "host",
    "judge",
    "judge_pairs",
    "lexicographic",
    "minimum",
    "normalised",
    "remote",
    "weighted",
]
