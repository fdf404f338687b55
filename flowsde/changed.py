"""A warning for objects that have changed since a program was compiled from them.

A compiled program is found again by the object that it was traced from. An object that is compared
by identity is the same one after an attribute of it has changed, and so is its program, which
computes with the attribute's old value.
"""

import dataclasses
import functools
import types
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import jax

_ATOMS = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)
_seen: "weakref.WeakKeyDictionary[Any, dict[str, Any]]" = weakref.WeakKeyDictionary()
"""What each object kept when it was first used."""


def forget() -> None:
    """Everything that has been seen."""
    _seen.clear()


def _objects(value: Any) -> Iterator[Any]:
    """Objects compared by identity of which a static argument is made."""
    if isinstance(value, types.MethodType):
        yield from _objects(value.__self__)
    elif isinstance(value, functools.partial | jax.tree_util.Partial):
        # A partial inside of one of JAX's is in a shim of its own.
        yield from _objects(getattr(value.func, "fun", value.func))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _objects(getattr(value, field.name, None))
    elif isinstance(value, types.FunctionType) or hasattr(value, "__wrapped__"):
        for cell in getattr(value, "__closure__", None) or ():
            try:
                inner = cell.cell_contents
            except ValueError:
                continue  # Empty still.
            if callable(inner) and inner is not value:
                yield from _objects(inner)
    elif (
        type(value).__hash__ is object.__hash__
        and hasattr(value, "__dict__")
        and not isinstance(value, _ATOMS)
    ):
        yield value


def _differs(now: Any, before: Any) -> bool:
    if now is before:
        return False
    try:
        return type(now) is not type(before) or bool(now != before)
    except Exception:  # Of arrays the truth is not one, and of objects anything.
        return True


def warn_if_changed(stacklevel: int, **arguments: Any) -> None:
    """Warn, once for each change, of an object that is not what it was when it was first used.

    Args:
      stacklevel: of the user's line, as `warnings.warn` counts from here.
      **arguments: what holds objects, by the names that the user knows.
    """
    for name, value in arguments.items():
        for one in _objects(value):
            try:
                before = _seen.setdefault(one, dict(vars(one)))
            except TypeError:
                continue  # It can have no weak reference.
            for attribute, was in before.items():
                now = vars(one).get(attribute)
                if not _differs(now, was):
                    continue
                before[attribute] = now
                warnings.warn(
                    f"{name}: the attribute {attribute!r} of a {type(one).__name__} has changed "
                    f"since it was first used, and programs that are compiled already keep the "
                    f"old value; make a new object, or give what changes as cond or by "
                    f"jax.tree_util.Partial(fn, params)",
                    stacklevel=stacklevel,
                )
                break
