"""What a diagnosis says cannot help, and why: it does not race.

Only what is sure by the diagnosis's own intervals leaves anything out:

- A method that ranks particles on their way by the reward of the posterior mean (``value`` is
  "mean") has nothing to go by where that reward is surely blind at every time before the last.
- Nor has it anything to gain where one choice among siblings surely gains less by an evaluation
  than Best-of-N at every step.
- A threshold carried from step to step, rbf's `accept` of "improve", is no test where a child drawn
  without any choice surely beats its parent nearly always, at half of the steps or more.

One thing is left out although it might win: an answer that is a posterior mean (`finish` of "mean")
where means are not pictures, on any path diagnosed. The race goes by rewards, which may be higher
of a blurred mean than of any picture.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flowsde.diagnosis.advice import BLIND, OFTEN
from flowsde.diagnosis.record import Record
from flowsde.search import METHODS
from flowsde.tuning.settings import Setting

N, FAMILIES, STEPS, PROMPTS = 24, 12, 10, 4
"""Of a diagnosis: trajectories, those with siblings, steps, and prompts at most."""
NFE = STEPS * N + FAMILIES * STEPS * (STEPS - 1) // 2
"""Candidates that a diagnosis evaluates for each prompt, two siblings a family."""
SHARP = 0.5
_NO_PICTURE = (
    f"its answer is a posterior mean, and those of this model are blurred (rewards of the first "
    f"spread less than {SHARP:g} times as much as those of pictures)"
)


class Verdict(NamedTuple):
    """What is sure of a path; a reason each, empty if it is not.

    Attributes:
      blind: the posterior mean's reward says little at every time before the last.
      poor: no step is worth branching at.
      rising: the reward rises by itself.
      spread: standard deviation of final rewards within a prompt; NaN if they are all the same.
      sharp: posterior means are pictures from the first step on, as those of distilled models are:
        within a prompt their rewards spread at least `SHARP` as much as final ones.
    """

    blind: str
    poor: str
    rising: str
    spread: float
    sharp: bool


def verdict(d: Record) -> Verdict:
    """Of a diagnosis."""
    correlation, worth, rises = d.correlation, d.worth, d.rises
    before = correlation.high[:-1]
    blind = poor = rising = ""
    if before.size and np.all(np.isfinite(before)) and np.all(before < BLIND):
        at = int(np.argmax(correlation.value[:-1]))
        blind = (
            f"the posterior mean's reward is blind before the last step (rank correlation with the "
            f"picture's at most {correlation.at(at)})"
        )
    if worth.high.size and np.all(np.isfinite(worth.high)) and np.all(worth.high < 1.0):
        at = int(np.argmax(worth.value))
        poor = (
            f"no step is worth branching at (an evaluation gains at most {worth.at(at)} times what "
            f"it does in Best-of-N)"
        )
    often = rises.low > OFTEN
    if often.size and 2 * np.sum(often) >= often.size:
        rising = (
            f"the reward rises by itself (a child drawn without a choice beats its parent more "
            f"than {OFTEN:.0%} of the time in {int(np.sum(often))} of {often.size} steps)"
        )
    spread = _spread(d.rewards[..., -1])
    sharp = bool(_spread(d.rewards[..., 0]) >= SHARP * spread)
    return Verdict(blind, poor, rising, spread, sharp)


def _spread(rewards: np.ndarray) -> float:
    """Standard deviation of rewards [P, n] within a prompt; NaN if they are all the same."""
    finite = np.where(np.isfinite(rewards), rewards, np.nan).astype(np.float64)
    known = np.sum(np.isfinite(finite), axis=1) > 1
    variances = [float(np.nanvar(own, ddof=1)) for own in finite[known]]
    return float(np.sqrt(np.mean(variances))) if variances and max(variances) > 0.0 else np.nan


def screen(
    settings: Sequence[Setting], verdicts: Mapping[Any, Verdict]
) -> tuple[list[Setting], dict[str, str]]:
    """The settings that race, and why the others do not, by name.

    Args:
      settings: all of them.
      verdicts: by `Setting.path`; settings of other paths race, but for those that end with means.
    """
    left_out = {}
    blurred = any(math.isfinite(one.spread) and not one.sharp for one in verdicts.values())
    for setting in settings:
        known = verdicts.get(setting.path)
        why = "" if known is None else _why(setting, known)
        if blurred and setting.get("finish") == "mean":
            why = why or _NO_PICTURE
        if why:
            left_out[setting.name] = why
    return [s for s in settings if s.name not in left_out], left_out


def _why(setting: Setting, known: Verdict) -> str:
    options = inspect.signature(METHODS[setting.method]).parameters
    by_mean = "value" in options and setting.get("value", "mean") == "mean"
    if by_mean and (known.blind or known.poor):
        return known.blind or known.poor
    if "accept" in options and setting.get("accept", "improve") == "improve":
        return known.rising
    return ""
