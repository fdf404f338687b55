"""Budgets in seconds of packed prompts, by a clock on which only rewards take time."""

import jax
import numpy as np
import pytest
from problems import GRID, SDE, flow, host_reward, problems

import flowsde as fs
from flowsde.runner import clock

KEY = jax.random.key(8)
# n evaluations ask for n - 1 rewards: the first of two to finish has none.
SEARCH = fs.search.rbf(nfe=200, kernel=SDE, grid=GRID, chains=1, width=1, finish_steps=2)
COND, IDS = problems(3, kinds=(0,)), [4, 9, 2]


class Clock:
    """A second a reward, `slower` of them from the first 20 on."""

    def __init__(self, slower=1.0):
        self.time, self.rewards, self.slower = 0.0, 0, slower

    def __call__(self):
        return self.time

    def reward(self, images, cond):
        for _ in images:
            self.time += 1.0 if self.rewards < 20 else self.slower
            self.rewards += 1
        return host_reward(images, cond)


def batch(monkeypatch, own, **options):
    monkeypatch.setattr(clock, "now", own)
    judge = fs.rewards.host(own.reward)
    return fs.batch(KEY, flow(), SEARCH, judge, cond=COND, prompt_ids=IDS, batch_size=4, **options)


@pytest.mark.slow
def test_prompts_have_equal_evaluations_of_the_seconds(monkeypatch):
    """Nine tenths of 100 seconds are 30 rewards each: 31 evaluations."""
    own = Clock()
    packing = batch(monkeypatch, own, seconds=100.0)
    found = dict(packing)
    timing = packing.timing
    assert (timing.nfe, timing.spent, timing.cut) == (31, 90.0, False)
    assert own.rewards == packing.totals.verifier_calls + timing.verifier_calls
    expected = dict(batch(monkeypatch, Clock(), nfe=31))
    assert set(found) == set(IDS)
    for prompt, result in found.items():
        assert result.nfe == 31 and result.timing.nfe == 31
        np.testing.assert_array_equal(result.x0, expected[prompt].x0)


@pytest.mark.slow
def test_late_prompts_finish_and_the_others_are_named(monkeypatch):
    """With 5 seconds a reward there is time for a few more than half of one prompt's."""
    packing = batch(monkeypatch, Clock(slower=5.0), seconds=100.0, slots=1)
    with pytest.warns(UserWarning, match=r"ended before 2 of 3 prompts had a reward"):
        found = dict(packing)
    ((prompt, result),) = found.items()
    assert prompt == IDS[0] and result.timing.cut
    assert 0 < result.nfe < packing.timing.nfe
    assert result.reward > -np.inf
    # No batch began after the deadline: of one candidate, and the one before it.
    assert packing.timing.spent <= 100.0 + 2 * 5.0


@pytest.mark.slow_but_one
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"seconds": -1.0}, r"seconds must be a finite number above 0, got -1.0"),
        ({"seconds": 5.0, "nfe": 40}, r"nfe and seconds are both given"),
        ({"seconds": 5.0, "total_nfe": 400}, r"total_nfe and seconds are both given"),
    ],
)
def test_wrong_seconds_of_a_batch(options, error, monkeypatch):
    with pytest.raises(ValueError, match=error):
        batch(monkeypatch, Clock(), **options)


@pytest.mark.slow
def test_too_few_seconds_of_a_batch(monkeypatch):
    with pytest.raises(ValueError, match=r"seconds must be at least .* for this search, got 3"):
        next(batch(monkeypatch, Clock(), seconds=3.0))
