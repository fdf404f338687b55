"""The embedded flow model: a small text-conditioned transformer on 32x32 pixels.

A 3x3-convolution stem and head (which keep edges sharp and cost little) surround
a transformer over 16 patches of 8x8 pixels, with the caption's words as extra
tokens in its context. Time enters by adaptive layer norm (Peebles & Xie, 2023,
arXiv 2212.09748), queries and keys are RMS-normalised, and the blocks are one
stacked pytree looped by `jax.lax.scan`. It predicts the velocity of the linear
interpolant, noise - data, from t = 0 (data) to t = 1 (noise).
"""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
from flax import nnx

from flowsde.models.common.layers import FLOAT32, parameter, scan, shapes_of, stack
from flowsde.shapes.captions import MAX_TOKENS, VOCABULARY
from flowsde.shapes.data import SIZE

_zeros = nnx.initializers.zeros_init()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of `ShapesModel`.

    Attributes:
      width: features of a token.
      depth: transformer blocks.
      heads: attention heads; divides `width`.
      patch: pixels a patch side; divides 32.
      stem: channels of the convolutions at full resolution.
    """

    width: int = 128
    depth: int = 6
    heads: int = 4
    patch: int = 8
    stem: int = 16


def time_features(t: jax.Array, width: int) -> jax.Array:
    """Sinusoids [n, width] of times [n] in [0, 1], with periods from 2 pi / 1000 to 20 pi."""
    frequencies = jnp.exp(-jnp.log(1e4) * jnp.arange(width // 2, dtype=jnp.float32) / (width // 2))
    angles = 1000.0 * t.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class Block(nnx.Module):
    """Pre-norm attention and squared-ReLU MLP, shifted, scaled and gated by the time embedding."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        width, self.heads = config.width, config.heads
        self.norm1 = nnx.LayerNorm(width, use_bias=False, use_scale=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, use_bias=False, use_scale=False, rngs=rngs)
        self.q_norm = nnx.RMSNorm(width // config.heads, rngs=rngs)
        self.k_norm = nnx.RMSNorm(width // config.heads, rngs=rngs)
        # Devices share all heads of the three, not the same ones of each: what they lack of a head
        # they exchange. A product for each of the three would round otherwise, and takes longer.
        self.qkv = FLOAT32.linear(width, 3 * width, ("embed", "heads"), bias=False, rngs=rngs)
        self.out = FLOAT32.linear(width, width, ("heads", "embed"), bias=False, rngs=rngs)
        self.up = FLOAT32.linear(width, 4 * width, ("embed", "mlp"), rngs=rngs)
        self.down = FLOAT32.linear(4 * width, width, ("mlp", "embed"), rngs=rngs)
        self.modulation = FLOAT32.linear(
            width, 6 * width, ("embed", "mlp"), kernel_init=_zeros, rngs=rngs
        )

    def attend(self, x: jax.Array) -> jax.Array:
        n, tokens, width = x.shape
        qkv = self.qkv(x.reshape(n * tokens, width)).reshape(n, tokens, 3 * self.heads, -1)
        q, k, v = jnp.split(qkv, 3, axis=2)
        y = jax.nn.dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.out(y.reshape(n * tokens, width)).reshape(x.shape)

    def mix(self, x: jax.Array) -> jax.Array:
        # Flat matrices: XLA's CPU backend differentiates them about 1.5 times faster.
        hidden = jnp.square(jax.nn.relu(self.up(x.reshape(-1, x.shape[-1]))))
        return self.down(hidden).reshape(x.shape)

    def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
        """x: [n, tokens, width]; time: [n, width], already activated."""
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(
            self.modulation(time)[:, None, :], 6, axis=-1
        )
        x = x + gate1 * self.attend(self.norm1(x) * (1.0 + scale1) + shift1)
        return x + gate2 * self.mix(self.norm2(x) * (1.0 + scale2) + shift2)


class ShapesModel(nnx.Module):
    """Velocity of the shapes flow, `model(x, t, cond)`."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        if config.width % config.heads or SIZE % config.patch:
            raise ValueError(f"heads must divide width and patch must divide {SIZE}, got {config}")
        self.config = config
        width, stem, patch = config.width, config.stem, config.patch
        side = SIZE // patch
        # Of `nnx.Embed` without names.
        table = nnx.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)
        self.stem = nnx.Conv(3, stem, (3, 3), rngs=rngs)
        self.patchify = FLOAT32.linear(patch * patch * stem, width, (None, "embed"), rngs=rngs)
        self.positions = parameter((side * side, width), (None, "embed"), FLOAT32, rngs)
        self.words = nnx.Embed(
            len(VOCABULARY),
            width,
            embedding_init=nnx.with_metadata(table, axes=("vocab", "embed")),
            rngs=rngs,
        )
        self.word_positions = parameter((MAX_TOKENS, width), (None, "embed"), FLOAT32, rngs)
        self.time1 = FLOAT32.linear(width, width, ("embed", "mlp"), rngs=rngs)
        self.time2 = FLOAT32.linear(width, width, ("mlp", "embed"), rngs=rngs)
        self.blocks = stack(lambda one: Block(config, one), config.depth, rngs)
        self.norm = nnx.LayerNorm(width, use_bias=False, use_scale=False, rngs=rngs)
        self.modulation = FLOAT32.linear(
            width, 2 * width, ("embed", "mlp"), kernel_init=_zeros, rngs=rngs
        )
        self.unpatchify = FLOAT32.linear(width, patch * patch * stem, ("embed", None), rngs=rngs)
        self.head = nnx.Conv(2 * stem, 3, (3, 3), kernel_init=_zeros, rngs=rngs)
        self.skip = FLOAT32.linear(width, 3, ("embed", None), kernel_init=_zeros, rngs=rngs)

    def __call__(self, x: jax.Array, t: jax.Array, cond: jax.Array) -> jax.Array:
        """Velocity [n, 32, 32, 3] at x [n, 32, 32, 3], t [n] and caption tokens [n, MAX_TOKENS].

        All-zero tokens ask for the unconditional velocity (for classifier-free guidance).
        """
        n, patch, side = x.shape[0], self.config.patch, SIZE // self.config.patch
        pixels = self.stem(x)
        patches = pixels.reshape(n, side, patch, side, patch, -1).transpose(0, 1, 3, 2, 4, 5)
        image = self.patchify(patches.reshape(n, side * side, -1)) + self.positions[None]
        text = self.words(cond) + self.word_positions[None]
        h = jnp.concatenate([image, text], axis=1)

        time = self.time2(jax.nn.silu(self.time1(time_features(t, self.config.width))))
        time = jax.nn.silu(time)
        h = scan(self.blocks, lambda block, h: block(h, time), h)

        shift, scale = jnp.split(self.modulation(time)[:, None, :], 2, axis=-1)
        h = self.unpatchify(self.norm(h[:, : side * side]) * (1.0 + scale) + shift)
        h = h.reshape(n, side, side, patch, patch, -1).transpose(0, 1, 3, 2, 4, 5)
        h = h.reshape(n, SIZE, SIZE, -1)
        h = self.head(jax.nn.silu(jnp.concatenate([h, pixels], axis=-1)))
        # A token has fewer features than its patch has values: noise gets past it by this.
        return h + self.skip(time)[:, None, None, :] * x


@cache
def split(config: ModelConfig) -> tuple[nnx.GraphDef[ShapesModel], nnx.State]:
    """What `nnx.merge` needs besides the parameters; and these, shapes with named axes."""
    return nnx.split(shapes_of(lambda: ShapesModel(config, rngs=nnx.Rngs(0))))
