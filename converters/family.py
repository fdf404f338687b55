"""What the converter knows of a family of models: one `Family` a file, in the files beside this.

A family recognises its checkpoints by their keys and shapes (and by a `config.json` beside them
where the shapes leave something open), names the layout of their keys, and has a table for each
layout. Layouts are named "diffusers", "transformers" or "original".
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax import nnx

from flowsde.flow import Flow
from flowsde_converters.tables import Checkpoint, Table


class Found(NamedTuple):
    """What a checkpoint is.

    Attributes:
      config: the model's configuration, a frozen dataclass.
      layout: of the keys.
      table: from those keys to the model's parameters.
      notes: in words, what its files leave open and a user should know.
    """

    config: Any
    layout: str
    table: Table
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
      name: as users write it, "flux".
      recognise: (tensors by key, the JSON beside them or None) to what they are; None for another
        family's. ValueError says what is wrong with a checkpoint that is of this family.
      config: the class of its configurations, JSON values by field name.
      build: the NNX module, called with (configuration, numerics, rngs=...).
      table: (configuration, layout) to a table; ValueError names the layouts there are.
      flow: (model, configuration) to the `flowsde.Flow` that `flowsde.load` gives; without it,
        it gives the model.
    """

    name: str
    recognise: Callable[[Checkpoint, Mapping[str, Any] | None], Found | None]
    config: type
    build: Callable[..., nnx.Module]
    table: Callable[[Any, str], Table]
    flow: Callable[[Any, Any], Flow] | None = None
