"""A warning for objects that have changed since a program was compiled from them.

A program is compiled anew for an object of which an attribute has changed. That takes seconds, and
one that changes whenever it is called is compiled at every run.
"""

import warnings
import weakref
from types import FunctionType
from typing import Any

from flowsde._exact import objects

_seen: "weakref.WeakKeyDictionary[Any, dict[str, Any] | None]" = weakref.WeakKeyDictionary()
"""What each object kept when it was last used; None if it has been warned of."""


def forget() -> None:
    """Everything that has been seen."""
    _seen.clear()


def warn_if_changed(stacklevel: int, **arguments: Any) -> None:
    """Warn, once for each, of an object that is not what it was when it was last used.

    Args:
      stacklevel: of the user's line, as `warnings.warn` counts from here.
      **arguments: what holds objects, by the names that the user knows.
    """
    for name, value in arguments.items():
        for one, now in objects(value):
            try:
                before = _seen.setdefault(one, now)
            except TypeError:
                continue  # It can have no weak reference.
            if before is None:
                continue
            changed = [key for key, was in before.items() if now.get(key) != was]
            _seen[one] = None if changed else now
            if changed:
                what = f"the attribute {changed[0]!r} of a {type(one).__name__}"
                if isinstance(one, FunctionType):
                    what = f"{changed[0]!r}, which {one.__qualname__} takes from around it,"
                warnings.warn(
                    f"{name}: {what} has changed since it was last used, for which everything is "
                    f"compiled again; give what changes as cond or by "
                    f"jax.tree_util.Partial(fn, params)",
                    stacklevel=stacklevel,
                )
