"""InstructBLIP's Q-Former: learnt queries that look at an image with a question in mind.

Dai et al., 2023 (arXiv 2305.06500), on BLIP-2 (Li et al., 2023, arXiv 2301.12597). It is a BERT
without token types, of post-norm blocks. Queries and the question's tokens x = [q, t] see each
other; the queries of every second block, the first one included, also see the image,

    x = norm(x + attention(x))
    q = norm(q + attention(q, image))
    q = norm(q + down(gelu(up(q)))),    t = norm(t + down(gelu(up(t)))),

with layers of their own in the last line.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from flowsde.models.blip.model import BLIPAttention, BLIPTextConfig
from flowsde.models.clip.model import layer_norm
from flowsde.models.common.layers import Numerics, parameter, scan, stack


@dataclasses.dataclass(frozen=True, kw_only=True)
class QFormerConfig(BLIPTextConfig):
    """Sizes of `QFormer`, as of `BLIPTextConfig`; the defaults are InstructBLIP's.

    Attributes:
      queries: of the image.
    """

    vocab: int = 30523
    image: int = 1408
    queries: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth % 2:
            raise ValueError(f"depth must be even, got {self.depth}")


class QFormerMLP(nnx.Module):
    """The feed-forward layers of the queries or of the question."""

    def __init__(self, config: QFormerConfig, numerics: Numerics, rngs: nnx.Rngs):
        width, self.numerics = config.width, numerics
        self.up = numerics.linear(width, config.mlp, ("embed", "mlp"), rngs=rngs)
        self.down = numerics.linear(config.mlp, width, ("mlp", "embed"), rngs=rngs)
        self.norm = layer_norm(width, config.epsilon, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = jax.nn.gelu(self.up(x), approximate=False)
        return self.norm(x + self.down(hidden)).astype(self.numerics.dtype)


class QFormerBlock(nnx.Module):
    """One block, whose queries look at the image or do not."""

    def __init__(self, config: QFormerConfig, looks: bool, numerics: Numerics, rngs: nnx.Rngs):
        width, self.numerics = config.width, numerics
        self.queries, self.looks = config.queries, looks
        self.attention = BLIPAttention(config, width, numerics, rngs)
        self.norm = layer_norm(width, config.epsilon, rngs)
        if looks:
            self.image_attention = BLIPAttention(config, config.image, numerics, rngs)
            self.image_norm = layer_norm(width, config.epsilon, rngs)
        self.query_mlp = QFormerMLP(config, numerics, rngs)
        self.text_mlp = QFormerMLP(config, numerics, rngs)

    def __call__(self, x: jax.Array, image: jax.Array, mask: jax.Array) -> jax.Array:
        """x: [n, queries + tokens, width]; image: [n, patches, features]; mask: [n, 1, 1, both]."""
        dtype = self.numerics.dtype
        x = self.norm(x + self.attention(x, x, mask)).astype(dtype)
        queries, text = x[:, : self.queries], x[:, self.queries :]
        if self.looks:
            seen = self.image_attention(queries, image, None)
            queries = self.image_norm(queries + seen).astype(dtype)
        return jnp.concatenate([self.query_mlp(queries), self.text_mlp(text)], axis=1)


class QFormerPair(nnx.Module):
    """A block that looks at the image and one that does not."""

    def __init__(self, config: QFormerConfig, numerics: Numerics, rngs: nnx.Rngs):
        self.looking = QFormerBlock(config, True, numerics, rngs)
        self.other = QFormerBlock(config, False, numerics, rngs)

    def __call__(self, x: jax.Array, image: jax.Array, mask: jax.Array) -> jax.Array:
        return self.other(self.looking(x, image, mask), image, mask)


class QFormer(nnx.Module):
    """The queries, the question's tokens and the blocks."""

    def __init__(self, config: QFormerConfig, numerics: Numerics, *, rngs: nnx.Rngs):
        self.config, self.numerics = config, numerics
        width = config.width
        self.queries = parameter((config.queries, width), (None, "embed"), numerics, rngs)
        self.tokens = parameter((config.vocab, width), ("vocab", "embed"), numerics, rngs)
        self.positions = parameter((config.positions, width), (None, "embed"), numerics, rngs)
        self.norm = layer_norm(width, config.epsilon, rngs)
        self.blocks = stack(lambda r: QFormerPair(config, numerics, r), config.depth // 2, rngs)

    def __call__(self, image: jax.Array, tokens: jax.Array) -> jax.Array:
        """What the queries see, [n, queries, width].

        Args:
          image: features of its patches, [n, patches, features].
          tokens: of the question, [n, length], padded by `config.pad`.

        Raises:
          ValueError: more tokens than the model has positions.
        """
        (n, length), c, dtype = tokens.shape, self.config, self.numerics.dtype
        if length > c.positions:
            raise ValueError(f"tokens must have at most {c.positions} places, got {length}")
        text = self.tokens[tokens].astype(dtype) + self.positions[None, :length].astype(dtype)
        queries = jnp.broadcast_to(self.queries[None].astype(dtype), (n, c.queries, c.width))
        x = self.norm(jnp.concatenate([queries, text], axis=1)).astype(dtype)
        seen = jnp.concatenate([jnp.ones((n, c.queries), bool), tokens != c.pad], axis=1)
        mask = seen[:, None, None, :]
        return scan(self.blocks, lambda pair, x: pair(x, image, mask), x)[:, : c.queries]
