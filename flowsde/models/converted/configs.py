"""Configurations of models out of JSON: what a field may be follows from its type."""

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Any

from flowsde import _schema
from flowsde._schema import Reader

_MOST = 64
"""Entries of a list: a configuration has one for each level or axis."""
_SIMPLE: dict[Any, Reader] = {
    bool: _schema.flag,
    int: _schema.whole(-(2**31)),
    float: _schema.number,
    str: _schema.text,
}


def from_json(kind: Any, value: Any, where: str = "config") -> Any:
    """A value of a type, dataclass or tuple included, out of what JSON made of it.

    Raises:
      ValueError: naming the field in `where`.
    """
    return _reader(kind)(value, where)


def _reader(kind: Any) -> Reader:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return lambda value, where: _dataclass(kind, value, where)
    if origin is typing.Literal:
        return _schema.one_of(*args)
    if origin in (typing.Union, types.UnionType):
        inner = [one for one in args if one is not type(None)]
        return _schema.maybe(_reader(inner[0])) if len(inner) == 1 else _as_it_is
    if origin is tuple and args[-1] is Ellipsis:
        return lambda value, where: tuple(_list(value, where, _reader(args[0])))
    if origin is tuple:
        return lambda value, where: tuple(
            _reader(of)(one, f"{where}[{i}]")
            for i, (of, one) in enumerate(zip(args, _list(value, where, len(args)), strict=True))
        )
    return _as_it_is


def _list(value: Any, where: str, of: Reader | int) -> list[Any]:
    read = _schema.items(_schema.anything, of if isinstance(of, int) else None)
    own = read(value, where)
    if len(own) > _MOST:
        raise _schema.wrong(where, f"a list of at most {_MOST}", value)
    return own if isinstance(of, int) else _schema.items(of)(own, where)


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    hints = typing.get_type_hints(kind)
    own = _schema.mapping(value, where)
    unknown = [name for name in own if name not in hints]
    if unknown:
        raise ValueError(f"{where} has unknown settings of {kind.__name__}: {unknown[0][:60]!r}")
    needed = {name: _reader(hints[name]) for name in _required(kind)}
    other = {name: _reader(of) for name, of in hints.items() if name not in needed}
    read = _schema.fields(other, **needed)(own, where)
    try:
        return kind(**read)
    except (ValueError, ArithmeticError, TypeError) as error:
        raise ValueError(f"{where} cannot be: {error}") from None


def _required(kind: Any) -> Iterator[str]:
    missing = dataclasses.MISSING
    for field in dataclasses.fields(kind):
        if field.default is missing and field.default_factory is missing:
            yield field.name


def _as_it_is(value: Any, where: str) -> Any:
    return tuple(_as_it_is(one, where) for one in value) if isinstance(value, list) else value
