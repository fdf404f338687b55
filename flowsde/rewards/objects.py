"""How rewards outside JAX are told objects, such as texts, of which arrays hold the numbers."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from flowsde.conds import Cond


class Both(NamedTuple):
    """What the parts of a host reward are told where prompts are objects, such as texts.

    Attributes:
      objects: for the parts outside JAX, one of each picture.
      cond: what the model is told, for the parts in JAX.
    """

    objects: Any
    cond: Cond


class OfRewards:
    """A host reward's function that asks other rewards; each takes its own of `Both`."""

    def asked(self) -> tuple[Any, ...]:
        """These rewards."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class OfObjects:
    """A host reward's function that is told objects, of which cond holds the numbers."""

    fn: Callable[[np.ndarray, Any], Any]
    objects: list[Any]

    def __call__(self, images: np.ndarray, cond: Any) -> Any:
        numbers = cond.objects if isinstance(cond, Both) else cond
        own = [self.objects[i] for i in numbers]
        return self.fn(images, Both(own, cond.cond) if isinstance(cond, Both) else own)
