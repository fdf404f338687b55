"""LAION's aesthetic head: linear layers on a CLIP ViT-L/14 image embedding of length one.

Schuhmann, 2022 (improved-aesthetic-predictor). Between the layers there was dropout and no
activation, so that the whole is affine; its values run from about 1 to 10.
"""

import dataclasses
import itertools

import jax
from flax import nnx

from flowsde.models.common.layers import Numerics
from flowsde.models.family import Family


@dataclasses.dataclass(frozen=True, kw_only=True)
class AestheticConfig:
    """Sizes of `AestheticHead`.

    Attributes:
      widths: features, from the embedding's to the last layer's input.
    """

    widths: tuple[int, ...] = (768, 1024, 128, 64, 16)

    def __post_init__(self) -> None:
        # JSON gives a list.
        object.__setattr__(self, "widths", tuple(self.widths))


class AestheticHead(nnx.Module):
    """Embeddings [n, widths[0]] of length one to scores [n]."""

    def __init__(self, config: AestheticConfig, numerics: Numerics, *, rngs: nnx.Rngs):
        self.layers = nnx.List(
            numerics.linear(a, b, (None, None), rngs=rngs)
            for a, b in itertools.pairwise((*config.widths, 1))
        )

    def __call__(self, embeddings: jax.Array) -> jax.Array:
        x = embeddings
        for layer in self.layers:
            x = layer(x)
        return x[:, 0]


FAMILY = Family(name="aesthetic", config=AestheticConfig, build=AestheticHead)
