"""FLUX.1 from prompts to images, of a folder that ``flowsde convert`` made of a whole pipeline.

    transformer       the flow, see `flowsde.models.flux`
    vae               latents to images
    text_encoder      CLIP's text tower, whose pooled output is used, before any projection
    text_encoder_2    T5's encoder; it sees padding as it sees text
    tokenizer, tokenizer_2, scheduler

A prompt has 512 tokens, as in the pipeline of this class in `diffusers`; the code of Black Forest
Labs takes 256 for schnell. dev was distilled with a guidance scale as an input, of usually 3.5, at
no cost; schnell, distilled to few steps, has none. A model without that input that was trained
further to be guided is guided at two evaluations, from a negative prompt, which may be empty:

    negative = pipeline.encode([""])
    null = jax.tree.map(lambda a: a[0], negative)
    flow = flowsde.classifier_free_guidance(pipeline.flow(), 3.5, null)

Steps and times are the scheduler's, see `schedule`.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flowsde._checks import check_count, check_non_negative
from flowsde.grids import Grid
from flowsde.models import autoencoder_kl, clip, t5
from flowsde.models.common.scheduler import check_times
from flowsde.models.common.tokenizers import Tokenizer, clip_tokenizer, t5_tokenizer
from flowsde.models.converted.parts import Parts, Read, read
from flowsde.models.family import Pipeline
from flowsde.models.flux import schedule
from flowsde.models.flux.model import FAMILY, FluxCond, FluxConfig
from flowsde.models.image_pipeline import PATCH, ImagePipeline

GUIDANCE = 3.5
LENGTH = 512
"""Tokens of a prompt, by default and at most."""
_FAMILIES = {
    "transformer": FAMILY,
    "vae": autoencoder_kl.FAMILY,
    "text_encoder": clip.TEXT,
    "text_encoder_2": t5.ENCODER,
}
_ENCODERS = ("text_encoder", "text_encoder_2")


class FluxPipeline(ImagePipeline):
    """A FLUX.1; its models are read when they are first used.

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
        self._schedule = schedule.read(folder / "scheduler")
        configs = self._parts.configs
        self.config: FluxConfig = configs["transformer"]
        text, t5 = configs["text_encoder"], configs["text_encoder_2"]
        self._clip = clip_tokenizer(folder / "tokenizer", length=text.positions, config=text)
        self._t5 = t5_tokenizer(folder / "tokenizer_2", length=LENGTH, vocab=t5.vocab)

    @property
    def _channels(self) -> int:
        return self.config.channels // PATCH**2

    @property
    def steps(self) -> int:
        """Of a trajectory, by its scheduler: 28, or 4 for a model that was distilled to few."""
        return self._schedule.steps

    def encode(
        self, prompts: Sequence[str], *, guidance: float | None = None, length: int = LENGTH
    ) -> FluxCond:
        """The condition of prompts, with a leading axis of them.

        Args:
          prompts: several; one that is too long is cut, with a warning.
          guidance: scale for dev, 3.5 by default; schnell takes none.
          length: T5's tokens of a prompt, padding included, at most 512.

        Raises:
          ValueError: a guidance that is negative, or that the model does not take; a length that
            cannot be.
        """
        scale = self.scale(guidance)
        tokenizer = dataclasses.replace(self._t5, length=check_length("length", length))
        n = len(prompts)
        # A prompt at a time: however many there are, one program and the memory of one.
        text = [_text(*self._split("text_encoder_2"), ids) for ids in _rows(tokenizer, prompts)]
        pooled = [_pooled(*self._split("text_encoder"), ids) for ids in _rows(self._clip, prompts)]
        return FluxCond(
            jnp.concatenate(text),
            jnp.concatenate(pooled),
            None if scale is None else jnp.full((n,), scale, jnp.float32),
        )

    def scale(self, guidance: float | None) -> float | None:
        """The guidance scale that is used: None for schnell. Errors as of `encode`."""
        if not self.config.guidance:
            if guidance is not None:
                raise ValueError(f"this model takes no guidance scale, got guidance {guidance}")
            return None
        if guidance is None:
            return GUIDANCE
        check_non_negative("guidance", guidance)
        return guidance

    def _split(self, name: str) -> tuple[Any, Any]:
        return nnx.split(self._parts[name])

    def drop_text_encoders(self) -> None:
        """Give their memory back, 10 GB of the published models; `encode` reads them again."""
        self._parts.drop(*_ENCODERS)

    def grid(self, n: int, height: int | None = None, width: int | None = None) -> Grid:
        """The n + 1 times that the model was made for: those of dev depend on the size.

        Args and errors as of `flow`.
        """
        rows, columns = self.latents(height, width)
        return self._schedule.grid(n, rows * columns // PATCH**2)


def check_length(name: str, length: int) -> int:
    """T5's tokens of a prompt; ValueError unless from 2, one and the end, to 512."""
    if not 2 <= check_count(name, length) <= LENGTH:
        raise ValueError(f"{name} must be from 2 to {LENGTH}, got {length}")
    return length


def _rows(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[np.ndarray]:
    """Tokens [1, length] of each prompt."""
    return list(tokenizer(prompts).ids[:, None])


@partial(jax.jit, static_argnums=0)
def _text(graph: Any, state: Any, tokens: jax.Array) -> jax.Array:
    return nnx.merge(graph, state)(tokens)


@partial(jax.jit, static_argnums=0)
def _pooled(graph: Any, state: Any, tokens: jax.Array) -> jax.Array:
    return nnx.merge(graph, state)(tokens).pooled


PIPELINE = Pipeline(
    name="FluxPipeline",
    build=FluxPipeline,
    check=partial(check_times, read=schedule.read),
    transformer=FAMILY.name,
)
