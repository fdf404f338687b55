"""The process of a command ends at once, and leaves nothing undone that Python would have done."""

import subprocess
import sys

import pytest

SCRIPT = """
import atexit, sys, threading, time
from flowsde.cli import main

def late():
    time.sleep(0.1)
    print("thread")

class Freed:
    def __del__(self):
        print("freed")

atexit.register(print, "registered")
atexit.register(lambda: 1 / 0)
kept = Freed()
threading.Thread(target=late, daemon={daemon}).start()
sys.stdout.write("written ")
main._leave({code})
"""


@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.parametrize(
    ("daemon", "said"),
    [(True, "written registered\n"), (False, "written thread\nregistered\nfreed\n")],
)
def test_exit_functions_run_and_threads_are_waited_for(daemon, said, code):
    script = SCRIPT.format(daemon=daemon, code=code)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (code, said)
    assert "ZeroDivisionError" in ended.stderr


ON_A_CPU = """
import jax
from jax._src import api
from flowsde.cli import main

jax.numpy.zeros(2).block_until_ready()
api.clear_caches = lambda: print("freed")
jax.distributed.is_initialized = lambda: {several}
main._leave(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("several", [False, True])
def test_programs_of_a_cpu_are_not_freed_one_by_one(several):
    """Where other processes may wait, JAX does what it does at an exit."""
    script = ON_A_CPU.format(several=several)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "freed\n" if several else ""), ended.stderr


WRAPPED = """
import cProfile, sys
from flowsde.cli.main import main

sys.argv[1:] = ["--version"]
{call}
"""


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("main(); print('behind')", ""),
        ("def whole():\n  try: main()\n  finally: print('around')\nwhole()", "around"),
        ("cProfile.run('main()')", "function calls"),
    ],
)
def test_what_is_around_the_command_ends_as_it_would(call, said):
    """A script's own tidying up and a profiler's report happen; an entry point just ends."""
    script = WRAPPED.format(call=call)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    version, _, rest = ended.stdout.partition("\n")
    assert version.startswith("flowsde ")
    assert said in rest
    assert bool(rest) == bool(said)


def test_files_that_a_reward_has_open_are_written(tmp_path):
    """Python closes them at its end; the command's fast one must not lose what they hold."""
    reward = "kept = open('log.txt', 'w')\nkept.write('held')\nscore = None\n"
    (tmp_path / "keeping.py").write_text(reward)
    command = [sys.executable, "-m", "flowsde", "serve-reward", "--reward", "keeping:score"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "must be a function" in ended.stderr
    assert (tmp_path / "log.txt").read_text() == "held"
