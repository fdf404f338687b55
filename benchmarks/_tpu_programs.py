"""Programs of a search with published models, on a mesh, from shapes alone.

Each is lowered whole, and so is one block of each kind that it loops over: the compiler counts
what is in a loop once.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from _flops import flops
from flax import nnx
from jax.sharding import Mesh, NamedSharding

import flowsde as fs
from flowsde.models.autoencoder_kl.model import AutoencoderKL, AutoencoderKLConfig
from flowsde.models.common.layers import Numerics, by_kernel, logical_axes
from flowsde.models.common.splash import LANES, filled
from flowsde.models.flux.model import DoubleBlock, Flux, FluxCond, FluxConfig, SingleBlock
from flowsde.models.sit.model import Block, SiT, SiTConfig
from flowsde.runner import records, rounds
from flowsde.runner.evaluate import Computed, evaluate_model
from flowsde.runner.mesh import Placement
from flowsde.search.protocol import Candidates, Evaluation, Search
from flowsde.sharding import ShardingRules

NFE = 500
LOW = jnp.bfloat16

Lower = Callable[[], jax.stages.Lowered]


class Attention(NamedTuple):
    """Calls of the kernel in a program, all devices together.

    Attributes:
      flops: of its two products.
      computed: what they are with tokens and features filled up to the kernel's blocks.
    """

    flops: int = 0
    computed: int = 0

    @classmethod
    def of(
        cls, calls: int, n: int, heads: int, tokens: int, features: int, keys: int | None = None
    ) -> "Attention":
        """Calls with tokens for queries, and for keys unless their number is given.

        None where XLA is chosen, whose cost is known.
        """
        keys = tokens if keys is None else keys
        if not by_kernel(tokens, keys):
            return cls()
        whole = math.prod(filled(tokens, keys)) * (-(-features // LANES) * LANES)
        one = 4 * n * heads * calls
        return cls(one * tokens * keys * features, one * whole)

    def beside(self, other: "Attention") -> "Attention":
        """Calls of both."""
        return Attention(self.flops + other.flops, self.computed + other.computed)


class BlockOf(NamedTuple):
    """A block that a program loops over."""

    name: str
    depth: int
    lower: Lower


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A program to plan.

    Attributes:
      batch: rows of a call, over all chips.
      nfe: evaluations of the model that a call makes; 0 of other programs.
      lower: the whole.
      blocks: what it loops over.
      flops: of the products of a call, over all chips, those of attention among them.
      attention: what of it is the kernel's, which the compiler does not count.
    """

    batch: int
    nfe: int
    lower: Lower
    blocks: tuple[BlockOf, ...] = ()
    flops: int
    attention: Attention = Attention()


@dataclasses.dataclass(frozen=True)
class Place:
    """A mesh with the rules for what lies where."""

    mesh: Mesh
    rules: ShardingRules

    @property
    def numerics(self) -> Numerics:
        """Bfloat16, with the attention that is chosen on TPUs."""
        return Numerics(dtype=LOW, param_dtype=LOW, attention="tpu", rules=self.rules)

    @property
    def layout(self) -> Placement:
        """Of a run."""
        rules = self.rules
        return Placement(self.mesh, rules.mesh_axes("prompt"), rules.mesh_axes("particle"))

    def array(self, shape: tuple[int, ...], dtype: Any, *names: str | None) -> Any:
        """Shape of an array whose first axes have these names."""
        names += (None,) * (len(shape) - len(names))
        sharding = NamedSharding(self.mesh, self.rules.spec(*names))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def parameters(self, model: nnx.Module) -> nnx.State:
        """Shapes of a model's parameters."""

        def put(param: nnx.Variable, names: nnx.Variable) -> nnx.Variable:
            value = param.get_value()
            return param.replace(self.array(value.shape, value.dtype, *names.get_value()))

        is_leaf = partial(_is, nnx.Variable)
        return jax.tree.map(put, nnx.state(model), logical_axes(model), is_leaf=is_leaf)

    def by_prompt(self, tree: Any) -> Any:
        """Shapes with a leading axis of prompts."""
        return jax.tree.map(lambda a: self.array(a.shape, a.dtype, "prompt"), tree)

    def lower(self, f: Callable[..., Any], *args: Any) -> Lower:
        """A function compiled for this mesh."""

        def lower() -> jax.stages.Lowered:
            with jax.set_mesh(self.mesh):
                return jax.jit(f).lower(*args)

        return lower

    def block(self, build: Callable[[], Any], *args: Any) -> Lower:
        """One block, called with args."""
        model = nnx.eval_shape(build)
        graph, _ = nnx.split(model)
        return self.lower(
            lambda state, *args: nnx.merge(graph, state)(*args), self.parameters(model), *args
        )


def _is(kind: type, x: Any) -> bool:
    return isinstance(x, kind)


def rngs() -> nnx.Rngs:
    return nnx.Rngs(0)


def search(chains: int) -> Search:
    """RBF as planned: 500 evaluations of a prompt, completed by ten."""
    vp = fs.interpolants.vp()
    kernel = fs.kernels.ddim(vp, 1.0)
    return fs.search.rbf(nfe=NFE, kernel=kernel, grid=fs.grids.uniform(20), chains=chains)


def plain(numerics: Numerics) -> Numerics:
    """With attention whose products are seen, and those of all devices."""
    whole = dataclasses.replace(numerics.rules, token=None)
    return dataclasses.replace(numerics, attention="xla", rules=whole)


def evaluation(
    place: Place,
    build: Callable[[Numerics], Any],
    numerics: Numerics,
    shape: tuple[int, ...],
    cond: Any,
    prompts: int,
    chains: int,
) -> tuple[Lower, int]:
    """A round's evaluations, `prompts` x `chains`, with their FLOPs."""
    method, n, layout = search(chains), prompts * chains, place.layout

    def call(graph: Any, state: Any, asked: Candidates, cond: Any) -> Any:
        flow = fs.Flow.from_callable(lambda s, x, t, c: nnx.merge(graph, s)(x, t, c), state, shape)
        model, kind = records.Model(flow, None, cond), records.Program(method).kind
        size = n // layout.groups
        return evaluate_model(model, asked, kind, size, layout, size)[0]

    rows = partial(place.array, (prompts, chains))
    # Rows of latents are rows of tokens.
    x = place.array((prompts, chains, *shape), jnp.float32, "prompt", None, "token")
    asked = Candidates(x, rows(jnp.float32, "prompt"), *[rows(jnp.bool, "prompt")] * 3)
    seen, kernel = (nnx.eval_shape(partial(build, n)) for n in (plain(numerics), numerics))
    args = place.parameters(kernel), asked, cond
    lower = place.lower(partial(call, nnx.split(kernel)[0]), *args)
    return lower, flops(partial(call, nnx.split(seen)[0]), *args)


def flux(place: Place, config: FluxConfig, pixels: int, prompts: int, chains: int) -> Program:
    """FLUX.1 evaluating a round."""
    side, n = pixels // 8, prompts * chains
    image, text = (side // 2) ** 2, text_tokens(config)
    numerics = place.numerics
    cond = FluxCond(
        place.array((prompts, text, config.text), LOW, "prompt", "token"),
        place.array((prompts, config.pooled), LOW, "prompt"),
        place.array((prompts,), jnp.float32, "prompt") if config.guidance else None,
    )
    lower, count = evaluation(
        place,
        lambda numerics: Flux(config, numerics, rngs=rngs()),
        numerics,
        (side, side, config.channels // 4),
        cond,
        prompts,
        chains,
    )

    def tokens(count: int) -> Any:
        return place.array((n, count, config.width), LOW, "prompt", "token")

    c = place.array((n, config.width), jnp.float32, "prompt")
    turns = place.array((text + image, config.head // 2), jnp.float32)
    double = place.block(
        lambda: DoubleBlock(config, numerics, rngs()), tokens(text), tokens(image), c, turns
    )
    single = place.block(
        lambda: SingleBlock(config, numerics, rngs()), tokens(text + image), c, turns
    )
    calls = config.double + config.single
    return Program(
        batch=n,
        nfe=n,
        lower=lower,
        blocks=(
            BlockOf("double block", config.double, double),
            BlockOf("single block", config.single, single),
        ),
        flops=count,
        attention=Attention.of(calls, n, config.heads, text + image, config.head),
    )


def text_tokens(config: FluxConfig) -> int:
    """As Black Forest Labs' own code has them."""
    return 512 if config.guidance else 256


def sit(place: Place, config: SiTConfig, prompts: int, chains: int) -> Program:
    """SiT evaluating a round, without guidance, which would double it."""
    n, width, numerics = prompts * chains, config.width, place.numerics
    lower, count = evaluation(
        place,
        lambda numerics: SiT(config, numerics, rngs=rngs()),
        numerics,
        (config.size, config.size, config.channels),
        place.array((prompts,), jnp.int32, "prompt"),
        prompts,
        chains,
    )
    h = place.array((n, config.tokens, width), LOW, "prompt", "token")
    c = place.array((n, width), jnp.float32, "prompt")
    block = place.block(lambda: Block(config, numerics, rngs()), h, c)
    return Program(
        batch=n,
        nfe=n,
        lower=lower,
        blocks=(BlockOf("block", config.depth, block),),
        flops=count,
        attention=Attention.of(config.depth, n, config.heads, config.tokens, width // config.heads),
    )


def decoder(place: Place, config: AutoencoderKLConfig, pixels: int, images: int) -> Program:
    """An autoencoder decoding images; it has no loop."""
    side = pixels // config.factor
    z = place.array((images, side, side, config.latents), jnp.float32, "prompt")
    kernel, seen = (
        nnx.eval_shape(lambda numerics=numerics: AutoencoderKL(config, numerics, rngs=rngs()))
        for numerics in (place.numerics, plain(place.numerics))
    )

    def call(graph: Any, state: Any, z: jax.Array) -> jax.Array:
        return nnx.merge(graph, state).decode(z)

    args = place.parameters(kernel), z
    return Program(
        batch=images,
        nfe=0,
        lower=place.lower(partial(call, nnx.split(kernel)[0]), *args),
        flops=flops(partial(call, nnx.split(seen)[0]), *args),
        attention=Attention.of(1, images, 1, side**2, config.widths[-1]),
    )


def ask_tell(place: Place, shape: tuple[int, ...], prompts: int, chains: int) -> Program:
    """What a search does between two rounds of evaluations."""
    method = search(chains)
    nothing = jnp.zeros((), jnp.float32)

    def begin() -> Any:
        keys, nfe = jax.random.split(jax.random.key(0), prompts), jnp.full(prompts, NFE)
        return rounds.start(keys, nfe, nothing, records.Program(method), shape=shape)

    def asked_and_told() -> Any:
        lead, rows = (prompts, chains), prompts * chains
        x, t = jnp.zeros((*lead, *shape), jnp.float32), jnp.zeros(lead, jnp.float32)
        yes, counts = jnp.ones(lead, jnp.bool), jnp.ones(rows, jnp.int32)
        x0 = x.reshape(rows, *shape)
        told = Evaluation(x0, x0, t.reshape(rows))
        return Candidates(x, t, yes, yes, yes), told, Computed(counts, counts)

    carry, told = jax.eval_shape(begin), jax.eval_shape(asked_and_told)
    program = records.Program(method, placement=place.layout)

    def between(carry: Any, *told: Any) -> Any:
        carry, heard = rounds.tell(carry, program, *told)
        return carry, heard, rounds.ask(carry, program)

    lower = place.lower(between, place.by_prompt(carry), *place.by_prompt(told))
    return Program(batch=prompts * chains, nfe=0, lower=lower, flops=0)
