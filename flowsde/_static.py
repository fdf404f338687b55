"""Static arguments: what a program is compiled for, and found again by.

Two that are equal share a program, so they must compute the same. A dataclass compares its fields
alone: a subclass without the decorator, or one that keeps more than its fields, would run the
program of whichever instance came first.
"""

import dataclasses
from typing import Any, Self

import jax
from flax import linen

from flowsde._described import described
from flowsde._exact import ByValue, Key, attributes


class Static(ByValue):
    """Base of kernels, interpolants, diffusion coefficients and searches: hashed by value.

    Two are equal if they are of the same class and all their attributes are, in type as well:
    those of subclasses that are no dataclass, and those that are no fields, too.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # In the class itself, where `dataclasses.dataclass` leaves them as they are.
        if "__eq__" not in vars(cls):
            cls.__eq__ = Static.__eq__  # type: ignore[method-assign]
            cls.__hash__ = Static.__hash__  # type: ignore[method-assign]
        if "__repr__" not in vars(cls):
            cls.__repr__ = Static.__repr__  # type: ignore[method-assign]

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return type(self) is type(other) and Key(self) == Key(other)

    def __hash__(self) -> int:
        own = attributes(self)
        try:
            return hash((type(self), frozenset(own.items())))
        except TypeError:
            for name, value in own.items():
                check_hashable(f"{type(self).__name__}.{name}", value)
            raise

    def __repr__(self) -> str:
        # Without fields that are None by default, as options of later versions are: a checksum of
        # this, by which a run knows its own when it resumes, stays what it was.
        fields = getattr(self, "__dataclass_fields__", {}).values()
        later = {field.name for field in fields if field.default is None}
        own = ", ".join(
            f"{name}={described(value)}"
            for name, value in attributes(self).items()
            if value is not None or name not in later
        )
        return f"{type(self).__qualname__}({own})"

    def replace(self, **changes: Any) -> Self:
        """A copy in which some attributes are others, and the rest are the same: all of them.

        Raises:
          TypeError: naming one that it does not have, or only works out from others.
        """
        for name in changes:
            if not hasattr(self, name) or isinstance(getattr(type(self), name, None), property):
                hint = ": with_nfe gives a search another budget" if name == "nfe" else ""
                raise TypeError(
                    f"{type(self).__name__} has no {name!r} to replace, expected "
                    f"{', '.join(attributes(self))}{hint}"
                )
        new = object.__new__(type(self))
        for name, value in (attributes(self) | changes).items():
            object.__setattr__(new, name, value)
        if check := getattr(new, "__post_init__", None):
            check()
        return new


def check_hashable(name: str, value: Any) -> None:
    """TypeError for what can change under the program that was compiled for it."""
    try:
        hash(value)
    except TypeError as error:
        if isinstance(value, Static):
            raise
        raise TypeError(
            f"{name} is of type {type(value).__name__}, which cannot be compared by value "
            f"({error}): expected numbers, strings, tuples or functions"
        ) from None


def check_static(name: str, value: Any) -> None:
    """Raise unless whatever computes differently is unequal too.

    Args:
      name: of the argument.
      value: a `Static`, or a function or object of the user's, as are its attributes.

    Raises:
      TypeError: it does not hash, it is an instance of a dataclass that keeps more than the fields
        by which it is compared, or a function that is compared as a tuple or a number is.
    """
    check_hashable(name, value)
    _check_compared(name, value)


def _check_compared(name: str, value: Any) -> None:
    if isinstance(value, linen.Module):
        return  # flax sees to it
    by_value = type(value).__eq__ is not object.__eq__
    if isinstance(value, Static):
        inner = attributes(value)
    elif isinstance(value, jax.tree_util.Partial):
        inner = {"func": value.func}  # its arguments are leaves
    elif dataclasses.is_dataclass(value) and not isinstance(value, type) and by_value:
        compared = {field.name for field in dataclasses.fields(value) if field.compare}
        inner = attributes(value) if hasattr(value, "__dict__") else {}
        if more := inner.keys() - compared:
            raise TypeError(
                f"{name}, a {type(value).__name__}, keeps {min(more)!r}, by which it is not "
                f"compared: one that computes differently would be equal; expected a field, of a "
                f"class with @dataclass(frozen=True)"
            )
    elif isinstance(value, tuple | str | int | float) and callable(value):
        raise TypeError(
            f"{name}, a {type(value).__name__}, is compared as its values alone are: one of "
            f"another class would be equal; expected a function or a class with "
            f"@dataclass(frozen=True)"
        )
    else:
        inner = {str(i): v for i, v in enumerate(value)} if type(value) is tuple else {}
    for key, one in inner.items():
        if not isinstance(one, float | int | str):
            _check_compared(f"{name}.{key}", one)
