"""Diagnose, leave out, race, and compare on what was held out; every step is kept as it is done.

With a budget in seconds settings that are left are timed before they race.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flowsde.diagnosis.diagnose import diagnose
from flowsde.grids import uniform
from flowsde.runner.deadline import TooFewSeconds
from flowsde.runner.records import Program
from flowsde.search import BudgetTooSmall, Search
from flowsde.tuning import screen
from flowsde.tuning.intervals import Interval, pooled, success
from flowsde.tuning.ledger import Ledger
from flowsde.tuning.measure import Block, Subject, measure
from flowsde.tuning.prices import Price, Timed, price
from flowsde.tuning.progress import Course, Progress, Tell, quiet, searches_left
from flowsde.tuning.race import Race, Rung, race, rungs
from flowsde.tuning.settings import Setting
from flowsde.tuning.space import BASELINE, declared, diagnosed, recommended
from flowsde.tuning.split import Split, Unit, gap
from flowsde.tuning.tuned import Finalist, Tuned


class Plan(NamedTuple):
    """What is tuned.

    Attributes:
      subject: what settings are measured on.
      split: its two halves.
      nfe: budget of one search in model evaluations; None with `timed`.
      methods, settings: as for `flowsde.tune`.
      search_of: the search of a setting that races, with a budget in model evaluations.
      diagnose: whether to leave out what cannot help.
      timed: budget of one search in seconds; None with `nfe`.
      as_searched: a declared setting by the name of what `search_of` makes of it.
    """

    subject: Subject
    split: Split
    nfe: int | None
    methods: Sequence[str] | None
    settings: Sequence[Setting] | None
    search_of: Callable[[Setting, int], Search]
    diagnose: bool
    timed: Timed | None = None
    as_searched: Callable[[Setting], Setting] = lambda setting: setting

    def declared(self, methods: Sequence[str] | None, spread: float = 1.0) -> Sequence[Setting]:
        """`settings`, or else those of `flowsde.tuning.space.declared`."""
        if self.settings is not None:
            return self.settings
        return tuple(map(self.as_searched, declared(methods, spread)))

    @property
    def budget(self) -> dict[str, Any]:
        """Of one search, by what it is counted in."""
        return {"nfe": self.nfe} if self.timed is None else {"seconds": self.timed.seconds}


def carry_out(plan: Plan, ledger: Ledger, tell: Tell = quiet) -> Tuned:
    """Tune; what the ledger has is not done again."""
    first = plan.declared(())
    # Of Best-of-N before all else: too few seconds are said at once.
    _prices(plan, ledger, tell, [setting for setting in first if setting.method == BASELINE])
    verdicts = _verdicts(plan, ledger, tell) if plan.diagnose else {}
    spreads = [one.spread for one in verdicts.values() if math.isfinite(one.spread)]
    settings = plan.declared(plan.methods, float(np.median(spreads)) if spreads else 1.0)
    kept, left_out = screen.screen(settings, verdicts)
    prices = _prices(plan, ledger, tell, kept)
    searches = _searches(plan, kept, prices, left_out)
    known = {setting.name: setting for setting in kept if setting.name in searches}
    standards = _standards(list(known.values()), verdicts)
    laps = _Laps(plan, ledger, searches, len(standards), tell)
    share = plan.subject.target_reward is not None
    baselines = {name for name, setting in known.items() if setting.method == BASELINE}
    found = race(
        list(known), baselines, plan.split, laps.race, standards, share, laps.rung, laps.mean_reward
    )
    laps.course.compare(found.finalists)
    finals = {name: laps.final(name) for name in found.finalists}
    said = list(dict.fromkeys(why for one in verdicts.values() for why in one[:3] if why))
    return _tuned(plan, ledger, found, finals, known, searches, prices, left_out, said)


def _standards(settings: Sequence[Setting], verdicts: Mapping[Any, screen.Verdict]) -> set[str]:
    """Names of those that are recommended to everybody with such a model."""
    paths = {setting.path for setting in recommended(settings)}
    kinds = {verdicts[path].sharp for path in paths if path in verdicts}
    return {one.name for one in recommended(settings, kinds.pop() if len(kinds) == 1 else None)}


def beforehand(plan: Plan) -> str:
    """What a tuning takes at most, in words, before anything is measured."""
    tried = plan.declared(plan.methods)
    (budget, each), many = *plan.budget.items(), len(tried)
    unit = "NFE" if budget == "nfe" else "s"
    searches = searches_left(many, 0, many, plan.split, len(recommended(tried)))
    methods = len({setting.method for setting in tried})
    first = ["timing a few rounds of each setting"] if plan.timed is not None else []
    if plan.diagnose and (paths := len(diagnosed(tried))):
        nfe = paths * len(_diagnosed_prompts(plan)) * screen.NFE * plan.subject.flow.evaluations
        first.append(f"a diagnosis of {nfe:,} NFE")
    return (
        f"{many} settings of {methods} method{'s' * (methods > 1)} race: at most {searches:,} "
        f"searches of {each:g} {unit}, {searches * each:,.0f} {unit} in all"
        + (f", after {' and '.join(first)}" if first else "")
    )


def _diagnosed_prompts(plan: Plan) -> list[int]:
    return sorted({unit.prompt for unit in plan.split.race})[: screen.PROMPTS]


def _verdicts(plan: Plan, ledger: Ledger, tell: Tell) -> dict[Any, screen.Verdict]:
    """What diagnoses of the race's first prompts say, by path."""
    subject = plan.subject
    prompts = _diagnosed_prompts(plan)
    tried = plan.declared(plan.methods)
    verdicts: dict[Any, screen.Verdict] = {}
    paths = diagnosed(tried)
    for i, setting in enumerate(paths, 1):
        name = " ".join(f"{key}={value}" for key, value in setting.path)
        known = ledger.verdict(name)
        if known is None:
            tell(Progress(0, 0, f"diagnose {i} of {len(paths)}: {name}", math.nan))
            began = time.perf_counter()
            kernel: Any = setting.kernel()  # a stochastic one
            d = diagnose(
                subject.key, subject.flow, subject.reward, **subject.rows(prompts),
                kernel=kernel, grid=uniform(screen.STEPS), n=screen.N,
                families=screen.FAMILIES, prompt_ids=prompts, chunk_size=subject.chunk_size,
            )  # fmt: skip
            known = screen.verdict(d)
            ledger.add_verdict(
                name, known, nfe=d.nfe, evaluations=d.evaluations,
                verifier_calls=d.verifier_calls, seconds=time.perf_counter() - began,
            )  # fmt: skip
        verdicts[setting.path] = known
    return verdicts


def _prices(
    plan: Plan, ledger: Ledger, tell: Tell, settings: Sequence[Setting]
) -> dict[str, Price]:
    """What seconds buy of settings, by name; of a budget in evaluations nothing."""
    timed, prices = plan.timed, {}
    if timed is None:
        return {}
    for i, setting in enumerate(settings, 1):
        known = ledger.price(setting.name)
        if known is None:
            tell(Progress(0, 0, f"time {i} of {len(settings)}: {setting.name}", math.nan))
            known = price(plan.subject, timed, setting, plan.split.race[0].prompt)
            ledger.add_price(setting.name, known)
        prices[setting.name] = known
    plain = [prices[setting.name] for setting in settings if setting.method == BASELINE]
    if plain and not any(one.buys for one in plain):
        least = min(plain, key=lambda one: one.least)
        raise TooFewSeconds(timed.seconds, least.least, least.why)
    return prices


def _searches(
    plan: Plan,
    settings: Sequence[Setting],
    prices: dict[str, Price],
    left_out: dict[str, str],
) -> dict[str, Search]:
    """The search of each setting that the budget is enough for; the others are left out."""
    searches, least = {}, None
    for setting in settings:
        nfe = plan.nfe if plan.timed is None else prices[setting.name].buys
        if not nfe:
            left_out[setting.name] = "the seconds are too few"
            continue
        try:
            made = plan.search_of(setting, nfe)
            Program.of(made, plan.subject.flow.evaluations)
        except ValueError as error:
            if not isinstance(error.__cause__ or error, BudgetTooSmall):
                raise
            left_out[setting.name] = "the budget is too small"
            if setting.method == BASELINE:
                least = error
        else:
            searches[setting.name] = made
    if not any(s.method == BASELINE for s in settings if s.name in searches):
        raise least or ValueError("settings must have one of Best-of-N")
    return searches


class _Laps:
    """Measures settings, tells how far that is, and keeps what was measured."""

    def __init__(
        self, plan: Plan, ledger: Ledger, searches: dict[str, Search], standards: int, tell: Tell
    ):
        self._plan, self._ledger, self._searches, self._tell = plan, ledger, searches, tell
        self.course = Course(list(searches), plan.split, ledger.searches, standards)
        # Of one size: what was compiled for a setting is not compiled again.
        self._at_once = rungs(len(searches), len(plan.split.race))[0]
        self._raced: dict[str, list[np.ndarray]] = {}

    def race(self, name: str, units: Sequence[Unit]) -> np.ndarray:
        """Outcomes of a setting on some units of the race."""
        return self._measured("race", name, units)[0]

    def mean_reward(self, name: str) -> float:
        """Of all that a setting has raced on, whatever the outcome is."""
        return float(np.mean(np.concatenate(self._raced[name])))

    def rung(self, rung: Rung) -> None:
        """Note which settings go on."""
        self.course.go_on([one.name for one in rung.table if not one.why], rung.units)

    def final(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Outcomes of a finalist on all that was held out, and their held-out scores."""
        return self._measured("final", name, self._plan.split.final)

    def _measured(
        self, half: str, name: str, units: Sequence[Unit]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Outcomes, and held-out scores if there are any."""
        starts = range(0, len(units), self._at_once)
        blocks = [self._block(half, name, units[i : i + self._at_once]) for i in starts]
        rewards, heldout = (
            np.concatenate([getattr(block, what) for block in blocks])
            for what in ("rewards", "heldout")
        )
        if half == "race":
            self._raced.setdefault(name, []).append(rewards)
        target = self._plan.subject.target_reward
        if target is not None:
            rewards = (rewards >= np.float32(target)).astype(np.float64)
        return rewards, heldout

    def _block(self, half: str, name: str, units: Sequence[Unit]) -> Block:
        block = self._ledger.block(half, name, units)
        seconds = None
        self._say(half, name)
        if block is None:
            search = self._searches[name]
            block = measure(self._plan.subject, search, units, final=half == "final")
            self._ledger.add(half, name, units, block)
            seconds = block.seconds
        self.course.measured(name, len(units), seconds)
        self._say(half, name)
        return block

    def _say(self, half: str, name: str) -> None:
        (each,), own = self._plan.budget.values(), self.course
        self._tell(Progress(own.done * each, own.most * each, f"{half} {name}", own.left))


def _tuned(
    plan: Plan,
    ledger: Ledger,
    found: Race,
    finals: dict[str, tuple[np.ndarray, np.ndarray]],
    known: dict[str, Setting],
    searches: dict[str, Search],
    prices: dict[str, Price],
    left_out: dict[str, str],
    said: list[str],
) -> Tuned:
    """The answer, by what was held out alone.

    What is recommended to everybody has won on other models: the race's winner takes its place only
    if it is surely better.
    """
    share = plan.subject.target_reward is not None
    units, by = plan.split.final, plan.split.by

    def compared(one: str | None, other: str | None, heldout: bool = False) -> Interval | None:
        if one is None or other is None or one == other:
            return None
        a, b = (finals[name][heldout] for name in (one, other))
        if not a.size:
            return None
        yes_or_no = heldout and set(np.concatenate([a, b])) <= {0.0, 1.0}
        return gap(a, b, units, by, yes_or_no or (share and not heldout))

    def surely(gap: Interval | None) -> bool:
        return gap is not None and gap.low > 0.0

    ours, to_runner_up = found.winner, compared(found.winner, found.runner_up)
    by_standard = found.standard == found.runner_up and not surely(to_runner_up)
    if by_standard and surely(compared(found.standard, found.baseline)):
        ours = found.standard
    to_best_of_n = compared(ours, found.baseline)
    sure = surely(to_best_of_n)
    name = ours if sure and ours is not None else found.baseline
    raced = {one.name: one.mean for rung in found.rungs for one in rung.table}
    counts = ("nfe", "evaluations", "verifier_calls", "seconds")
    return Tuned(
        setting=known[name],
        search=searches[name],
        sure=sure,
        race=found,
        finalists={
            one: _finalist(one, *finals[one], raced[one], ledger, units, by, share)
            for one in found.finalists
        },
        to_best_of_n=to_best_of_n,
        to_runner_up=to_runner_up,
        heldout_gap=compared(ours, found.baseline, heldout=True),
        left_out=left_out,
        diagnosed=said,
        split=plan.split,
        budget=plan.budget,
        outcome="success" if share else "reward",
        target=plan.subject.target_reward,
        settings=known,
        cost={name: ledger.total(name) for name in counts},
        prices=prices,
        devices=ledger.devices,
    )


def _finalist(
    name: str,
    outcomes: np.ndarray,
    heldout: np.ndarray,
    raced: float,
    ledger: Ledger,
    units: Sequence[Unit],
    by: str,
    share: bool,
) -> Finalist:
    mean, low, high = _mean(outcomes, units, by, share)
    score = float(np.mean(heldout)) if heldout.size else None
    return Finalist(name, mean, low, high, score, raced, ledger.seconds_of(name), outcomes)


def _mean(outcomes: np.ndarray, units: Sequence[Unit], by: str, share: bool) -> Interval:
    """The mean of outcomes, with its interval."""
    if not np.isfinite(outcomes).all():
        return Interval(float(np.mean(outcomes)), -np.inf, np.inf)
    prompts = np.asarray([unit.prompt for unit in units])
    groups = [outcomes[prompts == prompt] for prompt in np.unique(prompts)]
    if share:
        wins = np.asarray([own.sum() for own in groups]) if by == "prompts" else outcomes
        return success(wins, len(groups[0]) if by == "prompts" else 1)
    return pooled([np.asarray([own.mean() for own in groups])] if by == "prompts" else groups)
