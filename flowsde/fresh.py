"""A warning for functions that are written anew at each call, and so compiled anew.

A compiled program is kept for the function object that it was traced from. A lambda inside a loop
is a new object each time round, though it says the same: every search compiles again, for seconds.
"""

import dataclasses
import functools
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import jax

_MOST = 256
_PLAIN = (int, float, complex, str, bytes, type(None))
_seen: "OrderedDict[tuple[str, str, CodeType], weakref.ref[FunctionType] | None]" = OrderedDict()
"""The last function of each code, by argument; None if it has been warned of."""


def forget() -> None:
    """Everything that has been seen."""
    _seen.clear()


def _functions(value: Any) -> Iterator[FunctionType]:
    """Python functions of which a static argument is made."""
    if isinstance(value, FunctionType):
        yield value
    elif isinstance(value, functools.partial | jax.tree_util.Partial):
        yield from _functions(value.func)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _functions(getattr(value, field.name, None))
    elif hasattr(value, "__wrapped__"):
        # Of jax.jit.
        yield from _functions(value.__wrapped__)


def _held(fn: FunctionType) -> list[Any]:
    """Values that a function has beside its code."""
    held = [*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()]
    for cell in fn.__closure__ or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:
            # Empty still, of a function that names itself.
            held.append(None)
    return held


def _says_the_same(fn: FunctionType, last: FunctionType | None) -> bool:
    """Whether a function holds what the last one of its code held, of which little may be left."""
    held = _held(fn)
    if last is None:
        return not held
    return all(
        a is b or (type(a) is type(b) and isinstance(a, _PLAIN) and a == b)
        for a, b in zip(held, _held(last), strict=True)
    )


def warn_if_written_anew(stacklevel: int, **arguments: Any) -> None:
    """Warn, once for each, of a function that differs from an earlier one as an object alone.

    Functions of the same code that hold other values are other functions, and no reason to warn.

    Args:
      stacklevel: of the user's line, as `warnings.warn` counts from here.
      **arguments: what holds functions, by the names that the user knows.
    """
    now: set[FunctionType] = set()
    for name, value in arguments.items():
        for fn in _functions(value):
            if fn in now:
                continue
            now.add(fn)
            # Codes are equal whatever file they are of.
            key = (name, fn.__code__.co_filename, fn.__code__)
            known = key in _seen
            last = _seen.pop(key, None)
            if known and last is None:
                _seen[key] = None
                continue
            before = None if last is None else last()
            anew = known and before is not fn and _says_the_same(fn, before)
            _seen[key] = None if anew else weakref.ref(fn)
            if len(_seen) > _MOST:
                _seen.popitem(last=False)
            if anew:
                warnings.warn(
                    f"{name} is a new function at each call, {fn.__qualname__} of "
                    f"{fn.__code__.co_filename}:{fn.__code__.co_firstlineno}, for which "
                    f"everything is compiled again; define it once, and give what changes as cond "
                    f"or by jax.tree_util.Partial(fn, params)",
                    stacklevel=stacklevel,
                )
