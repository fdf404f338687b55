"""The models of a converted folder, each read when it is first used and dropped when told to."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Read = Callable[[Path], Any]
"""From the folder of one converted model to its `nnx.Module`."""


class Parts:
    """Models by the name of their folder.

    Args:
      folder: of the pipeline.
      families: that each of its models must be of, by name.
      read: a model; the only place where weights are read.

    Raises:
      FileNotFoundError: a model is missing.
      ValueError: it is of another family.
    """

    def __init__(self, folder: Path, families: dict[str, str], read: Read):
        from flowsde_converters.load import configuration

        self._folder, self._read = folder, read
        self._held: dict[str, Any] = {}
        self.configs: dict[str, Any] = {}
        for name, wanted in families.items():
            family, self.configs[name] = configuration(folder / name)
            if family.name != wanted:
                raise ValueError(f"{folder / name} holds a {family.name}, expected a {wanted}")

    def __getitem__(self, name: str) -> Any:
        if name not in self._held:
            self._held[name] = self._read(self._folder / name)
        return self._held[name]

    @property
    def held(self) -> Sequence[str]:
        """Names of the models that are in memory."""
        return tuple(self._held)

    def drop(self, *names: str) -> None:
        """Let models go; a later use reads them again."""
        for name in names:
            self._held.pop(name, None)
