"""A process that dies, or a disk that is full, at any of the writes and renames of a run."""

import builtins
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_WRITES = ("mkdir", "replace", "rename", "fsync")
_REMOVES = ("unlink", "remove", "rmdir")


class Died(BaseException):
    """Nothing catches it, and what would clean up after it cannot write either."""


class Disk:
    """Counts the writes, renames and removals below a folder, before and after each.

    Attributes:
      points: passed so far.
    """

    def __init__(self, root: Path, dies_at: int | None = None, full_from: int | None = None):
        self._root, self._dies_at, self._full_from = str(root), dies_at, full_from
        self._dead = False
        self.points = 0

    def _ours(self, first: Any, named: dict[str, Any]) -> bool:
        if isinstance(first, int) or named.get("dir_fd") is not None:
            return True
        return str(first).startswith(self._root)

    def _pass(self) -> None:
        if self._dead or self.points == self._dies_at:
            self._dead = True
            raise Died
        self.points += 1

    def _full(self) -> bool:
        return self._full_from is not None and self.points > self._full_from

    def watched(self, call: Callable[..., Any], writes: bool) -> Callable[..., Any]:
        """A function of `os`."""

        def watching(first: Any, *args: Any, **named: Any) -> Any:
            if not self._ours(first, named):
                return call(first, *args, **named)
            self._pass()
            if writes and self._full():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(first))
            found = call(first, *args, **named)
            self._pass()
            return found

        return watching

    def opened(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`open`: what is written to a full disk fails as it is written."""

        def opening(first: Any, mode: Any = "r", *args: Any, **named: Any) -> Any:
            own = isinstance(first, int) or not self._ours(first, {})
            if own or not set("wax+") & set(str(mode)):
                return call(first, mode, *args, **named)
            self._pass()
            found = call("/dev/full" if self._full() else first, mode, *args, **named)
            if self._points_at_death():
                found.close()
            self._pass()
            return found

        return opening

    def _points_at_death(self) -> bool:
        return self._dead or self.points == self._dies_at

    def created(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`os.open`, of files that it makes."""

        def opening(first: Any, flags: int, *args: Any, **named: Any) -> Any:
            if not flags & os.O_CREAT or not self._ours(first, named):
                return call(first, flags, *args, **named)
            self._pass()
            if self._full():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(first))
            found = call(first, flags, *args, **named)
            if self._points_at_death():
                os.close(found)
            self._pass()
            return found

        return opening


@contextmanager
def disk(root: Path, dies_at: int | None = None, full_from: int | None = None) -> Iterator[Disk]:
    """Watch what is written below a folder.

    Args:
      root: the folder.
      dies_at: the point at which the process dies; nothing is written after it.
      full_from: the point from which on the disk is full.
    """
    own = Disk(root, dies_at, full_from)
    with pytest.MonkeyPatch.context() as patch:
        # Nothing that this process reads depends on it.
        patch.setattr(os, "fsync", lambda handle: None)
        for name in _WRITES:
            patch.setattr(os, name, own.watched(getattr(os, name), True))
        for name in _REMOVES:
            patch.setattr(os, name, own.watched(getattr(os, name), False))
        patch.setattr(os, "open", own.created(os.open))
        opening = own.opened(io.open)
        patch.setattr(io, "open", opening)
        patch.setattr(builtins, "open", opening)
        yield own
