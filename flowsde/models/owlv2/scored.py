"""OWLv2's counts as ``flowsde sample --reward`` takes them: out of a converted folder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flowsde.models.common.tokenizers import clip_tokenizer
from flowsde.models.converted.opened import open_as
from flowsde.models.converted.parts import read
from flowsde.models.owlv2.counts import CLASSES, counts
from flowsde.models.owlv2.model import FAMILY, Owlv2
from flowsde.models.owlv2.rewards import Counting, count_reward, wanted
from flowsde.rewards import DeviceReward

SOFTNESS = 0.5
"""Of the smooth count: a box of score .6 counts by .99, one of .01 by .01."""


@jax.jit
def _queries(model: Owlv2, tokens: jax.Array) -> jax.Array:
    return model.queries(tokens)


class Counted:
    """Minus the squared error of the counts that a prompt names.

    Args:
      folder: of the converted model.
      text: whose counts are wanted; those of the prompt by default.

    Raises:
      CountsError: the text counts nothing, or too much.
    """

    reads_text, on_device = True, False
    """Its gradient is 0."""
    counting = Counting()

    def __init__(self, folder: Path, text: str | None = None):
        self._folder, self._text = folder, text
        if text is not None:
            counts(text)
            self.reads_text = False
        tower = open_as(folder, FAMILY).config.text
        self._tokenizer = clip_tokenizer(folder / "tokenizer", length=tower.positions, config=tower)

    def load(self, prompts: Sequence[str]) -> tuple[DeviceReward, list[Any]]:
        for prompt in prompts:
            self._counts(prompt)  # before weights are read
        reward, told = self.loaded()
        return reward, [told(prompt) for prompt in prompts]

    def loaded(self) -> tuple[DeviceReward, Callable[[str], Any]]:
        """The reward, and what it is told of a prompt, by the text tower."""
        model = read(self._folder, FAMILY)

        def told(prompt: str) -> Any:
            named = self._counts(prompt)
            texts = [queried(name) for name in named]
            # Of as many texts always, which one program encodes.
            tokens = self._tokenizer([*texts, *texts[:1] * (CLASSES - len(texts))]).ids
            return wanted(np.asarray(_queries(model, tokens))[: len(texts)], named)

        return count_reward(model, self.counting), told

    def _counts(self, prompt: str) -> dict[str, int]:
        return counts(prompt if self._text is None else self._text)


class SmoothlyCounted(Counted):
    """Boxes counted by how sure they are."""

    on_device = True
    counting = Counting(softness=SOFTNESS)


def queried(name: str) -> str:
    """What the model is asked to find of a class, as in the published examples."""
    return f"a photo of {'an' if name[0] in 'aeiou' else 'a'} {name}"
