"""VQAScore as ``flowsde sample --reward`` takes it: out of a converted folder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flowsde.models.clip_flant5.model import FAMILY
from flowsde.models.clip_flant5.questions import asking
from flowsde.models.clip_flant5.rewards import vqa_score
from flowsde.models.converted.opened import open_as
from flowsde.models.converted.parts import read
from flowsde.rewards import DeviceReward


class ScoredByCLIPFlanT5:
    """VQAScore out of a converted folder.

    Args:
      folder: of the converted model, with Flan-T5's tokenizer.
      odds: whether the reward is its log-odds.
    """

    reads_text, on_device = True, True

    def __init__(self, folder: Path, odds: bool = False):
        self._folder, self._odds = folder, odds
        words = open_as(folder, FAMILY).config.words
        self._asking = asking(folder / "tokenizer", words=words)

    def load(self, prompts: Sequence[str]) -> tuple[DeviceReward, list[Any]]:
        asking = self._asking.fitting(prompts)
        return self._reward(), [asking(prompt) for prompt in prompts]

    def loaded(self) -> tuple[DeviceReward, Callable[[str], Any]]:
        """The reward, and what it is told of a prompt."""
        return self._reward(), self._asking

    def _reward(self) -> DeviceReward:
        return vqa_score(read(self._folder, FAMILY), odds=self._odds)
