"""What a diagnosis says in words: careful ones, with the numbers that say so.

A step is called worth branching at only where the whole interval is, and none is called settled
whose interval reaches further than the limits below.
"""

import textwrap
from collections.abc import Sequence

import numpy as np

from flowsde.diagnosis.record import Record

USABLE = 0.5
"""Rank correlation from which a value orders particles as their final pictures are."""
BLIND = 0.3
"""Rank correlation below which it says little of them."""
OFTEN = 0.75
"""Share of children that beat their parent undrawn for, above which a threshold is no test."""
SETTLED = 0.2
"""Final spread of siblings over strangers' below which a step changes little."""


def words(d: Record) -> list[str]:
    """Sentences, the most important first."""
    said = [_measured(d), *_unusable(d)]
    if len(d.times) == 1:
        return [*said, "One time has a value, that of the picture: there is nothing to choose."]
    said += [*_value(d), *_gain(d)]
    said += _branching(d) if d.stochastic else [_DETERMINISTIC]
    return [*said, *_setting(d), *_cost(d)]


_DETERMINISTIC = (
    "The kernel is deterministic: no siblings. A search can choose among first noises alone, as "
    "Best-of-N and Search over Paths do, or needs a stochastic kernel."
)


def wrapped(sentences: Sequence[str], width: int = 100) -> list[str]:
    """Lines for a terminal."""
    fill = textwrap.TextWrapper(
        width, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False
    )
    return [line for sentence in sentences for line in fill.wrap(sentence)]


def _measured(d: Record) -> str:
    prompts, n, _ = d.rewards.shape
    families, siblings = d.sibling_rewards.shape[1], d.sibling_rewards.shape[3]
    many = "one prompt" if prompts == 1 else f"each of {prompts} prompts"
    own = f", {families} of them with {siblings} siblings at every step" if families else ""
    return (
        f"{n} trajectories of {many}{own}: {d.nfe} NFE and {d.verifier_calls} rewards "
        f"({d.evaluations} evaluations computed). Intervals are 95 % for each number alone, and of "
        f"many some miss; surely is said where a whole interval says so."
    )


def _unusable(d: Record) -> list[str]:
    bad = ~np.isfinite(d.rewards)
    if not bad.any():
        return []
    return [f"{bad.mean():.1%} of the rewards were NaN or infinite: they rank last, and are left "
            f"out of gains and spreads."]  # fmt: skip


def _settled_from(holds: np.ndarray) -> int:
    """The first place from which on something holds up to the end; the length if nowhere."""
    fails = np.flatnonzero(~holds)
    return int(fails[-1]) + 1 if fails.size else 0


def _value(d: Record) -> list[str]:
    """Is the reward of the posterior mean a usable value?"""
    c, last = d.correlation, len(d.times) - 1
    if not np.isfinite(c.value[last]):
        return ["All final pictures of a prompt have the same reward: there is nothing to choose."]
    known = np.where(np.isfinite(c.low), c.low, -1.0)[:last]
    first = _settled_from(known >= USABLE)
    said = []
    if first == last:
        best = int(np.argmax(np.nan_to_num(c.value[:last], nan=-1.0)))
        said.append(
            f"The posterior mean's reward is no reliable value before the last step: its rank "
            f"correlation with the final picture's is not surely above {USABLE} up to the end, at "
            f"most {c.at(best)} at {_time(d, best)}. Judge pictures: Best-of-N does, and every "
            f"search that looks ahead along the ODE (value='ode')."
        )
    else:
        when = "at every time" if first == 0 else f"from {_time(d, first)} on"
        said.append(
            f"The posterior mean's reward is a usable value {when}: its rank correlation with the "
            f"final picture's is {c.at(first)} at {_time(d, first)}, and surely above {USABLE} "
            f"after it."
        )
    blind = _blind(d)
    if blind.any():
        final = int(np.flatnonzero(blind)[-1])
        least = (
            "the same for all" if np.isnan(c.value[final]) else f"rank correlation {c.at(final)}"
        )
        said.append(
            f"It says little at {_ranges(d, blind)} ({least} at {_time(d, final)}): choices made "
            f"there are mostly by chance."
        )
    return said


def _gain(d: Record) -> list[str]:
    """Does the reward rise by itself?"""
    often, steps = d.rises.low > OFTEN, len(d.times) - 1
    if often.any():
        most = int(np.argmax(np.where(often, d.rises.value, 0.0)))
        return [
            f"The reward rises by itself: in {int(often.sum())} of {steps} steps "
            f"({_ranges(d, often)}) a child drawn without any choice beats its parent more than "
            f"{OFTEN:.0%} of the time ({d.rises.at(most)} from {_time(d, most)}, by "
            f"{d.gain.at(most)} on average). A search that takes the first child above its parent "
            f"(rbf) takes nearly any there, and its budget rolls over to the last steps. Comparing "
            f"particles at one time (smc, svdd, code) is not touched: they share the gain."
        ]
    if np.all(d.rises.high < OFTEN):
        most = int(np.argmax(d.rises.value))
        return [
            f"The reward hardly rises by itself: a child drawn without any choice beats its parent "
            f"at most {d.rises.at(most)} of the time (from {_time(d, most)}). A threshold that is "
            f"carried from step to step (rbf) is a test."
        ]
    return [f"Whether the reward rises by itself more than {OFTEN:.0%} of the time is not decided "
            f"in any step."]  # fmt: skip


def _branching(d: Record) -> list[str]:
    """Which steps are worth branching at?"""
    if not d.sibling_rewards.size:
        return []
    good, bad = d.worth.low > 1.0, d.worth.high < 1.0
    children = d.sibling_rewards.shape[3]
    if good.any():
        best = int(np.argmax(np.where(good, d.worth.value, -np.inf)))
        said = [
            f"Worth branching at: the steps from {_ranges(d, good)}. Best from {_time(d, best)}: "
            f"keeping the best of {children} children raises the final reward by "
            f"{d.choice.at(best)} standard deviations, and an evaluation spent so gains "
            f"{d.worth.at(best)} times what it does in Best-of-N (1 is as much)."
        ]
    else:
        said = [
            "No step is surely worth branching at: by one choice, an evaluation gains no more than "
            "in Best-of-N as far as these trajectories tell."
        ]
    if bad.any():
        worst = int(np.argmin(np.where(bad, d.worth.value, np.inf)))
        said.append(
            f"Surely not worth it: {_ranges(d, bad)} ({d.worth.at(worst)} times from "
            f"{_time(d, worst)})."
        )
    if (open_ := ~(good | bad)).any():
        said.append(f"Not decided: {_ranges(d, open_)}; more families would tell.")
    return said


def _blind(d: Record) -> np.ndarray:
    """Times before the last at which the value says little, bool [T - 1]."""
    return np.where(np.isfinite(d.correlation.high), d.correlation.high, 0.0)[:-1] < BLIND


def _few_steps(d: Record) -> list[str]:
    """Which steps might be fewer?"""
    blind, steps = _blind(d), len(d.times) - 1
    settled = np.where(np.isfinite(d.final_spread.high), d.final_spread.high, 0.0) < SETTLED
    why = []
    if blind.sum() > 1:
        why.append(f"at {int(blind.sum())} of {steps} ({_ranges(d, blind)}) the value says little")
    if settled.any():
        one = int(np.flatnonzero(settled)[0])
        why.append(
            f"{int(settled.sum())} of {steps} ({_ranges(d, settled)}) change little, as siblings' "
            f"final pictures differ by less than {SETTLED:.0%} of what strangers' do "
            f"({d.final_spread.at(one)} from {_time(d, one)})"
        )
    if not why:
        return []
    return [f"Few steps: {', and '.join(why)}. Fewer and larger steps there save evaluations; "
            f"whether pictures stay as good must be tried."]  # fmt: skip


def _setting(d: Record) -> list[str]:
    """What setting that suggests."""
    if not d.sibling_rewards.size:
        return []
    said, good = _few_steps(d), d.worth.low > 1.0
    if not good.any():
        return [*said, "Setting to try first: Best-of-N with few steps."]
    # Children of a step compete where they arrive.
    arrive = ", ".join(f"{t:.3g}" for t in d.times[1:][good] if t > 0.0)
    few = "" if good.all() or not arrive else f", with branch_at=[{arrive}] (where children arrive)"
    rising = bool((d.rises.low > OFTEN).any())
    what = "rbf, svdd, code or smc"
    if rising:
        what = (
            "a search that compares particles at one time (smc, svdd, code), smc with a potential "
            "of differences, in whose weights the common gain cancels"
        )
    soft = " Choose softly at first (a small weight of the reward), where it says little."
    return [
        *said,
        f"Setting to try first: {what}{few}.{soft * bool(_blind(d).any())} One choice at one "
        f"step is measured here; many in a row gain less than their sum.",
    ]


def _cost(d: Record) -> list[str]:
    if not np.isfinite(d.reward_share):
        return []
    said = (
        f"An evaluation of the model takes {_milliseconds(d.model_seconds)} and a reward "
        f"{_milliseconds(d.reward_seconds)} a candidate: {d.reward_share:.0%} of the seconds where "
        f"every candidate is judged."
    )
    if not d.sibling_rewards.size or not np.isfinite(d.worth.value).any():
        return [said]
    along, cost = len(d.times), d.reward_seconds / d.model_seconds
    # A child costs an evaluation and a reward, a trajectory of Best-of-N a reward in all.
    seconds = (along + cost) / (along * (1.0 + cost))
    return [f"{said} In seconds, branching is worth {seconds:.2f} times what it is in evaluations."]


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _time(d: Record, i: int) -> str:
    return f"t = {d.times[i]:.3g}"


def _ranges(d: Record, chosen: np.ndarray) -> str:
    """Times at which something holds: "t = 1 to 0.6, 0.1"."""
    at = np.flatnonzero(chosen)
    runs = np.split(at, np.flatnonzero(np.diff(at) > 1) + 1)
    said = [
        f"{d.times[run[0]]:.3g}" + (f" to {d.times[run[-1]]:.3g}" if len(run) > 1 else "")
        for run in runs
    ]
    return f"t = {', '.join(said)}"
