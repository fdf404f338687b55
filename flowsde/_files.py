"""Files that are whole or not there: written under a temporary name, flushed, then renamed.

A rename alone survives the death of the process, not that of the machine: the data is flushed
before it and the folder's entry after it. Below a folder whose lock this process holds
(`flowsde._own`), temporary files lie in its hidden one, which the next holder empties.

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
scratches: dict[Path, Path] = {}
"""Where temporary files go, by the folder, for folders whose lock this process holds."""
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
    handle, name = tempfile.mkstemp(prefix=PREFIX, dir=_scratch(path.parent))
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


def _scratch(folder: Path) -> Path:
    """Where a file that will be renamed into a folder is written."""
    absolute = folder.absolute()
    for parent in (absolute, *absolute.parents):
        scratch = scratches.get(parent)
        # Files are not renamed from one file system to another.
        if scratch is not None and scratch.stat().st_dev == folder.stat().st_dev:
            return scratch
    return folder


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


def write_arrays(path: Path, arrays: dict[str, np.ndarray], *, compressed: bool = True) -> None:
    """Arrays by name, for `read_arrays` or `numpy.load`; TypeError if one holds Python objects."""
    for name, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise TypeError(f"{name} holds Python objects, expected numbers or texts")
    save: Any = np.savez_compressed if compressed else np.savez
    with replacing(path) as temporary, temporary.open("wb") as file:
        save(file, **arrays)


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
                arrays = dict(file)
        # NumPy gives the bytes of what is no array.
        if odd := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{odd[0][:60]!r} is no array")
        return arrays
    except FileNotFoundError:
        raise
    except Exception as error:  # On a torn file NumPy and zipfile raise a dozen kinds of them.
        raise ValueError(f"{path} cannot be read: {type(error).__name__} {error}") from None
