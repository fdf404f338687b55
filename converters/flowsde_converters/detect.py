"""What a checkpoint is, found out from its keys and shapes; and whether all of it fits.

A `Plan` is a conversion that can begin: the family has a table, the table uses every key once and
sets every parameter once, and shapes and dtypes are right. Only the values are still unread.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
import ml_dtypes
import numpy as np

from flowsde._text import listed, names, shown
from flowsde.models import registry
from flowsde.models.common.paths import parameters
from flowsde.models.family import abstract, named
from flowsde_converters import (
    aesthetic,
    autoencoder_kl,
    autoencoder_wan,
    blip,
    clip,
    clip_flant5,
    eight_bits,
    entries,
    flux,
    flux2,
    instructblip,
    open_clip,
    owlv2,
    qwen3,
    qwen3_vl,
    sd3,
    sit,
    t5,
    wan,
    zimage,
)
from flowsde_converters.eight_bits import with_scales
from flowsde_converters.family import Convertible, Found
from flowsde_converters.files import Checkpoint
from flowsde_converters.lora_file import Merged, is_adapter
from flowsde_converters.tables import Changes, Model

_MODULES = (
    sit,
    flux,
    clip,
    clip_flant5,
    instructblip,
    open_clip,
    t5,
    autoencoder_kl,
    autoencoder_wan,
    aesthetic,
    wan,
    blip,
    qwen3,
    qwen3_vl,
    zimage,
    owlv2,
    sd3,
    flux2,
)
"""With a `Convertible` or several each."""
DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
"""Of weights, the widest first; float64 is read and never written."""
_MESSAGE = 500


@dataclasses.dataclass(frozen=True)
class Plan:
    """A conversion that can begin.

    Attributes:
      checkpoint: to read from.
      family: that it is of.
      found: configuration, layout and table.
      model: shapes and dtypes of the parameters by path, as they will be written.
      used: keys of the checkpoint that become parameters, once for each that has a part of one.
      loras: files of adapters that are merged.
      changes: what they make of blocks, by path of the parameter.
    """

    checkpoint: Checkpoint
    family: Convertible
    found: Found
    model: Model
    used: tuple[str, ...]
    loras: tuple[Merged, ...] = ()
    changes: Mapping[str, Changes] = dataclasses.field(default_factory=dict)

    @property
    def ignored(self) -> list[str]:
        """Keys that the model has no use for."""
        return sorted(self.checkpoint.tensors.keys() - set(self.used))

    @property
    def count(self) -> int:
        """Number of parameters."""
        return sum(int(np.prod(like.shape)) for like in self.model.values())


_registered: dict[str, Convertible] = {}


def register(family: Convertible) -> None:
    """Let a family of your own be found, and loaded, in this process."""
    registry.register(family)
    _registered[family.name] = family


def families() -> dict[str, Convertible]:
    """Every family by name."""
    held = [value for module in _MODULES for value in vars(module).values()]
    return {one.name: one for one in held if isinstance(one, Convertible)} | _registered


def family_named(name: str) -> Convertible:
    """A family; ValueError names those that there are."""
    return named("family", name, families())


def plan(
    checkpoint: Checkpoint,
    family: str | None = None,
    dtype: str | None = None,
    entry: str | None = None,
) -> Plan:
    """How to convert a checkpoint.

    Args:
      checkpoint: as opened.
      family: that it must be of; found out by default.
      dtype: of the parameters; as in the checkpoint by default.
      entry: of a training run's file, or beginning of the keys, whose weights are taken; found out
        by default.

    Raises:
      ValueError: listing everything that does not fit.
    """
    checkpoint, is_of, found = _recognise(checkpoint, family, entry)
    shapes = _guarded(is_of, lambda: parameters(abstract(is_of, found.config)))
    used = tuple(
        key
        for row in found.table.rows
        if row.target in shapes
        for keys in row.keys(shapes)
        for key in keys
    )
    checkpoint, problems = with_scales(checkpoint, used)
    problems += found.table.problems(checkpoint.tensors, shapes)
    for path, like in shapes.items():
        if not math.prod(like.shape):
            problems.append(f"{path} has the shape {like.shape}, expected values in it")
    for key in dict.fromkeys(used):
        held = checkpoint.tensors.get(key)
        if held is not None and held.dtype not in (*DTYPES.values(), *eight_bits.DTYPES):
            problems.append(f"{shown(key)} is {held.dtype}, expected {', '.join(DTYPES)}")
    if problems:
        title = f"the checkpoint does not fit {is_of.name} ({found.layout} keys)"
        raise ValueError(listed(problems, title))
    return Plan(checkpoint, is_of, found, _as_written(checkpoint, found, shapes, dtype), used)


def _recognise(
    checkpoint: Checkpoint, name: str | None, entry: str | None
) -> tuple[Checkpoint, Convertible, Found]:
    """The weights of a checkpoint, and what they are."""
    known = families() if name is None else {name: family_named(name)}
    owners = {key: checkpoint.owners.get(key, "") for key in checkpoint.tensors}
    if entry is not None:
        owners = entries.under(entry, owners)
        if not owners:
            raise ValueError(f"no entry {entry}, expected one of {_entries(checkpoint)}")
    parts = {part: checkpoint.only(part, keys) for part, keys in entries.candidates(owners).items()}
    found = {part: made for part, one in parts.items() if (made := _asked(known, one))}
    if not found:
        raise ValueError(_unknown(checkpoint, known, entry))
    averaged = [part for part in parts if entries.is_averaged(part) and _has_arrays(parts[part])]
    averaged += [part for part in checkpoint.unnamed if entries.is_averaged(part)]
    averaged += [
        part
        for part in entries.kept_by_optimisers(owners)
        if any(of == part and checkpoint.tensors[key].shape for key, of in owners.items())
    ]
    # One flat tensor of all of them.
    averaged += [
        key
        for key, tensor in checkpoint.tensors.items()
        if "." not in key and tensor.shape and entries.is_averaged(key)
    ]
    if entry is None and averaged:
        fit = [part for part in found if entries.is_averaged(part)]
        if not fit:
            raise ValueError(
                f"the averaged weights in {shown(averaged[0])} are of no family known here, or "
                f"have no names; expected --entry to take others: {_named(found)}"
            )
        found = {part: found[part] for part in fit}
    found, beside = _without_parts(found, parts) if entry is None else (found, [])
    if len(found) > 1:
        raise ValueError(
            f"the checkpoint has weights in {_named(found)}; expected --entry to choose one"
        )
    ((part, made),) = found.items()
    if len(made) > 1:
        raise ValueError(f"the checkpoint fits {', '.join(made)}, expected --family to choose one")
    ((family, one),) = made.items()
    if isinstance(one, ValueError):
        raise one
    return parts[part].noting(beside), known[family], one


def _without_parts(
    found: Mapping[str, Any], parts: Mapping[str, Checkpoint]
) -> tuple[dict[str, Any], list[str]]:
    """Of the models in a file, those that may be meant, and what a user should know of the others:
    text encoders and an autoencoder may lie beside the model that they work with."""
    others = [part for part in found if entries.is_part(part)]
    main = {part: made for part, made in found.items() if part not in others}
    if main and others:
        return main, [f"the model alone; --entry takes the others: {_named(others)}"]
    unknown = [part for part in parts if not entries.is_part(part) and _has_arrays(parts[part])]
    if others and unknown:
        raise ValueError(
            f"the weights in {_named(unknown)} are of no family known here; expected --entry to "
            f"take others: {_named(others)}"
        )
    return dict(found), []


def _asked(
    known: Mapping[str, Convertible], checkpoint: Checkpoint
) -> dict[str, Found | ValueError]:
    """What each family that knows a checkpoint makes of it, or finds wrong with it."""
    found: dict[str, Found | ValueError] = {}
    for family in known.values():
        try:
            made = _guarded(
                family, partial(family.recognise, checkpoint.tensors, checkpoint.config)
            )
        except ValueError as error:
            made = error
        if made is not None:
            found[family.name] = made
    return found


def _named(parts: Iterable[str]) -> str:
    return names(sorted(part or entries.TOP for part in parts))


def _has_arrays(checkpoint: Checkpoint) -> bool:
    return any(tensor.shape for tensor in checkpoint.tensors.values())


def _entries(checkpoint: Checkpoint) -> str:
    """What can be chosen of a file."""
    held = dict.fromkeys(
        checkpoint.owners.get(k) or k.partition(".")[0] for k in checkpoint.tensors
    )
    return names(sorted(held))


def _unknown(checkpoint: Checkpoint, known: Mapping[str, Convertible], entry: str | None) -> str:
    """That a checkpoint is of no family asked for."""
    others = [f for f in families().values() if f.name not in known]
    for part, keys in entries.candidates(checkpoint.owners).items():
        of = _asked({f.name: f for f in others}, checkpoint.only(part, keys))
        if of:
            return f"the checkpoint is of {next(iter(of))}, expected {', '.join(known)}"
    keys = sorted(checkpoint.tensors)
    inside = f"--entry {shown(entry)}: " if entry else ""
    if is_adapter(keys):
        return (
            f"{inside}the checkpoint is a LoRA, which changes a model and is none; expected that "
            f"model, converted with --lora and this file"
        )
    said = (
        f"{inside}the checkpoint is of no family known here, expected one of {', '.join(known)}; "
        f"its {len(keys)} keys begin with {names(keys[:4])}"
    )
    if checkpoint.beside:
        said += f"; it holds {names(checkpoint.beside)}, expected --entry to choose one"
    return said


def _guarded(family: Convertible, ask: Any) -> Any:
    """What a family says; whatever odd shapes or a wrong config.json lead it into is a
    ValueError."""
    try:
        return ask()
    except ValueError as error:
        said = shown(error, _MESSAGE)
        raise ValueError(f"a {family.name} checkpoint that cannot be: {said}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(
            f"a {family.name} checkpoint that cannot be, by its shapes or its config.json: "
            f"{type(error).__name__} {shown(error, _MESSAGE)}"
        ) from error


def _as_written(
    checkpoint: Checkpoint, found: Found, shapes: Model, dtype: str | None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the parameters."""
    made: dict[str, jax.ShapeDtypeStruct] = {}
    for row in found.table.rows:
        held = [checkpoint.tensors[key].dtype for keys in row.keys(shapes) for key in keys]
        as_is = DTYPES[dtype] if dtype else widest(held)
        made[row.target] = jax.ShapeDtypeStruct(shapes[row.target].shape, as_is)
    return made


def widest(held: list[np.dtype]) -> np.dtype:
    """The dtype that holds all of these exactly; float32 for float64, which JAX does without, and
    bfloat16 for 8 bits."""
    wide = {dtype for dtype in held if dtype not in eight_bits.DTYPES} or {DTYPES["bfloat16"]}
    return wide.pop() if len(wide) == 1 and wide != {DTYPES["float64"]} else DTYPES["float32"]
