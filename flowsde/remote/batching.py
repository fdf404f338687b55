"""One thread that calls the reward: requests of one shape together, split where memory ends.

A request waits a few milliseconds for others of its shape, so that several clients fill a batch. A
batch that does not fit into memory is halved until it does, and later ones of that shape are no
larger. A request that comes again, because its answer was lost, is not computed again: it waits for
the first, or has its scores.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np

from flowsde.remote.messages import Answer, Request
from flowsde.remote.problems import Problem

Reward = Callable[[np.ndarray, Any], Any]
"""A function of images [n, ...] and of n prompts or what else it is told, to n floats."""
_REMEMBERED = 1024
"""Requests whose scores are kept."""


class _Job(NamedTuple):
    request: Request
    future: "Future[Answer]"
    came: float

    @property
    def rows(self) -> int:
        return len(self.request.images)


class Batcher:
    """Calls a reward, of which one call is under way at a time.

    Args:
      reward: that is called, in the batcher's own thread.
      version: of it, put into answers.
      batch: images of one call, at most.
      fixed: call it with just so many, the last repeated where there are fewer, so that no score
        depends on which others are computed with it.
      wait: seconds to wait for others.
    """

    def __init__(
        self, reward: Reward, version: str, *, batch: int, fixed: bool = False, wait: float = 0.003
    ):
        self._reward, self._version = reward, version
        self._batch, self._fixed, self._wait = batch, fixed, wait
        self._fits: dict[Hashable, int] = {}
        self._queue: deque[_Job] = deque()
        self._known: OrderedDict[str, Future[Answer]] = OrderedDict()
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="reward", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> "Future[Answer]":
        """The answer to come; the same for requests of one digest, unless the first failed."""
        with self._changed:
            if self._closed:
                raise Problem(503, "the server is stopping", retry_after=1)
            future = self._known.get(request.digest)
            if future is None:
                future = self._known[request.digest] = Future()
                self._queue.append(_Job(request, future, time.monotonic()))
                self._changed.notify_all()
            self._known.move_to_end(request.digest)
            while len(self._known) > _REMEMBERED and next(iter(self._known.values())).done():
                self._known.popitem(last=False)
        return future

    def close(self, timeout: float) -> None:
        """Take no more, and wait so many seconds for what is there."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout)

    def _work(self) -> None:
        while jobs := self._next():
            try:
                self._answer(jobs)
            except BaseException as error:
                # Of this module's own: no request may wait for ever.
                self._fail(jobs, Problem(500, f"{type(error).__name__}: {error}"))

    def _next(self) -> list[_Job]:
        """Jobs of one shape, of a batch's rows at most unless the first has more; [] at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if not self._queue:
                return []
            shape, end = _shape(self._queue[0].request), time.monotonic() + self._wait
            while True:
                chosen, rows = list[_Job](), 0
                for job in self._queue:
                    if _shape(job.request) == shape and (
                        not chosen or rows + job.rows <= self._batch
                    ):
                        chosen.append(job)
                        rows += job.rows
                left = end - time.monotonic()
                if rows >= self._batch or left <= 0.0 or self._closed:
                    break
                self._changed.wait(left)
            taken = set(map(id, chosen))
            self._queue = deque(job for job in self._queue if id(job) not in taken)
            return chosen

    def _answer(self, jobs: Sequence[_Job]) -> None:
        began = time.monotonic()
        try:
            scores = self._scores([job.request for job in jobs])
        except Problem as problem:
            if len(jobs) == 1:
                self._fail(jobs, problem)
            else:
                # One of them is to blame, and the others shall not suffer for it.
                for job in jobs:
                    self._answer([job])
            return
        computed, first = time.monotonic() - began, 0
        for job in jobs:
            own = scores[first : first + job.rows]
            first += job.rows
            bad = np.flatnonzero(~np.isfinite(own))
            if bad.size:
                where = f"{own[bad[0]]} for image {bad[0]} of {job.rows}"
                self._fail([job], Problem(500, f"the reward is not finite: {where}"))
            else:
                job.future.set_result(Answer(own, self._version, began - job.came, computed))

    def _fail(self, jobs: Sequence[_Job], problem: Problem) -> None:
        for job in jobs:
            with self._changed:
                self._known.pop(job.request.digest, None)
            if not job.future.done():
                job.future.set_exception(problem)

    def _scores(self, requests: Sequence[Request]) -> np.ndarray:
        """Scores of all rows of requests of one shape."""
        images = np.concatenate([request.images for request in requests])
        cond = _joined([request.cond for request in requests])
        shape, found, start = _shape(requests[0]), list[np.ndarray](), 0
        while start < len(images):
            size = self._fits.get(shape, self._batch)
            some = np.arange(start, min(start + size, len(images)))
            try:
                found.append(self._call(images, cond, some))
            except Exception as error:
                if not _is_out_of_memory(error):
                    raise Problem(500, f"the reward raised {_said(error)}") from None
                if some.size == 1 or self._fixed:
                    raise Problem(
                        507, f"no memory for {some.size} images: {_said(error)}"
                    ) from None
                self._fits[shape] = some.size // 2
                continue
            start += some.size
        return np.concatenate(found)

    def _call(self, images: np.ndarray, cond: Any, rows: np.ndarray) -> np.ndarray:
        at = np.pad(rows, (0, self._batch - rows.size), "edge") if self._fixed else rows
        # The reward's own to write to.
        scores = np.asarray(self._reward(images[at], _rows(cond, at)))
        if scores.dtype.kind == "V" and scores.dtype.itemsize == 2:
            scores = scores.astype(np.float32)  # bfloat16
        if scores.shape != (at.size,) or scores.dtype.kind != "f":
            raise TypeError(
                f"it returned shape {scores.shape} and dtype {scores.dtype}, expected shape "
                f"({at.size},) and a floating dtype"
            )
        return scores[: rows.size]


def _shape(request: Request) -> Hashable:
    """Equal for requests that can be computed together."""

    def one(array: np.ndarray) -> Hashable:
        return array.dtype.str, array.shape[1:]

    cond = request.cond
    if isinstance(cond, dict):
        return one(request.images), tuple((name, one(cond[name])) for name in sorted(cond))
    return one(request.images), one(cond) if isinstance(cond, np.ndarray) else type(cond)


def _joined(conds: Sequence[Any]) -> Any:
    first = conds[0]
    if isinstance(first, dict):
        return {name: np.concatenate([cond[name] for cond in conds]) for name in first}
    if isinstance(first, list):
        return [one for cond in conds for one in cond]
    return None if first is None else np.concatenate(conds)


def _rows(cond: Any, at: np.ndarray) -> Any:
    if isinstance(cond, dict):
        return {name: array[at] for name, array in cond.items()}
    if isinstance(cond, list):
        return [cond[i] for i in at]
    return None if cond is None else cond[at]


def _is_out_of_memory(error: Exception) -> bool:
    """Whether NumPy, PyTorch or JAX says so."""
    said = str(error)[:10_000].lower()
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(
        names & {"MemoryError", "OutOfMemoryError"}
        or "resource_exhausted" in said
        or "out of memory" in said
    )


def _said(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:400]
    except Exception:
        return type(error).__name__  # its own message fails
