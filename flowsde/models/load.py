"""A converted model or pipeline, back in memory."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flowsde import _schema
from flowsde._checks import check_path
from flowsde._files import read_json
from flowsde._text import shown
from flowsde.models import registry
from flowsde.models.common.layers import Numerics
from flowsde.models.common.paths import parameters
from flowsde.models.common.quantised import FORMATS, Format, quantise_layers
from flowsde.models.converted.load import Merge, load_module
from flowsde.models.converted.opened import open_as, open_model
from flowsde.models.converted.store import INDEX, PIPELINE, check_files, is_pipeline, read_config
from flowsde.models.family import Pipeline, Sampling
from flowsde.sharding import ShardingRules


def load(
    folder: str | Path,
    mesh: jax.sharding.Mesh | None = None,
    dtype: DTypeLike | None = None,
    *,
    rules: ShardingRules | None = None,
    numerics: Numerics | None = None,
    verify: bool = True,
    lora: str | Path | Mapping[str, float] | None = None,
    quantise: Format | None = None,
) -> Any:
    """What ``flowsde convert`` wrote, parameters read straight onto the devices.

    Args:
      folder: of one model or of a pipeline, whose models are read when they are first used.
      mesh: of the devices; the first device alone by default.
      dtype: of the weights; as they were written by default.
      rules: of the mesh, `ShardingRules()` by default: a parameter is split along all of its axes
        that have one. Pass the same to `run`.
      numerics: dtype of activations, and attention; by default activations are bfloat16 where the
        weights are, else float32, also where the weights are float16, in which models overflow.
      verify: compare every file with the SHA-256 that was written with it, while it is read: a
        gigabyte a second for each of half of the cores.
      lora: a file of adapters, or the scales of several by their paths. They are merged as
        ``flowsde convert --lora`` does, in float32, rounded once; into weights as they were
        written, so that of the two the command is closer where it was told another dtype. Of a
        pipeline, adapters of text encoders go into these.
      quantise: "int8" or "float8_e4m3fn": the linear layers of a model's blocks, almost all of a
        transformer, are held in eight bits with a scale for each output feature, half of bfloat16's
        memory; all else as above. Of the two int8 is closer, unless a feature's largest weights are
        far from the others. They are rounded while they are read, with adapters in them, and
        activations keep their dtype. On a mesh of several processes each reads all of these layers,
        as a scale is that of all weights of a feature, and keeps its part. None keeps all weights
        as they are, of which each process reads its part.

    Returns:
      A `flowsde.Flow` for a family that makes one, a pipeline of `flowsde.models`, else the
      `nnx.Module`.

    Raises:
      FileNotFoundError: there is no converted model.
      ValueError: it is of another format or version, or not what was written, naming the file; a
        rule names no axis of the mesh, or the devices do not share a parameter evenly, which is
        named; adapters do not fit, all of which is listed before weights are read; weights that are
        to be held in eight bits are NaN or infinite, or a single model has none to hold so.

    Example:
      >>> flow = fs.load("OUT")  # doctest: +SKIP
    """
    folder = check_path("folder", folder)
    if quantise not in (None, *FORMATS):
        raise ValueError(f"quantise must be {' or '.join(FORMATS)}, or None, got {quantise!r}")
    how = (mesh, dtype, rules, numerics, verify)
    merges = {} if lora is None else _merges(folder, lora, verify)
    if is_pipeline(folder):

        def read(part: Path, family: Any) -> Any:
            opened = open_as(part, family, verify)
            return load_module(opened, *how, merges.get(part, {}), quantise)

        return pipeline_of(folder, verify).build(folder, read, verify)
    opened = open_model(folder, registry.families(), verify)
    if quantise is not None and not quantise_layers(opened.model(Numerics()), quantise):
        raise ValueError(
            f"quantise has no effect on a model of {opened.family.name}, which has no blocks of "
            f"linear layers, got {quantise!r}"
        )
    module = load_module(opened, *how, merges.get(folder, {}), quantise)
    return module if opened.family.flow is None else opened.family.flow(module, opened.config)


def _merges(
    folder: Path, lora: str | Path | Mapping[str, float], verify: bool
) -> dict[Path, dict[str, Merge]]:
    # Tables of keys are the converters', which stand above the models.
    from flowsde_converters.lora_load import merges

    return merges(folder, lora, verify)


def pipeline_of(folder: Path, verify: bool = True) -> Pipeline:
    """The pipeline that a converted folder holds.

    Args:
      folder: with a `model_index.json`.
      verify: whether to compare what was copied with its hashes.

    Raises:
      FileNotFoundError, ValueError: it is of no known class, or not what was written.
    """
    about, known = read_config(folder, PIPELINE, verify), registry.pipelines()
    if verify:
        check_files(folder, about)
    index = folder / INDEX
    name = _schema.fields(_class_name=_schema.text)(read_json(index), str(index))["_class_name"]
    if name not in known:
        parts = ", ".join(str(folder / part) for part in about["models"])
        raise ValueError(
            f"{folder} holds a pipeline, expected one of its models: {parts}; of whole pipelines "
            f"known are {', '.join(known)}, got {shown(name)}"
        )
    return known[name]


def nbytes(folder: Path, quantise: Format | None = None) -> dict[str, int]:
    """Bytes of the weights of a converted folder, as they were written, or those of blocks in a
    format of `load`: by name of a pipeline's models, "" for a single one.

    Raises:
      FileNotFoundError, ValueError: it is not what a conversion wrote.
    """
    names = read_config(folder, PIPELINE)["models"] if is_pipeline(folder) else [""]
    return {name: _nbytes_of(folder / name, quantise) for name in names}


def _nbytes_of(folder: Path, quantise: Format | None) -> int:
    """Of one model."""
    held = {
        path: math.prod(one["shape"]) * jnp.dtype(one["dtype"]).itemsize
        for path, one in read_config(folder)["params"].items()
    }
    if quantise is not None:
        model = open_model(folder, registry.families()).model(Numerics())
        for path in quantise_layers(model, quantise):
            del held[path]
        made = {path: p.size * p.dtype.itemsize for path, p in parameters(model).items()}
        held |= {path: size for path, size in made.items() if path not in held}
    return sum(held.values())


def sampling_of(folder: Path) -> Sampling:
    """How the command samples what a converted folder holds.

    Raises:
      FileNotFoundError, ValueError: it cannot be sampled, or it is not what was written.
    """
    known = registry.samplings()
    if is_pipeline(folder):
        name = what = pipeline_of(folder).name
    else:
        name = open_model(folder, registry.families()).family.name
        what = f"model of {name}"
    if name not in known:
        hint = ""
        if registry.is_transformer(name):
            hint = "; of a transformer alone, flowsde convert makes a pipeline with --base"
        raise ValueError(
            f"{folder} holds a {what}, expected one of {' or '.join(known)}, which make pictures"
            f"{hint}"
        )
    return known[name]
