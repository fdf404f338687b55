"""All methods on tasks where search is needed, at equal NFE and at equal seconds.

    python benchmarks/tasks.py [--quick] [--json FILE] [--stage screen tune baselines confirm paper]
                               [--only NAME ...] [--models NAME ...] [--hours H] [--dry]
                               [--budgets NFE ...] [--tuned NFE ...] [--paper NFE ...] [--costs]
                               [--plots FOLDER]

The tasks are those of `flowsde.shapes.tasks`: success is the word of their held-out judge, which no
search sees. Settings are chosen on development captions, `screen` and `tune`, and what is chosen is
confirmed once on test captions, `confirm`; `paper` has the paper's own settings. Best-of-N is tuned
to each task and budget, in the end on four times the captions of the rest, `baselines`.
`_tasks_plan` says what each stage measures, `_tasks_choose` how settings lose and how the
recommended one is chosen, `flowsde.tuning.intervals` what intervals are.

Every row is saved as it comes, and one that FILE has is not measured again. Settings that this
version does not know are left out, with a line that says so.

Besides methods --only takes variants: noise_tilt, tds and das are searches with the gradient of the
reward, restarts is SMC with them, which rows have for their method; current, window, variance and
glass are settings with that potential, with resampling in a window of steps, by masses of looking
ahead, and with those transitions. In NFE a gradient is free: an evaluation is charged once,
differentiated or not. Rows say how many `backward_passes` there were, and their seconds hold them
(`_tasks_costs`).

JSON keys: weights, costs {network, reward, overhead: seconds of one evaluation, by model, task and
setting; backward, reward_backward: what differentiating adds, as a share of the forward pass, by
model and task}, chosen (by model: hard, default, by_nfe; of the development captions, made before
the first test caption; take it out of FILE to choose anew), budget (evaluations of RBF at each
step, by rule of acceptance), comparisons {dev, test} (see `_tasks_compare.comparisons`), and
``rows``: task, model, method, interpolant, kernel, accept, value, nfe (the budget), seconds (of a
search with the task's reward), seconds_0, seconds_1, seconds_5 (with a verifier of so many network
evaluations), success with _low and _high, given (mean of the given reward), prompts, seeds, split,
setting (the identity), and what `_tasks_measure.measure` lists. Intervals are 95 %, over captions.
"""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import _tasks_costs as costs
import _tasks_plan as planning
import _tasks_settings as settings
import tyro
from _tasks_compare import as_text, comparisons
from _tasks_measure import budget_by_step, digests, is_here, measure
from _tasks_pictures import pictures_figure
from _tasks_plan import Plan, Sizes, Stage
from _tasks_plots import budget_figure, save, success_figure
from _tasks_rows import Case, Row, Table
from _tasks_settings import Setting, Unknown

from flowsde.runner.packed.steps import advance
from flowsde.shapes.tasks import TASKS

QUICK = Sizes(
    captions=2, seeds=1, baseline_captions=3, test_captions=2, test_seeds=1, plain_seeds=1,
    screened=(16,), tuned=(16,), confirmed=(16,), of_paper=(), most=1,
)  # fmt: skip
_RATE = 600.0
"""Network evaluations a second that two cores do, before anything is known."""
_SPENT = 300
"""NFE of the searches whose budgets and pictures are drawn."""
_FIRST = ("sides", "row", "above", "size")
"""Tasks on which a plain sample seldom succeeds, which are measured first."""


@dataclasses.dataclass(frozen=True)
class Args:
    """All methods on tasks where search is needed."""

    quick: bool = False
    """Two captions of one task, two settings, 16 evaluations; every stage."""
    json: Path | None = None
    """Where rows are, and are written to."""
    stage: tuple[Stage, ...] = planning.STAGES
    """Which, in their order."""
    only: tuple[str, ...] = ()
    """Tasks, methods and variants by name; all of either if none is named."""
    models: tuple[Literal["shapes", "shapes-turbo"], ...] = ("shapes", "shapes-turbo")
    """Which flows."""
    hours: float | None = None
    """Stop before a row that would end later."""
    dry: bool = False
    """Measure nothing: say what there is to do next, and for how long."""
    costs: bool = False
    """Measure seconds again, those of searches too; on a machine that has no other work."""
    plots: Path | None = None
    """Folder to draw what FILE has in."""
    captions: int = Sizes.captions
    """Of development."""
    baseline_captions: int = Sizes.baseline_captions
    """Likewise, for the best settings of Best-of-N."""
    test_captions: int = Sizes.test_captions
    """Of confirming."""
    budgets: tuple[int, ...] = Sizes.confirmed
    """NFE of confirming, in their order."""
    tuned: tuple[int, ...] = Sizes.tuned
    """NFE of tuning, in their order."""
    paper: tuple[int, ...] = Sizes.of_paper
    """NFE of the paper's settings, in their order."""
    most: int = Sizes.most
    """Settings of a model that are tuned, beside each method's best."""


def known(model: str, names: tuple[str, ...]) -> tuple[Setting, ...]:
    """Declared settings of some names that this version has; says which it has not."""
    found = []
    for setting in settings.declared(model):
        if not any(map(setting.is_a, names)):
            continue
        try:
            setting.search(1000)
        except Unknown as error:
            print(f"left out, {error}: {setting.name}", flush=True)
        else:
            found.append(setting)
    return tuple(found)


def plan_of(args: Args) -> Plan:
    """What is asked for; SystemExit naming what there is not."""
    every = (*settings.METHODS, *settings.VARIANTS)
    words = (*TASKS, *every)
    for name in args.only:
        if name not in words:
            raise SystemExit(f"--only must be of {', '.join(words)}, got {name!r}")
    ordered = [name for name in _FIRST if name in TASKS]
    ordered += [name for name in TASKS if name not in ordered]
    tasks = tuple(name for name in ordered if name in args.only) or tuple(ordered)
    names = tuple(name for name in every if name in args.only) or every
    # Others are compared with it.
    names = tuple(dict.fromkeys((*names, "bon")))
    models = tuple(model for model in args.models if is_here(model))
    for model in set(args.models) - set(models):
        print(f"left out, this version has no model {model}", flush=True)
    if args.quick:
        few = (
            settings.make("bon", settings.ODE, steps=4),
            settings.make("smc", settings.VP, steps=4, finish="mean", temperature=0.5),
        )
        return Plan(tasks[:1], models[:1], {models[0]: few}, QUICK)
    sizes = Sizes(
        captions=args.captions,
        baseline_captions=args.baseline_captions,
        test_captions=args.test_captions,
        confirmed=args.budgets,
        tuned=args.tuned,
        of_paper=args.paper,
        most=args.most,
    )
    return Plan(tasks, models, {model: known(model, names) for model in models}, sizes)


class Progress:
    """How fast rows are measured, and when to stop."""

    def __init__(self, hours: float | None):
        self._began = time.monotonic()
        self._hours, self._evaluations, self._seconds = hours, 0, 0.0

    @property
    def rate(self) -> float:
        """Evaluations a second so far, compiling included."""
        return self._evaluations / self._seconds if self._seconds else _RATE

    def takes(self, cases: list[Case]) -> float:
        """Seconds."""
        return sum(case.evaluations for case in cases) / self.rate

    def has_time(self, case: Case) -> bool:
        """Whether a row would end in time."""
        end = time.monotonic() - self._began + self.takes([case])
        return self._hours is None or end <= 3600.0 * self._hours

    def measured(self, case: Case, seconds: float) -> None:
        """One more row."""
        self._evaluations += case.evaluations
        self._seconds += seconds


def line(row: Row) -> str:
    """What was measured, on a line."""
    return (
        f"{row['task']:7} {row['model']:13} {row['nfe']:5} {row['success']:.3f} "
        f"[{row['success_low']:.3f}, {row['success_high']:.3f}] {row['setting']}"
    )


def rounds(name: Stage, plan: Plan, table: Table) -> Iterator[list[Case]]:
    """The missing cases of each round of a stage."""
    for cases in getattr(planning, name)(plan, table):
        yield [case for case in cases if not table.has(case)]


def work(name: Stage, plan: Plan, table: Table, progress: Progress) -> bool:
    """A stage; False if time is up."""
    for cases in rounds(name, plan, table):
        program = None
        for i, case in enumerate(cases):
            if not progress.has_time(case):
                print(f"{name}: time is up, {len(cases) - i} rows of this round are left")
                return False
            if program is not None and program != (case.setting, case.nfe):
                # No later case has the same.
                advance.clear_cache()  # type: ignore[attr-defined]
            program = case.setting, case.nfe
            began = time.perf_counter()
            row = measure(case)
            progress.measured(case, time.perf_counter() - began)
            table.rows[case.key] = row
            costs.price(table)
            table.save()
            left = progress.takes(cases[i + 1 :])
            print(
                f"{name} {i + 1}/{len(cases)}, {left / 60:.0f} min left of this round at "
                f"{progress.rate:.0f}/s: {line(row)}",
                flush=True,
            )
    return True


def foretell(name: Stage, plan: Plan, table: Table, progress: Progress) -> None:
    """What a stage would do if nothing more were dropped."""
    try:
        found = [case for cases in rounds(name, plan, table) for case in cases]
    except SystemExit as error:
        print(f"{name}: {error}")
        return
    evaluations = sum(case.evaluations for case in found)
    programs = len({(case.setting, case.nfe) for case in found})
    print(
        f"{name}: at most {len(found)} rows, {programs} searches, {evaluations / 1e6:.2f} million "
        f"evaluations, {progress.takes(found) / 3600:.1f} h at {progress.rate:.0f} a second"
    )


def finish(plan: Plan, table: Table) -> None:
    """Comparisons of what has been measured."""
    table.results["comparisons"] = {split: comparisons(table, split) for split in ("dev", "test")}
    table.save()
    for split, compared in table.results["comparisons"].items():
        if compared:
            print(f"\n{split}:\n{as_text(compared)}")
    for model, choice in table.results.get("chosen", {}).items():
        print(f"\n{model}: {choice}")


def spend(plan: Plan, table: Table) -> dict[str, list[float]]:
    """Evaluations of RBF at each step, by rule of acceptance; kept in the file."""
    if "budget" not in table.results:
        spent: dict[str, list[float]] = {}
        model, task = plan.models[0], plan.tasks[0]
        wanted = settings.make("rbf", settings.VP, steps=10, finish_steps=3)
        for name, accept in (("improve", {}), ("calibrated", {"accept": "calibrated"})):
            setting = Setting("rbf", (*wanted.options, *accept.items(), ("chains", 2)))
            try:
                spent[name] = budget_by_step(Case(task, model, setting, _SPENT, "dev", 4, 1))
            except Unknown as error:
                print(f"left out, {error}: where {name} spends its budget")
        table.results["budget"] = spent
        table.save()
    return table.results["budget"]


def draw(plan: Plan, table: Table, folder: Path) -> None:
    """All plots: of the test captions, if there are rows of them."""
    split = "test" if table.select(split="test", method="bon") else "dev"
    for verifier in (None, *costs.VERIFIERS):
        name = "nfe" if verifier is None else f"seconds_{verifier}"
        drawn = success_figure(table, plan.tasks, plan.models, split, verifier)
        save(drawn, folder / f"tasks_{name}.png")
    if spent := spend(plan, table):
        save(budget_figure(spent, _SPENT), folder / "tasks_budget.png")
    model = plan.models[0]
    default = table.results.get("chosen", {}).get(model, {}).get("default")
    for setting in plan.named(model, [default["setting"]] if default else []):
        shown = pictures_figure(plan.tasks[0], model, setting, _SPENT)
        save(shown, folder / "tasks_pictures.png")


def main(args: Args) -> None:
    """Stage after stage."""
    plan = plan_of(args)
    table = Table.read(args.json, digests(plan.models))
    progress = Progress(args.hours)
    if args.dry:
        for name in args.stage:
            foretell(name, plan, table, progress)
        return
    if args.costs:
        table.costs.clear()
    every = [setting for model in plan.models for setting in plan.settings[model]]
    costs.fill(table, plan.models, plan.tasks, any(setting.guided for setting in every))
    if args.costs:
        costs.fill_overheads(table, list(dict.fromkeys(every)))
    for name in args.stage:
        if not work(name, plan, table, progress):
            break
    finish(plan, table)
    if args.plots is not None:
        draw(plan, table, args.plots)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
