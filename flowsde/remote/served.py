"""What a server serves: a function by its name, and the version that is its hash.

The version stands for all that scores depend on, as far as can be known: the source of the
function's module, and the files of weights that are named beside it. A module that knows better,
of a model that it downloads, says so in ``VERSION``.
"""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flowsde._text import shown


class Served(NamedTuple):
    """A reward ready to be called.

    Attributes:
      fn: of (images, prompts or what else it is told) -> n floats.
      name: that clients ask for.
      version: text.
    """

    fn: Callable[[Any, Any], Any]
    name: str
    version: str


def served(name: str, version: str | None = None, weights: Sequence[Path] = ()) -> Served:
    """A function by MODULE:FUNCTION.

    Args:
      name: the module is imported as `python -m` would, from the current folder, too.
      version: of the reward; by default a hash of the module's source, its ``VERSION`` and weights.
      weights: files, or folders of them, that scores depend on.

    Raises:
      ValueError: it cannot be imported, or is no function.
      OSError: weights cannot be read.
    """
    module_name, _, function = name.partition(":")
    if not module_name or not function:
        raise ValueError(f"--reward must be MODULE:FUNCTION, got '{shown(name)}'")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
        fn = getattr(module, function)
    except (Exception, SystemExit) as error:
        why = shown(f"{type(error).__name__}: {error}", 400)
        raise ValueError(f"--reward {shown(name)} cannot be imported: {why}") from error
    # A reward of flowsde's own kinds is called as a function is.
    if not callable(fn):
        raise ValueError(f"--reward {shown(name)} must be a function, got '{shown(fn)}'")
    return Served(fn, name, version or _version(module, function, weights))


def _version(module: Any, function: str, weights: Sequence[Path]) -> str:
    found = hashlib.sha256(function.encode())
    source = inspect.getsourcefile(module) if hasattr(module, "__file__") else None
    if source is not None:
        found.update(Path(source).read_bytes())
    found.update(str(getattr(module, "VERSION", "")).encode())
    hash_of_files(found, weights)
    return found.hexdigest()[:32]


def hash_of_files(found: Any, paths: Sequence[Path]) -> None:
    """Update a hash by the contents of files, and of all files of folders by their names."""
    for path in paths:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            found.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                found.update(hashlib.file_digest(stream, "sha256").digest())
