"""Rewards that `flowsde serve-reward` knows by a name; of JAX, each one compiled for one batch.

The embedded ones are told what `shapes.encode` makes of prompts, the others the prompts themselves.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowsde import shapes
from flowsde._version import __version__
from flowsde.cli.settings import CHOICES
from flowsde.cli.sources.rewards import reward_source
from flowsde.remote.served import Served, hash_of_files
from flowsde.rewards.base import DeviceReward, Reward

EMBEDDED = CHOICES["reward"]
"""Those of the embedded model."""
_MOST = 4096
"""Prompts of which it is kept what the reward is told."""


@jax.jit
def _scored(reward: Any, images: jax.Array, cond: Any) -> jax.Array:
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / jnp.float32(127.5) - jnp.float32(1.0)
    return reward(images, cond)


def load(name: str, folders: Sequence[Path], questions: Path | None = None) -> Served:
    """A reward by name.

    Args:
      name: likelihood, rss, or one of `KNOWN` but none.
      folders: of converted models, as for ``flowsde sample --reward-model``.
      questions: of a reward that asks them, as for ``flowsde sample --reward-questions``.

    Raises:
      ValueError, FileNotFoundError: naming the option that is wrong.
    """
    if name in EMBEDDED:
        version = version_of(name, folders)
        return Served(partial(_scored, shapes.load_reward(name)), name, version)
    source: Any = reward_source(name, folders, questions=questions)  # checks them
    if source.reads_text:
        fn: Any = _OfPrompts(*source.loaded())
    else:
        fn = partial(_untold, source.load([])[0])
    return Served(fn, name, version_of(name, folders, questions))


def version_of(name: str, folders: Sequence[Path], questions: Path | None = None) -> str:
    """The version of a reward that `load` would load."""
    version = hashlib.sha256(f"{name} {__version__}".encode())
    if name in EMBEDDED:
        if folders:
            raise ValueError(f"--reward-model must be no folder for --reward {name}")
        for leaf in jax.tree.leaves(shapes.load_reward(name)):
            version.update(np.asarray(leaf).tobytes())
    else:
        hash_of_files(version, folders)
        if questions is not None:
            version.update(questions.read_bytes())
    return version.hexdigest()[:32]


def _untold(reward: Reward, images: np.ndarray, cond: Any) -> jax.Array:
    return _scored(reward, images, None)


class _OfPrompts:
    """A reward of images and prompts; what it is told of them is made when they are first asked
    for."""

    def __init__(self, reward: DeviceReward, told: Callable[[str], Any]):
        self._reward, self._told = reward, told
        self._known: OrderedDict[str, Any] = OrderedDict()

    def __call__(self, images: np.ndarray, prompts: Any) -> jax.Array:
        if not isinstance(prompts, list) or not all(isinstance(p, str) for p in prompts):
            raise TypeError("expected reward_cond to be the prompts' texts")
        told = jax.tree.map(lambda *each: jnp.stack(each), *map(self._of, prompts))
        return _scored(self._reward, images, told)

    def _of(self, prompt: str) -> Any:
        if prompt not in self._known:
            self._known[prompt] = self._told(prompt)
            if len(self._known) > _MOST:
                self._known.popitem(last=False)
        return self._known[prompt]
