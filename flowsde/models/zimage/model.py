"""Z-Image: a transformer over one sequence of image and text tokens.

Z-Image Team, 2025 (arXiv 2511.22699). Image and text tokens are refined apart, by two blocks each,
then treated alike, the image first. A block normalises what enters attention and its MLP and also
what leaves them; of the time it has scales and gates, no shifts, and the text's own blocks have
neither. Positions enter by rotation of queries and keys: text tokens stand one after the other on
the first axis, the image one step behind them. Either sequence is filled up to a multiple of 32 by
a token that was learned and is looked at.

Published models are told 1 - t and answer data - noise; ours is told t, 1 at noise, and answers
noise - data.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from flowsde.models.common.layers import (
    FLOAT32,
    Numerics,
    QKNorm,
    kernel_in,
    parameter,
    rms_norm,
    scan,
    stack,
)
from flowsde.models.common.modulation import (
    SINUSOIDS,
    adaptive_norm,
    add_gated,
    in_float32,
    sinusoids,
)
from flowsde.models.common.patches import grid_ids, pack, unpack
from flowsde.models.common.rope import angles, turned_attention
from flowsde.models.common.sequence import Split
from flowsde.models.family import Family

MULTIPLE = 32
"""Of tokens, to which either sequence is filled up."""
EPSILON = 1e-5
"""Of every norm but the last."""
THETA = 256.0
"""Sets the slowest turn of positions."""
_TIME_SCALE = 1000.0
_PATCH = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZImageConfig:
    """Sizes of `ZImage`; those of Z-Image and Z-Image-Turbo by default, 6.15 billion parameters.

    Attributes:
      channels: of the latents.
      heads: of attention.
      axes: features of a head that turn with each of the three axes of a position; even numbers.
      depth: blocks of both kinds of tokens.
      refiners: blocks before them, of either kind.
      mlp: hidden features of a block.
      text: features of a text token.
      time: hidden features of the time's embedding.
      condition: features of that embedding.
    """

    channels: int = 16
    heads: int = 30
    axes: tuple[int, ...] = (32, 48, 48)
    depth: int = 30
    refiners: int = 2
    mlp: int = 10240
    text: int = 2560
    time: int = 1024
    condition: int = 256

    def __post_init__(self) -> None:
        # A list when it comes from JSON, which would not hash.
        object.__setattr__(self, "axes", tuple(self.axes))
        if len(self.axes) != 3 or any(size % 2 for size in self.axes):
            raise ValueError(f"axes must be three even numbers, got {self.axes}")

    @property
    def head(self) -> int:
        """Features of a head."""
        return sum(self.axes)

    @property
    def width(self) -> int:
        """Features of a token in the blocks."""
        return self.heads * self.head


class ZImageCond(NamedTuple):
    """What an image is asked to be.

    Attributes:
      text: states [n, length, text features] of a language model; the length is a multiple of 32.
      tokens: how many of them are text, int32 [n]; the others are not read.
    """

    text: jax.Array
    tokens: jax.Array


class ZImageAttention(nnx.Module):
    """Attention of normalised queries and keys."""

    def __init__(self, config: ZImageConfig, numerics: Numerics, rngs: nnx.Rngs):
        self.heads, self.numerics, width = config.heads, numerics, config.width
        self.qkv = numerics.linear(width, 3 * width, ("embed", "heads"), bias=False, rngs=rngs)
        self.norm = QKNorm(config.head, numerics, rngs, EPSILON)
        self.out = numerics.linear(width, width, ("heads", "embed"), bias=False, rngs=rngs)

    def __call__(self, x: jax.Array, turn: jax.Array, seen: jax.Array | None) -> jax.Array:
        """x: [n, tokens, width]; turn: [n, tokens, d / 2]; seen: bool [n, 1, 1, tokens]."""
        # A product for each, for the reason of `layers.outputs`.
        kernels = jnp.split(kernel_in(self.qkv, x.dtype), 3, axis=1)
        q, k, v = ((x @ kernel).reshape(*x.shape[:2], self.heads, -1) for kernel in kernels)
        attended = turned_attention(*self.norm(q, k), v, turn, numerics=self.numerics, mask=seen)
        return self.out(attended)


class ZImageBlock(nnx.Module):
    """Attention and a gated MLP, each between two norms.

    Args:
      modulated: whether the time scales and gates them.
    """

    def __init__(self, config: ZImageConfig, modulated: bool, numerics: Numerics, rngs: nnx.Rngs):
        width, mlp = config.width, config.mlp
        self.attention = ZImageAttention(config, numerics, rngs)
        self.attention_in, self.attention_out, self.mlp_in, self.mlp_out = (
            rms_norm(width, ("embed",), numerics, rngs, EPSILON) for _ in range(4)
        )
        self.gate = numerics.linear(width, mlp, ("embed", "mlp"), bias=False, rngs=rngs)
        self.up = numerics.linear(width, mlp, ("embed", "mlp"), bias=False, rngs=rngs)
        self.down = numerics.linear(mlp, width, ("mlp", "embed"), bias=False, rngs=rngs)
        vectors = (config.condition, 4 * width, (None, "mlp"))
        self.modulation = in_float32(numerics).linear(*vectors, rngs=rngs) if modulated else None

    def __call__(
        self,
        x: jax.Array,
        turn: jax.Array,
        seen: jax.Array | None = None,
        c: jax.Array | None = None,
    ) -> jax.Array:
        """x: [n, tokens, width]; turn, seen: as of the attention; c: float32 [n, condition]."""
        scale, gate, mlp_scale, mlp_gate = self._modulate(c)
        h = (self.attention_in(x) * scale).astype(x.dtype)
        x = add_gated(x, gate, self.attention_out(self.attention(h, turn, seen)))
        h = (self.mlp_in(x) * mlp_scale).astype(x.dtype)
        hidden = jax.nn.silu(self.gate(h)) * self.up(h)
        return add_gated(x, mlp_gate, self.mlp_out(self.down(hidden)))

    def _modulate(self, c: jax.Array | None) -> list[jax.Array]:
        """Scales and gates of attention, then of the MLP, [n or 1, 1, width or 1]."""
        if self.modulation is None:
            return [jnp.ones((1, 1, 1), jnp.float32)] * 4
        assert c is not None
        scale, gate, *mlp = jnp.split(self.modulation(c)[:, None, :], 4, axis=-1)
        return [1.0 + scale, jnp.tanh(gate), 1.0 + mlp[0], jnp.tanh(mlp[1])]


class ZImage(nnx.Module):
    """Velocity of a Z-Image, `model(x, t, cond)`."""

    def __init__(self, config: ZImageConfig, numerics: Numerics = FLOAT32, *, rngs: nnx.Rngs):
        self.config, self.numerics = config, numerics
        width, values, exact = config.width, _PATCH**2 * config.channels, in_float32(numerics)
        self.image_in = numerics.linear(values, width, (None, "embed"), rngs=rngs)
        self.text_norm = rms_norm(config.text, (None,), numerics, rngs, EPSILON)
        self.text_in = numerics.linear(config.text, width, (None, "embed"), rngs=rngs)
        self.image_pad, self.text_pad = (
            parameter((1, width), (None, "embed"), numerics, rngs) for _ in range(2)
        )
        self.time_in = exact.linear(SINUSOIDS, config.time, (None, "mlp"), rngs=rngs)
        self.time_out = exact.linear(config.time, config.condition, ("mlp", None), rngs=rngs)

        def blocks(depth: int, modulated: bool) -> ZImageBlock:
            return stack(lambda r: ZImageBlock(config, modulated, numerics, r), depth, rngs)

        self.image_blocks = blocks(config.refiners, True)
        self.text_blocks = blocks(config.refiners, False)
        self.blocks = blocks(config.depth, True)
        self.modulation = exact.linear(config.condition, width, (None, "embed"), rngs=rngs)
        self.out = numerics.linear(width, values, ("embed", None), rngs=rngs)

    def __call__(self, x: jax.Array, t: jax.Array, cond: ZImageCond) -> jax.Array:
        """Velocity, noise - data, float32 and shaped as x.

        Args:
          x: latents [n, H, W, channels], H and W even.
          t: times [n] in [0, 1].
          cond: the text.

        Raises:
          ValueError: when x or cond do not fit the configuration.
        """
        self._check(x, cond)
        _, height, width, _ = x.shape
        c = self.condition(t)
        used = filled(cond.tokens)
        seen = jnp.arange(cond.text.shape[1])[None] < used[:, None]
        text_turn, turn = self.turns(height, width, cond.text.shape[1], used)

        text = self.words(cond)
        image = self.patches(x)
        split, sizes = Split.of(self.numerics.rules), (image.shape[1], text.shape[1])
        every = jnp.concatenate([jnp.ones(image.shape[:2], bool), seen], axis=1)
        # Of either kind: where its tokens are, and which are seen.
        image_at = split.fill(turn[:, : sizes[0]]), split.seen(sizes[0])
        text_at = split.fill(text_turn), split.fill(seen)[:, None, None]
        both_at = split.arrange(turn, sizes), split.arrange(every, sizes)[:, None, None]

        text, image = (split.keep(split.fill(a)) for a in (text, image))
        text = scan(self.text_blocks, lambda block, h: split.keep(block(h, *text_at)), text)
        image = scan(self.image_blocks, lambda block, h: split.keep(block(h, *image_at, c)), image)
        h = split.keep(split.join([image, text]))
        h = scan(self.blocks, lambda block, h: split.keep(block(h, *both_at, c)), h)

        scale = self.modulation(jax.nn.silu(c))[:, None, :]
        h = split.part(h, [image.shape[1], text.shape[1]])[0]
        h = adaptive_norm(h, jnp.zeros_like(scale), scale)
        tokens = self.out(h)[:, : height * width // _PATCH**2].astype(jnp.float32)
        return -unpack(tokens, height, width, _PATCH)

    def condition(self, t: jax.Array) -> jax.Array:
        """The embedding of times [n], float32 [n, condition]."""
        features = sinusoids(_TIME_SCALE * (1.0 - t.astype(jnp.float32)))
        return self.time_out(jax.nn.silu(self.time_in(features)))

    def patches(self, x: jax.Array) -> jax.Array:
        """Tokens [n, tokens, width] of latents, filled up."""
        h = self.image_in(pack(x, _PATCH).astype(self.numerics.dtype))
        pad = self.image_pad.get_value().astype(h.dtype)[None]
        more = -h.shape[1] % MULTIPLE
        return jnp.concatenate([h, jnp.broadcast_to(pad, (len(h), more, h.shape[2]))], axis=1)

    def words(self, cond: ZImageCond) -> jax.Array:
        """Tokens [n, length, width] of a text, all beyond its end those that were learned."""
        dtype = self.numerics.dtype
        h = self.text_in(self.text_norm(cond.text).astype(dtype))
        is_text = jnp.arange(h.shape[1])[None] < cond.tokens[:, None]
        return jnp.where(is_text[:, :, None], h, self.text_pad.get_value().astype(dtype)[None])

    def turns(
        self, height: int, width: int, length: int, used: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Angles [n, tokens, d / 2] of the text's tokens, and of the image's and the text's.

        Args:
          height: of the latents.
          width: of the latents.
          length: of the text.
          used: its tokens, those learned included, int32 [n].
        """
        ids = jnp.asarray(grid_ids(height, width, _PATCH))
        behind = jnp.stack([used + 1, 0 * used, 0 * used], axis=-1)
        image = ids[None] + behind[:, None]
        # Tokens that fill up the image stand at 0.
        image = jnp.pad(image, ((0, 0), (0, -len(ids) % MULTIPLE), (0, 0)))
        places = 1 + jnp.arange(length, dtype=jnp.int32)
        text = jnp.stack([places, 0 * places, 0 * places], axis=-1)
        text = jnp.broadcast_to(text[None], (len(used), *text.shape))

        def turned(ids: jax.Array) -> jax.Array:
            turn = angles(ids.reshape(-1, 3), self.config.axes, THETA)
            return turn.reshape(*ids.shape[:2], -1)

        return turned(text), turned(jnp.concatenate([image, text], axis=1))

    def _check(self, x: jax.Array, cond: ZImageCond) -> None:
        c = self.config
        if x.ndim != 4 or x.shape[-1] != c.channels:
            raise ValueError(f"x must have shape (n, H, W, {c.channels}), got {x.shape}")
        text = cond.text
        if text.ndim != 3 or text.shape[-1] != c.text or text.shape[1] % MULTIPLE:
            raise ValueError(
                f"text must have shape (n, tokens, {c.text}), of a multiple of {MULTIPLE} tokens, "
                f"got {text.shape}"
            )


def filled(tokens: jax.Array) -> jax.Array:
    """The multiple of 32 to which so many tokens are filled up."""
    return -(-tokens // MULTIPLE) * MULTIPLE


FAMILY = Family(name="zimage", config=ZImageConfig, build=ZImage)
