"""Where results are, and how they are written."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from flowsde._files import replacing

RESULTS = pathlib.Path(__file__).parent / "results"


def replace_file(path: pathlib.Path, write: Callable[[pathlib.Path], Any]) -> None:
    """Write under a temporary name beside `path`, then rename: never half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        write(temporary)


def save_json(path: pathlib.Path | None, results: dict[str, Any]) -> None:
    """Write results where they are asked for."""
    if path is not None:
        text = json.dumps(results, indent=1) + "\n"
        replace_file(path, lambda temporary: temporary.write_text(text))
