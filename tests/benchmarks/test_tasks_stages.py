"""Stages of the benchmark of tasks with a measurement that is made up: order, resuming, choice."""

import itertools
import json

import _tasks_costs
import _tasks_measure
import _tasks_plan
import _tasks_settings as settings
import numpy as np
import pytest
import tasks
from _tasks_compare import best_of_n, comparisons
from _tasks_page import best_settings, recommended
from _tasks_plan import Plan, Sizes
from _tasks_plots import budget_figure, success_figure
from _tasks_rows import Case, Table
from _tasks_settings import Setting, Unknown

from flowsde.search import METHODS
from flowsde.shapes import data
from flowsde.shapes.captions import parse
from flowsde.shapes.tasks import TASKS as CHALLENGES
from flowsde.tuning.intervals import success

WEIGHTS = {"shapes": "a" * 64, "scorer": "b" * 64}
BON = settings.make("bon", settings.ODE, steps=6)
SLOW_BON = settings.make("bon", settings.ODE, steps=20)
SMC = settings.make("smc", settings.VP, steps=10, finish_steps=3, temperature=0.5)
RBF = settings.make("rbf", settings.VP, steps=10, finish_steps=3, chains=2)
TASKS = ("sides", "many", "above")
# Rewards that a search asks for, of each evaluation.
ASKED = {"ode": 0.0, "bon": 1 / 6, "smc": 1.0, "rbf": 1.0}
CHANCE = {BON: 0.3, SLOW_BON: 0.05, SMC: 0.7, RBF: 0.1, settings.TRAJECTORY: 0.02}


class Stub:
    """Measures nothing: what it was asked for is kept, and chances of success are made up."""

    def __init__(self):
        self.asked, self.chances = [], dict(CHANCE)

    def __call__(self, case):
        self.asked.append(case)
        rng = np.random.default_rng(len(case.task) + case.nfe)
        wins = rng.binomial(case.seeds, self.chances[case.setting], size=case.prompts)
        share = success(wins, case.seeds)
        return {
            "task": case.task, "model": case.model, "setting": case.setting.name, "nfe": case.nfe,
            "split": case.split, "method": case.setting.label, "prompts": case.prompts,
            "seeds": case.seeds, "success": share.value, "success_low": share.low,
            "success_high": share.high, "wins": wins.tolist(), "charged": float(case.nfe),
            "verifier_calls": case.nfe * ASKED[case.setting.method],
        }  # fmt: skip


@pytest.fixture
def stub(monkeypatch):
    made = Stub()
    monkeypatch.setattr(tasks, "measure", made)
    return made


def plan(**sizes):
    given = {"test_captions": 40, "confirmed": (100, 300), **sizes}
    return Plan(TASKS, ("shapes",), {"shapes": (BON, SLOW_BON, SMC, RBF)}, Sizes(**given))


def table(path=None):
    made = Table(path, dict(WEIGHTS))
    made.costs = {
        "network": {"shapes": 0.002}, "reward": dict.fromkeys(TASKS, 0.001), "overhead": {}
    }  # fmt: skip
    return made


def run(stages, made, **sizes):
    for name in stages:
        assert tasks.work(name, plan(**sizes), made, tasks.Progress(None))


def test_losers_are_not_screened_on_further_tasks(stub):
    made = table()
    run(["screen"], made)
    asked = {(case.task, case.setting) for case in stub.asked}
    assert ("sides", SLOW_BON) in asked and ("above", SLOW_BON) not in asked
    assert {("above", setting) for setting in (BON, SMC, RBF)} <= asked
    # One task after the other, and a setting's budgets side by side.
    searches = [(case.task, case.setting) for case in stub.asked if case.setting.method != "ode"]
    assert len(list(itertools.groupby(searches))) == len(set(searches))
    assert [name for name, _ in itertools.groupby(task for task, _ in searches)] == list(TASKS)


def test_of_a_method_that_loses_only_the_best_goes_on(stub):
    made = table()
    again = Setting("rbf", (*RBF.options, ("seeds", 2)))
    stub.chances[again] = CHANCE[RBF]
    searched = plan()
    searched.settings["shapes"] += (again,)
    assert tasks.work("screen", searched, made, tasks.Progress(None))
    first, last = ({c.setting for c in stub.asked if c.task == t} for t in (TASKS[0], TASKS[-1]))
    assert {RBF, again} < first and {BON, SMC} < last and len({RBF, again} & last) == 1


def test_what_is_there_is_not_measured_again(stub, tmp_path, capsys):
    path = tmp_path / "rows.json"
    run(["screen"], table(path))
    first = len(stub.asked)
    again = Table.read(path, dict(WEIGHTS))
    run(["screen"], again)
    assert len(stub.asked) == first
    # More captions take the place of fewer.
    run(["screen"], again, captions=30)
    assert len(stub.asked) > first and {case.prompts for case in stub.asked[first:]} <= {24, 30}
    # All but what had lost before.
    assert {row["setting"] for row in again.select(prompts=24)} <= {SLOW_BON.name}
    with pytest.raises(SystemExit, match="measured with other weights of scorer"):
        Table.read(path, WEIGHTS | {"scorer": "c" * 64})


@pytest.mark.slow
def test_the_choice_is_made_once_and_confirmed_against_the_best_best_of_n(stub, tmp_path):
    path = tmp_path / "rows.json"
    made = table(path)
    run(["screen", "tune"], made)
    assert not made.select(split="test")
    tuned = [case for case in stub.asked if case.nfe in (50, 500, 1000)]
    assert {case.setting for case in tuned} == {BON, SMC, RBF}
    stub.asked.clear()
    run(["confirm"], made)
    choice = made.results["chosen"]["shapes"]
    assert set(choice["hard"]) == set(TASKS) and choice["default"]["setting"] == SMC.name
    assert {case.split for case in stub.asked} == {"test"}
    assert {case.prompts for case in stub.asked} == {40}
    # Plain samples first, then what is chosen and Best-of-N, then the others.
    order = [case.setting.method for case in stub.asked]
    assert order[:3] == ["ode"] * 3 and order.index("rbf") > order.index("smc")
    assert order.index("rbf") > max(i for i, name in enumerate(order) if name == "bon")
    kept = json.loads(path.read_text())["chosen"]
    assert kept == made.results["chosen"]
    # A test caption that says otherwise changes nothing.
    for row in made.select(split="test", setting=SMC.name):
        row["wins"] = [0] * 40
    assert _tasks_plan._choices(plan(), made) == kept


def test_baselines_that_few_captions_do_not_tell_apart_are_measured_on_more(stub, tmp_path):
    like = settings.make("bon", settings.ODE, steps=8)
    stub.chances[like] = CHANCE[BON]
    path = tmp_path / "rows.json"
    made, searched = table(path), plan()
    searched.settings["shapes"] += (like,)
    assert tasks.work("screen", searched, made, tasks.Progress(None))
    stub.asked.clear()
    assert tasks.work("baselines", searched, made, tasks.Progress(None))
    # All but the one that is clearly worse, and none of another method.
    asked = {(case.task, case.nfe, case.setting) for case in stub.asked}
    assert asked == {(t, n, s) for t in TASKS for n in (100, 300) for s in (BON, like)}
    assert {(case.prompts, case.seeds, case.split) for case in stub.asked} == {(100, 2, "dev")}
    stub.asked.clear()
    again = Table.read(path, dict(WEIGHTS))
    assert tasks.work("baselines", searched, again, tasks.Progress(None)) and not stub.asked


def test_a_baseline_that_is_lucky_on_few_captions_is_not_the_best():
    made = table()
    few, more = [2] * 20 + [0] * 4, [1] * 24 + [2] * 76
    for setting, wins in ((SLOW_BON, few), (BON, more), (SMC, [2] * 24)):
        made.add({
            "task": "sides", "model": "shapes", "setting": setting.name, "method": setting.label,
            "nfe": 300, "split": "dev", "prompts": len(wins), "seeds": 2, "wins": wins,
            "success": sum(wins) / (2 * len(wins)), "charged": 300.0, "verifier_calls": 300.0,
        })  # fmt: skip
    _tasks_costs.price(made)
    assert best_of_n(made, "sides", "shapes", 300, "dev")["setting"] == BON.name
    # Where another method has 24 captions, Best-of-N is shown on the same: half of them.
    assert {one["bon_success"] for one in comparisons(made, "dev")} == {0.5}
    lines = best_settings({"rows": list(made.rows.values())}).splitlines()
    assert lines[2:] == ["| `bon, tuned` | 0.50 |", f"| `{SMC.name}` | **1.00** |"]


def test_equal_seconds_are_those_of_best_of_n(stub):
    made = table()
    run(["screen", "tune", "confirm"], made)
    found = [c for c in comparisons(made, "test") if c["setting"] == SMC.name]
    at = {(c["task"], c["verifier"], c["bon_nfe"]): c["nfe"] for c in found if c["verifier"]}
    # With a verifier of five evaluations 300 of Best-of-N in 6 steps are 300 (1 + 5 / 6) = 550
    # of a network, of which a search that always asks has six for each of 91.
    assert at["sides", 5, 300] == 91
    assert at["sides", 1, 300] == 175
    assert all(c["bon_setting"] == BON.name for c in found)
    for row in made.rows.values():
        own = row["charged"] * 0.002
        assert row["seconds"] == pytest.approx(own + row["verifier_calls"] * 0.001)
        assert row["seconds_5"] == pytest.approx(own + row["verifier_calls"] * 0.01)


def test_settings_that_come_later_are_tuned_as_well(stub):
    made = table()
    late = plan().settings["shapes"]
    first = Plan(TASKS, ("shapes",), {"shapes": (BON, RBF)}, Sizes())
    for name in ("screen", "tune"):
        assert tasks.work(name, first, made, tasks.Progress(None))
    stub.asked.clear()
    every = Plan(TASKS, ("shapes",), {"shapes": late}, Sizes())
    for name in ("screen", "tune"):
        assert tasks.work(name, every, made, tasks.Progress(None))
    assert {case.nfe for case in stub.asked if case.setting == SMC} == {50, 100, 300, 500, 1000}
    assert BON not in {case.setting for case in stub.asked}


def test_the_page_has_a_row_for_each_task(stub):
    made = table()
    run(["screen", "tune", "confirm"], made)
    results = made.results | {"comparisons": {"test": comparisons(made, "test")}}
    for text in (recommended(results, "nfe"), recommended(results, "seconds", 5)):
        lines = text.splitlines()
        assert lines[0].startswith("| task | model | 100 NFE | 300 NFE")
        assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name}" for name in TASKS]
        assert all("against" in line and "×" in line for line in lines[2:])


def test_the_page_has_a_row_for_each_method(stub):
    made = table()
    run(["screen"], made)
    lines = best_settings({"rows": list(made.rows.values())}).splitlines()
    assert lines[0] == f"| shapes | {' | '.join(f'{t} {n}' for t in TASKS for n in (100, 300))} |"
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| `bon, tuned`", f"| `{SMC.name}`", f"| `{RBF.name}`"
    ]  # fmt: skip
    # Best-of-N of 6 steps and SMC, by their chances.
    row = made.select(task="sides", setting=BON.name, nfe=300)[0]
    assert f" {row['success']:.2f} " in lines[2] and lines[3].count("**") == 2 * len(TASKS) * 2


def test_it_stops_when_time_is_up(stub, capsys):
    assert not tasks.work("screen", plan(), table(), tasks.Progress(0.0))
    assert stub.asked == [] and "time is up" in capsys.readouterr().out


def test_it_draws_every_panel_with_best_of_n(stub):
    made = table()
    run(["screen", "tune"], made)
    for verifier in (None, 5):
        drawn = success_figure(made, TASKS, ("shapes",), "dev", verifier)
        panels = [axes for axes in drawn.axes if axes.get_visible()]
        assert [axes.get_title(loc="left") for axes in panels] == [f"{t}, shapes" for t in TASKS]
        for axes in panels:
            assert {"Best-of-N", "SMC", "RBF"} <= set(axes.get_legend_handles_labels()[1])
    assert len(budget_figure({"improve": [1.0, 2.0], "calibrated": [2.0, 1.0]}, 3).axes) == 1


def test_settings_have_names_of_their_own_and_unknown_options_say_so():
    for model in settings.MODELS:
        declared = settings.declared(model)
        assert len({setting.name for setting in declared}) == len(declared)
        # A plain sample has no settings to choose from.
        assert {s.method for s in declared} == {*settings.METHODS} - {"ode"} == {*METHODS}
    odd = Setting("rbf", (*RBF.options, ("wishes", 3)))
    with pytest.raises(Unknown, match="has no wishes=3"):
        odd.search(100)
    odd = Setting("smc", (*SMC.options, ("scheme", "lottery")))
    with pytest.raises(Unknown, match="has no scheme=lottery"):
        odd.search(100)
    assert not RBF.fits(10) and RBF.fits(50)
    assert settings.TRAJECTORY.fits(settings.PLAIN_NFE) and not settings.TRAJECTORY.fits(100)


def test_variants_are_asked_for_by_name():
    wanted = {
        "noise_tilt": "noise_tilt=", "tds": "gradient_temperature=", "das": "tempering=",
        "current": "potential=current", "window": "resample_from=", "variance": " mass=",
        "glass": "kernel=glass", "restarts": "restart_at=",
    }  # fmt: skip
    assert {*wanted} == {*settings.VARIANTS}
    for name, word in wanted.items():
        asked = tasks.plan_of(tasks.Args(only=(name,)))
        for model in settings.MODELS:
            made = asked.settings[model]
            own = [setting for setting in made if setting.is_a(name)]
            assert own and all(word in setting.name for setting in own)
            assert all(setting.fits(100) for setting in own)
            # And the baseline, which takes no gradients.
            others = {setting.label for setting in made if setting not in own}
            assert others == {"bon"} and asked.cases(model, own, (300,), ("sides",))
            assert {setting.guided for setting in own} == {name in settings.GUIDED}


def test_a_gradient_takes_seconds_but_no_evaluations():
    made = table()
    row = {
        "task": "sides", "model": "shapes", "setting": "a", "nfe": 300, "split": "dev",
        "charged": 300.0, "verifier_calls": 200.0, "backward_passes": 100.0,
    }  # fmt: skip
    made.costs |= {"backward": {"shapes": 2.0}, "reward_backward": {"sides": 0.5}}
    plain = row | {"setting": "b", "backward_passes": 0.0}
    earlier = {name: v for name, v in plain.items() if name != "backward_passes"} | {"setting": "c"}
    for one in (row, plain, earlier):
        made.add(one)
    _tasks_costs.price(made)
    assert plain["seconds"] == earlier["seconds"] == pytest.approx(300 * 0.002 + 200 * 0.001)
    # Of the network 2 x 2 ms, of the task's reward .5 x 1 ms, of a verifier of five networks 20 ms.
    assert row["seconds"] - plain["seconds"] == pytest.approx(100 * (0.004 + 0.0005))
    assert row["seconds_0"] - plain["seconds_0"] == pytest.approx(100 * 0.004)
    assert row["seconds_5"] - plain["seconds_5"] == pytest.approx(100 * (0.004 + 0.020))
    bought = _tasks_costs.affordable(row, made.costs, 0, plain["seconds_0"])
    assert bought == 180  # of 300, at (0.6 + 0.4) / 0.6 the seconds


def test_no_search_with_gradients_is_chosen(stub):
    made = table()
    guided = settings.make("smc", settings.VP, steps=10, temperature=0.5, gradient_temperature=0.5)
    stub.chances[guided] = 0.95
    searched = plan()
    searched.settings["shapes"] += (guided,)
    for name in ("screen", "tune"):
        assert tasks.work(name, searched, made, tasks.Progress(None))
    best = max(made.select(nfe=300, task="sides"), key=lambda row: row["success"])
    assert (best["setting"], best["method"]) == (guided.name, "tds")
    assert _tasks_plan.chosen(searched, made, "shapes")["default"]["setting"] == SMC.name


def test_wrong_names_are_refused():
    with pytest.raises(SystemExit, match="--only must be of .*, got 'side'"):
        tasks.plan_of(tasks.Args(only=("side",)))


def test_numbers_of_prompts_do_not_depend_on_how_many_there_are():
    few, many = _tasks_measure.numbers(2, 2), _tasks_measure.numbers(5, 3)
    assert set(few) <= set(many) and len(set(many)) == 15


def drawn(text):
    """A picture of a caption by the renderer."""
    kinds, colours = np.concatenate(
        [np.full((group.count, 2), (group.kind, group.colour)) for group in parse(text)]
    ).T[:, None]
    centres, radii = data.place(np.random.default_rng(0), kinds[0])
    return data.render(centres[None], radii[None], kinds, colours)[0]


def test_a_row_is_of_its_case(monkeypatch):
    """With pictures that the renderer made, of which one caption's are empty."""
    case = Case("counts", "shapes", SMC, 100, "dev", 3, 2)
    pictures = [drawn(text) for text in CHALLENGES["counts"].captions("dev", 3)]
    pictures[1] = np.full_like(pictures[1], 2.0 * data.BACKGROUND - 1.0)
    images = np.stack([pictures] * 2, 1)
    found = _tasks_measure.Answers(
        images, np.zeros((3, 2)), np.full((3, 2), 93), np.full((3, 2), 7), np.full((3, 2), 91),
        0.9, 0.1,
    )  # fmt: skip
    monkeypatch.setattr(_tasks_measure, "answers", lambda case, texts: found)
    row = _tasks_measure.measure(case)
    assert row["wins"] == [2, 0, 2] and row["success"] == pytest.approx(2 / 3)
    assert (row["charged"], row["verifier_calls"], row["nfe"]) == (93.0, 91.0, 100)
    assert row["backward_passes"] == 7.0 and row["method"] == "smc"
    wanted = "task model method interpolant kernel accept value nfe success given prompts seeds"
    assert set(wanted.split()) <= set(row) and row["value"] == "mean" and row["accept"] is None
    assert (
        _tasks_costs.affordable(
            row | {"backward_passes": 0.0}, {"network": {"shapes": 1.0}, "overhead": {}}, 0, 93.0
        )
        == 93
    )
