"""Converted models back in memory: `flowsde.load`."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx
from jax.sharding import Mesh, Sharding, SingleDeviceSharding
from jax.typing import DTypeLike

from flowsde.models.layers import Numerics, logical_axes
from flowsde.sharding import ShardingRules, automatic
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
    rules: ShardingRules | None,
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
    rules: ShardingRules | None = None,
    numerics: Numerics | None = None,
) -> Any:
    """The `nnx.Module` of one model, also where its family makes a flow."""
    if not isinstance(rules, ShardingRules | None):
        raise TypeError(f"rules must be flowsde.ShardingRules, got {type(rules).__name__}")
    if rules is not None and mesh is None:
        raise ValueError("rules say how to split over a mesh, expected a mesh with them")
    about = read_config(folder)
    family, config = configuration(folder)
    written = {path: jax.numpy.dtype(p["dtype"]) for path, p in about["params"].items()}
    numerics = _numerics(numerics, dtype, list(written.values()))
    if rules is not None:
        numerics = dataclasses.replace(numerics, rules=rules)
    model = abstract(family, config, numerics)
    like = parameters(model)
    _check(folder, about, like)
    shardings = _shardings(model, mesh, rules or ShardingRules())
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
        return Numerics.of_weights(weights)
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


def _restore(folder: Path, like: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Parameters by path, each device reading its own part."""
    with ocp.StandardCheckpointer() as checkpointer:
        return flat(checkpointer.restore(folder.absolute(), nested(like)))
