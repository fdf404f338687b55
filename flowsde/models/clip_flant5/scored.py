"""VQAScore as ``flowsde sample --reward`` takes it: out of a converted folder."""

from pathlib import Path

from flowsde.models.clip_flant5.model import FAMILY
from flowsde.models.clip_flant5.questions import asking
from flowsde.models.clip_flant5.rewards import vqa_score
from flowsde.models.common.asked import Asked
from flowsde.models.converted.opened import open_as
from flowsde.models.converted.parts import read
from flowsde.rewards import DeviceReward


class ScoredByCLIPFlanT5(Asked):
    """VQAScore out of a converted folder.

    Args:
      folder: of the converted model, with Flan-T5's tokenizer.
      odds: whether the reward is its log-odds.
    """

    def __init__(self, folder: Path, odds: bool = False):
        self._folder, self._odds = folder, odds
        words = open_as(folder, FAMILY).config.words
        super().__init__(asking(folder / "tokenizer", words=words))

    def _reward(self) -> DeviceReward:
        return vqa_score(read(self._folder, FAMILY), odds=self._odds)
