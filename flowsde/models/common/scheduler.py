"""What a pipeline's `scheduler` folder says, as `diffusers` writes it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowsde import _schema
from flowsde._files import read_json

_NAME = "scheduler_config.json"


def fields(folder: Path, kind: str, pipeline: str) -> tuple[Path, dict[str, Any]]:
    """The file, for errors, and its fields.

    Args:
      folder: of the scheduler.
      kind: its class; a file that names none is taken for one.
      pipeline: whose it is, in words.

    Raises:
      ValueError: there is none, or it is of another class.
    """
    path = folder / _NAME
    if not path.is_file():
        raise ValueError(f"{folder} must hold {_NAME}, as a {pipeline} pipeline does")
    says = _schema.mapping(read_json(path), str(path))
    found = says.get("_class_name", kind)
    if found != kind:
        raise ValueError(f"{path} is of a {found}, expected {kind}, whose times are known here")
    return path, says


def is_finite(value: Any) -> bool:
    """Whether a field is a finite number."""
    # An integer may be of any size, and isfinite knows floats only.
    return type(value) in (int, float) and abs(value) < 2.0**31 and math.isfinite(value)


def check_times(source: Path, read: Callable[[Path], Any]) -> None:
    """ValueError if a pipeline's times cannot be read; a part that is missing is named elsewhere.

    Args:
      source: folder of the pipeline.
      read: its scheduler's folder.
    """
    if (source / "scheduler").is_dir():
        read(source / "scheduler")
