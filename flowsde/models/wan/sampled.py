"""Wan 2.1 as ``flowsde sample --model`` takes it."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flowsde._checks import check_count
from flowsde.flow import Flow
from flowsde.grids import Grid
from flowsde.models.common.guided import encoded, guidance_of, guided, sides
from flowsde.models.converted.parts import Read
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
_MOST_FRAMES, _LEAST_FPS, _MOST_FPS = 10_000, 0.01, 240.0


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
        read: Read,
    ):
        self._pipeline = WanPipeline(folder, read)
        self.frames = FRAMES if frames is None else frames
        check_count("--frames", self.frames, most=_MOST_FRAMES)
        try:
            self._pipeline.latents(None, None, self.frames)
        except ValueError as error:
            raise ValueError(f"--{error}") from None
        height, width = sides(size, partial(self._pipeline.latents, frames=self.frames))
        self._height, self._width = height or HEIGHT, width or WIDTH
        self.fps = _fps(fps, self.frames)
        self.guidance, self._negative = guidance_of(guidance, GUIDANCE, negative_prompt)
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
        conds, self._null = encoded(self._pipeline.encode, prompts, self._negative)
        self._pipeline.drop_text_encoders()
        return conds

    def flow(self) -> Flow:
        flow = self._pipeline.flow(self._height, self._width, self.frames)
        return guided(flow, self.guidance, self._negative, self._null)


def _fps(given: float | None, frames: int) -> float:
    if given is None:
        return FPS
    if frames == 1:
        raise ValueError(f"--fps has no effect with --frames 1, got {given:g}")
    if not _LEAST_FPS <= given <= _MOST_FPS:
        raise ValueError(f"--fps must be from {_LEAST_FPS:g} to {_MOST_FPS:g}, got {given:g}")
    return given


SAMPLING = Sampling(of=PIPELINE.name, title="a Wan 2.1", make=SampledWan)
