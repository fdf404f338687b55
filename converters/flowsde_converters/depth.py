"""How many blocks a checkpoint has, and the keys of one."""

import re
from collections.abc import Iterable

from flowsde._text import shown

_NUMBER = re.compile(r"\{([0-9]*)i(?:\+([0-9]+))?\}")


def is_of_blocks(key: str) -> bool:
    """Whether a table's key has the number of a block in it: `{i}`, `{i+4}`, or `{2i+1}`."""
    return _NUMBER.search(key) is not None


def of_block(key: str, i: int) -> str:
    """A table's key for the block i: `a.{i+4}.b` is `a.4.b` of the first, 0."""
    return _NUMBER.sub(lambda found: str(i * int(found[1] or 1) + int(found[2] or 0)), key)


def depth(keys: Iterable[str], before: str) -> int:
    """How many numbers follow `before` in keys: 2 of "blocks.0.bias", "blocks.1.bias".

    What a model costs is by this number, so that it must be one of blocks that are there.

    Args:
      keys: of the checkpoint.
      before: what a number follows, up to it: "blocks.".

    Raises:
      ValueError: they are not 0, 1, 2, ... without a gap.
    """
    pattern = re.compile(re.escape(before) + r"([0-9]+)\.")
    found = {match[1]: key for key in keys if (match := pattern.match(key))}
    for i in range(len(found)):
        if str(i) not in found:
            far = found[max(found, key=lambda number: (len(number), number))]
            raise ValueError(
                f"there is no {before}{i}, though there are {len(found)} of {before}0, "
                f"{before}1, ..., up to {shown(far)}"
            )
    return len(found)
