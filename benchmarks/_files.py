"""Writing result files."""

import os
import pathlib
from collections.abc import Callable
from typing import Any


def replace_file(path: pathlib.Path, write: Callable[[pathlib.Path], Any]) -> None:
    """Write under a temporary name beside `path`, then rename: never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
