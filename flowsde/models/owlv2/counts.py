"""How many of what a prompt names: "three red circles and two blue squares".

A number, in digits or words, counts the words behind it: up to the first plural noun, or to the
next mark, conjunction, preposition or article. English alone.
"""

import re
from collections.abc import Mapping

from flowsde._text import shown

MOST = 100
"""Objects of one class."""
CLASSES = 8
"""Classes of one prompt."""
_NUMBERS = {
    word: n
    for n, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
        "fifteen sixteen seventeen eighteen nineteen".split()
    )
}
_TENS = {
    word: 10 * n
    for n, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)
}
_ENDS = frozenset(
    "a an the and or but plus with without in on at of under over above below near by beside "
    "behind between among from to into onto next against around inside outside before after "
    "across along through toward towards that which who is are was were has have while as for "
    "than".split()
)
_IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "people": "person", "feet": "foot",
    "teeth": "tooth", "geese": "goose", "mice": "mouse", "oxen": "ox", "cacti": "cactus",
    "octopi": "octopus", "leaves": "leaf", "loaves": "loaf", "knives": "knife", "wolves": "wolf",
    "shelves": "shelf", "scarves": "scarf", "calves": "calf", "halves": "half", "lives": "life",
    "wives": "wife", "thieves": "thief", "elves": "elf", "hooves": "hoof", "potatoes": "potato",
    "tomatoes": "tomato", "heroes": "hero", "mangoes": "mango", "buses": "bus", "gases": "gas",
    "movies": "movie", "cookies": "cookie", "pies": "pie", "ties": "tie", "zombies": "zombie",
    "selfies": "selfie", "birdies": "birdie", "axes": "axe", "volcanoes": "volcano",
    "octopuses": "octopus", "cactuses": "cactus", "walruses": "walrus", "viruses": "virus",
    "smoothies": "smoothie", "brownies": "brownie", "hoodies": "hoodie", "quizzes": "quiz",
    "lenses": "lens", "canvases": "canvas", "snowmen": "snowman", "firemen": "fireman",
    "policemen": "policeman", "businessmen": "businessman", "fishermen": "fisherman",
}  # fmt: skip
_UNCHANGED = frozenset(
    "sheep deer fish moose bison shrimp salmon trout aircraft spacecraft scissors pants jeans "
    "shorts trousers binoculars species series".split()
)
_WORDS = re.compile(r"\d+(?:[.,:]\d+)*(?![\w-])|[^\W_]+(?:['’-][^\W_]+)*|[^\w\s]|_")


class CountsError(ValueError):
    """A text or a user counts nothing, or too much."""


def counts(prompt: str) -> dict[str, int]:
    """How many are wanted of what a prompt counts, by their names in the singular.

    A class that is counted twice is wanted as often as both say.

    Raises:
      CountsError: it counts nothing, or more than `CLASSES` classes, or `MOST` of one.
    """
    words, found = _WORDS.findall(prompt.lower()), dict[str, int]()
    for i, word in enumerate(words):
        number = _number(word)
        name = None if number is None else _named(words[i + 1 :], number)
        if number is not None and name is not None:
            found[name] = found.get(name, 0) + number
    if not found:
        raise CountsError(
            f"'{shown(prompt)}' names no counts: expected a number before what is to be "
            f"counted, such as 'three red circles and 2 dogs'"
        )
    return checked(found)


def checked(wanted: Mapping[str, int]) -> dict[str, int]:
    """Counts by class as they are; CountsError or TypeError unless they can be counted."""
    if not 0 < len(wanted) <= CLASSES:
        raise CountsError(f"counts must be of 1 to {CLASSES} classes, got {len(wanted)}")
    for name, number in wanted.items():
        if not isinstance(name, str) or not name.strip():
            raise CountsError(f"a class to count must be a word or several, got {name!r}")
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"the count of '{shown(name)}' must be an integer, got {number!r}")
        if not 0 <= number <= MOST:
            raise CountsError(f"the count of '{shown(name)}' must be 0 to {MOST}, got {number}")
    return dict(wanted)


def singular(noun: str) -> str:
    """An English noun in the singular, as it is if it is that already."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun in _UNCHANGED or not re.fullmatch(r".*[^\W\d]s", noun) or len(noun) < 4:
        return noun
    if noun.endswith(("ss", "us", "is")):
        return noun
    if noun.endswith("ies"):
        return f"{noun[:-3]}y"
    if noun.endswith(("sses", "shes", "ches", "xes", "zzes")):
        return noun[:-2]
    return noun[:-1]


def _number(word: str) -> int | None:
    if word.isdecimal():
        return int(word)
    tens, _, ones = word.partition("-")
    if tens in _TENS and (not ones or 1 <= _NUMBERS.get(ones, 0) <= 9):
        return _TENS[tens] + _NUMBERS.get(ones, 0)
    return _NUMBERS.get(word)


def _is_plural(word: str) -> bool:
    return word in _UNCHANGED or singular(word) != word


def _named(words: list[str], number: int) -> str | None:
    """The class that words after a number begin with; None where they name none."""
    named: list[str] = []
    for word in words:
        if not word[0].isalnum() or word in _ENDS or _number(word) is not None:
            break
        if number != 1 and named and _is_plural(named[-1]) and not _is_plural(word):
            break
        named.append(word)
    if not named:
        return None
    last = named[-1] if number == 1 else singular(named[-1])
    return " ".join([*named[:-1], last])
