"""What models that make pictures of a text, guided at two evaluations, are in the command."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from flowsde.flow import Flow
from flowsde.grids import Grid
from flowsde.models.common.guided import encoded, guidance_of, guided, sides
from flowsde.models.converted.parts import Read


class GuidedPictures:
    """A base class; see `flowsde.models.family.Sampled`.

    Attributes:
      opened: the pipeline of a folder, whose models are read so.
      length: tokens of a text by default.
      check_length: of the option's name and a number of tokens; ValueError for one that cannot be.
    """

    unprompted: str | None = None
    opened: Callable[[Path, Read], Any]
    length: int
    check_length: Callable[[str, int], int]

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
        self._pipeline = self.opened(folder, read)
        self._size = sides(size, self._pipeline.latents)
        length = self.length if text_tokens is None else text_tokens
        self._length = self.check_length("--text-tokens", length)
        self.guidance, self._negative = self._guidance(guidance, negative_prompt)
        height, width = (side or self._pipeline.side for side in self._size)
        self.named: dict[str, Any] = {
            "size": f"{width}x{height}",
            "negative_prompt": self._negative,
            "text_tokens": self._length,
        }
        self.steps = {"ode": self._pipeline.steps, "sde": self._pipeline.steps}

    def _guidance(self, given: float | None, negative: str | None) -> tuple[float, str | None]:
        """The scale, and the prompt to lead away from."""
        return guidance_of(given, self._pipeline.guidance, negative)

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
