"""ImageReward: BLIP's image tower, its text encoder that looks at the image, and a linear head.

Xu et al., 2023 (arXiv 2304.05977), on BLIP (Li et al., 2022, arXiv 2201.12086). The image tower is
a ViT of pre-norm blocks, as CLIP's, with a norm at its end alone. The text encoder is a BERT
without token types, of post-norm blocks that see all of the text and then all of the image,

    x = norm(x + attention(x))
    x = norm(x + attention(x, image))
    x = norm(x + down(gelu(up(x)))).

The head reads its first token; between the head's layers there is no activation.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from flowsde.models.aesthetic.model import AestheticConfig, AestheticHead
from flowsde.models.clip.model import (
    CLIPBlock,
    CLIPVisionConfig,
    layer_norm,
    patch_layer,
    tokens_of,
)
from flowsde.models.common.layers import Numerics, attention, parameter, scan, stack
from flowsde.models.family import Family

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the head's values over ImageReward's own data, which its rewards are standardised by."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BLIPTextConfig:
    """Sizes of `BLIPText`; the defaults are BERT-base's with BLIP's two more tokens.

    Attributes:
      vocab: rows of the token table.
      width: features of a token.
      depth: blocks.
      heads: of attention; divides `width`.
      mlp: hidden features of a block.
      positions: tokens of the longest text.
      image: features of the image's tokens.
      epsilon: of the norms.
      pad: the token of padding, which no other looks at.
    """

    vocab: int = 30524
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    positions: int = 512
    image: int = 1024
    epsilon: float = 1e-12
    pad: int = 0

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"heads must divide width, got {self.heads} and {self.width}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageRewardConfig:
    """Sizes of `ImageReward`; the defaults are the published model's.

    Attributes:
      vision: of the image tower, which has no projection.
      text: of the text encoder.
      head: features of the head, from the text encoder's to the last layer's input.
    """

    vision: CLIPVisionConfig = CLIPVisionConfig(patch=16, activation="gelu", epsilon=1e-6)
    text: BLIPTextConfig = BLIPTextConfig()
    head: AestheticConfig = AestheticConfig()

    def __post_init__(self) -> None:
        wanted = (self.vision.width, self.text.width)
        if (self.text.image, self.head.widths[0]) != wanted:
            raise ValueError(
                f"the text encoder takes images of {self.text.image} features and the head texts "
                f"of {self.head.widths[0]}, got towers of {wanted[0]} and {wanted[1]}"
            )


class BLIPVision(nnx.Module):
    """The image tower."""

    def __init__(self, config: CLIPVisionConfig, numerics: Numerics, *, rngs: nnx.Rngs):
        self.config, self.numerics = config, numerics
        width, patches = config.width, (config.image // config.patch) ** 2
        self.patches = patch_layer(config, numerics, rngs, bias=True)
        self.class_token = parameter((width,), ("embed",), numerics, rngs)
        self.positions = parameter((patches + 1, width), (None, "embed"), numerics, rngs)
        self.blocks = stack(lambda r: CLIPBlock(config, numerics, r), config.depth, rngs)
        self.norm = layer_norm(width, config.epsilon, rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Features [n, 1 + patches, width] of standardised images [n, image, image, channels].

        Raises:
          ValueError: images of another size.
        """
        x = scan(self.blocks, lambda block, x: block(x, None), tokens_of(self, images))
        return self.norm(x).astype(self.numerics.dtype)


class BLIPAttention(nnx.Module):
    """Attention from the text to itself or to the image."""

    def __init__(self, config: BLIPTextConfig, of: int, numerics: Numerics, rngs: nnx.Rngs):
        width = config.width
        self.heads, self.numerics = config.heads, numerics
        self.query = numerics.linear(width, width, ("embed", "heads"), rngs=rngs)
        self.key = numerics.linear(of, width, ("embed", "heads"), rngs=rngs)
        self.value = numerics.linear(of, width, ("embed", "heads"), rngs=rngs)
        self.out = numerics.linear(width, width, ("heads", "embed"), rngs=rngs)

    def __call__(self, x: jax.Array, seen: jax.Array, mask: jax.Array | None) -> jax.Array:
        """x: [n, tokens, width]; seen: [n, keys, features]; mask: [n, 1, 1, keys]."""
        q, k, v = (
            layer(of).reshape(*of.shape[:2], self.heads, -1)
            for layer, of in ((self.query, x), (self.key, seen), (self.value, seen))
        )
        return self.out(attention(q, k, v, numerics=self.numerics, mask=mask))


class BLIPTextBlock(nnx.Module):
    """One block of the text encoder."""

    def __init__(self, config: BLIPTextConfig, numerics: Numerics, rngs: nnx.Rngs):
        width, self.numerics = config.width, numerics
        self.attention = BLIPAttention(config, width, numerics, rngs)
        self.norm = layer_norm(width, config.epsilon, rngs)
        self.image_attention = BLIPAttention(config, config.image, numerics, rngs)
        self.image_norm = layer_norm(width, config.epsilon, rngs)
        self.up = numerics.linear(width, config.mlp, ("embed", "mlp"), rngs=rngs)
        self.down = numerics.linear(config.mlp, width, ("mlp", "embed"), rngs=rngs)
        self.mlp_norm = layer_norm(width, config.epsilon, rngs)

    def __call__(self, x: jax.Array, image: jax.Array, mask: jax.Array) -> jax.Array:
        """x: [n, tokens, width]; image: [n, patches, features]; mask: [n, 1, 1, tokens]."""
        dtype = self.numerics.dtype
        x = self.norm(x + self.attention(x, x, mask)).astype(dtype)
        x = self.image_norm(x + self.image_attention(x, image, None)).astype(dtype)
        hidden = jax.nn.gelu(self.up(x), approximate=False)
        return self.mlp_norm(x + self.down(hidden)).astype(dtype)


class BLIPText(nnx.Module):
    """The text encoder."""

    def __init__(self, config: BLIPTextConfig, numerics: Numerics, *, rngs: nnx.Rngs):
        self.config, self.numerics = config, numerics
        width = config.width
        self.tokens = parameter((config.vocab, width), ("vocab", "embed"), numerics, rngs)
        self.positions = parameter((config.positions, width), (None, "embed"), numerics, rngs)
        self.norm = layer_norm(width, config.epsilon, rngs)
        self.blocks = stack(lambda r: BLIPTextBlock(config, numerics, r), config.depth, rngs)

    def __call__(self, tokens: jax.Array, image: jax.Array) -> jax.Array:
        """Features [n, length, width] of tokens [n, length] and of image [n, patches, features].

        Raises:
          ValueError: more tokens than the model has positions.
        """
        length, dtype = tokens.shape[1], self.numerics.dtype
        if length > self.config.positions:
            raise ValueError(
                f"tokens must have at most {self.config.positions} places, got {length}"
            )
        x = self.tokens[tokens].astype(dtype) + self.positions[None, :length].astype(dtype)
        mask = (tokens != self.config.pad)[:, None, None, :]
        return scan(self.blocks, lambda block, x: block(x, image, mask), self.norm(x).astype(dtype))


class ImageReward(nnx.Module):
    """Both towers and the head."""

    def __init__(self, config: ImageRewardConfig, numerics: Numerics, *, rngs: nnx.Rngs):
        self.config = config
        self.vision = BLIPVision(config.vision, numerics, rngs=rngs)
        self.text = BLIPText(config.text, numerics, rngs=rngs)
        # Float32 whatever the towers are, as in the published code.
        exact = dataclasses.replace(numerics, dtype=jnp.float32)
        self.head = AestheticHead(config.head, exact, rngs=rngs)

    def __call__(self, images: jax.Array, tokens: jax.Array) -> jax.Array:
        """Rewards float32 [n] of standardised images [n, h, w, 3] and tokens [n, length]."""
        features = self.text(tokens, self.vision(images))[:, 0]
        return (self.head(features.astype(jnp.float32)) - MEAN) / STD


FAMILY = Family(name="imagereward", config=ImageRewardConfig, build=ImageReward)
