"""The server over HTTP: who may ask, what is refused, and that it goes on afterwards."""

import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

import numpy as np
import pytest
from faulty import TOKEN, serving
from refusing import refused

from flowsde.remote.batching import Batcher
from flowsde.remote.messages import Limits, digest_of, pack_request, read_answer
from flowsde.remote.server import RewardServer


def mean(images, cond):
    return images.reshape(len(images), -1).mean(axis=1)


IMAGES = np.arange(6, dtype=np.float32).reshape(2, 3)
BODY = pack_request(IMAGES, None, "judge", "v1")
KEY = {"Authorization": f"Bearer {TOKEN}"}


def ask(server, method="POST", path="/v1/score", body=BODY, headers=KEY):
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers
    finally:
        connection.close()


def test_scores_and_words(monkeypatch):
    with serving(mean, token=TOKEN) as server:
        status, body, _ = ask(server)
        assert status == 200
        answer = read_answer(io.BytesIO(body), len(body), 2, digest_of(BODY))
        np.testing.assert_array_equal(answer.scores, [1.0, 4.0])
        assert answer.version == "v1" and answer.waited >= 0.0 and answer.computed >= 0.0
        status, body, _ = ask(server, "GET", "/v1/info")
        said = json.loads(body)
        assert (status, said["reward"], said["version"], said["most"]) == (200, "judge", "v1", 256)
        assert ask(server, "GET", "/v1/health", headers={})[0] == 200


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": f"Basic {TOKEN}"},
                {"Authorization": "Bearer é"}],
)  # fmt: skip
def test_without_the_token_nothing_is_said(headers):
    calls = []
    with serving(lambda images, cond: calls.append(1), token=TOKEN) as server:
        for method, path in [("POST", "/v1/score"), ("GET", "/v1/info"), ("GET", "/x")]:
            given = {k: v.encode() for k, v in headers.items()}
            status, body, _ = ask(server, method, path, headers=given)
            assert (status, json.loads(body)["detail"]) == (401, "wrong or missing bearer token")
    assert not calls


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "example.org"])
def test_other_machines_are_not_listened_to_without_a_token(host):
    batcher = Batcher(mean, "v", batch=1)
    with pytest.raises(ValueError, match="expected a token"):
        RewardServer(host, 0, batcher, "judge", "v")
    batcher.close(1.0)


def test_weak_tokens_are_refused():
    batcher = Batcher(mean, "v", batch=1)
    for token in ("", "short", "with a space in it", "é" * 20):
        with pytest.raises(ValueError, match="16 visible"):
            RewardServer("0.0.0.0", 0, batcher, "judge", "v", token=token)
    batcher.close(1.0)


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"path": "/v1/other"}, 404),
        ({"headers": {**KEY, "Content-Length": "x"}}, 400),
        ({"headers": {**KEY, "Content-Length": str(10**12)}, "body": b""}, 413),
        ({"headers": {**KEY, "Transfer-Encoding": "chunked"}, "body": iter([b"x"])}, 411),
        ({"body": b"x" * 3000}, 400),
        ({"body": BODY[:-1]}, 400),
        ({"body": pack_request(np.zeros((5, 3)), None, "judge", "v1")}, 422),
        ({"body": b"x" * 20_001}, 413),
        ({"method": "PUT"}, 501),
        ({"body": pack_request(IMAGES * np.nan, None, "judge", "v1")}, 500),
    ],
)
def test_refusals_say_why_and_it_goes_on(changes, status):
    with serving(mean, token=TOKEN, limits=Limits(n=4, body=20_000)) as server:
        assert ask(server, **changes)[0] == status
        assert ask(server)[0] == 200


def test_a_refused_request_leaves_its_connection_usable():
    with serving(mean, limits=Limits(n=4)) as server:
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
        for body, status in [(BODY, 200), (b"x" * 64, 400), (BODY, 200)]:
            connection.request("POST", "/v1/score", body)
            answer = connection.getresponse()
            assert answer.status == status and answer.read()
        connection.close()


def test_a_full_queue_says_when_to_come_again():
    free = threading.Event()

    def held(images, cond):
        assert free.wait(10)
        return mean(images, cond)

    with serving(held, places=1) as server:
        first = threading.Thread(target=ask, args=(server,))
        first.start()
        while server.places._value:
            time.sleep(0.005)
        status, body, headers = ask(server)
        assert (status, headers["Retry-After"]) == (429, "1") and b"waiting" in body
        free.set()
        first.join()
        assert ask(server)[0] == 200


def test_a_reward_that_takes_too_long_is_504():
    with serving(
        lambda images, cond: time.sleep(0.3) or mean(images, cond), timeout=0.05
    ) as server:
        assert ask(server)[0] == 504
        time.sleep(0.4)
        # It was computed all the same, and is known.
        assert ask(server)[0] == 200


def test_a_client_that_says_nothing_more_holds_no_place():
    with serving(mean, places=1) as server:
        host = urlsplit(server.url)
        with socket.create_connection((host.hostname, host.port)) as client:
            client.sendall(b"POST /v1/score HTTP/1.1\r\nContent-Length: 1000\r\n\r\nhalf")
            while server.places._value:
                time.sleep(0.005)
        while not server.places._value:
            time.sleep(0.005)
        assert ask(server)[0] == 200


def test_a_client_that_sends_byte_after_byte_holds_no_place_for_ever():
    with serving(mean, places=1, timeout=0.2) as server:
        host = urlsplit(server.url)
        with socket.create_connection((host.hostname, host.port)) as client:
            client.sendall(b"POST /v1/score HTTP/1.1\r\nContent-Length: 1000\r\n\r\n")
            client.sendall((900).to_bytes(8, "little"))  # of a header to come
            client.settimeout(0.02)
            said, end = b"", time.monotonic() + 5.0
            while not said and time.monotonic() < end:
                client.sendall(b"\0")
                try:
                    said = client.recv(100)
                except TimeoutError:
                    pass
            assert said.startswith(b"HTTP/1.1 408")
        assert ask(server)[0] == 200


WITHOUT_JAX = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jax", "jaxlib", "flax", "optax", "orbax", "chex"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Refuse())
from flowsde.cli.main import main
main()
"""


@pytest.mark.slow
def test_the_command_serves_without_jax_until_a_signal(tmp_path):
    (tmp_path / "own.py").write_text(
        "def judge(images, prompts):\n    return images.sum(axis=1) + len(prompts[0])\n"
    )
    (tmp_path / "token").write_text(TOKEN + "\n")
    words = ["serve-reward", "--reward", "own:judge", "--port", "0", "--token-file", "token"]
    process = subprocess.Popen(
        [sys.executable, "-c", WITHOUT_JAX, *words],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        said = dict(process.stdout.readline().split() for _ in range(3))
        server = type("Server", (), {"url": said["url"]})
        body = pack_request(IMAGES, ["one", "two"], "own:judge", said["version"])
        status, answer, _ = ask(server, body=body)
        assert status == 200, answer
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, err
    assert "Traceback" not in err
    found = read_answer(io.BytesIO(answer), len(answer), 2, digest_of(body))
    np.testing.assert_array_equal(found.scores, [6.0, 15.0])


WRONG = {
    "--reward own": "--reward: expected likelihood, rss, clip, pick, hpsv2, hpsv2.1, imagereward, "
    "vqascore, vqascore-odds, instructblip, instructblip-odds, owlv2, owlv2-smooth, qwen3vl, "
    "qwen3vl-share, qwen3vl-odds, qwen3vl-counts, aesthetic or MODULE:FUNCTION",
    "--reward json:nothing": "--reward json:nothing cannot be imported: AttributeError: module "
    "'json' has no attribute 'nothing'",
    "--reward json:__doc__": "--reward json:__doc__ must be a function, got",
    "--reward json:dumps --host 0.0.0.0": "host '0.0.0.0' can be reached from other machines",
    "--reward json:dumps --port 70000": "--port: expected 0 to 65535, got 70000",
    "--reward json:dumps --batch 0": "--batch must be an integer of at least 1, got 0",
    "--reward rss --weights x": "--weights: has no effect with --reward rss",
}


def test_a_port_that_is_taken_is_named(capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        said = refused(capsys, "serve-reward", "--reward", "json:dumps", "--port", port)
    assert f"--port: 127.0.0.1:{port} cannot be bound: Address already in use" in said


@pytest.mark.parametrize(("words", "said"), WRONG.items(), ids=WRONG)
def test_wrong_options(words, said, capsys, monkeypatch):
    monkeypatch.delitem(os.environ, "FLOWSDE_REWARD_TOKEN", raising=False)
    assert said in refused(capsys, "serve-reward", *words.split())


def test_the_version_is_a_hash_of_source_and_weights(tmp_path, monkeypatch):
    from flowsde.remote.served import served

    monkeypatch.chdir(tmp_path)
    versions = []
    for name, source in [("a1", "VERSION = 1"), ("a2", "VERSION = 1"), ("a3", "VERSION = 2")]:
        (tmp_path / f"{name}.py").write_text(f"{source}\ndef judge(x, y): ...\n")
        (tmp_path / "weights").write_bytes(b"1")
        versions.append(served(f"{name}:judge", weights=[tmp_path / "weights"]).version)
    assert versions[0] == versions[1] != versions[2]
    (tmp_path / "weights").write_bytes(b"2")
    assert served("a1:judge", weights=[tmp_path / "weights"]).version != versions[0]
    assert served("a1:judge", "mine").version == "mine"
