"""OUT, a file or a folder, replaced whole or not at all, whenever the process or the machine dies.

    .OUT.flowsde/tmp/new    what is being written (`flowsde._own`: marked as ours, locked)
    .OUT.flowsde/old        what was called OUT, between two renames

The new is flushed, the old one set aside, the new one takes the name, the old one is removed. By
that whoever comes next, a conversion or a reader, knows what a dead process left: without an OUT
the old one gets its name back; what was half-written goes with the next conversion.

Where OUT is a link, what it leads to is replaced, and the link stays.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flowsde._files import flush
from flowsde._own import beside, is_ours, locked, release, remove


def target(out: Path) -> Path:
    """Where OUT is, links followed; ValueError for links that lead nowhere, and for the root."""
    found = Path(os.path.realpath(out))
    if found.is_symlink() or not found.name:
        what = "a link that leads to itself" if found.name else "the root"
        raise ValueError(f"{out} is {what}, expected a folder that can be replaced")
    return found


@contextmanager
def replacing_out(out: Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """The name to write a file or a folder under, which becomes `out` if the block succeeds, and
    vanishes if it does not.

    Args:
      out: its folder is made if need be.
      check: told where `out` is while it is locked; raises if that may not be replaced.

    Raises:
      ValueError: another process writes to `out`.
      OSError: the disk.
    """
    out = target(out)
    made = _make(out.parent)
    try:
        with locked(out, beside(out)) as hidden:
            try:
                _recover(out, hidden)
                check(out)
                new = hidden / "tmp" / "new"
                yield new
                _flush(new)
                _swap(new, out, hidden)
            finally:
                # With the old one back in its place; if that fails, it stays where it is.
                _recover(out, hidden)
                release(out, hidden)
    except BaseException:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()
        raise


def settle(out: Path) -> None:
    """Give `out` back what was called so before a process was killed between its two renames."""
    if os.path.exists(out):
        return
    out = target(out)
    hidden = beside(out)
    if not os.path.lexists(out) and os.path.lexists(hidden / "old") and is_ours(hidden):
        with locked(out, hidden):
            _recover(out, hidden)
            release(out, hidden)


def _make(folder: Path) -> list[Path]:
    """Make a folder, and say which were made, the outermost first."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()][::-1]
    for one in missing:
        one.mkdir(exist_ok=True)
        flush(one.parent)
    return missing


def _recover(out: Path, hidden: Path) -> None:
    old = hidden / "old"
    if not os.path.lexists(old):
        return
    if os.path.lexists(out):
        remove(old)
    else:
        os.rename(old, out)
        flush(out.parent)


def _flush(new: Path) -> None:
    """Until all of it is on the disk."""
    for folder, _, files in os.walk(new, topdown=False):
        for name in files:
            flush(Path(folder, name))
        flush(Path(folder))
    if not new.is_dir():
        flush(new)


def _swap(new: Path, out: Path, hidden: Path) -> None:
    if os.path.lexists(out):
        os.rename(out, hidden / "old")
        flush(hidden)
    os.rename(new, out)
    flush(out.parent)
