"""Qwen3-VL's image tower: images of any size, as tokens of a language model.

Qwen Team, 2025 (arXiv 2511.21631). Patches are turned by their row and column in attention, and
have learnt positions besides, those of a square that is stretched over the image. Neighbours, 2 x 2
of them, become one token. Features after some of the blocks (DeepStack, Meng et al., 2024, arXiv
2406.04334) become tokens as well, which the language model adds after its first blocks.

Published models see videos, two frames at once, and an image as the same frame twice: both halves
of the kernel are added.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flowsde.models.clip.model import CLIPBlock, CLIPVisionConfig, layer_norm
from flowsde.models.common.layers import Numerics, parameter, scan_some, stack
from flowsde.models.common.rope import THETA, angles

FRAMES = 2
"""That the kernel of patches is of."""
MERGED = 2
"""Patches a side of a token."""
_EPSILON = 1e-6
_exactly = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3VLVisionConfig:
    """Sizes of `Qwen3VLVision`; those of Qwen3-VL-8B by default.

    Attributes:
      width: features of a patch.
      depth: blocks.
      heads: of attention; of a multiple of four features each.
      mlp: hidden features of a block.
      patch: pixels a patch side.
      places: patches a side of the square whose positions are learnt.
      deep: numbers of the blocks, from 0, whose features the language model is given too.
    """

    width: int = 1152
    depth: int = 27
    heads: int = 16
    mlp: int = 4304
    patch: int = 16
    places: int = 48
    deep: tuple[int, ...] = (8, 16, 24)

    def __post_init__(self) -> None:
        # A list when it comes from JSON, which would not hash.
        object.__setattr__(self, "deep", tuple(self.deep))
        if self.width % (4 * self.heads):
            raise ValueError(
                f"width must be heads of a multiple of 4, got {self.width} and {self.heads} heads"
            )
        inside = all(0 <= block < self.depth for block in self.deep)
        if not inside or any(a >= b for a, b in pairwise(self.deep)):
            raise ValueError(
                f"deep must be numbers of the {self.depth} blocks, the lowest first, "
                f"got {self.deep}"
            )

    @property
    def block(self) -> CLIPVisionConfig:
        """Of the blocks, which are CLIP's but for their positions."""
        return CLIPVisionConfig(
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            mlp=self.mlp,
            image=self.places * self.patch,
            patch=self.patch,
            activation="gelu_tanh",
            epsilon=_EPSILON,
        )

    @property
    def side(self) -> int:
        """Pixels a side of a token."""
        return MERGED * self.patch


class Seen(NamedTuple):
    """An image as tokens, in rows.

    Attributes:
      tokens: [n, tokens, features of the language model].
      deep: what its first blocks add, [blocks, n, tokens, features].
    """

    tokens: jax.Array
    deep: jax.Array


class Merger(nnx.Module):
    """From four neighbours to a token; one of the deeper features is normalised after joining."""

    def __init__(self, width: int, to: int, joined: bool, numerics: Numerics, rngs: nnx.Rngs):
        inner = MERGED**2 * width
        self.norm = layer_norm(inner if joined else width, _EPSILON, rngs)
        self.up = numerics.linear(inner, inner, ("embed", "mlp"), rngs=rngs)
        self.down = numerics.linear(inner, to, ("mlp", "embed"), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, tokens, to] of patches [n, 4 tokens, width], neighbours behind each other."""
        joined = x.shape[0], x.shape[1] // MERGED**2, -1
        is_joined = self.norm.num_features != x.shape[-1]
        h = self.norm(x.reshape(joined) if is_joined else x).reshape(joined)
        return self.down(jax.nn.gelu(self.up(h), approximate=False))


class Qwen3VLVision(nnx.Module):
    """The image tower, to tokens of `to` features."""

    def __init__(self, config: Qwen3VLVisionConfig, to: int, numerics: Numerics, *, rngs: nnx.Rngs):
        self.config, self.numerics = config, numerics
        width, values = config.width, 3 * config.patch**2
        self.kernel = parameter(
            (FRAMES, values, width), (None, None, "embed"), numerics, rngs, values**-0.5
        )
        self.bias = parameter((width,), ("embed",), numerics, rngs)
        self.positions = parameter((config.places**2, width), (None, "embed"), numerics, rngs)
        self.blocks = stack(lambda r: CLIPBlock(config.block, numerics, r), config.depth, rngs)
        self.merger = Merger(width, to, False, numerics, rngs)
        if config.deep:
            self.deep = stack(
                lambda r: Merger(width, to, True, numerics, r), len(config.deep), rngs
            )

    def __call__(self, images: jax.Array) -> Seen:
        """An image tower's tokens of images [n, height, width, 3] in [-1, 1].

        Raises:
          ValueError: images whose sides are no multiples of `config.side`, or of other channels.
        """
        tall, wide = self._grid(images)
        x, turn = self._begin(images, tall, wide)

        def step(block: CLIPBlock, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return block(x, None, turn), None

        taken = []
        for first, end in pairwise((0, *(block + 1 for block in self.config.deep))):
            x, _ = scan_some(self.blocks, step, x, (first, end))
            taken.append(x)
        last = self.config.deep[-1] + 1 if taken else 0
        x, _ = scan_some(self.blocks, step, x, (last, self.config.depth))
        tokens = self.merger(x)
        if not taken:
            return Seen(tokens, jnp.zeros((0, *tokens.shape), tokens.dtype))
        _, deep = scan_some(
            self.deep, lambda merger, _, x: (None, merger(x)), None, (0, len(taken)),
            jnp.stack(taken),
        )  # fmt: skip
        return Seen(tokens, deep)

    def _begin(self, images: jax.Array, tall: int, wide: int) -> tuple[jax.Array, jax.Array]:
        """Patches [n, patches, width] with learnt positions, and the angles of those."""
        c, dtype = self.config, self.numerics.dtype
        kernel = jnp.sum(self.kernel.get_value().astype(jnp.float32), axis=0).astype(dtype)
        pixels = images.reshape(len(images), tall, c.patch, wide, c.patch, 3)
        pixels = pixels.transpose(0, 1, 3, 2, 4, 5).reshape(len(images), tall, wide, -1)
        x = pixels.astype(dtype) @ kernel + self.bias.get_value().astype(dtype)[None, None, None]
        square = self.positions.get_value().astype(jnp.float32)
        square = square.reshape(c.places, c.places, c.width)
        rows, columns = (jnp.asarray(_stretched(c.places, n)) for n in (tall, wide))
        places = _exactly("ia,jb,abw->ijw", rows, columns, square)
        x = _by_tokens(x + places.astype(dtype)[None])
        at = np.moveaxis(np.indices((tall, wide)), 0, -1)
        half = c.width // c.heads // 2
        turn = angles(jnp.asarray(_by_tokens(at[None])[0]), (half, half), THETA)
        return x, turn

    def _grid(self, images: jax.Array) -> tuple[int, int]:
        side, patch = self.config.side, self.config.patch
        if images.ndim != 4 or images.shape[3] != 3 or any(n % side for n in images.shape[1:3]):
            raise ValueError(
                f"images must have shape [n, height, width, 3], of multiples of {side} pixels, "
                f"got {list(images.shape)}"
            )
        return images.shape[1] // patch, images.shape[2] // patch


def _by_tokens(x: Any) -> Any:
    """[n, tall wide, features] of patches [n, tall, wide, features], token after token."""
    n, tall, wide, features = x.shape
    x = x.reshape(n, tall // MERGED, MERGED, wide // MERGED, MERGED, features)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, tall * wide, features)


def _stretched(places: int, to: int) -> np.ndarray:
    """The matrix float32 [to, places] that stretches an axis, its ends on each other, linearly."""
    at = np.arange(to, dtype=np.float32) * np.float32(places - 1) / np.float32(max(to - 1, 1))
    return np.maximum(1.0 - np.abs(at[:, None] - np.arange(places)[None]), 0.0).astype(np.float32)


def tokens_of(config: Qwen3VLVisionConfig, size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of the tokens of an image of a size (height, width) that the tower takes."""
    return size[0] // config.side, size[1] // config.side
