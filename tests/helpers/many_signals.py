"""200 signals at random moments of commands: none may be swallowed, and every command is resumed.

python tests/many_signals.py [N]: a stand-in for the model, compiled anew every fourth time. Another
process sends SIGINT or SIGTERM at a random moment of a run; one that comes when the run is over is
not counted. The exit code must be the signal's, or 0 with a complete result, where the signal came
after the last round; every twentieth is resumed, and the result must be that of an unbroken run.
"""

import collections
import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import stand_in

from flowsde.cli import main as cli

SENDER = """
import os, sys, time
for line in sys.stdin:
    pid, number, delay = line.split()
    time.sleep(float(delay))
    os.kill(int(pid), int(number))
    print("sent", flush=True)
"""
PROMPTS = "one red circle\ntwo blue squares\nthree green triangles\n"
SAMPLE = ["sample", "two green triangles", "--method", "ode", "--steps", "9"]
BATCH = ["batch", "--method", "ode", "--steps", "9", "--batch-size", "2"]


def _run(args: list[str], anew: bool = False) -> int:
    """Exit code of a command, which may compile anew, as in a process of its own."""
    if anew:
        jax.clear_caches()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            cli.main(args)
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def _rewards(out: Path) -> list[Any]:
    found = []
    for path in sorted(out.rglob("result.json")):
        values = json.loads(path.read_text())
        found.append((values["prompt"], round(values["reward"], 5), values["nfe"]))
    return found


def main(wanted: int) -> None:
    """Print what became of each signal."""
    stand_in.use(setattr)
    draw, counted = random.Random(23), collections.Counter[Any]()
    missed: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: missed.append(number))
    sender = subprocess.Popen(
        [sys.executable, "-c", SENDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert sender.stdin and sender.stdout
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "prompts.txt")
        file.write_text(PROMPTS)
        commands = {"sample": SAMPLE, "batch": [*BATCH, "--prompts-file", str(file)]}
        whole, seconds = {}, {}
        for name, args in commands.items():
            _run([*args, "--out", f"{folder}/first-{name}"])
            for anew in (True, False):
                began = time.perf_counter()
                assert _run([*args, "--out", f"{folder}/whole-{name}", "--overwrite"], anew) == 0
                seconds[name, anew] = time.perf_counter() - began
            whole[name] = _rewards(Path(folder, f"whole-{name}"))
        sent = 0
        while sent < wanted:
            name = draw.choice(["sample", "sample", "batch"])
            number = draw.choice([signal.SIGINT, signal.SIGTERM])
            args, anew = [*commands[name], "--out", f"{folder}/{sent}"], draw.random() < 0.25
            delay = draw.uniform(0.0, 0.95 * seconds[name, anew])
            sender.stdin.write(f"{os.getpid()} {int(number)} {delay}\n")
            sender.stdin.flush()
            code = _run(args, anew)
            assert sender.stdout.readline() == "sent\n"
            time.sleep(0.01)
            if missed:
                counted["came after the end"] += 1
                missed.clear()
                shutil.rmtree(f"{folder}/{sent}")
                continue
            complete = code == 0 and _rewards(Path(folder, str(sent))) == whole[name]
            right = "right code" if code == 128 + number else f"SWALLOWED, code {code}"
            right = "already complete" if complete else right
            counted[f"{number.name} {name}: {right}"] += 1
            if sent % 20 == 0:
                ended = _run(args)
                good = ended == 0 and _rewards(Path(folder, str(sent))) == whole[name]
                counted["resumed to the same result" if good else f"DIFFERENT, {ended}"] += 1
            sent += 1
            print(f"{sent} of {wanted} {dict(counted)}", flush=True)
    sender.kill()
    print()
    for what, count in sorted(counted.items(), key=str):
        print(count, what)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
