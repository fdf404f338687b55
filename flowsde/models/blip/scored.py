"""ImageReward as ``flowsde sample --reward`` takes it: out of a converted folder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flowsde.models.blip.model import FAMILY
from flowsde.models.blip.rewards import image_reward
from flowsde.models.common.tokenizers import bert_tokenizer
from flowsde.models.converted.opened import open_as
from flowsde.models.converted.parts import read
from flowsde.rewards import DeviceReward

LENGTH = 35
"""Tokens of a prompt, as the published model was trained with."""


class ScoredByBLIP:
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
