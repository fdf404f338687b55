"""A model behind an OpenAI-compatible endpoint, asked for the first token of its answer.

vLLM, SGLang, llama.cpp's server and OpenAI answer ``POST URL/chat/completions``, with images as
data URLs. What is tried again is what may be answered next time: no connection, no answer in time,
an answer cut short, and HTTP's 408, 429 and 5xx. What was answered is remembered, so that a call
which is made again after a failure asks for the rest alone.
"""

import base64
import hashlib
import io
import json
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from flowsde.remote.client import Patience
from flowsde.remote.connection import Call, Connections, Dialect, Exchange
from flowsde.remote.first_token import Listed, read_listed
from flowsde.remote.problems import OtherVersion, RemoteError, Unavailable
from flowsde.remote.side_by_side import side_by_side
from flowsde.remote.wire import Malformed, Truncated

ENVIRONMENT = "FLOWSDE_JUDGE_TOKEN"
"""Environment variable of the bearer token, which OpenAI calls an API key."""
_RETRIED = (408, 429, *(status for status in range(500, 600) if status != 501))
_MOST = 1 << 20
"""Bytes of an answer."""
_REMEMBERED = 4096
_FIXED = ("model", "messages", "logprobs", "n", "stream")


class Question(NamedTuple):
    """Images uint8 [height, width, 3], each after a label that may be empty, and a text."""

    images: tuple[np.ndarray, ...]
    labels: tuple[str, ...]
    text: str

    def digest(self) -> bytes:
        """That tells questions apart."""
        found = hashlib.blake2b(json.dumps([self.labels, self.text]).encode(), digest_size=16)
        for image in self.images:
            found.update(f"{image.shape}".encode() + image.tobytes())
        return found.digest()

    def content(self) -> list[dict[str, Any]]:
        """The message's."""
        parts: list[dict[str, Any]] = []
        for label, image in zip(self.labels, self.images, strict=True):
            parts += [{"type": "text", "text": label}] if label else []
            parts.append({"type": "image_url", "image_url": {"url": data_url(image)}})
        return [*parts, {"type": "text", "text": self.text}]


def data_url(image: np.ndarray) -> str:
    """A picture uint8 [height, width, 3] as PNG, without loss, in a data URL."""
    from PIL import Image

    file = io.BytesIO()
    # Of higher levels, the time is several times that, and the bytes hardly fewer.
    Image.fromarray(image).save(file, "png", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def check_extra(extra: Mapping[str, Any]) -> None:
    """ValueError or TypeError for what no request may have."""
    if fixed := [name for name in extra if name in _FIXED]:
        raise ValueError(f"extra must not set {fixed[0]}, which a judge sets itself")
    try:
        json.dumps(dict(extra), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"extra must be JSON: {error}") from None


class Chat:
    """A model at an endpoint; any thread may ask.

    Args:
      url: up to and without ``/chat/completions``, like ``http://host:8000/v1``.
      model: as the server calls it; None for the only one that it serves.
      token: sent with every request, or None.
      connect_timeout, read_timeout: seconds.
      insecure: send a token over plain HTTP to another machine.
      patience: with requests.
      max_in_flight: requests at once.
      extra: entries of requests; None removes one.

    Attributes:
      model: as the server calls it.
      settings: entries of every request.
      answering: the model that answers say they are of, from the first on; all must say the same.

    Raises:
      ValueError: naming what is wrong with the URL or the token.
      RemoteError: the server does not say which model it serves.
    """

    def __init__(
        self,
        url: str,
        model: str | None,
        token: str | None,
        *,
        connect_timeout: float,
        read_timeout: float,
        insecure: bool,
        patience: Patience,
        max_in_flight: int,
        extra: Mapping[str, Any],
    ):
        parts = urlsplit(url)
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                "url must be like http://host:8000/v1, without user, password or query (not "
                "shown); a token is an argument"
            )
        if not (parts.path.isascii() and parts.path.isprintable()):
            raise ValueError(f"url must be like http://host:8000/v1, got {url!r:.200}")
        origin, self._path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
        spoken = Dialect("application/json", _RETRIED, _MOST, _detail)
        self._server = Connections(origin, token, connect_timeout, read_timeout, insecure, spoken)
        weakref.finalize(self, self._server.close)
        self._patience, self._max_in_flight = patience, max_in_flight
        self._known: OrderedDict[bytes, Listed] = OrderedDict()
        self._lock = threading.Lock()
        self.answering: str | None = None
        self.model = self._only() if model is None else model
        asked = {"max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 20, **extra}
        self.settings = {"model": self.model} | {k: v for k, v in asked.items() if v is not None}

    def ask(self, questions: Sequence[Question]) -> list[Listed]:
        """The likeliest first tokens of each answer.

        Raises:
          RemoteError: there are none for every question; nothing stands for those that failed.
        """
        call = Call(time.monotonic() + self._patience.deadline)
        each = [(question,) for question in questions]
        name = f"judge {self.model}"
        return side_by_side(name, self._first_token, each, self._max_in_flight, call)

    def _first_token(self, question: Question, call: Call) -> Listed:
        key = question.digest()
        with self._lock:
            if key in self._known:
                return self._known[key]
        message = {"role": "user", "content": question.content()}
        body = json.dumps({**self.settings, "messages": [message]}).encode()
        answer = self._tried(Exchange("POST", f"{self._path}/chat/completions", body), call)
        listed = read_listed(answer)
        with self._lock:
            self._check_model(str(answer.get("model", "")))
            self._known[key] = listed
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return listed

    def _check_model(self, name: str) -> None:
        if self.answering is None:
            self.answering = name
        if name != self.answering:
            raise OtherVersion(
                f"{self._server.url} answered by the model {name!r:.200}, after answers by "
                f"{self.answering!r:.200}"
            )

    def _tried(self, exchange: Exchange, call: Call) -> Any:
        """The JSON of an answer."""
        tried = 0
        while True:
            try:
                return self._server.ask(exchange, _json, call)
            except Unavailable as error:
                failure, pause = str(error), self._patience.pause(tried, error.retry_after)
                tried += 1
            late = time.monotonic() + pause >= call.end
            if late or tried > self._patience.retries or call.stopped.wait(pause):
                why = "no time is left" if late else f"tried {tried} times"
                raise RemoteError(f"{failure} ({why})")

    def _only(self) -> str:
        call = Call(time.monotonic() + self._patience.deadline)
        asked = (Exchange("GET", f"{self._path}/models"),)
        (said,) = side_by_side("judge", self._tried, [asked], 1, call)
        try:
            names = [str(one["id"]) for one in said["data"]]
        except (KeyError, TypeError):
            names = []
        if len(names) != 1:
            raise RemoteError(
                f"{self._server.url} serves {len(names)} models: expected model to be one of "
                f"{', '.join(names[:20]) or 'them'}"[:1000]
            )
        return names[0]

    def close(self) -> None:
        """Close the connections that are kept; the next call opens others."""
        self._server.close()


def _detail(said: Any) -> Any:
    """Why a request was refused, of servers of several kinds."""
    error = said.get("error", said) if isinstance(said, dict) else said
    return error.get("message", error) if isinstance(error, dict) else error


def _json(stream: Any, length: int) -> Any:
    if length > _MOST:
        raise Malformed(f"an answer has at most {_MOST} bytes, got {length}")
    body = stream.read(length)
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        if len(body) < length:
            raise Truncated("the answer is cut short") from None
        raise Malformed("the answer is no JSON") from None
    if not isinstance(found, dict):
        raise Malformed("the answer is no JSON object")
    return found
