"""Stable Diffusion 3 and 3.5 from prompts to images, of a folder that ``flowsde convert`` made of a
whole pipeline.

    transformer       the flow, see `flowsde.models.sd3`
    vae               latents to images
    text_encoder      CLIP's text tower of ViT-L/14, with its projection
    text_encoder_2    that of ViT-bigG/14, with its projection
    text_encoder_3    T5's encoder; it sees padding as it sees text
    tokenizer, tokenizer_2, tokenizer_3, scheduler

A text is the states of both CLIPs before their last block, side by side and filled up with zeros to
T5's features, followed by T5's states of 256 tokens. A pipeline may lack T5: then those are zeros.
SD3.5-large-turbo was distilled to 4 steps without guidance, which its folder does not say; its
conversion does. All other models are guided, by usually 3.5 to 7, at two
evaluations, from a negative prompt, which may be empty; SD3.5-medium may be guided by leaving out
some of its blocks as well, at three:

    conds = pipeline.encode([prompt, ""])
    null = jax.tree.map(lambda a: a[1], conds)
    flow = flowsde.classifier_free_guidance(pipeline.flow(), 4.5, null)
    flow = flowsde.models.sd3.guidance.skip_layer_guidance(pipeline.flow(), 4.5, null)

Steps and times are the scheduler's, see `schedule`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flowsde._checks import check_count
from flowsde._files import read_json
from flowsde.grids import Grid
from flowsde.models import autoencoder_kl, clip, t5
from flowsde.models.common.scheduler import check_times
from flowsde.models.common.tokenizers import Tokenizer, clip_tokenizer, t5_tokenizer
from flowsde.models.converted.parts import Parts, Read, read
from flowsde.models.converted.store import INDEX, read_config
from flowsde.models.converted.store import PIPELINE as FORMAT
from flowsde.models.family import Pipeline
from flowsde.models.image_pipeline import ImagePipeline
from flowsde.models.sd3 import schedule
from flowsde.models.sd3.model import FAMILY, PATCH, SD3Cond, SD3Config

LENGTH, LONGEST = 256, 512
"""T5's tokens of a prompt, by default and at most."""
_STEPS, _DISTILLED_STEPS = 28, 4
_GUIDANCE = 7.0
"""Of a model that was not distilled."""
_LARGE = SD3Config.large_3_5().depth
_CLIPS = ("text_encoder", "text_encoder_2")
_T5 = "text_encoder_3"
_FAMILIES = {
    "transformer": FAMILY,
    "vae": autoencoder_kl.FAMILY,
    "text_encoder": clip.TEXT,
    "text_encoder_2": clip.TEXT,
    "text_encoder_3": t5.ENCODER,
}


class SD3Pipeline(ImagePipeline):
    """A Stable Diffusion 3; its models are read when they are first used.

    Args:
      folder: that a conversion wrote.
      read: a model of a folder.
      verify: whether to compare what configures the models with its hashes.

    Raises:
      FileNotFoundError, ValueError: a part is missing or of something else, or the parts do not fit
        together, before any weights are read.

    Attributes:
      has_t5: whether T5 reads the text, too.
      distilled: whether it takes few steps and no guidance, as its conversion says.
    """

    def __init__(self, folder: Path, read: Read = read, verify: bool = True):
        kind = read_json(folder / INDEX).get(_T5)
        self.has_t5 = isinstance(kind, list) and None not in kind
        self.distilled = read_config(folder, FORMAT, verify).get("distilled", False)
        families = {name: of for name, of in _FAMILIES.items() if self.has_t5 or name != _T5}
        parts = {name: folder / name for name in families}
        self._parts = Parts(parts, families, read, verify)
        self._shift = schedule.read(folder / "scheduler")
        configs = self._parts.configs
        self.config: SD3Config = configs["transformer"]
        _check_parts(folder, configs)
        # Both have one length, that of the first.
        length = configs[_CLIPS[0]].positions
        self._clip = [
            clip_tokenizer(folder / name, length=length, config=configs[encoder])
            for name, encoder in zip(("tokenizer", "tokenizer_2"), _CLIPS, strict=True)
        ]
        self._t5 = None
        if self.has_t5:
            vocab = configs[_T5].vocab
            self._t5 = t5_tokenizer(folder / "tokenizer_3", length=LENGTH, vocab=vocab)

    @property
    def steps(self) -> int:
        """Of a trajectory, as published: 28, or 4 of a distilled model."""
        return _DISTILLED_STEPS if self.distilled else _STEPS

    @property
    def guidance(self) -> float:
        """The scale that it is usually guided by, as published; of a distilled model 1, none."""
        return 1.0 if self.distilled else _GUIDANCE

    @property
    def _largest(self) -> int:
        """As far as the table of positions goes."""
        return PATCH * self._factor * self.config.side

    def encode(self, prompts: Sequence[str], *, length: int = LENGTH) -> SD3Cond:
        """The condition of prompts, with a leading axis of them.

        Args:
          prompts: several; one that is too long for CLIP or T5 is cut there, with a warning.
          length: T5's tokens of a prompt, padding included, at most 512; without T5, as many zeros.

        Raises:
          ValueError: a length that cannot be.
        """
        check_length("length", length)
        # A prompt at a time: however many there are, one program and the memory of one.
        states, pooled = [], []
        for name, clip_words in zip(_CLIPS, self._clip, strict=True):
            model = nnx.split(self._parts[name])
            found = [_clip_text(*model, ids) for ids in _rows(clip_words, prompts)]
            states.append(jnp.concatenate([one for one, _ in found]))
            pooled.append(jnp.concatenate([one for _, one in found]))
        words = self._words(prompts, length, jnp.result_type(*states))
        dtype = jnp.result_type(words, *states)
        both = jnp.concatenate([one.astype(dtype) for one in states], axis=-1)
        filled = jnp.pad(both, ((0, 0), (0, 0), (0, words.shape[-1] - both.shape[-1])))
        return SD3Cond(
            jnp.concatenate([filled, words.astype(dtype)], axis=1),
            jnp.concatenate([one.astype(dtype) for one in pooled], axis=-1),
        )

    def _words(self, prompts: Sequence[str], length: int, dtype: Any) -> jax.Array:
        """T5's states [prompts, length, features], or zeros of a dtype."""
        if self._t5 is None:
            return jnp.zeros((len(prompts), length, self.config.text), dtype)
        tokenizer, model = dataclasses.replace(self._t5, length=length), nnx.split(self._parts[_T5])
        return jnp.concatenate([_t5_text(*model, ids) for ids in _rows(tokenizer, prompts)])

    def drop_text_encoders(self) -> None:
        """Give their memory back, 11 GB of the published models; `encode` reads them again."""
        self._parts.drop(*_CLIPS, _T5)

    def grid(self, n: int) -> Grid:
        """The n + 1 times that the model was made for."""
        return schedule.grid(n, self._shift)


def check_length(name: str, length: int) -> int:
    """T5's tokens of a prompt; ValueError unless from 2, one and the end, to 512."""
    if not 2 <= check_count(name, length) <= LONGEST:
        raise ValueError(f"{name} must be from 2 to {LONGEST}, got {length}")
    return length


def _check_parts(folder: Path, configs: dict[str, Any]) -> None:
    """ValueError unless the transformer takes what the others give."""
    config: SD3Config = configs["transformer"]
    clips = [configs[name] for name in _CLIPS]
    for name, one in zip(_CLIPS, clips, strict=True):
        if one.projection is None:
            raise ValueError(f"{folder / name} must have a projection, as CLIPs of SD3 have")
    pooled = sum(one.projection for one in clips)
    for what, found, wanted in (
        ("latent channels", configs["vae"].latents, config.channels),
        *([("features of T5", configs[_T5].width, config.text)] if _T5 in configs else []),
        ("projected features of both CLIPs", pooled, config.pooled),
    ):
        if found != wanted:
            raise ValueError(f"{folder}: the transformer takes {wanted} {what}, got {found}")
    widths = sum(one.width for one in clips)
    if widths > config.text:
        raise ValueError(f"{folder}: both CLIPs must have {config.text} features, got {widths}")


def _notes(configs: Mapping[str, Any], distilled: bool) -> list[str]:
    """What a conversion is to say."""
    said = []
    if distilled:
        said.append(f"taken for distilled: {_DISTILLED_STEPS} steps without guidance by default")
    elif getattr(configs.get("transformer"), "depth", None) == _LARGE:
        said.append(
            "taken for SD3.5-large, of whose files those of SD3.5-large-turbo differ in weights "
            "alone: if it is that, give --distilled"
        )
    if _T5 not in configs:
        said.append(f"without T5 ({_T5}): its states are zeros, as they are in diffusers")
    return said


def _rows(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[np.ndarray]:
    """Tokens [1, length] of each prompt."""
    return list(tokenizer(prompts).ids[:, None])


@partial(jax.jit, static_argnums=0)
def _clip_text(graph: Any, state: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    features = nnx.merge(graph, state)(tokens)
    return features.penultimate, features.embedding


@partial(jax.jit, static_argnums=0)
def _t5_text(graph: Any, state: Any, tokens: jax.Array) -> jax.Array:
    return nnx.merge(graph, state)(tokens)


PIPELINE = Pipeline(
    name="StableDiffusion3Pipeline",
    build=SD3Pipeline,
    check=partial(check_times, read=schedule.read),
    transformer=FAMILY.name,
    optional=(_T5, "tokenizer_3"),
    distilled="turbo",
    notes=_notes,
)
"""Stable Diffusion 3 and 3.5 as ``flowsde sample --model`` takes them."""
