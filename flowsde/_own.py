"""The hidden folder, inside one of the user's, that holds all that flowsde keeps for itself.

    OUT/.flowsde/FLOWSDE.TAG    marks it as ours: nothing without it is ever removed
    OUT/.flowsde/lock           held while a process writes to OUT
    OUT/.flowsde/tmp/           files that are being written

What replaces OUT as a whole, file or folder, has its own next to it: .OUT.flowsde (`beside`).

The lock is the kernel's (flock), which goes with the process however that ends, so that no number
of a process can be mistaken for another's; it is that of one machine, or of a network file system
that supports it. Whoever holds it removes what a dead one left in tmp/.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flowsde import _files
from flowsde._files import HIDDEN, PREFIX, replacing

_TAG, _LOCK, _TEMPORARY = "FLOWSDE.TAG", "lock", "tmp"
_LOOKS, _PAUSE = 20, 0.005
"""Times, seconds: a tenth of one, which only those wait whose folder has our name."""
_TRIES = 1000
"""Each is lost to another process that has just ended."""
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


def beside(path: Path) -> Path:
    """The hidden folder of what is replaced as a whole."""
    return path.with_name(f".{path.name}{HIDDEN}")


def claim(folder: Path, hidden: Path | None = None) -> Path:
    """The hidden folder of a folder, made if need be.

    Args:
      folder: that is written to.
      hidden: where it is instead of in there.

    Raises:
      ValueError: there is one of that name that flowsde did not make.
      OSError: it cannot be made.
    """
    hidden = _make(hidden or folder / HIDDEN)
    if not is_ours(hidden):
        with replacing(hidden / _TAG) as temporary:
            temporary.write_text(_TEXT)
    _mkdir(hidden / _TEMPORARY)
    return hidden


def _make(hidden: Path) -> Path:
    """The folder, without a tag if there was none."""
    _check_ours(hidden)
    hidden.parent.mkdir(parents=True, exist_ok=True)
    _mkdir(hidden)
    return hidden


def _check_ours(hidden: Path) -> None:
    if _is_of_others(hidden):
        raise ValueError(
            f"{hidden} was not made by flowsde, which keeps what it needs there; expected another "
            f"folder, or that one moved away"
        )


def _mkdir(folder: Path) -> None:
    # pathlib's `exist_ok` looks twice, between which another process may remove it.
    with suppress(FileExistsError):
        os.mkdir(folder)


def _is_of_others(hidden: Path) -> bool:
    # Between two looks another process may claim or release it: what is of others stays as it is.
    for _ in range(_LOOKS):
        if is_ours(hidden):
            return False
        other = hidden.is_symlink() or (hidden.exists() and not hidden.is_dir()) or _filled(hidden)
        if not other:
            return False
        time.sleep(_PAUSE)
    return True


def _filled(hidden: Path) -> bool:
    """Whether something other than what a process killed in `claim` or `release` leaves is there,
    or one in `locked` while another releases."""
    try:
        there = [name for name in os.listdir(hidden) if not name.startswith(PREFIX)]
    except FileNotFoundError:
        return False
    return any(not _is_empty(hidden / name) for name in there)


def _is_empty(path: Path) -> bool:
    """Whether it is the lock, or the folder of temporary files, with nothing in it."""
    try:
        if path.name == _LOCK:
            return path.is_file() and not path.stat().st_size
        return path.name == _TEMPORARY and not os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return not os.path.lexists(path)


def release(folder: Path, hidden: Path | None = None) -> None:
    """Remove the hidden folder, if there is one that is ours; where it is as of `claim`.

    For the holder of its lock.
    """
    hidden = hidden or folder / HIDDEN
    if not is_ours(hidden):
        return
    # What is left is either ours still or as good as empty: first what nobody would miss, each at
    # once, then the tag, which says so. The lock goes last: whoever has the next one makes what it
    # needs.
    for name in os.listdir(hidden):
        if name not in (_TAG, _LOCK, _TEMPORARY):
            discard(hidden / name)
    remove(hidden / _TEMPORARY)
    (hidden / _TAG).unlink()
    (hidden / _LOCK).unlink(missing_ok=True)
    with suppress(OSError):
        hidden.rmdir()


def discard(path: Path) -> None:
    """Remove what lies in a hidden folder, at once or not at all; for the holder of its lock."""
    if path.is_dir() and not path.is_symlink():
        hidden = next(parent for parent in path.parents if is_ours(parent))
        _mkdir(hidden / _TEMPORARY)
        grave = Path(tempfile.mkdtemp(dir=hidden / _TEMPORARY))
        os.replace(path, grave / "gone")
        shutil.rmtree(grave)
    else:
        path.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file, a folder or a link; what it leads to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, hidden: Path | None = None) -> Iterator[Path]:
    """Hold a folder's lock in the block, which gets the hidden folder; where it is as of `claim`.

    A hidden folder in which nothing was left is removed at the end.

    Raises:
      ValueError: another process holds it, or the hidden folder is not ours.
      OSError: it cannot be made.
    """
    handle = _acquire(folder, hidden)
    path, where = hidden or folder / HIDDEN, folder.absolute()
    try:
        claim(folder, hidden)
        for name in os.listdir(path / _TEMPORARY):
            remove(path / _TEMPORARY / name)
        if hidden is None:
            _files.scratches[where] = path / _TEMPORARY
        yield path
    finally:
        try:
            _files.scratches.pop(where, None)
            if path.is_dir() and not set(os.listdir(path)) - {_TAG, _LOCK, _TEMPORARY}:
                release(folder, hidden)
        finally:
            os.close(handle)


@contextmanager
def shared(folder: Path) -> Iterator[Path]:
    """Hold a folder's lock in the block together with others that do so; nobody holds it alone.

    What a process that died has left in tmp/ stays until somebody does.

    Raises:
      ValueError: another process holds it alone, or the hidden folder is not ours.
      OSError: it cannot be made.
    """
    handle, where = _shared(folder), folder.absolute()
    try:
        _files.scratches[where] = claim(folder) / _TEMPORARY
        yield folder / HIDDEN
    finally:
        _files.scratches.pop(where, None)
        os.close(handle)


def _shared(folder: Path) -> int:
    # The last of those before may just be removing what they shared.
    for _ in range(_LOOKS):
        try:
            return _acquire(folder, None, alone=False)
        except ValueError:
            time.sleep(_PAUSE)
    return _acquire(folder, None, alone=False)


def release_unless_shared(folder: Path) -> None:
    """Remove the hidden folder if no other process has its lock: the last to go does."""
    if (folder / HIDDEN).exists():
        with suppress(ValueError, OSError), locked(folder):
            release(folder)


def tidy(folder: Path) -> None:
    """Remove what a process that died in `release` has left, if there is any."""
    if (folder / HIDDEN).exists():
        with suppress(ValueError, OSError), locked(folder):
            pass


def check_free(folder: Path) -> None:
    """ValueError if another process holds a folder's lock, or the hidden folder is not ours;
    nothing is written."""
    _check_ours(folder / HIDDEN)
    try:
        handle = os.open(folder / HIDDEN / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        _take(handle, folder)
    finally:
        os.close(handle)


def _acquire(folder: Path, hidden: Path | None, alone: bool = True) -> int:
    """The lock, as an open file."""
    for _ in range(_TRIES):
        if (handle := _lock(folder, hidden, alone)) is not None:
            return handle
    raise ValueError(
        f"the lock of {folder}, {(hidden or folder / HIDDEN) / _LOCK}, comes and goes, or is a "
        f"link to nothing; expected another folder"
    )


def _lock(folder: Path, hidden: Path | None, alone: bool) -> int | None:
    """The lock, as an open file; None if whoever had it removed it between our calls."""
    try:
        path = _make(hidden or folder / HIDDEN) / _LOCK
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        return None
    try:
        _take(handle, folder, alone)
        if _same(handle, path):
            return handle
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _take(handle: int, folder: Path, alone: bool = True) -> None:
    import fcntl  # Windows has none.

    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"another flowsde process is writing to {folder}; expected it to end first, or another "
            f"folder"
        ) from None


def _same(handle: int, path: Path) -> bool:
    """Whether an open file is the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
