"""Checkpoints on disk: one file, several with an index, or a folder that holds either.

Opening reads headers only, and finds out what is missing, doubled or truncated; `Checkpoint.read`
maps one tensor. Nothing is ever unpickled but by `flowsde_converters.torch_file`.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from flowsde_converters import torch_file
from flowsde_converters.safetensors_file import SafetensorsFile, Tensor
from flowsde_converters.tables import listed
from flowsde_converters.torch_file import TorchFile

File: TypeAlias = SafetensorsFile | TorchFile
_SUFFIXES = (".safetensors", *torch_file.SUFFIXES)
_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")
"""What libraries call the weights of a folder."""
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.(safetensors|bin)")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The tensors of one model.

    Attributes:
      tensors: shapes and dtypes by key.
      paths: the files with the tensors.
      config: the `config.json` beside them, or None.
      notes: in words, what was chosen of what is there.
    """

    tensors: Mapping[str, Tensor]
    paths: tuple[Path, ...]
    config: Mapping[str, Any] | None
    notes: tuple[str, ...]
    _files: Mapping[str, File]

    def read(self, key: str) -> np.ndarray:
        """A tensor, read-only; its memory is given back with the array."""
        return self._files[key].read(key)

    @property
    def nbytes(self) -> int:
        """Bytes of the files."""
        return sum(path.stat().st_size for path in self.paths)


def open_checkpoint(path: Path) -> Checkpoint:
    """A file or a folder.

    Raises:
      ValueError: listing everything that is wrong with the files.
      ImportError: PyTorch's own files without torch.
      OSError: they cannot be read.
    """
    main = _weights_of(path) if path.is_dir() else path
    config = _config(main.parent / "config.json")
    if main.name.endswith(".index.json"):
        return _sharded(_index(main), main.parent, main.name, config)
    shard = _SHARD.fullmatch(main.name)
    if shard:
        base, _, total, suffix = shard.groups()
        names = [f"{base}-{i:05}-of-{total}.{suffix}" for i in range(1, int(total) + 1)]
        return _sharded(dict.fromkeys(names), main.parent, "their names", config)
    return _checkpoint([_open(main)], [main], config, [])


def has_weights(folder: Path) -> bool:
    """Whether a folder holds any."""
    return any(p.suffix in _SUFFIXES for p in folder.iterdir() if p.is_file())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ValueError naming the file if it is anything else."""
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected an object")
    return values


def _config(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.is_file() else None


def _open(path: Path) -> File:
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"{path} is no checkpoint, expected one of {', '.join(_SUFFIXES)}")
    return SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)


def _weights_of(folder: Path) -> Path:
    """The file of a folder's weights, or the index of several."""
    there = {p.name for p in folder.iterdir() if p.is_file()}
    for kind in ("safetensors", "bin"):
        for name in _NAMES:
            for usual in (f"{name}.{kind}.index.json", f"{name}.{kind}"):
                if usual in there:
                    return folder / usual
    for suffixes in ((".safetensors",), torch_file.SUFFIXES):
        indexes = [name for name in there if name.endswith(f"{suffixes[-1]}.index.json")]
        found = indexes or [name for name in there if name.endswith(suffixes)]
        shards = {match and match.group(1, 3, 4) for match in map(_SHARD.fullmatch, found)}
        if len(found) == 1 or (len(shards) == 1 and None not in shards):
            return folder / min(found)
        if found:
            names = ", ".join(sorted(found))
            raise ValueError(f"{folder} holds {names}, expected one checkpoint: name the file")
    raise ValueError(f"{folder} holds no weights, expected a file of {', '.join(_SUFFIXES)}")


def _index(path: Path) -> dict[str, set[str]]:
    """Keys by name of shard."""
    keys: dict[str, set[str]] = {}
    where = read_json(path).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise ValueError(f"{path} has no weight_map, expected one from keys to files")
    for key, name in where.items():
        # A shard is a file beside the index, never elsewhere.
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(_SUFFIXES):
            raise ValueError(f"{path}: {key} is in {name!r}, expected the name of a file beside it")
        keys.setdefault(name, set()).add(key)
    return keys


def _sharded(
    wanted: Mapping[str, set[str] | None],
    folder: Path,
    source: str,
    config: dict[str, Any] | None,
) -> Checkpoint:
    """Shards by name, with the keys that each should have, where that is known."""
    files, paths, problems = [], [], []
    for name, keys in sorted(wanted.items()):
        path = folder / name
        if not path.is_file():
            problems.append(f"the shard {name} is missing, expected by {source}")
            continue
        try:
            file = _open(path)
        except ValueError as error:
            problems.append(str(error))
            continue
        files.append(file)
        paths.append(path)
        if keys is not None:
            problems += [f"{name} lacks {k}, {source} has it" for k in keys - file.tensors.keys()]
            problems += [f"{name} has {k}, {source} does not" for k in file.tensors.keys() - keys]
    return _checkpoint(files, paths, config, problems)


def _checkpoint(
    files: list[File], paths: list[Path], config: dict[str, Any] | None, problems: list[str]
) -> Checkpoint:
    tensors: dict[str, Tensor] = {}
    owners: dict[str, File] = {}
    names: dict[str, str] = {}
    for file, path in zip(files, paths, strict=True):
        for key, tensor in file.tensors.items():
            if key in names:
                problems.append(f"{key} is in {names[key]} and in {path.name}")
            names[key], tensors[key], owners[key] = path.name, tensor, file
    if problems:
        raise ValueError(listed(sorted(problems), "the files do not make one checkpoint"))
    if not tensors:
        raise ValueError(f"{', '.join(map(str, paths))}: holds no tensors, expected a model")
    notes = [f"{p.name}: {f.note}" for f, p in zip(files, paths, strict=True) if f.note]
    return Checkpoint(tensors, tuple(paths), config, tuple(notes), owners)
