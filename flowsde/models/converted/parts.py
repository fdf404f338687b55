"""Converted models that work together, each read when it is first used and dropped when told to."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from flowsde.models.common.quantised import Format
from flowsde.models.converted import load
from flowsde.models.converted.opened import open_as
from flowsde.models.family import Family
from flowsde.sharding import ShardingRules

Read = Callable[[Path, Family], Any]
"""From the folder of one converted model, and the family that it must be of, to its module."""


def read(folder: Path, family: Family) -> Any:
    """A model as it was written, on the first device; errors as of `open_as`."""
    return load.load_module(open_as(folder, family))


def reading(
    quantise: Format | None = None, mesh: Mesh | None = None, rules: ShardingRules | None = None
) -> Read:
    """As `read`, with the weights of blocks in a format, or on a mesh; see `flowsde.load`."""

    def read_in(folder: Path, family: Family) -> Any:
        opened = open_as(folder, family)
        return load.load_module(opened, mesh, rules=rules, quantise=quantise)

    return read_in


class Parts:
    """Models by name.

    Args:
      folders: of each model.
      families: that each must be of.
      read: a model; the only place where weights are read.
      verify: whether to compare their files, but the weights, with their hashes.

    Raises:
      FileNotFoundError: one is not there.
      ValueError: one is of another family, or no single model, or not what was written.
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        families: Mapping[str, Family],
        read: Read,
        verify: bool = True,
    ):
        self._folders, self._families, self._read = folders, families, read
        self._held: dict[str, Any] = {}
        self.configs = {
            name: open_as(folders[name], family, verify).config for name, family in families.items()
        }

    def __getitem__(self, name: str) -> Any:
        if name not in self._held:
            self._held[name] = self._read(self._folders[name], self._families[name])
        return self._held[name]

    @property
    def held(self) -> Sequence[str]:
        """Names of the models that are in memory."""
        return tuple(self._held)

    def drop(self, *names: str) -> None:
        """Let models go; a later use reads them again."""
        for name in names:
            self._held.pop(name, None)
