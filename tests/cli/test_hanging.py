"""Rewards outside JAX that hang: one signal ends a command, and a thread in JAX no process."""

import signal
import subprocess
import sys
import threading
import time
from concurrent import futures
from pathlib import Path
from typing import Any

import pytest
import stand_in

import flowsde as fs
from flowsde import _threads

COMMAND = """
import sys, time
sys.path.insert(0, TESTS)
import jax, jax.numpy as jnp, numpy as np
import stand_in
import flowsde as fs
from flowsde import shapes
from flowsde.cli import main as cli
stand_in.use(setattr)
step = jax.jit(lambda x: jnp.sin(x @ x))

def hang(images, cond):
    print("HANGS", file=sys.stderr, flush=True)
    x = jnp.ones((300, 300))
    while True:
        if IN_JAX:
            step(x).block_until_ready()
        else:
            time.sleep(1000)

reward = fs.rewards.host(hang, timeout=TIMEOUT)
shapes.load_reward = lambda *_: reward
cli.main()
"""


def _start(args: list[str], timeout: float, in_jax: bool = False) -> subprocess.Popen[str]:
    values = {"TESTS": str(Path(stand_in.__file__).parent), "TIMEOUT": timeout, "IN_JAX": in_jax}
    script = "".join(f"{name} = {value!r}\n" for name, value in values.items()) + COMMAND
    return subprocess.Popen(
        [sys.executable, "-c", script, *args],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sample", "batch"])
def test_one_signal_ends_a_command_whose_reward_hangs(name: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("one red circle\ntwo blue squares\n")
    what = {"sample": ["one red circle"], "batch": ["--prompts-file", str(file)]}[name]
    options = ["--method", "bon", "--nfe", "4", "--steps", "2", "--out", str(tmp_path / "out")]
    with _start([name, *what, *options], 3600.0) as process:
        assert process.stderr is not None
        while "HANGS" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(timeout=60) == 143
        assert time.monotonic() - began < 15
        said = process.stderr.read()
        assert "interrupted" in said and "resume with: " in said and "Traceback" not in said


@pytest.mark.slow
def test_a_thread_left_in_jax_does_not_abort_a_command(tmp_path: Path) -> None:
    args = ["sample", "one red circle", "--method", "ode", "--steps", "2", "--out", str(tmp_path)]
    with _start(args, 0.5, in_jax=True) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(timeout=60) == 1, said
        assert said.splitlines()[-1].startswith("flowsde sample: 'one red circle' stopped at ")
        assert "gave no answer within its timeout of 0.5 s" in said and "FATAL" not in said


LIBRARY = """
import jax, jax.numpy as jnp, numpy as np
import flowsde as fs
step = jax.jit(lambda x: jnp.sin(x @ x))

def hang(images, cond):
    while True:
        step(jnp.ones((300, 300))).block_until_ready()

reward = fs.rewards.host(hang, timeout=0.5)
try:
    reward(np.zeros((1, 2)), None)
except fs.rewards.RewardError as error:
    print(error)
raise SystemExit(7)
"""


@pytest.mark.slow
def test_a_thread_left_in_jax_does_not_abort_a_script() -> None:
    done = subprocess.run([sys.executable, "-c", LIBRARY], capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert "gave no answer within its timeout of 0.5 s" in done.stdout and not done.stderr


def test_calls_that_are_given_up_are_counted() -> None:
    release = threading.Event()

    def hang(images: Any, cond: Any) -> Any:
        release.wait(60)

    reward = fs.rewards.host(hang, "hang", timeout=0.02)
    begun = threading.active_count()
    try:
        # A call that has not even begun in that time is dropped, and leaves no thread.
        while len(_threads.given_up()) < _threads.MOST:
            with pytest.raises(fs.rewards.RewardError, match="no answer within its timeout"):
                reward(None, None)
        for _ in range(12):
            with pytest.raises(fs.rewards.RewardError, match="is not called again: 8 calls"):
                reward(None, None)
        assert threading.active_count() - begun <= _threads.MOST
    finally:
        release.set()
    for thread in _threads.given_up():
        thread.join()
    with pytest.raises(fs.rewards.RewardError, match="returned|no answer"):
        reward(fs.grids.uniform(3), None)


def test_a_line_makes_one_call_after_the_other() -> None:
    line, seen = _threads.Line("line"), []

    def work(i: int) -> int:
        time.sleep(0.01 * (3 - i))
        seen.append(i)
        if i == 1:
            raise KeyError(i)
        return i

    calls = [line.submit(work, i) for i in range(3)]
    assert _threads.wait(calls[0]) == 0 and _threads.wait(calls[2]) == 2 and seen == [0, 1, 2]
    with pytest.raises(KeyError):
        _threads.wait(calls[1])
    line.close()
    with pytest.raises(_threads.Late):
        _threads.wait(futures.Future(), 0.1)


def test_an_exception_that_cannot_be_printed() -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def odd(images: Any, cond: Any) -> Any:
        raise Odd

    def leaves(images: Any, cond: Any) -> Any:
        raise SystemExit(3)

    for fn, said in ((odd, "raised Odd$"), (leaves, "raised SystemExit: 3$")):
        for timeout in (None, 5.0):
            with pytest.raises(fs.rewards.RewardError, match=said):
                fs.rewards.host(fn, timeout=timeout)(fs.grids.uniform(3), None)
