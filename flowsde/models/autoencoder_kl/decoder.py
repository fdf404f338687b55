"""An autoencoder as the `decode` of a flow: a pytree whose leaves are its parameters."""

import dataclasses
from typing import Any

import jax
from flax import nnx

from flowsde.models.autoencoder_kl.model import AutoencoderKL

WHOLE = 128 * 128
"""Latents of the largest image that is decoded at once, 1,024 x 1,024 pixels; larger ones go tile
by tile, in memory that does not grow with them."""


@dataclasses.dataclass(frozen=True)
class _Decode:
    graph: Any
    tiled: bool

    def __call__(self, state: Any, latents: jax.Array) -> jax.Array:
        vae = nnx.merge(self.graph, state)
        return vae.decode_tiled(latents) if self.tiled else vae.decode(latents)


def decoder(vae: AutoencoderKL, height: int, width: int) -> jax.tree_util.Partial:
    """Latents [n, height, width, channels] to images [n, height factor, width factor, 3]."""
    graph, state = nnx.split(vae)
    return jax.tree_util.Partial(_Decode(graph, height * width > WHOLE), state)
