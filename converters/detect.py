"""What a checkpoint is, found out from its keys and shapes; and whether all of it fits.

A `Plan` is a conversion that can begin: the family has a table, the table uses every key once and
sets every parameter once, and shapes and dtypes are right. Only the values are still unread.
"""

import dataclasses
import importlib
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax import nnx

from flowsde.models.layers import Numerics
from flowsde_converters.family import Family, Found
from flowsde_converters.files import Checkpoint
from flowsde_converters.paths import parameters
from flowsde_converters.tables import Model, listed

MODULES = ("sit", "flux", "clip", "t5", "autoencoder_kl", "aesthetic")
"""Files beside this one, with a `Family` or several each."""
DTYPES = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
"""Of weights, the widest first; float64 is read and never written."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A conversion that can begin.

    Attributes:
      checkpoint: to read from.
      family: that it is of.
      found: configuration, layout and table.
      model: shapes and dtypes of the parameters by path, as they will be written.
      used: keys of the checkpoint that become parameters.
    """

    checkpoint: Checkpoint
    family: Family
    found: Found
    model: Model
    used: tuple[str, ...]

    @property
    def ignored(self) -> list[str]:
        """Keys that the model has no use for."""
        return sorted(self.checkpoint.tensors.keys() - set(self.used))

    @property
    def count(self) -> int:
        """Number of parameters."""
        return sum(int(np.prod(like.shape)) for like in self.model.values())


_registered: dict[str, Family] = {}


def register(family: Family) -> None:
    """Let a family of your own be found, in this process."""
    _registered[family.name] = family


def families() -> dict[str, Family]:
    """Every family by name."""
    package = __name__.rpartition(".")[0]
    modules = [importlib.import_module(f"{package}.{name}") for name in MODULES]
    held = [value for module in modules for value in vars(module).values()]
    return {one.name: one for one in held if isinstance(one, Family)} | _registered


def family_named(name: str) -> Family:
    """A family; ValueError names those that there are."""
    known = families()
    if name not in known:
        raise ValueError(f"unknown family {name!r}, expected one of {', '.join(known)}")
    return known[name]


def abstract(family: Family, config: Any, numerics: Numerics | None = None) -> nnx.Module:
    """The model of a configuration, with shapes for arrays."""
    return nnx.eval_shape(lambda: family.build(config, numerics or Numerics(), rngs=nnx.Rngs(0)))


def plan(checkpoint: Checkpoint, family: str | None = None, dtype: str | None = None) -> Plan:
    """How to convert a checkpoint.

    Args:
      checkpoint: as opened.
      family: that it must be of; found out by default.
      dtype: of the parameters; as in the checkpoint by default.

    Raises:
      ValueError: listing everything that does not fit.
    """
    is_of, found = _recognise(checkpoint, family)
    shapes = _guarded(is_of, lambda: parameters(abstract(is_of, found.config)))
    used = tuple(
        key
        for row in found.table.rows
        if row.target in shapes
        for keys in row.keys(shapes)
        for key in keys
    )
    problems = found.table.problems(checkpoint.tensors, shapes)
    for key in dict.fromkeys(used):
        held = checkpoint.tensors.get(key)
        if held is not None and held.dtype not in DTYPES.values():
            problems.append(f"{key} is {held.dtype}, expected {', '.join(DTYPES)}")
    if problems:
        title = f"the checkpoint does not fit {is_of.name} ({found.layout} keys)"
        raise ValueError(listed(problems, title))
    return Plan(checkpoint, is_of, found, _as_written(checkpoint, found, shapes, dtype), used)


def _recognise(checkpoint: Checkpoint, name: str | None) -> tuple[Family, Found]:
    known = families() if name is None else {name: family_named(name)}
    found = {
        family.name: made
        for family in known.values()
        if (made := _guarded(family, lambda f=family: _ask(f, checkpoint))) is not None
    }
    if len(found) == 1:
        ((name, made),) = found.items()
        return known[name], made
    if found:
        raise ValueError(f"the checkpoint fits {', '.join(found)}, expected --family to choose one")
    others = [] if name is None else [f for f in families().values() if _is_of(f, checkpoint)]
    if others:
        raise ValueError(f"the checkpoint is of {others[0].name}, expected {name}")
    keys = sorted(checkpoint.tensors)
    raise ValueError(
        f"the checkpoint is of no family known here, expected one of {', '.join(known)}; its "
        f"{len(keys)} keys begin with {', '.join(keys[:4])}"
    )


def _ask(family: Family, checkpoint: Checkpoint) -> Found | None:
    return family.recognise(checkpoint.tensors, checkpoint.config)


def _is_of(family: Family, checkpoint: Checkpoint) -> bool:
    try:
        return _ask(family, checkpoint) is not None
    except ValueError:
        return True


def _guarded(family: Family, ask: Any) -> Any:
    """What a family says; whatever odd shapes or a wrong config.json lead it into is a
    ValueError."""
    try:
        return ask()
    except ValueError as error:
        raise ValueError(f"a {family.name} checkpoint that cannot be: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(
            f"a {family.name} checkpoint that cannot be, by its shapes or its config.json: "
            f"{type(error).__name__} {error}"
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
    """The dtype that holds all of these exactly; float32 for float64, which JAX does without."""
    both = {DTYPES["float16"], DTYPES["bfloat16"]} <= set(held)
    if both or DTYPES["float64"] in held or DTYPES["float32"] in held:
        return DTYPES["float32"]
    return held[0]
