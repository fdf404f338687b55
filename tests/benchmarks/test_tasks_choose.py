"""Racing and choosing, on made-up rows."""

import math

import numpy as np
import pytest
from _tasks_choose import choose, clearly_worse, contenders, gap, race


def row(setting, wins, method="smc", task="sides", nfe=100, seeds=2):
    return {
        "setting": setting, "method": method, "task": task, "model": "shapes", "nfe": nfe,
        "wins": wins, "seeds": seeds, "success": float(np.mean(wins)) / seeds,
    }  # fmt: skip


GOOD = [2, 2, 1, 2, 2, 1, 2, 2, 1, 2]
FAIR = [2, 1, 1, 2, 1, 1, 2, 2, 1, 1]
BAD = [0, 1, 0, 0, 1, 0, 0, 0, 0, 0]


def test_what_is_clearly_worse_loses():
    good, fair, bad = row("a", GOOD), row("b", FAIR), row("c", BAD)
    assert race([good, bad]) == {"a"}
    assert clearly_worse([bad], [good]) and not clearly_worse([good], [bad])
    few = [row("a", GOOD[:3]), row("b", FAIR[:3])]
    assert race(few) == {"a", "b"}
    # Another method's best is no reason to leave one's own race.
    assert race([good, fair, row("d", BAD, method="rbf")]) >= {"a", "d"}


def test_gaps_are_of_what_both_have_been_measured_on():
    one = [row("a", GOOD), row("a", BAD, task="many")]
    other = [row("b", BAD), row("b", GOOD, task="rare")]
    assert gap(one, other).value == pytest.approx((np.mean(GOOD) - np.mean(BAD)) / 2)
    assert gap(one[1:], other) is None
    # Budgets of a task share its captions: they are no more captions.
    twice = [row("a", GOOD), row("a", GOOD, nfe=300)], [row("b", BAD), row("b", BAD, nfe=300)]
    assert gap(*twice) == pytest.approx(gap(one[:1], other[:1]))


def test_contenders_are_the_best_and_one_of_each_method():
    rows = [row("a", GOOD), row("b", FAIR), row("c", BAD), row("d", BAD, "rbf")]
    rows.append(row("e", [0] * 10, "rbf"))
    # FAIR is .15 behind with a standard error of .077: not clearly.
    assert contenders(rows, most=5) == ["a", "b", "d"]
    assert contenders(rows, most=1) == ["a", "d"]


def test_a_setting_measured_on_less_is_not_called_best():
    rows = [row("a", FAIR), row("a", FAIR, task="many"), row("b", GOOD)]
    assert contenders(rows, most=1)[0] == "a"


def compared(setting, task, ratio, difference_high=0.2, nfe=300):
    return {
        "setting": setting, "task": task, "model": "shapes", "equal": "nfe", "verifier": None,
        "bon_nfe": nfe, "odds_ratio": ratio, "difference_high": difference_high,
    }  # fmt: skip


def test_the_largest_least_ratio_is_chosen():
    found = [
        *(compared("even", task, ratio) for task, ratio in (("sides", 3.0), ("rare", 2.5))),
        *(compared("steep", task, ratio) for task, ratio in (("sides", 9.0), ("rare", 2.0))),
    ]
    assert choose(found, ["sides", "rare"]) == ("even", 2.5)
    # Only hard tasks count for it.
    assert choose(found, ["sides"]) == ("steep", 9.0)


def test_what_is_worse_than_best_of_n_on_any_task_is_not():
    found = [
        *(compared("safe", task, 1.5) for task in ("sides", "counts")),
        compared("risky", "sides", 8.0),
        compared("risky", "counts", 0.4, difference_high=-0.01),
    ]
    assert choose(found, ["sides"]) == ("safe", 1.5)
    assert choose(found[2:], ["sides"]) is None


def test_what_lacks_a_task_or_wins_nothing_is_not_chosen():
    found = [compared("all", "sides", 1.2), compared("all", "rare", 1.1)]
    assert choose([*found, compared("part", "sides", 9.0)], []) == ("all", 1.1)
    assert choose([compared("all", "sides", 0.9)], []) is None
    assert choose([], []) is None
    assert choose([compared("all", "sides", None)], ["sides"]) == ("all", math.inf)
