"""`judge_pairs`: which of two pictures a served vision language model thinks better."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, Unpack

import numpy as np

from flowsde.remote.chat import Chat, Question
from flowsde.remote.first_token import Listed, score, share
from flowsde.remote.problems import RemoteError
from flowsde.rewards.base import RewardError
from flowsde.rewards.endpoint import Asked, Endpoint, chat_with, check_choice, pictures, probed

PAIR = 'Which image shows "{}" better? Answer with A or B alone.'
_LABELS = ("Image A:", "Image B:")


def judge_pairs(
    url: str,
    model: str | None = None,
    question: str = PAIR,
    *,
    answers: Sequence[str] = ("A",),
    against: Sequence[str] = ("B",),
    neither: Literal["error", "tie"] = "error",
    **endpoint: Unpack[Endpoint],
) -> "PairJudge":
    """Which of two pictures a served model thinks better; a `compare` of `flowsde.tournament`.

    It is asked in both orders, two questions a pair, and the log-odds of the first are averaged:

        logit P(a better) = (l(a, b) - l(b, a)) / 2,    l = log P(A) - log P(B)

    A preference for the first or the second place adds the same to both l, and so cancels: without
    `both_orders` of the tournament.

    Args:
      url, model, endpoint: as for `judge`.
      question: after both pictures, labelled "Image A:" and "Image B:"; {} stands for the prompt.
      answers, against: words for the first, and for the second.
      neither: "tie" takes an answer for a tie whose likeliest tokens hold neither; by default that
        is an error.

    Raises:
      ValueError, TypeError: naming the argument.
      RewardError: the server does not answer a question about two grey pictures.

    Example:
      >>> compare = fs.rewards.judge_pairs("http://127.0.0.1:8000/v1")
      >>> images = np.zeros([4, 8, 8, 3], np.float32)
      >>> found = fs.tournament(jax.random.key(0), compare, images, "a red circle")
      >>> found.ranking.shape
      (4,)
    """
    check_choice("neither", neither, ("error", "tie"))
    asked = Asked.checked(question, answers, against)
    chat = chat_with(url, model, **endpoint)
    version = probed(chat, asked, _LABELS, ["pairs", neither])
    return PairJudge(chat, asked, neither == "tie", version)


@dataclasses.dataclass(frozen=True)
class PairJudge:
    """``compare(a, b, cond) -> m floats`` of m pairs: the probability that a is better.

    Attributes:
      version: of model, question and settings.
    """

    chat: Chat = dataclasses.field(repr=False)
    asked: Asked
    neither: bool
    version: str

    def __call__(self, a: np.ndarray, b: np.ndarray, cond: Any) -> np.ndarray:
        """Probabilities float64 [m], those of (b, a) being 1 less these.

        Args:
          a, b: pictures [m, height, width, 3] in [-1, 1], or uint8.
          cond: the prompt, or a list of m.

        Raises:
          RewardError: the server did not answer every question. Those that it did answer are
            remembered: the same call asks for the rest.
        """
        pairs = list(zip(pictures(a, True), pictures(b, True), strict=True))
        prompts = cond if isinstance(cond, list) else [cond] * len(pairs)
        texts = [self.asked.of(prompt) for prompt in prompts]
        each = [Question(pair, _LABELS, text) for pair, text in zip(pairs, texts, strict=True)]
        swapped = [one._replace(images=one.images[::-1]) for one in each]
        if not each:
            return np.zeros(0)
        try:
            odds = np.asarray([self._log_odds(one) for one in self.chat.ask(each + swapped)])
        except RemoteError as error:
            raise RewardError(f"the judge of pairs gave no answer: {error}") from None
        m = len(each)
        return np.asarray([share(0.5 * float(one)) for one in odds[:m] - odds[m:]])

    def _log_odds(self, listed: Listed) -> float:
        first, second = listed.log_of(self.asked.answers), listed.log_of(self.asked.against)
        if self.neither and first is None and second is None:
            return 0.0
        return score(*self.asked.said(listed, False), "log_odds")
