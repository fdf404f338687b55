"""Rewards that are told a question about each prompt, as ``flowsde sample --reward`` takes them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

from flowsde.rewards import DeviceReward


class Asking(Protocol):
    """From a prompt to what a model is asked about it."""

    def __call__(self, prompt: str) -> Any: ...

    def fitting(self, prompts: Sequence[str]) -> Self:
        """The same, with no more padding than these prompts need."""
        ...


class Asked(ABC):
    """A reward out of a converted folder.

    Args:
      asking: of any prompt.
    """

    reads_text, on_device = True, True

    def __init__(self, asking: Asking):
        self._asking = asking

    def load(self, prompts: Sequence[str]) -> tuple[DeviceReward, list[Any]]:
        """The reward, and what it is told of each prompt."""
        asking = self._asking.fitting(prompts)
        told = [asking(prompt) for prompt in prompts]  # before weights are read
        return self._reward(), told

    def loaded(self) -> tuple[DeviceReward, Callable[[str], Any]]:
        """The reward, and what it is told of a prompt."""
        return self._reward(), self._asking

    @abstractmethod
    def _reward(self) -> DeviceReward:
        """With weights."""
