"""Arrays on the wire: the safetensors format, read without trust.

    8 bytes   length of the header, little endian
    header    JSON: {name: {"dtype", "shape", "data_offsets"}, "__metadata__": {"flowsde": TEXT}}
    data      the arrays, little endian, without gaps

A header is read and checked whole before memory is taken for what it announces, and what follows
it has just the length that it says. Nothing that is read is ever executed.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from safetensors.numpy import save

MOST_HEADER = 1 << 20
"""Bytes of a header, prompts included."""
_MOST_ARRAYS, _MOST_AXES = 64, 16
_OURS = "flowsde"
_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    **{f"U{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{f"I{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    **{f"F{8 * size}": np.dtype(f"<f{size}") for size in (2, 4, 8)},
}


class Malformed(ValueError):
    """Bytes that are no message."""


class Truncated(Malformed):
    """A message that ended too early."""


class Stream(Protocol):
    """What is read from: a file of bytes."""

    def readinto(self, buffer: Any, /) -> int | None: ...


class Entry(NamedTuple):
    """Where an array lies in the data, `start` to `end` in bytes."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    end: int


class Header(NamedTuple):
    """Arrays by name, the text that came with them, and the bytes of the header itself."""

    arrays: dict[str, Entry]
    text: str
    raw: bytes

    @property
    def size(self) -> int:
        """Bytes of data."""
        return max((entry.end for entry in self.arrays.values()), default=0)


def dump(arrays: Mapping[str, np.ndarray], text: str) -> bytes:
    """A message; the same arrays and text give the same bytes."""
    ready = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    # One entry: the library keeps several in an order that differs from run to run.
    return save(ready, {_OURS: text})


def read_header(stream: Stream, length: int) -> Header:
    """The header of a message of `length` bytes.

    Raises:
      Malformed: it is too long, is no such header, or does not fit the length; `Truncated` if the
        stream ends within it.
    """
    if length < 8:
        raise Malformed(f"a message has at least 8 bytes, got {length}")
    begin = _read(stream, 8)
    size = int.from_bytes(begin, "little")
    if size > min(MOST_HEADER, length - 8):
        raise Malformed(
            f"the header must have at most {MOST_HEADER} bytes and lie in the message's {length}, "
            f"got {size}"
        )
    raw = bytes(_read(stream, size))
    try:
        found = json.loads(raw, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the header is not JSON: {str(error)[:100]}") from None
    header = Header(*_checked(found), bytes(begin) + raw)
    if header.size != length - 8 - size:
        raise Malformed(f"arrays take {header.size} bytes, {length - 8 - size} follow the header")
    return header


def read_arrays(stream: Stream, header: Header) -> tuple[dict[str, np.ndarray], bytearray]:
    """The arrays of a header that was checked, which share the memory of the data beside them."""
    data = _read(stream, header.size)
    arrays = {
        name: np.frombuffer(data, entry.dtype, math.prod(entry.shape), entry.start).reshape(
            entry.shape
        )
        for name, entry in header.arrays.items()
    }
    return arrays, data


def _read(stream: Stream, size: int) -> bytearray:
    data = bytearray(size)
    view, have = memoryview(data), 0
    while have < size:
        got = stream.readinto(view[have:])
        if not got:
            raise Truncated(f"the message ended {size - have} bytes early")
        have += got
    return data


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found


def _checked(found: Any) -> tuple[dict[str, Entry], str]:
    if not isinstance(found, dict):
        raise Malformed("the header must be an object")
    metadata = found.pop("__metadata__", None)
    text = metadata.get(_OURS) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise Malformed(f"the header must have metadata with a text {_OURS!r}")
    if len(found) > _MOST_ARRAYS:
        raise Malformed(f"a message has at most {_MOST_ARRAYS} arrays, got {len(found)}")
    arrays = {name: _entry(name, entry) for name, entry in found.items()}
    end = 0
    for entry in sorted(arrays.values(), key=lambda entry: (entry.start, entry.end)):
        if entry.start != end:
            raise Malformed(f"arrays must lie one after the other, got one at {entry.start}")
        end = entry.end
    return arrays, text


def _entry(name: str, entry: Any) -> Entry:
    said = f"array {name[:50]!r}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise Malformed(f"{said} must have a dtype, a shape and data_offsets")
    known = entry["dtype"] if isinstance(entry["dtype"], str) else ""
    if known not in _DTYPES:
        raise Malformed(f"{said} must have a dtype of {', '.join(_DTYPES)}, got {known[:20]!r}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_counts(shape) or len(shape) > _MOST_AXES:
        raise Malformed(f"{said} must have a shape of at most {_MOST_AXES} counts")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise Malformed(f"{said} must have two data_offsets")
    size = math.prod(shape) * _DTYPES[known].itemsize
    if offsets[1] - offsets[0] != size:
        raise Malformed(f"{said} of shape {shape} takes {size} bytes, its data_offsets another")
    return Entry(_DTYPES[known], tuple(shape), *offsets)


def _are_counts(values: Any) -> bool:
    # bool is an int, too.
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**48 for v in values)
