"""What Qwen3-VL is asked about an image, in tokens.

Published code writes a chat, without a system's part,

    <|im_start|>user
    <|vision_start|>IMAGE<|vision_end|>QUESTION<|im_end|>
    <|im_start|>assistant

of which the text before the image is the same for all questions, and what counts is the first token
of the answer. A question is about the whole prompt ('Does this figure show "PROMPT"?'), about one
thing that it says (an `Atom`), or about a number ("How many").
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowsde._text import shown
from flowsde.models.common.questions import cut, fitted
from flowsde.models.common.tokenizers import Tokenizer, qwen3_tokenizer
from flowsde.models.owlv2.counts import CLASSES, CountsError, checked

BEFORE = "<|im_start|>user\n<|vision_start|>"
AFTER = "<|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n"
QUESTION = 'Does this figure show "{}"? Please answer Yes or No.'
"""VQAScore's."""
HOW_MANY = 'How many objects of the kind "{}" does this image show? Answer with a single digit.'
LENGTH = 256
"""Tokens of a question at most, with what is around it."""
DIGITS = tuple("0123456789")
_SPECIAL = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
"""What makes a chat, and is no text."""


class Asked(NamedTuple):
    """What the judge is told of a prompt; of several, each has one more axis in front.

    Attributes:
      before: tokens of the text before the image, int32 [some].
      texts: of each question after it, int32 [questions, length], padded.
      last: place of the last token of each, int32 [questions].
      answers: tokens of the words that count for each, int32 [questions, words]; -1 is none.
      against: of those that count against it, as well.
      weight: float32 [questions], 0 where there is no question.
    """

    before: Any
    texts: Any
    last: Any
    answers: Any
    against: Any
    weight: Any


class Counted(NamedTuple):
    """What the counting judge is told of a prompt; of several, each has one more axis in front.

    Attributes:
      before, texts, last: as of `Asked`.
      digits: tokens of 0 to 9, int32 [10].
      wanted: how many, float32 [questions]; -1 where there is no question.
    """

    before: Any
    texts: Any
    last: Any
    digits: Any
    wanted: Any


@dataclasses.dataclass(frozen=True)
class Atom:
    """One thing that an image should show.

    Attributes:
      question: as it is asked, such as "Is the cube red? Answer in one word."
      answers: words of one token each, whose probabilities are added; each spelling that counts.
      against: words that count against it, for formulas that compare.
    """

    question: str
    answers: tuple[str, ...] = ("Yes",)
    against: tuple[str, ...] = ("No",)


@dataclasses.dataclass(frozen=True)
class Asking:
    """From prompts, atoms and counts to what the judge is told.

    Attributes:
      tokenizer: Qwen3's, with no text around; its length is that of a question.
      question: in which {} stands for the prompt.
      answers, against: as of an `Atom`, of the question about a prompt.

    Raises:
      ValueError: naming what is wrong.
    """

    tokenizer: Tokenizer
    question: str = QUESTION
    answers: tuple[str, ...] = ("Yes",)
    against: tuple[str, ...] = ("No",)

    def __post_init__(self) -> None:
        if self.question.count("{}") != 1:
            raise ValueError(f"question must have one {{}} for the prompt, got {self.question!r}")
        for token in _SPECIAL[:5]:
            if len(self.tokenizer.whole(token)) != 1:
                raise ValueError(f"the tokenizer is not the model's: {token} is no token of it")
        for name in ("answers", "against"):
            self._words(name, getattr(self, name))
        if self._count("") > self.tokenizer.length:
            raise ValueError(
                f"question has {self._count('')} tokens without a prompt, expected at most "
                f"{self.tokenizer.length}"
            )

    def __call__(self, prompt: str) -> Asked:
        """The question about a prompt; warns of one that is cut, with what is left out.

        Raises:
          ValueError: the prompt has a token in it that makes a chat.
        """
        prompt = cut(prompt, self.tokenizer.length, self._count)
        atom = Atom(self.question.replace("{}", prompt), self.answers, self.against)
        return self._asked([atom], 1, (len(self.answers), len(self.against)))

    def fitting(self, prompts: Sequence[str]) -> "Asking":
        """The same, with no more padding than these prompts need."""
        return self._of_length(max(map(self._count, prompts), default=0))

    def atoms(self, each: Sequence[Sequence[Atom]]) -> list[Asked]:
        """What the judge is told of several prompts, of each some atoms, alike in shape.

        Raises:
          ValueError: there are none of a prompt; a question is too long, or has a token in it that
            makes a chat; or an answer is no single token.
        """
        if not each or not all(each):
            raise ValueError(f"atoms must be some of each prompt, got {[len(own) for own in each]}")
        every = [atom for own in each for atom in own]
        alike = self._of_length(max(len(self._tokens(atom.question)) for atom in every))
        words = max(len(atom.answers) for atom in every), max(len(atom.against) for atom in every)
        return [alike._asked(own, max(map(len, each)), words) for own in each]

    def for_counts(self, names: Sequence[str], room: int = 0) -> "Asking":
        """The same, with no more padding than counts of these classes need, and `room` more."""
        longest = max(len(self._tokens(_how_many(name))) for name in ["", *names])
        return self._of_length(longest + room)

    def counts(self, wanted: Mapping[str, int], places: int = CLASSES) -> Counted:
        """What the counting judge is told of how many there should be of some classes.

        Args:
          wanted: 0 to 9 by class.
          places: of classes, alike for prompts that are judged together.

        Raises:
          CountsError: more than 9 are wanted of a class, or as of `owlv2.counts.checked`.
          ValueError: more classes than places; a class' name is too long, or has a token in it that
            makes a chat.
        """
        for name, number in checked(wanted).items():
            if number >= len(DIGITS):
                raise CountsError(
                    f"the count of '{shown(name)}' must be 0 to {len(DIGITS) - 1}, which one digit "
                    f"says, got {number}"
                )
        if len(wanted) > places:
            raise ValueError(f"places must be at least {len(wanted)}, got {places}")
        texts, last = self._padded([_how_many(name) for name in wanted], places)
        free = [-1] * (places - len(wanted))
        return Counted(
            self._before(),
            texts,
            last,
            np.asarray(self._words("digits", DIGITS), np.int32),
            np.asarray([*wanted.values(), *free], np.float32),
        )

    def _asked(self, atoms: Sequence[Atom], places: int, words: tuple[int, int]) -> Asked:
        texts, last = self._padded([atom.question for atom in atoms], places)
        filled = [*atoms, *[atoms[0]] * (places - len(atoms))]
        answers = _rectangle([self._words("answers", atom.answers) for atom in filled], words[0])
        against = _rectangle([self._words("against", atom.against) for atom in filled], words[1])
        weight = (np.arange(places) < len(atoms)).astype(np.float32)
        return Asked(self._before(), texts, last, answers, against, weight)

    def _padded(self, questions: Sequence[str], places: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [places, length] and the place of each last one; the first fills up."""
        texts = np.full((places, self.tokenizer.length), self.tokenizer.pad, np.int32)
        last = np.zeros(places, np.int32)
        for i in range(places):
            question = questions[i if i < len(questions) else 0]
            tokens = self._tokens(question)
            if len(tokens) > self.tokenizer.length:
                raise ValueError(
                    f"a question has {len(tokens)} tokens, expected at most "
                    f"{self.tokenizer.length}: '{shown(question)}'"
                )
            texts[i, : len(tokens)], last[i] = tokens, len(tokens) - 1
        return texts, last

    def _words(self, name: str, words: Sequence[str]) -> list[int]:
        """A token of each word."""
        if isinstance(words, str) or not words:
            raise ValueError(f"{name} must be words, got {words!r}")
        found = []
        for word in words:
            tokens = self.tokenizer.whole(word)
            if len(tokens) != 1:
                raise ValueError(
                    f"{name} must be words of one token each, got {word!r} of {len(tokens)}"
                )
            found += tokens
        return found

    def _before(self) -> np.ndarray:
        return np.asarray(self.tokenizer.whole(BEFORE), np.int32)

    def _of_length(self, longest: int) -> "Asking":
        length = fitted(max(longest, self._count("")), self.tokenizer.length)
        return dataclasses.replace(
            self, tokenizer=dataclasses.replace(self.tokenizer, length=length)
        )

    def _count(self, prompt: str) -> int:
        return len(self._tokens(self.question.replace("{}", prompt)))

    def _tokens(self, question: str) -> list[int]:
        for token in _SPECIAL:
            if token in question:
                raise ValueError(
                    f"'{shown(question)}' has {token} in it, which is no text for this model"
                )
        return self.tokenizer.whole(AFTER.replace("{}", question))


def _how_many(name: str) -> str:
    return HOW_MANY.replace("{}", name)


def _rectangle(rows: Sequence[Sequence[int]], width: int) -> np.ndarray:
    """Rows filled up by -1."""
    return np.asarray([[*row, *[-1] * (width - len(row))] for row in rows], np.int32)


def asking(folder: Path, *, vocab: int, length: int = LENGTH) -> Asking:
    """`Asking` by the Qwen3 tokenizer in a folder.

    Args:
      folder: with its tokenizer.json.
      vocab: tokens that the model knows.
      length: of a question.

    Raises:
      ValueError: as of `qwen3_tokenizer` and `Asking`.
    """
    tokenizer = qwen3_tokenizer(folder, length=length, vocab=vocab)
    return Asking(dataclasses.replace(tokenizer, around=("", "")))
