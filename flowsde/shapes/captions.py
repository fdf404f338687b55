"""Captions of the shapes world: a tiny language with an exact meaning.

A caption names one or two groups of objects, for example
``three red circles and two blue squares``. Its meaning is a tuple of `Group`s.
`parse` reads text (digits, ``a``, singular and plural, any order of case),
`caption` writes the canonical form, and `tokenize` gives the model's input ids.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flowsde._text import shown

NUMBERS = ("one", "two", "three", "four", "five")
COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan")
KINDS = ("circle", "square", "triangle")
MAX_COUNT = len(NUMBERS)
MAX_GROUPS = 2

_PAD = "<pad>"
_JOIN = "and"
VOCABULARY = (_PAD, *NUMBERS, *COLOURS, *KINDS, *(k + "s" for k in KINDS), _JOIN)
"""Every word the model knows; a word's index is its token id, 0 is padding."""

MAX_TOKENS = 8
"""Two groups of three words and ``and``, padded to a round number."""

_IDS = {word: i for i, word in enumerate(VOCABULARY)}
_COUNTS = {word: i + 1 for i, word in enumerate(NUMBERS)}
_COUNTS |= {str(i + 1): i + 1 for i in range(MAX_COUNT)} | {"a": 1, "an": 1}
_KINDS = {k: i for i, k in enumerate(KINDS)} | {k + "s": i for i, k in enumerate(KINDS)}


class Group(NamedTuple):
    """``count`` (1 to 5) objects of one colour and kind, both by index."""

    count: int  # type: ignore[assignment]  # hides tuple.count
    colour: int
    kind: int


def _parse_group(words: Sequence[str], text: str) -> Group:
    if len(words) != 3:
        raise ValueError(
            f"prompt '{shown(text)}': a group is a number (one to {NUMBERS[-1]}), a colour "
            f"({', '.join(COLOURS)}) and a shape ({', '.join(KINDS)}), e.g. 'three red circles', "
            f"got '{shown(' '.join(words))}'"
        )
    number, colour, kind = words
    for word, known, what in (
        (number, _COUNTS, "number"),
        (colour, COLOURS, "colour"),
        (kind, _KINDS, "shape"),
    ):
        if word not in known:
            raise ValueError(
                f"prompt '{shown(text)}': unknown {what} '{shown(word)}', expected one of "
                f"{', '.join(known)}"
            )
    return Group(_COUNTS[number], COLOURS.index(colour), _KINDS[kind])


def parse(text: str) -> tuple[Group, ...]:
    """Meaning of a caption: one or two groups with distinct (colour, kind).

    Raises:
      TypeError: for more than one prompt.
      ValueError: naming the word that is not understood, and the words that are.
    """
    if not isinstance(text, str):
        raise TypeError(f"expected one prompt, a string, got {shown(text)}")
    words = text.lower().strip().removesuffix(".").replace(",", " and ").split()
    words = [word for i, word in enumerate(words) if words[i : i + 2] != [_JOIN, _JOIN]]
    if not words:
        raise ValueError("prompt is empty, expected e.g. 'three red circles and two blue squares'")
    clauses = " ".join(words).split(f" {_JOIN} ")
    if len(clauses) > MAX_GROUPS:
        raise ValueError(
            f"prompt '{shown(text)}': got {len(clauses)} groups, expected 1 or {MAX_GROUPS}"
        )
    groups = tuple(_parse_group(clause.split(), text) for clause in clauses)
    if len({g[1:] for g in groups}) < len(groups):
        raise ValueError(f"prompt '{shown(text)}': both groups name the same colour and shape")
    return groups


def caption(groups: Sequence[Group]) -> str:
    """Canonical English of `groups`: the inverse of `parse`.

    Raises:
      ValueError: a count is not 1 to 5.
    """
    if any(not 1 <= g.count <= MAX_COUNT for g in groups):
        raise ValueError(f"counts must be 1 to {MAX_COUNT}, got {groups}")
    clauses = (
        f"{NUMBERS[g.count - 1]} {COLOURS[g.colour]} {KINDS[g.kind]}{'s' * (g.count > 1)}"
        for g in groups
    )
    return f" {_JOIN} ".join(clauses)


def tokenize(groups: Sequence[Group]) -> np.ndarray:
    """Token ids of the canonical caption, int32 [MAX_TOKENS], zero-padded."""
    ids = [_IDS[word] for word in caption(groups).split()]
    return np.asarray(ids + [0] * (MAX_TOKENS - len(ids)), np.int32)


def counts(groups: Sequence[Group]) -> np.ndarray:
    """Wanted objects of each colour and kind, int32 [len(COLOURS), len(KINDS)]."""
    table = np.zeros((len(COLOURS), len(KINDS)), np.int32)
    for group in groups:
        table[group.colour, group.kind] = group.count
    return table
