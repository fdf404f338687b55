"""InstructBLIP's VQAScore as ``flowsde sample --reward`` takes it: out of a converted folder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flowsde.models.converted.opened import open_as
from flowsde.models.converted.parts import read
from flowsde.models.instructblip.model import FAMILY
from flowsde.models.instructblip.questions import asking
from flowsde.models.instructblip.rewards import instructblip_score
from flowsde.rewards import DeviceReward


class ScoredByInstructBLIP:
    """VQAScore by InstructBLIP out of a converted folder.

    Args:
      folder: of the converted model, with both its tokenizers.
      odds: whether the reward is its log-odds.
    """

    reads_text, on_device = True, True

    def __init__(self, folder: Path, odds: bool = False):
        self._folder, self._odds = folder, odds
        self._asking = asking(folder, open_as(folder, FAMILY).config)

    def load(self, prompts: Sequence[str]) -> tuple[DeviceReward, list[Any]]:
        asking = self._asking.fitting(prompts)
        return self._reward(), [asking(prompt) for prompt in prompts]

    def loaded(self) -> tuple[DeviceReward, Callable[[str], Any]]:
        """The reward, and what it is told of a prompt."""
        return self._reward(), self._asking

    def _reward(self) -> DeviceReward:
        return instructblip_score(read(self._folder, FAMILY), odds=self._odds)
