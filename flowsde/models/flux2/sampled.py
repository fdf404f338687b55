"""FLUX.2-klein as ``flowsde sample --model`` takes it."""

from flowsde.grids import Grid
from flowsde.models.common.guided_pictures import GuidedPictures
from flowsde.models.family import Sampling
from flowsde.models.flux2.pipeline import LENGTH, PIPELINE, Flux2KleinPipeline, check_length


class SampledFlux2Klein(GuidedPictures):
    """A FLUX.2-klein; see `flowsde.models.family.Sampled`."""

    opened = Flux2KleinPipeline
    length = LENGTH
    check_length = staticmethod(check_length)

    def _guidance(self, given: float | None, negative: str | None) -> tuple[float, str | None]:
        if self._pipeline.distilled and given not in (None, 1.0):
            raise ValueError(f"--guidance: this model is distilled and takes none, got {given:g}")
        return super()._guidance(given, negative)

    def grid(self, n: int) -> Grid | None:
        return self._pipeline.grid(n, *self._size)


SAMPLING = Sampling(of=PIPELINE.name, title="a FLUX.2-klein", make=SampledFlux2Klein)
