"""Converted models that work together, each read when it is first used and dropped when told to."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flowsde.models.converted import load

Read = Callable[[Path], Any]
"""From the folder of one converted model to its `nnx.Module`."""


def read(folder: Path) -> Any:
    """A model as it was written, on the first device."""
    return load.load_module(folder)


def configuration(folder: Path, wanted: str, verify: bool = True) -> Any:
    """The configuration of a converted model of a family.

    Args:
      folder: of the model.
      wanted: name of the family.
      verify: whether to compare its files, but the weights, with their hashes.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is of another family, or no single model, or not what was written.
    """
    family, config = load.configuration(folder, verify)
    if family.name != wanted:
        raise ValueError(f"{folder} holds a model of {family.name}, expected one of {wanted}")
    return config


class Parts:
    """Models by name.

    Args:
      folders: of each model.
      families: that each must be of.
      read: a model; the only place where weights are read.
      verify: as of `configuration`.

    Raises:
      FileNotFoundError, ValueError: as of `configuration`.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        families: Mapping[str, str],
        read: Read,
        verify: bool = True,
    ):
        self._folders, self._read = folders, read
        self._held: dict[str, Any] = {}
        self.configs = {
            name: configuration(folders[name], families[name], verify) for name in families
        }

    def __getitem__(self, name: str) -> Any:
        if name not in self._held:
            self._held[name] = self._read(self._folders[name])
        return self._held[name]

    @property
    def held(self) -> Sequence[str]:
        """Names of the models that are in memory."""
        return tuple(self._held)

    def drop(self, *names: str) -> None:
        """Let models go; a later use reads them again."""
        for name in names:
            self._held.pop(name, None)
