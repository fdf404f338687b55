"""What the converter knows of a family of models: one `Convertible` a file, beside this one.

A family recognises its checkpoints by their keys and shapes (and by a `config.json` beside them
where the shapes leave something open), names the layout of their keys, and has a table for each
layout. Layouts are named by their library, "diffusers", "transformers" or "open_clip", or
"original".
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flowsde.models.family import Family
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convertible(Family):
    """A family, and how its checkpoints are read.

    Attributes:
      recognise: (tensors by key, the JSON beside them or None) to what they are; None for another
        family's. ValueError says what is wrong with a checkpoint that is of this family.
      table: (configuration, layout) to a table; ValueError names the layouts there are.
      layouts: that adapters may be written in, besides the checkpoint's own.
      tokenizers: folders beside the weights with further tokenizers, copied as they are.
    """

    recognise: Callable[[Checkpoint, Mapping[str, Any] | None], Found | None]
    table: Callable[[Any, str], Table]
    layouts: tuple[str, ...] = ()
    tokenizers: tuple[str, ...] = ()


def convertible(
    family: Family,
    recognise: Callable[[Checkpoint, Mapping[str, Any] | None], Found | None],
    table: Callable[[Any, str], Table],
    layouts: tuple[str, ...] = (),
    tokenizers: tuple[str, ...] = (),
) -> Convertible:
    """A family with how its checkpoints are read."""
    return Convertible(
        **vars(family), recognise=recognise, table=table, layouts=layouts, tokenizers=tokenizers
    )
