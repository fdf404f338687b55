"""FLUX.2: a transformer over text and image tokens (Black Forest Labs, 2025).

Double blocks have weights of their own for text and for image, which meet in attention; single
blocks treat both as one sequence, text first, and compute attention and MLP side by side. Shifts,
scales and gates are made of the time once, and are the same for all double blocks and for all
single ones. Layers have no biases, and MLPs are gated: silu(a) b of the halves (a, b) of their
first layer. Positions have four axes, of which images use the second and third, texts the last.
Time and output are ours already: t = 1 is noise, the output noise - data.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flowsde.models.common.layers import (
    FLOAT32,
    Numerics,
    QKNorm,
    heads_of,
    kernel_in,
    outputs,
    scan,
    stack,
)
from flowsde.models.common.modulation import (
    SINUSOIDS,
    Embedding,
    Modulation,
    adaptive_norm,
    add_gated,
    sinusoids,
)
from flowsde.models.common.patches import grid_ids, pack, unpack
from flowsde.models.common.rope import angles, turned_attention
from flowsde.models.common.sequence import Split
from flowsde.models.family import Family

THETA = 2000.0
"""Sets the slowest turn of positions."""
_TIME_SCALE = 1000.0
_PATCH = 2

Modulated = list[jax.Array]
"""Shift, scale and gate, or those of attention and then of the MLP: float32 [n, 1, width] each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flux2Config:
    """Sizes of `Flux2`; those of FLUX.2-klein-4B by default, 3.88 billion parameters.

    Attributes:
      channels: values of an image token, four times the latents' channels.
      heads: of attention.
      axes: features of a head that turn with each of the four axes of a position; even numbers.
      double: blocks with separate weights for text and image.
      single: blocks after them.
      mlp: hidden features of the MLPs.
      text: features of a text token.
    """

    channels: int = 128
    heads: int = 24
    axes: tuple[int, ...] = (32, 32, 32, 32)
    double: int = 5
    single: int = 20
    mlp: int = 9216
    text: int = 7680

    def __post_init__(self) -> None:
        # A list when it comes from JSON, which would not hash.
        object.__setattr__(self, "axes", tuple(self.axes))
        if len(self.axes) != 4 or any(size % 2 for size in self.axes):
            raise ValueError(f"axes must be four even numbers, got {self.axes}")

    @property
    def head(self) -> int:
        """Features of a head."""
        return sum(self.axes)

    @property
    def width(self) -> int:
        """Features of a token in the blocks."""
        return self.heads * self.head


class Flux2Cond(NamedTuple):
    """What an image is asked to be.

    Attributes:
      text: states [n, tokens, text features] of a language model, padding included.
    """

    text: jax.Array


class Stream(nnx.Module):
    """A double block's weights for the tokens of one kind."""

    def __init__(self, config: Flux2Config, numerics: Numerics, rngs: nnx.Rngs):
        width, mlp, self.config = config.width, config.mlp, config
        self.qkv = numerics.linear(width, 3 * width, ("embed", "heads"), bias=False, rngs=rngs)
        self.norm = QKNorm(config.head, numerics, rngs)
        self.out = numerics.linear(width, width, ("heads", "embed"), bias=False, rngs=rngs)
        self.up = numerics.linear(width, 2 * mlp, ("embed", "mlp"), bias=False, rngs=rngs)
        self.down = numerics.linear(mlp, width, ("mlp", "embed"), bias=False, rngs=rngs)

    def read(
        self, x: jax.Array, shift: jax.Array, scale: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Normalised queries and keys, and values."""
        parts = outputs(self.qkv, adaptive_norm(x, shift, scale), [self.config.width] * 3)
        q, k, v = heads_of(parts, self.config.heads)
        return *self.norm(q, k), v

    def mix(self, x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
        """The MLP."""
        a, b = outputs(self.up, adaptive_norm(x, shift, scale), [self.config.mlp] * 2)
        return self.down(jax.nn.silu(a) * b)


class DoubleBlock(nnx.Module):
    """Image and text tokens, each by weights of their own, in one attention."""

    def __init__(self, config: Flux2Config, numerics: Numerics, rngs: nnx.Rngs):
        self.numerics = numerics
        self.image = Stream(config, numerics, rngs)
        self.text = Stream(config, numerics, rngs)

    def __call__(
        self,
        text: jax.Array,
        image: jax.Array,
        text_modulated: Modulated,
        image_modulated: Modulated,
        turn: jax.Array,
        seen: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Text and image tokens [n, tokens, width]; turn [tokens, d / 2] of all tokens.

        Of tokens that are split over devices, turn and seen are those of `Split`.
        """
        streams, tokens = (self.text, self.image), (text, image)
        modulated = (text_modulated, image_modulated)
        read = [
            stream.read(x, *m[:2]) for stream, x, m in zip(streams, tokens, modulated, strict=True)
        ]
        split = Split.of(self.numerics.rules)
        q, k, v = (split.join(parts) for parts in zip(*read, strict=True))
        attended = turned_attention(q, k, v, turn, numerics=self.numerics, mask=seen)
        parts = split.part(attended, [text.shape[1], image.shape[1]])
        made = []
        for stream, x, m, y in zip(streams, tokens, modulated, parts, strict=True):
            x = add_gated(x, m[2], stream.out(y))
            made.append(add_gated(x, m[5], stream.mix(x, m[3], m[4])))
        return made[0], made[1]


class SingleBlock(nnx.Module):
    """Attention and MLP side by side: one layer into both and one out of both."""

    def __init__(self, config: Flux2Config, numerics: Numerics, rngs: nnx.Rngs):
        width, mlp, self.config, self.numerics = config.width, config.mlp, config, numerics
        self.norm = QKNorm(config.head, numerics, rngs)
        into, out = 3 * width + 2 * mlp, width + mlp
        self.enter = numerics.linear(width, into, ("embed", "mlp"), bias=False, rngs=rngs)
        self.leave = numerics.linear(out, width, ("mlp", "embed"), bias=False, rngs=rngs)

    def __call__(
        self, x: jax.Array, modulated: Modulated, turn: jax.Array, seen: jax.Array | None = None
    ) -> jax.Array:
        """x: [n, tokens, width]; turn: [tokens, d / 2]; seen: of `Split`."""
        shift, scale, gate = modulated
        sizes = [self.config.width] * 3 + [self.config.mlp] * 2
        *parts, a, b = outputs(self.enter, adaptive_norm(x, shift, scale), sizes)
        q, k, v = heads_of(parts, self.config.heads)
        turned = *self.norm(q, k), v, turn
        attended = turned_attention(*turned, numerics=self.numerics, mask=seen)
        # `leave` of both side by side, as two products for the reason of `outputs`.
        kernel = kernel_in(self.leave, x.dtype)
        width = self.config.width
        y = attended @ kernel[:width] + (jax.nn.silu(a) * b) @ kernel[width:]
        return add_gated(x, gate, y)


class Flux2(nnx.Module):
    """Velocity of a FLUX.2, `model(x, t, cond)`."""

    def __init__(self, config: Flux2Config, numerics: Numerics = FLOAT32, *, rngs: nnx.Rngs):
        self.config, self.numerics = config, numerics
        width, ends = config.width, (None, "embed")
        self.image_in = numerics.linear(config.channels, width, ends, bias=False, rngs=rngs)
        self.text_in = numerics.linear(config.text, width, ends, bias=False, rngs=rngs)
        self.time = Embedding(SINUSOIDS, width, numerics, rngs, bias=False)
        self.image_modulation, self.text_modulation, self.single_modulation, self.modulation = (
            Modulation(width, count, numerics, rngs, bias=False) for count in (6, 6, 3, 2)
        )
        self.double = stack(lambda r: DoubleBlock(config, numerics, r), config.double, rngs)
        self.single = stack(lambda r: SingleBlock(config, numerics, r), config.single, rngs)
        self.out = numerics.linear(width, config.channels, ends[::-1], bias=False, rngs=rngs)

    def __call__(self, x: jax.Array, t: jax.Array, cond: Flux2Cond) -> jax.Array:
        """Velocity, noise - data, float32 and shaped as x.

        Args:
          x: latents [n, H, W, channels / 4], H and W even.
          t: times [n] in [0, 1].
          cond: the text.

        Raises:
          ValueError: when x or cond do not fit the configuration.
        """
        self._check(x, cond)
        _, height, width, _ = x.shape
        dtype, text = self.numerics.dtype, cond.text.astype(self.numerics.dtype)
        image = pack(x, _PATCH, "channels_first").astype(dtype)
        split, sizes = Split.of(self.numerics.rules), (text.shape[1], image.shape[1])
        turn = split.arrange(self.turns(height, width, text.shape[1])[None], sizes)[0]
        seen = split.seen(*sizes)
        c = jax.nn.silu(self.time(sinusoids(_TIME_SCALE * t.astype(jnp.float32))))

        both = split.keep(tuple(map(split.fill, (self.text_in(text), self.image_in(image)))))
        modulated = *(self.text_modulation(c), self.image_modulation(c)), turn, seen
        both = scan(self.double, lambda block, both: split.keep(block(*both, *modulated)), both)
        h, single = split.keep(split.join(both)), self.single_modulation(c)
        h = scan(self.single, lambda block, h: split.keep(block(h, single, turn, seen)), h)

        shift, scale = self.modulation(c)
        h = split.part(h, [a.shape[1] for a in both])[1]
        tokens = self.out(adaptive_norm(h, shift, scale))[:, : image.shape[1]]
        return unpack(tokens.astype(jnp.float32), height, width, _PATCH, "channels_first")

    def turns(self, height: int, width: int, length: int) -> jax.Array:
        """Angles float32 [tokens, d / 2] of a text's tokens, then of an image's.

        Args:
          height: of the latents.
          width: of the latents.
          length: of the text.
        """
        image = np.pad(grid_ids(height, width, _PATCH), ((0, 0), (0, 1)))
        text = np.pad(np.arange(length, dtype=np.int32)[:, None], ((0, 0), (3, 0)))
        return angles(jnp.asarray(np.concatenate([text, image])), self.config.axes, THETA)

    def _check(self, x: jax.Array, cond: Flux2Cond) -> None:
        c = self.config
        if x.ndim != 4 or 4 * x.shape[-1] != c.channels:
            raise ValueError(f"x must have shape (n, H, W, {c.channels // 4}), got {x.shape}")
        if cond.text.ndim != 3 or cond.text.shape[-1] != c.text:
            raise ValueError(f"text must have shape (n, tokens, {c.text}), got {cond.text.shape}")


FAMILY = Family(name="flux2", config=Flux2Config, build=Flux2)
