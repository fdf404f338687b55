"""`flowsde.tune` with a budget in seconds: what they buy, by a made-up clock and by a real one.

On the made-up clock only rewards take time, a second each: what a setting costs is the
rewards that it asks for.
"""

import json
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import flowsde as fs
from flowsde.runner import clock
from flowsde.runner.deadline import TooFewSeconds
from flowsde.tuning import carry_out, ledger, prices
from flowsde.tuning.measure import Block, Subject
from flowsde.tuning.prices import MOST, Price, Timed, price
from flowsde.tuning.settings import Setting

FLOW = fs.analytic.gaussian(np.zeros(2), 1.0).flow()
ODE = {"interpolant": "linear", "kernel": "ode_euler", "grid": "uniform"}
BON = Setting.of("bon", **ODE, steps=4)
SVDD = Setting.of(
    "svdd", interpolant="vp", kernel="ddim", eta=1.0, data_variance=1.0, grid="uniform", steps=4,
    chains=2, finish="mean",
)  # fmt: skip
KEY = jax.random.key(0)


def first(images, cond):
    """The first number of each picture, a reward in JAX."""
    return images[:, 0]


class Clock:
    """Seconds that pass while rewards are computed."""

    def __init__(self):
        self.time, self.asked = 0.0, 0

    def __call__(self):
        return self.time

    def reward(self, images, cond):
        self.asked += len(images)
        self.time += float(len(images))
        return images[:, 0]


def _tune(reward=first, **options):
    given = {"settings": (BON, SVDD), "seconds": 20.0, "seeds": 4, "diagnose": False, **options}
    return fs.tune(KEY, FLOW, reward, **given)


@pytest.mark.slow
def test_settings_race_with_the_evaluations_that_the_seconds_buy(monkeypatch, tmp_path: Path):
    """Nine tenths of 20 seconds are 18 rewards: of Best-of-N 18 samples, of four evaluations each.

    The largest such budget is 75: that of 76 is another sample. Of SVDD it follows from running it.
    """
    own = Clock()
    monkeypatch.setattr(clock, "now", own)
    reward = fs.rewards.host(own.reward)
    found = _tune(reward, save=tmp_path / "race.json")
    assert found.prices[BON.name].buys == 75
    for one in found.prices.values():
        assert (one.reward, one.evaluation, one.round, one.least) == (1.0, 0.0, 0.0, 0.0)

    def alone(setting, prompt=0, **budget):
        search = setting.search(MOST)
        return fs.run(KEY, FLOW, search, reward, prompt_ids=[prompt], chunk_size=32, **budget)

    buys = found.prices[SVDD.name].buys
    few, more = (int(alone(SVDD, nfe=nfe).verifier_calls[0]) for nfe in (buys, buys + 1))
    assert few <= 18 < more
    # A search by itself that has as many seconds comes to the same budget.
    timing = alone(SVDD, seconds=20.0).timing
    assert timing.nfe == buys and not timing.cut
    # The searches of the race have these budgets, and are those of single runs.
    for setting, nfe in ((BON, 75), (SVDD, buys)):
        outcomes = found.finalists[setting.name].outcomes
        for i, unit in enumerate(found.split.final):
            one = alone(setting, unit.seed, nfe=nfe)
            assert outcomes[i] == pytest.approx(float(one.reward[0]), abs=1e-5)
    known = json.loads((tmp_path / "race.json").read_text())
    blocks = [b for half in ("race", "final") for b in known[half][BON.name]]
    assert sum(b["nfe"] for b in blocks) == 8 * 72
    # With what is known nothing is computed but the probe.
    before = own.asked
    again = _tune(reward, save=tmp_path / "race.json")
    assert own.asked == before + 1 and again.report() == found.report()


@pytest.mark.slow
def test_a_setting_that_asks_a_slow_reward_less_often_gets_more_evaluations():
    """SVDD asks for a reward of each evaluation, Best-of-N of every fourth."""

    def sleeping(images, cond):
        time.sleep(0.05 * len(images))
        return images[:, 0]

    reward = fs.rewards.host(sleeping)
    subject = Subject(KEY, FLOW, reward, None, None, 1, None, None, None)
    timed = Timed(60.0, lambda setting: setting.search(MOST), None)
    bon, svdd = (price(subject, timed, setting, 0) for setting in (BON, SVDD))
    # However fast the machine is, 54 seconds are 1080 rewards at most, and sleep is never shorter.
    for setting, one in ((BON, bon), (SVDD, svdd)):
        assert one.reward >= 0.05 and one.buys > 0
        calls = fs.run(KEY, FLOW, setting.search(MOST), first, nfe=one.buys).verifier_calls
        assert 0.05 * int(calls) <= 54.0
    assert bon.buys > svdd.buys


class Made:
    """Prices and measurements that are made up; `buys` by setting, 0 for too few seconds."""

    def __init__(self, buys):
        self.buys, self.priced, self.budgets, self.stopped = buys, [], {}, False

    def price(self, subject, timed, setting, prompt):
        self.priced.append(setting)
        buys = self.buys[setting]
        least, why = (0.0, "") if buys else (30.0 + len(setting.name), "so few")
        return Price(buys, 0.1, 0.2, 0.3, least, why, 10, 5, 2.0, prices.device())

    def measure(self, subject, search, units, final=False):
        if self.stopped:
            raise KeyboardInterrupt
        setting = next(s for s in (BON, SVDD) if s.search(self.buys[s] or 100) == search)
        self.budgets[setting] = search.nfe
        n = len(units)
        mean = 1.0 if setting == SVDD else 0.0
        noise = [unit.seed / 10.0 for unit in units]
        return Block(mean + np.asarray(noise), np.empty(0), 9 * n, 9 * n, n, 0.5)


@pytest.fixture
def made(monkeypatch):
    def use(bon=40, svdd=16):
        own = Made({BON: bon, SVDD: svdd})
        monkeypatch.setattr(carry_out, "price", own.price)
        monkeypatch.setattr(carry_out, "measure", own.measure)
        monkeypatch.setattr("flowsde.tuning.tune.probe", lambda subject: [0.0, 1.0, 0.5])
        return own

    return use


def test_the_preset_and_the_page_say_the_seconds_and_what_they_bought(made):
    own = made()
    found = _tune()
    assert own.priced == [BON, SVDD] and own.budgets == {BON: 40, SVDD: 16}
    assert found.sure and found.search == SVDD.search(16) and found.budget == {"seconds": 20.0}
    preset = found.preset()
    assert preset["seconds"] == 20.0 and preset["settings"]["nfe"] == 16
    page = found.report()
    assert "with 20 s (16 NFE here) a picture" in page and "## What the seconds bought" in page
    assert f"| winner | 16 | 0.1 | 0.2 | 0.3 | `{SVDD.name}` |" in page
    assert f"on {prices.device()}, and the seconds" in page
    # Four searches of two settings in either half, and two settings that were timed.
    assert found.cost == {"nfe": 144, "evaluations": 164, "verifier_calls": 26, "seconds": 6.0}


def test_settings_that_the_seconds_are_too_few_for_are_left_out_or_refused(made):
    made(svdd=0)
    found = _tune()
    assert found.left_out == {SVDD.name: "the seconds are too few"} and found.setting == BON
    own = made(bon=0)
    with pytest.raises(TooFewSeconds, match="seconds must be at least .*, got 20: so few"):
        _tune(diagnose=True)
    # Before anything was diagnosed, and before others were timed.
    assert own.priced == [BON]


def test_prices_are_taken_once_and_again_on_another_device_unless_it_has_raced(
    made, monkeypatch, tmp_path: Path
):
    path = tmp_path / "race.json"

    def go_on(**options):
        try:
            return _tune(save=path, **options)
        except KeyboardInterrupt:
            return None

    begun = made()
    begun.stopped = True
    assert go_on() is None and begun.priced == [BON, SVDD]
    # Nothing has raced: what another device says replaces it.
    for module in (ledger, prices):
        monkeypatch.setattr(module, "device", lambda: "another")
    second = made(svdd=24)
    assert go_on().search == SVDD.search(24) and second.priced == [BON, SVDD]
    known = json.loads(path.read_text())
    assert known["priced"][BON.name]["evaluations"] == 20 and len(known["devices"]) == 2
    # It has raced: all settings keep the prices of one device, and the page says which.
    known["final"] = {}
    path.write_text(json.dumps(known))
    for module in (ledger, prices):
        monkeypatch.setattr(module, "device", lambda: "a third")
    third = made(svdd=24)
    page = go_on().report()
    assert third.priced == [] and "before the race, on another, and" in page
    assert "was run on " in page and "a third, where the seconds buy other numbers" in page
    with pytest.raises(ValueError, match=r"used budget {'seconds': 20.0}, not {'seconds': 5.0}"):
        _tune(save=path, seconds=5.0)


def test_wrong_budgets_are_named(made):
    made()
    with pytest.raises(ValueError, match="nfe and seconds are both given, 40 and 20.0"):
        _tune(nfe=40)
    with pytest.raises(ValueError, match="seconds must be a finite number above 0, got -1"):
        _tune(seconds=-1)
    with pytest.raises(TypeError, match="a budget is missing, expected nfe or seconds"):
        _tune(seconds=None)
