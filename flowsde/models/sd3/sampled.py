"""Stable Diffusion 3 as ``flowsde sample --model`` takes it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from flowsde._checks import check_non_negative
from flowsde.classifier_free import classifier_free_guidance
from flowsde.flow import Flow
from flowsde.grids import Grid
from flowsde.models.common.size import height_and_width
from flowsde.models.family import Sampling
from flowsde.models.sd3.pipeline import (
    GUIDANCE,
    LENGTH,
    PIPELINE,
    STEPS,
    SD3Pipeline,
    check_length,
)


class SampledSD3:
    """A Stable Diffusion 3; see `flowsde.models.family.Sampled`."""

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
        self._pipeline = SD3Pipeline(folder)
        self._size = (None, None) if size is None else height_and_width(size)
        try:
            self._pipeline.latents(*self._size)
        except ValueError as error:
            # The names of the arguments are those of the option.
            raise ValueError(f"--size: {error}") from None
        length = LENGTH if text_tokens is None else text_tokens
        self._length = check_length("--text-tokens", length)
        self.guidance = GUIDANCE if guidance is None else guidance
        check_non_negative("--guidance", self.guidance)
        if self.guidance == 1.0 and negative_prompt is not None:
            raise ValueError(
                f"--negative-prompt has no effect with --guidance 1, got {negative_prompt!r}"
            )
        self._negative = None if self.guidance == 1.0 else negative_prompt or ""
        height, width = (side or self._pipeline.side for side in self._size)
        self.named: dict[str, Any] = {
            "size": f"{width}x{height}",
            "negative_prompt": self._negative,
            "text_tokens": self._length,
        }
        self.steps = {"ode": STEPS, "sde": STEPS}

    def grid(self, n: int) -> Grid | None:
        return self._pipeline.grid(n)

    def encode(self, prompts: Sequence[str]) -> list[Any]:
        texts = [*prompts, *([] if self._negative is None else [self._negative])]
        cond = self._pipeline.encode(texts, length=self._length)
        self._pipeline.drop_text_encoders()
        conds = [jax.tree.map(lambda a, i=i: a[i], cond) for i in range(len(texts))]
        self._null = conds[-1]
        return conds[: len(prompts)]

    def flow(self) -> Flow:
        flow = self._pipeline.flow(*self._size)
        if self._negative is None:
            return flow
        return classifier_free_guidance(flow, self.guidance, self._null)


SAMPLING = Sampling(of=PIPELINE.name, title="a Stable Diffusion 3", make=SampledSD3)
