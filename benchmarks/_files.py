"""Writing result files."""

import pathlib
from collections.abc import Callable
from typing import Any

from flowsde.report import replacing


def replace_file(path: pathlib.Path, write: Callable[[pathlib.Path], Any]) -> None:
    """Write under a temporary name beside `path`, then rename: never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        write(temporary)
