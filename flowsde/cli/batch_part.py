"""`flowsde batch --part I/N`: one of N parts of a list of prompts, for a machine of its own."""

import re
from collections.abc import Sequence

from flowsde._text import shown
from flowsde.cli.errors import OptionError

OPTION = "--part"


def of(part: str | None, prompts: Sequence[str]) -> list[str]:
    """The prompts I, I + N, I + 2 N, … of a list; all without a part.

    Raises:
      OptionError: it is not I/N of 1 to N, or has no prompt.
    """
    if part is None:
        return list(prompts)
    number, many = _numbers(part)
    own = list(prompts[number - 1 :: many])
    if not own:
        raise OptionError(OPTION, f"{part} has no prompt: there are {len(prompts)} in all")
    return own


def named(part: str | None) -> str | None:
    """A part as batch.json has it; None without one."""
    return None if part is None else "/".join(map(str, _numbers(part)))


def _numbers(part: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", part)
    number, many = (int(text) for text in found.groups()) if found else (0, 0)
    if not 1 <= number <= many:
        raise OptionError(OPTION, f"expected I/N with I from 1 to N, as in 1/4, got {shown(part)}")
    return number, many
