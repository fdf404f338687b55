"""What a family of models says of itself: one `Family`, or several, a folder beside this file."""

import dataclasses
from collections.abc import Callable
from typing import Any

from flax import nnx

from flowsde.flow import Flow
from flowsde.models.common.layers import Numerics


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


def abstract(family: Family, config: Any, numerics: Numerics | None = None) -> nnx.Module:
    """The model of a configuration, with shapes for arrays."""
    return nnx.eval_shape(lambda: family.build(config, numerics or Numerics(), rngs=nnx.Rngs(0)))
