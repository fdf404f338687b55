"""InstructBLIP with Flan-T5: a T5 that reads what queries saw of an image, then a question.

Dai et al., 2023 (arXiv 2305.06500). Of an image's patches f, after the norm at the end of EVA's
image tower, and of the question, which is read twice, by two vocabularies,

    queries   q = projection(Q-Former(f, question)), 32 of them
    encoder   reads  [q]  [question]  as one sequence
    decoder   is held to an answer, and gives the probability of each of its tokens.

The T5's feed-forward layers have the exact GELU here, where Flan-T5's own have tanh's.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from flowsde.models.blip.model import BLIPVision
from flowsde.models.clip.model import CLIPVisionConfig
from flowsde.models.clip_flant5.model import PAD, log_probabilities
from flowsde.models.common.layers import Numerics
from flowsde.models.family import Family
from flowsde.models.instructblip.qformer import QFormer, QFormerConfig
from flowsde.models.t5.model import T5, T5Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstructBLIPConfig:
    """Sizes of `InstructBLIP`; the defaults are XL's.

    Attributes:
      vision: of the image tower, EVA's ViT-g/14 without its last block and a projection.
      qformer: of the Q-Former.
      text: of the T5, with a decoder.
    """

    vision: CLIPVisionConfig = CLIPVisionConfig(
        width=1408, depth=39, heads=16, mlp=6144, activation="gelu", epsilon=1e-6
    )
    qformer: QFormerConfig = QFormerConfig()
    text: T5Config = T5Config(width=2048, heads=32, mlp=5120, decoder_depth=24, activation="gelu")

    def __post_init__(self) -> None:
        if self.vision.projection is not None:
            raise ValueError(
                f"the image tower must have no projection, got one to {self.vision.projection}"
            )
        if self.qformer.image != self.vision.width:
            raise ValueError(
                f"the Q-Former takes images of {self.qformer.image} features, got a tower of "
                f"{self.vision.width}"
            )


XL = InstructBLIPConfig()
"""4.02 billion parameters."""
XXL = InstructBLIPConfig(text=T5Config(decoder_depth=24, activation="gelu"))
"""12.31 billion."""


class InstructBLIP(nnx.Module):
    """The image tower, the Q-Former, a projection and the T5."""

    def __init__(self, config: InstructBLIPConfig, numerics: Numerics, *, rngs: nnx.Rngs):
        self.config = config
        self.vision = BLIPVision(config.vision, numerics, rngs=rngs)
        self.qformer = QFormer(config.qformer, numerics, rngs=rngs)
        self.projection = numerics.linear(
            config.qformer.width, config.text.width, (None, "embed"), rngs=rngs
        )
        self.text = T5(config.text, numerics, rngs=rngs)

    def look(self, images: jax.Array, asked: jax.Array) -> jax.Array:
        """What the T5 reads of images, [n, queries, width].

        Args:
          images: standardised, [n, image, image, 3].
          asked: the question's tokens for the Q-Former, [n, length], padded by its `config.pad`.

        Raises:
          ValueError: images of another size, or more tokens than there are positions.
        """
        return self.projection(self.qformer(self.vision(images), asked))

    def __call__(
        self, images: jax.Array, asked: jax.Array, text: jax.Array, answer: jax.Array
    ) -> jax.Array:
        """Log-probabilities float32 [n, length] of an answer's tokens, each given those before it.

        Args:
          images, asked: as of `look`.
          text: the question's tokens for the T5, [n, some], padded by `PAD`.
          answer: tokens [n, length].

        Raises:
          ValueError: as of `look`.
        """
        seen = self.look(images, asked)
        mask = jnp.concatenate([jnp.ones(seen.shape[:2], bool), text != PAD], axis=1)
        read = jnp.concatenate([seen, self.text.embed(text)], axis=1)
        logits = self.text.decode(self.text.encode(read, mask), answer, mask)
        return log_probabilities(logits, answer)


FAMILY = Family(name="instructblip", config=InstructBLIPConfig, build=InstructBLIP)
