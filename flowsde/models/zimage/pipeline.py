"""Z-Image from prompts to images, of a folder that ``flowsde convert`` made of a whole pipeline.

    transformer       the flow, see `flowsde.models.zimage`
    vae               latents to images, FLUX.1's
    text_encoder      Qwen3, of which the states before the last block are read
    tokenizer         of chats: a prompt is what a user says
    scheduler

A chat has 512 tokens at most, those around the prompt included. Z-Image-Turbo was distilled to 8
steps without guidance; Z-Image takes 50, with guidance at two evaluations, from a negative prompt,
which may be empty:

    cond = pipeline.encode([prompt, ""])
    wanted, null = (jax.tree.map(lambda a: a[i], cond) for i in (0, 1))
    flow = flowsde.classifier_free_guidance(pipeline.flow(), 5.0, null)

A scale of 1 is no guidance, as everywhere here: it is 1 + `guidance_scale` of the published
pipeline, where that is 0.
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

from flowsde._checks import check_count
from flowsde.grids import Grid, shifted
from flowsde.models import autoencoder_kl, qwen3
from flowsde.models.common.scheduler import check_times
from flowsde.models.common.tokenizers import qwen3_tokenizer
from flowsde.models.converted.parts import Parts, Read, read
from flowsde.models.family import Pipeline
from flowsde.models.image_pipeline import ImagePipeline
from flowsde.models.zimage import schedule
from flowsde.models.zimage.model import FAMILY, MULTIPLE, ZImageCond, ZImageConfig

_GUIDANCE = 5.0
"""Of a Z-Image that was not distilled."""
LENGTH = 512
"""Tokens of a chat, by default and at most."""
_STEPS, _DISTILLED_STEPS = 50, 8
_DISTILLED_SHIFT = 4.5
"""Below this times are a distilled model's: Turbo's are shifted by 3, Z-Image's by 6."""
_FAMILIES = {
    "transformer": FAMILY,
    "vae": autoencoder_kl.FAMILY,
    "text_encoder": qwen3.FAMILY,
}


class ZImagePipeline(ImagePipeline):
    """A Z-Image; its models are read when they are first used.

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
        configs = self._parts.configs
        self.config: ZImageConfig = configs["transformer"]
        text = configs["text_encoder"]
        if text.width != self.config.text:
            raise ValueError(
                f"{folder}: text_encoder gives {text.width} features, expected the "
                f"{self.config.text} that the transformer takes"
            )
        self._tokenizer = qwen3_tokenizer(folder / "tokenizer", length=LENGTH, vocab=text.vocab)

    @property
    def distilled(self) -> bool:
        """Whether it is Z-Image-Turbo, by its scheduler: in no other file they differ."""
        return self._shift < _DISTILLED_SHIFT

    @property
    def steps(self) -> int:
        """Of a trajectory: 8 for Z-Image-Turbo, 50 for Z-Image."""
        return _DISTILLED_STEPS if self.distilled else _STEPS

    @property
    def guidance(self) -> float:
        """The scale that it is usually guided by; 1, of a distilled model, is none."""
        return 1.0 if self.distilled else _GUIDANCE

    def encode(self, prompts: Sequence[str], *, length: int = LENGTH) -> ZImageCond:
        """The condition of prompts, with a leading axis of them.

        Args:
          prompts: several; one that is too long is cut, with a warning.
          length: tokens of a chat, a multiple of 32, at most 512. Of fewer the transformer is
            cheaper; a text that is not cut means the same.

        Raises:
          ValueError: a length that cannot be.
        """
        tokenizer = dataclasses.replace(self._tokenizer, length=check_length("length", length))
        tokens = tokenizer(prompts)
        model = nnx.split(self._parts["text_encoder"])
        # A prompt at a time: however many there are, one program and the memory of one.
        text = [_text(*model, ids) for ids in tokens.ids[:, None]]
        return ZImageCond(jnp.concatenate(text), jnp.asarray(tokens.mask.sum(1, dtype=np.int32)))

    def drop_text_encoders(self) -> None:
        """Give their memory back, 8 GB of the published models; `encode` reads them again."""
        self._parts.drop("text_encoder")

    def grid(self, n: int) -> Grid:
        """The n + 1 times that the model was made for, of images of any size."""
        return shifted(n, self._shift)


def check_length(name: str, length: int) -> int:
    """Tokens of a chat; ValueError unless a multiple of 32, to 512."""
    if check_count(name, length) > LENGTH or length % MULTIPLE:
        raise ValueError(f"{name} must be a multiple of {MULTIPLE}, to {LENGTH}, got {length}")
    return length


@partial(jax.jit, static_argnums=0)
def _text(graph: Any, state: Any, tokens: jax.Array) -> jax.Array:
    return nnx.merge(graph, state)(tokens).penultimate


PIPELINE = Pipeline(
    name="ZImagePipeline",
    build=ZImagePipeline,
    check=partial(check_times, read=schedule.read),
    transformer=FAMILY.name,
)
"""Z-Image and Z-Image-Turbo as ``flowsde sample --model`` takes them."""
