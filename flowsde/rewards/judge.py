"""`judge`: a vision language model behind an OpenAI-compatible endpoint, as a reward.

It is asked for one token, and what counts are the probabilities of words as that token, whichever
was drawn (`flowsde.remote.first_token`).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, Unpack, get_args

import numpy as np

from flowsde._checks import check_count, check_non_negative
from flowsde.remote.chat import Chat, Question
from flowsde.remote.first_token import Formula, score
from flowsde.rewards.base import HostReward
from flowsde.rewards.endpoint import (
    DEADLINE,
    Asked,
    Endpoint,
    chat_with,
    check_choice,
    pictures,
    probed,
)

QUESTION = 'Does this figure show "{}"? Please answer Yes or No.'
"""VQAScore's."""
_LATE = 30.0
"""Seconds that a call may take after its deadline, which ends it by itself."""


def judge(
    url: str,
    model: str | None = None,
    question: str = QUESTION,
    *,
    answers: Sequence[str] = ("Yes",),
    against: Sequence[str] = ("No",),
    formula: Formula = "log_odds",
    neither: Literal["error", "no"] = "error",
    name: str | None = None,
    cost: float = 0.0,
    minibatch: int | None = None,
    **endpoint: Unpack[Endpoint],
) -> HostReward:
    """VQAScore by a served model: how sure it is that a picture shows its prompt; a host reward.

    The server (vLLM, SGLang, llama.cpp, OpenAI) is asked once a picture, which is sent as PNG, and
    tells the likeliest first tokens of its answer. P(yes) is the sum over those that spell one of
    `answers`. Where none does, it is the least probability listed, or what those listed leave of 1
    if that is less: an upper bound, and never 0. So is P(no) of `against`.

        log_odds       log P(yes) - log P(no)
        probability    P(yes)
        share          P(yes) / (P(yes) + P(no))

    The server is asked one question now, about a grey picture, so that a wrong key, or a model that
    sees no pictures or tells no probabilities, is known before a search begins. A search goes on
    with the same model, question and settings alone, at whatever URL. A picture that is not finite
    is not asked about, and has the reward NaN.

    Args:
      url: up to and without ``/chat/completions``, such as ``http://127.0.0.1:8000/v1``.
      model: as the server calls it; the only one that it serves, by default.
      question: in which {} stands for the prompt, a text of `reward_cond`; it may have none.
      answers, against: words, each of them one token of the model: a longer one is never listed.
        Capitals and blanks around them do not matter.
      formula: as above.
      neither: "no" takes an answer for no whose likeliest tokens hold neither, so that P(no) is
        1 - P(yes); by default that is an error.
      name: for messages and parts; "judge(MODEL)" by default.
      cost, minibatch: as for `device`.
      endpoint: token, extra, connect_timeout, read_timeout, deadline, retries, max_in_flight and
        insecure, as `flowsde.rewards.endpoint.Endpoint` says.

    Raises:
      ValueError, TypeError: naming the argument.
      RewardError: the server does not answer the question.

    Example:
      >>> reward = fs.rewards.judge("http://127.0.0.1:8000/v1", minibatch=4)
      >>> reward(np.zeros([2, 8, 8, 3], np.float32), ["a red circle", "a blue square"]).shape
      (2,)
    """
    check_choice("formula", formula, get_args(Formula))
    check_choice("neither", neither, ("error", "no"))
    check_non_negative("cost", cost)
    size = None if minibatch is None else check_count("minibatch", minibatch)
    asked = Asked.checked(question, answers, against)
    chat = chat_with(url, model, **endpoint)
    version = probed(chat, asked, ("",), ["judge", formula, neither])
    own = f"judge({chat.model})" if name is None else name
    late = endpoint.get("deadline", DEADLINE) + _LATE
    fn = _Judge(chat, asked, formula, neither == "no")
    return HostReward(fn, own, float(cost), size, late, version)


@dataclasses.dataclass(frozen=True)
class _Judge:
    chat: Chat = dataclasses.field(repr=False)
    asked: Asked
    formula: Formula
    neither: bool

    def __call__(self, images: np.ndarray, cond: Any) -> np.ndarray:
        shown = pictures(images)
        finite = [i for i, image in enumerate(images) if np.isfinite(image).all()]
        prompts = cond if isinstance(cond, list) else [cond] * len(images)
        each = [Question((shown[i],), ("",), self.asked.of(prompts[i])) for i in finite]
        rewards = np.full(len(images), np.nan)
        for i, listed in zip(finite, self.chat.ask(each) if each else (), strict=True):
            rewards[i] = score(*self.asked.said(listed, self.neither), self.formula)
        return rewards
