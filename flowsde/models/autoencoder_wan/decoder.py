"""An autoencoder as the `decode` of a flow: a pytree whose leaves are its parameters."""

import jax

from flowsde.models.autoencoder_kl.decoder import WHOLE
from flowsde.models.autoencoder_wan.model import AutoencoderWan
from flowsde.modules import bind


def decoder(vae: AutoencoderWan, frames: int, height: int, width: int) -> jax.tree_util.Partial:
    """Latents [n, frames, height, width, channels] to videos, or to pictures if of one frame.

    Videos of more pixels in all than 1,024 x 1,024 are decoded a latent frame after the other, in
    memory that does not grow with them.
    """
    later = (frames - 1) * vae.config.frames
    if not later:
        return jax.tree_util.Partial(*bind(_picture, vae))
    streamed = later * height * width > WHOLE
    return jax.tree_util.Partial(*bind(_streamed if streamed else AutoencoderWan.decode, vae))


def _picture(vae: AutoencoderWan, latents: jax.Array) -> jax.Array:
    return vae.decode(latents)[:, 0]


def _streamed(vae: AutoencoderWan, latents: jax.Array) -> jax.Array:
    return vae.decode(latents, streamed=True)
