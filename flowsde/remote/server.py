"""The server: HTTP around a `Batcher`.

    POST /v1/score    a request of `messages`, answered by scores
    GET  /v1/info     name, version and limits
    GET  /v1/health   200 while it serves; the only one that needs no token

A request is refused by its headers where that is possible, then for want of a place in the bounded
queue, then by the header of its body; memory for its arrays is taken last. At most ``places``
bodies of ``limits.body`` bytes are held.
"""

import hmac
import io
import json
import socket
import socketserver
import threading
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from flowsde.remote.batching import Batcher
from flowsde.remote.connection import is_loopback
from flowsde.remote.messages import (
    HEALTH,
    INFO,
    PROTOCOL,
    SCORE,
    Limits,
    pack_answer,
    read_request,
)
from flowsde.remote.problems import ENVIRONMENT, Problem

_CONNECTIONS = 256
_IDLE = 60.0
"""Seconds that a connection may say nothing."""
_DRAINED = 2.0
"""Seconds for which the body of a refused request is read, and dropped, so that the refusal is
seen: a connection closed on unread data is reset."""
_LEAST_TOKEN = 16


class RewardServer(ThreadingHTTPServer):
    """Serves one reward; it listens once made, and `serve_forever` answers.

    Args:
      host, port: to bind; port 0 takes one that is free.
      batcher: that computes.
      reward, version: what it computes, for clients to name.
      token: that clients must send, at least 16 characters; None is for loopback alone.
      limits: of a request.
      places: requests that may be read, waiting and computed at once.
      timeout: seconds that a request may take.

    Raises:
      ValueError: there is no token and the host is not this machine's alone; or a weak token.
      OSError: the address cannot be bound.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(
        self,
        host: str,
        port: int,
        batcher: Batcher,
        reward: str,
        version: str,
        *,
        token: str | None = None,
        limits: Limits = Limits(),  # noqa: B008
        places: int = 32,
        timeout: float = 300.0,
    ):
        if token is None and not is_loopback(host):
            raise ValueError(
                f"host {host!r:.100} can be reached from other machines, expected a token in a "
                f"file or in {ENVIRONMENT}, or 127.0.0.1"
            )
        if token is not None and (len(token) < _LEAST_TOKEN or not _is_visible(token)):
            raise ValueError(
                f"a token must be at least {_LEAST_TOKEN} visible ASCII characters, got "
                f"{len(token)}"
            )
        self.batcher, self.reward, self.version = batcher, reward, version
        self.token, self.limits, self.patience = token, limits, timeout
        self.places = threading.BoundedSemaphore(places)
        self._connections = threading.BoundedSemaphore(_CONNECTIONS)
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        """Where clients of this machine find it."""
        host, port = self.socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def server_bind(self) -> None:
        # HTTPServer looks up its own name, which may take long and is not needed.
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._connections.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a client that went away is none of ours."""


def _is_visible(token: str) -> bool:
    return token.isascii() and token.isprintable() and " " not in token


class _Handler(BaseHTTPRequestHandler):
    server: RewardServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "flowsde", ""
    timeout = _IDLE
    # Head and body in one packet.
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, *args: Any) -> None:
        """Nothing: a search asks thousands of times."""

    def do_GET(self) -> None:
        """Answer a GET."""
        self._left = 0
        try:
            if self.path == HEALTH:
                return self._send(200, b"{}", "application/json")
            self._check_token()
            if self.path != INFO:
                raise Problem(404, f"expected {SCORE}, {INFO} or {HEALTH}")
            limits = self.server.limits
            said = {"protocol": PROTOCOL, "reward": self.server.reward, "most": limits.n}
            said |= {"version": self.server.version, "body": limits.body, "values": limits.values}
            self._send(200, json.dumps(said).encode(), "application/json")
        except Problem as problem:
            self._refuse(problem)

    def do_POST(self) -> None:
        """Answer a POST."""
        self._left, trusted = 0, False
        try:
            self._check_token()
            trusted = True
            if self.path != SCORE:
                raise Problem(404, f"expected {SCORE}")
            self._left = length = self._length()
            if length > self.server.limits.body:
                raise Problem(413, f"a request has at most {self.server.limits.body} bytes")
            if not self.server.places.acquire(blocking=False):
                raise Problem(429, "too many requests are waiting", retry_after=1)
            try:
                body = self._score(length)
            finally:
                self.server.places.release()
            self._send(200, body, "application/octet-stream")
        except Problem as problem:
            self._refuse(problem, drain=trusted)
        except ValueError as error:
            self._refuse(Problem(500, str(error)), drain=trusted)

    def _score(self, length: int) -> bytes:
        server = self.server
        request = read_request(_Counted(self), length, server.reward, server.version, server.limits)
        future = server.batcher.submit(request)
        try:
            answer = future.result(server.patience)
        except futures.TimeoutError:
            raise Problem(504, f"the reward took longer than {server.patience:g} s") from None
        return pack_answer(answer, request.digest)

    def _check_token(self) -> None:
        token = self.server.token
        given = self.headers.get("Authorization", "")
        # Compared in a time that tells nothing.
        if token is not None and not hmac.compare_digest(
            given.encode("utf-8", "replace"), f"Bearer {token}".encode()
        ):
            raise Problem(401, "wrong or missing bearer token")

    def _length(self) -> int:
        said = self.headers.get_all("Content-Length") or []
        if len(said) != 1 or self.headers.get("Transfer-Encoding") is not None:
            raise Problem(411, "expected one Content-Length, and no Transfer-Encoding")
        if not (said[0].isascii() and said[0].isdigit() and len(said[0]) < 16):
            raise Problem(400, "Content-Length is no number")
        return int(said[0])

    def _refuse(self, problem: Problem, drain: bool = False) -> None:
        # A body that was not read would be taken for the next request.
        self.close_connection = self.close_connection or self._left > 0 or problem.status == 401
        more = {} if problem.retry_after is None else {"Retry-After": str(problem.retry_after)}
        body = json.dumps({"detail": str(problem)}).encode()
        self._send(problem.status, body, "application/problem+json", more)
        self.wfile.flush()
        end = time.monotonic() + _DRAINED
        while drain and 0 < self._left and time.monotonic() < end:
            self.connection.settimeout(_DRAINED)
            got = len(self.rfile.read1(min(self._left, 1 << 16)))
            self._left = self._left - got if got else 0

    def _send(
        self, status: int, body: bytes, kind: str, more: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": kind} | (more or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


class _Counted(io.RawIOBase):
    """A request's body, of which the handler knows how much is left; it may take no longer than the
    request: its client holds a place, and must not for ever by sending byte after byte."""

    def __init__(self, handler: _Handler):
        self._handler = handler
        self._end = time.monotonic() + handler.server.patience

    def readinto(self, buffer: Any, /) -> int:
        # Whatever is there: `readinto` would wait until the buffer is full.
        got = self._handler.rfile.readinto1(buffer)
        if time.monotonic() > self._end:
            raise Problem(408, f"the body took longer than {self._handler.server.patience:g} s")
        self._handler._left -= got or 0
        return got or 0
