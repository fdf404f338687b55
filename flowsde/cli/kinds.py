"""Kinds of options, as tyro reads them: numbers, flags, and what their placeholders are."""

from typing import Annotated, Any

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from flowsde import _text


def number(kind: type, name: str) -> PrimitiveConstructorSpec:
    """An option that is a number; `name` says so in errors."""

    def convert(words: list[str]) -> Any:
        try:
            return kind(words[0])
        except ValueError:
            raise ValueError(f"expected {name}, got '{_text.shown(words[0])}'") from None

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="N" if kind is int else "X",
        instance_from_str=convert,
        is_instance=lambda value: value is None or isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )


QUIET = tyro.conf.arg(help_behavior_hint="")
Int = Annotated[int | None, number(int, "an integer"), QUIET]
Float = Annotated[float | None, number(float, "a number"), QUIET]
Flag = Annotated[bool, QUIET]


def shown(metavar: str) -> Any:
    """An option with this placeholder in the help."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")
