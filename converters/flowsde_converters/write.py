"""A plan carried out: one Orbax checkpoint and a `config.json`.

Orbax saves pytrees of arrays; here the leaves only know how they are made, and a handler of their
type streams them to the disk one after the other. What comes out is an ordinary checkpoint, which
anything that reads Orbax reads.
"""

import dataclasses
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import type_handlers

import flowsde as fs
from flowsde.models.converted.store import FORMAT, PARAMS, nested, write_config
from flowsde_converters.detect import Plan
from flowsde_converters.lora import check_values
from flowsde_converters.stream import Advance, Stream
from flowsde_converters.tables import Row, check_ignored


def write(plan: Plan, folder: Path, advance: Advance = lambda _: None) -> None:
    """Convert into a new folder.

    Args:
      plan: what to convert.
      folder: that exists, without parameters; half-written after an error.
      advance: told of bytes of tensors that were read, and of parameters that were read back.

    Raises:
      ValueError: listing the values that are not finite, of the checkpoint or of adapters, that
        would be lost, or what was read back differently.
      OSError: the disk.
    """
    check_ignored(plan.found.table, plan.checkpoint.tensors, plan.checkpoint.read)
    check_values(plan.loras)
    with Stream(plan, advance) as stream:
        _save(plan, stream, folder / PARAMS)
        hashes = {path: found.result() for path, found in stream.hashes.items()}
        files = {name: found.result() for name, found in stream.sources.items()}
        loras = [found.result() for found in stream.loras]
    write_config(folder, described(plan, hashes, files, loras))


def described(
    plan: Plan, hashes: dict[str, str], files: dict[str, str], loras: Sequence[str] = ()
) -> dict[str, Any]:
    """The values of `config.json`, given SHA-256 of parameters, files and files of adapters."""
    dtypes = {like.dtype.name for like in plan.model.values()}
    of_key = {
        key: plan.model[row.target].dtype
        for row in plan.found.table.rows
        for i, keys in enumerate(row.keys(plan.model))
        for key in keys
        # What was multiplied by a scale, or merged, does not go back into its dtype.
        if key not in plan.checkpoint.scales and i not in plan.changes.get(row.target, ())
    }
    held = {key: plan.checkpoint.tensors[key].dtype for key in of_key}
    merged = [
        {"file": one.file.name, "sha256": digest, "scale": one.scale, "settings": one.file.settings}
        for one, digest in zip(plan.loras, loras, strict=True)
    ]
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
            **({"loras": merged} if merged else {}),
        },
        "params": {
            path: {"shape": list(like.shape), "dtype": like.dtype.name, "sha256": hashes[path]}
            for path, like in plan.model.items()
        },
    }


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """A parameter that is still to be made, and by what."""

    row: Row
    shape: tuple[int, ...]
    dtype: Any
    stream: Stream

    @property
    def size(self) -> int:
        """Older versions of Orbax estimate bytes by it."""
        return math.prod(self.shape)


class _Handler(type_handlers.NumpyHandler):
    """Streams leaves, and says that they are arrays."""

    async def serialize(
        self, values: Sequence[Any], infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> list[Any]:
        for leaf, info in zip(values, infos, strict=True):
            leaf.stream.write(leaf.row, Path(info.parent_dir) / info.name)
        # Before Orbax gives the folder its name.
        values[0].stream.finish()
        return []


def _save(plan: Plan, stream: Stream, folder: Path) -> None:
    tree = nested(
        {
            row.target: _Leaf(row, like.shape, like.dtype, stream)
            for row in plan.found.table.rows
            for like in [plan.model[row.target]]
        }
    )
    registry = type_handlers.create_type_handler_registry(
        (_Leaf, _Handler()), (jax.Array, type_handlers.ArrayHandler())
    )
    # A folder of files for each parameter, its bytes as they are: no copies to gather them.
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=False, use_compression=False, type_handler_registry=registry
    )
    with _quiet(), ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder.absolute(), args=ocp.args.PyTreeSave(tree))


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
