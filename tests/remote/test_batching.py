"""The server's one thread: what is computed together, split, remembered, and kept apart."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from flowsde.remote.batching import Batcher
from flowsde.remote.messages import Request
from flowsde.remote.problems import Problem


class Sum:
    """The sum of an image; of more than `room` images it runs out of memory."""

    def __init__(self, room=1000, error=MemoryError):
        self.room, self.error, self.calls = room, error, []
        self.free = threading.Event()
        self.free.set()

    def __call__(self, images, cond):
        assert self.free.wait(10)
        self.calls.append(len(images))
        if len(images) > self.room:
            raise self.error("CUDA out of memory. Tried to allocate 2 TiB")
        if np.any(images > 1e6):
            raise ValueError("too bright")
        return images.sum(axis=1) + (0.0 if cond is None else np.asarray([len(c) for c in cond]))


def request(values, cond=None, name=None):
    images = np.asarray(values, np.float32)[:, None] * np.ones(2, np.float32)
    return Request(images, cond, name or f"{values} {cond}")


@pytest.fixture
def make():
    made = []

    def start(*args, **options):
        made.append(Batcher(*args, "v", **{"batch": 8, "wait": 0.05} | options))
        return made[-1]

    yield start
    for one in made:
        one.close(5.0)


def scores(future):
    return future.result(10).scores.tolist()


class OutOfMemoryError(RuntimeError):
    """As PyTorch's is called."""


@pytest.mark.parametrize("error", [MemoryError, OutOfMemoryError, RuntimeError])
def test_a_batch_is_halved_until_it_fits_and_stays_so(make, error):
    reward = Sum(room=2, error=error)
    batcher = make(reward)
    values = list(range(11))
    assert scores(batcher.submit(request(values))) == [2.0 * v for v in values]
    assert reward.calls == [8, 4, *[2] * 5, 1]
    assert scores(batcher.submit(request(values[:3]))) == [0.0, 2.0, 4.0]
    assert reward.calls[8:] == [2, 1]


def test_no_memory_for_one_image_is_a_problem(make):
    with pytest.raises(Problem, match="no memory for 1 images") as problem:
        make(Sum(room=0)).submit(request([1.0])).result(10)
    assert problem.value.status == 507


def test_what_has_one_shape_is_computed_together(make):
    reward = Sum()
    batcher = make(reward)
    reward.free.clear()
    first = batcher.submit(request([0.0]))
    time.sleep(0.1)
    some = [batcher.submit(request([float(i), 1.0])) for i in range(3)]
    told = batcher.submit(request([5.0], ["four"]))
    reward.free.set()
    assert [scores(one) for one in some] == [[2.0 * i, 2.0] for i in range(3)]
    assert scores(told) == [14.0] and scores(first) == [0.0]
    assert reward.calls == [1, 6, 1]


def test_a_request_that_comes_again_is_not_computed_again(make):
    reward = Sum()
    batcher = make(reward)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: scores(batcher.submit(request([3.0]))), range(8)))
    assert found == [[6.0]] * 8 and reward.calls == [1]


def test_one_bad_request_does_not_spoil_its_company(make):
    reward = Sum()
    batcher = make(reward)
    reward.free.clear()
    batcher.submit(request([0.0]))
    time.sleep(0.1)
    bad, nan, good = (batcher.submit(request([v])) for v in (1e9, np.nan, 4.0))
    reward.free.set()
    assert scores(good) == [8.0]
    with pytest.raises(Problem, match="raised ValueError: too bright"):
        bad.result(10)
    with pytest.raises(Problem, match="not finite: nan for image 0 of 1"):
        nan.result(10)
    # A failure is not remembered.
    calls = len(reward.calls)
    with pytest.raises(Problem, match="too bright"):
        batcher.submit(request([1e9])).result(10)
    assert len(reward.calls) == calls + 1


def test_fixed_batches_make_scores_independent_of_their_company(make):
    batcher = make(lambda images, cond: images.sum(axis=1) / len(images), fixed=True, batch=4)
    assert scores(batcher.submit(request([1.0, 2.0]))) == [0.5, 1.0]
    assert scores(batcher.submit(request([1.0, 2.0, 3.0, 4.0, 5.0])))[:2] == [0.5, 1.0]


@pytest.mark.parametrize(
    "returned", [np.zeros(3), np.zeros((2, 1)), np.zeros(2, int), 1.0, None, ["a", "b"]]
)
def test_what_is_not_n_floats_is_a_problem(make, returned):
    with pytest.raises(Problem, match="expected shape"):
        make(lambda images, cond: returned).submit(request([1.0, 2.0])).result(10)


def test_after_the_end_nothing_is_taken(make):
    batcher = make(Sum())
    under_way = batcher.submit(request([1.0]))
    batcher.close(5.0)
    assert scores(under_way) == [2.0]
    with pytest.raises(Problem, match="stopping") as problem:
        batcher.submit(request([2.0]))
    assert problem.value.status == 503
