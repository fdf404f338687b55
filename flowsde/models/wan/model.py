"""Wan 2.1, text to video: a transformer over the tokens of all frames (Wan Team, 2025, 2503.20314).

A token is a patch of 2 x 2 latents of one frame; positions enter by rotation of queries and keys,
along time, rows and columns. Each block has attention of all tokens to all, attention to the text,
and an MLP. Time alone is a global condition: its six vectors, made once, are added to a table of
each block's own. The text has one length, 512 tokens, of which those beyond a prompt's end are
zeros, and are looked at. Time and output are ours already: t = 1 is noise, the output noise - data.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flowsde.models.common.layers import (
    FLOAT32,
    Numerics,
    QKNorm,
    attention,
    parameter,
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
from flowsde.models.common.rope import angles, rotate
from flowsde.models.common.sequence import Split
from flowsde.models.family import Family

_TIME_SCALE = 1000.0
_PATCH = 2
EPSILON = 1e-6
"""Of every norm."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanConfig:
    """Sizes of `Wan`; those of T2V-1.3B by default.

    Attributes:
      channels: of the latents.
      heads: of attention.
      head: features of one, an even number from 6.
      depth: blocks.
      mlp: hidden features of a block.
      text: features of a text token.
    """

    channels: int = 16
    heads: int = 12
    head: int = 128
    depth: int = 30
    mlp: int = 8960
    text: int = 4096

    def __post_init__(self) -> None:
        if self.head < 6 or self.head % 2:
            raise ValueError(f"head must be an even number from 6, got {self.head}")

    @classmethod
    def t2v_1_3b(cls) -> "WanConfig":
        """Wan2.1-T2V-1.3B: 1.42 billion parameters."""
        return cls()

    @classmethod
    def t2v_14b(cls) -> "WanConfig":
        """Wan2.1-T2V-14B: 14.29 billion parameters."""
        return cls(heads=40, depth=40, mlp=13824)

    @property
    def width(self) -> int:
        """Features of a token in the blocks."""
        return self.heads * self.head

    @property
    def axes(self) -> tuple[int, int, int]:
        """Features of a head that turn with time, row and column: 44, 42 and 42 of 128."""
        side = 2 * (self.head // 6)
        return self.head - 2 * side, side, side


class WanAttention(nnx.Module):
    """Attention whose queries and keys are normalised over all heads at once."""

    def __init__(self, config: WanConfig, numerics: Numerics, rngs: nnx.Rngs):
        width, self.heads, self.numerics = config.width, config.heads, numerics
        self.query, self.key, self.value = (
            numerics.linear(width, width, ("embed", "heads"), rngs=rngs) for _ in range(3)
        )
        self.norm = QKNorm(width, numerics, rngs)
        self.out = numerics.linear(width, width, ("heads", "embed"), rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        context: jax.Array,
        turn: jax.Array | None = None,
        seen: jax.Array | None = None,
    ) -> jax.Array:
        """x: [n, tokens, width]; context: [n, others, width]; turn: of both, [tokens, d / 2].

        With turn, tokens may be split over devices, and turn and seen are those of `Split`.
        """
        qk = self.norm(self.query(x), self.key(context))
        q, k, v = (a.reshape(*a.shape[:2], self.heads, -1) for a in (*qk, self.value(context)))
        if turn is not None:
            q, k = (rotate(a, turn, dtype=v.dtype) for a in (q, k))
        # In float32 until here.
        q, k = q.astype(v.dtype), k.astype(v.dtype)
        split = turn is not None
        return self.out(attention(q, k, v, numerics=self.numerics, mask=seen, split=split))


class WanBlock(nnx.Module):
    """Attention to all tokens, to the text, and an MLP."""

    def __init__(self, config: WanConfig, numerics: Numerics, rngs: nnx.Rngs):
        width = config.width
        self.table = parameter((1, 6, width), (None, None, "embed"), numerics, rngs)
        self.attention = WanAttention(config, numerics, rngs)
        self.text_norm = nnx.LayerNorm(
            width,
            epsilon=EPSILON,
            dtype=jnp.float32,
            param_dtype=numerics.param_dtype,
            use_fast_variance=False,
            scale_init=nnx.with_metadata(nnx.initializers.ones_init(), axes=("embed",)),
            bias_init=nnx.with_metadata(nnx.initializers.zeros_init(), axes=("embed",)),
            rngs=rngs,
        )
        self.text_attention = WanAttention(config, numerics, rngs)
        self.up = numerics.linear(width, config.mlp, ("embed", "mlp"), rngs=rngs)
        self.down = numerics.linear(config.mlp, width, ("mlp", "embed"), rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        text: jax.Array,
        c: jax.Array,
        turn: jax.Array,
        seen: jax.Array | None = None,
    ) -> jax.Array:
        """x: [n, tokens, width]; text: [n, text tokens, width]; c: float32 [n, 6, width]."""
        m = jnp.split(c + self.table.astype(jnp.float32), 6, axis=1)
        h = adaptive_norm(x, m[0], m[1])
        x = add_gated(x, m[2], self.attention(h, h, turn, seen))
        x = x + self.text_attention(self.text_norm(x).astype(x.dtype), text)
        hidden = jax.nn.gelu(self.up(adaptive_norm(x, m[3], m[4])), approximate=True)
        return add_gated(x, m[5], self.down(hidden))


class Wan(nnx.Module):
    """Velocity of a Wan, `model(x, t, text)`."""

    def __init__(self, config: WanConfig, numerics: Numerics = FLOAT32, *, rngs: nnx.Rngs):
        self.config, self.numerics = config, numerics
        width, values = config.width, _PATCH**2 * config.channels
        self.latents_in = numerics.linear(values, width, (None, "embed"), rngs=rngs)
        self.text_in = numerics.linear(config.text, width, (None, "embed"), rngs=rngs)
        self.text_out = numerics.linear(width, width, (None, "embed"), rngs=rngs)
        self.time = Embedding(SINUSOIDS, width, numerics, rngs)
        self.modulation = Modulation(width, 6, numerics, rngs)
        self.blocks = stack(lambda r: WanBlock(config, numerics, r), config.depth, rngs)
        self.table = parameter((1, 2, width), (None, None, "embed"), numerics, rngs)
        self.out = numerics.linear(width, values, ("embed", None), rngs=rngs)

    def __call__(self, x: jax.Array, t: jax.Array, text: jax.Array) -> jax.Array:
        """Velocity, noise - data, float32 and shaped as x.

        Args:
          x: latents [n, frames, H, W, channels], H and W even.
          t: times [n] in [0, 1].
          text: states [n, text tokens, text features].

        Raises:
          ValueError: when x or text do not fit the configuration.
        """
        self._check(x, text)
        n, frames, height, width, _ = x.shape
        dtype = self.numerics.dtype
        split, ids = Split.of(self.numerics.rules), video_ids(frames, height, width)
        turn = split.fill(angles(jnp.asarray(ids), self.config.axes)[None])[0]
        seen = split.seen(len(ids))
        time = self.time(sinusoids(_TIME_SCALE * t.astype(jnp.float32)))
        c = jnp.concatenate(self.modulation(jax.nn.silu(time)), axis=1)
        text = self.words(text)

        # Values of a patch in the order of the published kernels: those of the convolution that
        # reads them have the channel first, those that are written have it last.
        patches = pack(x.reshape(-1, *x.shape[2:]), _PATCH, "channels_first")
        h = self.latents_in(patches.reshape(n, -1, patches.shape[-1]).astype(dtype))
        h = split.keep(split.fill(h))
        h = scan(self.blocks, lambda block, h: split.keep(block(h, text, c, turn, seen)), h)

        ends = time[:, None, :] + self.table.astype(jnp.float32)
        tokens = self.out(adaptive_norm(h, *jnp.split(ends, 2, axis=1))).astype(jnp.float32)
        tokens = tokens[:, : len(ids)].reshape(n * frames, -1, tokens.shape[-1])
        return unpack(tokens, height, width, _PATCH, "channels_last").reshape(x.shape)

    def words(self, text: jax.Array) -> jax.Array:
        """Text states as the blocks see them, [n, text tokens, width]."""
        hidden = jax.nn.gelu(self.text_in(text.astype(self.numerics.dtype)), approximate=True)
        return self.text_out(hidden)

    def _check(self, x: jax.Array, text: jax.Array) -> None:
        c = self.config
        if x.ndim != 5 or x.shape[-1] != c.channels:
            raise ValueError(f"x must have shape (n, frames, H, W, {c.channels}), got {x.shape}")
        if text.ndim != 3 or text.shape[-1] != c.text:
            raise ValueError(f"text must have shape (n, tokens, {c.text}), got {text.shape}")


def video_ids(frames: int, height: int, width: int) -> np.ndarray:
    """Positions int32 [tokens, 3] of latents' tokens: (frame, row, column), in patches."""
    one = grid_ids(height, width, _PATCH)
    ids = np.tile(one, (frames, 1))
    ids[:, 0] = np.repeat(np.arange(frames), len(one))
    return ids


FAMILY = Family(name="wan", config=WanConfig, build=Wan)
