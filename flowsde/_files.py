"""Files that are whole or not there: written under a temporary name, flushed, then renamed.

A rename alone survives the death of the process, not that of the machine: the data is flushed
before it and the folder's entry after it. Temporary files lie in the folder's hidden one
(`flowsde._own`) where there is one, which is emptied by the next process that holds its lock.

JSON has no words for infinities and NaN. They are written as the strings "Infinity", "-Infinity"
and "NaN", as in Protobuf's JSON mapping, and `flowsde._schema.number` reads them back.
"""

import json
import math
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

HIDDEN = ".flowsde"
"""Name of the folder, inside one of the user's, that holds what is ours alone."""
PREFIX = ".flowsde-tmp-"
"""Of the names of temporary files."""
_TEMPORARY = "tmp"
_MAX_JSON = 256 * 2**20


def flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        # Some file systems have no way to flush a folder.
        if not path.is_dir():
            raise
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name that becomes `path` if the block succeeds, and vanishes if it does not."""
    scratch = path.parent / HIDDEN / _TEMPORARY
    folder = scratch if scratch.is_dir() else path.parent
    handle, name = tempfile.mkstemp(prefix=PREFIX, dir=folder)
    os.close(handle)
    temporary = Path(name)
    try:
        # mkstemp's are for the owner alone; results are as other new files.
        temporary.chmod(0o666 & ~_umask())
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Strict JSON; numbers that it has no word for as strings."""
    text = json.dumps(speakable(values), indent=2, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n")


def speakable(value: Any) -> Any:
    """A value as `read_json` gives it back."""
    if isinstance(value, dict):
        return {name: speakable(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [speakable(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def read_json(path: Path) -> Any:
    """What a JSON file says.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is no JSON, or too large or too deep to be one of ours; naming the file.
    """
    try:
        about = path.stat()
        # To read a pipe would wait for whoever writes to it.
        if not stat.S_ISREG(about.st_mode):
            raise ValueError("it is no file")
        if about.st_size > _MAX_JSON:
            raise ValueError(f"more than {_MAX_JSON} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (ValueError, RecursionError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Arrays by name, for `read_arrays` or `numpy.load`."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an NPZ file, by name; none is unpickled.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged or no NPZ file; naming the file.
    """
    try:
        with path.open("rb") as opened:
            file = np.load(opened, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise ValueError("it is one array, no NPZ file")
            with file:
                return dict(file)
    except FileNotFoundError:
        raise
    except Exception as error:  # On a torn file NumPy and zipfile raise a dozen kinds of them.
        raise ValueError(f"{path} cannot be read: {type(error).__name__} {error}") from None
