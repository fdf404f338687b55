"""FLUX.1 as ``flowsde sample --model`` takes it."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flowsde.flow import Flow
from flowsde.grids import Grid
from flowsde.models.common.guided import encoded, guided, sides
from flowsde.models.converted.parts import Read
from flowsde.models.family import Sampling
from flowsde.models.flux.pipeline import LENGTH, PIPELINE, FluxPipeline, check_length


class SampledFlux:
    """A FLUX.1; see `flowsde.models.family.Sampled`."""

    unprompted: str | None = None

    def __init__(
        self,
        folder: Path,
        *,
        guidance: float | None,
        size: str | None,
        text_tokens: int | None,
        negative_prompt: str | None,
        read: Read,
    ):
        self._pipeline = FluxPipeline(folder, read)
        self._size = sides(size, self._pipeline.latents)
        length = LENGTH if text_tokens is None else text_tokens
        self._length = check_length("--text-tokens", length)
        self._negative = negative_prompt
        # A scale is an input of the model, or costs a second evaluation.
        self._scale, self.guidance = self._guidance(guidance)
        height, width = (side or self._pipeline.side for side in self._size)
        self.named: dict[str, Any] = {
            "size": _recorded(height, width),
            "guidance": self._scale if negative_prompt is None else self.guidance,
            "negative_prompt": negative_prompt,
            "text_tokens": self._length,
        }
        self.steps = {"ode": self._pipeline.steps, "sde": self._pipeline.steps}

    def _guidance(self, given: float | None) -> tuple[float | None, float]:
        """Scales: that the model is given, and that of classifier-free guidance."""
        distilled = self._pipeline.config.guidance
        if self._negative is None:
            try:
                return self._pipeline.scale(given), 1.0
            except ValueError as error:
                hint = "" if distilled else "; with --negative-prompt it guides, at two evaluations"
                raise ValueError(f"--guidance: {error}{hint}") from None
        if distilled:
            raise ValueError(
                "--negative-prompt has no effect with a model that takes its guidance scale as an "
                f"input, got {self._negative!r}"
            )
        if given is None or given < 0 or given == 1.0:
            got = "none" if given is None else given
            raise ValueError(f"--negative-prompt wants a --guidance other than 1, got {got}")
        return None, given

    def grid(self, n: int) -> Grid | None:
        return self._pipeline.grid(n, *self._size)

    def encode(self, prompts: Sequence[str]) -> list[Any]:
        encode = partial(self._pipeline.encode, guidance=self._scale, length=self._length)
        conds, self._null = encoded(encode, prompts, self._negative)
        self._pipeline.drop_text_encoders()
        return conds

    def flow(self) -> Flow:
        flow = self._pipeline.flow(*self._size)
        return guided(flow, self.guidance, self._negative, self._null)


def _recorded(height: int, width: int) -> str:
    """The size as results say it.

    Earlier ones have height x width: a picture that is no square is to be told from theirs.
    """
    return f"{width}x{height}" if width == height else f"{width} wide, {height} high"


SAMPLING = Sampling(of=PIPELINE.name, title="a FLUX.1", make=SampledFlux)
