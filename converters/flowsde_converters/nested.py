"""Tensors by dotted key out of what a pickle holds: mappings in mappings, and everything else."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

_DEEPEST, _MOST = 8, 2**16
"""Mappings in one another that are looked into, and how many in all: one may be in several, so that
a few make very many."""


@dataclasses.dataclass
class Nested:
    """What is there.

    Attributes:
      tensors: by dotted key.
      owners: the dotted name of the mapping that each is of, "" for the outermost.
      unnamed: names of what holds tensors under numbers, tuples or in lists: they have no keys.
    """

    tensors: dict[str, Any] = dataclasses.field(default_factory=dict)
    owners: dict[str, str] = dataclasses.field(default_factory=dict)
    unnamed: list[str] = dataclasses.field(default_factory=list)


def flatten(held: Mapping[Any, Any], is_tensor: Callable[[Any], bool]) -> Nested:
    """All tensors under names; ValueError for too many mappings, or two of a name."""
    found = Nested()
    waiting: list[tuple[str, Mapping[Any, Any], int]] = [("", held, 1)]
    seen = 0
    while waiting:
        owner, mapping, depth = waiting.pop()
        seen += 1
        if seen > _MOST:
            raise ValueError(f"more than {_MOST} mappings in one another, expected weights")
        for key, value in mapping.items():
            # An optimiser's state is by number, and so are averages of several decays.
            if not isinstance(key, str):
                name = f"{owner}.{_said(key)}" if owner else _said(key)
                if _holds(value, is_tensor):
                    found.unnamed.append(name)
                continue
            name = f"{owner}.{key}" if owner else key
            if is_tensor(value):
                if name in found.tensors:
                    raise ValueError(f"{name} is there twice, expected once")
                found.tensors[name], found.owners[name] = value, owner
            elif isinstance(value, Mapping) and depth < _DEEPEST:
                waiting.append((name, value, depth + 1))
            elif isinstance(value, list | tuple) and _holds(value, is_tensor):
                found.unnamed.append(name)
    return found


def _said(key: Any) -> str:
    """A key that is no name: ("ema", 0.99) as ema.0.99."""
    parts = key if isinstance(key, tuple) else (key,)
    return ".".join(str(part)[:60] for part in parts[:4] if isinstance(part, str | int | float))


def _holds(value: Any, is_tensor: Callable[[Any], bool]) -> bool:
    """Whether there is a tensor in it, other than a count."""
    waiting, seen = [(value, 0)], 0
    while waiting and seen < _MOST:
        value, depth = waiting.pop()
        seen += 1
        if is_tensor(value):
            if value.ndim:
                return True
        elif depth < _DEEPEST and isinstance(value, Mapping):
            waiting += [(inner, depth + 1) for inner in value.values()]
        elif depth < _DEEPEST and isinstance(value, list | tuple):
            waiting += [(inner, depth + 1) for inner in value]
    return False
