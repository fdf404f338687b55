"""A small family of models, for tests of what is around the tables: two layouts, every move."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
from flax import nnx

import flowsde as fs
from flowsde.models.common.layers import Numerics, scan, stack
from flowsde_converters.depth import depth
from flowsde_converters.family import Convertible, Found
from flowsde_converters.ignored import Unused
from flowsde_converters.relayout import LINEAR, SWAPPED_LINEAR, SwapHalves
from flowsde_converters.tables import Row, Table


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes; `sizes` is a tuple so that one goes through JSON."""

    depth: int
    width: int
    sizes: tuple[int, ...] = (2,)


class Toy(nnx.Module):
    """x -> blocks -> head, with the time added."""

    def __init__(self, config: Config, numerics: Numerics, rngs: nnx.Rngs):
        width, out = config.width, config.sizes[0]
        self.blocks = stack(
            lambda r: numerics.linear(width, width, ("embed", "mlp"), rngs=r), config.depth, rngs
        )
        self.head = numerics.linear(width, out, ("embed", None), rngs=rngs)

    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        return self.head(scan(self.blocks, lambda block, x: block(x), x + t[:, None]))


def recognise(tensors: Mapping[str, Any], config: Mapping[str, Any] | None) -> Found | None:
    """Of the layout "original", or "diffusers" with q and k apart."""
    if not {"head.weight", "head.bias"} <= tensors.keys():
        return None
    blocks = depth(tensors, "b.")
    out, width = tensors["head.weight"].shape
    layout = "original" if any(key.endswith(".x") for key in tensors) else "diffusers"
    if blocks == 0:
        raise ValueError("no blocks b.0, b.1, ...")
    made = Config(blocks, width, (out, *(config or {}).get("extra", ())))
    return Found(made, layout, table(made, layout))


def table(config: Config, layout: str) -> Table:
    """Both have the same rows but for the names of two keys."""
    names = {"original": ("x", "y"), "diffusers": ("q", "k")}
    if layout not in names:
        raise ValueError(f"unknown layout {layout!r}, expected one of {', '.join(names)}")
    x, y = names[layout]
    return Table(
        (
            Row((f"b.{{i}}.{x}", f"b.{{i}}.{y}"), "blocks.kernel", LINEAR),
            Row("b.{i}.bias", "blocks.bias"),
            Row("head.weight", "head.kernel", SWAPPED_LINEAR),
            Row("head.bias", "head.bias", (SwapHalves(),)),
        ),
        ignored=(Unused(r"b\.\d+\.ids"),),
    )


FAMILY = Convertible(name="toy", config=Config, build=Toy, recognise=recognise, table=table)
FLOW = dataclasses.replace(
    FAMILY, name="toyflow", flow=lambda model, config: fs.Flow.from_nnx(model, (config.width,))
)


def tensors(
    depth: int = 3, width: int = 4, dtype: Any = np.float32, layout: str = "original"
) -> dict[str, np.ndarray]:
    """A checkpoint with random values."""
    rng = np.random.default_rng(0)
    x, y = ("x", "y") if layout == "original" else ("q", "k")
    shapes: dict[str, tuple[int, ...]] = {"head.weight": (2, width), "head.bias": (2,)}
    for i in range(depth):
        shapes |= {f"b.{i}.{x}": (width // 2, width), f"b.{i}.{y}": (width // 2, width)}
        shapes |= {f"b.{i}.bias": (width,)}
    return {key: rng.normal(size=shape).astype(dtype) for key, shape in shapes.items()}


BF16 = np.dtype(ml_dtypes.bfloat16)
