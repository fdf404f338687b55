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
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from flowsde_converters.moves import contiguous

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
_LONGEST_HEADER = 100_000_000
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

    def __init__(self, path: Path):
        self._path = path
        try:
            self.tensors: Mapping[str, Tensor] = _tensors(*_header(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

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
        if length > _LONGEST_HEADER:
            raise ValueError(f"a header of {length} bytes, expected at most {_LONGEST_HEADER}")
        text = file.read(length)
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"the header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise ValueError(f"the header is a {type(header).__name__}, expected an object")
    return header, 8 + length, size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        (key, times), *_ = collections.Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the header has the key {key} {times} times")
    return found


def _tensors(header: dict[str, Any], begin: int, size: int) -> dict[str, Tensor]:
    """Checked descriptions by key."""
    found = {
        key: _tensor(key, value, begin) for key, value in header.items() if key != "__metadata__"
    }
    at = begin
    # The format has neither gaps nor overlaps.
    for key, tensor in sorted(found.items(), key=lambda item: (item[1].begin, item[1].nbytes)):
        if tensor.begin != at:
            raise ValueError(f"{key} begins at byte {tensor.begin - begin}, expected {at - begin}")
        at += tensor.nbytes
    if at > size:
        raise ValueError(f"truncated: {size} bytes, expected {at}")
    if at < size:
        raise ValueError(f"{size - at} bytes after the last tensor, expected none")
    return found


def _tensor(key: str, value: Any, begin: int) -> Tensor:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{key} is {str(value)[:200]}, expected dtype, shape and data_offsets")
    name, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(name, str) or name not in DTYPES:
        raise ValueError(f"{key} has the dtype {name}, expected one of {', '.join(DTYPES)}")
    if not _are_sizes(shape) or len(shape) > _MOST_AXES:
        raise ValueError(f"{key} has the shape {shape}, expected a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{key} has the data_offsets {offsets}, expected [begin, end]")
    tensor = Tensor(tuple(shape), DTYPES[name], begin + offsets[0])
    if offsets[1] - offsets[0] != tensor.nbytes:
        raise ValueError(
            f"{key} has {offsets[1] - offsets[0]} bytes, expected {tensor.nbytes} "
            f"for {name} of shape {shape}"
        )
    return tensor


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
        self._file = path.open("xb")
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
