"""CLIP: a text and an image transformer whose pooled outputs are compared by cosine.

Radford et al., 2021 (arXiv 2103.00020), with the parameters of the published checkpoints. Both
towers are pre-norm transformers with learnt positions,

    x = x + attention(norm1(x)),    x = x + down(activation(up(norm2(x)))).

The text tower is causal, ends in a norm and is pooled where the text ends; the image tower starts
with a norm, sees all patches, and is pooled, then normed, at its class token.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from flowsde.models.common.layers import (
    Numerics,
    attention,
    kernel_init,
    parameter,
    scan,
    stack,
)
from flowsde.models.common.rope import rotate_halves
from flowsde.models.family import Family

Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


def _check(config: "CLIPTextConfig | CLIPVisionConfig") -> None:
    if config.width % config.heads:
        raise ValueError(f"heads must divide width, got {config.heads} and {config.width}")
    if config.activation not in _ACTIVATIONS:
        raise ValueError(
            f"activation must be one of {', '.join(_ACTIVATIONS)}, got {config.activation!r}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTextConfig:
    """Sizes of `CLIPText`; the defaults are ViT-L/14's.

    Attributes:
      vocab: rows of the token table.
      width: features of a token.
      depth: blocks.
      heads: of attention; divides `width`.
      mlp: hidden features of a block.
      positions: tokens of the longest text.
      activation: "quick_gelu" (OpenAI's checkpoints) or "gelu" (ViT-H and ViT-bigG).
      epsilon: of the norms.
      eos: the token at whose first place the output is pooled; None pools at the highest token,
        which ends a text of CLIP's own vocabulary.
      projection: features of the joint embedding; None for a tower without.
    """

    vocab: int = 49408
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    positions: int = 77
    activation: Activation = "quick_gelu"
    epsilon: float = 1e-5
    eos: int | None = None
    projection: int | None = None

    def __post_init__(self) -> None:
        _check(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig:
    """Sizes of `CLIPVision`; the defaults are ViT-L/14's.

    Attributes:
      width: features of a patch.
      depth: blocks.
      heads: of attention; divides `width`.
      mlp: hidden features of a block.
      image: pixels a side.
      patch: pixels a patch side; divides `image`.
      channels: of an image.
      activation: "quick_gelu" or "gelu".
      epsilon: of the norms.
      projection: features of the joint embedding; None for a tower without.
    """

    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp: int = 4096
    image: int = 224
    patch: int = 14
    channels: int = 3
    activation: Activation = "quick_gelu"
    epsilon: float = 1e-5
    projection: int | None = None

    def __post_init__(self) -> None:
        _check(self)
        if self.image % self.patch:
            raise ValueError(f"patch must divide image, got {self.patch} and {self.image}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """Both towers, with projections of one size; dictionaries, as JSON gives, are taken too."""

    text: CLIPTextConfig = CLIPTextConfig(projection=768)
    vision: CLIPVisionConfig = CLIPVisionConfig(projection=768)

    def __post_init__(self) -> None:
        if isinstance(self.text, dict):
            object.__setattr__(self, "text", CLIPTextConfig(**self.text))
        if isinstance(self.vision, dict):
            object.__setattr__(self, "vision", CLIPVisionConfig(**self.vision))
        text, vision = self.text.projection, self.vision.projection
        if text is None or text != vision:
            raise ValueError(f"both projections must have one size, got {text} and {vision}")


class CLIPFeatures(NamedTuple):
    """What a tower gives.

    Attributes:
      last: [n, tokens, width] after the last block; a text tower's has had the final norm.
      penultimate: [n, tokens, width] before the last block.
      pooled: [n, width].
      embedding: [n, projection], not normalised; None of a tower without a projection.
    """

    last: jax.Array
    penultimate: jax.Array
    pooled: jax.Array
    embedding: jax.Array | None


def layer_norm(width: int, epsilon: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Over features, in float32."""
    return nnx.LayerNorm(
        width,
        epsilon=epsilon,
        dtype=jnp.float32,
        scale_init=nnx.with_metadata(nnx.initializers.ones_init(), axes=("embed",)),
        bias_init=nnx.with_metadata(nnx.initializers.zeros_init(), axes=("embed",)),
        use_fast_variance=False,
        rngs=rngs,
    )


class CLIPBlock(nnx.Module):
    """One block of either tower."""

    def __init__(
        self, config: CLIPTextConfig | CLIPVisionConfig, numerics: Numerics, rngs: nnx.Rngs
    ):
        width, mlp = config.width, config.mlp
        self.heads, self.activation = config.heads, config.activation
        self.causal = isinstance(config, CLIPTextConfig)
        self.numerics = numerics
        self.norm1 = layer_norm(width, config.epsilon, rngs)
        # Apart, so that each can be split over a mesh by its heads.
        self.query = numerics.linear(width, width, ("embed", "heads"), rngs=rngs)
        self.key = numerics.linear(width, width, ("embed", "heads"), rngs=rngs)
        self.value = numerics.linear(width, width, ("embed", "heads"), rngs=rngs)
        self.out = numerics.linear(width, width, ("heads", "embed"), rngs=rngs)
        self.norm2 = layer_norm(width, config.epsilon, rngs)
        self.up = numerics.linear(width, mlp, ("embed", "mlp"), rngs=rngs)
        self.down = numerics.linear(mlp, width, ("mlp", "embed"), rngs=rngs)

    def __call__(
        self, x: jax.Array, mask: jax.Array | None, turn: jax.Array | None = None
    ) -> jax.Array:
        """x: [n, tokens, width]; mask: [n, 1, 1, tokens], False where no token is seen; turn:
        [tokens, d / 2], of towers that turn queries and keys by their positions."""
        h = self.norm1(x)
        q, k, v = (
            layer(h).reshape(*h.shape[:2], self.heads, -1)
            for layer in (self.query, self.key, self.value)
        )
        if turn is not None:
            q, k = (rotate_halves(a.astype(jnp.float32), turn).astype(v.dtype) for a in (q, k))
        y = attention(q, k, v, numerics=self.numerics, mask=mask, causal=self.causal)
        x = x + self.out(y)
        return x + self.down(_ACTIVATIONS[self.activation](self.up(self.norm2(x))))


def _through(
    blocks: CLIPBlock, x: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """x after the last block, and before it."""
    return scan(blocks, lambda block, carry: (block(carry[0], mask), carry[0]), (x, x))


class CLIPText(nnx.Module):
    """The text tower."""

    def __init__(self, config: CLIPTextConfig, numerics: Numerics, *, rngs: nnx.Rngs):
        self.config, self.numerics = config, numerics
        width = config.width
        self.tokens = parameter((config.vocab, width), ("vocab", "embed"), numerics, rngs)
        self.positions = parameter((config.positions, width), (None, "embed"), numerics, rngs)
        self.blocks = stack(lambda r: CLIPBlock(config, numerics, r), config.depth, rngs)
        self.norm = layer_norm(width, config.epsilon, rngs)
        self.projection = _projection(config, numerics, rngs)

    def __call__(self, tokens: jax.Array, mask: jax.Array | None = None) -> CLIPFeatures:
        """Features of tokens [n, length].

        Args:
          tokens: integers below `config.vocab`; each row holds the end of its text.
          mask: [n, length], False at padding, which is then not looked at; the published models
            are run without (padding follows the end, and the tower is causal).

        Raises:
          ValueError: more tokens than the model has positions.
        """
        length, dtype = tokens.shape[1], self.numerics.dtype
        if length > self.config.positions:
            raise ValueError(
                f"tokens must have at most {self.config.positions} places, got {length}"
            )
        x = self.tokens[tokens].astype(dtype) + self.positions[None, :length].astype(dtype)
        seen = None if mask is None else mask.astype(bool)[:, None, None, :]
        last, penultimate = _through(self.blocks, x, seen)
        last = self.norm(last).astype(dtype)
        pooled = last[jnp.arange(tokens.shape[0]), self._end(tokens)]
        return CLIPFeatures(last, penultimate, pooled, _embed(self.projection, pooled))

    def _end(self, tokens: jax.Array) -> jax.Array:
        eos = self.config.eos
        return jnp.argmax(tokens if eos is None else tokens == eos, axis=-1)


class CLIPVision(nnx.Module):
    """The image tower."""

    def __init__(self, config: CLIPVisionConfig, numerics: Numerics, *, rngs: nnx.Rngs):
        self.config, self.numerics = config, numerics
        width, patches = config.width, (config.image // config.patch) ** 2
        self.patches = patch_layer(config, numerics, rngs, bias=False)
        self.class_token = parameter((width,), ("embed",), numerics, rngs)
        self.positions = parameter((patches + 1, width), (None, "embed"), numerics, rngs)
        self.norm_in = layer_norm(width, config.epsilon, rngs)
        self.blocks = stack(lambda r: CLIPBlock(config, numerics, r), config.depth, rngs)
        self.norm_out = layer_norm(width, config.epsilon, rngs)
        self.projection = _projection(config, numerics, rngs)

    def __call__(self, images: jax.Array) -> CLIPFeatures:
        """Features of images [n, image, image, channels], standardised by CLIP's mean and std.

        Raises:
          ValueError: images of another size.
        """
        x, dtype = tokens_of(self, images), self.numerics.dtype
        last, penultimate = _through(self.blocks, self.norm_in(x).astype(dtype), None)
        pooled = self.norm_out(last[:, 0]).astype(dtype)
        return CLIPFeatures(last, penultimate, pooled, _embed(self.projection, pooled))


def patch_layer(
    config: CLIPVisionConfig, numerics: Numerics, rngs: nnx.Rngs, *, bias: bool
) -> nnx.Conv:
    """From an image to its patches' features."""
    return nnx.Conv(
        config.channels,
        config.width,
        (config.patch, config.patch),
        strides=config.patch,
        padding="VALID",
        use_bias=bias,
        dtype=numerics.dtype,
        param_dtype=numerics.param_dtype,
        kernel_init=nnx.with_metadata(kernel_init, axes=(None, None, None, "embed")),
        bias_init=nnx.with_metadata(nnx.initializers.zeros_init(), axes=("embed",)),
        rngs=rngs,
    )


def tokens_of(tower: Any, images: jax.Array) -> jax.Array:
    """Class token and patches [n, 1 + patches, width] of images, with their positions.

    Args:
      tower: with `config`, `numerics`, `patches`, `class_token` and `positions`.
      images: [n, image, image, channels].

    Raises:
      ValueError: images of another size.
    """
    c, dtype = tower.config, tower.numerics.dtype
    if images.shape[1:] != (c.image, c.image, c.channels):
        raise ValueError(
            f"images must have shape [n, {c.image}, {c.image}, {c.channels}], "
            f"got {list(images.shape)}"
        )
    x = tower.patches(images).reshape(images.shape[0], -1, c.width)
    first = jnp.broadcast_to(tower.class_token[None, None].astype(dtype), (len(x), 1, c.width))
    return jnp.concatenate([first, x], axis=1) + tower.positions[None].astype(dtype)


class CLIP(nnx.Module):
    """Both towers and the scale of their cosine."""

    def __init__(self, config: CLIPConfig, numerics: Numerics, *, rngs: nnx.Rngs):
        self.config = config
        self.text = CLIPText(config.text, numerics, rngs=rngs)
        self.vision = CLIPVision(config.vision, numerics, rngs=rngs)
        # Float32 whatever the weights are: what is used is its exponential, about 100.
        self.logit_scale = nnx.Param(jnp.asarray(2.6592, jnp.float32), axes=())

    def text_features(self, tokens: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Embeddings [n, projection] of tokens [n, length], not normalised."""
        embedding = self.text(tokens, mask).embedding
        assert embedding is not None, "CLIPConfig has projections"
        return embedding


def _projection(
    config: CLIPTextConfig | CLIPVisionConfig, numerics: Numerics, rngs: nnx.Rngs
) -> nnx.Linear | None:
    if config.projection is None:
        return None
    return numerics.linear(config.width, config.projection, ("embed", None), bias=False, rngs=rngs)


def _embed(projection: nnx.Linear | None, pooled: jax.Array) -> jax.Array | None:
    return None if projection is None else projection(pooled)


TEXT = Family(name="clip_text", config=CLIPTextConfig, build=CLIPText)
VISION = Family(name="clip_vision", config=CLIPVisionConfig, build=CLIPVision)
FAMILY = Family(name="clip", config=CLIPConfig, build=CLIP)
HPSV2 = Family(name="hpsv2", config=CLIPConfig, build=CLIP)
"""HPSv2's CLIP, v2.0: a family of its own, so that no other weights are taken for it."""
HPSV2_1 = Family(name="hpsv2.1", config=CLIPConfig, build=CLIP)
"""v2.1, whose scores are others."""
