"""Qwen3-VL's rewards as ``flowsde sample --reward`` takes them: out of a converted folder."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flowsde.models.common.asked import Asked
from flowsde.models.converted.opened import open_as
from flowsde.models.converted.parts import read
from flowsde.models.owlv2.counts import counts
from flowsde.models.qwen3_vl.atoms import Atoms, AtomsError
from flowsde.models.qwen3_vl.model import FAMILY
from flowsde.models.qwen3_vl.questions import Asking, asking
from flowsde.models.qwen3_vl.rewards import Combine, Formula, Judging, count_judge, judge
from flowsde.rewards import DeviceReward

_ROOM = 32
"""Tokens of a class' name, where prompts are not known before."""


def _asking(folder: Path) -> Asking:
    return asking(folder / "tokenizer", vocab=open_as(folder, FAMILY).config.text.vocab)


class JudgedByQwen3VL(Asked):
    """Whether an image shows its prompt, out of a converted folder.

    Args:
      folder: of the converted model, with its tokenizer.
      formula: as of `Judging`.
    """

    def __init__(self, folder: Path, formula: Formula = "probability"):
        self._folder, self._judging = folder, Judging(formula=formula)
        super().__init__(_asking(folder))

    def _reward(self) -> DeviceReward:
        return judge(read(self._folder, FAMILY), self._judging)


class AskedByQwen3VL:
    """The mean of what it answers to several questions about a prompt, each by P of its answers.

    Args:
      folder: of the converted model, with its tokenizer.
      atoms: of each prompt.
      combine: as of `Judging`.

    Raises:
      AtomsError: a question is too long, or an answer is no single token.
    """

    reads_text, on_device = True, True

    def __init__(self, folder: Path, atoms: Atoms, combine: Combine = "mean"):
        self._folder, self._atoms = folder, atoms
        self._judging = Judging(combine=combine)
        self._asking = _asking(folder)
        self._of_all()

    def load(self, prompts: Sequence[str]) -> tuple[DeviceReward, list[Any]]:
        each = list(map(self._atoms, prompts))  # before weights are read
        return self._reward(), self._asking.atoms(each)

    def loaded(self) -> tuple[DeviceReward, Callable[[str], Any]]:
        """The reward, and what it is told of a prompt: of all alike in shape."""
        told = dict(zip(self._atoms.each, self._of_all(), strict=True))
        return self._reward(), lambda prompt: told[self._atoms.key(prompt)]

    def _of_all(self) -> list[Any]:
        try:
            return self._asking.atoms([*self._atoms.each.values()])
        except ValueError as error:
            raise AtomsError(str(error)) from None

    def _reward(self) -> DeviceReward:
        made = judge(read(self._folder, FAMILY), self._judging)
        mean = self._judging.combine == "mean"
        return dataclasses.replace(
            made, name="qwen3vl-atoms" if mean else "qwen3vl-atoms-geometric"
        )


class CountedByQwen3VL:
    """Minus the squared error of the counts that a prompt names.

    Args:
      folder: of the converted model, with its tokenizer.
      text: whose counts are wanted; those of the prompt by default.

    Raises:
      CountsError: the text counts nothing, or too much.
    """

    reads_text, on_device = True, True

    def __init__(self, folder: Path, text: str | None = None):
        self._folder, self._text = folder, text
        self._asking = _asking(folder)
        if text is not None:
            self._told([text])
            self.reads_text = False

    def load(self, prompts: Sequence[str]) -> tuple[DeviceReward, list[Any]]:
        told = self._told(prompts)  # before weights are read
        return self._reward(), told

    def loaded(self) -> tuple[DeviceReward, Callable[[str], Any]]:
        """The reward, and what it is told of a prompt."""
        asking = self._asking.for_counts([], room=_ROOM)
        return self._reward(), lambda prompt: asking.counts(self._counts(prompt))

    def _told(self, prompts: Sequence[str]) -> list[Any]:
        each = [self._counts(prompt) for prompt in prompts]
        asking = self._asking.for_counts([name for wanted in each for name in wanted])
        places = max(map(len, each), default=1)
        return [asking.counts(wanted, places) for wanted in each]

    def _counts(self, prompt: str) -> dict[str, int]:
        return counts(prompt if self._text is None else self._text)

    def _reward(self) -> DeviceReward:
        return count_judge(read(self._folder, FAMILY))
