"""How far do weights in eight bits lead from those in float32?

Relative errors, the root mean square of the difference over that of the value: of what a FLUX.1
block of the published size adds to its tokens, and of the velocity of a smaller FLUX.1, four double
and eight single blocks of 512 features. Weights are random, normal or with heavy tails (Student's t
of four degrees of freedom), where the largest of a feature is far from the others; published ones
were not at hand. Activations are float32, so that the errors are those of the weights alone, but in
the row of bfloat16, where both are.

    python benchmarks/quantised.py [--quick] [--json FILE]

Keys of the JSON: version, rows, each {what, tails (of weights), weights ("bfloat16", "bfloat16,
activations too", "int8", "float8_e4m3fn"), error}.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from _files import save_json
from flax import nnx

import flowsde as fs
from flowsde.models.common.layers import FLOAT32, Numerics, stack
from flowsde.models.common.paths import parameters, with_parameters
from flowsde.models.common.quantised import FORMATS, quantise_layers, quantised_of
from flowsde.models.common.rope import angles
from flowsde.models.flux.model import DoubleBlock, Flux, FluxCond, FluxConfig, SingleBlock

BFLOAT16 = Numerics(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
SMALL = FluxConfig(heads=4, double=4, single=8, mlp=2048, text=512, pooled=256, guidance=False)
TAILS = ("normal", "heavy")
_TEXT, _ROWS = 32, 8
_FREEDOM = 4


@dataclasses.dataclass(frozen=True)
class Args:
    """Errors of weights in eight bits.

    Attributes:
      quick: the smaller model alone, of fewer blocks and normal weights: done in 45 seconds on
        two cores.
      json: where to write the results.
    """

    quick: bool = False
    json: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True)
class Case:
    """Something to compute.

    Attributes:
      what: in words.
      build: it, of numerics; its blocks are stacked.
      call: the value, of what was built and the dtype of activations.
    """

    what: str
    build: Callable[[Numerics], Any]
    call: Callable[[Any, Any], jax.Array]


def normal(seed: int, *shape: int) -> jax.Array:
    """Standard normal values."""
    return jax.random.normal(jax.random.key(seed), shape)


class Alone(nnx.Module):
    """One block, stacked as those of a model."""

    def __init__(self, block: Any, config: FluxConfig, numerics: Numerics):
        self.blocks = stack(lambda r: block(config, numerics, r), 1, nnx.Rngs(0))


def only(stacked: Any) -> Any:
    """The block of a stack of one."""
    graph, state = nnx.split(stacked)
    return nnx.merge(graph, jax.tree.map(lambda a: a[0], state))


def blocks(config: FluxConfig) -> list[Case]:
    """What each kind of block adds to its tokens."""
    ids = np.zeros((_TEXT + _ROWS**2, 3), np.int32)
    ids[_TEXT:, 1:] = np.stack(np.divmod(np.arange(_ROWS**2), _ROWS), axis=-1)
    turn = angles(jnp.asarray(ids), config.axes)
    text, image = normal(1, 1, _TEXT, config.width), normal(2, 1, _ROWS**2, config.width)
    c = normal(3, 1, config.width)

    def double(module: Any, dtype: Any) -> jax.Array:
        both = text.astype(dtype), image.astype(dtype)
        made = only(module.blocks)(*both, c, turn)
        return jnp.concatenate(made, axis=1) - jnp.concatenate(both, axis=1)

    def single(module: Any, dtype: Any) -> jax.Array:
        x = jnp.concatenate([text, image], axis=1).astype(dtype)
        return only(module.blocks)(x, c, turn) - x

    return [
        Case("a double block of FLUX.1", lambda n: Alone(DoubleBlock, config, n), double),
        Case("a single block of FLUX.1", lambda n: Alone(SingleBlock, config, n), single),
    ]


def model(config: FluxConfig) -> Case:
    """The velocity of a smaller FLUX.1."""
    x, t = normal(4, 2, 16, 16, 16), jnp.asarray([0.3, 0.8])
    cond = FluxCond(normal(5, 2, _TEXT, config.text), normal(6, 2, config.pooled))
    return Case(
        f"velocity of {config.double} double and {config.single} single blocks",
        lambda n: Flux(config, n, rngs=nnx.Rngs(0)),
        lambda module, dtype: module(x, t, cond),
    )


def weights(module: Any, tails: str) -> dict[str, np.ndarray]:
    """Random ones by path, kernels of variance one over their inputs."""
    made = {}
    for i, (path, p) in enumerate(parameters(module).items()):
        rng = np.random.default_rng(i)
        if path.endswith("kernel"):
            a = rng.standard_normal(p.shape, np.float32)
            if tails == "heavy":
                a *= np.sqrt((_FREEDOM - 2) / rng.chisquare(_FREEDOM, p.shape))
            made[path] = (a / np.sqrt(p.shape[-2])).astype(np.float32)
        else:
            # Scales of norms are near one, biases near zero.
            around = np.float32(path.endswith("scale"))
            made[path] = around + np.float32(0.02) * rng.standard_normal(p.shape, np.float32)
    return made


def held_in(module: Any, form: Any, params: dict[str, np.ndarray]) -> Any:
    """The module with the weights of its blocks in a format."""
    held = dict(params)
    for path in quantise_layers(module, form):
        base = path.removesuffix("kernel")
        pairs = [quantised_of(one, form) for one in held.pop(path)]
        held[f"{base}values"], held[f"{base}scale"] = map(np.stack, zip(*pairs, strict=True))
    return with_parameters(module, held)


def errors(case: Case, tails: str) -> list[dict[str, Any]]:
    """Rows of a case."""
    shapes = nnx.eval_shape(lambda: case.build(FLOAT32))
    params = weights(shapes, tails)

    def value(module: Any, dtype: Any = jnp.float32) -> np.ndarray:
        graph, state = nnx.split(module)
        run = jax.jit(lambda state: case.call(nnx.merge(graph, state), dtype))
        return np.asarray(run(state), np.float32)

    def in_format(form: Any) -> np.ndarray:
        return value(held_in(nnx.eval_shape(lambda: case.build(FLOAT32)), form, params))

    exact = value(with_parameters(shapes, params))
    low = {path: a.astype(jnp.bfloat16) for path, a in params.items()}
    others = {
        "bfloat16": lambda: value(with_parameters(shapes, low)),
        "bfloat16, activations too": lambda: value(
            with_parameters(nnx.eval_shape(lambda: case.build(BFLOAT16)), low), jnp.bfloat16
        ),
    }
    for form in FORMATS:
        others[form] = partial(in_format, form)
    return [
        {
            "what": case.what,
            "tails": tails,
            "weights": name,
            "error": float(np.sqrt(np.mean((of() - exact) ** 2) / np.mean(exact**2))),
        }
        for name, of in others.items()
    ]


def main(args: Args) -> None:
    """Measure, print and write."""
    small = dataclasses.replace(SMALL, double=1, single=1) if args.quick else SMALL
    cases = [*([] if args.quick else blocks(FluxConfig.dev())), model(small)]
    rows = []
    for case in cases:
        for tails in TAILS[:1] if args.quick else TAILS:
            rows += errors(case, tails)
            for row in rows[-2 - len(FORMATS) :]:
                print(f"{row['what']:44s} {tails:7s} {row['weights']:26s} {row['error']:.2%}")
    save_json(args.json, {"version": fs.__version__, "rows": rows})


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
