"""FLUX.2-klein as ``flowsde sample --model`` takes it."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flowsde.flow import Flow
from flowsde.grids import Grid
from flowsde.models.common.guided import encoded, guidance_of, guided, sides
from flowsde.models.family import Sampling
from flowsde.models.flux2.pipeline import (
    GUIDANCE,
    LENGTH,
    PIPELINE,
    Flux2KleinPipeline,
    check_length,
)


class SampledFlux2Klein:
    """A FLUX.2-klein; see `flowsde.models.family.Sampled`."""

    unprompted: str | None = None

    def __init__(
        self,
        folder: Path,
        *,
        guidance: float | None,
        size: str | None,
        text_tokens: int | None,
        negative_prompt: str | None,
    ):
        self._pipeline = Flux2KleinPipeline(folder)
        self._size = sides(size, self._pipeline.latents)
        length = LENGTH if text_tokens is None else text_tokens
        self._length = check_length("--text-tokens", length)
        self.guidance, self._negative = self._guidance(guidance, negative_prompt)
        height, width = (side or self._pipeline.side for side in self._size)
        self.named: dict[str, Any] = {
            "size": f"{width}x{height}",
            "negative_prompt": self._negative,
            "text_tokens": self._length,
        }
        self.steps = {"ode": self._pipeline.steps, "sde": self._pipeline.steps}

    def _guidance(self, given: float | None, negative: str | None) -> tuple[float, str | None]:
        if not self._pipeline.distilled:
            return guidance_of(given, GUIDANCE, negative)
        if given not in (None, 1.0):
            raise ValueError(f"--guidance: this model is distilled and takes none, got {given:g}")
        return guidance_of(given, 1.0, negative)

    def grid(self, n: int) -> Grid | None:
        return self._pipeline.grid(n, *self._size)

    def encode(self, prompts: Sequence[str]) -> list[Any]:
        encode = partial(self._pipeline.encode, length=self._length)
        conds, self._null = encoded(encode, prompts, self._negative)
        self._pipeline.drop_text_encoders()
        return conds

    def flow(self) -> Flow:
        flow = self._pipeline.flow(*self._size)
        return guided(flow, self.guidance, self._negative, self._null)


SAMPLING = Sampling(of=PIPELINE.name, title="a FLUX.2-klein", make=SampledFlux2Klein)
