"""Signals: noted wherever they come, acted upon where they are looked at."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import pytest

from flowsde import interrupts


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_it_is_raised_where_it_is_looked_at(number: signal.Signals) -> None:
    # Whoever started the tests may have had it ignored, as nohup does.
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(interrupts.Interrupted) as stop, interrupts.handling():
            interrupts.check()
            os.kill(os.getpid(), number)
            reached = [time.monotonic()]
            interrupts.check()
            reached.clear()
        assert reached and stop.value.number == number
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    # The next command begins without it.
    interrupts.check()


def test_one_that_comes_in_a_callback_of_jax_is_not_lost() -> None:
    """A callback of the garbage collector, where what a handler raises is printed and dropped."""

    def collected(phase: str, _: object) -> None:
        if phase == "start" and not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    sent: list[bool] = []
    with pytest.raises(interrupts.Interrupted), interrupts.handling():
        gc.callbacks.append(collected)
        try:
            gc.collect()
            jax.jit(lambda x: x + 1)(jnp.zeros(3))
        finally:
            gc.callbacks.remove(collected)
        assert sent
        interrupts.check()


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts.handling():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
            interrupts.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_another_thread_nothing_is_handled() -> None:
    def work() -> None:
        with interrupts.handling():
            seen.append(signal.getsignal(signal.SIGTERM))

    seen: list[object] = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


# The main thread is in C, as when XLA compiles: no handler of Python's runs.
BUSY = """
import ctypes, signal
from flowsde import interrupts
# Whoever started the tests may have had it ignored, as nohup does.
signal.signal(signal.SIGINT, signal.default_int_handler)
with interrupts.handling():
    print("ready", flush=True)
    wait = ctypes.CDLL(None).usleep
    for _ in range(20):
        wait(999999)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_the_process_at_once(number: signal.Signals, code: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        time.sleep(2 * interrupts._SAME)
        process.send_signal(number)
        began = time.monotonic()
        assert process.wait(timeout=30) == code
        assert time.monotonic() - began < 5
        assert "stopping after this round" in process.stderr.read()
