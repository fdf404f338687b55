"""The question that CLIP-FlanT5 is asked about an image, in tokens.

Published code writes a chat with a place for the image,

    SYSTEM USER: <image>
    Does this figure show "PROMPT"? Please answer yes or no. ASSISTANT:

and splits the texts before and after that place apart, so that each ends in T5's token of an end.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowsde.models.clip_flant5.model import PAD
from flowsde.models.common.questions import cut, fitted
from flowsde.models.common.tokenizers import Tokenizer, t5_tokenizer

BEFORE = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. USER:"
)
QUESTION = 'Does this figure show "{}"? Please answer yes or no.'
AFTER = " ASSISTANT:"
ANSWER = "Yes"
LENGTH = 256
"""Tokens of the text after the image at most."""


class Question(NamedTuple):
    """What the reward is told of a prompt; of several, each has one more axis in front.

    Attributes:
      before: tokens of the text before the image, int32 [some].
      after: of the text after it, int32 [length], padded.
      answer: of the answer that counts, int32 [few].
    """

    before: Any
    after: Any
    answer: Any


@dataclasses.dataclass(frozen=True)
class Asking:
    """From a prompt to its `Question`.

    Attributes:
      tokenizer: T5's; its length is that of the text after the image.
      question: in which {} stands for the prompt.
      answer: whose probability counts.

    Raises:
      ValueError: naming what is wrong.
    """

    tokenizer: Tokenizer
    question: str = QUESTION
    answer: str = ANSWER

    def __post_init__(self) -> None:
        if self.question.count("{}") != 1:
            raise ValueError(f"question must have one {{}} for the prompt, got {self.question!r}")
        if not self.answer.strip():
            raise ValueError(f"answer must have words, got {self.answer!r}")
        if self.tokenizer.pad != PAD:
            raise ValueError(
                f"the tokenizer is not the model's: it pads by the token {self.tokenizer.pad}, "
                f"expected {PAD}"
            )
        if self._count("") > self.tokenizer.length:
            raise ValueError(
                f"question has {self._count('')} tokens without a prompt, expected at most "
                f"{self.tokenizer.length}"
            )

    def __call__(self, prompt: str) -> Question:
        """The question of a prompt; warns of one that is cut, with what is left out."""
        prompt = cut(prompt, self.tokenizer.length, self._count)
        after = self.tokenizer([self._after(prompt)]).ids[0]
        before, answer = (
            np.asarray(self.tokenizer.whole(text), np.int32) for text in (BEFORE, self.answer)
        )
        return Question(before, after, answer)

    def fitting(self, prompts: Sequence[str]) -> "Asking":
        """The same, with no more padding than these prompts need."""
        longest = max(map(self._count, ["", *prompts]))
        length = fitted(longest, self.tokenizer.length)
        return dataclasses.replace(
            self, tokenizer=dataclasses.replace(self.tokenizer, length=length)
        )

    def _count(self, prompt: str) -> int:
        return len(self.tokenizer.whole(self._after(prompt)))

    def _after(self, prompt: str) -> str:
        # T5's own tokenizer takes any white space for one blank, and none at the ends; of its
        # copies in other formats not all do.
        return " ".join((self.question.replace("{}", prompt) + AFTER).split())


def asking(folder: Path, *, words: int, length: int = LENGTH) -> Asking:
    """`Asking` by the T5 tokenizer in a folder.

    Args:
      folder: with its tokenizer.json.
      words: tokens that the model knows.
      length: of the text after the image.

    Raises:
      ValueError: as of `t5_tokenizer` and `Asking`.
    """
    return Asking(t5_tokenizer(folder, length=length, vocab=words))
