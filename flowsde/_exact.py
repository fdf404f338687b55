"""Static values by what they are at this moment: keys that are equal only if the values are alike.

A compiled program is found again by static arguments that are equal. Python calls 1, 1.0 and True
equal, and 0.0 and -0.0, and an object that is compared by identity equal to itself after an
attribute of it has changed, as a function is after what it takes from around it has. Their keys
differ, and so do keys of whatever holds them.
"""

import dataclasses
import functools
import types
import zlib
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import cache, cached_property
from typing import Any

import jax
import numpy as np
from flax import linen

from flowsde._explain import name_of
from flowsde._uses import Used, is_setting, methods, used

_ALIKE = (str, bytes, type(None))
"""Of these types two that are equal are alike."""
_ALONE = (type, types.ModuleType, types.BuiltinFunctionType)
"""Each of these is like itself alone."""
_READ = 2**24
"""Bytes of an array of NumPy's, which may be written to, that are read to tell."""


class ByValue:
    """Base of classes whose attributes are all that an instance is."""


class _Itself:
    """An object, equal to itself alone or, if `by_value`, to those that it calls equal."""

    __slots__ = ("by_value", "value")

    def __init__(self, value: Any, by_value: bool = False):
        self.value, self.by_value = value, by_value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Itself):
            return NotImplemented
        if self.value is other.value:
            return True
        try:
            return self.by_value and other.by_value and bool(self.value == other.value)
        except Exception:  # Of arrays the truth is not one, and of objects anything.
            return False

    def __hash__(self) -> int:
        try:
            return hash(self.value) if self.by_value else id(self.value)
        except TypeError:
            return hash(type(self.value))


class Key:
    """What a value is, hashed once."""

    __slots__ = ("_hash", "_parts")

    def __init__(self, value: Any):
        self._parts = _Reader().read(value)
        self._hash = hash(self._parts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Key):
            return NotImplemented
        return self is other or (self._hash == other._hash and self._parts == other._parts)

    def __hash__(self) -> int:
        return self._hash


class Snapshot:
    """Base of frozen dataclasses without `eq`: compared as they are when first asked for."""

    @cached_property
    def key(self) -> Key:
        """Of all attributes; TypeError for one that cannot be hashed."""
        own = tuple(attributes(self).items())
        hash(own)
        return Key((type(self), own))

    def __eq__(self, other: object) -> bool:
        return self is other or (type(self) is type(other) and self.key == other.key)

    def __hash__(self) -> int:
        return hash(self.key)


@dataclasses.dataclass(frozen=True, eq=False)
class Now(Snapshot):
    """A value as it is now: an object that it keeps may change, which leaves it equal to itself."""

    value: Any


class Exact:
    """A function that is compared by a key.

    Args:
      value: the function.
      key: of it, and of whatever else is to be like what it was.
    """

    def __init__(self, value: Any, key: Key):
        self.value, self.key = value, key

    @property
    def __name__(self) -> str:
        return name_of(self.value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.value(*args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Exact) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def attributes(value: Any) -> dict[str, Any]:
    """All that an object keeps, but for cached properties, which follow from the rest."""
    cls: Any = type(value)
    slots, derived = _kept(cls)
    own = dict(getattr(value, "__dict__", ()))
    for name in slots:
        if hasattr(value, name):
            own[name] = getattr(value, name)
    for name in derived:
        own.pop(name, None)
    return own


@cache
def _kept(cls: type) -> tuple[list[str], list[str]]:
    """Names of a class's slots, and of its cached properties."""
    every = [vars(base).get("__slots__", ()) for base in cls.__mro__]
    slots = {name for some in every for name in ([some] if isinstance(some, str) else some)}
    derived = [n for n in dir(cls) if isinstance(getattr(cls, n, None), cached_property)]
    return sorted(slots - {"__dict__", "__weakref__"}), derived


def objects(value: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Objects compared by identity that a value is made of, and keys of their attributes."""
    reader = _Reader()
    reader.read(value)
    yield from reader.objects


class _Reader:
    """Turns a value into tuples of what can be compared exactly.

    Attributes:
      objects: those compared by identity that it came by, with their attributes.
    """

    def __init__(self) -> None:
        self.objects: list[tuple[Any, dict[str, Any]]] = []
        self._inside: set[int] = set()

    def read(self, value: Any) -> Any:
        """A hashable description."""
        kind = type(value)
        if kind in _ALIKE or isinstance(value, _ALONE):
            return value
        if kind is int or kind is bool:
            return kind, value
        if kind is float:
            return kind, value.hex()
        if isinstance(value, np.generic | complex | Enum):
            return kind, repr(value)
        if id(value) in self._inside:
            return "within itself"
        self._inside.add(id(value))
        try:
            return self._composed(kind, value)
        finally:
            self._inside.discard(id(value))

    def _composed(self, kind: Any, value: Any) -> Any:
        if isinstance(value, Snapshot | Exact):
            return value.key
        if isinstance(value, tuple | list):
            return kind, *map(self.read, value)
        if isinstance(value, Mapping):
            return kind, *((self.read(k), self.read(v)) for k, v in value.items())
        if isinstance(value, set | frozenset):
            return kind, frozenset(map(self.read, value))
        if isinstance(value, np.ndarray | jax.Array):
            return _Itself(value), _written(value)
        if isinstance(value, jax.tree_util.PyTreeDef):
            return self._structure(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return kind, self.read(value.__self__), self.read(value.__func__)
        if kind is functools.partial:
            return kind, *map(self.read, (value.func, value.args, value.keywords))
        if isinstance(value, linen.Module):
            fields = [field.name for field in dataclasses.fields(value) if field.name != "parent"]
            own = ((name, self.read(getattr(value, name))) for name in fields)
            return kind, *own, *self._methods(kind)
        return self._object(kind, value)

    def _structure(self, tree: jax.tree_util.PyTreeDef) -> Any:
        """A pytree's nodes, with all that they keep beside their leaves."""
        node = tree.node_data()
        return tree.num_leaves, node and self.read(node), *map(self._structure, tree.children())

    def _function(self, fn: types.FunctionType) -> Any:
        """A function, with what it takes from around it."""
        found = list(used(fn))
        if not found:
            return fn
        kept = {one.name: self._used(one) for one in found}
        # Functions that it calls are told of as themselves.
        calls = {one.name: _Itself(one.value) for one in found if _is_function(one.value)}
        self.objects.append((fn, kept | calls))
        return fn, *kept.items()

    def _used(self, one: Used) -> Any:
        if one.near or isinstance(one.value, ByValue) or is_setting(one.value):
            return self.read(one.value)
        return _Itself(one.value)

    def _methods(self, kind: type, every: bool = False) -> Iterator[Any]:
        return map(self.read, methods(kind, every))

    def _object(self, kind: Any, value: Any) -> Any:
        by_value = kind.__eq__ is not object.__eq__
        if isinstance(value, ByValue) or (dataclasses.is_dataclass(value) and by_value):
            own, every = self._attributes(value), isinstance(value, ByValue)
            return kind, *own.items(), *self._methods(kind, every)
        leaves, structure = jax.tree.flatten(value)
        node = structure.node_data()  # type: ignore[attr-defined]
        if node is not None and node[1] is not value:
            return kind, self._structure(structure), *map(self.read, leaves)
        if kind.__name__ == "_HashableCallableShim":  # Of a partial, within JAX's Partial.
            return kind, self.read(value.fun)
        kept = self._attributes(value)
        if not by_value:
            self.objects.append((value, kept))
        return _Itself(value, by_value), kind, *kept.items(), *self._methods(kind)

    def _attributes(self, value: Any) -> dict[str, Any]:
        if type(value).__module__.partition(".")[0] not in ("jax", "jaxlib"):
            return {name: self.read(one) for name, one in attributes(value).items()}
        # All that changes in one of JAX's is the function that it wraps.
        return {"__wrapped__": self.read(getattr(value, "__wrapped__", None))}


def _is_function(value: Any) -> bool:
    return isinstance(value, types.FunctionType)


def _written(array: Any) -> int | None:
    """A checksum of what an array of NumPy's holds now; None of one that stays, or a large one."""
    if not isinstance(array, np.ndarray) or array.dtype.hasobject or array.nbytes > _READ:
        return None
    return zlib.crc32(array.tobytes())
