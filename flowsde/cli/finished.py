"""Commands with one result for all prompts, `diagnose` and `tune`: whether a folder has it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flowsde import _own
from flowsde._files import read_json
from flowsde._text import shown
from flowsde.cli import results


def is_complete(
    folder: Path,
    hidden: Path,
    about: dict[str, Any],
    overwrite: bool,
    *,
    what: str,
    files: Sequence[str],
    parts: str,
    mark: str,
    read: Callable[[Any, str], dict[str, Any]],
) -> bool:
    """Whether the folder, whose lock is held, has the result; what is discarded is said first.

    Args:
      folder: of the result.
      hidden: the folder in it for resuming.
      about: what identifies the result, with ``prompts``.
      overwrite: whether the user wants it anew.
      what: the result, in a word.
      files: its names, the first written last.
      parts, mark: names in `hidden`, of what was measured and of whose it is.
      read: of the first file's JSON, and the mark's.

    Raises:
      ValueError: it holds another result, or files that are not ours.
    """
    final, begun = folder / files[0], hidden / mark
    if overwrite:
        results.check_writable(folder, files, overwrite)
        if final.exists() or begun.exists():
            print(f"discard the {what} in {shown(folder, 4096)}", flush=True)
        for name in (parts, mark):
            _own.discard(hidden / name)
        # The first says whose the others are: it goes last.
        for name in reversed(files):
            (folder / name).unlink(missing_ok=True)
        return False
    if begun.exists():
        _check_same(folder, "unfinished", about, read(read_json(begun), str(begun)))
        return False
    if not final.exists():
        results.check_writable(folder, files, overwrite)
        return False
    try:
        found = read(read_json(final), str(final))
    except ValueError as error:
        raise ValueError(f"{error}; {results.OTHERWISE}") from None
    _check_same(folder, "finished", about, found)
    return True


def _check_same(folder: Path, kind: str, wanted: dict[str, Any], found: dict[str, Any]) -> None:
    ours, theirs = (own | {"prompt": " / ".join(own["prompts"])} for own in (wanted, found))
    results.check_same(folder, kind, ours, theirs, _option)


def _option(name: str) -> str:
    # Their --seeds are of no chains.
    return f"--{name.replace('_', '-')}"
