"""`flowsde.tune` on a flow whose answers are known: what is chosen, kept, resumed and refused."""

import json
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowsde as fs
from flowsde.diagnosis.statistics import Estimate
from flowsde.search import METHODS
from flowsde.tuning import carry_out, screen
from flowsde.tuning.measure import Block
from flowsde.tuning.settings import Setting
from flowsde.tuning.space import declared, diagnosed, recommended
from flowsde.tuning.split import Unit

DATA = fs.analytic.gaussian(np.zeros(2), 1.0)
ODE = {"interpolant": "linear", "kernel": "ode_euler", "grid": "uniform"}
BON = Setting.of("bon", **ODE, steps=2)
SVDD = Setting.of(
    "svdd", interpolant="vp", kernel="ddim", eta=1.0, data_variance=1.0, grid="uniform", steps=4,
    chains=2, finish="mean",
)  # fmt: skip
SMC = recommended(declared(("smc",)))[0]
SMALL = {"nfe": 16, "seeds": 4, "chunk_size": 16, "diagnose": False}


def _reward(images, cond):
    return images[:, 0]


@cache
def _flow():
    return DATA.flow()


def _tune(**options):
    given = {"settings": (BON, SVDD), **SMALL, **options}
    return fs.tune(jax.random.key(0), _flow(), _reward, **given)


class Made:
    """A measurement that is made up: noise of the units, and a mean of the setting.

    It keeps what it was asked for, and is interrupted in place of the call after `stop_at`.
    """

    def __init__(self, means, stop_at=None):
        self.means, self.stop_at, self.calls = means, stop_at, []

    def __call__(self, subject, search, units, final=False):
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        setting = next(one for one in self.means if one.search(16) == search)
        self.calls.append((setting.method, final, tuple(units)))
        rng, n = np.random.default_rng([u for unit in units for u in unit]), len(units)
        scores = np.ones(n) if final else np.empty(0)
        return Block(self.means[setting] + rng.normal(size=n), scores, 16 * n, 20 * n, 4 * n, 0.5)


@pytest.fixture
def made(monkeypatch):
    def use(bon, svdd, stop_at=None, smc=0.0):
        own = Made({BON: bon, SVDD: svdd, SMC: smc}, stop_at)
        monkeypatch.setattr(carry_out, "measure", own)
        monkeypatch.setattr("flowsde.tuning.tune.probe", lambda subject: [0.0, 1.0, 0.5])
        return own

    return use


@pytest.mark.slow
def test_what_is_surely_better_is_recommended_and_what_is_not_is_not(made):
    made(bon=0.0, svdd=1.0)
    better = _tune()
    assert better.sure and better.setting == SVDD
    # All noise is common to both: the difference is 1.
    assert better.to_best_of_n.value == pytest.approx(1.0)
    assert better.to_runner_up is None and "It is surely better than" in better.report()
    assert better.search == SVDD.search(16)
    made(bon=0.0, svdd=-1.0)
    worse = _tune()
    assert not worse.sure and worse.setting == BON
    assert "Surely none of the others is better than Best-of-N" in worse.report()
    made(bon=0.0, svdd=0.0)
    equal = _tune()
    assert not equal.sure and equal.setting == BON and equal.to_best_of_n == (0.0, 0.0, 0.0)
    assert "None of the others is surely better than Best-of-N" in equal.report()


@pytest.mark.slow_but_one
@pytest.mark.parametrize(
    ("svdd", "smc", "chosen"),
    [
        # Surely better than both, than Best-of-N alone, and than neither.
        (2.0, 1.0, SVDD),
        (1.0, 1.0, SMC),
        (0.5, 1.0, SMC),
        (1.0, 0.0, SVDD),
        (-1.0, -1.0, BON),
    ],
)
def test_the_winner_replaces_what_is_recommended_to_all_only_if_it_is_surely_better(
    made, svdd, smc, chosen
):
    made(bon=0.0, svdd=svdd, smc=smc)
    found = _tune(settings=(BON, SVDD, SMC))
    assert found.setting == chosen and found.sure == (chosen != BON)
    assert set(found.finalists) == {BON.name, SVDD.name, SMC.name}
    best = max(svdd, smc) if chosen == BON else {SVDD: svdd, SMC: smc}[chosen]
    assert found.to_best_of_n.value == pytest.approx(best)
    page, roles = found.report(), {BON.name: "Best-of-N", SMC.name: "recommended"}
    if svdd >= smc:
        assert found.to_runner_up.value == pytest.approx(svdd - smc)
        roles[SVDD.name] = "winner"
        for name, role in roles.items():
            assert any(line.startswith(f"| {role} |") and name in line for line in page.split("\n"))
    said = "It is what is recommended where nothing was tuned: the winner of the race"
    assert (said in page) == (chosen == SMC and svdd >= smc)


def test_a_target_that_nothing_reaches_is_said(made):
    made(bon=0.0, svdd=1.0)
    tuned = _tune(target_reward=100.0, settings=(BON, SVDD))
    assert "**No search of the race reached 100**" in tuned.report()
    assert tuned.race.rungs[-1].table[0].name == SVDD.name
    assert "No search of the race" not in _tune(target_reward=0.0, settings=(BON, SVDD)).report()


def test_what_is_recommended_to_all_is_told_from_its_neighbours():
    ours = recommended(declared())
    assert [(one.method, one["steps"]) for one in ours] == [("smc", 6), ("epsilon_greedy", 2)]
    # The tasks' .25, where the reward spreads over 4.6 to 5.1 (`diagnosis` of sides and above).
    assert ours[0]["temperature"] == 0.05
    assert isinstance(ours[0].search(100).inner, fs.search.Restarts)
    # It competes from the start on.
    assert ours[1].search(100).branch_at == (0, 1)
    assert recommended(declared(("rbf",))) == []


def test_searches_are_counted_and_nothing_is_chosen_on_what_is_held_out(made):
    own = made(bon=0.0, svdd=1.0)
    found = _tune(heldout=lambda images, prompts: np.ones(len(prompts)))
    raced = {unit for _, final, units in own.calls if not final for unit in units}
    final = {unit for _, final, units in own.calls if final for unit in units}
    assert raced == {Unit(0, s) for s in range(4)} and final == {Unit(0, s) for s in range(4, 8)}
    assert found.cost == {"nfe": 256, "evaluations": 320, "verifier_calls": 64, "seconds": 2.0}
    assert found.heldout_gap.value == 0.0 and "By the held-out score" in found.report()


def test_the_searches_are_said_before_and_are_all_done_at_the_end(made, tmp_path: Path):
    made(bon=0.0, svdd=1.0)
    told = []
    _tune(tell=told.append, save=tmp_path / "race.json")
    said = "2 settings of 2 methods race: at most 16 searches of 16 NFE, 256 NFE in all"
    assert told[0].what == said and told[0].most == 0
    assert [one.done for one in told[1:]] == [0, 64, 64, 128, 128, 192, 192, 256]
    assert {one.most for one in told[1:]} == {256} and told[-1].left == 0.0
    told.clear()
    _tune(tell=told.append, save=tmp_path / "race.json")
    assert {one.done for one in told[1:]} == {256}


@pytest.mark.slow
def test_it_goes_on_where_it_was_stopped_and_other_calls_are_refused(made, tmp_path: Path):
    path = tmp_path / "race.json"
    whole = made(bon=0.0, svdd=1.0)
    expected = _tune()
    for stop_at in (1, 2):
        made(bon=0.0, svdd=1.0, stop_at=1)
        with pytest.raises(KeyboardInterrupt):
            _tune(save=path)
        known = json.loads(path.read_text())
        done = sum(len(own) for half in ("race", "final") for own in known[half].values())
        assert done == stop_at
    rest = made(bon=0.0, svdd=1.0)
    found = _tune(save=path)
    assert len(rest.calls) == len(whole.calls) - 2 and found.report() == expected.report()
    for options, said in (
        ({"nfe": 18}, "budget {'nfe': 16}, not {'nfe': 18}"),
        ({"prompts": ["a"]}, r"prompts 1, not \['a'\]"),
        ({"seeds": 5}, "seeds 4, not 5"),
        ({"settings": (BON,)}, "methods .* not"),
    ):
        with pytest.raises(ValueError, match=f"race.json used .*{said}"):
            _tune(save=path, **options)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match=r"race.json cannot be read"):
        _tune(save=path)


def test_another_model_or_reward_is_refused(made, monkeypatch, tmp_path: Path):
    made(bon=0.0, svdd=1.0)
    _tune(save=tmp_path / "a.json")
    monkeypatch.setattr("flowsde.tuning.tune.probe", lambda subject: [0.0, 1.2, 0.5])
    with pytest.raises(ValueError, match="a.json used another model or reward: expected the same"):
        _tune(save=tmp_path / "a.json")


def test_arguments_that_are_wrong_are_named(made):
    made(bon=0.0, svdd=0.0)
    for options, said in (
        ({"nfe": 0}, "nfe must be"),
        ({"nfe": 1}, "nfe"),
        ({"methods": ["bon"]}, "methods has no effect with settings"),
        ({"settings": (BON, BON)}, "settings must be different ones"),
        ({"seeds": 1}, "seeds must be at least 2 of fewer than 8 prompts, .* got 1"),
        ({"target_reward": np.nan}, "target_reward must be a finite number"),
        ({"cond": jnp.zeros((2, 1)), "prompts": ["a"]}, "cond has a leaf of shape"),
        ({"settings": None, "methods": ["best"]}, "methods must be some of"),
        ({"reward_cond": [1], "prompts": ["a", "b"]}, "reward_cond is a list of 1, expected 2"),
    ):
        with pytest.raises(ValueError, match=said):
            _tune(**options)
    with pytest.raises(TypeError, match="settings must be flowsde.tuning Settings"):
        _tune(settings=("bon",))


def _record(correlation, worth, rises, rewards):
    """A diagnosis of three steps whose estimates are sure."""

    def sure(values):
        value = np.asarray(values, float)
        return Estimate(value, value - 0.01, value + 0.01)

    class Record:
        pass

    d = Record()
    d.correlation, d.worth, d.rises = sure(correlation), sure(worth), sure(rises)
    d.rewards = np.asarray(rewards, np.float32)
    return d


def test_what_a_diagnosis_is_sure_of_leaves_out_what_it_is_about():
    every = declared()
    path = SVDD_VP.path
    rewards = np.zeros((1, 4, 3)) + np.asarray([[[0.0], [2.0], [0.0], [2.0]]])
    useful = screen.verdict(_record([0.6, 0.8, 1.0], [1.5, 0.5], [0.5, 0.9], rewards))
    assert useful[:2] == ("", "") and useful.spread == pytest.approx(np.sqrt(4.0 / 3.0))
    blind = screen.verdict(_record([0.1, 0.2, 1.0], [1.5, 0.5], [0.5, 0.5], rewards))
    poor = screen.verdict(_record([0.6, 0.8, 1.0], [0.9, 0.5], [0.5, 0.5], rewards))
    rising = screen.verdict(_record([0.6, 0.8, 1.0], [1.5, 0.5], [0.9, 0.5], rewards))
    assert blind.blind and not blind.poor and poor.poor and not poor.blind and rising.rising
    for known, gone in (
        (blind, lambda s: s.method in BY_MEAN and s.get("value", "mean") == "mean"),
        (poor, lambda s: s.method in BY_MEAN and s.get("value", "mean") == "mean"),
        (rising, lambda s: s.method == "rbf" and s.get("accept", "improve") == "improve"),
    ):
        kept, left_out = screen.screen(every, {path: known})
        assert set(left_out) == {s.name for s in every if s.path == path and gone(s)} != set()
        assert len(kept) + len(left_out) == len(every)


def test_no_answer_is_a_mean_where_means_are_blurred():
    every = declared()
    finals = np.asarray([0.0, 2.0, 4.0, 1.0])

    def of(share):
        rewards = np.stack([share * finals, finals], -1)[None]
        return {SVDD_VP.path: screen.verdict(_record([0.6, 1.0], [1.5], [0.5], rewards))}

    assert set(screen.screen(every, of(0.1))[1]) == ENDS_WITH_MEANS != set()
    assert screen.screen(every, of(1.0))[1] == {}
    alike = screen.verdict(_record([0.6, 1.0], [1.5], [0.5], np.ones((1, 4, 2))))
    assert screen.screen(every, {SVDD_VP.path: alike})[1] == {}  # nothing is known
    assert screen.screen(every, {})[1] == {}


def test_a_model_is_distilled_if_the_rewards_of_first_means_spread_as_those_of_pictures():
    finals = np.asarray([0.0, 2.0, 4.0, np.nan], np.float32)
    for share, sharp in ((0.1, False), (0.49, False), (0.51, True), (1.0, True)):
        # Of two prompts that differ by 100: it is the spread within a prompt that counts.
        first = np.stack([share * finals, 100.0 + share * finals])
        rewards = np.stack([first, np.stack([finals, 100.0 + finals])], -1)
        found = screen.verdict(_record([0.6, 1.0], [1.5], [0.5], rewards))
        assert found.sharp is sharp and found.spread == pytest.approx(2.0)
        path = recommended(declared())[0].path
        usual = carry_out._standards(declared(), {path: found})
        assert usual == {recommended(declared())[sharp].name}
        assert recommended(declared())[sharp]["steps"] == (2 if sharp else 6)
    same = screen.verdict(_record([0.6, 1.0], [1.5], [0.5], np.ones((1, 4, 2))))
    assert same.sharp is False
    assert len(carry_out._standards(declared(), {})) == 2  # not diagnosed


ENDS_WITH_MEANS = {s.name for s in declared() if s.get("finish") == "mean"}
BY_MEAN = ("smc", "svdd", "code", "rbf", "sop", "epsilon_greedy", "dfs")
SVDD_VP = next(s for s in declared() if s.method == "svdd")


def test_a_method_that_is_listed_races(monkeypatch):
    def along_the_ode(*, nfe, kernel, grid):
        if kernel.stochastic:
            raise ValueError("kernel must be deterministic")
        return fs.search.bon(nfe=nfe, kernel=kernel, grid=grid)

    monkeypatch.setitem(METHODS, "mine", fs.search.svdd)
    monkeypatch.setitem(METHODS, "ours", along_the_ode)
    mine, ours = declared(["mine", "ours"])[-2:]
    assert (mine.method, mine["kernel"], ours.method) == ("mine", "ddim", "ours")
    assert mine.search(200) == fs.search.svdd(
        nfe=200, kernel=SVDD_VP.kernel(), grid=fs.grids.uniform(10), finish_steps=3
    )
    assert ours["kernel"] == "ode_euler"


def test_every_declared_setting_is_a_search():
    every = declared(spread=3.0)
    # A method is not judged by one setting, and has one of few steps for distilled models.
    for method in METHODS:
        own = [s for s in every if s.method == method]
        assert len(own) >= 2 and min(s["steps"] for s in own) <= 6, method
    assert len({s.name for s in every}) == len(every)
    for setting in every:
        assert setting.search(200).nfe == 200
    assert {s["temperature"] for s in every if s.method == "smc"} == {0.15, 0.6, 2.4}
    assert {s.method for s in declared(["smc"])} == {"bon", "smc"}
    assert all(s.kernel().stochastic for s in diagnosed(every))


@pytest.mark.slow
def test_on_a_gaussian_the_best_of_more_pictures_wins_by_as_much_as_it_must(tmp_path: Path):
    """N(0, I), reward x, by the exact flow; with 2 steps the picture is half of the first noise.

    16 evaluations make 8 such pictures, whose best is 1.4236 / 2 on average, with a standard
    deviation of .61 / 2 (order statistics of the normal), or one of 16 steps: 0 on average.
    """
    one = Setting.of("bon", **ODE, steps=16)
    found = _tune(settings=(one, BON, SVDD), seeds=30, save=tmp_path / "race.json")
    assert found.race.baseline == BON.name and found.split.by == "seeds"
    best = found.finalists[BON.name]
    assert best.mean == pytest.approx(1.4236 / 2, abs=4.0 * 0.305 / np.sqrt(30))
    assert best.outcomes.shape == (30,) and best.low < best.mean < best.high
    assert found.cost["nfe"] <= 16 * 30 * 5 and len(found.figure().axes) == 2
    again = _tune(settings=(one, BON, SVDD), seeds=30, save=tmp_path / "race.json")
    assert again.report() == found.report()


@pytest.mark.slow
def test_with_the_embedded_model_outcomes_are_those_of_single_runs():
    texts = ["one red circle", "two green squares"]
    flow, reward = fs.shapes.load_flow(), fs.shapes.load_reward("likelihood")
    cond = np.stack([fs.shapes.encode(text) for text in texts])
    key = jax.random.key(5)
    found = fs.tune(
        key, flow, reward, nfe=8, cond=cond, prompts=texts, seeds=2, settings=(BON, SVDD),
        diagnose=False, chunk_size=8,
    )  # fmt: skip
    outcomes = found.finalists[BON.name].outcomes
    for i, unit in enumerate(found.split.final):
        one = fs.run(
            key, flow, BON.search(8), reward, cond=cond[unit.prompt][None],
            prompt_ids=[unit.prompt + 2 * unit.seed],
        )  # fmt: skip
        assert outcomes[i] == pytest.approx(float(one.reward[0]), rel=1e-3, abs=1e-3)
    assert found.cost["nfe"] <= 2 * 2 * 4 * 8


def test_what_a_diagnosis_took_is_kept_and_counted(made, monkeypatch, tmp_path: Path):
    made(bon=0.0, svdd=1.0)
    rewards = np.zeros((1, 4, 3)) + np.asarray([[[0.0], [2.0], [0.0], [2.0]]])
    asked = []

    def diagnose(*args, prompt_ids, **options):
        asked.append(prompt_ids)
        d = _record([0.1, 0.2, 1.0], [1.5, 0.5], [0.5, 0.5], rewards)
        d.nfe, d.evaluations, d.verifier_calls = 1000, 1100, 500
        return d

    monkeypatch.setattr(carry_out, "diagnose", diagnose)
    found = _tune(save=tmp_path / "race.json", diagnose=True)
    # Blind: svdd does not race, and Best-of-N alone is measured, in race and comparison.
    assert list(found.left_out) == [SVDD.name] and found.setting == BON and not found.sure
    assert found.cost["nfe"] == 1000 + 16 * 8 and found.cost["evaluations"] == 1100 + 20 * 8
    assert "Nothing but Best-of-N raced" in found.report() and "blind" in found.report()
    again = _tune(save=tmp_path / "race.json", diagnose=True)
    assert asked == [[0]] and again.report() == found.report()
