"""Wan 2.1 as ``flowsde sample --model`` takes it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowsde._checks import check_count, check_non_negative
from flowsde.classifier_free import classifier_free_guidance
from flowsde.flow import Flow
from flowsde.grids import Grid
from flowsde.models.common.size import height_and_width
from flowsde.models.family import Sampling
from flowsde.models.wan.pipeline import (
    FRAMES,
    GUIDANCE,
    HEIGHT,
    PIPELINE,
    STEPS,
    WIDTH,
    WanPipeline,
)

FPS = 16.0
"""Frames a second, at which it was trained."""
_MOST_FRAMES, _MOST_FPS = 10_000, 240.0


class SampledWan:
    """A Wan 2.1; see `flowsde.models.family.SampledVideo`."""

    unprompted: str | None = None

    def __init__(
        self,
        folder: Path,
        *,
        guidance: float | None,
        size: str | None,
        frames: int | None,
        fps: float | None,
        negative_prompt: str | None,
    ):
        self._pipeline = WanPipeline(folder)
        self._height, self._width = (HEIGHT, WIDTH) if size is None else height_and_width(size)
        self.frames = FRAMES if frames is None else frames
        check_count("--frames", self.frames, most=_MOST_FRAMES)
        try:
            self._pipeline.latents(None, None, self.frames)
        except ValueError as error:
            raise ValueError(f"--{error}") from None
        try:
            self._pipeline.latents(self._height, self._width, self.frames)
        except ValueError as error:
            # The names of the arguments are those of the option.
            raise ValueError(f"--size: {error}") from None
        self.fps = _fps(fps, self.frames)
        self.guidance = GUIDANCE if guidance is None else guidance
        check_non_negative("--guidance", self.guidance)
        if self.guidance == 1.0 and negative_prompt is not None:
            raise ValueError(
                f"--negative-prompt has no effect with --guidance 1, got {negative_prompt!r}"
            )
        self._negative = None if self.guidance == 1.0 else negative_prompt or ""
        self.named: dict[str, Any] = {
            "size": f"{self._width}x{self._height}",
            "frames": self.frames,
            "negative_prompt": self._negative,
        }
        if self.frames > 1:
            self.named["fps"] = self.fps
        self.steps = {"ode": STEPS, "sde": STEPS}

    def grid(self, n: int) -> Grid | None:
        return self._pipeline.grid(n)

    def encode(self, prompts: Sequence[str]) -> list[Any]:
        texts = [*prompts, *([] if self._negative is None else [self._negative])]
        cond = self._pipeline.encode(texts)
        self._pipeline.drop_text_encoders()
        self._null = cond[-1]
        return [cond[i] for i in range(len(prompts))]

    def flow(self) -> Flow:
        flow = self._pipeline.flow(self._height, self._width, self.frames)
        if self._negative is None:
            return flow
        return classifier_free_guidance(flow, self.guidance, self._null)


def _fps(given: float | None, frames: int) -> float:
    if given is None:
        return FPS
    if frames == 1:
        raise ValueError(f"--fps has no effect with --frames 1, got {given:g}")
    if not 0.0 < given <= _MOST_FPS:
        raise ValueError(f"--fps must be above 0, to {_MOST_FPS:g}, got {given:g}")
    return given


SAMPLING = Sampling(of=PIPELINE.name, title="a Wan 2.1", make=SampledWan)
