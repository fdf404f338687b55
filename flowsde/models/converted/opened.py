"""A converted model on disk, found to be what its `config.json` says, before values are read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx

from flowsde._text import listed, names, shown
from flowsde.models.common.layers import Numerics
from flowsde.models.common.paths import parameters
from flowsde.models.converted.arrays import Parameter
from flowsde.models.converted.configs import from_json
from flowsde.models.converted.store import CONFIG, PARAMS, check_files, read_config
from flowsde.models.family import Family, abstract, named


class Opened(NamedTuple):
    """A converted model.

    Attributes:
      folder: of it.
      about: values of `config.json`.
      family: of the model.
      config: the family's configuration.
    """

    folder: Path
    about: dict[str, Any]
    family: Family
    config: Any

    def parameters(self) -> dict[str, Parameter]:
        """By path; ValueError where one is not as `config.json` says."""
        held = {}
        for path, wanted in self.about["params"].items():
            folder = self.folder / PARAMS / path
            held[path] = there = Parameter(folder)
            if (list(there.shape), there.dtype.name) != (wanted["shape"], wanted["dtype"]):
                what = f"{wanted['dtype']} {tuple(wanted['shape'])}"
                raise ValueError(f"{folder} is {there.dtype} {there.shape}, expected {what}")
        return held

    def model(self, numerics: Numerics) -> nnx.Module:
        """The model, with shapes for arrays; ValueError if they are not those on disk."""
        where = self.folder / CONFIG
        try:
            made = abstract(self.family, self.config, numerics)
        except Exception as error:  # A configuration may say anything.
            said = f"{type(error).__name__} {shown(error)}"
            raise ValueError(f"{where}: config makes no {self.family.name}: {said}") from error
        like = {path: tuple(p.shape) for path, p in parameters(made).items()}
        held = {path: tuple(p["shape"]) for path, p in self.about["params"].items()}
        wrong = [
            f"{path} is {held.get(path)}, expected {like.get(path)}"
            for path in sorted(held.keys() | like.keys())
            if held.get(path) != like.get(path)
        ]
        if wrong:
            version = shown(self.about["version"])
            title = f"{where}, of flowsde {version}, is not of this version's model"
            raise ValueError(listed(wrong, title))
        return made

    def changed(self, paths: list[str]) -> ValueError:
        """The error of parameters whose bytes are not those that were written."""
        return ValueError(
            f"{self.folder / PARAMS}: {names(paths)} changed since it was written: its SHA-256 is "
            f"not that of {CONFIG}"
        )


def open_model(folder: Path, families: Mapping[str, Family], verify: bool = True) -> Opened:
    """A converted model, of which small files alone were read.

    Args:
      folder: of one model.
      families: by name, one of which it must be of.
      verify: whether to compare them with their hashes.

    Raises:
      FileNotFoundError: no conversion wrote it.
      ValueError: it is not what a conversion wrote; naming file and field.
    """
    about = _about(folder, verify)
    try:
        family = named("family", about["family"], families)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from None
    return _opened(folder, about, family)


def open_as(folder: Path, family: Family, verify: bool = True) -> Opened:
    """As `open_model`; ValueError for a model of another family."""
    about = _about(folder, verify)
    if about["family"] != family.name:
        found = shown(about["family"])
        raise ValueError(f"{folder} holds a model of {found}, expected one of {family.name}")
    return _opened(folder, about, family)


def _about(folder: Path, verify: bool) -> dict[str, Any]:
    about = read_config(folder, verify=verify)
    if verify:
        check_files(folder, about)
    return about


def _opened(folder: Path, about: dict[str, Any], family: Family) -> Opened:
    config = from_json(family.config, about["config"], f"{folder / CONFIG}: config")
    return Opened(folder, about, family, config)
