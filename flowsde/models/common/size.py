"""The option --size of models whose pictures may have several."""

import re

from flowsde._text import shown

_SIZE = re.compile(r"(\d{1,5})(?:x(\d{1,5}))?")


def height_and_width(size: str) -> tuple[int, int]:
    """Pixels of WIDTHxHEIGHT, the order in which pictures and videos are named.

    One number is the side of a square. ValueError for anything else.
    """
    found = _SIZE.fullmatch(size)
    if found is None:
        raise ValueError(
            f"--size must be WIDTHxHEIGHT or one number of pixels, of five digits at most, "
            f"got '{shown(size)}'"
        )
    width = int(found[1])
    return (width if found[2] is None else int(found[2])), width
