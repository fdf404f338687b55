"""How much of a GPU do the ports and the searches use? One command for where one is at hand.

FLUX.1-dev's transformer at 1024 x 1024 pixels and SiT-XL/2 at 256 x 256, in bfloat16 with random
weights: only their cost matters. First the rate of one large bfloat16 matrix product is measured.
The products of a model, counted one by one, at that rate are the floor below which no evaluation
can be; its share of the seconds that an evaluation takes is what is reported. Then

- attention: one sample, by each implementation of `jax.nn.dot_product_attention`;
- batches: 1 to 16 samples, by the fastest implementation;
- search: RBF by `flowsde.run` and `flowsde.iterate`, with a reward that costs nothing, over the
  bare model's evaluations of as many chunks of as many samples.

Evaluations are timed in one compiled loop, each from the last one's answer. What a device or its
memory does not allow is reported by its error's first line.

    python benchmarks/gpu.py [--quick] [--json FILE] [--models flux sit]

With --quick models, products and batches are tiny, for the CPU too: the same path, and numbers that
mean nothing.

Keys of the JSON: version, versions {jax, jaxlib, python}, device (its name), quick, matmul {size,
tflops}; models, by name, {parameters, tflops (of one sample's products), floor_s (one sample's),
attention {xla, cudnn}, batches {1, 2, 4, 8, 16}, each {seconds (of one evaluation of the
batch), share (floor over seconds), temporary_bytes} or {error}; fastest (an implementation), search
{batch, nfe, evaluations, bare_s, run_s, iterate_s (medians), run, iterate (over bare), details}};
targets {flux_share, search}; seconds. It is saved after each model.
"""

import dataclasses
import math
import pathlib
import platform
import statistics
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import jaxlib
import tyro
from _files import save_json
from _flops import flops
from flax import nnx

import flowsde as fs
from flowsde.models.common.layers import Implementation, Numerics
from flowsde.models.flux.model import Flux, FluxCond, FluxConfig
from flowsde.models.sit.model import SiT, SiTConfig

TARGETS = {"flux_share": 0.6, "search": 1.03}
BATCHES = (1, 2, 4, 8, 16)
ATTENTION: tuple[Implementation, ...] = ("xla", "cudnn")
_TEXT = 512
_SEARCH_BATCH = 4
_LARGEST = 0.03
_FAILURES = (RuntimeError, ValueError)
"""What JAX and cuDNN raise where memory, or an implementation of attention, is missing."""


@dataclasses.dataclass(frozen=True)
class Args:
    """Seconds of evaluations and searches beside the rate of a matrix product.

    Attributes:
      quick: tiny models, done in 45 seconds on two cores.
      json: where to write the results.
      models: which ones.
    """

    quick: bool = False
    json: pathlib.Path | None = None
    models: tuple[Literal["flux", "sit"], ...] = ("flux", "sit")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A model to be built.

    Attributes:
      build: the module, of numerics and random numbers.
      shape: of one particle.
      cond: of one prompt.
      loops: evaluations timed together.
    """

    build: Callable[[Numerics, nnx.Rngs], nnx.Module]
    shape: tuple[int, ...]
    cond: Any
    loops: int


def flux(quick: bool) -> Kind:
    """FLUX.1-dev with 512 tokens of text."""
    config, side, text = FluxConfig.dev(), 128, _TEXT
    if quick:
        config, side, text = _tiny_flux(), 8, 16
    cond = FluxCond(
        jnp.ones((text, config.text), jnp.bfloat16),
        jnp.ones(config.pooled, jnp.bfloat16),
        jnp.float32(3.5),
    )
    channels = config.channels // 4
    build = lambda numerics, rngs: Flux(config, numerics, rngs=rngs)  # noqa: E731
    return Kind(build, (side, side, channels), cond, loops=3)


def _tiny_flux() -> FluxConfig:
    return FluxConfig(
        channels=16, heads=2, axes=(8, 12, 12), double=2, single=2, mlp=128, text=32, pooled=16
    )


def sit(quick: bool) -> Kind:
    """SiT-XL/2."""
    config = SiTConfig(width=64, depth=2, heads=2, size=8) if quick else SiTConfig.preset()
    build = lambda numerics, rngs: SiT(config, numerics, rngs=rngs)  # noqa: E731
    return Kind(build, (config.size, config.size, config.channels), jnp.int32(207), loops=20)


KINDS: dict[str, Callable[[bool], Kind]] = {"flux": flux, "sit": sit}


@partial(jax.jit, static_argnames=("like",))
def _uniform(key: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.random.uniform(key, like.shape, like.dtype, -_LARGEST, _LARGEST)


@partial(jax.jit, static_argnames=("like",))
def _layers(key: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
    """One layer after the other: random bits take more memory than what is made of them."""
    one = jax.ShapeDtypeStruct(like.shape[1:], like.dtype)
    return jax.lax.map(lambda key: _uniform(key, one), jax.random.split(key, like.shape[0]))


def random_state(kind: Kind) -> Any:
    """Parameters of a model, each made on the device."""
    _, state = _abstract(kind, Numerics(jnp.bfloat16, jnp.bfloat16))
    leaves, tree = jax.tree.flatten(state)
    # Of these generators the one that compiles fastest.
    keys = jax.random.split(jax.random.key(0, impl="unsafe_rbg"), len(leaves))
    make = [_layers if like.ndim > 2 else _uniform for like in leaves]
    made = [f(key, like) for f, key, like in zip(make, keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, made)


def _abstract(kind: Kind, numerics: Numerics) -> Any:
    return nnx.split(nnx.eval_shape(lambda: kind.build(numerics, nnx.Rngs(0))))


def flow_of(kind: Kind, state: Any, attention: Implementation) -> fs.Flow:
    """The model with an implementation of attention."""
    graph, _ = _abstract(kind, Numerics(jnp.bfloat16, jnp.bfloat16, attention))
    return fs.Flow.from_nnx(nnx.merge(graph, state), shape=kind.shape)


@jax.jit
def evaluations(flow: fs.Flow, x: jax.Array, cond: Any, count: jax.Array) -> jax.Array:
    """The velocity of x, of that, and so on; XLA would compute equal ones once."""
    t = jnp.full(len(x), 0.5, jnp.float32)
    return jax.lax.fori_loop(0, count, lambda _, x: flow.velocity_fn(flow.params, x, t, cond), x)


def inputs(kind: Kind, batch: int) -> tuple[jax.Array, Any]:
    """Particles, and what they are asked to be."""
    x = jax.random.normal(jax.random.key(1), (batch, *kind.shape), jnp.float32)
    return x, jax.tree.map(lambda a: jnp.broadcast_to(a, (batch, *a.shape)), kind.cond)


def fastest(f: Callable[[], Any], repetitions: int = 3) -> float:
    """Seconds of the quickest of some runs, after one that compiles."""
    return min(_seconds(f, repetitions + 1)[1:])


def _seconds(f: Callable[[], Any], repetitions: int) -> list[float]:
    found = []
    for _ in range(repetitions):
        began = time.perf_counter()
        jax.block_until_ready(jax.tree.leaves(f()))
        found.append(time.perf_counter() - began)
    return found


def matmul_rate(quick: bool) -> dict[str, Any]:
    """Operations a second of a large bfloat16 product."""
    size, loops = (256, 4) if quick else (8192, 50)

    @jax.jit
    def products(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, loops, lambda _, b: (a @ b).astype(jnp.bfloat16), b)

    scale = jnp.bfloat16(size**-0.5)
    a, b = (
        scale * jax.random.normal(key, (size, size), jnp.bfloat16)
        for key in jax.random.split(jax.random.key(0))
    )
    seconds = fastest(lambda: products(a, b)) / loops
    return {"size": size, "tflops": 2 * size**3 / seconds / 1e12}


def evaluate(kind: Kind, flow: fs.Flow, batch: int, floor: float) -> dict[str, Any]:
    """Seconds of one evaluation of a batch and its floor's share, or an error."""
    x, cond = inputs(kind, batch)
    count = jnp.int32(kind.loops)
    try:
        compiled = evaluations.lower(flow, x, cond, count).compile()
        seconds = fastest(lambda: compiled(flow, x, cond, count)) / kind.loops
        if not bool(jnp.isfinite(compiled(flow, x, cond, count)).all()):
            raise ValueError("the velocity is not finite")
    except _FAILURES as error:
        return {"error": str(error).partition("\n")[0][:200]}
    planned: Any = compiled.memory_analysis()
    return {
        "seconds": seconds,
        "share": batch * floor / seconds,
        "temporary_bytes": planned.temp_size_in_bytes,
    }


def _reward(images: jax.Array, cond: Any) -> jax.Array:
    return images[:, 0, 0, 0]


def search_overhead(kind: Kind, flow: fs.Flow, quick: bool) -> dict[str, Any]:
    """RBF beside the bare model: seconds of both, and their ratios."""
    batch, key = _SEARCH_BATCH, jax.random.key(2)
    p = fs.interpolants.linear()
    search = fs.search.rbf(
        nfe=32, kernel=fs.kernels.ddim(p), grid=fs.grids.uniform(6), chains=2,
        width=batch // 2, finish_steps=4,
    )  # fmt: skip
    found = fs.run(key, flow, search, _reward, cond=kind.cond)
    x, cond = inputs(kind, batch)
    chunks = jnp.int32(found.evaluations // batch)

    def last() -> Any:
        return deque(fs.iterate(key, flow, search, _reward, cond=kind.cond), maxlen=1).pop()

    ways: dict[str, Callable[[], Any]] = {
        "bare": lambda: evaluations(flow, x, cond, chunks),
        "run": lambda: fs.run(key, flow, search, _reward, cond=kind.cond),
        "iterate": last,
    }
    details: dict[str, list[float]] = {name: [] for name in ways}
    for f in ways.values():
        _seconds(f, 1)
    for _ in range(2 if quick else 5):
        for name, f in ways.items():
            details[name] += _seconds(f, 1)
    middle = {name: statistics.median(own) for name, own in details.items()}
    return {
        "batch": batch,
        "nfe": found.nfe,
        "evaluations": found.evaluations,
        **{f"{name}_s": value for name, value in middle.items()},
        **{name: middle[name] / middle["bare"] for name in ("run", "iterate")},
        "details": details,
    }


def measure_model(kind: Kind, rate: float, quick: bool) -> dict[str, Any]:
    """All numbers of one model, printed as they come."""
    state = random_state(kind)
    flows = {str(name): flow_of(kind, state, name) for name in ATTENTION}
    # Counted in plain products, which a fused implementation does as well.
    plain = flows["xla"]
    x, cond = inputs(kind, 1)
    work = flops(plain.velocity_fn, plain.params, x, jnp.full(1, 0.5, jnp.float32), cond)
    floor = work / rate
    attention = {name: evaluate(kind, flow, 1, floor) for name, flow in flows.items()}
    _show("attention", attention)
    seconds = {name: row["seconds"] for name, row in attention.items() if "seconds" in row}
    best = min(seconds, key=seconds.__getitem__)
    sizes = BATCHES[1:2] if quick else BATCHES
    batches = {str(n): evaluate(kind, flows[best], n, floor) for n in sizes}
    _show("batch", batches)
    search = search_overhead(kind, flows[best], quick)
    print(f"  search    run {search['run']:.3f}, iterate {search['iterate']:.3f} of bare")
    return {
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state)),
        "tflops": work / 1e12,
        "floor_s": floor,
        "attention": attention,
        "fastest": best,
        "batches": batches,
        "search": search,
    }


def _show(title: str, rows: dict[str, dict[str, Any]]) -> None:
    for name, row in rows.items():
        if "error" in row:
            print(f"  {title:9} {name:6} {row['error']}", flush=True)
        else:
            print(f"  {title:9} {name:6} {row['seconds']:9.4f} s {row['share']:6.1%}", flush=True)


def measure(args: Args) -> dict[str, Any]:
    """All models, saved as they come."""
    began, device = time.perf_counter(), jax.devices()[0]
    matmul = matmul_rate(args.quick)
    print(f"{device.device_kind}: {matmul['tflops']:.1f} Tflop/s in bfloat16 products", flush=True)
    versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__}
    results: dict[str, Any] = {
        "version": fs.__version__,
        "versions": versions | {"python": platform.python_version()},
        "device": device.device_kind,
        "quick": args.quick,
        "matmul": matmul,
        "models": {},
        "targets": TARGETS,
    }
    for name in args.models:
        print(name)
        kind = KINDS[name](args.quick)
        results["models"][name] = measure_model(kind, 1e12 * matmul["tflops"], args.quick)
        results["seconds"] = time.perf_counter() - began
        save_json(args.json, results)
    return results


if __name__ == "__main__":
    measure(tyro.cli(Args, description=__doc__))
