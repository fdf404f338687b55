"""What tuning gives back: a setting, how it was chosen, and how sure that is."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowsde._files import write_json
from flowsde._version import __version__
from flowsde.search import Search
from flowsde.search.complete import finishing_evaluations
from flowsde.tuning import figure, report
from flowsde.tuning.intervals import Interval
from flowsde.tuning.prices import Price
from flowsde.tuning.race import Race
from flowsde.tuning.settings import Setting
from flowsde.tuning.split import Split

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Finalist:
    """A setting on what was held out.

    Attributes:
      name: of the setting.
      mean: of its outcomes, with the 95 % interval of a mean alone, `low` and `high`.
      heldout: mean of the held-out score, that nothing is chosen by; None without.
      raced: mean of its outcomes in the race, which it was chosen by.
      seconds: of one search, compilation left out where that could be.
      outcomes: float64 [n], of the units held out.
    """

    name: str
    mean: float
    low: float
    high: float
    heldout: float | None
    raced: float
    seconds: float
    outcomes: np.ndarray


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What was chosen, and how sure it is.

    Attributes:
      setting: to use. By what was held out, what is recommended where nothing was tuned, if that is
        surely better than Best-of-N and the race's winner not surely better than that; else the
        winner, if it is surely better than Best-of-N; else Best-of-N.
      search: of the setting, with the budget; of seconds, with the evaluations that they bought.
      sure: whether the setting is surely better than Best-of-N.
      race: how it was chosen, settings by name.
      finalists: Best-of-N, the winner and the runner-up, by name, on what was held out. What is
        recommended where nothing was tuned, `race.standard`, is one of the two, if it raced.
      to_best_of_n: the outcome of the setting, or of the winner if it is Best-of-N, less that of
        Best-of-N on what was held out, with a paired 95 % interval; None where nothing else raced.
      to_runner_up: the same of the winner less the runner-up; None where there is none.
      heldout_gap: as `to_best_of_n`, by the held-out score; None without.
      left_out: why settings did not race, by name.
      diagnosed: what a diagnosis was sure of, in words.
      split: what was raced on and what was held out.
      budget: of one search, by what it is counted in: ``{"nfe": 100}`` or ``{"seconds": 5.0}``.
      outcome: what is compared: "reward", or "success", the share of searches that reach a target.
      target: that target, or None.
      settings: of all, by name.
      cost: of all of the tuning: nfe, evaluations, verifier_calls and seconds.
      prices: what seconds bought of each setting, by name; empty with a budget in evaluations.
      devices: that it was measured on, in words.
    """

    setting: Setting
    search: Search
    sure: bool
    race: Race
    finalists: dict[str, Finalist]
    to_best_of_n: Interval | None
    to_runner_up: Interval | None
    heldout_gap: Interval | None
    left_out: dict[str, str]
    diagnosed: list[str]
    split: Split
    budget: dict[str, Any]
    outcome: str
    target: float | None
    settings: dict[str, Setting]
    cost: dict[str, float]
    prices: dict[str, Price]
    devices: list[str]

    def preset(self) -> dict[str, Any]:
        """What `preset.json` says: for `--preset FILE` of sample, batch and compare.

        Of a budget in seconds both these and the evaluations that they bought.
        """
        seconds = {name: value for name, value in self.budget.items() if name == "seconds"}
        return {
            "format": FORMAT,
            "method": self.setting.method,
            "settings": dict(self.setting.options) | self._finishing() | {"nfe": self.search.nfe},
            **seconds,
            "sure": self.sure,
            "version": __version__,
        }

    def _finishing(self) -> dict[str, Any]:
        """Evaluations of finishing, where the setting leaves them to its maker."""
        steps = finishing_evaluations(self.search)
        if steps is None or self.setting.get("finish_steps") is not None:
            return {}
        return {"finish_steps": steps}

    def save_preset(self, path: str | Path) -> None:
        """Write `preset` to a file, whole or not at all."""
        write_json(Path(path), self.preset())

    def report(self) -> str:
        """One page of Markdown: what to use, and how sure that is."""
        return report.markdown(self)

    def figure(self) -> "Figure":
        """The race, and what was held out, as a Matplotlib figure."""
        return figure.draw(self)

    def __str__(self) -> str:
        return self.report()

    def __repr__(self) -> str:
        return f"Tuned(setting={self.setting.name!r}, sure={self.sure})"


FORMAT = "flowsde preset 1"
"""By which a preset's file is known."""
