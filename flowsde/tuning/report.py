"""The one page that says what was chosen and how sure it is, in Markdown."""

import math
from typing import TYPE_CHECKING

from flowsde.tuning.intervals import Interval
from flowsde.tuning.prices import MOST
from flowsde.tuning.split import prompts_of

if TYPE_CHECKING:
    from flowsde.tuning.tuned import Tuned


def markdown(t: "Tuned") -> str:
    """The page."""
    parts = [
        "# Tuned search",
        verdict(t),
        "## On what was held out",
        _held_out(t),
        _finalists(t),
        *_bought(t),
        "## The race",
        _raced(t),
        _race(t),
        *_left_out(t),
        "## Cost",
        _cost(t),
    ]
    return "\n\n".join(parts) + "\n"


def verdict(t: "Tuned") -> str:
    """What to use, and why."""
    winner, baseline, gap = t.race.winner, t.race.baseline, t.to_best_of_n
    said = f"Use `{t.setting.name}` with {_budget(t)} a picture.\n\n"
    if t.target is not None and not any(one.mean for rung in t.race.rungs for one in rung.table):
        said += (
            f"**No search of the race reached {_number(t.target)}**: settings were chosen by their "
            "mean rewards, which say little of that. A lower target, or more evaluations, says "
            "more.\n\n"
        )
    if winner is None or gap is None:
        return f"{said}Nothing but Best-of-N raced: it is only tuned."
    than = f"than the tuned Best-of-N, `{baseline}`: by {_interval(gap)}"
    if t.sure:
        return f"{said}It is surely better {than}.{_over_runner_up(t)}{_by_heldout(t)}"
    how = "Surely none" if gap.high < 0.0 else "None"
    is_ = "surely worse" if gap.high < 0.0 else "not surely better"
    return (
        f"{said}{how} of the others is {'' if gap.high < 0.0 else 'surely '}better than Best-of-N: "
        f"the best of them in the race, `{winner}`, is {is_} {than}.{_by_heldout(t)}"
    )


def _over_runner_up(t: "Tuned") -> str:
    gap = t.to_runner_up
    if gap is None:
        return ""
    if t.setting.name == t.race.runner_up:
        sure = "surely worse" if gap.high < 0.0 else "not surely better"
        return (
            f" It is what is recommended where nothing was tuned: the winner of the race, "
            f"`{t.race.winner}`, is {sure}, by {_interval(gap)}."
        )
    other = "what is recommended where nothing was tuned"
    if t.race.runner_up != t.race.standard:
        other = "the runner-up"
    sure = "surely better than" if gap.low > 0.0 else "not surely different from"
    if gap.high < 0.0:
        sure = "surely worse on what was held out than"
    return f" It is {sure} {other}, `{t.race.runner_up}`: by {_interval(gap)}."


def _by_heldout(t: "Tuned") -> str:
    if t.heldout_gap is None:
        return ""
    return (
        f" By the held-out score, which nothing was chosen by, the difference from Best-of-N is "
        f"{_interval(t.heldout_gap)}."
    )


def _budget(t: "Tuned") -> str:
    seconds = t.budget.get("seconds")
    return f"{t.search.nfe} NFE" if seconds is None else f"{seconds:g} s ({t.search.nfe} NFE here)"


def _bought(t: "Tuned") -> list[str]:
    """What seconds bought of the finalists, and by which prices."""
    if not t.prices:
        return []
    on = list(dict.fromkeys(one.device for one in t.prices.values()))
    others = [device for device in t.devices if device not in on]
    later = (
        f" Part of what followed was run on {_listed(others)}, where the seconds buy other "
        f"numbers: the comparison holds for {_listed(on)}."
        if others
        else ""
    )
    said = (
        f"One search may take {t.budget['seconds']:g} s, its rewards included, of one prompt by "
        f"itself. Rounds of each setting were timed before the race, on {_listed(on)}, and the "
        f"seconds, less a tenth that is kept back, turned into model evaluations. Settings raced "
        f"with these, many searches side by side.{later}"
    )
    head = ["", "NFE", "s an evaluation", "s a reward", "s a round besides", "setting"]
    role = roles(t)
    rows = []
    for name in t.finalists:
        own = t.prices[name]
        parts = [_number(part) for part in (own.evaluation, own.reward, own.round)]
        rows.append([role[name], str(own.buys), *parts, f"`{name}`"])
    if any(t.prices[name].buys == MOST for name in t.finalists):
        said += f" They buy {MOST} at most."
    return ["## What the seconds bought", said, _table(head, rows)]


def _listed(names: list[str]) -> str:
    """ "a, b and c"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def roles(t: "Tuned") -> dict[str | None, str]:
    """What each of the finalists is, by name."""
    second = "recommended" if t.race.runner_up == t.race.standard else "runner-up"
    return {t.race.baseline: "Best-of-N", t.race.winner: "winner", t.race.runner_up: second}


def _held_out(t: "Tuned") -> str:
    s, prompts = t.split, prompts_of(t.split.final)
    what = (
        f"{prompts} prompts that nothing was chosen on, with {s.seeds} seeds each"
        if s.by == "prompts"
        else f"{s.seeds} further seeds of {prompts} prompts: it holds for these prompts"
    )
    outcome = "reward" if t.target is None else f"share of searches that reach {t.target:g}"
    return (
        f"{len(s.final)} searches of each: {what}. Outcome: {outcome}. Intervals are 95 %; "
        f"differences are paired."
    )


def _finalists(t: "Tuned") -> str:
    scored = any(one.heldout is not None for one in t.finalists.values())
    head = ["", t.outcome, "in the race", *["held-out score"] * scored, "s a search", "setting"]
    role = roles(t)
    rows = []
    for name, one in t.finalists.items():
        mean = _interval(Interval(one.mean, one.low, one.high), "")
        told = [_number(one.heldout)] if scored and one.heldout is not None else ["–"] * scored
        rows.append(
            [role[name], mean, _number(one.raced), *told, _number(one.seconds), f"`{name}`"]
        )
    return _table(head, rows)


def _raced(t: "Tuned") -> str:
    s, first = t.split, t.race.rungs[0]
    half = f"{prompts_of(s.race)} other prompts" if s.by == "prompts" else "the first seeds"
    return (
        f"{len(first.table)} settings, on {half}: {len(s.race)} searches each for those that got "
        f"to the end. Best-of-N was tuned like the rest. A setting's difference is from the best "
        f"of its last rung."
    )


def _race(t: "Tuned") -> str:
    rows = []
    for i, rung in enumerate(reversed(t.race.rungs)):
        for one in rung.table:
            if one.why or i == 0:
                behind = "" if one is rung.table[0] else _interval(one.behind)
                end = one.why or "to the end"
                rows.append([f"`{one.name}`", str(rung.units), _number(one.mean), behind, end])
    return _table(["setting", "searches", t.outcome, "difference", ""], rows)


def _left_out(t: "Tuned") -> list[str]:
    said = [f"- {one}" for one in t.diagnosed]
    by_reason: dict[str, list[str]] = {}
    for name, why in t.left_out.items():
        by_reason.setdefault(why, []).append(f"`{name}`")
    said += [f"- {why}: {', '.join(names)}" for why, names in by_reason.items()]
    return ["## Left out", "\n".join(said)] if said else []


def _cost(t: "Tuned") -> str:
    c = t.cost
    return (
        f"{c['nfe']:.0f} NFE ({c['evaluations']:.0f} evaluations computed), "
        f"{c['verifier_calls']:.0f} rewards, {c['seconds']:.0f} s on {_listed(t.devices)}, all "
        f"that was compiled, diagnosed and timed included."
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float, sign: str = "") -> str:
    if math.isnan(value):
        return "–"
    return f"{value:{sign}.3g}".replace("-", "−")


def _interval(found: Interval, sign: str = "+") -> str:
    value, low, high = (_number(part, sign) for part in found)
    return f"{value} [{low}, {high}]"
