"""Functions of others in threads of their own: they may hang, and are not waited for for ever.

Python cannot end a thread. One that is given up stays until its function returns; of more than
`MOST` the next call is refused. A thread that is still in JAX when the interpreter goes away aborts
the process, so its end is waited for, `PATIENCE` seconds at most; a function in Python ends by an
exception meanwhile.
"""

import atexit
import ctypes
import queue
import threading
import time
from collections.abc import Callable
from concurrent import futures
from contextlib import suppress
from typing import Any

from flowsde import interrupts

MOST = 8
"""Threads given up that may be there at once."""
PATIENCE = 5.0
_TICK = 0.05
"""Seconds between two looks at whether a signal came."""

_given_up: list[threading.Thread] = []


class Late(Exception):
    """A function gave no answer in time."""


class Busy(Exception):
    """There are too many threads that were given up."""


def given_up() -> list[threading.Thread]:
    """Threads that nobody waits for any more and that are still there."""
    _given_up[:] = [thread for thread in _given_up if thread.is_alive()]
    return list(_given_up)


def _give_up(thread: threading.Thread) -> None:
    atexit.unregister(_let_end)
    atexit.register(_let_end)
    _given_up.append(thread)


def _let_end() -> None:
    threads, end = given_up(), time.monotonic() + PATIENCE
    for thread in threads:
        number = ctypes.c_ulong(thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(number, ctypes.py_object(SystemExit))
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))


class Line:
    """A thread that makes calls one after the other."""

    def __init__(self, name: str):
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._calling = False
        # A daemon: one that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, fn: Callable[..., Any], *args: Any) -> futures.Future[Any]:
        """Begin a call."""
        future: futures.Future[Any] = futures.Future()
        self._calls.put((future, fn, args))
        return future

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            self._calling = True
            future, fn, args = call
            try:
                future.set_result(fn(*args))
            except BaseException as error:
                future.set_exception(error)
            self._calling = False
            # The next call may be long in coming.
            del call, future, fn, args

    def close(self) -> None:
        """Let it end after the call that it is in; what waits is dropped."""
        with suppress(queue.Empty):
            while True:
                self._calls.get_nowait()
        self._calls.put(None)
        if self._calling:
            _give_up(self._thread)


def wait(future: futures.Future[Any], timeout: float | None = None) -> Any:
    """What a call returns or raises.

    Raises:
      Late: nothing within `timeout` seconds.
      Interrupted: a signal came (`flowsde.interrupts`).
    """
    end = None if timeout is None else time.monotonic() + timeout
    while not future.done():
        interrupts.check()
        left = _TICK if end is None else min(_TICK, end - time.monotonic())
        if left <= 0.0:
            raise Late
        futures.wait([future], left)
    return future.result()


def call(name: str, timeout: float, fn: Callable[..., Any], *args: Any) -> Any:
    """fn(*args) in a thread.

    Raises:
      Late: it has taken longer than `timeout` seconds, and is given up.
      Busy: too many that were given up still run.
    """
    if len(given_up()) >= MOST:
        raise Busy
    line = Line(name)
    try:
        return wait(line.submit(fn, *args), timeout)
    finally:
        line.close()
