"""SiT as ``flowsde sample --model`` takes it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowsde.flow import Flow
from flowsde.grids import Grid
from flowsde.models.converted.opened import open_as
from flowsde.models.converted.parts import Read
from flowsde.models.family import Sampling
from flowsde.models.sit.model import FAMILY
from flowsde.models.sit.pipeline import SiTPipeline


class SampledSiT:
    """A SiT and an autoencoder; see `flowsde.models.family.Sampled`."""

    def __init__(
        self,
        folder: Path,
        *,
        guidance: float | None,
        label: int | None,
        vae: Path | None,
        read: Read,
    ):
        last = open_as(folder, FAMILY).config.classes - 1
        if label is None:
            raise ValueError(f"--label is missing, expected 0 to {last} for a SiT")
        if not 0 <= label <= last:
            raise ValueError(f"--label must be from 0 to {last}, got {label}")
        if vae is None:
            raise ValueError(
                "--vae is missing, expected the folder of a converted autoencoder "
                "(stabilityai/sd-vae-ft-ema): a SiT's own checkpoint has none"
            )
        self._pipeline = SiTPipeline(folder, vae, read)
        self._label = label
        if guidance is not None and guidance < 0:
            raise ValueError(f"--guidance must be at least 0, got {guidance}")
        try:
            self.guidance = self._pipeline.scale(guidance)
        except ValueError as error:
            raise ValueError(f"--{error}") from None
        self.named: dict[str, Any] = {"label": label, "vae": str(vae)}
        self.steps = {"ode": 50, "sde": 250}
        self.unprompted: str | None = f"label {label}"

    def grid(self, n: int) -> Grid | None:
        return None

    def encode(self, prompts: Sequence[str]) -> list[Any]:
        return [self._pipeline.encode([self._label])[0] for _ in prompts]

    def flow(self) -> Flow:
        return self._pipeline.flow(self.guidance)


SAMPLING = Sampling(of=FAMILY.name, title="a SiT", make=SampledSiT)
