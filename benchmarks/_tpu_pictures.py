"""Programs of a search with Z-Image, Stable Diffusion 3.5 and FLUX.2-klein on a mesh, from shapes
alone; see `_tpu_programs`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from _tpu_programs import LOW, Attention, BlockOf, Place, Program, evaluation, rngs

from flowsde.models.common.layers import Numerics
from flowsde.models.flux2 import model as flux2
from flowsde.models.sd3 import model as sd3
from flowsde.models.sd3.pipeline import LENGTH as T5_TOKENS
from flowsde.models.zimage import model as zimage

_CHAT = 512
_CLIP_TOKENS = 77


def _evaluating(
    place: Place,
    build: Callable[..., Any],
    shape: tuple[int, ...],
    cond: Any,
    prompts: int,
    chains: int,
    *,
    blocks: Sequence[BlockOf],
    attention: Attention,
) -> Program:
    """A model evaluating a round."""
    n, numerics = prompts * chains, place.numerics

    def whole(numerics: Numerics) -> Any:
        return build(numerics, rngs=rngs())

    lower, count = evaluation(place, whole, numerics, shape, cond, prompts, chains)
    return Program(
        batch=n, nfe=n, lower=lower, blocks=tuple(blocks), flops=count, attention=attention
    )


def z_image(place: Place, pixels: int, prompts: int, chains: int) -> Program:
    """Z-Image, or Z-Image-Turbo, which is alike."""
    config, side, n = zimage.ZImageConfig(), pixels // 8, prompts * chains
    image, numerics = (side // 2) ** 2, place.numerics
    cond = zimage.ZImageCond(
        place.array((prompts, _CHAT, config.text), LOW, "prompt", "token"),
        place.array((prompts,), jnp.int32, "prompt"),
    )

    def block(tokens: int, modulated: bool, masked: bool) -> Any:
        args = [
            place.array((n, tokens, config.width), LOW, "prompt", "token"),
            place.array((n, tokens, config.head // 2), jnp.float32, "prompt"),
            place.array((n, 1, 1, tokens), jnp.bool, "prompt") if masked else None,
            place.array((n, config.condition), jnp.float32, "prompt") if modulated else None,
        ]
        return place.block(lambda: zimage.ZImageBlock(config, modulated, numerics, rngs()), *args)

    of = partial(Attention.of, n=n, heads=config.heads, features=config.head)
    refined = of(config.refiners, tokens=image).beside(of(config.refiners, tokens=_CHAT))
    return _evaluating(
        place, partial(zimage.ZImage, config), (side, side, config.channels), cond, prompts, chains,
        blocks=[
            BlockOf("text block", config.refiners, block(_CHAT, False, True)),
            BlockOf("image block", config.refiners, block(image, True, False)),
            BlockOf("block", config.depth, block(image + _CHAT, True, True)),
        ],
        attention=refined.beside(of(config.depth, tokens=image + _CHAT)),
    )  # fmt: skip


def stable_diffusion(
    place: Place, config: sd3.SD3Config, pixels: int, prompts: int, chains: int
) -> Program:
    """Stable Diffusion 3 or 3.5, with T5."""
    side, n, numerics = pixels // 8, prompts * chains, place.numerics
    image, text = (side // sd3.PATCH) ** 2, _CLIP_TOKENS + T5_TOKENS
    cond = sd3.SD3Cond(
        place.array((prompts, text, config.text), LOW, "prompt", "token"),
        place.array((prompts, config.pooled), LOW, "prompt"),
    )

    def block(dual: bool) -> Any:
        args = [
            *(place.array((n, k, config.width), LOW, "prompt", "token") for k in (text, image)),
            place.array((n, config.width), jnp.float32, "prompt"),
        ]
        return place.block(lambda: sd3.JointBlock(config, numerics, rngs(), dual=dual), *args)

    of = partial(Attention.of, n=n, heads=config.heads, features=config.head)
    joint = of(config.depth - 1, tokens=image + text)
    last = of(1, tokens=image, keys=image + text)
    kinds = (("dual block", config.dual, True), ("block", config.plain, False))
    return _evaluating(
        place, partial(sd3.SD3, config), (side, side, config.channels), cond, prompts, chains,
        blocks=[BlockOf(name, depth, block(dual)) for name, depth, dual in kinds if depth],
        attention=joint.beside(last).beside(of(config.dual, tokens=image)),
    )  # fmt: skip


def klein(place: Place, pixels: int, prompts: int, chains: int) -> Program:
    """FLUX.2-klein-4B."""
    config, side, n = flux2.Flux2Config(), pixels // 8, prompts * chains
    image, numerics, width = (side // 2) ** 2, place.numerics, config.width
    cond = flux2.Flux2Cond(place.array((prompts, _CHAT, config.text), LOW, "prompt", "token"))

    def tokens(count: int) -> Any:
        return place.array((n, count, width), LOW, "prompt", "token")

    def modulated(count: int) -> list[Any]:
        return [place.array((n, 1, width), jnp.float32, "prompt")] * count

    turn = place.array((_CHAT + image, config.head // 2), jnp.float32)
    double = place.block(
        lambda: flux2.DoubleBlock(config, numerics, rngs()),
        tokens(_CHAT), tokens(image), modulated(6), modulated(6), turn,
    )  # fmt: skip
    single = place.block(
        lambda: flux2.SingleBlock(config, numerics, rngs()),
        tokens(_CHAT + image), modulated(3), turn,
    )  # fmt: skip
    calls = config.double + config.single
    shape = (side, side, config.channels // 4)
    return _evaluating(
        place, partial(flux2.Flux2, config), shape, cond, prompts, chains,
        blocks=[
            BlockOf("double block", config.double, double),
            BlockOf("single block", config.single, single),
        ],
        attention=Attention.of(calls, n, config.heads, _CHAT + image, config.head),
    )  # fmt: skip
