"""FLUX.2-klein from prompts to images, of a folder that ``flowsde convert`` made of a pipeline.

    transformer       the flow, see `flowsde.models.flux2`
    vae               latents to images
    text_encoder      Qwen3, of which the states after 9, 18 and 27 blocks are read
    tokenizer         of chats: a prompt is what a user says
    scheduler

A chat has 512 tokens, those around the prompt and padding included, which the transformer sees as
it sees text. The distilled model takes 4 steps without guidance; the base model takes 50, with
guidance at two evaluations, from a negative prompt, which may be empty:

    cond = pipeline.encode([prompt, ""])
    wanted, null = (jax.tree.map(lambda a: a[i], cond) for i in (0, 1))
    flow = flowsde.classifier_free_guidance(pipeline.flow(), 4.0, null)
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flowsde import _schema
from flowsde._checks import check_count
from flowsde._files import read_json
from flowsde._text import shown
from flowsde.grids import Grid
from flowsde.models import autoencoder_kl, qwen3
from flowsde.models.common.scheduler import check_times
from flowsde.models.common.tokenizers import qwen3_tokenizer
from flowsde.models.converted.parts import Parts, Read, read
from flowsde.models.converted.store import INDEX
from flowsde.models.family import Pipeline
from flowsde.models.flux2 import schedule
from flowsde.models.flux2.model import FAMILY, Flux2Cond, Flux2Config
from flowsde.models.image_pipeline import PATCH, ImagePipeline

_GUIDANCE = 4.0
"""Of a model that was not distilled."""
LENGTH = 512
"""Tokens of a chat, by default and at most."""
BLOCKS = (9, 18, 27)
"""Of the language model, after which its states are read."""
_STEPS, _DISTILLED_STEPS = 50, 4
_FAMILIES = {
    "transformer": FAMILY,
    "vae": autoencoder_kl.FAMILY,
    "text_encoder": qwen3.FAMILY,
}


class Flux2KleinPipeline(ImagePipeline):
    """A FLUX.2-klein; its models are read when they are first used.

    Args:
      folder: that a conversion wrote.
      read: a model of a folder.
      verify: whether to compare what configures the models with its hashes.

    Raises:
      FileNotFoundError, ValueError: a part is missing or of something else, before any weights are
        read.

    Attributes:
      distilled: whether it takes few steps and no guidance, as `model_index.json` says.
    """

    def __init__(self, folder: Path, read: Read = read, verify: bool = True):
        parts = {name: folder / name for name in _FAMILIES}
        self._parts = Parts(parts, _FAMILIES, read, verify)
        schedule.check(folder / "scheduler")
        self.distilled = _distilled(folder)
        self.config: Flux2Config = self._parts.configs["transformer"]
        _check_parts(folder, self._parts.configs)
        vocab = self._parts.configs["text_encoder"].vocab
        self._tokenizer = qwen3_tokenizer(
            folder / "tokenizer", length=LENGTH, vocab=vocab, thinking=False
        )

    @property
    def _channels(self) -> int:
        return self.config.channels // PATCH**2

    @property
    def steps(self) -> int:
        """Of a trajectory: 4 for a distilled model, 50 for a base model."""
        return _DISTILLED_STEPS if self.distilled else _STEPS

    @property
    def guidance(self) -> float:
        """The scale that it is usually guided by; 1, of a distilled model, is none."""
        return 1.0 if self.distilled else _GUIDANCE

    def encode(self, prompts: Sequence[str], *, length: int = LENGTH) -> Flux2Cond:
        """The condition of prompts, with a leading axis of them.

        Args:
          prompts: several; one that is too long is cut, with a warning.
          length: tokens of a chat, padding included, at most 512. Of fewer the transformer is
            cheaper, and sees less padding than it was trained with.

        Raises:
          ValueError: a length that cannot be.
        """
        tokenizer = dataclasses.replace(self._tokenizer, length=check_length("length", length))
        tokens = tokenizer(prompts)
        model = nnx.split(self._parts["text_encoder"])
        # A prompt at a time: however many there are, one program and the memory of one.
        text = [
            _text(*model, ids[None], seen[None])
            for ids, seen in zip(tokens.ids, tokens.mask, strict=True)
        ]
        return Flux2Cond(jnp.concatenate(text))

    def drop_text_encoders(self) -> None:
        """Give their memory back, 8 GB of the published models; `encode` reads them again."""
        self._parts.drop("text_encoder")

    def grid(self, n: int, height: int | None = None, width: int | None = None) -> Grid:
        """The n + 1 times that the model was made for, which depend on the size.

        Args and errors as of `flow`.
        """
        rows, columns = self.latents(height, width)
        return schedule.grid(n, rows * columns // PATCH**2)


def check_length(name: str, length: int) -> int:
    """Tokens of a chat; ValueError unless from 1 to 512."""
    if check_count(name, length) > LENGTH:
        raise ValueError(f"{name} must be from 1 to {LENGTH}, got {length}")
    return length


def _check_parts(folder: Path, configs: dict[str, Any]) -> None:
    """ValueError unless a pipeline's models fit each other."""
    model, vae, text = (configs[name] for name in ("transformer", "vae", "text_encoder"))
    if text.width * len(BLOCKS) != model.text or text.depth < max(BLOCKS):
        raise ValueError(
            f"{folder}: text_encoder has {text.depth} blocks of {text.width} features, expected "
            f"{max(BLOCKS)} at least, of {model.text // len(BLOCKS)}: the transformer takes those "
            f"of {len(BLOCKS)} together"
        )
    if not vae.normalised or vae.latents * PATCH**2 != model.channels:
        kind = "" if vae.normalised else " without their mean and variance"
        raise ValueError(
            f"{folder}: vae has {vae.latents} channels of latents{kind}, expected the "
            f"{model.channels // PATCH**2} of the transformer, normalised as FLUX.2's"
        )


def _distilled(folder: Path) -> bool:
    index = folder / INDEX
    return _schema.flag(read_json(index).get("is_distilled", False), f"{index}: is_distilled")


def _check(folder: Path) -> None:
    """ValueError unless what is copied of a pipeline can be read later."""
    check_times(folder, schedule.check)
    _distilled(folder)
    settings = folder / "tokenizer" / "tokenizer_config.json"
    side = read_json(settings).get("padding_side", "right") if settings.is_file() else "right"
    if side != "right":
        raise ValueError(f"{settings}: padding_side must be 'right', got {shown(repr(side))}")


@partial(jax.jit, static_argnums=0)
def _text(graph: Any, state: Any, tokens: jax.Array, seen: jax.Array) -> jax.Array:
    states = nnx.merge(graph, state).after(tokens, BLOCKS, seen)
    return states.reshape(*states.shape[:2], -1)


PIPELINE = Pipeline(
    name="Flux2KleinPipeline",
    build=Flux2KleinPipeline,
    check=_check,
    transformer=FAMILY.name,
    others={"Flux2Pipeline": "FLUX.2-dev, whose texts Mistral reads"},
)
