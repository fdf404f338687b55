"""T5 v1.1 and Flan-T5: the encoder alone, and the encoder with its decoder; UMT5's encoder.

Raffel et al., 2020 (arXiv 1910.10683) with the changes of v1.1: gated feed-forward layers,
down(gelu(gate(x)) * up(x)), and a head of its own. Norms divide by the root mean square alone, no
layer has a bias, scores are not scaled by 1/sqrt(head), and positions enter through a table of
scores by relative position that all blocks of a stack share. In UMT5 (Chung et al., 2023,
arXiv 2304.09151), of many languages, each block has a table of its own.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flowsde.models.common.layers import Numerics, attention, parameter, scan, stack
from flowsde.models.family import Family

START = 0
"""The token that a decoder starts from: padding."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
    """Sizes of `T5` and `T5Encoder`; the defaults are the encoder of v1.1 XXL.

    Attributes:
      vocab: rows of the token table.
      width: features of a token.
      depth: blocks of the encoder.
      decoder_depth: blocks of the decoder; 0 for an encoder alone.
      heads: of attention.
      head: features of one, of any size.
      mlp: hidden features of a block.
      buckets: rows of the table of relative positions; even.
      max_distance: from which on all positions share the last bucket.
      epsilon: of the norms.
      activation: of the gated layers, "gelu_tanh" or, in InstructBLIP, "gelu", which is exact.
      tied_head: whether logits come from the token table, instead of a head of their own.
      scaled: whether features are scaled by width^-0.5 before the logits; by default if they come
        from the token table.
    """

    vocab: int = 32128
    width: int = 4096
    depth: int = 24
    decoder_depth: int = 0
    heads: int = 64
    head: int = 64
    mlp: int = 10240
    buckets: int = 32
    max_distance: int = 128
    epsilon: float = 1e-6
    activation: Literal["gelu_tanh", "gelu"] = "gelu_tanh"
    tied_head: bool = False
    scaled: bool | None = None

    shared_positions: ClassVar[bool] = True
    """Whether all blocks of a stack share one table of relative positions."""

    def __post_init__(self) -> None:
        if self.scaled is None:
            object.__setattr__(self, "scaled", self.tied_head)
        if self.activation not in ("gelu_tanh", "gelu"):
            raise ValueError(f"activation must be gelu_tanh or gelu, got {self.activation!r}")
        if self.buckets % 4 or not self.buckets // 2 < self.max_distance:
            raise ValueError(
                "buckets must be a multiple of 4 and below twice max_distance, "
                f"got {self.buckets} and {self.max_distance}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class UMT5Config(T5Config):
    """As `T5Config`, with the encoder of UMT5 XXL by default."""

    vocab: int = 256384

    shared_positions: ClassVar[bool] = False


def relative_buckets(
    queries: int, keys: int, *, causal: bool, buckets: int, max_distance: int
) -> np.ndarray:
    """Bucket [queries, keys] of each key's position relative to each query's.

    Looking both ways, either half of the buckets is for one direction; a causal stack has all of
    them for the past. Half of a direction's buckets hold one distance each, the others grow
    logarithmically up to `max_distance`.
    """
    ahead = np.arange(keys)[None, :] - np.arange(queries)[:, None]
    if causal:
        first, distance = np.zeros_like(ahead), np.maximum(-ahead, 0)
    else:
        buckets //= 2
        first, distance = np.where(ahead > 0, buckets, 0), np.abs(ahead)
    exact = buckets // 2
    ratio = np.log(np.maximum(distance, 1) / exact) / np.log(max_distance / exact)
    far = np.minimum(exact + (ratio * (buckets - exact)).astype(int), buckets - 1)
    return first + np.where(distance < exact, distance, far)


def _norm(config: T5Config, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(
        config.width,
        epsilon=config.epsilon,
        dtype=jnp.float32,
        scale_init=nnx.with_metadata(nnx.initializers.ones_init(), axes=("embed",)),
        rngs=rngs,
    )


def _positions(config: T5Config, numerics: Numerics, rngs: nnx.Rngs) -> nnx.Param:
    return parameter((config.buckets, config.heads), (None, "heads"), numerics, rngs, scale=0.1)


class T5Attention(nnx.Module):
    """Attention of unscaled scores, from a token's own stack or another's."""

    def __init__(self, config: T5Config, numerics: Numerics, rngs: nnx.Rngs):
        self.head, self.numerics = config.head, numerics
        inner = config.heads * config.head
        into, out = ("embed", "heads"), ("heads", "embed")
        self.query = numerics.linear(config.width, inner, into, bias=False, rngs=rngs)
        self.key = numerics.linear(config.width, inner, into, bias=False, rngs=rngs)
        self.value = numerics.linear(config.width, inner, into, bias=False, rngs=rngs)
        self.out = numerics.linear(inner, config.width, out, bias=False, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        context: jax.Array,
        *,
        bias: jax.Array | None = None,
        mask: jax.Array | None = None,
        causal: bool = False,
    ) -> jax.Array:
        """x: [n, queries, width]; context: [n, keys, width]; the rest as `layers.attention`."""
        q, k, v = (
            layer(y).reshape(*y.shape[:2], -1, self.head)
            for layer, y in ((self.query, x), (self.key, context), (self.value, context))
        )
        y = attention(
            q, k, v, numerics=self.numerics, bias=bias, mask=mask, causal=causal, scale=1.0
        )
        return self.out(y)


class T5Block(nnx.Module):
    """Self-attention, in a decoder also attention to the encoder, and a gated layer."""

    def __init__(self, config: T5Config, decoder: bool, numerics: Numerics, rngs: nnx.Rngs):
        self.causal, self.is_tanh = decoder, config.activation == "gelu_tanh"
        if not config.shared_positions:
            self.relative = _positions(config, numerics, rngs)
        self.norm = _norm(config, rngs)
        self.attention = T5Attention(config, numerics, rngs)
        if decoder:
            self.cross_norm = _norm(config, rngs)
            self.cross = T5Attention(config, numerics, rngs)
        self.mlp_norm = _norm(config, rngs)
        width, mlp = config.width, config.mlp
        self.gate = numerics.linear(width, mlp, ("embed", "mlp"), bias=False, rngs=rngs)
        self.up = numerics.linear(width, mlp, ("embed", "mlp"), bias=False, rngs=rngs)
        self.down = numerics.linear(mlp, width, ("mlp", "embed"), bias=False, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        bias: jax.Array,
        mask: jax.Array | None,
        context: jax.Array | None,
        context_mask: jax.Array | None,
    ) -> jax.Array:
        h = self.norm(x)
        x = x + self.attention(h, h, bias=bias, mask=mask, causal=self.causal)
        if context is not None:
            x = x + self.cross(self.cross_norm(x), context, mask=context_mask)
        h = self.mlp_norm(x)
        return x + self.down(jax.nn.gelu(self.gate(h), approximate=self.is_tanh) * self.up(h))


class T5Stack(nnx.Module):
    """The blocks of an encoder or a decoder, the positions that they may share, and a norm."""

    def __init__(
        self, config: T5Config, depth: int, decoder: bool, numerics: Numerics, rngs: nnx.Rngs
    ):
        self.config, self.decoder, self.numerics = config, decoder, numerics
        if config.shared_positions:
            self.relative = _positions(config, numerics, rngs)
        self.blocks = stack(lambda r: T5Block(config, decoder, numerics, r), depth, rngs)
        self.norm = _norm(config, rngs)

    def __call__(
        self,
        x: jax.Array,
        mask: jax.Array | None,
        context: jax.Array | None = None,
        context_mask: jax.Array | None = None,
    ) -> jax.Array:
        """x: [n, tokens, width]; context: [n, others, width]; masks: [n, tokens or others]."""
        tokens, seen, context_seen = x.shape[1], _seen(mask), _seen(context_mask)
        shared = self._bias(self.relative, tokens) if self.config.shared_positions else None

        def step(block: T5Block, x: jax.Array) -> jax.Array:
            bias = self._bias(block.relative, tokens) if shared is None else shared
            return block(x, bias, seen, context, context_seen)

        return self.norm(scan(self.blocks, step, x)).astype(self.numerics.dtype)

    def _bias(self, table: nnx.Param, tokens: int) -> jax.Array:
        c = self.config
        bucket = relative_buckets(
            tokens, tokens, causal=self.decoder, buckets=c.buckets, max_distance=c.max_distance
        )
        # cuDNN wants scores and what is added to them in one dtype.
        cudnn = self.numerics.attention == "cudnn"
        dtype = self.numerics.dtype if cudnn else jnp.float32
        return table[bucket].astype(dtype).transpose(2, 0, 1)[None]


def _seen(mask: jax.Array | None) -> jax.Array | None:
    return None if mask is None else mask.astype(bool)[:, None, None, :]


class T5Encoder(nnx.Module):
    """The encoder."""

    def __init__(self, config: T5Config, numerics: Numerics, *, rngs: nnx.Rngs):
        self.config, self.numerics = config, numerics
        self.tokens = parameter(
            (config.vocab, config.width), ("vocab", "embed"), numerics, rngs, scale=1.0
        )
        self.encoder = T5Stack(config, config.depth, False, numerics, rngs)

    def __call__(self, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Features [n, length, width] of tokens [n, length].

        Args:
          tokens: integers below `config.vocab`.
          mask: [n, length], False at tokens that none looks at; FLUX is run without, so that
            padding is looked at.
        """
        return self.encode(self.embed(tokens), mask)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Rows [n, length, width] of the token table."""
        return self.tokens[tokens].astype(self.numerics.dtype)

    def encode(self, embeddings: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """As a call, of embeddings [n, length, width]: of tokens and, say, of image patches."""
        return self.encoder(embeddings.astype(self.numerics.dtype), mask)


class T5(T5Encoder):
    """The encoder, which a call runs alone, and the decoder."""

    def __init__(self, config: T5Config, numerics: Numerics, *, rngs: nnx.Rngs):
        if config.decoder_depth < 1:
            raise ValueError(f"decoder_depth must be at least 1, got {config.decoder_depth}")
        super().__init__(config, numerics, rngs=rngs)
        self.decoder = T5Stack(config, config.decoder_depth, True, numerics, rngs)
        if not config.tied_head:
            self.head = numerics.linear(
                config.width, config.vocab, ("embed", "vocab"), bias=False, rngs=rngs
            )

    def logits(
        self, tokens: jax.Array, targets: jax.Array, mask: jax.Array | None = None
    ) -> jax.Array:
        """Logits of each target given the tokens and the targets before it.

        Args:
          tokens: [n, length].
          targets: [n, answer], to which the decoder is held ("teacher forcing").
          mask: [n, length], False at tokens that none looks at.

        Returns:
          float32 [n, answer, vocab].
        """
        return self.decode(self.encode(self.embed(tokens), mask), targets, mask)

    def decode(
        self, encoded: jax.Array, targets: jax.Array, mask: jax.Array | None = None
    ) -> jax.Array:
        """As `logits`, of what `encode` gave, with its mask."""
        start = jnp.full_like(targets[:, :1], START)
        before = jnp.concatenate([start, targets[:, :-1]], axis=1)
        x = self.decoder(self.embed(before), None, encoded, mask)
        if self.config.scaled:
            x = x * self.config.width**-0.5
        if self.config.tied_head:
            return _logits(x, self.tokens.get_value().T)
        return _logits(x, self.head.kernel.get_value())


def _logits(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)


ENCODER = Family(name="t5_encoder", config=T5Config, build=T5Encoder)
UMT5 = Family(name="umt5_encoder", config=UMT5Config, build=T5Encoder)
FAMILY = Family(name="t5", config=T5Config, build=T5)
