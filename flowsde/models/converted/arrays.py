"""A parameter on disk: an uncompressed zarr array (version 2), as Orbax has them.

It is a folder with a `.zarray` that describes it, and files "i.j.k" of a chunk each, row-major. The
chunks here are cut along one axis, after axes of single entries, so that the files one after
another are the whole array row-major. That is why blocks can be written and hashed as plain bytes;
TensorStore writes the description, and reads.

Format: https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html
"""

import hashlib
import itertools
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  NumPy learns the name bfloat16
import numpy as np
import tensorstore

from flowsde._files import read_json
from flowsde._schema import fields, items, one_of, text, whole
from flowsde.models.converted.copying import contiguous

_FILE = 2**26
"""Most bytes of a file, about; a device that has a part of it reads few more than its own."""
_READ = 2**22
_MOST = 2**48
"""Of an axis."""
Stopped = Callable[[], bool]


def never() -> bool:
    """Not stopped."""
    return False


def chunk_of(like: Any, by_block: bool) -> tuple[int, ...]:
    """The shape of a chunk of an array; if `by_block`, of one entry of its leading axis."""
    lead, shape = ((1,), like.shape[1:]) if by_block else ((), like.shape)
    return (*lead, *_cut(shape, np.dtype(like.dtype).itemsize))


def describe(folder: Path, like: Any, chunk: tuple[int, ...]) -> None:
    """Write the description of an array of a shape and dtype, in chunks."""
    tensorstore.open(
        {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": f"{folder.absolute()}/"},
            "metadata": {"compressor": None, "chunks": chunk},
        },
        create=True,
        dtype=like.dtype,
        shape=like.shape,
    ).result()


def _cut(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """A chunk: as many rows as go into a file, and evenly into the array."""
    if not shape:
        return ()
    row = math.prod(shape[1:]) * itemsize
    rows = [n for n in range(1, shape[0] + 1) if shape[0] % n == 0 and n * row <= _FILE]
    # Rows that are larger than a file, or in a prime number: better one large file than many.
    few = rows and shape[0] // rows[-1] <= max(16, 2 * shape[0] * row // _FILE)
    return (rows[-1] if few else shape[0], *shape[1:])


def _names(shape: tuple[int, ...], chunk: tuple[int, ...]) -> list[str]:
    """Files in row-major order."""
    grid = [range(-(-n // m)) for n, m in zip(shape, chunk, strict=True)]
    return [".".join(map(str, at)) or "0" for at in itertools.product(*grid)]


def write_block(folder: Path, block: np.ndarray, chunk: tuple[int, ...], i: int | None) -> None:
    """Write the files of entry `i` of the leading axis, or of all, flushed to the disk."""
    data = raw(block)
    inner = chunk if i is None else chunk[1:]
    names = _names(block.shape, inner)
    size = len(data) // len(names)
    for place, name in enumerate(names):
        path = folder / (name if i is None else f"{i}.{name}")
        with path.open("wb", buffering=0) as file:
            _write_all(file, data[place * size : (place + 1) * size])
            os.fsync(file.fileno())


def _write_all(file: Any, data: memoryview) -> None:
    # One call of the system writes 2 GiB at most.
    while data:
        data = data[file.write(data) :]


def raw(a: np.ndarray) -> memoryview:
    """The bytes of an array, row-major, without a copy if it is."""
    return contiguous(a).reshape(-1).view(np.uint8).data


def digest(paths: Iterator[Path], stopped: Stopped = never) -> str:
    """SHA-256 of files, one after another; of less of them if it is stopped."""
    found, buffer = hashlib.sha256(), memoryview(bytearray(_READ))
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while not stopped() and (size := file.readinto(buffer)):
                found.update(buffer[:size])
    return found.hexdigest()


_ARRAY = fields(
    zarr_format=one_of(2),
    shape=items(whole(0, _MOST)),
    chunks=items(whole(1, _MOST)),
    dtype=text,
    compressor=one_of(None),
    filters=one_of(None),
    order=one_of("C"),
    dimension_separator=one_of("."),
)


class Parameter:
    """A parameter on disk, in a folder of its own.

    Attributes:
      shape: of the whole.
      dtype: as written.

    Raises:
      ValueError: it is not there, or not whole.
    """

    def __init__(self, folder: Path):
        try:
            about = _ARRAY(read_json(folder / ".zarray"), f"{folder}/.zarray")
        except FileNotFoundError:
            raise ValueError(f"{folder} cannot be read: it has no .zarray") from None
        self.shape: tuple[int, ...] = tuple(about["shape"])
        self._paths = _files(folder, self.shape, tuple(about["chunks"]))
        where = {"driver": "file", "path": str(folder.absolute())}
        try:
            self._store: Any = tensorstore.open({"driver": "zarr", "kvstore": where}).result()
        except ValueError as error:
            said = str(error).split("[")[0].strip()
            raise ValueError(f"{folder} cannot be read: {said}") from None
        self.dtype: np.dtype = self._store.dtype.numpy_dtype
        size = math.prod(about["chunks"]) * self.dtype.itemsize
        if any(not path.is_file() or path.stat().st_size != size for path in self._paths):
            raise ValueError(f"{folder} cannot be read: a file is missing or truncated")

    @property
    def nbytes(self) -> int:
        """Of all of it."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, i: int | None = None) -> np.ndarray:
        """All of it, or entry i of its leading axis."""
        return (self._store if i is None else self._store[i]).read().result()

    def digest(self, stopped: Stopped = never) -> str:
        """SHA-256 of its bytes, row-major; of less of them if it is stopped."""
        return digest(iter(self._paths), stopped)


def _files(folder: Path, shape: tuple[int, ...], chunk: tuple[int, ...]) -> list[Path]:
    """The files of a parameter; ValueError, before they are listed, if the folder holds others."""
    if len(shape) != len(chunk):
        raise ValueError(f"{folder}/.zarray has chunks of {len(chunk)} axes, expected {len(shape)}")
    # The description may say anything: what there is bounds it.
    count = math.prod(-(-n // m) for n, m in zip(shape, chunk, strict=True))
    if count != len(os.listdir(folder)) - 1:
        raise ValueError(f"{folder} cannot be read: a file is missing or truncated")
    return [folder / name for name in _names(shape, chunk)]
