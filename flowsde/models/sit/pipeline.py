"""SiT from ImageNet labels to images: a converted SiT, and beside it the autoencoder it needs.

    pipeline = SiTPipeline(Path("sit-xl"), Path("sd-vae"))
    flow, cond = pipeline.flow(guidance=4.0), pipeline.encode([207])

Guidance is that of the published samples, on the first three channels of the latents; it costs a
second evaluation, of the label that stands for none. A model that was trained without dropping
labels has no such label, and is run without.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._checks import check_non_negative
from flowsde.flow import Flow
from flowsde.models import autoencoder_kl
from flowsde.models.autoencoder_kl.decoder import decoder, encoder
from flowsde.models.converted.parts import Parts, Read, read
from flowsde.models.sit.model import FAMILY, SiT, SiTConfig, guided_velocity
from flowsde.modules import bind

GUIDANCE = 4.0
"""Scale of the published samples."""


def _guided(
    model: SiT, scale: jax.Array, x: jax.Array, t: jax.Array, labels: jax.Array
) -> jax.Array:
    return guided_velocity(model, x, t, labels, scale)


class SiTPipeline:
    """A SiT and an autoencoder; they are read when they are first used.

    Args:
      folder: of the converted SiT.
      vae: of the converted autoencoder, sd-vae-ft-ema for the published models.
      read: a model of a folder.

    Raises:
      FileNotFoundError, ValueError: one of them is something else, or they do not fit each other,
        before any weights are read.
    """

    def __init__(self, folder: Path, vae: Path, read: Read = read):
        families = {"model": FAMILY, "vae": autoencoder_kl.FAMILY}
        self._parts = Parts({"model": folder, "vae": vae}, families, read)
        self.config: SiTConfig = self._parts.configs["model"]
        latents = self._parts.configs["vae"].latents
        if latents != self.config.channels:
            raise ValueError(
                f"the autoencoder of {vae} has latents of {latents} channels, expected "
                f"{self.config.channels} as of {folder}"
            )

    @property
    def side(self) -> int:
        """Pixels of the images, 256 or 512 for the published models."""
        return self.config.size * self._parts.configs["vae"].factor

    def encode(self, labels: Sequence[int]) -> np.ndarray:
        """The condition of labels, int32 with a leading axis of them.

        Raises:
          ValueError: a label that there is not.
        """
        last = self.config.classes - 1
        for label in labels:
            if not 0 <= label <= last:
                raise ValueError(f"label must be from 0 to {last}, got {label}")
        return np.asarray(labels, np.int32)

    def scale(self, guidance: float | None) -> float:
        """The guidance scale that is used. Errors as of `flow`."""
        if guidance is None:
            return GUIDANCE if self.config.unlabelled else 1.0
        check_non_negative("guidance", guidance)
        if guidance != 1.0 and not self.config.unlabelled:
            raise ValueError(
                f"guidance must be 1 for a model without a label for none, trained without "
                f"dropping labels, got {guidance}"
            )
        return guidance

    def flow(self, guidance: float | None = None) -> Flow:
        """The flow of latents, with the autoencoder as its `decode` and `encode`.

        Args:
          guidance: scale, 4 by default where the model has a label for none; at 1, without
            guidance, an evaluation is one pass of the model, at any other two. A change between
            others does not compile again.

        Returns:
          A `flowsde.Flow` whose cond is labels; images are float32, about in [-1, 1].

        Raises:
          ValueError: a scale that is negative or not finite, or that the model cannot have.
        """
        guidance = self.scale(guidance)
        size = self.config.size
        shape = (size, size, self.config.channels)
        decode = decoder(self._parts["vae"], size, size)
        encode = encoder(self._parts["vae"])
        if guidance == 1.0:
            flow = Flow.from_nnx(self._parts["model"], shape, decode=decode)
            return dataclasses.replace(flow, encode=encode)
        scale = jnp.asarray(guidance, jnp.float32)
        velocity, params = bind(_guided, self._parts["model"], scale)
        flow = Flow.from_callable(velocity, params, shape, decode=decode)
        return dataclasses.replace(flow, evaluations=2, encode=encode)
