"""The stages of `tasks.py`: which cases each measures, in rounds that depend on those before.

- screen: every declared setting on development captions at 100 and 300 NFE, one task after the
  other; settings that lose the race do not go on to the next one.
- tune: contenders at 500, 50 and 1000 NFE.
- baselines: Best-of-N's settings that few captions do not tell apart, on more of them: the one that
  is chosen would be the luckiest of several, and lose by it what it is compared with.
- confirm: what is chosen and the best Best-of-N of each task and budget on the test captions; then
  what is chosen with the NFE that it can afford in Best-of-N's seconds; then each method's best.
- paper: the paper's own settings on the test captions.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, Literal, get_args

import _tasks_settings as settings
from _tasks_choose import best, choose, clearly_worse, contenders, hard_tasks, race
from _tasks_compare import best_of_n, comparisons, grouped, success_of
from _tasks_costs import VERIFIERS, affordable
from _tasks_rows import Case, Row, Table
from _tasks_settings import PLAIN_NFE, TRAJECTORY, Setting

_BASELINES = 4
"""Settings of Best-of-N that are tuned to every task."""
_TOLD_APART = 3
"""Of these, measured on more captions."""

Stage = Literal["screen", "tune", "baselines", "confirm", "paper"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
      captions, seeds: of development.
      baseline_captions: of development, for the best settings of Best-of-N.
      test_captions, test_seeds: of confirming.
      plain_seeds: of a plain sample, which tells how hard a task is.
      screened, tuned: NFE of these stages; those that were screened are not tuned again.
      confirmed: NFE of confirming.
      of_paper: NFE of the paper's settings.
      most: settings that are tuned beside each method's best.
    """

    captions: int = 24
    seeds: int = 2
    baseline_captions: int = 100
    test_captions: int = 100
    test_seeds: int = 2
    plain_seeds: int = 20
    screened: tuple[int, ...] = (100, 300)
    tuned: tuple[int, ...] = (500, 50, 1000)
    confirmed: tuple[int, ...] = (100, 300, 500, 50)
    of_paper: tuple[int, ...] = (100, 500)
    most: int = 6


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is compared: tasks and models by name, settings of each model, and how much."""

    tasks: tuple[str, ...]
    models: tuple[str, ...]
    settings: dict[str, tuple[Setting, ...]]
    sizes: Sizes

    def cases(
        self, model: str, made: list[Setting], nfe: tuple[int, ...], tasks: tuple[str, ...],
        split: str = "dev",
    ) -> list[Case]:  # fmt: skip
        """Every setting x budget x task, those with one compiled search side by side."""
        s = self.sizes
        n, seeds = (s.captions, s.seeds) if split == "dev" else (s.test_captions, s.test_seeds)
        return [
            Case(task, model, setting, budget, split, n, seeds)
            for setting in made
            for budget in nfe
            if setting.fits(budget)
            for task in tasks
        ]

    def named(self, model: str, names: list[str]) -> list[Setting]:
        """Settings by their names; others are left out."""
        known = {setting.name: setting for setting in self.settings[model]}
        return [known[name] for name in names if name in known]

    def rows(self, table: Table, model: str, split: str = "dev") -> list[Row]:
        """Of a model's searches on the plan's tasks, no plain samples."""
        return [
            row
            for row in table.select(model=model, split=split)
            if row["task"] in self.tasks and row["method"] != "ode"
        ]


def screen(plan: Plan, table: Table) -> Iterator[list[Case]]:
    """One task after the other."""
    s = plan.sizes
    for model in plan.models:
        yield [
            Case(task, model, TRAJECTORY, PLAIN_NFE, "dev", s.captions, s.plain_seeds)
            for task in plan.tasks
        ]
    for task in plan.tasks:
        for model in plan.models:
            going = plan.settings[model]
            rows = [row for row in plan.rows(table, model) if row["nfe"] in s.screened]
            if rows:
                # New settings have no rows yet: they join.
                lost = {row["setting"] for row in rows} - race(rows)
                going = tuple(setting for setting in going if setting.name not in lost)
            yield plan.cases(model, list(going), s.screened, (task,))


def _baselines(rows: list[Row]) -> list[str]:
    """The best settings of Best-of-N that are still in the race."""
    going = race(rows)
    own = grouped((r for r in rows if r["method"] == "bon" and r["setting"] in going), "setting")
    means = {name: sum(r["success"] for r in found) / len(found) for (name,), found in own.items()}
    return sorted(means, key=lambda name: -means[name])[:_BASELINES]


def tune(plan: Plan, table: Table) -> Iterator[list[Case]]:
    """One budget after the other."""
    s = plan.sizes
    for i, nfe in enumerate(s.tuned):
        # Settings that have been measured on less are judged alike.
        before = (*s.screened, *s.tuned[:i])
        for model in plan.models:
            rows = [row for row in plan.rows(table, model) if row["nfe"] in before]
            if not rows:
                raise SystemExit(f"nothing of {model} has been screened: run --stage screen first")
            names = list(dict.fromkeys([*contenders(rows, s.most), *_baselines(rows)]))
            yield plan.cases(model, plan.named(model, names), (nfe,), plan.tasks)


def baselines(plan: Plan, table: Table) -> Iterator[list[Case]]:
    """One budget after the other."""
    s = plan.sizes
    for nfe, model in itertools.product(s.confirmed, plan.models):
        tried = table.select(model=model, method="bon", nfe=nfe, split="dev")
        yield [
            Case(task, model, setting, nfe, "dev", s.baseline_captions, s.seeds)
            for task in plan.tasks
            for setting in plan.named(
                model, _alike([row for row in tried if row["task"] == task], s.captions)
            )
        ]


def _alike(rows: list[Row], captions: int) -> list[str]:
    """Names of the settings that the first captions do not tell from the best, best first."""
    of_first = [row | {"wins": row["wins"][:captions]} for row in rows]
    of_first.sort(key=lambda row: -success_of(row, captions))
    going = [row for row in of_first if not clearly_worse([row], of_first[:1])]
    return [row["setting"] for row in going[:_TOLD_APART]]


def chosen(plan: Plan, table: Table, model: str) -> dict[str, Any]:
    """What the rule recommends for a model by the development captions.

    No search with gradients: not every reward has them, and at equal NFE they cost nothing.

    Keys: hard (tasks on which a plain sample succeeds seldom), default (setting for all budgets,
    with odds_ratio, the least), and by_nfe, likewise a budget each; null where the rule has none.
    """
    of_model = {"model": model, "split": "dev"}
    hard = [name for name in hard_tasks(table.select(**of_model)) if name in plan.tasks]
    compared = [
        one
        for one in comparisons(table, "dev")
        if one["model"] == model
        and one["task"] in plan.tasks
        and one["equal"] == "nfe"
        and one["method"] not in settings.GUIDED
    ]
    budgets = [nfe for nfe in plan.sizes.confirmed if any(c["nfe"] == nfe for c in compared)]
    main = [c for c in compared if c["nfe"] in budgets and c["nfe"] >= min(plan.sizes.screened)]

    def told(found: list[dict[str, Any]]) -> dict[str, Any] | None:
        made = choose(found, hard)
        return None if made is None else {"setting": made[0], "odds_ratio": made[1]}

    by_nfe = {str(nfe): told([c for c in compared if c["nfe"] == nfe]) for nfe in budgets}
    return {"hard": hard, "default": told(main), "by_nfe": by_nfe}


def _choices(plan: Plan, table: Table) -> dict[str, Any]:
    """What is confirmed: chosen once, before any test caption is seen, and kept in the file."""
    kept = table.results.setdefault("chosen", {})
    for model in plan.models:
        if model not in kept:
            kept[model] = chosen(plan, table, model)
    return kept


def _recommended(choice: dict[str, Any], nfe: int) -> list[str]:
    """The default, and what is best for a budget."""
    made = [choice["default"], choice["by_nfe"].get(str(nfe))]
    return list(dict.fromkeys(one["setting"] for one in made if one is not None))


def confirm(plan: Plan, table: Table) -> Iterator[list[Case]]:
    """The most important first."""
    choices, s = _choices(plan, table), plan.sizes
    for model in plan.models:
        yield [
            Case(task, model, TRAJECTORY, PLAIN_NFE, "test", s.test_captions, s.test_seeds)
            for task in plan.tasks
        ]
    for nfe, model in itertools.product(s.confirmed, plan.models):
        made = plan.named(model, _recommended(choices[model], nfe))
        yield [
            *plan.cases(model, made, (nfe,), plan.tasks, "test"),
            *_baseline_cases(plan, table, model, nfe),
        ]
    for model in plan.models:
        yield _in_equal_seconds(plan, table, model, choices[model])
    for nfe, model in itertools.product(s.confirmed, plan.models):
        rows = plan.rows(table, model)
        found = [
            best({name: r for (name,), r in grouped(own, "setting").items()})
            for (method,), own in grouped(rows, "method").items()
            if method != "bon"
        ]
        yield plan.cases(model, plan.named(model, found), (nfe,), plan.tasks, "test")


def _baseline_cases(plan: Plan, table: Table, model: str, nfe: int) -> list[Case]:
    """Best-of-N as it was best on each task's development captions."""
    made = []
    for task in plan.tasks:
        row = best_of_n(table, task, model, nfe, "dev")
        if row is not None:
            found = plan.named(model, [row["setting"]])
            made += plan.cases(model, found, (nfe,), (task,), "test")
    return made


def _in_equal_seconds(
    plan: Plan, table: Table, model: str, choice: dict[str, Any]
) -> list[Case]:  # fmt: skip
    """The default with the NFE that Best-of-N's seconds pay for."""
    made: list[Case] = []
    if choice["default"] is None:
        return made
    (setting,) = plan.named(model, [choice["default"]["setting"]]) or (None,)
    for task, nfe, verifier in itertools.product(plan.tasks, plan.sizes.confirmed, VERIFIERS):
        own = table.select(
            task=task, model=model, split="test", nfe=nfe, setting=choice["default"]["setting"]
        )
        base = best_of_n(table, task, model, nfe, "test")
        if setting is None or base is None or not own:
            continue
        budget = affordable(own[0], table.costs, verifier, base[f"seconds_{verifier}"])
        budget = min(budget, max(plan.sizes.tuned))
        if budget != nfe:
            made += plan.cases(model, [setting], (budget,), (task,), "test")
    return list({case.key: case for case in made}.values())


def paper_settings() -> list[Setting]:
    """The paper's, after its Best-of-N."""
    return [settings.make("bon", settings.ODE, steps=10), *settings.paper()]


def paper(plan: Plan, table: Table) -> Iterator[list[Case]]:
    """The paper's table, of the plan's methods: its budget of 100, and five times that."""
    for nfe, model in itertools.product(plan.sizes.of_paper, plan.models):
        methods = {setting.method for setting in plan.settings[model]}
        made = [setting for setting in paper_settings() if setting.method in methods]
        yield plan.cases(model, made, (nfe,), plan.tasks, "test")
