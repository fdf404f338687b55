"""FLUX.1: a transformer over text and image tokens (Black Forest Labs, 2024).

Double blocks have weights of their own for text and for image, which meet in attention; single
blocks treat both as one sequence, text first, and compute attention and MLP side by side. Global
conditions (time, pooled text, and the guidance that dev was distilled with) enter by adaptive
layer norm; positions by rotation of queries and keys. Time and output are ours already: t = 1 is
noise, the output noise - data. Latents have 16 channels, scaled by .3611 after a shift of .1159.
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
    outputs,
    scan,
    stack,
    weights,
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

_TIME_SCALE = 1000.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class FluxConfig:
    """Sizes of `Flux`; those of FLUX.1-dev by default.

    Attributes:
      channels: values of an image token, four times the latents' channels.
      heads: of attention.
      axes: features of a head that turn with each of the three axes of a position; even numbers.
      double: blocks with separate weights for text and image.
      single: blocks after them.
      mlp: hidden features of the MLPs.
      text: features of a text token.
      pooled: features of the pooled text.
      guidance: whether the scale of guidance is an input, as in dev; schnell has none.
    """

    channels: int = 64
    heads: int = 24
    axes: tuple[int, ...] = (16, 56, 56)
    double: int = 19
    single: int = 38
    mlp: int = 12288
    text: int = 4096
    pooled: int = 768
    guidance: bool = True

    def __post_init__(self) -> None:
        # A list when it comes from JSON, which would not hash.
        object.__setattr__(self, "axes", tuple(self.axes))
        if len(self.axes) != 3 or any(size % 2 for size in self.axes):
            raise ValueError(f"axes must be three even numbers, got {self.axes}")

    @classmethod
    def dev(cls) -> "FluxConfig":
        """FLUX.1-dev: 11.90 billion parameters."""
        return cls()

    @classmethod
    def schnell(cls) -> "FluxConfig":
        """FLUX.1-schnell: 11.89 billion parameters."""
        return cls(guidance=False)

    @property
    def head(self) -> int:
        """Features of a head."""
        return sum(self.axes)

    @property
    def width(self) -> int:
        """Features of a token in the blocks."""
        return self.heads * self.head


class FluxCond(NamedTuple):
    """What an image is asked to be.

    Attributes:
      text: T5 states [n, tokens, text features], padding included.
      pooled: CLIP's pooled state [n, pooled features].
      guidance: scale [n] that dev takes, 3.5 as published; None for schnell.
    """

    text: jax.Array
    pooled: jax.Array
    guidance: jax.Array | None = None


class Stream(nnx.Module):
    """A double block's weights for the tokens of one kind."""

    def __init__(self, config: FluxConfig, numerics: Numerics, rngs: nnx.Rngs):
        width, self.heads = config.width, config.heads
        self.modulation = Modulation(width, 6, numerics, rngs)
        self.qkv = numerics.linear(width, 3 * width, ("embed", "heads"), rngs=rngs)
        self.norm = QKNorm(config.head, numerics, rngs)
        self.out = numerics.linear(width, width, ("heads", "embed"), rngs=rngs)
        self.up = numerics.linear(width, config.mlp, ("embed", "mlp"), rngs=rngs)
        self.down = numerics.linear(config.mlp, width, ("mlp", "embed"), rngs=rngs)

    def read(
        self, x: jax.Array, shift: jax.Array, scale: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Normalised queries and keys, and values."""
        parts = outputs(self.qkv, adaptive_norm(x, shift, scale), [x.shape[-1]] * 3)
        q, k, v = heads_of(parts, self.heads)
        return *self.norm(q, k), v

    def mix(self, x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
        """The MLP."""
        hidden = jax.nn.gelu(self.up(adaptive_norm(x, shift, scale)), approximate=True)
        return self.down(hidden)


class DoubleBlock(nnx.Module):
    """Image and text tokens, each by weights of their own, in one attention."""

    def __init__(self, config: FluxConfig, numerics: Numerics, rngs: nnx.Rngs):
        self.numerics = numerics
        self.image = Stream(config, numerics, rngs)
        self.text = Stream(config, numerics, rngs)

    def __call__(
        self,
        text: jax.Array,
        image: jax.Array,
        c: jax.Array,
        turn: jax.Array,
        seen: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Text and image tokens [n, tokens, width]; c float32 [n, width]; turn of all tokens.

        Of tokens that are split over devices, turn and seen are those of `Split`.
        """
        streams, tokens = (self.text, self.image), (text, image)
        modulations = [stream.modulation(c) for stream in streams]
        read = [
            stream.read(x, *m[:2])
            for stream, x, m in zip(streams, tokens, modulations, strict=True)
        ]
        split = Split.of(self.numerics.rules)
        q, k, v = (split.join(parts) for parts in zip(*read, strict=True))
        attended = turned_attention(q, k, v, turn, numerics=self.numerics, mask=seen)
        parts = split.part(attended, [text.shape[1], image.shape[1]])
        made = []
        for stream, x, m, y in zip(streams, tokens, modulations, parts, strict=True):
            x = add_gated(x, m[2], stream.out(y))
            made.append(add_gated(x, m[5], stream.mix(x, m[3], m[4])))
        return made[0], made[1]


class SingleBlock(nnx.Module):
    """Attention and MLP side by side: one layer into both and one out of both."""

    def __init__(self, config: FluxConfig, numerics: Numerics, rngs: nnx.Rngs):
        width, self.config, self.numerics = config.width, config, numerics
        self.modulation = Modulation(width, 3, numerics, rngs)
        self.norm = QKNorm(config.head, numerics, rngs)
        self.enter = numerics.linear(width, 3 * width + config.mlp, ("embed", "mlp"), rngs=rngs)
        self.leave = numerics.linear(width + config.mlp, width, ("mlp", "embed"), rngs=rngs)

    def __call__(
        self, x: jax.Array, c: jax.Array, turn: jax.Array, seen: jax.Array | None = None
    ) -> jax.Array:
        """x: [n, tokens, width]; c: float32 [n, width]; turn: [tokens, d / 2]; seen: of `Split`."""
        shift, scale, gate = self.modulation(c)
        sizes = [self.config.width] * 3 + [self.config.mlp]
        *parts, hidden = outputs(self.enter, adaptive_norm(x, shift, scale), sizes)
        q, k, v = heads_of(parts, self.config.heads)
        turned = *self.norm(q, k), v, turn
        attended = turned_attention(*turned, numerics=self.numerics, mask=seen)
        hidden = jax.nn.gelu(hidden, approximate=True)
        return add_gated(x, gate, self._leave(attended, hidden))

    def _leave(self, attended: jax.Array, hidden: jax.Array) -> jax.Array:
        """`leave` of both side by side, as two products for the reason of `outputs`."""
        kernel, bias = weights(self.leave, hidden)
        width = attended.shape[-1]
        return attended @ kernel[:width] + hidden @ kernel[width:] + bias[None, None]


class Flux(nnx.Module):
    """Velocity of a FLUX.1, `model(x, t, cond)`."""

    def __init__(self, config: FluxConfig, numerics: Numerics = FLOAT32, *, rngs: nnx.Rngs):
        self.config, self.numerics = config, numerics
        width = config.width
        self.image_in = numerics.linear(config.channels, width, (None, "embed"), rngs=rngs)
        self.text_in = numerics.linear(config.text, width, (None, "embed"), rngs=rngs)
        self.time = Embedding(SINUSOIDS, width, numerics, rngs)
        self.pooled = Embedding(config.pooled, width, numerics, rngs)
        self.guidance = Embedding(SINUSOIDS, width, numerics, rngs) if config.guidance else None
        self.double = stack(lambda r: DoubleBlock(config, numerics, r), config.double, rngs)
        self.single = stack(lambda r: SingleBlock(config, numerics, r), config.single, rngs)
        self.modulation = Modulation(width, 2, numerics, rngs)
        self.out = numerics.linear(width, config.channels, ("embed", None), rngs=rngs)

    def __call__(self, x: jax.Array, t: jax.Array, cond: FluxCond) -> jax.Array:
        """Velocity, noise - data, float32 and shaped as x.

        Args:
          x: latents [n, H, W, channels / 4], H and W even.
          t: times [n] in [0, 1].
          cond: the text.

        Raises:
          ValueError: when x or cond do not fit the configuration.
        """
        _, height, width, channels = x.shape
        if 4 * channels != self.config.channels:
            raise ValueError(
                f"x must have shape (n, H, W, {self.config.channels // 4}), got {x.shape}"
            )
        tokens = self.tokens(pack(x, order="channels_first"), grid_ids(height, width), t, *cond)
        return unpack(tokens, height, width, order="channels_first")

    def tokens(
        self,
        image: jax.Array,
        ids: jax.Array | np.ndarray,
        t: jax.Array,
        text: jax.Array,
        pooled: jax.Array,
        guidance: jax.Array | None = None,
    ) -> jax.Array:
        """Velocity of packed tokens.

        Args:
          image: tokens [n, tokens, channels], as `packing.pack` orders them "channels_first".
          ids: their positions [tokens, 3]; text stands at 0.
          t: times [n].
          text: [n, text tokens, text features].
          pooled: [n, pooled features].
          guidance: scale [n], for a model that takes it.

        Returns:
          float32, shaped as `image`.

        Raises:
          ValueError: when the guidance is missing or of no use, or ids are not as many as tokens.
        """
        self._check(image, ids, guidance)
        dtype = self.numerics.dtype
        split, sizes = Split.of(self.numerics.rules), (text.shape[1], image.shape[1])
        at = jnp.concatenate([jnp.zeros((text.shape[1], 3), jnp.int32), jnp.asarray(ids)])
        turn = split.arrange(angles(at, self.config.axes)[None], sizes)[0]
        seen = split.seen(*sizes)
        c = jax.nn.silu(self.condition(t, pooled, guidance))

        parts = self.text_in(text.astype(dtype)), self.image_in(image.astype(dtype))
        both = split.keep(tuple(map(split.fill, parts)))
        both = scan(self.double, lambda block, both: split.keep(block(*both, c, turn, seen)), both)
        h = split.keep(split.join(both))
        h = scan(self.single, lambda block, h: split.keep(block(h, c, turn, seen)), h)

        shift, scale = self.modulation(c)
        h = split.part(h, [a.shape[1] for a in both])[1]
        made = self.out(adaptive_norm(h, shift, scale))[:, : image.shape[1]]
        return made.astype(jnp.float32)

    def condition(self, t: jax.Array, pooled: jax.Array, guidance: jax.Array | None) -> jax.Array:
        """The sum of the global conditions' embeddings, float32 [n, width]."""
        c = self.time(sinusoids(_TIME_SCALE * t.astype(jnp.float32)))
        if self.guidance is not None and guidance is not None:
            c = c + self.guidance(sinusoids(_TIME_SCALE * guidance.astype(jnp.float32)))
        return c + self.pooled(pooled.astype(jnp.float32))

    def _check(
        self, image: jax.Array, ids: jax.Array | np.ndarray, guidance: jax.Array | None
    ) -> None:
        if self.config.guidance != (guidance is not None):
            needs = "takes a guidance scale" if self.config.guidance else "takes no guidance scale"
            raise ValueError(f"this model {needs}, got guidance = {guidance}")
        if ids.shape != (image.shape[1], 3):
            raise ValueError(f"ids must have shape ({image.shape[1]}, 3), got {ids.shape}")


FAMILY = Family(name="flux", config=FluxConfig, build=Flux)
