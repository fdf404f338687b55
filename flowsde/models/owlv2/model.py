"""OWLv2: CLIP's towers, with a box at every patch and its likeness to texts.

Minderer et al., 2023 (arXiv 2306.09683), with the parameters of the published checkpoints. The
features of a patch are its token times the class token, both after the image tower's last norm,
then normed once more. Of features f at a patch of the grid and the embedding q of a text,

    logit       (cos(class(f), q) + shift(f)) (elu(scale(f)) + 1)
    box         sigmoid(mlp(f) + bias), its centre and size; the bias is that of the patch itself
    objectness  mlp(f), whatever the object is called.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flowsde.models.clip.model import (
    CLIPText,
    CLIPTextConfig,
    CLIPVision,
    CLIPVisionConfig,
    layer_norm,
)
from flowsde.models.common.layers import Numerics
from flowsde.models.family import Family

_EPSILON = 1e-6
"""Added to norms that are divided by."""
_CORNER = 1e-4
"""Keeps the logarithms of the boxes' biases finite."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Owlv2Config:
    """Sizes of `Owlv2`; the defaults are base-patch16's. Dictionaries are taken for towers, too.

    Attributes:
      text: with a projection, into which the class head maps patches.
      vision: without one.
    """

    text: CLIPTextConfig = CLIPTextConfig(
        width=512, heads=8, mlp=2048, positions=16, projection=512
    )
    vision: CLIPVisionConfig = CLIPVisionConfig(
        width=768, depth=12, heads=12, mlp=3072, image=960, patch=16
    )

    def __post_init__(self) -> None:
        if isinstance(self.text, dict):
            object.__setattr__(self, "text", CLIPTextConfig(**self.text))
        if isinstance(self.vision, dict):
            object.__setattr__(self, "vision", CLIPVisionConfig(**self.vision))
        text, vision = self.text.projection, self.vision.projection
        if text is None or vision is not None:
            raise ValueError(
                f"the text tower must have a projection and the image tower none, got {text} and "
                f"{vision}"
            )


class Detections(NamedTuple):
    """What is seen at each patch.

    Attributes:
      logits: float32 [n, patches, queries].
      boxes: float32 [n, patches, 4], centre (x, y), width and height, as shares of the square.
      objectness: float32 [n, patches], a logit.
    """

    logits: jax.Array
    boxes: jax.Array
    objectness: jax.Array


class PatchHead(nnx.Module):
    """Three layers on each patch."""

    def __init__(self, width: int, to: int, numerics: Numerics, rngs: nnx.Rngs):
        self.first = numerics.linear(width, width, ("embed", "mlp"), rngs=rngs)
        self.second = numerics.linear(width, width, ("mlp", "embed"), rngs=rngs)
        self.out = numerics.linear(width, to, ("embed", None), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Float32 [n, patches, to] of x [n, patches, width]."""
        for layer in (self.first, self.second):
            x = jax.nn.gelu(layer(x), approximate=False)
        return self.out(x).astype(jnp.float32)


class ClassHead(nnx.Module):
    """Likeness of patches and texts."""

    def __init__(self, width: int, to: int, numerics: Numerics, rngs: nnx.Rngs):
        self.embed = numerics.linear(width, to, ("embed", None), rngs=rngs)
        self.shift = numerics.linear(width, 1, ("embed", None), rngs=rngs)
        self.scale = numerics.linear(width, 1, ("embed", None), rngs=rngs)

    def __call__(self, x: jax.Array, queries: jax.Array) -> jax.Array:
        """Logits float32 [n, patches, queries] of x [n, patches, width] and queries [n, _, to]."""
        found, wanted = _unit(self.embed(x)), _unit(queries)
        alike = jnp.einsum("npd,nqd->npq", found, wanted)
        shift, scale = (layer(x).astype(jnp.float32) for layer in (self.shift, self.scale))
        return (alike + shift) * (jax.nn.elu(scale) + 1.0)


class Owlv2Detector(nnx.Module):
    """The image tower and the heads."""

    def __init__(self, config: Owlv2Config, numerics: Numerics, *, rngs: nnx.Rngs):
        self.config, self.numerics = config, numerics
        width, to = config.vision.width, config.text.projection
        assert to is not None, "Owlv2Config has it"
        self.vision = CLIPVision(config.vision, numerics, rngs=rngs)
        self.norm = layer_norm(width, config.vision.epsilon, rngs)
        self.class_head = ClassHead(width, to, numerics, rngs)
        self.box_head = PatchHead(width, 4, numerics, rngs)
        self.objectness_head = PatchHead(width, 1, numerics, rngs)

    def features(self, images: jax.Array) -> jax.Array:
        """Of patches, [n, patches, width], of standardised images [n, image, image, channels].

        Raises:
          ValueError: images of another size.
        """
        x = self.vision.norm_out(self.vision(images).last)
        return self.norm(x[:, 1:] * x[:, :1]).astype(self.numerics.dtype)

    def __call__(self, images: jax.Array, queries: jax.Array) -> Detections:
        """Detections in standardised images [n, h, w, 3], of queries [n, queries, projection]."""
        x, side = self.features(images), self.config.vision.image // self.config.vision.patch
        boxes = jax.nn.sigmoid(self.box_head(x) + jnp.asarray(_box_bias(side))[None])
        return Detections(self.class_head(x, queries), boxes, self.objectness_head(x)[..., 0])


class Owlv2(nnx.Module):
    """The detector, and the text tower that tells it what to look for."""

    def __init__(self, config: Owlv2Config, numerics: Numerics, *, rngs: nnx.Rngs):
        self.config = config
        self.text = CLIPText(config.text, numerics, rngs=rngs)
        self.detector = Owlv2Detector(config, numerics, rngs=rngs)

    def queries(self, tokens: jax.Array) -> jax.Array:
        """Embeddings of length one, float32 [n, projection], of texts' tokens [n, length]."""
        embedding = self.text(tokens).embedding
        assert embedding is not None, "Owlv2Config has a projection"
        x = embedding.astype(jnp.float32)
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def __call__(self, images: jax.Array, queries: jax.Array) -> Detections:
        """As the detector."""
        return self.detector(images, queries)


def _unit(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + _EPSILON)


def _box_bias(side: int) -> np.ndarray:
    """Logits float32 [side², 4] of boxes of a patch's size, one around each lower right corner."""
    steps = np.arange(1, side + 1, dtype=np.float32) / np.float32(side)
    y, x = np.meshgrid(steps, steps, indexing="ij")
    size = np.full_like(x, 1.0 / side)
    box = np.stack([x, y, size, size], axis=-1).reshape(-1, 4)
    return np.log(box + np.float32(_CORNER)) - np.log1p(np.float32(_CORNER) - box)


FAMILY = Family(name="owlv2", config=Owlv2Config, build=Owlv2)
