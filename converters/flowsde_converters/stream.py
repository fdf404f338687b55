"""Parameters made, hashed, written and read back, block by block, at the same time.

    this thread   tensors -> finite? -> laid out as a block -> ...
    hashing       ... SHA-256 of the parameter, block after block
    writing       ... the block's own file, flushed to the disk
    reading       a parameter that is complete is read again, and its hash compared

A few blocks are in memory at once, whatever the size of the parameter they are stacked in; they
are used again and again, as memory that is new costs more than what is written into it.
"""

import collections
import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flowsde.models.converted.arrays import Parameter, chunk_of, describe, digest, raw, write_block
from flowsde_converters.detect import Plan
from flowsde_converters.tables import Change, Row, blocks, fill, listed, nbytes

_LEAST_BLOCK = 2**20
_IN_FLIGHT = 2**27
"""Bytes of blocks that wait to be written."""
_SLICE = 2**16
Advance = Callable[[int], Any]


class Stream:
    """The parameters of a plan on their way to the disk; a context, which ends their threads.

    Args:
      plan: what to convert.
      advance: told of bytes of tensors that were read, and of parameters that were read back.
    """

    def __init__(self, plan: Plan, advance: Advance):
        self._plan, self._advance, self._lock = plan, advance, threading.Lock()
        self._hashing, self._reading, self._sources = (ThreadPoolExecutor(1) for _ in range(3))
        self._writing = ThreadPoolExecutor(2)
        self._stopped = threading.Event()
        self._in_flight: collections.deque[tuple[np.ndarray, list[Future]]] = collections.deque()
        self._wrong: list[str] = []
        self._unfit = self._cast = False
        self._free: list[np.ndarray] = []
        self._begun: set[str] = set()
        self._read_back: dict[str, Future[str | None]] = {}
        self.hashes: dict[str, Future[str]] = {}
        """SHA-256 of each parameter."""
        self.loras = [
            self._sources.submit(digest, iter(one.file.checkpoint.paths), self._stopped.is_set)
            for one in plan.loras
        ]
        """SHA-256 of each file of adapters."""
        self.sources = {
            path.name: self._sources.submit(digest, iter([path]), self._stopped.is_set)
            for path in plan.checkpoint.paths
        }
        """SHA-256 of each file, found while the rest goes on."""

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: Any) -> None:
        self._stopped.set()
        self._wait(0, ignore=True)
        for pool in (self._sources, self._writing, self._hashing, self._reading):
            pool.shutdown(cancel_futures=True)

    def write(self, row: Row, folder: Path) -> None:
        """Begin to write a parameter; ValueError, after a look at all others, for wrong values."""
        like = self._plan.model[row.target]
        by_block = row.stacked and nbytes(like) >= like.shape[0] * _LEAST_BLOCK
        chunk = chunk_of(like, by_block)
        folder.mkdir(parents=True)
        writing = [self._writing.submit(describe, folder, like, chunk)]
        hashed = hashlib.sha256()
        self._begun.add(row.target)
        for i, block in enumerate(self._blocks(row, by_block)):
            place = i if by_block else None
            writing.append(self._writing.submit(write_block, folder, block, chunk, place))
            hashing = self._hashing.submit(hashed.update, raw(block))
            self._in_flight.append((block, [writing[-1], hashing]))
            self._wait(_IN_FLIGHT)
        self.hashes[row.target] = self._hashing.submit(hashed.hexdigest)
        self._read_back[row.target] = self._reading.submit(self._check, row.target, folder, writing)

    def finish(self) -> None:
        """Wait for the disk; ValueError if something reads back differently."""
        self._wait(0)
        wrong = [said for found in self._read_back.values() if (said := found.result())]
        if wrong:
            raise ValueError(listed(wrong, "what was written is not what was made: a broken disk?"))

    def _blocks(self, row: Row, by_block: bool) -> Iterator[np.ndarray]:
        model, read = self._plan.model, partial(self._read, self._plan.model[row.target].dtype)
        changes = {
            i: partial(self._change, change)
            for i, change in self._plan.changes.get(row.target, {}).items()
        }
        made = blocks(row, model, read, self._empty, changes)
        if not by_block:
            made = iter([fill(row, model, read, changes)])
        for block in made:
            self._look_at(row, block)
            if self._wrong:
                self._give_up(row, made)
            yield block

    def _give_up(self, row: Row, rest: Iterator[np.ndarray]) -> None:
        """ValueError naming all wrong values, of the parameters that are still to come too."""
        for block in rest:
            self._look_at(row, block)
        for other in self._plan.found.table.rows:
            if other.target not in self._begun:
                read = partial(self._read, self._plan.model[other.target].dtype)
                for block in blocks(other, self._plan.model, read):
                    self._look_at(other, block)
        wrong = dict.fromkeys(self._wrong)
        raise ValueError(listed(wrong, "the checkpoint has values that cannot be converted"))

    def _look_at(self, row: Row, block: np.ndarray) -> None:
        # Tensors are finite, or were found not to be when they were read; only a cast changes them.
        if self._cast and not self._unfit and count_not_finite(block):
            self._wrong.append(f"{row.target}: some values are too large for {block.dtype}")
        self._cast = self._unfit = False

    def _read(self, dtype: np.dtype, key: str) -> np.ndarray:
        tensor = self._plan.checkpoint.read(key)
        self._cast |= tensor.dtype != dtype
        wrong = count_not_finite(tensor)
        if wrong:
            self._unfit = True
            self._wrong.append(f"{key}: {wrong} of {tensor.size} values are NaN or infinite")
        self._tell(self._plan.checkpoint.tensors[key].nbytes)
        return tensor

    def _change(self, change: Change, joined: np.ndarray) -> np.ndarray:
        """A merged block, which is then rounded."""
        self._cast = True
        with np.errstate(over="ignore", invalid="ignore"):
            return change(joined)

    def _check(self, path: str, folder: Path, writing: list[Future]) -> str | None:
        """What is wrong with a parameter on disk."""
        for write in writing:
            write.result()
        like, held = self._plan.model[path], Parameter(folder)
        same = (held.shape, held.dtype) == (like.shape, like.dtype)
        same = same and held.digest(self._stopped.is_set) == self.hashes[path].result()
        self._tell(nbytes(like))
        return None if same else f"{path} reads back differently"

    def _wait(self, most: int, ignore: bool = False) -> None:
        """Until at most so many bytes of blocks are in memory."""
        while self._in_flight and sum(block.nbytes for block, _ in self._in_flight) > most:
            block, work = self._in_flight.popleft()
            for one in work:
                try:
                    one.result()
                except Exception:
                    if not ignore:
                        raise
            self._free.append(block)

    def _empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An array for a block: one that is done with, if it is alike."""
        alike = [a for a in self._free if (a.shape, a.dtype) == (shape, dtype)]
        self._free = alike[1:]
        return alike[0] if alike else np.empty(shape, dtype)

    def _tell(self, size: int) -> None:
        with self._lock:
            self._advance(size)


def count_not_finite(a: np.ndarray) -> int:
    """How many values are NaN or infinite: those whose exponent has all bits set."""
    bits = a.reshape(-1).view(f"u{a.dtype.itemsize}")
    largest = np.asarray(np.inf, a.dtype).reshape(1).view(bits.dtype)[0]
    magnitude = ~(bits.dtype.type(1) << bits.dtype.type(8 * a.dtype.itemsize - 1))
    parts = (bits[i : i + _SLICE] & magnitude for i in range(0, bits.size, _SLICE))
    return sum(int((part >= largest).sum()) for part in parts if part.max() >= largest)
