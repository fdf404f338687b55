"""Keys that a checkpoint may hold and the model has no row for; each for a reason that is checked.

Copy       of another tensor, whose row it would repeat: it must equal it
Positions  in their order: they must be 0, 1, 2, …
Unused     no output of the model depends on it
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

_AT_ONCE = 2**22
"""Values that are compared at once."""
Read = Callable[[str], np.ndarray]


class Ignored(Protocol):
    """A reason to ignore some keys."""

    @property
    def pattern(self) -> str:
        """Regular expression of whole keys."""
        ...

    def problem(self, key: str, tensors: Mapping[str, Any], read: Read) -> str | None:
        """What is wrong with a key's values, in words."""
        ...


@dataclasses.dataclass(frozen=True)
class Copy:
    """Keys whose tensor must be that of the key `of`."""

    pattern: str
    of: str

    def problem(self, key: str, tensors: Mapping[str, Any], read: Read) -> str | None:
        if tuple(tensors[key].shape) == tuple(tensors[self.of].shape) and _equal(
            read(key), read(self.of)
        ):
            return None
        return (
            f"{key} differs from {self.of}, expected a copy of it: the model has one of them, and "
            "which is meant is not known"
        )


@dataclasses.dataclass(frozen=True)
class Positions:
    """Keys that count from 0 along their last axis."""

    pattern: str

    def problem(self, key: str, tensors: Mapping[str, Any], read: Read) -> str | None:
        held = read(key)
        wanted = np.broadcast_to(np.arange(held.shape[-1] if held.ndim else 1), held.shape)
        # Some files have them in the dtype of their weights, rounded.
        if _equal(held, wanted.astype(held.dtype)):
            return None
        return f"{key} holds other positions than 0, 1, 2, …, which the model takes in that order"


@dataclasses.dataclass(frozen=True)
class Unused:
    """Keys that no output of the model depends on."""

    pattern: str

    def problem(self, key: str, tensors: Mapping[str, Any], read: Read) -> str | None:
        return None


def under(one: Any, begin: str) -> Ignored:
    """The same reason, of keys with something before them."""
    pattern = re.escape(begin) + one.pattern
    if isinstance(one, Copy):
        return Copy(pattern, begin + one.of)
    return dataclasses.replace(one, pattern=pattern)


def is_ignored(key: str, ignored: Sequence[Ignored]) -> bool:
    """Whether there is a reason."""
    return any(re.fullmatch(one.pattern, key) for one in ignored)


def problems(ignored: Sequence[Ignored], tensors: Mapping[str, Any], read: Read) -> Iterator[str]:
    """What is wrong with the values of ignored keys, in words; a few values are in memory."""
    for key in sorted(tensors):
        for one in ignored:
            if re.fullmatch(one.pattern, key) and (said := one.problem(key, tensors, read)):
                yield said


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether all values are the same numbers, whatever their dtypes."""
    a, b = a.reshape(-1), b.reshape(-1)
    parts = (slice(i, i + _AT_ONCE) for i in range(0, a.size, _AT_ONCE))
    return all(np.array_equal(_wide(a[part]), _wide(b[part])) for part in parts)


def _wide(a: np.ndarray) -> np.ndarray:
    return a.astype(np.float64)
