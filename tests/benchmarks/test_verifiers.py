"""The benchmark of dear verifiers: prices, choices from a pool, and what is compared."""

import time

import _verifiers_page
import _verifiers_rewards
import _verifiers_rows
import numpy as np
import pytest
import verifiers
from _verifiers_rows import Gate, Pool

from flowsde.shapes.tasks import TASKS

GATE = Gate(share=0.5, level=0.05, threshold=-1.0, floor=-8.0)


def test_a_price_counts_every_call():
    assert _verifiers_rows.price(63.0, 0.0, 61.0, 0.2) == 63 + 5 * 61
    assert _verifiers_rows.price(100.0, 90.0, 30.0, 0.2) == pytest.approx(100 + 18 + 150)


def test_smc_gets_the_particles_that_a_price_pays_for():
    # Of 103 NFE 101 are rewarded; six particles cost 63 + 5 x 61 = 368, as many for each particle.
    row = {"charged": 103.0, "cheap_calls": 0.0, "dear_calls": 101.0}
    assert _verifiers_rows.affordable(row, 0.0, 368.0) == 63
    # A fifth of the calls leaves 1 + 1 for each evaluation: 184, of which 183 are whole particles.
    row = {"charged": 100.0, "cheap_calls": 0.0, "dear_calls": 20.0}
    assert _verifiers_rows.affordable(row, 0.0, 368.0) == 183
    # The cheap reward is no gift: 1 + 1 + 0.5 for each.
    row["cheap_calls"] = 100.0
    assert _verifiers_rows.affordable(row, 0.5, 368.0) == 143
    # One particle at least.
    assert _verifiers_rows.affordable(row, 0.5, 1.0) == 13


def pool():
    """One caption, one seed: of four samples the last is the best and the third succeeds."""
    cheap, dear = [-0.5, -3.0, -0.2, -2.0], [-6.0, -4.0, -5.0, -3.0]
    each = (np.array(values)[None, None] for values in (cheap, dear, [0, 0, 1, 0]))
    return Pool(*each)


def test_best_of_n_asks_about_all_or_about_those_above_the_threshold():
    for n, won in ((1, False), (2, False), (3, False), (4, False)):
        found, calls = _verifiers_rows.best_of(pool(), n, None)
        assert found.shape == (1, 1) and bool(found[0, 0]) is won and calls == n
    # The second and the last are not asked about: the third is the best of the others.
    found, calls = _verifiers_rows.best_of(pool(), 4, GATE)
    assert found[0, 0] and calls == 2.0
    # Below the floor nothing is told apart but by the cheap reward, and asked is above unasked.
    high = Gate(0.5, 0.5, -1.0, -1.0)
    found, calls = _verifiers_rows.best_of(pool(), 4, high)
    assert not found[0, 0] and calls == 2.0


def test_best_of_n_gets_the_samples_that_a_price_pays_for():
    many = Pool(*(np.zeros((2, 1, 1000)) for _ in range(3)))
    # 4 + 5 for a sample: 90 / 9, and 2 % more are too few for another.
    assert _verifiers_rows.bon_size(many, 4, 0.2, 90.0, None) == 10
    half = many.cheap.copy()
    half[0] = -2.0
    gated = Pool(half, many.dear, many.success)
    # 4 + 0.5 + 5 / 2 for a sample.
    assert _verifiers_rows.bon_size(gated, 4, 0.5, 70.0, GATE) == 10
    assert _verifiers_rows.bon_size(gated, 4, 0.5, 1e9, GATE) == 1000


def test_gates_are_quantiles_of_plain_samples():
    values = np.arange(101.0)[None, None]
    plan = verifiers.Plan(shares=(0.25, 0.5), levels=(0.1,))
    first, second = verifiers.gates_of(plan, Pool(values, values / 2.0, values > 0))
    assert (first.threshold, second.threshold) == (25.0, 50.0)
    # The dear reward of the samples above is from 12.5 on, and from 25 on.
    assert (first.floor, second.floor) == pytest.approx((16.25, 27.5))
    assert len({first.name, second.name}) == 2


@pytest.mark.slow
def test_the_dear_reward_is_the_tasks_own_and_takes_its_time():
    task = TASKS["sides"]
    texts = task.captions("dev", 3)
    cond = np.stack([task.encode(text) for text in texts])
    images = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32)
    wanted = np.asarray(task.load_reward()(images, cond))
    reward = _verifiers_rewards.Dear("sides")
    np.testing.assert_allclose(reward(images, cond), wanted, rtol=1e-4, atol=1e-4)
    began = time.perf_counter()
    _verifiers_rewards.Dear("sides", 0.1)(images, cond)
    assert time.perf_counter() - began >= 0.3


def row(way, wins, task="sides", method="smc"):
    return {
        "task": task, "method": method, "way": way, "split": "test", "steps": 10, "nfe": 63,
        "charged": 63.0, "dear_calls": 61.0, "success": float(np.mean(wins)) / 2,
        "success_low": 0.1, "success_high": 0.9, "seeds": 2, "wins": wins,
    }  # fmt: skip


FEW, MANY = [0, 1, 0, 1, 0, 0, 1, 0, 0, 1] * 4, [2, 2, 1, 2, 2, 1, 2, 0, 2, 2] * 4


def test_ways_are_compared_with_asking_directly():
    rows = [row("direct", FEW), row("cascade", MANY), row("direct", FEW, method="bon")]
    rows.append(row("cascade", MANY, task="above") | {"split": "dev"})
    _verifiers_page.compare(rows)
    direct, cascade, bon, dev = rows
    assert "difference" not in direct and "difference" not in bon and "difference" not in dev
    assert direct["bon_difference"] == 0.0 and "bon_difference" not in bon
    assert cascade["difference"] == pytest.approx(np.mean(MANY) / 2 - np.mean(FEW) / 2)
    assert cascade["odds_ratio_low"] > 1.0 < cascade["bon_odds_ratio_low"]
    found = {
        "rows": rows, "price": 368.0, "cost": 5.0, "cheap": 0.2,
        "ratio": dict.fromkeys(("smc remote", "smc cascade, remote", "bon remote"), 0.8),
        "clocked": {"cascade": 0.5, "counted": 0.4},
    }  # fmt: skip
    lines = _verifiers_page.table(found).splitlines()
    shown = [line.split(" | ")[:3] for line in lines[2:5]]
    assert [(cells[1], cells[2]) for cells in shown] == [
        ("SMC, 10 steps", "direct"), ("SMC, 10 steps", "cascade"), ("Best-of-N, 10 steps", "direct")
    ]  # fmt: skip
    assert lines[5] == "" and "368 evaluations" in lines[6]


def test_rows_are_kept_and_found(tmp_path, capsys):
    path = tmp_path / "rows.json"
    made = verifiers.Results.read(path)
    made.add(row("direct", FEW) | {"gate": None, "price": 368.0})
    again = verifiers.Results.read(path)
    assert again.row(task="sides", way="direct")["wins"] == FEW
    assert again.row(task="sides", way="cascade") is None
