"""CLIP-FlanT5: a Flan-T5 that reads the patches of an image between the words of a question.

Lin et al., 2024 (arXiv 2404.01291), built as LLaVA-1.5 (Liu et al., 2023, arXiv 2310.03744). Of an
image's patches f, as they are before the last block of CLIP's image tower,

    encoder   reads  [text before the image]  [down(gelu(up(f)))]  [text after it]  as one sequence
    decoder   is held to an answer, and gives the probability of each of its tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from flowsde.models.clip.model import (
    CLIPBlock,
    CLIPVisionConfig,
    layer_norm,
    patch_layer,
    tokens_of,
)
from flowsde.models.common.layers import Numerics, parameter, scan, stack
from flowsde.models.family import Family
from flowsde.models.t5.model import START, T5, T5Config

PAD = START
"""The token that no other looks at."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPFlanT5Config:
    """Sizes of `CLIPFlanT5`; the defaults are XL's.

    Attributes:
      vision: of the image tower, ViT-L/14 at 336 pixels without its last block and its projection.
      text: of the T5, with a decoder.
      words: rows of the head that probabilities are of, those that the tokenizer knows: the others
        fill the table up to a round number, and published code cuts them off.
    """

    vision: CLIPVisionConfig = CLIPVisionConfig(image=336, depth=23)
    text: T5Config = T5Config(width=2048, heads=32, mlp=5120, decoder_depth=24)
    words: int = 32100

    def __post_init__(self) -> None:
        if self.vision.projection is not None:
            raise ValueError(
                f"the image tower must have no projection, got one to {self.vision.projection}"
            )
        if not 1 <= self.words <= self.text.vocab:
            raise ValueError(f"words must be 1 to {self.text.vocab}, got {self.words}")


XL = CLIPFlanT5Config()
"""3.16 billion parameters with the block of the image tower that is left out."""
XXL = CLIPFlanT5Config(text=T5Config(decoder_depth=24))
"""11.46 billion."""


class CLIPPatches(nnx.Module):
    """CLIP's image tower as far as patches need it: without class token and norm at its end."""

    def __init__(self, config: CLIPVisionConfig, numerics: Numerics, *, rngs: nnx.Rngs):
        self.config, self.numerics = config, numerics
        width, patches = config.width, (config.image // config.patch) ** 2
        self.patches = patch_layer(config, numerics, rngs, bias=False)
        self.class_token = parameter((width,), ("embed",), numerics, rngs)
        self.positions = parameter((patches + 1, width), (None, "embed"), numerics, rngs)
        self.norm_in = layer_norm(width, config.epsilon, rngs)
        self.blocks = stack(lambda r: CLIPBlock(config, numerics, r), config.depth, rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Features [n, patches, width] of standardised images [n, image, image, channels].

        Raises:
          ValueError: images of another size.
        """
        x = self.norm_in(tokens_of(self, images)).astype(self.numerics.dtype)
        return scan(self.blocks, lambda block, x: block(x, None), x)[:, 1:]


class Projector(nnx.Module):
    """From patches to what the T5 reads in the place of tokens."""

    def __init__(self, features: int, to: int, numerics: Numerics, *, rngs: nnx.Rngs):
        self.up = numerics.linear(features, to, ("embed", "mlp"), rngs=rngs)
        self.down = numerics.linear(to, to, ("mlp", "embed"), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, patches, to] of x [n, patches, features]."""
        return self.down(jax.nn.gelu(self.up(x), approximate=False))


class CLIPFlanT5(nnx.Module):
    """The image tower, the projector and the T5."""

    def __init__(self, config: CLIPFlanT5Config, numerics: Numerics, *, rngs: nnx.Rngs):
        self.config = config
        self.vision = CLIPPatches(config.vision, numerics, rngs=rngs)
        self.projector = Projector(config.vision.width, config.text.width, numerics, rngs=rngs)
        self.text = T5(config.text, numerics, rngs=rngs)

    def encode(
        self, images: jax.Array, before: jax.Array, after: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """What the encoder makes of images [n, image, image, 3] between two texts.

        Args:
          images: standardised, see `flowsde.models.clip_flant5.rewards.centred_pixels`.
          before: tokens of the text before the image, [n, some], padded by `PAD`.
          after: tokens of the text after it, [n, others], as well.

        Returns:
          Features [n, some + patches + others, width], and bool [n, some + patches + others], False
          at padding, which none looks at.

        Raises:
          ValueError: images of another size.
        """
        image = self.projector(self.vision(images))
        sequence = [self.text.embed(before), image, self.text.embed(after)]
        seen = [before != PAD, jnp.ones(image.shape[:2], bool), after != PAD]
        mask = jnp.concatenate(seen, axis=1)
        return self.text.encode(jnp.concatenate(sequence, axis=1), mask), mask

    def __call__(
        self, images: jax.Array, before: jax.Array, after: jax.Array, answer: jax.Array
    ) -> jax.Array:
        """Log-probabilities float32 [n, length] of an answer's tokens, each given those before it.

        Args:
          images, before, after: as of `encode`.
          answer: tokens [n, length], below `config.words`.

        Raises:
          ValueError: as of `encode`.
        """
        encoded, mask = self.encode(images, before, after)
        logits = self.text.decode(encoded, answer, mask)
        return log_probabilities(logits[..., : self.config.words], answer)


def log_probabilities(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """log softmax(logits) float32 [...] at tokens [...], exact for probabilities close to 1.

    It is -log(1 + exp(log-sum-exp of the other logits - that of the token)): the sum over all
    would round such a probability to 1.
    """
    is_own = jax.nn.one_hot(tokens, logits.shape[-1], dtype=bool)
    own = jnp.sum(jnp.where(is_own, logits, 0.0), axis=-1)
    others = jax.nn.logsumexp(jnp.where(is_own, -jnp.inf, logits), axis=-1)
    return jax.nn.log_sigmoid(own - others)


FAMILY = Family(name="clip_flant5", config=CLIPFlanT5Config, build=CLIPFlanT5)
