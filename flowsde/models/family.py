"""What a folder beside this file says of itself: its models, pipelines, and how they are sampled.

A `Family` is one architecture, a `Pipeline` several models that work together. A `Sampling` makes
either known to ``flowsde sample --model``.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from flax import nnx

from flowsde.flow import Flow
from flowsde.grids import Grid
from flowsde.models.common.layers import Numerics, shapes_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture.

    Attributes:
      name: as users write it, "flux".
      config: the class of its configurations, JSON values by field name.
      build: the NNX module, called with (configuration, numerics, rngs=...).
      flow: (model, configuration) to the `flowsde.Flow` that `flowsde.load` gives; without it,
        it gives the model.
    """

    name: str
    config: type
    build: Callable[..., nnx.Module]
    flow: Callable[[Any, Any], Flow] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Models that work together, and what `flowsde.load` gives for them.

    Attributes:
      name: its class, as `model_index.json` has it.
      build: called with (folder, read, verify): `read` as in `converted.parts`, and whether to
        compare files with their hashes.
      check: of a folder that is to be converted; ValueError if what is copied of it could not be
        read later.
      transformer: the family of its part of this name, if another model's weights may be given for
        it.
      others: classes that are not supported though a part of their name says so, and what they are.
      optional: parts that it can do without.
      distilled: a word in the name of a source that says that it was distilled, of a family whose
        files do not; None of others.
      notes: what a conversion is to say, of the configurations of its models by name and of whether
        it was distilled.
    """

    name: str
    build: Callable[..., Any]
    check: Callable[[Path], Any] = lambda folder: None
    transformer: str | None = None
    others: Mapping[str, str] = dataclasses.field(default_factory=dict)
    optional: tuple[str, ...] = ()
    distilled: str | None = None
    notes: Callable[[Mapping[str, Any], bool], Sequence[str]] = lambda configs, distilled: ()


class Sampled(Protocol):
    """A converted model, set up by the command's options; no weights are read before `encode`.

    Where a candidate costs other than one evaluation, or two of a guided model, it says how many:
    `evaluations`. What a user should know of the model, in words, may be in `notes`.

    Attributes:
      steps: of a trajectory by method, where the preset leaves them to the model.
      named: settings of its own for result.json, by option.
      guidance: scale that costs a second evaluation; 1 for none.
      unprompted: name of the picture of a model that reads no prompt; None for one that does.
    """

    steps: dict[str, int]
    named: dict[str, Any]
    guidance: float
    unprompted: str | None

    def grid(self, n: int) -> Grid | None:
        """The n + 1 times that the model was made for, None where they are uniform."""
        ...

    def encode(self, prompts: Sequence[str]) -> list[Any]:
        """Conds without a batch axis; what was read for it is dropped."""
        ...

    def flow(self) -> Flow:
        """With the weights, after `encode`."""
        ...


@runtime_checkable
class SampledVideo(Sampled, Protocol):
    """One that makes videos [frames, h, w, 3], or pictures if of one frame.

    The first axis of its latents is time, and the first of them decodes alone, to the first frame.

    Attributes:
      frames: of a video.
      fps: frames a second.
    """

    frames: int
    fps: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How ``flowsde sample --model`` takes a family or a pipeline.

    Attributes:
      of: name of the `Family` or the `Pipeline`.
      title: with its article, for messages: "a SiT".
      make: called with the folder, ``guidance`` (as given, or None), and the options that it reads,
        each None unless given: its other keyword-only parameters are their names. ValueError names
        the option that is wrong. With a parameter ``read`` it is given what reads a model of a
        folder, as --quantise and --mesh ask, see `flowsde.models.converted.parts.Read`.
    """

    of: str
    title: str
    make: Callable[..., Sampled]

    @property
    def options(self) -> list[str]:
        """Names of the options that it reads, besides ``guidance``."""
        return [name for name in self._names if name not in ("guidance", "read")]

    @property
    def reads(self) -> bool:
        """Whether it reads weights as it is told."""
        return "read" in self._names

    @property
    def _names(self) -> list[str]:
        every = inspect.signature(self.make).parameters.values()
        return [one.name for one in every if one.kind is one.KEYWORD_ONLY]


_Named = TypeVar("_Named")


def named(kind: str, name: str, known: Mapping[str, _Named]) -> _Named:
    """One of those that are known; ValueError names them."""
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}, expected one of {', '.join(known)}")
    return known[name]


def abstract(family: Family, config: Any, numerics: Numerics | None = None) -> nnx.Module:
    """The model of a configuration, with shapes for arrays."""
    return shapes_of(lambda: family.build(config, numerics or Numerics(), rngs=nnx.Rngs(0)))
