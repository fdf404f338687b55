"""Successive halving with paired intervals.

All settings are measured on the first units; those that go on, on more: with each rung there are
half as many settings and twice as many units, and what was measured counts on. After a rung

- a setting is left out that is surely worse than the best, its whole interval of paired
  differences below 0;
- and of more than half of the rung's settings that remain, those of the lowest means, of which
  nothing is sure (Karnin, Koren and Somekh, 2013; Jamieson and Talwalkar, 2016).

The best baseline and the best other stay to the end, whatever the numbers say, and so do the
standards, which are what one would take without a race: which of them is the best is not for the
few units of the first rung to say. The comparison is between the best baseline, the best other and
the best standard; where there is no standard, or it is the best, the second best other. Nothing
here knows what a setting is or what its budget is counted in.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flowsde.tuning.intervals import Interval
from flowsde.tuning.split import Split, Unit, gap

FINALISTS = 3
"""Settings that are left at the end: the best baseline and two others."""
_LEAST = 6
"""Units of the first rung: intervals of fewer say nothing."""

Measure = Callable[[str, Sequence[Unit]], np.ndarray]
"""Outcomes of a setting, by name, on some units."""


class Standing(NamedTuple):
    """A setting after a rung.

    Attributes:
      name: of the setting.
      mean: of its outcomes so far.
      behind: its difference from the best, paired.
      why: why it is left out; empty if it goes on.
    """

    name: str
    mean: float
    behind: Interval
    why: str


class Rung(NamedTuple):
    """What was known after as many units: the best first."""

    units: int
    table: tuple[Standing, ...]


class Race(NamedTuple):
    """What was chosen, by name, and how.

    Attributes:
      winner: the best that is no baseline.
      runner_up: that is compared with it: the best standard, or the second best if there is none or
        it has won; None if there is no other.
      baseline: the best of the baselines.
      standard: the best of the standards; None if there is none.
      rungs: from the first.
    """

    winner: str | None
    runner_up: str | None
    baseline: str
    standard: str | None
    rungs: tuple[Rung, ...]

    @property
    def finalists(self) -> list[str]:
        """Those that are compared on what was held out."""
        return [name for name in (self.baseline, self.winner, self.runner_up) if name is not None]


def staying(standards: int) -> int:
    """Settings that are measured on all units, at most, if there are so many standards."""
    return max(FINALISTS, 2 + standards)


def rungs(settings: int, units: int) -> list[int]:
    """How many units settings have been measured on after each rung.

    All are the first times a power of two, so that searches of that many at once do for all rungs;
    for that the last of the units may be left over.
    """
    halvings = max(math.ceil(math.log2(settings / FINALISTS)), 0)
    halvings = min(halvings, max(int(math.log2(units / _LEAST)), 0))
    return [units // 2**halvings * 2**i for i in range(halvings + 1)]


def race(
    names: Sequence[str],
    baselines: Collection[str],
    split: Split,
    measure: Measure,
    standards: Collection[str] = (),
    shares: bool = False,
    tell: Callable[[Rung], None] = lambda rung: None,
    second: Callable[[str], float] = lambda name: 0.0,
) -> Race:
    """Choose among settings by their outcomes on the units of the race.

    Args:
      names: of the settings.
      baselines: those of them that the others are compared with, one at least.
      split: of whose two halves the first is measured.
      measure: outcomes, higher is better; -inf for none.
      standards: settings that one would take without a race, no baselines.
      shares: as for `flowsde.tuning.split.gap`.
      tell: called after each rung.
      second: what decides between settings with equal means, higher is better; else the first.

    Raises:
      ValueError: no setting has a finite mean.
    """
    going, told = list(names), []
    known: dict[str, np.ndarray] = {name: np.empty(0) for name in names}
    lengths = rungs(len(names), len(split.race))
    for until in lengths:
        for name in going:
            more = split.race[known[name].size : until]
            known[name] = (
                np.concatenate([known[name], measure(name, more)]) if more else known[name]
            )
        units = split.race[:until]
        last = until == lengths[-1]
        going.sort(key=second, reverse=True)  # Of equals the first stays first.
        table = _standings(going, baselines, standards, known, units, split.by, shares, last)
        told.append(Rung(until, table))
        tell(told[-1])
        going = [one.name for one in table if not one.why]
    order = [one.name for one in told[-1].table]
    winner, runner_up = (*_pair(order, baselines, standards), None, None)[:2]
    return Race(
        winner,
        runner_up,
        next(name for name in order if name in baselines),
        next((name for name in order if name in standards), None),
        tuple(told),
    )


def _pair(
    order: Sequence[str], baselines: Collection[str], standards: Collection[str]
) -> list[str]:
    """The best that is no baseline, and the one that it is compared with, if there are so many."""
    others = [name for name in order if name not in baselines]
    standard = [name for name in others if name in standards][:1]
    return list(dict.fromkeys([*others[:1], *standard, *others]))[:2]


def _standings(
    going: Sequence[str],
    baselines: Collection[str],
    standards: Collection[str],
    known: Mapping[str, np.ndarray],
    units: tuple[Unit, ...],
    by: str,
    shares: bool,
    last: bool,
) -> tuple[Standing, ...]:
    """The table after a rung."""
    means = {name: float(np.mean(known[name])) for name in going}
    order = sorted(going, key=lambda name: -means[name])  # Of equals the first stays first.
    best = order[0]
    if not np.isfinite(means[best]):
        bad = np.all([~np.isfinite(known[name]) for name in going], axis=0)
        at = units[int(np.argmax(bad))] if bad.any() else units[0]
        raise ValueError(
            f"no setting has a finite reward of every search; of prompt {at.prompt + 1} with seed "
            f"{at.seed} none" + (" of them has" if bad.any() else ", say")
        )
    stays = {*_pair(order, baselines, standards), *[n for n in order if n in baselines][:1]}
    stays |= set(standards).intersection(order)
    half, kept, table = math.ceil(len(going) / 2), 0, []
    for name in order:
        behind = gap(known[name], known[best], units, by, shares)
        why = ""
        if name not in stays:
            if behind.high < 0.0:
                why = "surely worse than the best"
            elif kept >= half - len(stays) and not last:
                why = "in the lower half"
        kept += name not in stays and not why
        table.append(Standing(name, means[name], behind, why))
    return tuple(table)
