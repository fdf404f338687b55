"""Rewards that `flowsde serve-reward` knows by a name; of JAX, each one compiled for one batch.

The embedded ones are told what `shapes.encode` makes of prompts, the others the prompts themselves.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowsde import shapes
from flowsde._version import __version__
from flowsde.cli.sources.rewards import reward_source
from flowsde.models.clip.model import FAMILY
from flowsde.models.clip.rewards import clip_score, pick_score, text_embeddings
from flowsde.models.common.tokenizers import clip_tokenizer
from flowsde.models.converted.parts import read
from flowsde.remote.served import Served, hash_of_files
from flowsde.rewards.base import Reward

_MOST = 4096
"""Embeddings of prompts that are kept."""


@jax.jit
def _scored(reward: Any, images: jax.Array, cond: Any) -> jax.Array:
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / jnp.float32(127.5) - jnp.float32(1.0)
    return reward(images, cond)


def load(name: str, folders: Sequence[Path]) -> Served:
    """A reward by name: likelihood, rss, clip, pick or aesthetic.

    Args:
      name: as above.
      folders: of converted models, as for ``flowsde sample --reward-model``.

    Raises:
      ValueError, FileNotFoundError: naming the option that is wrong.
    """
    version = hashlib.sha256(f"{name} {__version__}".encode())
    if name in ("likelihood", "rss"):
        if folders:
            raise ValueError(f"--reward-model must be no folder for --reward {name}")
        reward = shapes.load_reward(name)
        for leaf in jax.tree.leaves(reward):
            version.update(np.asarray(leaf).tobytes())
        return Served(partial(_scored, reward), name, version.hexdigest()[:32])
    source = reward_source(name, folders)  # checks name and folders
    hash_of_files(version, folders)
    if name == "aesthetic":
        fn: Any = partial(_untold, source.load([])[0])
    else:
        fn = _OfPrompts(folders[0], pick_score if name == "pick" else clip_score)
    return Served(fn, name, version.hexdigest()[:32])


def _untold(reward: Reward, images: np.ndarray, cond: Any) -> jax.Array:
    return _scored(reward, images, None)


class _OfPrompts:
    """The cosine of images and prompts, whose embeddings are made when they are first asked for."""

    def __init__(self, folder: Path, score: Any):
        self._model = read(folder, FAMILY)
        text = self._model.config.text
        self._tokenizer = clip_tokenizer(folder / "tokenizer", length=text.positions, config=text)
        self._reward = score(self._model)
        self._embed = jax.jit(text_embeddings)
        self._known: OrderedDict[str, jax.Array] = OrderedDict()

    def __call__(self, images: np.ndarray, prompts: Any) -> jax.Array:
        if not isinstance(prompts, list) or not all(isinstance(p, str) for p in prompts):
            raise TypeError("expected reward_cond to be the prompts' texts")
        return _scored(self._reward, images, jnp.stack([self._of(p) for p in prompts]))

    def _of(self, prompt: str) -> jax.Array:
        if prompt not in self._known:
            ids = self._tokenizer([prompt]).ids
            self._known[prompt] = self._embed(self._model, ids)[0]
            if len(self._known) > _MOST:
                self._known.popitem(last=False)
        return self._known[prompt]
