"""A plan carried out: parameters streamed into one Orbax checkpoint, and read back.

One parameter is made while the one before is written, so that two are in memory at most. Orbax
saves whole pytrees; here its leaves only know how they are made, and a handler makes them one after
the other. What comes out is an ordinary checkpoint, which anything that reads Orbax reads.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import type_handlers

import flowsde as fs
from flowsde.report import write_json
from flowsde_converters.detect import Plan
from flowsde_converters.files import digest
from flowsde_converters.store import CONFIG, FORMAT, PARAMS, Parameter, nested, raw
from flowsde_converters.tables import Row, fill, listed

_CHUNK = 2**26
"""Bytes of a file of a parameter; a device that has a part of it reads few more than its own."""
_LEAST_BLOCK = 2**20
_SLICE = 2**16
Advance = Callable[[int], Any]


def write(plan: Plan, folder: Path, advance: Advance = lambda _: None) -> None:
    """Convert into a new folder.

    Args:
      plan: what to convert.
      folder: that exists and is empty; half-written after an error.
      advance: told of bytes of tensors that were read, and of parameters that were verified.

    Raises:
      ValueError: listing the values that are not finite, or what was read back differently.
      OSError: the disk.
    """
    with ThreadPoolExecutor(1) as files_pool, ThreadPoolExecutor(1) as pool:
        files = {path.name: files_pool.submit(digest, path) for path in plan.checkpoint.paths}
        maker = _Maker(plan, pool, advance)
        _save(maker, folder / PARAMS)
        hashes = {path: found.result() for path, found in maker.hashes.items()}
        _verify(hashes, folder, plan, advance)
        sources = {name: found.result() for name, found in files.items()}
    write_json(folder / CONFIG, _about(plan, hashes, sources))


def _about(plan: Plan, hashes: dict[str, str], files: dict[str, str]) -> dict[str, Any]:
    """The values of `config.json`."""
    dtypes = {like.dtype.name for like in plan.model.values()}
    of_key = {
        key: plan.model[row.target].dtype
        for row in plan.found.table.rows
        for keys in row.keys(plan.model)
        for key in keys
    }
    held = {key: plan.checkpoint.tensors[key].dtype for key in of_key}
    return {
        "format": FORMAT,
        "version": fs.__version__,
        "family": plan.family.name,
        "layout": plan.found.layout,
        "config": dataclasses.asdict(plan.found.config),
        "dtype": dtypes.pop() if len(dtypes) == 1 else "mixed",
        "source": {
            "files": files,
            "dtypes": {k: d.name for k, d in held.items() if d.itemsize < of_key[k].itemsize},
            "ignored": plan.ignored,
            "config": plan.checkpoint.config,
        },
        "params": {
            path: {"shape": list(like.shape), "dtype": like.dtype.name, "sha256": hashes[path]}
            for path, like in plan.model.items()
        },
    }


class _Leaf:
    """A parameter that is still to be made."""

    def __init__(self, row: Row, like: Any, make: Callable[[Row], np.ndarray]):
        self.shape, self.dtype = like.shape, like.dtype
        self._row, self._make = row, make

    def make(self) -> np.ndarray:
        return self._make(self._row)


class _Shared(np.ndarray):
    """An array that is written as it is: Orbax copies arrays, lest someone change them."""

    def __deepcopy__(self, memo: Any) -> "_Shared":
        return self


class _Handler(type_handlers.NumpyHandler):
    """Makes and writes leaves one after the other."""

    async def serialize(
        self,
        values: Sequence[Any],
        infos: Sequence[Any],
        args: Sequence[Any] | None = None,
    ) -> list[Any]:
        writing: Sequence[Any] = []
        try:
            for leaf, info, arg in zip(values, infos, args or [None] * len(infos), strict=True):
                array = leaf.make()
                for one in writing:
                    one.result()
                writing = await super().serialize([array], [info], [arg or ocp.SaveArgs()])
        finally:
            # After an error too: the folder is about to be removed.
            for one in writing:
                one.result()
        return []


class _Maker:
    """Makes parameters, hashes them, and finds values that are not finite."""

    def __init__(self, plan: Plan, pool: ThreadPoolExecutor, advance: Advance):
        self._plan, self._pool, self._advance = plan, pool, advance
        self._wrong: list[str] = []
        self._last: Future[str] | None = None
        self.hashes: dict[str, Future[str]] = {}

    def leaves(self) -> dict[str, _Leaf]:
        """By path."""
        model, rows = self._plan.model, self._plan.found.table.rows
        return {row.target: _Leaf(row, model[row.target], self._next) for row in rows}

    def _next(self, row: Row) -> np.ndarray:
        """A parameter; ValueError after a look at all the others if there is a wrong value."""
        array = self._fill(row)
        if self._wrong:
            for other in self._plan.found.table.rows:
                if other.target not in self.hashes and other is not row:
                    self._fill(other)
            raise ValueError(listed(self._wrong, "the checkpoint has values that cannot be"))
        if self._last is not None:
            # Else the array that it hashes would be a third one in memory.
            self._last.result()
        self._last = self._pool.submit(lambda: hashlib.sha256(raw(array)).hexdigest())
        self.hashes[row.target] = self._last
        return array.view(_Shared)

    def _fill(self, row: Row) -> np.ndarray:
        before = len(self._wrong)
        array = fill(row, self._plan.model, self._read)
        if len(self._wrong) == before and (wrong := count_not_finite(array)):
            self._wrong.append(f"{row.target}: {wrong} values are too large for {array.dtype}")
        return array

    def _read(self, key: str) -> np.ndarray:
        tensor = self._plan.checkpoint.read(key)
        wrong = count_not_finite(tensor)
        if wrong:
            self._wrong.append(f"{key}: {wrong} of {tensor.size} values are NaN or infinite")
        self._advance(tensor.nbytes)
        return tensor


def count_not_finite(a: np.ndarray) -> int:
    """How many values are NaN or infinite: those whose exponent has all bits set."""
    bits = a.reshape(-1).view(f"u{a.dtype.itemsize}")
    largest = np.asarray(np.inf, a.dtype).reshape(1).view(bits.dtype)[0]
    magnitude = ~(bits.dtype.type(1) << bits.dtype.type(8 * a.dtype.itemsize - 1))
    parts = (bits[i : i + _SLICE] & magnitude for i in range(0, bits.size, _SLICE))
    return sum(int((part >= largest).sum()) for part in parts if part.max() >= largest)


def _save_args(leaf: _Leaf) -> ocp.SaveArgs:
    """How a parameter is cut into files: by blocks if they are large."""
    block = np.prod(leaf.shape[1:]) * leaf.dtype.itemsize
    by_block = len(leaf.shape) > 1 and block >= _LEAST_BLOCK
    return ocp.SaveArgs(chunk_byte_size=_CHUNK, shard_axes=(0,) if by_block else ())


def _save(maker: _Maker, folder: Path) -> None:
    leaves = maker.leaves()
    tree = nested(leaves)
    registry = type_handlers.create_type_handler_registry(
        (_Leaf, _Handler()), (jax.Array, type_handlers.ArrayHandler())
    )
    # A folder of files for each parameter, its bytes as they are: no copies to gather them.
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=False, use_compression=False, type_handler_registry=registry
    )
    with _quiet(), ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(
            folder.absolute(),
            args=ocp.args.PyTreeSave(tree, save_args=jax.tree.map(_save_args, tree)),
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Orbax's remark that there is nothing to gather."""
    log = logging.getLogger("absl")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _verify(hashes: dict[str, str], folder: Path, plan: Plan, advance: Advance) -> None:
    """ValueError unless every parameter reads back as it was made."""

    def check(path: str) -> str | None:
        like, held = plan.model[path], Parameter(folder, path)
        same = (held.shape, held.dtype, held.digest()) == (like.shape, like.dtype, hashes[path])
        advance(int(np.prod(like.shape)) * like.dtype.itemsize)
        return None if same else f"{path} reads back differently"

    with ThreadPoolExecutor(2) as pool:
        wrong = [said for said in pool.map(check, hashes) if said]
    if wrong:
        raise ValueError(listed(wrong, "what was written is not what was made: a failing disk?"))
