"""What a converted model looks like on disk.

    OUT/config.json   family, layout of the keys it came from, configuration, dtype, hashes
    OUT/params        one Orbax checkpoint: a nested dict of the parameters
    OUT/tokenizer     the tokenizer's files, where they lay beside the weights

A pipeline is a folder of those, one for each model, next to the folders that were copied as they
are, with the names of the models in its own `config.json`.

Keys of a model's `config.json`: format, version (of flowsde), family, layout, config; dtype (of the
parameters, "mixed" if they differ); source {files (SHA-256 by name), dtypes (of the tensors by key,
where it is not that of the parameter), ignored (keys), config (the source's config.json or null)};
params {shape, dtype, sha256 by path}. Of a pipeline's: format, version, models (names), copied.
"""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any

from flowsde_converters.files import read_json

CONFIG, PARAMS = "config.json", "params"
FORMAT = "flowsde converted model 1"
PIPELINE = "flowsde converted pipeline 1"


def read_config(folder: Path, kind: str = FORMAT) -> dict[str, Any]:
    """A folder's `config.json`.

    Raises:
      FileNotFoundError: the folder was not written by a conversion.
      ValueError: it holds something else.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG}, expected what `flowsde convert` wrote")
    values = read_json(path)
    found = values.get("format")
    if kind == FORMAT and found == PIPELINE:
        models = ", ".join(str(folder / name) for name in values["models"])
        raise ValueError(f"{folder} holds a pipeline, expected one of its models: {models}")
    if found != kind:
        raise ValueError(f"{path} is of the format {found!r}, expected {kind!r}")
    return values


def is_converted(folder: Path) -> bool:
    """Whether a conversion wrote a folder."""
    try:
        return read_json(folder / CONFIG).get("format") in (FORMAT, PIPELINE)
    except (OSError, ValueError):
        return False


def is_pipeline(folder: Path) -> bool:
    """Whether a conversion wrote a pipeline there."""
    try:
        return read_json(folder / CONFIG).get("format") == PIPELINE
    except (OSError, ValueError):
        return False


def from_json(kind: Any, value: Any) -> Any:
    """A value of a type, dataclass or tuple included, out of what JSON made of it."""
    origin = typing.get_origin(kind)
    if value is None:
        return None
    if origin in (typing.Union, types.UnionType):
        inner = [option for option in typing.get_args(kind) if option is not type(None)]
        return from_json(inner[0], value) if len(inner) == 1 else _tuples(value)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        unknown = value.keys() - hints.keys()
        if unknown:
            raise ValueError(f"unknown settings of {kind.__name__}: {', '.join(sorted(unknown))}")
        return kind(**{name: from_json(hints[name], one) for name, one in value.items()})
    if origin is dict:
        return value
    if origin is tuple and dataclasses.is_dataclass(typing.get_args(kind)[0]):
        return tuple(from_json(typing.get_args(kind)[0], one) for one in value)
    return _tuples(value)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def nested(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters by dotted path as nested dicts."""
    tree: dict[str, Any] = {}
    for path, value in params.items():
        *parents, name = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The other way."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        found |= flat(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return found
