"""Halves, intervals and the race, with outcomes that are made up: what must win, what cannot."""

import numpy as np
import pytest

from flowsde.tuning.race import FINALISTS, race, rungs
from flowsde.tuning.split import Unit, gap, split

BASE = "bon"


def _measured(means, noise=0.0, common=0.0):
    """Outcomes of settings of these means, by unit, and the units that were asked for."""
    asked = {name: [] for name in means}

    def measure(name, units):
        asked[name] += units
        rng = np.random.default_rng([7, list(means).index(name)])
        table = rng.normal(size=(100, 200))
        shared = np.random.default_rng(3).normal(size=100)
        own = [means[name] + noise * table[u] + common * shared[u.prompt] for u in units]
        return np.asarray(own)

    return measure, asked


def test_halves_share_no_search_and_of_many_prompts_no_prompt():
    many = split(9, 3)
    assert many.by == "prompts" and many.seeds == 3
    assert {u.prompt for u in many.race} == {0, 2, 4, 6, 8}
    assert {u.prompt for u in many.final} == {1, 3, 5, 7}
    few = split(3, 4)
    assert few.by == "seeds" and len(few.race) == len(few.final) == 12
    assert {u.seed for u in few.race} == {0, 1, 2, 3} and not set(few.race) & set(few.final)
    # Any first units have as many prompts as there can be.
    assert [u.prompt for u in few.race[:6]] == [0, 1, 2, 0, 1, 2]
    assert len(split(8).race) == 24 and len(split(1).race) == 24
    with pytest.raises(
        ValueError, match="seeds must be at least 2 of fewer than 8 prompts, .* got 1"
    ):
        split(3, 1)


def test_rungs_halve_settings_and_double_units():
    assert rungs(24, 48) == [6, 12, 24, 48]
    assert rungs(3, 24) == [24] and rungs(2, 24) == [24]
    assert rungs(32, 5) == [5] and rungs(12, 25) == [6, 12, 24]


def test_a_setting_that_is_better_by_a_known_gap_wins_and_the_next_one_is_second():
    means = {BASE: 0.0, "bon 2": 0.3, **{f"other {i}": 0.1 * i for i in range(10)}}
    measure, asked = _measured(means, noise=0.01, common=5.0)
    halves = split(20, 2)
    found = race(list(means), {BASE, "bon 2"}, halves, measure)
    assert (found.winner, found.runner_up, found.baseline) == ("other 9", "other 8", "bon 2")
    assert set(found.finalists) == {"other 9", "other 8", "bon 2"}
    # Nothing is chosen on what is held out, and finalists have seen all of the race.
    every = [unit for units in asked.values() for unit in units]
    assert not set(every) & set(halves.final)
    for name in found.finalists:
        assert asked[name] == list(halves.race)
    # The common part of a prompt, 5, is no part of a paired difference.
    (last,) = [one for one in found.rungs[-1].table if one.name == "other 8"]
    assert last.behind.value == pytest.approx(-0.1, abs=0.01)
    assert -0.12 < last.behind.low < last.behind.high < -0.08


def test_what_one_would_take_without_a_race_stays_to_be_compared():
    means = {BASE: 0.0, **{f"other {i}": 0.1 * i for i in range(11)}}
    measure, asked = _measured(means, noise=0.01)
    halves = split(48, 1)
    found = race(list(means), {BASE}, halves, measure, {"other 1", "other 2"})
    assert (found.winner, found.runner_up, found.standard) == ("other 10", "other 2", "other 2")
    assert found.finalists == [BASE, "other 10", "other 2"]
    assert asked["other 2"] == asked["other 1"] == list(halves.race) and len(asked["other 3"]) == 6
    # One that wins is compared with the second best.
    found = race(list(means), {BASE}, halves, measure, {"other 10", "other 2"})
    assert (found.winner, found.runner_up, found.standard) == ("other 10", "other 9", "other 10")
    assert race(list(means), {BASE}, halves, measure).standard is None


def test_which_standard_is_the_best_is_not_for_the_first_units_to_say():
    means = {BASE: 0.0, **{f"other {i}": 0.1 * i for i in range(11)}}
    halves = split(48, 1)

    def measure(name, units):
        late = {unit: 0.0 for unit in halves.race[:6]} if name == "other 2" else {}
        return np.array([late.get(unit, means[name]) for unit in units])

    found = race(list(means), {BASE}, halves, measure, {"other 1", "other 2"})
    # On the first 6 of 24 units it has 0 against 0.1, on all of them 0.15 against 0.1.
    assert found.standard == "other 2"


def test_losers_are_measured_no_further():
    means = {BASE: 0.0, **{f"other {i}": float(i) for i in range(11)}}
    measure, asked = _measured(means, noise=0.01)
    race(list(means), {BASE}, split(48, 1), measure)
    assert len(asked["other 1"]) == 6 and len(asked["other 10"]) == len(asked[BASE]) == 24
    assert sum(len(units) for units in asked.values()) == 12 * 6 + 3 * 18


def test_equal_settings_are_not_surely_left_out_but_halved():
    means = dict.fromkeys([BASE, *(f"other {i}" for i in range(11))], 1.0)
    measure, _ = _measured(means, common=2.0)
    found = race(list(means), {BASE}, split(24, 2), measure)
    reasons = {one.why for rung in found.rungs for one in rung.table}
    assert reasons == {"", "in the lower half"}
    assert [len(rung.table) for rung in found.rungs] == [12, 6, FINALISTS]
    assert all(one.behind == (0.0, 0.0, 0.0) for rung in found.rungs for one in rung.table)


def test_of_settings_with_equal_means_a_second_measure_decides():
    means = dict.fromkeys([BASE, "a", "b", "c"], 0.0)
    measure, _ = _measured(means)
    second = {BASE: 0.0, "a": -1.0, "b": 2.0, "c": 1.0}
    found = race(list(means), {BASE}, split(24, 2), measure, shares=True, second=second.get)
    assert (found.winner, found.runner_up, found.baseline) == ("b", "c", BASE)


def test_of_equal_settings_few_are_called_surely_different():
    """The rate of a 95 % interval's mistakes, of 400 pairs."""
    rng, units = np.random.default_rng(0), split(24, 1).race
    wrong = 0
    for _ in range(400):
        a, b = rng.normal(size=(2, 12))
        found = gap(a, b, units, "prompts")
        wrong += not found.low <= 0.0 <= found.high
    assert 5 <= wrong <= 36  # 20 expected, binomial at 4 sd


def test_seeds_of_a_prompt_are_no_new_prompts():
    """By prompts an interval is that of the prompts' means; by seeds it is within prompts."""
    units = tuple(Unit(p, s) for s in range(2) for p in range(8))
    effect = np.asarray([u.prompt - 3.5 for u in units])
    jitter = np.asarray([0.1 * (-1) ** u.seed for u in units])
    a, b = effect + jitter, np.zeros(16)
    among = gap(a, b, units, "prompts")
    within = gap(a, b, units, "seeds")
    # Student's: of the means -3.5 … 3.5 of 8 prompts; of 8 pairs ± 0.1 with 8 degrees of freedom.
    assert among.high == pytest.approx(2.3646 * np.sqrt(6.0 / 8), rel=1e-3)
    assert within.high == pytest.approx(2.3060 * np.sqrt(0.02 / 2 / 8), rel=1e-3)
    assert among.value == within.value == pytest.approx(0.0, abs=1e-12)


def test_shares_never_have_an_interval_of_no_width():
    units = split(24, 1).race
    ones, zeros = np.ones(12), np.zeros(12)
    for by in ("prompts", "seeds"):
        assert gap(ones, ones, units, by, shares=True).low < 0.0
        found = gap(ones, zeros, units, by, shares=True)
        assert found.value == 1.0 and 0.5 < found.low < 1.0


def test_a_search_without_a_finite_reward_loses_and_none_with_one_is_an_error():
    good, bad = np.zeros(3), np.asarray([5.0, -np.inf, 5.0])
    units = split(8, 3).race[:3]
    assert gap(bad, good, units, "prompts").high == -np.inf
    assert gap(good, bad, units, "prompts").low == np.inf
    both = gap(bad, bad, units, "prompts")
    assert both.value == 0.0
    means = {BASE: 0.0, "other": 9.0}

    def measure(name, units):
        return np.full(len(units), -np.inf if name == "other" else 0.0)

    assert race(list(means), {BASE}, split(8, 3), measure).rungs[-1].table[0].name == BASE
    with pytest.raises(ValueError, match="no setting has a finite reward"):
        race(list(means), {BASE}, split(8, 3), lambda name, units: np.full(len(units), -np.inf))
