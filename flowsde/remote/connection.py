"""One exchange with one server over HTTP, on connections that are kept.

No redirect is followed and no proxy of the environment is asked: requests carry a token.
"""

import http.client
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from flowsde.remote.problems import (
    OTHER_VERSION,
    RETRIED,
    OtherVersion,
    RemoteError,
    Unavailable,
)
from flowsde.remote.wire import Malformed, Truncated

_Read = TypeVar("_Read")
_MOST_SAID = 1 << 14
"""Bytes of a problem that are read."""


class Dialect(NamedTuple):
    """How a kind of server is spoken to; by default one of `flowsde serve-reward`.

    Attributes:
      content: MIME type of requests' bodies.
      retried: HTTP statuses after which the same request may be answered.
      most: bytes that are read of an answer which does not tell its length; None refuses it.
      detail: why a request was refused, of the JSON that came.
    """

    content: str = "application/octet-stream"
    retried: Collection[int] = RETRIED
    most: int | None = None
    detail: Callable[[Any], Any] = itemgetter("detail")


class Exchange(NamedTuple):
    """A request: method, path, and body if any."""

    method: str
    path: str
    body: bytes | None = None


_OWN = Dialect()


class Call:
    """What the requests of one call of a client share: when to give up, and how to end them all.

    Args:
      end: `time.monotonic` at which to give up.
    """

    def __init__(self, end: float):
        self.end, self.stopped = end, threading.Event()
        self._lock, self._open = threading.Lock(), set[http.client.HTTPConnection]()

    @contextmanager
    def using(self, connection: http.client.HTTPConnection) -> Iterator[None]:
        """In the block, `stop` ends what the connection waits for."""
        with self._lock:
            self._open.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(connection)

    def stop(self) -> None:
        """End all requests; their threads find the connection broken, and do not try again."""
        self.stopped.set()
        with self._lock:
            for connection in self._open:
                with suppress(OSError, AttributeError):  # closed, or not yet open
                    connection.sock.shutdown(socket.SHUT_RDWR)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its name: an address of another kind is looked up later."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Connections:
    """To one server; any thread may ask.

    Args:
      url: ``http://host:port`` or ``https://host:port``.
      token: sent with every request, or None.
      connect_timeout, read_timeout: seconds.
      insecure: send a token over plain HTTP to another machine.
      dialect: of the server.

    Raises:
      ValueError: naming what is wrong with the URL or the token, which is not shown.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        connect_timeout: float,
        read_timeout: float,
        insecure: bool,
        dialect: Dialect = _OWN,
    ):
        parts = urlsplit(url)
        if "@" in parts.netloc:
            raise ValueError("urls have no user and no password (not shown): give a token")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"urls must be like http://host:port, got {url!r:.200}")
        if parts.path.strip("/") or parts.query or parts.fragment:
            raise ValueError(f"urls have no path, got {url!r:.200}")
        tls = parts.scheme == "https"
        if token and not tls and not insecure and not is_loopback(parts.hostname):
            raise ValueError(
                f"a token is not sent to {url!r:.200}, where anyone on the way reads it: expected "
                f"https, a tunnel to this machine, or insecure=True"
            )
        if token and not (token.isascii() and token.isprintable()):
            raise ValueError("a token must be printable ASCII characters, got others (not shown)")
        self.url = url.rstrip("/")
        self._token, self._dialect = token, dialect
        self._connect_timeout, self._read_timeout = connect_timeout, read_timeout
        self._headers = {"Content-Type": dialect.content}
        self._headers |= {"Authorization": f"Bearer {token}"} if token else {}
        kind: Any = http.client.HTTPSConnection if tls else http.client.HTTPConnection
        more = {"context": ssl.create_default_context()} if tls else {}
        self._make = lambda timeout: kind(parts.hostname, parts.port, timeout=timeout, **more)
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    def ask(self, exchange: Exchange, read: Callable[[Any, int], _Read], call: Call) -> _Read:
        """What `read(stream, length)` makes of the answer to a request.

        Args:
          exchange: to send.
          read: of the body, and its length, or the most that it may be where that is not told.
          call: of which it is a request.

        Raises:
          Unavailable: another try may help.
          RemoteError: it would not; `OtherVersion` if the server says so.
        """
        with self._lock:
            kept = self._idle.pop() if self._idle else None
        try:
            if kept is not None:
                try:
                    return self._on(kept, exchange, read, call)
                except (http.client.RemoteDisconnected, ConnectionError):
                    if call.stopped.is_set():
                        raise
                    # The server had closed it meanwhile, which says nothing of the request.
            left = max(call.end - time.monotonic(), 0.01)
            return self._on(self._make(min(self._connect_timeout, left)), exchange, read, call)
        except ssl.SSLCertVerificationError as error:
            raise RemoteError(f"{self.url}: {error.verify_message}") from None
        except (OSError, http.client.IncompleteRead, Truncated) as error:
            raise Unavailable(f"{self.url}: {_said(error)}") from None
        except (http.client.HTTPException, Malformed) as error:
            raise RemoteError(f"{self.url}: {_said(error)}") from None

    def _on(
        self,
        connection: http.client.HTTPConnection,
        exchange: Exchange,
        read: Callable[[Any, int], _Read],
        call: Call,
    ) -> _Read:
        response = None
        try:
            with call.using(connection):
                response = self._sent(connection, exchange, call)
                length = response.length
                if response.status != 200:
                    raise self._refused(response)
                if length is None and (length := self._dialect.most) is None:
                    raise Malformed("the answer does not tell its length")
                found = read(response, length)
        except BaseException:
            if response is not None:
                response.close()  # which has the socket where the server closes
            connection.close()
            raise
        if response.will_close or not response.isclosed():
            response.close()
            connection.close()
        else:
            with self._lock:
                self._idle.append(connection)
        return found

    def _sent(
        self, connection: http.client.HTTPConnection, exchange: Exchange, call: Call
    ) -> http.client.HTTPResponse:
        if connection.sock is None:
            connection.connect()
        if call.stopped.is_set():
            raise ConnectionAbortedError("another request of the call failed")
        left = max(call.end - time.monotonic(), 0.01)
        connection.sock.settimeout(min(self._read_timeout, left))
        try:
            connection.request(exchange.method, exchange.path, exchange.body, headers=self._headers)
        except (BrokenPipeError, ConnectionResetError):
            # Refused before all was sent; the answer says why, if there is one.
            if connection.sock is None:
                raise
        return connection.getresponse()

    def _refused(self, response: http.client.HTTPResponse) -> RemoteError:
        try:
            said = str(self._dialect.detail(json.loads(response.read(_MOST_SAID))))
        except (ValueError, TypeError, KeyError, RecursionError, http.client.HTTPException):
            said = response.reason
        if self._token:
            said = said.replace(self._token, "(the token)")  # which some servers repeat
        detail = f"{self.url} answered {response.status}: {said[:500]}"
        if response.status in self._dialect.retried:
            return Unavailable(detail, _seconds(response.getheader("Retry-After")))
        if response.status == OTHER_VERSION:
            return OtherVersion(detail)
        return RemoteError(detail)

    def close(self) -> None:
        """Close what is kept; further requests open connections anew."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


def _seconds(text: str | None) -> float:
    """Of a Retry-After; one that is a date is not read."""
    return float(text) if text is not None and text.isascii() and text.isdigit() else 0.0


def _said(error: BaseException) -> str:
    said = str(error) or "no answer in time" * isinstance(error, TimeoutError)
    return f"{type(error).__name__}: {said[:300]}".removesuffix(": ")
