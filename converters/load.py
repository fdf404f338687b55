"""Converted models back in memory: `flowsde.load`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from jax.typing import DTypeLike

from flowsde.models.layers import Numerics, logical_axes
from flowsde_converters.arrays import Parameter
from flowsde_converters.detect import abstract, family_named
from flowsde_converters.family import Family
from flowsde_converters.paths import parameters, with_parameters
from flowsde_converters.store import CONFIG, PARAMS, flat, from_json, nested, read_config
from flowsde_converters.tables import listed


def load_model(
    folder: Path,
    mesh: Mesh | None,
    dtype: DTypeLike | None,
    rules: Mapping[str, str] | None,
    numerics: Numerics | None,
) -> Any:
    """As `flowsde.load`, of one model."""
    module = load_module(folder, mesh, dtype, rules, numerics)
    family, config = configuration(folder)
    return module if family.flow is None else family.flow(module, config)


def configuration(folder: Path) -> tuple[Family, Any]:
    """Family and configuration of a converted model, without its parameters."""
    about = read_config(folder)
    family = family_named(about["family"])
    return family, from_json(family.config, about["config"])


def load_module(
    folder: Path,
    mesh: Mesh | None = None,
    dtype: DTypeLike | None = None,
    rules: Mapping[str, str] | None = None,
    numerics: Numerics | None = None,
) -> Any:
    """The `nnx.Module` of one model, also where its family makes a flow."""
    for name, axis in (rules or {}).items():
        if mesh is None or axis not in mesh.axis_names:
            there = "a mesh" if mesh is None else f"one of {', '.join(map(str, mesh.axis_names))}"
            raise ValueError(f"rules map {name!r} to {axis!r}, expected {there}")
    about = read_config(folder)
    family, config = configuration(folder)
    written = {path: jax.numpy.dtype(p["dtype"]) for path, p in about["params"].items()}
    model = abstract(family, config, _numerics(numerics, dtype, list(written.values())))
    like = parameters(model)
    _check(folder, about, like)
    shardings = _shardings(model, mesh, rules or {})
    params = _restore(
        folder / PARAMS,
        {
            path: jax.ShapeDtypeStruct(
                p.shape, written[path] if dtype is None else p.dtype, sharding=shardings[path]
            )
            for path, p in like.items()
        },
    )
    return with_parameters(model, params)


def _numerics(
    given: Numerics | None, dtype: DTypeLike | None, written: list[jax.numpy.dtype]
) -> Numerics:
    weights = dtype or max(written, key=written.count)
    if given is None:
        return Numerics(dtype=weights, param_dtype=weights)
    return dataclasses.replace(given, param_dtype=weights)


def _check(folder: Path, about: dict[str, Any], like: dict[str, Any]) -> None:
    """ValueError unless the parameters on disk are those of the model, and whole."""
    held = {path: tuple(p["shape"]) for path, p in about["params"].items()}
    made = {path: p.shape for path, p in like.items()}
    wrong = [
        f"{path} is {held.get(path)}, expected {made.get(path)}"
        for path in sorted(held.keys() | made.keys())
        if held.get(path) != made.get(path)
    ]
    if wrong:
        title = f"{folder / CONFIG}, of flowsde {about['version']}, is not of this version's model"
        raise ValueError(listed(wrong, title))
    for path, p in about["params"].items():
        there = Parameter(folder / PARAMS / path)
        if (list(there.shape), there.dtype.name) != (p["shape"], p["dtype"]):
            what = f"{there.dtype} {there.shape}, expected {p['dtype']} {p['shape']}"
            raise ValueError(f"{folder / PARAMS / path} is {what}")


def _shardings(
    model: nnx.Module, mesh: Mesh | None, rules: Mapping[str, str]
) -> dict[str, Sharding]:
    """Where each parameter goes, by path."""
    if mesh is None:
        single = SingleDeviceSharding(jax.devices()[0])
        return {path: single for path in parameters(model)}
    names: list[Any] = list(nnx.to_flat_state(logical_axes(model)))
    axes = {".".join(map(str, path)): leaf.get_value() for path, leaf in names}
    return {
        path: NamedSharding(mesh, _spec(p.shape, axes[path], mesh, rules))
        for path, p in parameters(model).items()
    }


def _spec(
    shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: Mesh, rules: Mapping[str, str]
) -> PartitionSpec:
    for i, (size, name) in enumerate(zip(shape, axes, strict=True)):
        if name is not None and name in rules and size % mesh.shape[rules[name]] == 0:
            return PartitionSpec(*[None] * i, rules[name])
    return PartitionSpec()


def _restore(folder: Path, like: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Parameters by path, each device reading its own part."""
    with ocp.StandardCheckpointer() as checkpointer:
        return flat(checkpointer.restore(folder.absolute(), nested(like)))
