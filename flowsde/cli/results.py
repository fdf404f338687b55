"""Result files in a user's folder: which are ours, which may be written over, what they are of."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowsde import _schema
from flowsde._files import read_json, speakable
from flowsde._schema import fields, items, mapping, maybe, number, text, whole
from flowsde.cli.settings import flag
from flowsde.shapes import captions

RESULT = "result.json"
_LARGEST = 2**63 - 1
_COUNT = whole(0, _LARGEST)
ABOUT = {
    "prompt": text,
    "method": text,
    "seed": whole(0, 2**32 - 1),
    "settings": mapping,
    "version": text,
}
"""Readers of what a run is of."""
_READ = fields(
    {
        "attempts": items(fields(nfe=_COUNT, reward=number)),
        "heldout": fields(exact=_schema.flag, rss=number),
    },
    **ABOUT,
    reward=maybe(number),
    nfe=_COUNT,
    evaluations=_COUNT,
    backward_passes=_COUNT,
    verifier_calls=_COUNT,
    seconds=fields(total=number),
)
_SHOWN = 100


def read(folder: Path) -> dict[str, Any] | None:
    """What result.json in a folder says, None without one; ValueError naming file and field."""
    path = folder / RESULT
    try:
        return _READ(read_json(path), str(path))
    except FileNotFoundError:
        return None


def check_writable(folder: Path, names: Sequence[str], overwrite: bool) -> None:
    """ValueError naming what is in the place of results and none of ours.

    Args:
      folder: of the results, in which there are none of ours.
      names: of the files.
      overwrite: whether the user has said that files may be written over.
    """
    for path in (folder / name for name in names):
        if path.is_dir() and not path.is_symlink():
            raise ValueError(f"{path} is a folder, expected another --out for a file of that name")
        if (path.exists() or path.is_symlink()) and not overwrite:
            raise ValueError(
                f"{path} is there, and no result of flowsde's; expected another --out, or "
                f"--overwrite to write over it"
            )


def _named(about: dict[str, Any]) -> dict[str, Any]:
    """What a run is about, by option, as JSON gives it back."""
    about = speakable(about)
    named = {flag(name): value for name, value in about["settings"].items()}
    if named.get("--grid") == "flux":
        named["--grid"] = "model"  # As it was called at first.
    prompt = about["prompt"]
    if "model" not in about["settings"]:
        try:
            prompt = captions.caption(captions.parse(prompt))
        except ValueError:
            pass  # A file may say anything.
    own = {"--method": about["method"], "--seed": about["seed"]}
    return {"PROMPT": prompt} | own | named | {"version": about["version"]}


def check_same(folder: Path, kind: str, wanted: dict[str, Any], found: dict[str, Any]) -> None:
    """ValueError naming what differs between a run that is asked for and one that is there."""
    ours, theirs = _named(wanted), _named(found)
    differ = [name for name in ours if ours[name] != theirs.get(name)]
    # What another method brings along need not be said.
    for first in ("PROMPT", "--method"):
        differ = [first] if first in differ else differ
    if differ:
        got = ", ".join(f"{n} {_short(theirs.get(n))}, not {_short(ours[n])}" for n in differ)
        raise ValueError(f"--resume: the {kind} run in {folder} is of {got}")


def _short(value: Any) -> str:
    shown = str(value)
    return shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "…"
