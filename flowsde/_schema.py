"""What a file that is read back may say: one line that names the file and the field if it does not.

A reader is a function ``read(value, where)`` that returns the value, decoded, or raises
ValueError naming `where`. Readers are put together from smaller ones:

    run = fields(prompt=text, seed=whole(), reward=maybe(number), saves=items(pair))
    values = run(read_json(path), str(path))

Fields that a reader does not name are left as they are: later versions may write more.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Reader = Callable[[Any, str], Any]

_SHOWN = 60
_WORDS = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}


def wrong(where: str, expected: str, got: Any) -> ValueError:
    """The error of a field."""
    shown = " ".join(repr(got).split())
    if len(shown) > _SHOWN:
        shown = shown[:_SHOWN] + "…"
    return ValueError(f"{where} must be {expected}, got {shown}")


def _of(kind: type | tuple[type, ...], expected: str) -> Reader:
    def read(value: Any, where: str) -> Any:
        if not isinstance(value, kind):
            raise wrong(where, expected, value)
        return value

    return read


text = _of(str, "a text")
flag = _of(bool, "true or false")
anything: Reader = lambda value, where: value  # noqa: E731
mapping = _of(dict, "an object")


def whole(least: int = 0, most: int = 2**31 - 1) -> Reader:
    """An integer in a range."""

    def read(value: Any, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise wrong(where, f"an integer from {least} to {most}", value)
        return value

    return read


def number(value: Any, where: str) -> float:
    """A number, also one that JSON has no word for."""
    if isinstance(value, str) and value in _WORDS:
        return _WORDS[value]
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong(where, "a number", value)
    try:
        return float(value)
    except OverflowError:
        raise wrong(where, "a number of 64 bits", value) from None


def inside(value: Any, where: str) -> str:
    """The relative path, with slashes, of something in a folder, and not outside of it."""
    own = text(value, where)
    parts = own.split("/")
    odd = "\\" in own or not own.isprintable()
    if odd or any(part in ("", ".", "..") for part in parts):
        raise wrong(where, "a path in the folder", value)
    return own


def name(value: Any, where: str) -> str:
    """The name of something that lies in a folder itself."""
    if "/" in inside(value, where):
        raise wrong(where, "a name in the folder", value)
    return value


def maybe(of: Reader) -> Reader:
    """What `of` reads, or null."""
    return lambda value, where: None if value is None else of(value, where)


def one_of(*choices: Any) -> Reader:
    """One of some values."""

    def read(value: Any, where: str) -> Any:
        if value not in choices:
            raise wrong(where, f"one of {', '.join(map(repr, choices))}", value)
        return value

    return read


def items(of: Reader, length: int | None = None) -> Reader:
    """A list of what `of` reads."""

    def read(value: Any, where: str) -> list[Any]:
        if not isinstance(value, list) or length not in (None, len(value)):
            raise wrong(where, "a list" if length is None else f"a list of {length}", value)
        return [of(one, f"{where}[{i}]") for i, one in enumerate(value)]

    return read


def table(of: Reader) -> Reader:
    """An object with any names, of what `of` reads."""

    def read(value: Any, where: str) -> dict[str, Any]:
        own = mapping(value, where)
        return {name: of(one, f"{where}: {name[:_SHOWN]}") for name, one in own.items()}

    return read


def fields(optional: dict[str, Reader] | None = None, /, **required: Reader) -> Reader:
    """An object that has the named fields, and may have the optional ones."""

    def read(value: Any, where: str) -> dict[str, Any]:
        own = dict(mapping(value, where))
        for name, of in required.items():
            if name not in own:
                raise ValueError(f"{where} lacks the field {name}")
            own[name] = of(own[name], f"{where}: {name}")
        for name, of in (optional or {}).items():
            if name in own:
                own[name] = of(own[name], f"{where}: {name}")
        return own

    return read


_KINDS = {str: "U", int: "iu", float: "f"}


def array(dtype: Any, *shape: int | None) -> Reader:
    """A NumPy array of a shape, in which None is any size; `int`, `float`, `str` of any width."""
    name = dtype.__name__ if dtype in _KINDS else np.dtype(dtype).name
    expected = f"{name} of shape {tuple('any' if n is None else n for n in shape)}"

    def fits(value: np.ndarray) -> bool:
        right = value.dtype.kind in _KINDS[dtype] if dtype in _KINDS else value.dtype == dtype
        same = len(value.shape) == len(shape)
        return (
            right and same and all(n in (None, m) for n, m in zip(shape, value.shape, strict=True))
        )

    def read(value: Any, where: str) -> np.ndarray:
        if not isinstance(value, np.ndarray) or not fits(value):
            got = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else value
            raise wrong(where, expected, got)
        return value

    return read
