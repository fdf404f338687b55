"""`flowsde` once, with what its main thread does looked at a hundred times a second.

python _cold_start_where.py FILE ARGS…: the command of these arguments; seconds by kind go to FILE.
"""

import json
import sys
import threading
import time
from types import FrameType

began = time.perf_counter()
PAUSE = 0.01
KINDS = {
    # The first that a frame belongs to, of the innermost ones last.
    "importing": ("importlib",),
    "drawing": ("cli/drawings.py",),
    "reading weights": ("shapes/weights.py",),
    "compiling": ("jax/_src/compiler.py", "runner/compiling.py"),
    "tracing and lowering": (
        "jax/_src/interpreters/mlir.py",
        "jax/_src/interpreters/partial_eval.py",
    ),
    "computing": ("jax/_src/api.py",),
}
REST = "all else"


def kind(frame: FrameType | None) -> str:
    """What a stack is doing: the first kind that any of its frames belongs to."""
    files = set()
    while frame is not None:
        files.add(frame.f_code.co_filename)
        frame = frame.f_back
    for name, parts in KINDS.items():
        if any(part in file for file in files for part in parts):
            return name
    return REST


def main(file: str, args: list[str]) -> None:
    """Run the command, and write what took how long."""
    found = dict.fromkeys((*KINDS, REST), 0.0)
    own, over = threading.get_ident(), threading.Event()

    def look() -> None:
        last = began
        while not over.is_set():
            now = time.perf_counter()
            found[kind(sys._current_frames().get(own))] += now - last
            last = now
            time.sleep(PAUSE)

    threading.Thread(target=look, daemon=True).start()
    from flowsde.cli.main import main as command

    try:
        command(args)
    finally:
        over.set()
        with open(file, "w") as opened:
            json.dump({name: round(seconds, 3) for name, seconds in found.items()}, opened)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
