"""Stable Diffusion 3 as ``flowsde sample --model`` takes it."""

import re
from pathlib import Path
from typing import NamedTuple

from flowsde._checks import check_non_negative
from flowsde._text import shown
from flowsde.flow import Flow
from flowsde.grids import Grid
from flowsde.models.common.guided_pictures import GuidedPictures
from flowsde.models.converted.parts import Read
from flowsde.models.family import Sampling
from flowsde.models.sd3.guidance import SCALE, check_layers, skip_layer_guidance
from flowsde.models.sd3.pipeline import LENGTH, PIPELINE, SD3Pipeline, check_length

_START, _STOP = 0.01, 0.2
"""Shares of the steps, as published."""
_EVALUATIONS = 3
_NO_T5 = "converted without T5, whose states are zeros: text inside pictures is spelt less well"


class _Skipped(NamedTuple):
    """How blocks are left out.

    Attributes:
      layers: their numbers.
      scale: of the guidance away from the model without them.
      start: share of the steps after which it begins.
      stop: share of the steps before which it ends.
    """

    layers: tuple[int, ...]
    scale: float
    start: float
    stop: float


class SampledSD3(GuidedPictures):
    """A Stable Diffusion 3; see `flowsde.models.family.Sampled`."""

    opened = SD3Pipeline
    length = LENGTH
    check_length = staticmethod(check_length)

    def __init__(
        self,
        folder: Path,
        *,
        guidance: float | None,
        size: str | None,
        text_tokens: int | None,
        negative_prompt: str | None,
        read: Read,
        skip_layers: str | None,
        skip_scale: float | None,
        skip_start: float | None,
        skip_stop: float | None,
    ):
        super().__init__(
            folder,
            guidance=guidance,
            size=size,
            text_tokens=text_tokens,
            negative_prompt=negative_prompt,
            read=read,
        )
        self.notes = () if self._pipeline.has_t5 else (_NO_T5,)
        own = {"skip_scale": skip_scale, "skip_start": skip_start, "skip_stop": skip_stop}
        self._skipped = None if skip_layers is None else self._skipping(skip_layers, **own)
        if self._skipped is None:
            for name, value in own.items():
                if value is not None:
                    option = f"--{name.replace('_', '-')}"
                    raise ValueError(f"{option} has no effect without --skip-layers, got {value:g}")
        else:
            self.evaluations = _EVALUATIONS
            self._between = self._times(self._pipeline.grid(self._pipeline.steps))

    def _skipping(
        self,
        skip_layers: str,
        *,
        skip_scale: float | None,
        skip_start: float | None,
        skip_stop: float | None,
    ) -> _Skipped:
        """Checked, and said in the results."""
        if self._negative is None:
            raise ValueError("--skip-layers wants a --guidance other than 1, got 1")
        if not re.fullmatch(r"\d{1,4}(,\d{1,4})*", skip_layers):
            raise ValueError(
                "--skip-layers must be numbers of blocks with commas between them, such as 7,8,9, "
                f"got '{shown(skip_layers)}'"
            )
        layers = tuple(map(int, skip_layers.split(",")))
        check_layers("--skip-layers", layers, self._pipeline.config.depth)
        scale = SCALE if skip_scale is None else skip_scale
        check_non_negative("--skip-scale", scale)
        start = _START if skip_start is None else skip_start
        stop = _STOP if skip_stop is None else skip_stop
        if not 0.0 <= start < stop <= 1.0:
            raise ValueError(
                "--skip-start and --skip-stop must be shares of the steps, 0 to 1, of which the "
                f"first is the smaller, got {start:g} and {stop:g}"
            )
        said = ",".join(map(str, layers))
        self.named |= {"skip_layers": said, "skip_scale": scale}
        self.named |= {"skip_start": start, "skip_stop": stop}
        return _Skipped(layers, scale, start, stop)

    def grid(self, n: int) -> Grid | None:
        times = self._pipeline.grid(n)
        # Shares of these steps; of others than the model's own, of its usual number.
        self._between = self._times(times)
        return times

    def _times(self, grid: Grid) -> tuple[float, float]:
        """Between which blocks are left out: in the middle between steps with and without."""
        if self._skipped is None:
            return 0.0, 1.0
        n, (_, _, start, stop) = len(grid) - 1, self._skipped
        found = [i for i in range(n) if start * n < i < stop * n]
        if not found:
            raise ValueError(
                f"--skip-layers has no effect with {n} steps: none of them is between --skip-start "
                f"{start:g} and --skip-stop {stop:g}"
            )
        end, begin = found[-1] + 1, found[0]
        return float(grid[end - 1 : end + 1].mean()), float(grid[begin - 1 : begin + 1].mean())

    def flow(self) -> Flow:
        if self._skipped is None:
            return super().flow()
        flow, (layers, scale, *_) = self._pipeline.flow(*self._size), self._skipped
        return skip_layer_guidance(
            flow, self.guidance, self._null, layers=layers, skip_scale=scale, times=self._between
        )


SAMPLING = Sampling(of=PIPELINE.name, title="a Stable Diffusion 3", make=SampledSD3)
