"""What a converted model looks like on disk.

    OUT/config.json   family, layout of the keys it came from, configuration, dtype, hashes
    OUT/params        one Orbax checkpoint: a nested dict of the parameters
    OUT/tokenizer     the tokenizer's files, where they lay beside the weights; InstructBLIP has
                      another, OUT/qformer_tokenizer

A pipeline is a folder of those, one for each model, next to the folders that were copied as they
are, with the names of the models in its own `config.json`.

Keys of a model's `config.json`: format, version (of flowsde), family, layout, config; dtype (of the
parameters, "mixed" if they differ); source {files (SHA-256 by name), dtypes (of the tensors by key,
where it is not that of the parameter), ignored (keys), config (the source's config.json or null),
loras (of each file of adapters that was merged: file, sha256, scale, and settings that lay beside
it; missing if there is none)};
params {shape, dtype, sha256 by path}. Of a pipeline's: format, version, models (names), copied,
and distilled, where it was and no file of its own says so.
Both: files (SHA-256 by name, of all others that were written there), sha256 (of the rest).

What is written is hashed, and what is read is compared with its hash: a file, or a field, that is
not what it was is an error that names it.
"""

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from flowsde import _files, _schema
from flowsde._replace import settle
from flowsde._schema import Reader, fields, items, maybe, table, text
from flowsde.models.converted.arrays import digest

CONFIG, PARAMS = "config.json", "params"
FORMAT = "flowsde converted model 2"
PIPELINE = "flowsde converted pipeline 2"
INDEX = "model_index.json"
"""The file that makes a folder a pipeline: from names of its parts to their classes."""
DTYPES = ("float64", "float32", "float16", "bfloat16")
"""Of weights, the widest first; float64 is read and never written."""
_OF_SOURCES = (*DTYPES, "float8_e4m3fn", "float8_e5m2")
_CHUNK = re.compile(r"\d+(\.\d+)*")


def _sha256(value: Any, where: str) -> str:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise _schema.wrong(where, "a SHA-256", value)
    return value


def _by_name(of: Reader) -> Reader:
    """An object by names of files."""

    def read(value: Any, where: str) -> dict[str, Any]:
        return {_schema.inside(name, where): one for name, one in table(of)(value, where).items()}

    return read


_dtype = _schema.one_of(*DTYPES)
_PARAM = fields(shape=items(_schema.whole(0, 2**48)), dtype=_dtype, sha256=_sha256)
_LORA = fields(file=text, sha256=_sha256, scale=_schema.number, settings=_schema.mapping)
_BOTH: dict[str, Reader] = {"version": text, "files": _by_name(_sha256), "sha256": _sha256}
_MODEL = fields(
    **_BOTH,
    family=text,
    layout=text,
    config=_schema.mapping,
    dtype=_schema.one_of(*DTYPES, "mixed"),
    source=fields(
        {"loras": items(_LORA)},
        files=table(_sha256),
        dtypes=table(_schema.one_of(*_OF_SOURCES)),
        ignored=items(text),
        config=maybe(_schema.mapping),
    ),
    params=_by_name(_PARAM),
)
_OF_PIPELINE = fields(
    {"distilled": _schema.flag}, **_BOTH, models=items(_schema.name), copied=items(_schema.name)
)
_READERS = {FORMAT: _MODEL, PIPELINE: _OF_PIPELINE}


def write_config(folder: Path, values: dict[str, Any]) -> None:
    """Write a folder's `config.json`, with hashes of all other files but the parameters'."""
    others = sorted(_others(folder, values.get("models", ())))
    hashes = {name: digest(iter([folder / name])) for name in others}
    _files.write_json(folder / CONFIG, sealed(values | {"files": hashes}))


def sealed(values: dict[str, Any]) -> dict[str, Any]:
    """Values and their hash."""
    return values | {"sha256": _digest_of(values)}


def _digest_of(values: dict[str, Any]) -> str:
    rest = {name: value for name, value in values.items() if name != "sha256"}
    said = json.dumps(_files.speakable(rest), sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


def _others(folder: Path, models: Collection[str]) -> Iterator[str]:
    """Names of the files of a converted folder but `config.json`, parameters, and its models'."""
    for name in _all(folder):
        first = name.split("/")[0]
        if name != CONFIG and first not in models and not _is_chunk(name):
            yield name


def _is_chunk(name: str) -> bool:
    parts = name.split("/")
    return parts[0] == PARAMS and len(parts) == 3 and bool(_CHUNK.fullmatch(parts[2]))


def _all(folder: Path) -> Iterator[str]:
    """Names of all files and links below a folder."""
    for where, folders, files in os.walk(folder):
        links = [name for name in folders if Path(where, name).is_symlink()]
        yield from (Path(where, name).relative_to(folder).as_posix() for name in files + links)


def read_config(folder: Path, kind: str = FORMAT, verify: bool = True) -> dict[str, Any]:
    """A folder's `config.json`.

    Args:
      folder: of a model or a pipeline.
      kind: which of the two.
      verify: whether to compare it with its own hash.

    Raises:
      FileNotFoundError: the folder was not written by a conversion.
      ValueError: it holds something else, or was changed since; naming file and field.
    """
    path = folder / CONFIG
    settle_above(folder)
    if not path.is_file():
        if not folder.exists():
            raise FileNotFoundError(
                f"{folder} does not exist, expected what `flowsde convert` wrote"
            )
        raise FileNotFoundError(
            f"{folder} has no {CONFIG}, expected what `flowsde convert` wrote{_to_convert(folder)}"
        )
    values = _schema.mapping(_files.read_json(path), str(path))
    found = values.get("format")
    if found not in (FORMAT, PIPELINE):
        hint = _to_convert(folder) if found is None else ""
        raise ValueError(f"{path} is of the format {_short(found)}, expected {kind!r}{hint}")
    values = _READERS[found](values, str(path))
    if verify and values["sha256"] != _digest_of(values):
        raise ValueError(f"{path} was changed since it was written: its SHA-256 is another one")
    if found == kind:
        return values
    if found == PIPELINE:
        models = ", ".join(str(folder / name) for name in values["models"])
        raise ValueError(f"{folder} holds a pipeline, expected one of its models: {models}")
    raise ValueError(f"{folder} holds a single model, expected a pipeline")


def _to_convert(path: Path) -> str:
    """What to do with a checkpoint that was not converted."""
    there = path.is_file() or (path / INDEX).is_file() or any(path.glob("*.safetensors"))
    return f"; of a checkpoint that is `flowsde convert {path} OUT`" if there else ""


def checksum(folder: Path) -> str:
    """SHA-256 of all that a conversion wrote, by what it wrote of it; raises as `read_config`."""
    if not is_pipeline(folder):
        return read_config(folder)["sha256"]
    about = read_config(folder, PIPELINE)
    parts = [about["sha256"], *(checksum(folder / name) for name in about["models"])]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 80 else said[:80] + "..."


def settle_above(folder: Path) -> None:
    """Undo what a conversion left that was killed; `folder` is its OUT, or a model in that."""
    if not folder.exists():
        settle(folder.parent)
        settle(folder)


def check_files(folder: Path, about: dict[str, Any]) -> None:
    """ValueError unless the files that are hashed by name, all but the parameters, are the same."""
    for name, wanted in about["files"].items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{path} is missing, which {folder / CONFIG} names")
        if digest(iter([path])) != wanted:
            raise ValueError(
                f"{path} was changed since it was written: its SHA-256 is not that of "
                f"{folder / CONFIG}"
            )


def strangers(folder: Path) -> list[str]:
    """Names of files in a converted folder that no conversion wrote; ValueError as of
    `read_config`."""
    kind = PIPELINE if is_pipeline(folder) else FORMAT
    about = read_config(folder, kind, verify=False)
    models = about.get("models", ())
    others = set(_others(folder, models)) - about["files"].keys()
    params = about.get("params", ())
    chunks = (name for name in _all(folder) if _is_chunk(name) and name.split("/")[1] not in params)
    inside = [f"{name}/{one}" for name in models for one in strangers(folder / name)]
    return sorted([*others, *chunks, *inside])


def kind_of(folder: Path) -> str | None:
    """Which of the two formats a folder is of, if a conversion wrote it."""
    settle_above(folder)
    try:
        said = _files.read_json(folder / CONFIG)
    except (OSError, ValueError):
        return None
    found = said.get("format") if isinstance(said, dict) else None
    return found if found in (FORMAT, PIPELINE) else None


def is_pipeline(folder: Path) -> bool:
    """Whether a conversion wrote a pipeline there."""
    return kind_of(folder) == PIPELINE


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
