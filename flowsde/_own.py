"""The hidden folder, inside one of the user's, that holds all that flowsde keeps for itself.

    OUT/.flowsde/FLOWSDE.TAG    marks it as ours: nothing without it is ever removed
    OUT/.flowsde/lock           held while a process writes to OUT
    OUT/.flowsde/tmp/           files that are being written

The lock is the kernel's (flock), which goes with the process however that ends, so that no number
of a process can be mistaken for another's; it is that of one machine, or of a network file system
that supports it. Whoever holds it removes what a dead one left in tmp/.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flowsde._files import HIDDEN, PREFIX, replacing

_TAG = "FLOWSDE.TAG"
_SIGNATURE = "Signature: flowsde-d41f7c0a9e6b4c25"
_TEXT = f"""{_SIGNATURE}
Made by flowsde, which removes this folder once it is of no more use. Nothing here is a result.
"""


def is_ours(hidden: Path) -> bool:
    """Whether a folder carries the tag."""
    tag = hidden / _TAG
    try:
        return not hidden.is_symlink() and tag.read_text().startswith(_SIGNATURE)
    except (OSError, UnicodeDecodeError):
        return False


def claim(folder: Path) -> Path:
    """The hidden folder of a folder, made if need be.

    Raises:
      ValueError: there is one of that name that flowsde did not make.
      OSError: it cannot be made.
    """
    hidden = folder / HIDDEN
    if not is_ours(hidden):
        folder.mkdir(parents=True, exist_ok=True)
        if hidden.is_symlink() or (hidden.exists() and not hidden.is_dir()) or _filled(hidden):
            raise ValueError(
                f"{hidden} was not made by flowsde, which keeps what it needs there; expected "
                f"another folder, or that one moved away"
            )
        hidden.mkdir(exist_ok=True)
        with replacing(hidden / _TAG) as temporary:
            temporary.write_text(_TEXT)
    (hidden / "tmp").mkdir(exist_ok=True)
    return hidden


def _filled(hidden: Path) -> bool:
    """Whether something other than what a process killed in `claim` leaves is there."""
    if not hidden.is_dir():
        return False
    return any(not name.startswith(PREFIX) for name in os.listdir(hidden))


def release(folder: Path) -> None:
    """Remove the hidden folder, if there is one that is ours."""
    hidden = folder / HIDDEN
    if is_ours(hidden):
        # The tag goes last: a kill before that leaves a folder that is ours still.
        for name in os.listdir(hidden):
            if name != _TAG:
                _remove(hidden / name)
        (hidden / _TAG).unlink()
        hidden.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Hold a folder's lock in the block, which gets the hidden folder.

    Raises:
      ValueError: another process holds it, or the hidden folder is not ours.
      OSError: it cannot be made.
    """
    while True:
        path = claim(folder) / "lock"
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise ValueError(
                f"another flowsde process is writing to {folder}; expected it to end first, or "
                f"another folder"
            ) from None
        # The one before may have removed the file between our two calls.
        if _same(handle, path):
            break
        os.close(handle)
    try:
        for name in os.listdir(path.parent / "tmp"):
            _remove(path.parent / "tmp" / name)
        yield path.parent
    finally:
        os.close(handle)


def _same(handle: int, path: Path) -> bool:
    """Whether an open file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
