"""What pipelines share whose images the KL autoencoder decodes: sizes, and the flow of latents."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from flowsde._checks import check_count
from flowsde.flow import Flow
from flowsde.models.autoencoder_kl.decoder import decoder, encoder
from flowsde.models.converted.parts import Parts

PATCH = 2
"""Latents a side of what these transformers take for a token."""
_SIDE = 128
"""Latents a side of an image of the usual size."""


class ImagePipeline:
    """A base class. What is a family's own: its parts, `config`, texts and times.

    Attributes:
      config: of the transformer.
    """

    _parts: Parts
    config: Any

    @property
    def side(self) -> int:
        """Pixels of the images that it makes unless told otherwise, 1,024 for the published."""
        return _SIDE * self._factor

    @property
    def held(self) -> Sequence[str]:
        """Names of the models that are in memory."""
        return self._parts.held

    @property
    def _factor(self) -> int:
        return self._parts.configs["vae"].factor

    @property
    def _channels(self) -> int:
        """Of latents."""
        return self.config.channels

    @property
    def _largest(self) -> int | None:
        """Most pixels a side; None for any."""
        return None

    def flow(self, height: int | None = None, width: int | None = None) -> Flow:
        """The flow of latents [height / 8, width / 8, channels], with the autoencoder as its
        `decode` and `encode`.

        Args:
          height: pixels, a multiple of 16 for the published models; `side` by default.
          width: the same.

        Returns:
          A `flowsde.Flow` whose cond is one row of `encode`'s; images are float32, about in
          [-1, 1].

        Raises:
          ValueError: a size that is no such multiple, or larger than the model can make.
        """
        rows, columns = self.latents(height, width)
        decode = decoder(self._parts["vae"], rows, columns)
        shape = (rows, columns, self._channels)
        flow = Flow.from_nnx(self._parts["transformer"], shape, decode=decode)
        return dataclasses.replace(flow, encode=encoder(self._parts["vae"]))

    def latents(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Rows and columns of the latents of such images; errors as of `flow`."""
        unit, most = PATCH * self._factor, self._largest
        limit = "" if most is None else f", to {most}"
        sizes = []
        for name, given in (("height", height), ("width", width)):
            pixels = self.side if given is None else check_count(name, given)
            if pixels % unit or (most is not None and pixels > most):
                raise ValueError(f"{name} must be a multiple of {unit}{limit}, got {pixels}")
            sizes.append(pixels // self._factor)
        return sizes[0], sizes[1]
