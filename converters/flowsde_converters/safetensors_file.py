"""Safetensors files, checked before they are trusted, mapped one tensor at a time.

A file is the length of its header (8 bytes, little-endian), the header, a JSON object from keys to
{"dtype", "shape", "data_offsets"}, and the bytes of the tensors. Read here and not by the library:
that takes the last of two equal keys without a word, and keeps every page that was read in memory
until the file is closed. Format: https://github.com/huggingface/safetensors
"""

import collections
import json
import math
import os
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from flowsde._text import shown
from flowsde.models.converted.copying import contiguous
from flowsde_converters.bounded_json import LONGEST, parse

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MESSAGE = 500
_MOST_AXES, _LONGEST_AXIS = 16, 2**48


class Tensor(NamedTuple):
    """One tensor of a file: what it is, and from which byte of the file on."""

    shape: tuple[int, ...]
    dtype: np.dtype
    begin: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


class SafetensorsFile:
    """The tensors of a file by key.

    Raises:
      ValueError: naming the file and what is wrong with it.
    """

    note: str | None = None
    owners: Mapping[str, str] = types.MappingProxyType({})
    beside: tuple[str, ...] = ()
    unnamed: tuple[str, ...] = ()

    def __init__(self, path: Path):
        self._path = path
        try:
            header, begin, size = _header(path)
            self.tensors: Mapping[str, Tensor] = _tensors(header, begin, size)
        except ValueError as error:
            raise ValueError(f"{path}: {shown(error, _MESSAGE)}") from None
        self.metadata: Mapping[str, str] = header.get("__metadata__", {})

    def read(self, key: str) -> np.ndarray:
        """A tensor, read-only; its memory is given back with the array."""
        tensor = self.tensors[key]
        if not tensor.nbytes:
            return np.empty(tensor.shape, tensor.dtype)
        data = np.memmap(self._path, np.uint8, "r", tensor.begin, (tensor.nbytes,))
        return np.asarray(data).view(tensor.dtype).reshape(tensor.shape)


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The header, where the tensors begin, and the size of the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(
                f"truncated, or no safetensors file: of {size} bytes, expected a header of {length}"
            )
        if length > LONGEST:
            raise ValueError(f"a header of {length} bytes, expected at most {LONGEST}")
        text = file.read(length)
    try:
        header = parse(text, _unique)
    except ValueError as error:
        raise ValueError(f"the header: {error}") from None
    if not isinstance(header, dict):
        raise ValueError(f"the header is a {type(header).__name__}, expected an object")
    return header, 8 + length, size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (key, times), *_ = collections.Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {shown(key)} {times} times, expected once")
    return found


def _tensors(header: dict[str, Any], begin: int, size: int) -> dict[str, Tensor]:
    """Checked descriptions by key."""
    about = header.get("__metadata__", {})
    if not isinstance(about, dict) or not all(isinstance(v, str) for v in about.values()):
        raise ValueError("__metadata__ of the header, expected an object of texts")
    found = {
        key: _tensor(key, value, begin) for key, value in header.items() if key != "__metadata__"
    }
    at = begin
    # The format has neither gaps nor overlaps.
    for key, tensor in sorted(found.items(), key=lambda item: (item[1].begin, item[1].nbytes)):
        if tensor.begin != at:
            raise ValueError(
                f"{shown(key)} begins at byte {tensor.begin - begin}, expected {at - begin}"
            )
        at += tensor.nbytes
    if at > size:
        raise ValueError(f"truncated: {size} bytes, expected {at}")
    if at < size:
        raise ValueError(f"{size - at} bytes after the last tensor, expected none")
    return found


def _tensor(key: str, value: Any, begin: int) -> Tensor:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{shown(key)} is {_brief(value)}, expected dtype, shape and data_offsets")
    name, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(name, str) or name not in DTYPES:
        raise ValueError(
            f"{shown(key)} has the dtype {_brief(name)}, expected one of {', '.join(DTYPES)}"
        )
    if not _are_sizes(shape) or len(shape) > _MOST_AXES:
        raise ValueError(f"{shown(key)} has the shape {_brief(shape)}, expected a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(
            f"{shown(key)} has the data_offsets {_brief(offsets)}, expected [begin, end]"
        )
    tensor = Tensor(tuple(shape), DTYPES[name], begin + offsets[0])
    if offsets[1] - offsets[0] != tensor.nbytes:
        raise ValueError(
            f"{shown(key)} has {offsets[1] - offsets[0]} bytes, expected {tensor.nbytes} "
            f"for {name} of shape {shape}"
        )
    return tensor


def _brief(value: Any) -> str:
    """A value of the header, without making a text of all that it holds."""
    if isinstance(value, dict) or (isinstance(value, list) and len(value) > _MOST_AXES):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if isinstance(value, list):
        return f"[{', '.join('[...]' if isinstance(v, list) else str(v) for v in value)}]"
    return shown(value)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(
        type(size) is int and 0 <= size < _LONGEST_AXIS for size in value
    )


class SafetensorsWriter:
    """A new file of known shapes, whose tensors are written in any order; a context.

    Args:
      path: of the file.
      shapes: shapes and dtypes by key.
    """

    def __init__(self, path: Path, shapes: Mapping[str, Any]):
        # Widest first, so that every tensor is aligned.
        keys = sorted(shapes, key=lambda key: (-np.dtype(shapes[key].dtype).itemsize, key))
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._places: dict[str, Tensor] = {}
        at = 0
        for key in keys:
            tensor = Tensor(tuple(shapes[key].shape), np.dtype(shapes[key].dtype), at)
            header[key] = {
                "dtype": _NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [at, at := at + tensor.nbytes],
            }
            self._places[key] = tensor
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._begin = 8 + len(text)
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._file.truncate(self._begin + at)

    def write(self, key: str, a: np.ndarray) -> None:
        """A tensor of the shape and dtype that were said."""
        place = self._places.pop(key)
        if (a.shape, a.dtype) != (place.shape, place.dtype):
            raise ValueError(f"{key} is {a.dtype}{a.shape}, expected {place.dtype}{place.shape}")
        self._file.seek(self._begin + place.begin)
        self._file.write(contiguous(a).reshape(-1).view(np.uint8).data)

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: Any) -> None:
        """Flush to the disk; ValueError if a tensor was not written."""
        with self._file:
            if failed is None and self._places:
                raise ValueError(f"never written: {', '.join(sorted(self._places))}")
            self._file.flush()
            os.fsync(self._file.fileno())
