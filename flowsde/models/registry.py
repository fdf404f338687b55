"""The families that there are; a family of your own is one more line of `_PACKAGES`."""

from collections.abc import Mapping
from typing import TypeVar

from flowsde.models import aesthetic, autoencoder_kl, clip, flux, sit, t5
from flowsde.models.family import Family

_PACKAGES = (sit, flux, clip, t5, autoencoder_kl, aesthetic)

_Family = TypeVar("_Family", bound=Family)
_registered: dict[str, Family] = {}


def register(family: Family) -> None:
    """Let a family of your own be loaded, in this process."""
    _registered[family.name] = family


def families() -> dict[str, Family]:
    """Every family by name."""
    held = [value for package in _PACKAGES for value in vars(package).values()]
    return {one.name: one for one in held if isinstance(one, Family)} | _registered


def named(name: str, known: Mapping[str, _Family]) -> _Family:
    """A family of those that are known; ValueError names them."""
    if name not in known:
        raise ValueError(f"unknown family {name!r}, expected one of {', '.join(known)}")
    return known[name]
