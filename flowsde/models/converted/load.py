"""The weights of a converted model, read onto the devices."""

import dataclasses
import os
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh, Sharding, SingleDeviceSharding
from jax.typing import DTypeLike

from flowsde._text import shown
from flowsde.models.common.layers import Numerics, logical_axes
from flowsde.models.common.paths import parameters, with_parameters
from flowsde.models.converted.arrays import Parameter
from flowsde.models.converted.opened import Opened
from flowsde.models.converted.store import PARAMS, flat, nested
from flowsde.sharding import ShardingRules, automatic

Merge = Callable[[np.ndarray, np.dtype], np.ndarray]
"""From a parameter on disk, to one of a dtype with adapters in it."""
_HASHING = max(1, min(8, (os.cpu_count() or 2) // 2))
"""Threads; each hashes about a gigabyte a second."""


def load_module(
    opened: Opened,
    mesh: Mesh | None = None,
    dtype: DTypeLike | None = None,
    rules: ShardingRules | None = None,
    numerics: Numerics | None = None,
    verify: bool = True,
    merges: Mapping[str, Merge] = types.MappingProxyType({}),
) -> Any:
    """The `nnx.Module` of a model; arguments and errors as of `flowsde.load`.

    `merges` are what parameters become, by path: from the array on disk, to one of the dtype given.
    """
    if not isinstance(rules, ShardingRules | None):
        raise TypeError(f"rules must be flowsde.ShardingRules, got {type(rules).__name__}")
    if rules is not None and mesh is None:
        raise ValueError("rules say how to split over a mesh, expected a mesh with them")
    held = opened.parameters()
    written = {path: jax.numpy.dtype(one.dtype) for path, one in held.items()}
    numerics = _numerics(numerics, dtype, list(written.values()))
    if rules is not None:
        numerics = dataclasses.replace(numerics, rules=rules)
    model = opened.model(numerics)
    shardings = _shardings(model, mesh, rules or ShardingRules())
    like = {
        path: jax.ShapeDtypeStruct(
            p.shape, written[path] if dtype is None else p.dtype, sharding=shardings[path]
        )
        for path, p in parameters(model).items()
    }
    with _verifying(opened, held if verify else {}, mesh):
        params = _restore(opened.folder / PARAMS, like)
    for path, merge in merges.items():
        params[path] = _merged(path, held[path], merge, like[path])
    return with_parameters(model, params)


def _merged(path: str, parameter: Parameter, merge: Merge, like: jax.ShapeDtypeStruct) -> jax.Array:
    """A parameter's merge, each device taking its own part."""
    array = merge(parameter.read(), like.dtype)
    if not np.isfinite(array).all():
        raise ValueError(f"{path} with adapters is NaN or infinite in {like.dtype}")
    return jax.make_array_from_callback(like.shape, like.sharding, lambda at: array[at])


def _numerics(
    given: Numerics | None, dtype: DTypeLike | None, written: list[jax.numpy.dtype]
) -> Numerics:
    weights = dtype or max(written, key=written.count)
    if given is None:
        return Numerics.of_weights(weights)
    return dataclasses.replace(given, param_dtype=weights)


def _shardings(model: nnx.Module, mesh: Mesh | None, rules: ShardingRules) -> dict[str, Sharding]:
    """Where each parameter goes, by path."""
    if mesh is None:
        single = SingleDeviceSharding(jax.devices()[0])
        return {path: single for path in parameters(model)}
    mesh = automatic(mesh)
    rules = rules.on(mesh)
    names: list[Any] = list(nnx.to_flat_state(logical_axes(model)))
    axes = {".".join(map(str, path)): leaf.get_value() for path, leaf in names}
    return {
        path: rules.sharding(path, p.shape, axes[path], mesh)
        for path, p in parameters(model).items()
    }


@contextmanager
def _verifying(opened: Opened, held: dict[str, Parameter], mesh: Mesh | None) -> Iterator[None]:
    """Compare parameters with their hashes while the block reads them.

    Processes that share a mesh share the work. The bytes are those that the block reads, out of the
    system's memory: a disk gives them once.

    Raises:
      ValueError: naming the parameters that are not what was written.
    """
    processes = [0] if mesh is None else sorted({d.process_index for d in mesh.devices.flat})
    first = processes.index(jax.process_index()) if len(processes) > 1 else 0
    stopped = threading.Event()
    with ThreadPoolExecutor(_HASHING) as pool:
        found = {
            path: pool.submit(one.digest, stopped.is_set)
            for path, one in list(held.items())[first :: len(processes)]
        }
        try:
            yield
            wanted = opened.about["params"]
            wrong = [path for path, it in found.items() if it.result() != wanted[path]["sha256"]]
        finally:
            stopped.set()
    if wrong:
        raise opened.changed(wrong)


def _restore(folder: Path, like: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Parameters by path, each device reading its own part."""
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return flat(checkpointer.restore(folder.absolute(), nested(like)))
    except Exception as error:  # Of torn files of its own Orbax says many things.
        said = f"{type(error).__name__} {shown(error)}"
        raise ValueError(f"{folder} cannot be read: {said}") from error
