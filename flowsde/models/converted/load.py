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
from flax import nnx
from jax.sharding import Mesh, Sharding, SingleDeviceSharding
from jax.typing import DTypeLike

from flowsde._text import shown
from flowsde.models.common.layers import Numerics, logical_axes
from flowsde.models.common.paths import parameters, with_parameters
from flowsde.models.common.quantised import Format, NotFiniteError, quantise_layers, quantised_of
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
    quantise: Format | None = None,
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
    quantised = [] if quantise is None else quantise_layers(model, quantise)
    shardings = _shardings(model, mesh, rules or ShardingRules())
    like = {
        path: jax.ShapeDtypeStruct(
            p.shape,
            written[path] if dtype is None and path in written else p.dtype,
            sharding=shardings[path],
        )
        for path, p in parameters(model).items()
    }
    with _verifying(opened, held if verify else {}, mesh):
        if quantise is None:
            params = _restore(opened.folder / PARAMS, like)
        else:
            plain = held.keys() - quantised
            params = {p: _placed(held[p].read().astype(like[p].dtype), like[p]) for p in plain}
            for path in quantised:
                params |= _quantised(path, held[path], quantise, merges.get(path), like)
    for path, merge in merges.items():
        if path not in quantised:
            params[path] = _merged(path, held[path], merge, like[path])
    return with_parameters(model, params)


def _quantised(
    path: str,
    parameter: Parameter,
    form: Format,
    merge: Merge | None,
    like: Mapping[str, jax.ShapeDtypeStruct],
) -> dict[str, jax.Array]:
    """Values and scales of a kernel by path, made a block at a time, each device taking its part.

    Every process reads all of it: a feature's scale is that of all of its weights.
    """
    merged = None if merge is None else merge(parameter.read(), np.dtype(np.float32))
    names = [f"{path.removesuffix('kernel')}{part}" for part in ("values", "scale")]
    made = [np.empty(like[name].shape, like[name].dtype) for name in names]
    for i in range(parameter.shape[0]):
        try:
            parts = quantised_of(parameter.read(i) if merged is None else merged[i], form)
        except NotFiniteError as error:
            said = f"{path}: {error}; in {form} its feature would be lost"
            raise NotFiniteError(said) from None
        for whole, part in zip(made, parts, strict=True):
            whole[i] = part
    return {name: _placed(a, like[name]) for name, a in zip(names, made, strict=True)}


def _merged(path: str, parameter: Parameter, merge: Merge, like: jax.ShapeDtypeStruct) -> jax.Array:
    """A parameter's merge, each device taking its own part."""
    array = merge(parameter.read(), like.dtype)
    if not np.isfinite(array).all():
        raise ValueError(f"{path} with adapters is NaN or infinite in {like.dtype}")
    return _placed(array, like)


def _placed(array: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    """An array on the devices, each taking its own part."""
    return jax.make_array_from_callback(like.shape, like.sharding, array.__getitem__)


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
        wanted, not_finite = opened.about["params"], None
        try:
            try:
                yield
            except NotFiniteError as error:
                not_finite = error  # of a file that is damaged, which is to be said first
            wrong = [path for path, it in found.items() if it.result() != wanted[path]["sha256"]]
        finally:
            stopped.set()
    if wrong:
        raise opened.changed(wrong)
    if not_finite is not None:
        raise ValueError(f"{opened.folder}: {not_finite}") from None


def _restore(folder: Path, like: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Parameters by path, each device reading its own part."""
    try:
        # Half a second that the embedded models do without.
        import orbax.checkpoint as ocp

        with ocp.StandardCheckpointer() as checkpointer:
            return flat(checkpointer.restore(folder.absolute(), nested(like)))
    except Exception as error:  # Of torn files of its own Orbax says many things.
        said = f"{type(error).__name__} {shown(error)}"
        raise ValueError(f"{folder} cannot be read: {said}") from error
