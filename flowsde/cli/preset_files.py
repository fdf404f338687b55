"""Presets of files: what `flowsde tune` and `Tuned.save_preset` write, for ``--preset FILE``.

    {"format": "flowsde preset 1", "method": "svdd", "settings": {"nfe": 100, "kernel": "ddim", …}}

A file is told from a name by its spelling alone: it ends in .json or has a slash. It holds one
method with all of its settings; other options replace them as they do a preset's by name. One of a
search that was tuned to a budget in seconds has ``"seconds"`` beside them, and for ``nfe`` the
evaluations that they bought. Without JAX, as `flowsde.cli.settings`.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any, NamedTuple

from flowsde._checks import check_float, check_positive
from flowsde._files import read_json
from flowsde._schema import Reader, fields, number, one_of, table, whole
from flowsde._text import shown
from flowsde.cli.settings import (
    CHOICES,
    COUNTS,
    EMBEDDED,
    MOVES,
    MOVING,
    PRESETS,
    SEARCHES,
    TUNING,
    Settings,
    method_of,
    preset_of,
)

FORMAT = "flowsde preset 1"
_NEEDED = ("nfe", "interpolant", "kernel", "grid", "steps")
_MOST = (10_000, 1_000_000)
"""Largest counts, and budget, as of `flowsde.cli.presets`."""
_MODELS_OWN = "model"
"""A grid that a converted model brings along."""


def is_file(preset: str) -> bool:
    """Whether --preset is the path of a file rather than a name."""
    return preset.endswith(".json") or "/" in preset or os.sep in preset


def _number(value: Any, where: str) -> float:
    return check_float(where, number(value, where))


def _seconds(value: Any, where: str) -> float:
    check_positive(where, number(value, where))
    return float(value)


def _readers() -> dict[str, Reader]:
    """Of each setting that a file may have."""
    readers: dict[str, Reader] = {}
    for field in dataclasses.fields(Settings):
        name = field.name
        if name in CHOICES:
            own = (_MODELS_OWN,) if name == "grid" else ()
            readers[name] = one_of(*CHOICES[name], *own)
        else:
            readers[name] = whole(1, _MOST[name == "nfe"]) if name in COUNTS else _number
    return readers


class File(NamedTuple):
    """What a preset's file has; `seconds` is None for a budget in evaluations."""

    method: str
    settings: Settings
    seconds: float | None


def read(preset: str) -> File:
    """What a preset's file has.

    Raises:
      ValueError: there is no such file, or naming the file and the key that is wrong.
    """
    path = Path(preset)
    where = f"--preset {shown(preset, 4096)}"
    try:
        values = read_json(path)
    except FileNotFoundError:
        raise ValueError(f"{where}: there is no such file") from None
    except ValueError as error:
        raise ValueError(f"--preset {error}") from None
    needed: dict[str, Reader] = {
        "format": one_of(FORMAT),
        "method": one_of(*SEARCHES),
        "settings": table(lambda value, where: value),
    }
    found = fields({"seconds": _seconds}, **needed)(values, where)
    own, readers, at = found["settings"], _readers(), f"{where}: settings"
    for name in own:
        if name not in readers:
            raise ValueError(f"{at}: there is no setting {shown(name)!r}, expected {_known()}")
    fields(**dict.fromkeys(_NEEDED, lambda value, where: value))(own, at)
    read_all = fields({name: reader for name, reader in readers.items() if name in own})
    given = read_all(own, at)
    method = found["method"]
    taken = {**SEARCHES[method], **MOVES[given["kernel"]]}
    for name in given:
        if name in {*TUNING, *MOVING} and name not in taken:
            raise ValueError(
                f"{at}: {name} has no effect with method {method} and kernel {given['kernel']}"
            )
    # What the file leaves out is the maker's, but for how much is computed at once and, of steps
    # of finishing, that there are three at most.
    width = PRESETS["recommended"][method].width
    settings = Settings(**{"width": width, **given})
    return File(method, settings, found.get("seconds"))


def _known() -> str:
    return ", ".join(field.name for field in dataclasses.fields(Settings))


def settings_of(preset: str, method: str, model: str = "") -> Settings:
    """A preset's settings of a method, before any of the user's.

    Args:
      preset: a name, or a file.
      method: by name.
      model: an embedded one's name, on whose kind depends what is recommended; or nothing.

    Raises:
      ValueError: naming the option, or the file and its key; the file is of another method.
    """
    if not is_file(preset):
        if preset not in PRESETS:
            raise ValueError(
                f"--preset must be one of {', '.join(PRESETS)}, or a file that ends in .json, got "
                f"'{shown(preset)}'"
            )
        return PRESETS[preset_of(preset, model)][method]
    own, settings, _ = read(preset)
    if own != method:
        raise ValueError(
            f"--method must be {own}, that of --preset {shown(preset, 4096)}, got {method}"
        )
    return settings


def with_its_own(command: Any, named: bool, searches: bool, single: bool) -> Any:
    """A command with its preset's method, and of a file with its budget if that is in seconds.

    Args:
      command: any.
      named: whether the user named the method.
      searches: whether the command is one that searches; others have one method by default.
      single: whether the command's seconds are of one search, as the file's are.
    """
    preset = getattr(command, "preset", None)
    if preset is None or not hasattr(command, "method"):
        return command
    if not is_file(preset):
        if named or not searches:
            return command
        usual = method_of(preset, str(command.converted.model or EMBEDDED[0]))
        return dataclasses.replace(command, method=usual)
    file = read(preset)
    own: dict[str, Any] = {} if named else {"method": file.method}
    if single and command.nfe is None and command.seconds is None:
        own["seconds"] = file.seconds
    return dataclasses.replace(command, **own)
