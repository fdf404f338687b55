"""Programs of text encoders on a mesh, from shapes alone; see `_tpu_programs`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from _flops import flops
from _tpu_programs import LOW, BlockOf, Lower, Place, Program, rngs
from flax import nnx

from flowsde.models.clip.model import CLIPBlock, CLIPText, CLIPTextConfig
from flowsde.models.common.layers import Numerics
from flowsde.models.qwen3.model import Qwen3, Qwen3Block, Qwen3Config
from flowsde.models.t5.model import T5Block, T5Config, T5Encoder, T5Stack, UMT5Config

_CLIP_TOKENS = 77


def _encoder(place: Place, build: Callable[[Numerics], Any], tokens: Any) -> tuple[Lower, int]:
    """A text encoder with its FLOPs."""
    model = nnx.eval_shape(partial(build, place.numerics))
    graph, _ = nnx.split(model)

    def call(state: Any, tokens: jax.Array) -> Any:
        made = nnx.merge(graph, state)(tokens)
        for name in ("pooled", "penultimate"):
            made = getattr(made, name, made)
        return made

    args = place.parameters(model), tokens
    return place.lower(call, *args), flops(call, *args)


def t5(place: Place, length: int, prompts: int) -> Program:
    """T5 v1.1 XXL's encoder; its scores have positions added, so that XLA does its attention."""
    config = T5Config()
    tokens = place.array((prompts, length), jnp.int32, "prompt")
    lower, count = _encoder(place, lambda n: T5Encoder(config, n, rngs=rngs()), tokens)
    x = place.array((prompts, length, config.width), LOW, "prompt")
    bias = place.array((1, config.heads, length, length), jnp.float32, None, "heads")

    def block(x: Any, bias: Any) -> Lower:
        model = nnx.eval_shape(lambda: T5Block(config, False, place.numerics, rngs()))
        graph, _ = nnx.split(model)
        return place.lower(
            lambda state, x, bias: nnx.merge(graph, state)(x, bias, None, None, None),
            place.parameters(model), x, bias,
        )  # fmt: skip

    blocks = (BlockOf("block", config.depth, block(x, bias)),)
    return Program(batch=prompts, nfe=0, lower=lower, blocks=blocks, flops=count)


def clip_text(place: Place, prompts: int) -> Program:
    """CLIP ViT-L/14's text tower."""
    config = CLIPTextConfig()
    tokens = place.array((prompts, _CLIP_TOKENS), jnp.int32, "prompt")
    lower, count = _encoder(place, lambda n: CLIPText(config, n, rngs=rngs()), tokens)
    x = place.array((prompts, _CLIP_TOKENS, config.width), LOW, "prompt")
    model = nnx.eval_shape(lambda: CLIPBlock(config, place.numerics, rngs()))
    graph, _ = nnx.split(model)
    block = place.lower(
        lambda state, x: nnx.merge(graph, state)(x, None), place.parameters(model), x
    )
    blocks = (BlockOf("block", config.depth, block),)
    return Program(batch=prompts, nfe=0, lower=lower, blocks=blocks, flops=count)


def umt5(place: Place, length: int, prompts: int) -> Program:
    """UMT5 XXL's encoder, of whose blocks each makes the scores that it adds."""
    config = UMT5Config()
    tokens = place.array((prompts, length), jnp.int32, "prompt")
    lower, count = _encoder(place, lambda n: T5Encoder(config, n, rngs=rngs()), tokens)
    model = nnx.eval_shape(lambda: T5Stack(config, 1, False, place.numerics, rngs()))
    graph, _ = nnx.split(model)
    x = place.array((prompts, length, config.width), LOW, "prompt")
    block = place.lower(
        lambda state, x: nnx.merge(graph, state)(x, None), place.parameters(model), x
    )
    blocks = (BlockOf("block", config.depth, block),)
    return Program(batch=prompts, nfe=0, lower=lower, blocks=blocks, flops=count)


def qwen3(place: Place, length: int, prompts: int) -> Program:
    """Qwen3-4B, read before its last block."""
    config, numerics = Qwen3Config(), place.numerics
    tokens = place.array((prompts, length), jnp.int32, "prompt")
    lower, count = _encoder(place, lambda n: Qwen3(config, n, rngs=rngs()), tokens)
    x = place.array((prompts, length, config.width), LOW, "prompt")
    turn = place.array((length, config.head // 2), jnp.float32)
    block = place.block(lambda: Qwen3Block(config, numerics, rngs()), x, turn)
    blocks = (BlockOf("block", config.depth, block),)
    return Program(batch=prompts, nfe=0, lower=lower, blocks=blocks, flops=count)
