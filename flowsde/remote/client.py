"""The client: images in chunks to whichever server is free, tried again where that may help.

What is tried again is what may be answered next time: no connection, no answer in time, an answer
cut short, and HTTP's 408, 429, 502, 503 and 504, at a growing distance, or at that of Retry-After.
A request is the same bytes each time, by which a server knows it. All else fails at once: an answer
of another version, a refusal, scores that are not n finite numbers.
"""

import json
import random
import time
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from flowsde.pictures import pixels
from flowsde.remote.connection import Call, Connections, Exchange
from flowsde.remote.messages import (
    INFO,
    PROTOCOL,
    SCORE,
    Answer,
    digest_of,
    pack_request,
    read_answer,
)
from flowsde.remote.problems import OtherVersion, RemoteError, Unavailable
from flowsde.remote.replicas import Replica, Replicas
from flowsde.remote.side_by_side import side_by_side
from flowsde.remote.wire import MOST_HEADER, Malformed

_MOST_INFO = 1 << 16


class Info(NamedTuple):
    """What a server says of itself: name and version of its reward; the most images and bytes."""

    reward: str
    version: str
    most: int
    body: int


class Patience(NamedTuple):
    """How often and how long a request is tried.

    Attributes:
      retries: after the first try.
      backoff: seconds before the second; twice as many before each further, 10 at most.
      deadline: seconds of one call, all tries of all its chunks together.
    """

    retries: int = 6
    backoff: float = 0.2
    deadline: float = 600.0

    def pause(self, tried: int, asked: float) -> float:
        """Seconds before the next try; a random share of them, so that clients do not march."""
        growing = min(self.backoff * 2.0 ** min(tried, 10), 10.0)
        return max(asked, growing * random.uniform(0.5, 1.0))


class Client:
    """Scores of images by servers of one reward; a function of (images, cond) -> scores [n].

    Args:
      servers: connections to all of them.
      reward: the name that they call it by; None for that of the first.
      patience: with requests.
      max_in_flight: requests at once.
      chunk: images of one.
      as_pixels: send pictures in [-1, 1] as uint8, a quarter of the bytes.

    Attributes:
      reward: its name.
      version: of the reward, which all servers that answered now have, and every answer must.

    Raises:
      RemoteError: none answers, or they do not agree.
    """

    def __init__(
        self,
        servers: Sequence[Connections],
        reward: str | None,
        *,
        patience: Patience,
        max_in_flight: int,
        chunk: int,
        as_pixels: bool,
    ):
        self._replicas = Replicas(servers)
        weakref.finalize(self, _close, servers)
        self._patience, self._max_in_flight = patience, max_in_flight
        self._as_pixels = as_pixels
        info = self._agreed(reward)
        self.reward, self.version = info.reward, info.version
        self._chunk, self._body = min(chunk, info.most), info.body

    def __call__(self, images: np.ndarray, cond: Any) -> np.ndarray:
        """Scores [n].

        Raises:
          RemoteError: there are none for every image; nothing stands for those that failed.
          TypeError: naming what cannot be sent.
        """
        call = Call(time.monotonic() + self._patience.deadline)
        if self._as_pixels:
            images = pixels(np.asarray(images, np.float32))
        size = self._fitting(images)
        starts = range(0, len(images), size)
        parts = [(images[i : i + size], _part(cond, i, size)) for i in starts]
        name = f"reward {self.reward}"
        return np.concatenate(side_by_side(name, self._score, parts, self._max_in_flight, call))

    def _fitting(self, images: np.ndarray) -> int:
        """Images of one request: a chunk, or as many as fit into what servers read."""
        each = images[:1].nbytes * (2 if images.dtype.kind == "V" else 1)  # sent as float32
        return max(1, min(self._chunk, (self._body - MOST_HEADER) // max(each, 1)))

    def _score(self, images: np.ndarray, cond: Any, call: Call) -> np.ndarray:
        body = pack_request(images, cond, self.reward, self.version)
        digest, n = digest_of(body), len(images)
        exchange = Exchange("POST", SCORE, body)

        def read(stream: Any, length: int) -> Answer:
            return read_answer(stream, length, n, digest)

        return self._tried(exchange, read, call).scores

    def _tried(self, exchange: Exchange, read: Any, call: Call) -> Answer:
        failed: Counter[Replica] = Counter()
        failure: RemoteError
        others: set[Replica] = set()
        tried = 0
        while True:
            try:
                with self._replicas.one(failed, others) as chosen:
                    answer: Answer = chosen.connections.ask(exchange, read, call)
                    if answer.version != self.version:
                        raise OtherVersion(
                            f"{chosen.connections.url} answered for version {answer.version}"
                        )
                    return answer
            except Unavailable as error:
                failure, pause = error, self._patience.pause(tried, error.retry_after)
                failed[chosen] += 1
                tried += 1
            except OtherVersion as error:
                # One that was updated is passed over for those that were not.
                failure, pause = error, 0.0
                others.add(chosen)
                if len(others) == len(self._replicas):
                    raise OtherVersion(f"{error}, expected {self.version}") from None
            late = time.monotonic() + pause >= call.end
            if late or tried > self._patience.retries or call.stopped.wait(pause):
                why = "no time is left" if late else f"tried {tried} times"
                raise RemoteError(f"{failure} ({why})") from None

    def _agreed(self, reward: str | None) -> Info:
        """What all servers that answer say of themselves, the same of each."""
        call = Call(time.monotonic() + self._patience.deadline)
        found: dict[str, Info] = {}
        for tried in range(self._patience.retries + 1):
            silent, asked = [], 0.0
            for server in self._replicas.connections():
                try:
                    found[server.url] = server.ask(Exchange("GET", INFO), _info, call)
                except Unavailable as error:
                    silent.append(str(error))
                    asked = max(asked, error.retry_after)
            pause = self._patience.pause(tried, asked)
            if found or time.monotonic() + pause >= call.end:
                break
            time.sleep(pause)
        if not found:
            raise RemoteError(f"no server answers: {'; '.join(silent)}")
        first = next(iter(found.values()))
        for url, info in found.items():
            if reward is not None and info.reward != reward:
                raise RemoteError(f"{url} serves the reward {info.reward!r}, expected {reward!r}")
            if info[:2] != first[:2]:
                raise RemoteError(
                    f"servers differ: {url} serves {info.reward!r} of version {info.version}, "
                    f"{next(iter(found))} {first.reward!r} of version {first.version}"
                )
        most, body = (min(numbers) for numbers in list(zip(*found.values(), strict=True))[2:])
        return first._replace(most=most, body=body)

    def close(self) -> None:
        """Close the connections that are kept; the next call opens others."""
        _close(self._replicas.connections())


def _close(servers: Sequence[Connections]) -> None:
    for server in servers:
        server.close()


def _part(cond: Any, start: int, size: int) -> Any:
    some = slice(start, start + size)
    if isinstance(cond, dict):
        return {name: _part(array, start, size) for name, array in cond.items()}
    # Of what is none of these, `pack_request` says so.
    return cond[some] if isinstance(cond, list | np.ndarray) else cond


def _info(stream: Any, length: int) -> Info:
    if length > _MOST_INFO:
        raise Malformed(f"what a server says of itself has at most {_MOST_INFO} bytes")
    try:
        said = json.loads(stream.read(length))
        found = Info(said["reward"], said["version"], said["most"], said["body"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Malformed("the server is no reward of flowsde") from None
    if said.get("protocol") != PROTOCOL or [type(value) for value in found] != [str, str, int, int]:
        raise Malformed(f"expected a server of protocol {PROTOCOL}")
    if found.most < 1:
        raise Malformed(f"a server takes at least 1 image, got {found.most}")
    return found
