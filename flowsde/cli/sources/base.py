"""What a command samples: the embedded model, or one that was converted.

A `Source` is made of the command's options. Making it checks them all and reads no weights; `load`
reads them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from flowsde.cli.settings import Settings
from flowsde.flow import Flow
from flowsde.rewards.base import Reward
from flowsde.search import Search


class PromptTask(NamedTuple):
    """What is told of one prompt, without a batch axis.

    Attributes:
      cond: the flow, and the reward unless it has a `reward_cond`.
      reward_cond: the reward.
    """

    cond: Any
    reward_cond: Any = None


class LoadedSource(NamedTuple):
    """A model in memory.

    Attributes:
      flow: whose `decode` gives pictures in [-1, 1].
      reward: that the pictures are searched by, as `flowsde.run` takes it.
      tasks: one for each prompt.
      chunk_size: particles evaluated at once; None for all.
    """

    flow: Flow
    reward: Any
    tasks: list[PromptTask]
    chunk_size: int | None = None


class RewardSource(Protocol):
    """A reward, checked and not yet loaded.

    Attributes:
      reads_text: whether it looks at the prompt.
      on_device: whether it has a gradient.
    """

    @property
    def reads_text(self) -> bool: ...
    @property
    def on_device(self) -> bool: ...

    def load(self, prompts: Sequence[str]) -> tuple[Reward, list[Any]]:
        """The reward of all prompts, and what it is told of each, None where that is nothing."""
        ...


class Source(Protocol):
    """A model, and how it is to be sampled.

    Attributes:
      prompts: as result.json has them.
      settings: resolved.
      search: that they build.
      evaluations: of the model that a candidate costs.
      named: more settings, by the option that they are given with.
      rewards: names of those that are searched by, with the folders that each needs.
      has_reward: whether pictures are searched by one.
      video: the kind of file that `save` writes beside the first frame of a video; None for
        pictures.
    """

    prompts: list[str]
    settings: Settings
    search: Search
    evaluations: int
    named: dict[str, Any]
    rewards: dict[str, Sequence[Path]]
    has_reward: bool
    video: str | None

    def slug(self, prompt: str) -> str:
        """The name of a prompt's folder."""
        ...

    def named_of(self, prompt: str) -> dict[str, Any]:
        """More settings, of this prompt alone."""
        ...

    def load(self, prompts: Sequence[str]) -> LoadedSource:
        """Read the weights."""
        ...

    def save(self, path: Path, image: np.ndarray) -> None:
        """Write a picture, or a video [frames, h, w, 3] and its first frame at this path."""
        ...

    def thumbnails(self, flow: Flow) -> Callable[[Any], Any]:
        """x0 [n, …] to small pictures [n, h, w, 3] in [-1, 1], of videos the first frames."""
        ...

    def heldout(self, prompt: str, image: np.ndarray) -> dict[str, Any]:
        """Entries of result.json by a checker that no search sees, if there is one."""
        ...

    def report(self, values: dict[str, Any]) -> list[str]:
        """Lines about a result, given its result.json."""
        ...
