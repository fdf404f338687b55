"""Checkpoints on disk: one file, several with an index, or a folder that holds either.

Opening reads headers only, and finds out what is missing, doubled or truncated; `Checkpoint.read`
maps one tensor. Nothing is ever unpickled but by `flowsde_converters.torch_file`.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np

from flowsde._text import listed, names, shown
from flowsde_converters import bounded_json, entries
from flowsde_converters.names import (
    GGUF,
    OF_GGUF,
    SAFETENSORS,
    SUFFIXES,
    TORCH,
    USUAL,
    ends,
    indexes,
    series,
)
from flowsde_converters.safetensors_file import SafetensorsFile, Tensor
from flowsde_converters.torch_file import TorchFile

File: TypeAlias = SafetensorsFile | TorchFile


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Tensors by key.

    Attributes:
      tensors: shapes and dtypes by key; of an entry of a training run's file, "ema.blocks.0.bias".
      paths: the files with the tensors.
      config: the `config.json` beside them, or None.
      notes: in words, what was chosen of what is there.
      owners: the entry that a key is of, "" for one that is of none.
      beside: names of what the file holds at its top, tensors or not, where that is entries.
      unnamed: entries with tensors that have no names.
      scales: keys of the scales of 8-bit tensors, by the keys of these.
    """

    tensors: Mapping[str, Tensor]
    paths: tuple[Path, ...]
    config: Mapping[str, Any] | None
    notes: tuple[str, ...]
    _places: Mapping[str, tuple[File, str]]
    owners: Mapping[str, str] = dataclasses.field(default_factory=dict)
    beside: tuple[str, ...] = ()
    unnamed: tuple[str, ...] = ()
    scales: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def read(self, key: str) -> np.ndarray:
        """A tensor, read-only; its memory is given back with the array. In float32, times its
        scale, if it has one; ValueError if that is not finite."""
        array, scale = self._stored(key), self.scales.get(key)
        return array if scale is None else _times(array, self._stored(scale), scale)

    def _stored(self, key: str) -> np.ndarray:
        file, name = self._places[key]
        return file.read(name)

    def only(self, entry: str, keys: Iterable[str]) -> "Checkpoint":
        """Some keys that begin with the name of an entry, without it; says so in `notes`."""
        kept = {key[len(entry) + 1 :] if entry else key: key for key in keys}
        if not entry:
            note = None
        elif self.beside:
            note = f"{shown(entry)!r} of {names(self.beside)}"
        else:
            rest = dict.fromkeys(
                key.partition(".")[0] for key in self.tensors.keys() - set(kept.values())
            )
            left = f", and leaves {names(sorted(rest))}" if rest else ""
            note = f"keys that begin with '{shown(entry)}.', without it{left}"
        said = [f"{', '.join(path.name for path in self.paths[:1])}: {note}"] if note else []
        return dataclasses.replace(
            self,
            tensors={new: self.tensors[old] for new, old in kept.items()},
            notes=(*self.notes, *said),
            _places={new: self._places[old] for new, old in kept.items() if old in self._places},
            owners={},
            beside=(),
            unnamed=(),
        )

    def noting(self, notes: Iterable[str]) -> "Checkpoint":
        """The same, with more in `notes`."""
        return dataclasses.replace(self, notes=(*self.notes, *notes))

    @property
    def nbytes(self) -> int:
        """Bytes of the files."""
        return sum(path.stat().st_size for path in self.paths)


def _times(weights: np.ndarray, scale: np.ndarray, name: str) -> np.ndarray:
    """Weights times one scale, or one for each row."""
    wide = scale.astype(np.float32).reshape(-1)
    if not np.isfinite(wide).all():
        raise ValueError(f"{shown(name)} is NaN or infinite, expected a finite scale")
    array = weights.astype(np.float32)
    array *= wide[0] if wide.size == 1 else wide.reshape(-1, *(1,) * (array.ndim - 1))
    return array


def open_checkpoint(path: Path) -> Checkpoint:
    """A file or a folder.

    Raises:
      ValueError: listing everything that is wrong with the files.
      ImportError: PyTorch's own files without torch.
      OSError: they cannot be read.
    """
    main = _weights_of(path) if path.is_dir() else path
    config = _config(main.parent / "config.json")
    if indexes(main.name):
        return _sharded(_index(main), main.parent, main.name, config)
    shards = series(main.name)
    if shards:
        return _sharded(dict.fromkeys(shards), main.parent, "their names", config)
    return _checkpoint([_open(main)], [main], config, [])


def has_weights(folder: Path) -> bool:
    """Whether a folder holds any."""
    return any(ends(p.name) for p in folder.iterdir() if p.is_file())


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ValueError naming the file if it is anything else."""
    _check_plain(path)
    try:
        values = bounded_json.read(path)
    except ValueError as error:
        raise ValueError(f"{path}: {shown(error)}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected an object")
    return values


def _config(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.exists() else None


def _check_plain(path: Path) -> None:
    """ValueError for what is there and is no file: opening a pipe waits for ever."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is a folder, a pipe or a device, expected a file")


def _open(path: Path) -> File:
    if ends(path.name, (GGUF,)):
        raise ValueError(f"{path} {OF_GGUF}")
    if not ends(path.name):
        raise ValueError(f"{path} is no checkpoint, expected one of {', '.join(SUFFIXES)}")
    _check_plain(path)
    return SafetensorsFile(path) if ends(path.name, SAFETENSORS) else TorchFile(path)


def _weights_of(folder: Path) -> Path:
    """The file of a folder's weights, or the index of several."""
    there = {p.name for p in folder.iterdir() if p.is_file()}
    lower = {name.lower(): name for name in sorted(there)}
    for suffix in (*SAFETENSORS, ".bin"):
        for name in USUAL:
            both = (f"{name}{suffix}.index.json", f"{name}{suffix}")
            usual = [lower[one] for one in both if one in lower]
            if len(usual) == 2:  # Of which transformers takes the file, diffusers the index.
                _refuse_several(folder, usual)
            if usual:
                return folder / usual[0]
    for suffixes in (SAFETENSORS, TORCH):
        found = [name for name in there if indexes(name, suffixes)]
        found = found or [name for name in there if ends(name, suffixes)]
        if len({tuple(series(name) or [name]) for name in found}) == 1:
            return folder / min(found)
        if found:
            _refuse_several(folder, found)
    others = sorted(name for name in there if ends(name, (GGUF,)))
    if others:
        raise ValueError(f"{folder / others[0]} {OF_GGUF}")
    raise ValueError(f"{folder} holds no weights, expected a file of {', '.join(SUFFIXES)}")


def _refuse_several(folder: Path, found: Iterable[str]) -> NoReturn:
    held = names(sorted(found))
    raise ValueError(f"{folder} holds {held}, expected one checkpoint: name the file")


def _index(path: Path) -> dict[str, set[str]]:
    """Keys by name of shard."""
    keys: dict[str, set[str]] = {}
    where = read_json(path).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise ValueError(f"{path} has no weight_map, expected one from keys to files")
    for key, name in where.items():
        # A shard is a file beside the index, never elsewhere.
        if not isinstance(name, str) or Path(name).name != name or not ends(name):
            raise ValueError(
                f"{path}: {shown(key)} is in {shown(repr(name))}, "
                "expected the name of a file beside it"
            )
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
            problems.append(f"the shard {shown(name)} is missing, expected by {source}")
            continue
        try:
            file = _open(path)
        except ValueError as error:
            problems.append(str(error))
            continue
        files.append(file)
        paths.append(path)
        if keys is not None:
            there = file.tensors.keys()
            problems += [f"{name} lacks {shown(k)}, {source} has it" for k in keys - there]
            problems += [f"{name} has {shown(k)}, {source} does not" for k in there - keys]
    return _checkpoint(files, paths, config, problems)


def _checkpoint(
    files: list[File], paths: list[Path], config: dict[str, Any] | None, problems: list[str]
) -> Checkpoint:
    tensors: dict[str, Tensor] = {}
    places: dict[str, tuple[File, str]] = {}
    owners: dict[str, str] = {}
    found: dict[str, str] = {}
    dropped: set[str] = set()
    for file, path in zip(files, paths, strict=True):
        for name, tensor in file.tensors.items():
            key, gone = entries.bare(name)
            dropped.update(gone)
            if key in found:
                problems.append(f"{shown(key)} is in {found[key]} and in {path.name}")
            found[key], tensors[key], places[key] = path.name, tensor, (file, name)
            owners[key] = entries.bare(file.owners.get(name, ""))[0]
    if problems:
        raise ValueError(listed(sorted(problems), "the files do not make one checkpoint"))
    if not tensors:
        raise ValueError(f"{', '.join(map(str, paths))}: holds no tensors, expected a model")
    notes = [f"{p.name}: {f.note}" for f, p in zip(files, paths, strict=True) if f.note]
    notes += [f"{paths[0].name}: keys without {name!r}" for name in sorted(dropped)]
    beside = tuple(dict.fromkeys(name for file in files for name in file.beside))
    unnamed = tuple(name for file in files for name in file.unnamed)
    return Checkpoint(tensors, tuple(paths), config, tuple(notes), places, owners, beside, unnamed)
