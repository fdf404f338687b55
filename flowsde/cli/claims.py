"""Processes that share the folder of a batch: who searches for what.

    OUT/.flowsde/claims/ID.json    what a process has taken; it holds the file's lock while it lives
    OUT/.flowsde/claims/lock       held while one takes prompts or writes what all have found
    OUT/.flowsde/claims/failed     prompts that failed, and why, since the first of them began
    OUT/.flowsde/claims/run        what that first one was asked for, and all others must be

Locks are the kernel's, as in `flowsde._own`: they go with the process however that ends, so that
what it had taken is free at once, and no clock is asked who is alive. Machines that share a folder
need a file system that has locks for all of them.
"""

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flowsde import interrupts
from flowsde._files import read_json, speakable, write_json
from flowsde._schema import items, mapping, table, text

_LOCK, _FAILED, _RUN = "lock", "failed", "run"
_READ_FAILED = table(text)
_PAUSE = 0.02
"""Seconds between two tries to have the lock, in which a signal is heard."""


class Claims:
    """What this process has taken, and the others.

    Args:
      hidden: of a folder whose lock is shared (`flowsde._own.shared`).

    Attributes:
      id: of this process.
    """

    def __init__(self, hidden: Path):
        self._folder = hidden / "claims"
        self._folder.mkdir(exist_ok=True)
        self.id = uuid.uuid4().hex[:12]
        with self.alone():
            if not self._others():
                for name in (_FAILED, _RUN):
                    (self._folder / name).unlink(missing_ok=True)
            self._own = self._open()

    def close(self) -> None:
        """Give back what was taken."""
        self._path.unlink(missing_ok=True)
        os.close(self._own)

    @property
    def _path(self) -> Path:
        return self._folder / f"{self.id}.json"

    def _open(self) -> int:
        """This process's file, locked, with nothing taken."""
        import fcntl  # Windows has none.

        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(handle, fcntl.LOCK_EX)
        _write(handle, [])
        return handle

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One process at a time."""
        import fcntl

        handle = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    interrupts.check()
                    time.sleep(_PAUSE)
            yield
        finally:
            os.close(handle)

    def take(self, names: Sequence[str], done: Callable[[str], bool], most: int) -> list[str]:
        """Take prompts that nobody has, instead of those that were taken before.

        Args:
          names: of prompts to be done, in the order of their list.
          done: whether one has been finished since, by whoever.
          most: of this process, how many.
        """
        with self.alone():
            others = self._others()
            taken = {name for own in others.values() for name in own} | self.failed().keys()
            mine: list[str] = []
            for name in names:
                if len(mine) < most and name not in taken and not done(name):
                    mine.append(name)
            _write(self._own, mine)
        return mine

    def check_same(self, run: dict[str, Any]) -> None:
        """ValueError if the others were asked for something else. In `alone`."""
        path, own = self._folder / _RUN, speakable(run)
        try:
            theirs = mapping(read_json(path), str(path))
        except FileNotFoundError:
            write_json(path, own)
            return
        for name in own:
            if own[name] != theirs.get(name):
                raise ValueError(
                    f"the processes that share {path.parents[2]} were given another {name}; "
                    "expected the same command of all, or another --out"
                )

    def _others(self) -> dict[str, list[str]]:
        """What each other process has taken; files of dead ones are removed. In `alone`."""
        import fcntl

        found = {}
        for path in self._folder.glob("*.json"):
            if path == self._path:
                continue
            with suppress(FileNotFoundError), open(path, "r+b") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    found[path.stem] = _read(file.read(), path)
                else:
                    path.unlink()
        return found

    def workers(self) -> int:
        """Processes that share the folder, this one included."""
        with self.alone():
            return 1 + len(self._others())

    def failed(self) -> dict[str, str]:
        """Prompts that failed, by name, and why."""
        path = self._folder / _FAILED
        try:
            return _READ_FAILED(read_json(path), str(path))
        except FileNotFoundError:
            return {}

    def fail(self, name: str, why: str) -> None:
        """Nobody is to try this prompt again."""
        with self.alone():
            write_json(self._folder / _FAILED, self.failed() | {name: why})


def are_there(hidden: Path) -> bool:
    """Whether processes share a folder: one of them has its file locked."""
    import fcntl

    for path in (hidden / "claims").glob("*.json"):
        with suppress(FileNotFoundError), open(path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def _write(handle: int, names: list[str]) -> None:
    """Flushed: the file stays open, and on other machines is read while it is."""
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(names).encode(), 0)
    os.fsync(handle)


def _read(written: bytes, path: Path) -> list[str]:
    try:
        return items(text)(json.loads(written), str(path))
    except ValueError:
        raise ValueError(
            f"{path}, of a process that is alive, cannot be read: expected a file system on which "
            "what one machine writes is seen by the others at once"
        ) from None
