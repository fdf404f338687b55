"""How far a tuning is, the searches that it takes at most, and the seconds that are left of it."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from flowsde.tuning.race import FINALISTS, rungs, staying
from flowsde.tuning.split import Split


class Progress(NamedTuple):
    """How far a tuning is.

    Attributes:
      done, most: searches of the race and of the comparison, by their budgets, in NFE or seconds;
        0 before the race. Rungs that leave out more than they must make `most` smaller.
      what: is said, or under way.
      left: seconds until the end, about, by what this process has measured so far; NaN before.
    """

    done: float
    most: float
    what: str
    left: float


Tell = Callable[[Progress], None]


def quiet(progress: Progress) -> None:
    """Tell nobody."""


def searches_left(going: int, before: int, settings: int, split: Split, standards: int = 0) -> int:
    """Searches of a race that leaves out nothing but the lower halves, and of the comparison.

    Args:
      going: settings that go on.
      before: searches of each so far.
      settings: that began.
      split: what they are measured on.
      standards: how many of them are what one would take without a race.
    """
    most = min(FINALISTS, settings) * len(split.final)
    stay = min(staying(standards), settings)
    for until in rungs(settings, len(split.race)):
        if until > before:
            most += going * (until - before)
            before, going = until, min(going, max(math.ceil(going / 2), stay))
    return most


class Course:
    """Counts searches and their seconds.

    A setting's first block in a process is compiled, those that follow take less: they are counted
    apart, and what is left has few of the first.

    Args:
      names: of the settings.
      split: what they are measured on.
      known: searches that are measured already.
      standards: as for `searches_left`.

    Attributes:
      done: searches, those that are known already from the start.
      most: of them, at the end.
    """

    def __init__(self, names: Sequence[str], split: Split, known: int, standards: int = 0):
        self._split, self._settings, self._standards = split, len(names), standards
        self._going, self._passed = set(names), 0
        self.done, self.most = known, self._left(len(names), 0)
        self._seen: set[str] = set()
        self._first, self._later = [0.0, 0], [0.0, 0]

    def measured(self, name: str, searches: int, seconds: float | None) -> None:
        """Count a block; `seconds` are None if it was known."""
        self._passed += searches
        self.done = max(self.done, self._passed)
        if seconds is not None:
            kind = self._later if name in self._seen else self._first
            self._seen.add(name)
            kind[0], kind[1] = kind[0] + seconds, kind[1] + searches

    def go_on(self, names: Sequence[str], before: int) -> None:
        """Only these settings are left, after so many searches of each."""
        self._going = set(names)
        self.most = self._passed + self._left(len(names), before)

    def compare(self, names: Sequence[str]) -> None:
        """Only the comparison of these settings is left."""
        self._going = set(names)
        self.most = self._passed + len(names) * len(self._split.final)

    def _left(self, going: int, before: int) -> int:
        return searches_left(going, before, self._settings, self._split, self._standards)

    @property
    def left(self) -> float:
        """Seconds until the end; NaN before anything was measured."""
        searches = self.most - self.done
        (first, many), (later, more) = self._first, self._later
        if not many + more:
            return math.nan
        if not more:
            return searches * first / many
        each = later / more
        compiling = max(first - many * each, 0.0) / max(len(self._seen), 1)
        return searches * each + len(self._going - self._seen) * compiling
