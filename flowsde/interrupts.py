"""Signals that ask a command to stop: noted when they arrive, acted on after each round.

An exception from a signal handler is raised wherever Python happens to be. While JAX compiles, that
is a callback in which exceptions are printed and dropped. So the handler only notes the signal, and
`check` raises where it is called: after each round of a search, batch, training step, part of a
comparison or tensor of a conversion, and while waiting for a reward outside JAX. Compilation is
never interrupted.

A second signal ends the process at once. Python runs handlers in the main thread, which may be busy
compiling, so a separate thread reads the signals from a socket.

A process ends with exit code 128 and the signal's number, as a shell has it: 130 for Ctrl-C
(SIGINT), 143 for SIGTERM, 129 for SIGHUP. Signals that were ignored when it was started, as by
nohup, stay ignored.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SAME = 0.5
"""Seconds within which signals count as one: a terminal and a launcher may both send it."""
_SAID = b"\nflowsde: stopping after this round; press Ctrl-C again to stop at once\n"

_came: list[int] = []


class Interrupted(KeyboardInterrupt):
    """A signal came.

    Attributes:
      number: of the signal.
    """

    def __init__(self, number: int, said: str = "interrupted"):
        super().__init__(said)
        self.number = number


def check() -> None:
    """Raise `Interrupted` if a signal has come; outside of `handling`, nothing."""
    if _came:
        raise Interrupted(_came[0])


def said_of(error: KeyboardInterrupt, said: str) -> Interrupted:
    """An interruption with other words."""
    return Interrupted(getattr(error, "number", signal.SIGINT), said)


def _note(number: int, _: Any) -> None:
    _came.append(number)


def _watch(reader: socket.socket) -> None:
    """Note signals while the main thread is busy, and end the process at the second."""
    first = None
    while numbers := reader.recv(64):
        for number in numbers:
            if number not in SIGNALS:
                continue
            if first is None:
                first = time.monotonic()
                _note(number, None)
                with suppress(OSError):
                    os.write(2, _SAID)
            elif time.monotonic() - first > _SAME:
                os._exit(128 + number)


@contextmanager
def handling() -> Iterator[None]:
    """Note signals in the block, if it is in the thread that may handle them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    left_alone = (signal.SIG_IGN, None)
    theirs = [one for one in SIGNALS if signal.getsignal(one) not in left_alone]
    before = {number: signal.signal(number, _note) for number in theirs}
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()
        watcher.join()
        reader.close()
        _came.clear()
