"""A prompt inside a question: how much of it there is room for."""

import bisect
import warnings
from collections.abc import Callable

STEP = 32
"""Padding is to a multiple of it: one program serves many prompts."""


def fitted(longest: int, most: int) -> int:
    """Tokens that questions are padded to, of which the longest has so many; `most` at most."""
    return min(-(-longest // STEP) * STEP, most)


def cut(prompt: str, most: int, count: Callable[[str], int]) -> str:
    """As much of a prompt as there is room for, so that the question stays whole.

    Warns of what is left out.

    Args:
      prompt: of any length.
      most: tokens of a question with its prompt.
      count: tokens of the question with a prompt.
    """
    if count(prompt) <= most:
        return prompt
    more = bisect.bisect_right(range(len(prompt)), most, key=lambda n: count(prompt[:n]))
    warnings.warn(
        f"a prompt has {count(prompt)} tokens with its question, of which {most} are "
        f"used; left out: {prompt[more - 1 :]!r}",
        stacklevel=3,
    )
    return prompt[: more - 1]
