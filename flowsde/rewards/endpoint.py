"""What `judge` and `judge_pairs` have in common: an endpoint, and a question of two answers."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

import numpy as np

from flowsde._checks import check_count, check_positive
from flowsde.pictures import pixels
from flowsde.remote.chat import ENVIRONMENT, Chat, Question, check_extra
from flowsde.remote.client import Patience
from flowsde.remote.first_token import Listed, log_probabilities, plain
from flowsde.remote.problems import RemoteError
from flowsde.rewards.base import RewardError

DEADLINE = 600.0
_GREY = np.full((224, 224, 3), 128, np.uint8)


class Endpoint(TypedDict, total=False):
    """How a served model is asked.

    Attributes:
      token: of the server, which OpenAI calls the API key; FLOWSDE_JUDGE_TOKEN of the environment
        by default. It is neither shown nor kept in results.
      extra: further entries of requests, such as ``{"chat_template_kwargs": {"enable_thinking":
        False}}``; of a model that thinks, the first token is no answer. None removes one.
      connect_timeout, read_timeout: seconds for a connection, and for an answer; 5 and 120.
      deadline: seconds of one call, with all that is tried again; 600.
      retries: of one question, after no answer in time, 408, 429 or 5xx; 6. All else is an error.
      max_in_flight: questions at once; 8.
      insecure: send the token over plain HTTP to another machine, where anyone on the way reads it.
    """

    token: str | None
    extra: Mapping[str, Any] | None
    connect_timeout: float
    read_timeout: float
    deadline: float
    retries: int
    max_in_flight: int
    insecure: bool


def chat_with(url: str, model: str | None, **options: Unpack[Endpoint]) -> Chat:
    """The model at an endpoint, all arguments checked.

    Raises:
      ValueError, TypeError: naming the argument.
      RewardError: the server does not say which model it serves.
    """
    if unknown := [name for name in options if name not in Endpoint.__annotations__]:
        raise TypeError(
            f"{unknown[0]} is no argument of a judge, whose further ones are "
            f"{', '.join(Endpoint.__annotations__)}"
        )
    if not isinstance(url, str) or not (model is None or isinstance(model, str)):
        raise TypeError(f"url and model must be texts, got {url!r:.200} and {model!r:.200}")
    seconds = {
        "connect_timeout": options.get("connect_timeout", 5.0),
        "read_timeout": options.get("read_timeout", 120.0),
    }
    deadline = options.get("deadline", DEADLINE)
    for name, value in {**seconds, "deadline": deadline}.items():
        check_positive(name, value)
    retries = check_count("retries", options.get("retries", 6), 0)
    token, extra = options.get("token"), options.get("extra") or {}
    check_extra(extra)
    try:
        return Chat(
            url,
            model,
            (os.environ.get(ENVIRONMENT) or None) if token is None else token,
            **seconds,
            insecure=options.get("insecure", False),
            patience=Patience(retries=retries, deadline=deadline),
            max_in_flight=check_count("max_in_flight", options.get("max_in_flight", 8)),
            extra=extra,
        )
    except RemoteError as error:
        raise RewardError(str(error)) from None


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question and the words of its two answers."""

    question: str
    answers: tuple[str, ...]
    against: tuple[str, ...]

    @classmethod
    def checked(cls, question: Any, answers: Any, against: Any) -> "Asked":
        """ValueError naming what is no text."""
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"question must be a text, got {question!r:.200}")
        both = _words("answers", answers), _words("against", against)
        if common := {plain(word) for word in both[0]} & {plain(word) for word in both[1]}:
            raise ValueError(f"answers and against must differ, got {min(common)!r} in both")
        return cls(question, *both)

    def of(self, prompt: Any) -> str:
        """The question about a prompt, which may itself hold {}."""
        if "{}" not in self.question:
            return self.question
        if not isinstance(prompt, str):
            raise TypeError(
                f"expected the prompt's text as reward_cond, for {{}} of the question, got "
                f"{type(prompt).__name__}"
            )
        return self.question.replace("{}", prompt)

    def said(self, listed: Listed, neither: bool) -> tuple[float, float]:
        """Log-probabilities of both answers."""
        return log_probabilities(listed, self.answers, self.against, neither=neither)


def probed(chat: Chat, asked: Asked, labels: tuple[str, ...], how: Any) -> str:
    """The version of a judge, once one question shows that it is one, and what the model is.

    Args:
      chat: with the model.
      asked: of it.
      labels: of the pictures of a question.
      how: answers are made a number, JSON.

    Raises:
      RewardError: it answers no such question.
    """
    try:
        chat.ask([Question((_GREY,) * len(labels), labels, asked.of("a grey square"))])
    except RemoteError as error:
        raise RewardError(f"the model {chat.model!r} does not judge pictures: {error}") from None
    all_of_it = [chat.settings, chat.answering, dataclasses.astuple(asked), how]
    return hashlib.sha256(json.dumps(all_of_it, sort_keys=True).encode()).hexdigest()[:32]


def pictures(images: Any, finite: bool = False) -> np.ndarray:
    """Uint8 [n, height, width, 3]; of those that are not finite, anything unless it is an error."""
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"a judge sees pictures [n, height, width, 3], got shape {images.shape}")
    if images.dtype == np.uint8:
        return images
    images = images.astype(np.float32)
    if finite and not np.isfinite(images).all():
        raise ValueError("a judge of pairs sees finite pictures alone, got NaN or infinity")
    return pixels(np.nan_to_num(images, posinf=1.0, neginf=-1.0))


def _words(name: str, words: Any) -> tuple[str, ...]:
    listed = [words] if isinstance(words, str) else list(words)
    if not listed or not all(isinstance(word, str) and word.strip() for word in listed):
        raise ValueError(f"{name} must be words, got {words!r:.200}")
    return tuple(listed)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """ValueError naming the argument."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r:.200}")
