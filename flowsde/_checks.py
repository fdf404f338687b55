"""Checks of arguments: each raises one error naming the argument, what came and what is needed."""

import math
import operator
import os
import re
import reprlib
from pathlib import Path
from typing import Any

import numpy as np

MOST = 2**31 - 1
"""What int32 holds: counts in compiled programs are no larger."""
_LEAST, _LARGEST = (float(x) for x in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))
# pathlib turns two slashes into one, so that "gs://bucket" would be a folder "gs:" here.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def check_path(name: str, value: Any) -> Path:
    """`value` as a path of a file system here, raising for a URL.

    Locks, and renames that happen whole or not at all, are what keeps results and conversions
    whole; object stores have neither.
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise TypeError(f"{name} must be a path, got {type(value).__name__}")
    if _URL.match(os.fspath(value)):
        raise ValueError(
            f"{name} must be a path on this machine, a mounted bucket included, got the URL "
            f"{os.fspath(value)[:200]!r}"
        )
    return Path(value)


def check_positive(name: str, value: float) -> None:
    """Raise unless `value` is a finite number above 0."""
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, got {value}")


def check_non_negative(name: str, value: float) -> None:
    """Raise unless `value` is a finite number of at least 0."""
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{name} must be a finite number of at least 0, got {value}")


def check_bool(name: str, value: Any) -> None:
    """Raise unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_count(name: str, value: Any, least: int = 1, most: int = MOST) -> int:
    """`value` as an int of at least `least` and at most `most`."""
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if isinstance(value, bool) or count < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {_digits(value)}")
    if count > most:
        raise ValueError(f"{name} must be an integer of at most {most}, got {_digits(count)}")
    return count


def check_integers(name: str, values: Any, least: int, most: int) -> np.ndarray:
    """Integers of any shape as int64, each at least `least` and at most `most`.

    Raises:
      ValueError: they are not integers, or naming the first that lies outside.
    """
    array = np.asarray(values)
    # NumPy has no integers for what passes 64 bits.
    large = array.dtype == object and all(type(value) is int for value in array.flat)
    if array.dtype.kind not in "iu" and not large:
        raise ValueError(f"{name} must be integers, got {reprlib.repr(values)}")
    outside = array[(array < least) | (array > most)].reshape(-1)
    if outside.size:
        raise ValueError(f"{name} must lie in {least} to {most}, got {_digits(int(outside[0]))}")
    return array.astype(np.int64)


def _digits(number: Any) -> str:
    """A number, of very many digits how many there are."""
    if isinstance(number, int) and number.bit_length() > 256:
        return f"an integer of {number.bit_length()} bits"
    return repr(number)


def check_float(option: str, value: float) -> float:
    """An option's number, if it is one of float32, in which all is computed."""
    if not math.isfinite(value):
        raise ValueError(f"{option} must be a finite number, got {value}")
    if value and not _LEAST <= abs(value) <= _LARGEST:
        raise ValueError(
            f"{option} must be 0 or between {_LEAST:.3g} and {_LARGEST:.3g} in size, got {value}"
        )
    return value
