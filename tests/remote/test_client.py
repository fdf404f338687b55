"""The client: every fault is survived or said, and none becomes a score."""

import random
import socket
import threading
import time
from itertools import cycle

import jax
import numpy as np
import pytest
from faulty import LASTING, PASSING, TOKEN, serving
from problems import GRID, SDE, flow, host_reward, problems, row

import flowsde as fs
from flowsde.remote.client import Patience
from flowsde.remote.problems import Unavailable
from flowsde.remote.replicas import Replicas
from flowsde.rewards import RewardError

KEY = jax.random.key(5)
# As in the tests of resuming, with which programs are shared.
SEARCH = fs.search.rbf(nfe=21, kernel=SDE, grid=GRID, finish="mean")
COND = row(problems(1), 0)
IMAGES = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
QUICK = {"read_timeout": 0.4, "connect_timeout": 1.0}


def norm(images, cond):
    return np.sum(images**2, axis=1)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pauses of milliseconds; what is asked for by a server is kept to."""
    monkeypatch.setattr(Patience, "pause", lambda self, tried, asked: max(asked, 0.002))


def dead():
    """A URL where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("cond", [None, list("abcdefg"), np.arange(7.0), {"a": np.arange(7.0)}])
def test_it_is_the_function_elsewhere_chunk_by_chunk(cond):
    def told(images, cond):
        extra = cond["a"] if isinstance(cond, dict) else cond
        if isinstance(extra, list):
            extra = np.asarray([ord(letter) for letter in extra])
        return norm(images, None) + (0.0 if extra is None else extra)

    with serving(told, token=TOKEN) as server:
        reward = fs.rewards.remote(server.url, token=TOKEN, chunk=2, max_in_flight=3, cost=0.5)
        expected = told(IMAGES, cond).astype(np.float32)
        np.testing.assert_array_equal(reward(IMAGES, cond), expected)
        assert (reward.name, reward.version, reward.cost) == ("judge", "v1", 0.5)


def test_pictures_as_pixels():
    seen = []
    with serving(lambda images, cond: seen.append(images) or np.zeros(len(images))) as server:
        fs.rewards.remote(server.url, as_pixels=True)(np.asarray([[-1.0, 0.0, 1.0, 3.0]]), None)
    assert seen[0].dtype == np.uint8 and seen[0].tolist() == [[0, 128, 255, 255]]


@pytest.mark.slow
@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_tried_again(fault):
    with serving(norm, faulty=True) as server:
        reward = fs.rewards.remote(server.url, "judge", retries=6, **QUICK)
        server.faults.extend([fault] * 3)
        np.testing.assert_array_equal(reward(IMAGES, None), norm(IMAGES, None))
        assert server.injected[fault] == 3
        server.faults.extend([fault] * 15)
        with pytest.raises(RewardError, match=r"judge.*\(tried 7 times\)"):
            reward(IMAGES + 1.0, None)


@pytest.mark.parametrize("fault", LASTING)
def test_what_lasts_is_an_error_at_once(fault):
    with serving(norm, faulty=True) as server:
        reward = fs.rewards.remote(server.url, **QUICK)
        server.faults.extend([fault] * 2)
        with pytest.raises(RewardError, match="reward 'judge' raised"):
            reward(IMAGES, None)
        assert server.injected[fault] == 1
        server.faults.clear()
        np.testing.assert_array_equal(reward(IMAGES, None), norm(IMAGES, None))


def test_a_failed_call_leaves_no_thread_waiting():
    """One chunk fails at once, while the others would be computed for a long time."""
    free = threading.Event()

    def judge(images, cond):
        if (images[:, 0] > 90.0).any():
            raise ValueError("too bright")
        free.wait(20)
        return norm(images, cond)

    with serving(judge) as one, serving(judge) as other:
        reward = fs.rewards.remote([one.url, other.url], chunk=1, max_in_flight=2)
        images = np.asarray([[100.0, 0.0], [1.0, 0.0], [2.0, 0.0]], np.float32)
        before = set(threading.enumerate())
        with pytest.raises(RewardError, match="too bright"):
            reward(images, None)
        end = time.monotonic() + 5.0
        while any(
            thread.name.startswith("reward judge") for thread in {*threading.enumerate()} - before
        ):
            assert time.monotonic() < end
            time.sleep(0.01)
        free.set()


def test_retry_after_is_kept_to_and_the_deadline_ends_all():
    with serving(norm, places=1) as server:
        reward = fs.rewards.remote(server.url, deadline=0.4)
        assert server.places.acquire(blocking=False)
        began = time.monotonic()
        with pytest.raises(RewardError, match=r"429.*no time is left"):
            reward(IMAGES, None)  # comes again in one second, says the server
        assert time.monotonic() - began < 5.0
        server.places.release()


@pytest.mark.slow
def test_one_dead_replica_is_worked_around():
    with serving(norm) as one, serving(norm) as other:
        reward = fs.rewards.remote([dead(), one.url, other.url], chunk=1, retries=2)
        for _ in range(3):
            np.testing.assert_array_equal(reward(IMAGES, None), norm(IMAGES, None))
        one.shutdown()
        one.server_close()
        one.batcher.close(1.0)
        np.testing.assert_array_equal(reward(IMAGES + 1.0, None), norm(IMAGES + 1.0, None))


def test_replicas_of_other_versions_are_not_asked():
    with serving(norm) as one, serving(norm, version="v2") as other:
        with pytest.raises(RewardError, match="version v2.*of version v1"):
            fs.rewards.remote([one.url, other.url])
        with pytest.raises(RewardError, match="serves the reward 'judge', expected 'another'"):
            fs.rewards.remote(one.url, "another")
        other.version = other.batcher._version = "v1"
        reward = fs.rewards.remote([one.url, other.url], chunk=1)
        other.version = other.batcher._version = "v2"
        np.testing.assert_array_equal(reward(IMAGES, None), norm(IMAGES, None))
        one.version = one.batcher._version = "v2"
        with pytest.raises(RewardError, match="version .* is v2 here, expected v1"):
            reward(IMAGES + 1.0, None)


def test_a_breaker_rests_twice_as_long_each_time_and_asks_once():
    now = [0.0]
    replicas = Replicas(["good", "bad"], clock=lambda: now[0])

    def ask(fail=True, **options):
        try:
            with replicas.one(**options) as chosen:
                name = chosen.connections
                if name == "bad" and fail:
                    raise Unavailable("down")
        except Unavailable:
            pass
        return name

    def both():
        """Which are asked by two requests at once."""
        with replicas.one() as first, replicas.one() as second:
            return {first.connections, second.connections}

    bad = next(one for one in replicas._all if one.connections == "bad")
    good = next(one for one in replicas._all if one.connections == "good")
    assert ask() == "good" and ask(failed={good: 1}) == ask(failed={good: 1}) == "bad"
    assert ask(failed={good: 1}) == "good" and both() == {"good"}
    now[0] = 1.01
    assert ask(failed={good: 1}) == "bad" and ask(failed={good: 1}) == "good"
    now[0] = 2.9
    assert ask(failed={good: 1}) == "good"
    now[0] = 3.1
    with replicas.one(failed={good: 1}) as probe:
        assert probe is bad and ask(failed={good: 1}) == "good"
    assert bad.failures == 0 and both() == {"good", "bad"}
    assert ask(failed={bad: 1}, never={good}) == "bad"


@pytest.mark.parametrize(
    "options",
    [
        {"urls": []},
        {"urls": "ftp://a"},
        {"urls": "http://a/path"},
        {"urls": "http://user:word@a"},
        {"urls": "http://:word@a"},
        {"urls": "http://192.0.2.1:1", "token": TOKEN},
        {"urls": "http://judge.example", "token": TOKEN},
        {"urls": "http://a", "chunk": 0},
        {"urls": "http://a", "deadline": 0.0},
        {"urls": "http://a", "retries": -1},
    ],
)
def test_wrong_arguments(options):
    with pytest.raises(ValueError, match=next(reversed(options))):
        fs.rewards.remote(**options)


def test_nobody_there_or_somebody_else():
    with pytest.raises(RewardError, match="no server answers.*Connection refused"):
        fs.rewards.remote(dead(), retries=1)
    with serving(norm, token=TOKEN) as server:
        with pytest.raises(RewardError, match="401"):
            fs.rewards.remote(server.url, token=TOKEN + "x")


def test_an_object_that_cannot_be_sent_is_named():
    with serving(norm) as server:
        reward = fs.rewards.remote(server.url, chunk=2)
        for cond, said in [
            ([object()] * 7, "reward_cond must be texts"),
            ((IMAGES, IMAGES), "texts, an array or a dictionary of arrays, got tuple as cond"),
            ({"a": {"b": IMAGES}}, "got dict as cond 'a'"),
        ]:
            with pytest.raises(RewardError, match=said):
                reward(IMAGES, cond)


def go(reward, resume=None):
    return fs.run(KEY, flow(), SEARCH, reward, cond=COND, resume=resume)


@pytest.mark.slow
def test_a_version_is_pinned_to_what_was_begun_with_it(tmp_path):
    def of(version):
        return fs.rewards.host(host_reward, "judge", version=version)

    begun = next(iter(fs.iterate(KEY, flow(), SEARCH, of("v1"), cond=COND)))
    fs.save_search(tmp_path, SEARCH, begun)
    begun = fs.restore_search(tmp_path, SEARCH)
    whole = go(of("v1"), begun)
    for other in ("v2", None):
        with pytest.raises(ValueError, match="resume was begun with another"):
            go(of(other), begun)
    plain = go(of(None))
    assert plain.reward == whole.reward and plain.run != whole.run


def survive(faults):
    """A search under a list of faults, resumed whenever it fails; how often that was, and faults.

    An answer of another version is no failure where another replica has the right one.
    """
    with serving(host_reward, faulty=True) as server:
        reward = fs.rewards.remote([server.url, server.url], retries=20, **QUICK)
        server.faults.extend(faults)
        result, failures = None, 0
        while True:
            try:
                result = go(reward, result)
                if not server.faults:
                    return result, failures, sum(server.injected.values())
                result = None  # once more from the start
            except RewardError as error:
                failures, result = failures + 1, error.result


def same(a, b):
    assert a.nfe == b.nfe == SEARCH.nfe
    for name in ("reward", "x", "image"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(a.info.reward, b.info.reward)


@pytest.mark.slow
def test_no_search_is_lost():
    faults = [fault for pair in zip(LASTING, cycle(PASSING)) for fault in pair]
    found, failures, injected = survive(faults)
    same(found, go(fs.rewards.host(host_reward)))
    assert injected == len(faults) and failures == len(LASTING) - 1


@pytest.mark.slow
def test_no_search_is_lost_in_200_faults():
    draw = random.Random(19)
    faults, lasting = draw.choices(PASSING + LASTING, k=200), set(LASTING) - {"version"}
    found, failures, injected = survive(faults)
    same(found, go(fs.rewards.host(host_reward)))
    assert injected == 200 and failures >= sum(fault in lasting for fault in faults)
