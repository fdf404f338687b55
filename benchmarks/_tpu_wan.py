"""Programs of a search with Wan 2.1 on a mesh, from shapes alone; see `_tpu_programs`."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from _flops import flops
from _tpu_programs import LOW, Attention, BlockOf, Place, Program, evaluation, plain, rngs
from flax import nnx

from flowsde.models.autoencoder_wan.decoder import decoder as decoder_of
from flowsde.models.autoencoder_wan.model import AutoencoderWan, AutoencoderWanConfig
from flowsde.models.autoencoder_wan.past import Past
from flowsde.models.wan.model import Wan, WanBlock, WanConfig
from flowsde.models.wan.pipeline import HEIGHT, LENGTH, WIDTH

_VAE = AutoencoderWanConfig()


def latents(frames: int) -> tuple[int, int, int, int]:
    """Shape of those of a video of 832 x 480 pixels."""
    count = 1 + (frames - 1) // _VAE.frames
    return count, HEIGHT // _VAE.factor, WIDTH // _VAE.factor, _VAE.latents


def wan(place: Place, config: WanConfig, frames: int, prompts: int, chains: int) -> Program:
    """Wan 2.1 evaluating a round, without guidance, which doubles its evaluations."""
    shape, n, numerics = latents(frames), prompts * chains, place.numerics
    tokens = shape[0] * shape[1] * shape[2] // 4
    lower, count = evaluation(
        place,
        lambda numerics: Wan(config, numerics, rngs=rngs()),
        numerics,
        shape,
        place.array((prompts, LENGTH, config.text), LOW, "prompt", "token"),
        prompts,
        chains,
    )

    def states(length: int) -> Any:
        return place.array((n, length, config.width), LOW, "prompt", "token")

    c = place.array((n, 6, config.width), jnp.float32, "prompt")
    turn = place.array((tokens, config.head // 2), jnp.float32)
    args = states(tokens), states(LENGTH), c, turn
    block = place.block(lambda: WanBlock(config, numerics, rngs()), *args)
    of = partial(Attention.of, config.depth, n, config.heads, tokens, config.head)
    return Program(
        batch=n,
        nfe=n,
        lower=lower,
        blocks=(BlockOf("block", config.depth, block),),
        flops=count,
        attention=of().beside(of(LENGTH)),
    )


def decoder(place: Place, frames: int, videos: int) -> Program:
    """Wan's autoencoder decoding videos: the first frame, then four after four."""
    shape, numerics = latents(frames), place.numerics
    z = place.array((videos, *shape), jnp.float32, "prompt")

    def build(numerics: Any) -> AutoencoderWan:
        return nnx.eval_shape(lambda: AutoencoderWan(_VAE, numerics, rngs=rngs()))

    def call(graph: Any, state: Any, z: jax.Array) -> jax.Array:
        decode = decoder_of(nnx.merge(graph, state), *shape[:3])
        return decode(z)

    vae = build(numerics)
    args = place.parameters(vae), z
    side = shape[1] * shape[2]
    return Program(
        batch=videos,
        nfe=0,
        lower=place.lower(partial(call, nnx.split(vae)[0]), *args),
        blocks=() if frames == 1 else (_later(place, vae, videos, shape),),
        flops=flops(partial(call, nnx.split(build(plain(numerics)))[0]), *args),
        # Of the middle of each latent frame.
        attention=Attention.of(shape[0], videos, 1, side, _VAE.widths[-1]),
    )


def _later(
    place: Place, vae: AutoencoderWan, videos: int, shape: tuple[int, int, int, int]
) -> BlockOf:
    """A latent frame after the first, with what convolutions keep of those before."""
    graph, _ = nnx.split(vae)
    state = place.parameters(vae)

    def first(state: Any, z: jax.Array) -> list[jax.Array]:
        past = Past()
        nnx.merge(graph, state).decoder(z, past)
        return past.kept

    def later(state: Any, kept: list[jax.Array], z: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        past = Past(kept)
        made = nnx.merge(graph, state).decoder(z, past)
        return past.kept, made

    z = place.array((videos, 1, *shape[1:]), LOW, "prompt")
    kept = jax.eval_shape(first, state, z)
    return BlockOf("four frames", shape[0] - 1, place.lower(later, state, place.by_prompt(kept), z))
