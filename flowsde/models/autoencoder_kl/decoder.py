"""An autoencoder as the `decode` and the `encode` of a flow: pytrees of its parameters."""

import jax

from flowsde.models.autoencoder_kl.model import AutoencoderKL
from flowsde.modules import bind

WHOLE = 128 * 128
"""Latents of the largest image that is decoded at once, 1,024 x 1,024 pixels; larger ones go tile
by tile, in memory that does not grow with them."""


def decoder(vae: AutoencoderKL, height: int, width: int) -> jax.tree_util.Partial:
    """Latents [n, height, width, channels] to images [n, height factor, width factor, 3]."""
    tiled = height * width > WHOLE
    decode = AutoencoderKL.decode_tiled if tiled else AutoencoderKL.decode
    return jax.tree_util.Partial(*bind(decode, vae))


def encoder(vae: AutoencoderKL) -> jax.tree_util.Partial:
    """Images [n, height, width, 3] to the means of their latents."""
    return jax.tree_util.Partial(*bind(AutoencoderKL.encode, vae))
