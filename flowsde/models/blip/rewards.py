"""ImageReward as a reward, in JAX and as ``flowsde sample --reward`` takes it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from flowsde.models.blip.model import FAMILY, ImageReward
from flowsde.models.clip.rewards import clip_pixels
from flowsde.models.common.tokenizers import bert_tokenizer
from flowsde.models.converted.opened import open_as
from flowsde.models.converted.parts import read
from flowsde.modules import bind
from flowsde.rewards import DeviceReward, device

LENGTH = 35
"""Tokens of a prompt that the published model was trained with."""


def _score(model: ImageReward, images: jax.Array, tokens: jax.Array) -> jax.Array:
    return model(clip_pixels(images, model.config.vision.image), tokens)


def image_reward(model: ImageReward, *, minibatch: int | None = None) -> DeviceReward:
    """ImageReward of images [n, h, w, 3] in [-1, 1], with mean 0 and deviation 1 over its own data.

    It is told the prompt's tokens, int32 [n, length], as `bert_tokenizer` gives them. Image and
    text are read together: nothing of a prompt can be kept from one image to the next.

    Args:
      model: the published BLIP.
      minibatch: images judged at once; as many as the model evaluates at once by default.
    """
    fn = jax.tree_util.Partial(*bind(_score, model))
    return device(fn, name="imagereward", minibatch=minibatch)


class Scored:
    """ImageReward out of a converted folder.

    Args:
      folder: of the converted model, with bert-base-uncased's tokenizer.
    """

    reads_text, on_device = True, True

    def __init__(self, folder: Path):
        self._folder = folder
        text = open_as(folder, FAMILY).config.text
        length = min(LENGTH, text.positions)
        self._tokenizer = bert_tokenizer(
            folder / "tokenizer", length=length, vocab=text.vocab, pad=text.pad
        )

    def load(self, prompts: Sequence[str]) -> tuple[DeviceReward, list[Any]]:
        reward, told = self.loaded()
        return reward, [told(prompt) for prompt in prompts]

    def loaded(self) -> tuple[DeviceReward, Callable[[str], Any]]:
        """The reward, and what it is told of a prompt."""
        return image_reward(read(self._folder, FAMILY)), self._told

    def _told(self, prompt: str) -> Any:
        return self._tokenizer([prompt]).ids[0]
