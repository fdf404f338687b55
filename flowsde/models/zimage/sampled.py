"""Z-Image and Z-Image-Turbo as ``flowsde sample --model`` takes them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flowsde.flow import Flow
from flowsde.grids import Grid
from flowsde.models.common.guided import encoded, guidance_of, guided, sides
from flowsde.models.family import Sampling
from flowsde.models.zimage.pipeline import (
    GUIDANCE,
    LENGTH,
    PIPELINE,
    ZImagePipeline,
    check_length,
)


class SampledZImage:
    """A Z-Image; see `flowsde.models.family.Sampled`."""

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
        self._pipeline = ZImagePipeline(folder)
        self._size = sides(size, self._pipeline.latents)
        length = LENGTH if text_tokens is None else text_tokens
        self._length = check_length("--text-tokens", length)
        usual = 1.0 if self._pipeline.distilled else GUIDANCE
        self.guidance, self._negative = guidance_of(guidance, usual, negative_prompt)
        height, width = (side or self._pipeline.side for side in self._size)
        self.named: dict[str, Any] = {
            "size": f"{width}x{height}",
            "negative_prompt": self._negative,
            "text_tokens": self._length,
        }
        self.steps = {"ode": self._pipeline.steps, "sde": self._pipeline.steps}

    def grid(self, n: int) -> Grid | None:
        return self._pipeline.grid(n)

    def encode(self, prompts: Sequence[str]) -> list[Any]:
        encode = partial(self._pipeline.encode, length=self._length)
        conds, self._null = encoded(encode, prompts, self._negative)
        self._pipeline.drop_text_encoders()
        return conds

    def flow(self) -> Flow:
        flow = self._pipeline.flow(*self._size)
        return guided(flow, self.guidance, self._negative, self._null)


SAMPLING = Sampling(of=PIPELINE.name, title="a Z-Image", make=SampledZImage)
