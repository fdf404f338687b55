"""Wan 2.1 from prompts to videos, of a folder that ``flowsde convert`` made of a whole pipeline.

    transformer       the flow, see `flowsde.models.wan`
    vae               latents to frames, see `flowsde.models.autoencoder_wan`
    text_encoder      UMT5's encoder, which does not see padding
    tokenizer, scheduler

The transformer is given 512 states of a text, and sees all of them: those beyond the prompt's end
are zeros. It was trained with guidance of usually 5, at two evaluations, from a negative prompt,
which may be empty:

    text, null = pipeline.encode([prompt, ""])
    flow = flowsde.classifier_free_guidance(pipeline.flow(480, 832, 17), 5.0, null)

A video of one frame is a picture. The published pipeline gives the model times that are rounded
down to a thousandth; here they are as the grid has them.
"""

import html
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flowsde._checks import check_count
from flowsde._files import read_json
from flowsde.flow import Flow
from flowsde.grids import Grid
from flowsde.models import autoencoder_wan, t5
from flowsde.models.autoencoder_wan.decoder import decoder
from flowsde.models.common.scheduler import check_times
from flowsde.models.common.tokenizers import t5_tokenizer
from flowsde.models.converted.parts import Parts, Read, read
from flowsde.models.converted.store import INDEX
from flowsde.models.family import Pipeline
from flowsde.models.wan import schedule
from flowsde.models.wan.model import FAMILY, WanConfig

HEIGHT, WIDTH, FRAMES = 480, 832, 81
"""Of a video, unless told otherwise."""
GUIDANCE = 5.0
STEPS = 50
LENGTH = 512
"""States of a text."""
_PATCH = 2
_FAMILIES = {
    "transformer": FAMILY,
    "vae": autoencoder_wan.FAMILY,
    "text_encoder": t5.UMT5,
}


class WanPipeline:
    """A Wan 2.1; its models are read when they are first used.

    Args:
      folder: that a conversion wrote.
      read: a model of a folder.
      verify: whether to compare what configures the models with its hashes.

    Raises:
      FileNotFoundError, ValueError: a part is missing or of something else, before any weights are
        read.
    """

    def __init__(self, folder: Path, read: Read = read, verify: bool = True):
        parts = {name: folder / name for name in _FAMILIES}
        self._parts = Parts(parts, _FAMILIES, read, verify)
        self._shift = schedule.read(folder / "scheduler")
        self.config: WanConfig = self._parts.configs["transformer"]
        vocab = self._parts.configs["text_encoder"].vocab
        self._tokenizer = t5_tokenizer(folder / "tokenizer", length=LENGTH, vocab=vocab)

    @property
    def held(self) -> Sequence[str]:
        """Names of the models that are in memory."""
        return self._parts.held

    def encode(self, prompts: Sequence[str]) -> jax.Array:
        """The condition of prompts, float [prompts, 512, text features], zeros beyond each's end.

        Entities of HTML are resolved, and runs of blanks are one. A prompt that is too long is cut,
        with a warning.
        """
        tokens = self._tokenizer([_cleaned(prompt) for prompt in prompts])
        model = nnx.split(self._parts["text_encoder"])
        # A prompt at a time: however many there are, one program and the memory of one.
        rows = zip(tokens.ids[:, None], tokens.mask[:, None], strict=True)
        return jnp.concatenate([_text(*model, ids, mask) for ids, mask in rows])

    def drop_text_encoders(self) -> None:
        """Give their memory back, 11 GB of the published models; `encode` reads them again."""
        self._parts.drop("text_encoder")

    def flow(
        self, height: int | None = None, width: int | None = None, frames: int | None = None
    ) -> Flow:
        """The flow of latents [frames, rows, columns, 16], with the autoencoder as its `decode`.

        Args:
          height: pixels, a multiple of 16 for the published models; 480 by default.
          width: the same; 832 by default.
          frames: 1 + 4 k of them; 81 by default. One frame's latents decode to a picture.

        Returns:
          A `flowsde.Flow` whose cond is one row of `encode`; it decodes to float32 in [-1, 1],
          [n, frames, height, width, 3], or [n, height, width, 3] for one frame.

        Raises:
          ValueError: a size or a number of frames that cannot be.
        """
        shape = self.latents(height, width, frames)
        decode = decoder(self._parts["vae"], *shape)
        transformer = self._parts["transformer"]
        return Flow.from_nnx(transformer, (*shape, self.config.channels), decode=decode)

    def grid(self, n: int, shift: float | None = None) -> Grid:
        """The n + 1 times that the model was made for.

        Args:
          n: steps, usually 50.
          shift: that of the scheduler by default; 3 is published for 480 rows, 5 for 720.
        """
        return schedule.grid(n, self._shift if shift is None else shift)

    def latents(
        self, height: int | None, width: int | None, frames: int | None
    ) -> tuple[int, int, int]:
        """Frames, rows and columns of the latents of such videos; errors as of `flow`."""
        vae = self._parts.configs["vae"]
        count = check_count("frames", FRAMES if frames is None else frames)
        if over := (count - 1) % vae.frames:
            less = count - over
            raise ValueError(
                f"frames must be 1 and a multiple of {vae.frames}, got {count}: expected {less} or "
                f"{less + vae.frames}"
            )
        sizes = [1 + (count - 1) // vae.frames]
        unit = _PATCH * vae.factor
        for name, given, usual in (("height", height, HEIGHT), ("width", width, WIDTH)):
            pixels = usual if given is None else check_count(name, given)
            if pixels % unit:
                raise ValueError(f"{name} must be a multiple of {unit}, got {pixels}")
            sizes.append(pixels // vae.factor)
        return sizes[0], sizes[1], sizes[2]


def _cleaned(prompt: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(html.unescape(prompt))).strip()


@partial(jax.jit, static_argnums=0)
def _text(graph: Any, state: Any, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    states = nnx.merge(graph, state)(tokens, mask)
    return jnp.where(mask[:, :, None], states, jnp.zeros_like(states))


def _check(source: Path) -> None:
    """ValueError for what shares the class with Wan 2.1, or times that cannot be read."""
    index = read_json(source / INDEX)
    for name in ("boundary_ratio", "expand_timesteps"):
        if index.get(name):
            raise ValueError(
                f"{source / INDEX} has {name} {index[name]!r}, as a Wan 2.2 has, expected Wan 2.1"
            )
    check_times(source, schedule.read)


PIPELINE = Pipeline(name="WanPipeline", build=WanPipeline, check=_check, transformer=FAMILY.name)
"""Wan 2.1 as ``flowsde sample --model`` takes it."""
