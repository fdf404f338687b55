"""What Python functions take from around them: of their module, enclosing functions, defaults.

A compiled program has their values as they were when it was traced.
"""

import dataclasses
import dis
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

_LIBRARIES = ("flax", "flowsde", "jax", "jaxlib", "numpy", "optax")
"""Taken for installed wherever they lie, as in an editable installation."""
_INSTALLED = {"site-packages", "dist-packages"}
_NUMBERS = (int, float, complex, str, bytes, type(None), np.generic)
_HOLDERS = (list, dict, set, np.ndarray)
_FILLING = {
    *("__setitem__", "add", "append", "appendleft", "clear", "discard", "extend", "fill", "insert"),
    *("pop", "popitem", "remove", "setdefault", "update"),
}
"""Methods by which a holder changes."""


class Used(NamedTuple):
    """A value that a function takes, by the name that it has there.

    Attributes:
      near: whether it is of an enclosing function, and not of the module.
    """

    name: str
    value: Any
    near: bool


class _Names(NamedTuple):
    """Of a function's code, together with that of functions written inside it.

    Attributes:
      taken: globals that it reads.
      asked: attributes that it reads, of anything.
      bound: variables outside of it that it binds anew.
      fills: whether it writes into lists, dicts or the like.
    """

    taken: tuple[str, ...]
    asked: frozenset[str]
    bound: frozenset[str]
    fills: bool


@cache
def _names(code: CodeType) -> _Names:
    found: dict[str, list[str]] = {"LOAD": [], "ATTR": [], "STORE": []}
    fills = False
    for one in dis.get_instructions(code):
        if one.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            found["LOAD"].append(one.argval)
        elif one.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            found["ATTR"].append(one.argval)
        elif one.opname in ("STORE_GLOBAL", "STORE_DEREF", "DELETE_GLOBAL"):
            found["STORE"].append(one.argval)
        fills |= one.opname in ("STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE")
    inner = [_names(one) for one in code.co_consts if isinstance(one, CodeType)]
    return _Names(
        tuple(dict.fromkeys([*found["LOAD"], *(name for one in inner for name in one.taken)])),
        frozenset(found["ATTR"]).union(*(one.asked for one in inner)),
        frozenset(found["STORE"]).union(*(one.bound for one in inner)),
        fills or not _FILLING.isdisjoint(found["ATTR"]) or any(one.fills for one in inner),
    )


@cache
def _is_installed(package: str) -> bool:
    if package in _LIBRARIES or package in sys.stdlib_module_names:
        return True
    module = sys.modules.get(package)
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    return any(not _INSTALLED.isdisjoint(Path(place).parts) for place in places if place)


def is_users(made: Any) -> bool:
    """Whether a function or a class is a user's.

    What is installed, or Python's own, stays as it is while a process runs, and has more functions
    than can be looked at in every run.
    """
    return not _is_installed((made.__module__ or "").partition(".")[0])


def _defaults(fn: FunctionType) -> dict[str, Any]:
    """Of parameters, by name."""
    positional, values = fn.__code__.co_varnames[: fn.__code__.co_argcount], fn.__defaults__ or ()
    last = zip(reversed(positional), reversed(values), strict=False)
    return dict(last) | (fn.__kwdefaults__ or {})


def used(fn: FunctionType) -> Iterator[Used]:
    """What a function takes, but for what it changes itself.

    A number that it binds anew, and lists and the like if it fills any, count its calls or keep
    what they made.
    """
    names, found = _names(fn.__code__), []
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        try:
            found.append(Used(name, cell.cell_contents, True))
        except ValueError:
            continue  # Empty still, of a function that names itself.
    if is_users(fn):
        outer = fn.__globals__
        found += [Used(name, outer[name], False) for name in names.taken if name in outer]
        found += [Used(name, value, True) for name, value in _defaults(fn).items()]
    for one in found:
        counts = isinstance(one.value, _NUMBERS) and one.name in names.bound
        if not counts and not (names.fills and isinstance(one.value, _HOLDERS)):
            yield one


def is_setting(value: Any) -> bool:
    """Whether a global is made of values, records and functions alone.

    Others, such as a log or a connection, change by themselves.
    """
    if isinstance(value, tuple | list | set | frozenset):
        return all(map(is_setting, value))
    if isinstance(value, dict):
        return all(map(is_setting, value.values()))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return True
    return isinstance(value, (*_NUMBERS, np.ndarray, FunctionType, SimpleNamespace))


@cache
def methods(kind: type, every: bool) -> tuple[FunctionType, ...]:
    """Functions of a user's class: `__call__` and what it calls of them, or every one."""
    own: dict[str, FunctionType] = {}
    for base in reversed(kind.__mro__):
        if is_users(base):
            own |= {name: one for name, one in vars(base).items() if isinstance(one, FunctionType)}
    wanted, found = list(own) if every else ["__call__"], {}
    while wanted:
        name = wanted.pop()
        if name in own and name not in found:
            found[name] = own[name]
            wanted += _names(own[name].__code__).asked
    return tuple(found[name] for name in sorted(found))
