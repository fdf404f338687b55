"""The benchmark of gradients: what it compares with, and that settings are chosen elsewhere."""

import gradients
import numpy as np
import pytest
from _gradients_problems import DIMENSION, Law, Problem

import flowsde as fs


class MadeUp(Problem):
    """The larger the scale, the better, but for the draws that are reported."""

    name, score, sign = "layout", "reward", 1.0
    short, temperatures, shares = (4, 12), (2.0, 0.5, 1.0), (0.1,)
    paired = True

    def __init__(self):
        self.asked = []

    def curvature(self, temperature):
        return temperature

    def measure(self, way, first, n):
        self.asked.append((way.name, way.setting, first, n))
        return {"reward": np.arange(n) + (way.scale if first == 0 else -way.scale)}


def test_settings_are_chosen_on_other_draws():
    problem = MadeUp()
    kernel = fs.kernels.ddim(gradients.VP, 1.0, 0.25)
    every = list(gradients.ways(kernel, 12, 24, problem))
    rows = list(gradients.rows_of(problem, every, 3, 5))
    reported = [row for row in rows if row["set"] == "report"]
    assert {first for *_, first, n in problem.asked if n == 3} == {0}
    assert {first for *_, first, n in problem.asked if n == 5} == {3}
    chosen = {row["way"]: row["setting"] for row in reported}
    assert chosen["dps"] == chosen["damped"] == "temperature 0.5"
    assert chosen["bon, 3x"] == chosen["bon"]
    budgets = {row["way"]: row["nfe"] for row in reported}
    assert budgets.pop("bon, 3x") == 72 and set(budgets.values()) == {24}
    gains = {row["way"]: row["gain"] for row in reported if "gain" in row}
    # Scales of 2 and of 1 are taken off.
    assert gains == {"dps": -1.0, "damped": -1.0, "noise_tilt": 0.0, "bon, 3x": 0.0}


@pytest.mark.slow
def test_the_law_is_that_of_its_draws():
    law = Law(particles=4000)
    x = law.exact(0).astype(np.float64)
    rewards = -np.square(x - law.at).sum(1)
    assert abs(rewards.mean() - law.reward) < 4.0 * rewards.std() / len(x) ** 0.5
    error = x.std(0) / len(x) ** 0.5
    assert np.all(np.abs(x.mean(0) - law.mean) < 4.5 * error)
    assert law.distance(x, 0) == 0.0
    # Each projection moves by that of the shift.
    shift = 0.5 * np.eye(DIMENSION)[0]
    moved = 0.5 * np.sqrt(np.mean(np.square(law.directions[0])))
    assert law.distance(x + shift, 0) == pytest.approx(moved, rel=1e-5)
