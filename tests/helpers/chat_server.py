"""An OpenAI-compatible server of a judge on this machine, which misbehaves as it is told."""

import base64
import io
import json
import threading
import time
from collections import Counter, deque
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

TOKEN = "sk-a-token-of-the-tests"
SLOW = 0.6
"""Seconds of a slow answer: longer than the clients' read_timeout."""
TRICKLE = 5.0
"""Seconds that an answer takes which comes a byte at a time."""
PASSING = ("slow", "429", "500", "503", "truncated", "cut", "reset")
"""Faults after which the same question is answered, if it is asked again."""
LASTING = ("400", "401", "no logprobs", "nan", "positive", "more than 1", "text", "another model")
"""Faults that end a call."""


def told(request):
    """Pictures float64 [h, w, 3] in [0, 1] and the texts of a request's only message."""
    (message,) = request["messages"]
    images, texts = [], []
    for part in message["content"]:
        if part["type"] == "text":
            texts.append(part["text"])
        else:
            kind, _, data = part["image_url"]["url"].partition(",")
            assert kind == "data:image/png;base64"
            images.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) / 255.0)
    return images, texts


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        assert self.path == "/v1/models"
        self._send(200, {"data": [{"id": name} for name in self.server.models]})

    def do_POST(self):
        server = self.server
        assert self.path == "/v1/chat/completions"
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = server.faults.popleft() if server.faults else None
        server.injected[fault] += 1
        key = self.headers.get("Authorization")
        if server.token and key != f"Bearer {server.token}":
            return self._send(401, {"error": {"message": f"Incorrect API key provided: {key}"}})
        if fault == "slow":
            time.sleep(SLOW)
        if fault == "reset":
            self.close_connection = True
            return None
        if fault is not None and fault.isdigit():
            return self._send(int(fault), {"error": {"message": "as told"}})
        server.asked.append(request)
        with server.busy:
            server.now += 1
            server.most = max(server.most, server.now)
        answer = self._answer(fault, server.say(request), request["model"])
        with server.busy:
            server.now -= 1
        return self._send(200, answer, fault)

    def _answer(self, fault, listed, model):
        wrong = {"nan": float("nan"), "positive": 0.7, "more than 1": -0.01}
        if fault in wrong:
            listed = [(token, wrong[fault]) for token, _ in listed]
        entries = [{"token": token, "logprob": log} for token, log in listed]
        first = {"token": "?", "logprob": -9999.0, "top_logprobs": entries}
        logprobs = None if fault == "no logprobs" else {"content": [first]}
        name = "another" if fault == "another model" else f"{model} at a revision"
        return {"model": name, "choices": [{"message": {"content": "?"}, "logprobs": logprobs}]}

    def _send(self, status, answer, fault=None):
        body = b"<html>" if fault == "text" else json.dumps(answer).encode()
        self.send_response(status)
        if fault == "cut" or self.server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(body), body))
            self.wfile.write(b"" if fault == "cut" else b"0\r\n\r\n")
        else:
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if fault == "trickle":
                # A byte is an answer in time, for a socket.
                for i in range(len(body) - 1):
                    self.wfile.write(body[i : i + 1])
                    time.sleep(TRICKLE / len(body))
                body = body[-1:]
            self.wfile.write(body[:-9] if fault == "truncated" else body)
        self.close_connection = fault in ("cut", "truncated")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # a client that gave up


@contextmanager
def judging(say, *, token=None, models=("a-judge",), chunked=False):
    """A server whose first token has the log-probabilities ``say(request) -> [(token, log)]``."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.say, server.token, server.models, server.chunked = say, token, models, chunked
    server.faults, server.injected, server.asked = deque(), Counter(), []
    server.busy, server.now, server.most = threading.Lock(), 0, 0
    server.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
