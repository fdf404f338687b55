"""States that a run can go on from: the last two, each a whole file, numbered as they came.

    FOLDER/000000012.npz    arrays by name, and in "about" what else there is to say, as JSON

ZIP's checksums are compared as a file is read, so that damage is noticed; the state before it is
then what the run goes on from.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from flowsde._files import read_arrays, speakable, write_arrays
from flowsde._schema import mapping

T = TypeVar("T")

_KEPT = 2
_ABOUT = "about"


class OtherRun(ValueError):
    """A state that is whole, but of another run than the one asked for."""


def paths(folder: Path) -> list[Path]:
    """Files of states, the last one last."""
    every = folder.glob("*.npz") if folder.is_dir() else []
    return sorted((path for path in every if path.stem.isdigit()), key=lambda p: int(p.stem))


def save(folder: Path, arrays: dict[str, np.ndarray], about: dict[str, Any]) -> None:
    """Add a state, and remove all but the last two; for the holder of the lock."""
    folder.mkdir(exist_ok=True)
    old = paths(folder)
    number = int(old[-1].stem) + 1 if old else 0
    text = json.dumps(speakable(about), allow_nan=False).encode()
    said = {_ABOUT: np.frombuffer(text, np.uint8)}
    write_arrays(folder / f"{number:09d}.npz", arrays | said, compressed=False)
    for path in old[: 1 - _KEPT]:
        path.unlink()


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays of a state, and what else it says; ValueError naming the file."""
    arrays = read_arrays(path)
    text = arrays.pop(_ABOUT, None)
    if text is None or text.dtype != np.uint8:
        raise ValueError(f"{path} lacks the field {_ABOUT}")
    try:
        about = json.loads(text.tobytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {_ABOUT} cannot be read: {error}") from None
    return arrays, mapping(about, f"{path}: {_ABOUT}")


def newest(folder: Path, read: Callable[[Path], T]) -> tuple[T | None, list[str]]:
    """What `read` makes of the last state that it does not raise ValueError at.

    Returns:
      It, None if there is none, and what was wrong with those that were passed over.

    Raises:
      OtherRun: `read` did.
    """
    passed: list[str] = []
    for path in reversed(paths(folder)):
        try:
            return read(path), passed
        except OtherRun:
            raise
        except ValueError as error:
            passed.append(str(error))
    return None, passed
