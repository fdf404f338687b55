"""CLIP's rewards as ``flowsde sample --reward`` takes them: out of converted folders."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from flowsde.models import aesthetic
from flowsde.models.clip import rewards
from flowsde.models.clip.model import CLIP, FAMILY
from flowsde.models.common.tokenizers import clip_tokenizer
from flowsde.models.converted.opened import open_as
from flowsde.models.converted.parts import read
from flowsde.models.family import Family
from flowsde.rewards import DeviceReward


@jax.jit
def _embed(model: CLIP, tokens: jax.Array) -> jax.Array:
    return rewards.text_embeddings(model, tokens)


class Cosine:
    """Of image and prompt, by a CLIP; it is told the prompt's embedding.

    Args:
      folder: of the converted CLIP.
      score: `clip_score`, `pick_score` or `hps_score` of a version.
      family: that it must be of.
    """

    reads_text, on_device = True, True

    def __init__(
        self, folder: Path, score: Callable[[CLIP], DeviceReward], family: Family = FAMILY
    ):
        self._folder, self._score, self._family = folder, score, family
        text = open_as(folder, family).config.text
        self._tokenizer = clip_tokenizer(folder / "tokenizer", length=text.positions, config=text)

    def load(self, prompts: Sequence[str]) -> tuple[DeviceReward, list[Any]]:
        # The image tower alone stays.
        reward, told = self.loaded()
        return reward, [told(prompt) for prompt in prompts]

    def loaded(self) -> tuple[DeviceReward, Callable[[str], Any]]:
        """The reward, and what it is told of a prompt, by the text tower."""
        model = read(self._folder, self._family)

        def told(prompt: str) -> Any:
            return _embed(model, self._tokenizer([prompt]).ids)[0]

        return self._score(model), told


class Aesthetic:
    """LAION's score, of a CLIP and a head.

    Args:
      tower: folder of the converted CLIP.
      head: of the converted head.
    """

    reads_text, on_device = False, True

    def __init__(self, tower: Path, head: Path):
        self._tower, self._head = tower, head
        width = open_as(tower, FAMILY).config.vision.projection
        wanted = open_as(head, aesthetic.FAMILY).config.widths[0]
        if width != wanted:
            raise ValueError(
                f"the head of {head} takes embeddings of {wanted} features, got {width} of {tower}"
            )

    def load(self, prompts: Sequence[str]) -> tuple[DeviceReward, list[Any]]:
        vision = read(self._tower, FAMILY).vision
        reward = rewards.aesthetic(vision, read(self._head, aesthetic.FAMILY))
        return reward, [None] * len(prompts)
