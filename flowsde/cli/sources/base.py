"""What a model offers to the command: the embedded one, or one that was converted.

An `Offer` is made of the command's options. Making it checks them all and reads no weights; `load`
reads them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from flowsde.cli.settings import Settings
from flowsde.flow import Flow
from flowsde.search import Search


class Ask(NamedTuple):
    """What one prompt asks for.

    Attributes:
      cond: of the flow and the reward, without a batch axis.
      reward: by which the pictures are searched.
    """

    cond: Any
    reward: Any


class Loaded(NamedTuple):
    """A model in memory.

    Attributes:
      flow: whose `decode` gives pictures in [-1, 1].
      asks: one a prompt.
      chunk_size: particles evaluated at once; None for all.
    """

    flow: Flow
    asks: list[Ask]
    chunk_size: int | None = None


class Offer(Protocol):
    """A model and how it is to be sampled.

    Attributes:
      prompts: as result.json has them.
      settings: resolved.
      search: that they build.
      evaluations: of the model that a candidate costs.
      named: more settings, by the option that they are given with.
      judged: whether there is a reward.
    """

    prompts: list[str]
    settings: Settings
    search: Search
    evaluations: int
    named: dict[str, Any]
    judged: bool

    def slug(self, prompt: str) -> str:
        """The name of a prompt's folder."""
        ...

    def load(self, prompts: Sequence[str]) -> Loaded:
        """Read the weights."""
        ...

    def save(self, path: Path, image: np.ndarray) -> None:
        """Write a picture."""
        ...

    def thumbnails(self, flow: Flow) -> Callable[[Any], Any]:
        """x0 [n, …] to small pictures [n, h, w, 3] in [-1, 1]."""
        ...

    def heldout(self, prompt: str, image: np.ndarray) -> dict[str, Any]:
        """Entries of result.json by a judge that no search sees, if there is one."""
        ...

    def said(self, values: dict[str, Any]) -> list[str]:
        """Lines about a result, given its result.json."""
        ...
