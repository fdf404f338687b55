"""What a value is, in words that are the same in every process.

By its description a search is known again when it is gone on with from disk. Python's own of a
function, and of an object without one, is where it lies in memory.
"""

import re
import zlib
from functools import partial
from types import CodeType, FunctionType
from typing import Any

from flowsde._exact import attributes
from flowsde._uses import used

_PLACE = re.compile(r" at 0x[0-9a-fA-F]+")


def described(value: Any) -> str:
    """`repr`, without places in memory; of functions with a checksum of what they compute."""
    return _described(value, ())


def _described(value: Any, within: tuple[Any, ...]) -> str:
    if any(value is one for one in within):
        return "…"
    say = partial(_described, within=(*within, value))
    if isinstance(value, FunctionType):
        near = [f"{one.name}={say(one.value)}" for one in used(value) if one.near]
        own = ", ".join([f"{_of_code(value.__code__):08x}", *near])
        return f"<function {value.__qualname__} {own}>"
    if isinstance(value, partial):
        return f"partial({', '.join(map(say, (value.func, value.args, value.keywords)))})"
    if isinstance(value, frozenset):
        return f"frozenset({{{', '.join(sorted(map(say, value)))}}})"
    if type(value) is tuple:
        return f"({', '.join(map(say, value))}{',' * (len(value) == 1)})"
    if type(value).__repr__ is object.__repr__:
        own = ", ".join(f"{name}={say(one)}" for name, one in sorted(attributes(value).items()))
        return f"{type(value).__qualname__}({own})"
    return _PLACE.sub("", repr(value))


def _of_code(code: CodeType) -> int:
    """A checksum of what a function computes, whatever its file and its lines are."""
    inner = [_of_code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return zlib.crc32(repr((code.co_names, inner)).encode(), zlib.crc32(code.co_code))
