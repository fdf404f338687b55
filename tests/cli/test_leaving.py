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
