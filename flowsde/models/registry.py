"""The models that there are; one of your own is one more folder and one more line here."""

from typing import Any

from flowsde.models import (
    aesthetic,
    autoencoder_kl,
    autoencoder_wan,
    blip,
    clip,
    clip_flant5,
    flux,
    flux2,
    instructblip,
    owlv2,
    qwen3,
    qwen3_vl,
    sd3,
    sit,
    t5,
    wan,
    zimage,
)
from flowsde.models.family import Family, Pipeline, Sampling

_PACKAGES = (
    sit,
    flux,
    clip,
    clip_flant5,
    instructblip,
    t5,
    autoencoder_kl,
    autoencoder_wan,
    aesthetic,
    wan,
    blip,
    qwen3,
    qwen3_vl,
    zimage,
    owlv2,
    sd3,
    flux2,
)
"""With a `Family` or several each, and what else `family` describes."""

_registered: list[Family | Pipeline | Sampling] = []


def register(*own: Family | Pipeline | Sampling) -> None:
    """Let models of your own be loaded and sampled, in this process."""
    _registered.extend(own)


def _all(kind: type) -> list[Any]:
    held = [value for package in _PACKAGES for value in vars(package).values()]
    return [one for one in (*held, *_registered) if isinstance(one, kind)]


def families() -> dict[str, Family]:
    """Every family by name."""
    return {one.name: one for one in _all(Family)}


def pipelines() -> dict[str, Pipeline]:
    """Every pipeline by the class that `model_index.json` names."""
    return {one.name: one for one in _all(Pipeline)}


def samplings() -> dict[str, Sampling]:
    """How each is sampled that can be, by the name of its family or pipeline."""
    return {one.of: one for one in _all(Sampling)}


def is_transformer(family: str) -> bool:
    """Whether a family is the part of a pipeline that makes the samples, which reads texts."""
    return any(one.transformer == family for one in pipelines().values())
