"""The question that InstructBLIP is asked about an image, in tokens of both its vocabularies.

    Question: Does this figure show "PROMPT"? Please answer yes or no.

It is read by the Q-Former, in BERT's words, and by the T5, in its own. As in published code, of a
question that is too long the last tokens are read, of either.
"""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowsde._text import shown
from flowsde.models.clip_flant5.model import PAD
from flowsde.models.common.questions import fitted
from flowsde.models.common.tokenizers import Tokenizer, bert_tokenizer, t5_tokenizer
from flowsde.models.instructblip.model import InstructBLIPConfig

QUESTION = 'Question: Does this figure show "{}"? Please answer yes or no.'
ANSWER = "yes"
LENGTH = 128
"""Tokens of a question at most, in either vocabulary."""


class Question(NamedTuple):
    """What the reward is told of a prompt; of several, each has one more axis in front.

    Attributes:
      asked: the question's tokens for the Q-Former, int32 [length], padded.
      text: for the T5, int32 [length], padded.
      answer: of the answer that counts, int32 [few].
    """

    asked: Any
    text: Any
    answer: Any


@dataclasses.dataclass(frozen=True)
class Asking:
    """From a prompt to its `Question`.

    Attributes:
      bert: the Q-Former's tokenizer; its length is that of a question.
      t5: the T5's, as well.
      question: in which {} stands for the prompt.
      answer: whose probability counts.

    Raises:
      ValueError: naming what is wrong.
    """

    bert: Tokenizer
    t5: Tokenizer
    question: str = QUESTION
    answer: str = ANSWER

    def __post_init__(self) -> None:
        if self.question.count("{}") != 1:
            raise ValueError(f"question must have one {{}} for the prompt, got {self.question!r}")
        if not self.answer.strip():
            raise ValueError(f"answer must have words, got {self.answer!r}")
        if self.t5.pad != PAD:
            raise ValueError(
                f"the tokenizer is not the model's: it pads by the token {self.t5.pad}, expected "
                f"{PAD}"
            )

    def __call__(self, prompt: str) -> Question:
        """The question of a prompt; warns of one of which the beginning is left out."""
        text = self._text(prompt)
        cut = [
            f"{len(one.whole(text))} tokens of {name}, of which the last {one.length} are read"
            for name, one in (("BERT", self.bert), ("T5", self.t5))
            if len(one.whole(text)) > one.length
        ]
        if cut:
            warnings.warn(
                f"a prompt has with its question {' and '.join(cut)}: '{shown(text)}'",
                stacklevel=2,
            )
        answer = np.asarray(self.t5.whole(self.answer), np.int32)
        return Question(_last(self.bert, text), _last(self.t5, text), answer)

    def fitting(self, prompts: Sequence[str]) -> "Asking":
        """The same, with no more padding than these prompts need."""
        texts = [self._text(prompt) for prompt in ["", *prompts]]

        def fit(one: Tokenizer) -> Tokenizer:
            longest = max(len(one.whole(text)) for text in texts)
            return dataclasses.replace(one, length=fitted(longest, one.length))

        return dataclasses.replace(self, bert=fit(self.bert), t5=fit(self.t5))

    def _text(self, prompt: str) -> str:
        # As of CLIP-FlanT5: T5's own tokenizer takes any white space for one blank.
        return " ".join(self.question.replace("{}", prompt).split())


def _last(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Tokens int32 [length] of a text, of a longer one the last, behind the token of a start."""
    tokens, length = tokenizer.whole(text), tokenizer.length
    if len(tokens) > length:
        start = [] if tokenizer.start is None else [tokenizer.start]
        tokens = [*start, *tokens[len(tokens) - length + len(start) :]]
    padded = np.full(length, tokenizer.pad, np.int32)
    padded[: len(tokens)] = tokens
    return padded


def asking(folder: Path, config: InstructBLIPConfig) -> Asking:
    """`Asking` by the tokenizers of a converted folder.

    Args:
      folder: of the model, with `tokenizer` (T5's) and `qformer_tokenizer` (BERT's).
      config: of the model.

    Raises:
      ValueError: as of `bert_tokenizer`, `t5_tokenizer` and `Asking`.
    """
    q = config.qformer
    bert = bert_tokenizer(
        folder / "qformer_tokenizer", length=min(LENGTH, q.positions), vocab=q.vocab, pad=q.pad
    )
    return Asking(bert, t5_tokenizer(folder / "tokenizer", length=LENGTH, vocab=config.text.vocab))
