"""A process that is killed before or after each call that changes names, for `test_replace`.

Prints, for each kill, what OUT held for the next reader, and what was there after the next writer.
"""

import json
import os
import sys
from pathlib import Path

from flowsde import _files, _replace

CALLS = ("rename", "replace", "unlink", "rmdir", "mkdir")


def put(out: Path, text: str, folder: bool) -> None:
    """Write `out`, a file or a folder."""
    with _replace.replacing_out(out, lambda _: None) as new:
        if folder:
            new.mkdir()
            (new / "deep").mkdir()
        (new / "deep" / "a" if folder else new).write_text(text)


def held(out: Path) -> str | None:
    """What a reader finds."""
    _replace.settle(out)
    if not out.exists():
        return None
    return (out / "deep" / "a" if out.is_dir() else out).read_text()


def dying(at: int, after: bool) -> None:
    """From now on the call of that number is the last."""
    left = at

    def wrapped(call):
        def counted(*args, **kwargs):
            nonlocal left
            left -= 1
            if left == 0 and not after:
                os._exit(9)
            try:
                return call(*args, **kwargs)
            finally:
                if left == 0:
                    os._exit(9)

        return counted

    for name in CALLS:
        setattr(os, name, wrapped(getattr(os, name)))
    for module in (_files, _replace):
        module.flush = wrapped(module.flush)


def main(folder: Path, kind: str, there: bool, after: bool) -> None:
    """Kill after kill, until a writer comes through."""
    at, status = 0, 9
    while status == 9:
        at += 1
        place = folder / f"{kind}-{there}-{after}-{at}"
        place.mkdir()
        out = place / "out"
        if there:
            put(out, "old", kind == "folder")
        child = os.fork()
        if not child:
            dying(at, after)
            put(out, "new", kind == "folder")
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        read = held(out)
        put(out, "next", kind == "folder")
        print(json.dumps([there, status, read, held(out), sorted(os.listdir(place))]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), "folder", True, True)
    main(Path(sys.argv[1]), "folder", True, False)
    main(Path(sys.argv[1]), "file", True, False)
    main(Path(sys.argv[1]), "file", False, True)
