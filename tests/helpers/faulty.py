"""A server of a reward that misbehaves as it is told, one fault a request."""

import io
import threading
import time
from collections import Counter, deque
from contextlib import contextmanager

import numpy as np

from flowsde.remote.batching import Batcher
from flowsde.remote.messages import Answer, digest_of, pack_answer
from flowsde.remote.problems import Problem
from flowsde.remote.server import RewardServer, _Handler
from flowsde.remote.wire import read_header

TOKEN = "a-token-of-the-tests"
SLOW = 0.8
"""Seconds of a slow answer: longer than the clients' read_timeout."""
PASSING = ("slow", "429", "503", "502", "truncated", "reset")
"""Faults after which the same request is answered, if it is tried again."""
LASTING = (
    "wrong n",
    "nan",
    "inf",
    "header",
    "http header",
    "401",
    "version",
    "other",
    "500",
    "text",
)
"""Faults that end a call."""


class _Faulty(_Handler):
    def _score(self, length):
        faults = self.server.faults
        fault = faults.popleft() if faults else None
        if fault is None:
            return super()._score(length)
        self.server.injected[fault] += 1
        if fault == "slow":
            time.sleep(SLOW)
        if fault == "reset":
            self.close_connection = True
            raise ConnectionResetError
        if fault.isdigit():
            raise Problem(int(fault), "as told", retry_after=0)
        body = self.rfile.read(length)
        self._left = 0
        header = read_header(io.BytesIO(body), length)
        return self._wrong(fault, header.arrays["images"].shape[0], digest_of(body))

    def _wrong(self, fault, n, digest):
        scores, version = np.zeros(n, np.float32), self.server.version
        if fault == "wrong n":
            scores = np.zeros(n + 1, np.float32)
        if fault in ("nan", "inf"):
            scores[-1] = float(fault)
        if fault == "version":
            version = "another"
        if fault == "other":
            digest = "0" * 32
        body = pack_answer(Answer(scores, version, 0.0, 0.0), digest)
        if fault == "header":
            return (2**40).to_bytes(8, "little") + body[8:]
        if fault == "text":
            return b"<html>a proxy's page</html>"
        if fault in ("truncated", "http header"):
            self._mangle = fault
        return body

    def _send(self, status, body, kind, more=None):
        mangle, self._mangle = getattr(self, "_mangle", None), None
        if mangle == "http header":
            more = {"X-Long": "x" * 100_000}
        if mangle != "truncated":
            return super()._send(status, body, kind, more)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:-7])
        self.close_connection = True


@contextmanager
def serving(fn, *, version="v1", token=None, faulty=False, batch=32, **options):
    """A server of a function on a free port of this machine, in threads of its own."""
    batcher = Batcher(fn, version, batch=batch)
    server = RewardServer("127.0.0.1", 0, batcher, "judge", version, token=token, **options)
    server.faults, server.injected = deque(), Counter()
    if faulty:
        server.RequestHandlerClass = _Faulty
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        batcher.close(5.0)
        server.server_close()
