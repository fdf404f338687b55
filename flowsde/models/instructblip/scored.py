"""InstructBLIP's VQAScore as ``flowsde sample --reward`` takes it: out of a converted folder."""

from pathlib import Path

from flowsde.models.common.asked import Asked
from flowsde.models.converted.opened import open_as
from flowsde.models.converted.parts import read
from flowsde.models.instructblip.model import FAMILY
from flowsde.models.instructblip.questions import asking
from flowsde.models.instructblip.rewards import instructblip_score
from flowsde.rewards import DeviceReward


class ScoredByInstructBLIP(Asked):
    """VQAScore by InstructBLIP out of a converted folder.

    Args:
      folder: of the converted model, with both its tokenizers.
      odds: whether the reward is its log-odds.
    """

    def __init__(self, folder: Path, odds: bool = False):
        self._folder, self._odds = folder, odds
        super().__init__(asking(folder, open_as(folder, FAMILY).config))

    def _reward(self) -> DeviceReward:
        return instructblip_score(read(self._folder, FAMILY), odds=self._odds)
