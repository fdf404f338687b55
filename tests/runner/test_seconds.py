"""Budgets in seconds, by a clock of the tests: only rewards take time on it, a second each.

What a search then costs is the rewards that it asks for, which follow from its definition.
"""

import jax
import numpy as np
import pytest
from problems import GRID, SDE, flow, host_reward, problems, row

import flowsde as fs
from flowsde.runner import clock
from flowsde.runner.deadline import OutOfTime
from flowsde.runner.schedule import least_nfe

KEY = jax.random.key(8)
COND = problems(1, kinds=(0,))
# The grid has five steps: 2 evaluations of finishing, and a reward of each other evaluation and of
# the last.
SEARCH = fs.search.keep(
    fs.search.rbf(nfe=200, kernel=SDE, grid=GRID, chains=1, width=1, finish_steps=2), 2
)
BON = fs.search.keep(
    fs.search.bon(nfe=1000, kernel=fs.kernels.ode_euler(SDE.interpolant), grid=GRID, width=1), 1
)


class Clock:
    """Seconds that pass while rewards are computed; `slower` says how many from some call on."""

    def __init__(self, slower=None):
        self.time, self.calls, self.slower = 100.0, 0, slower

    def __call__(self):
        return self.time

    def reward(self, images, cond):
        self.calls += 1
        each = 1.0 if self.slower is None or self.calls <= self.slower[0] else self.slower[1]
        self.time += each * len(images)
        return host_reward(images, cond)


@pytest.fixture
def ticking(monkeypatch):
    """A function that starts a clock, and gives it with ``iterate`` of its reward."""

    def start(slower=None):
        own = Clock(slower)
        monkeypatch.setattr(clock, "now", own)
        judge = fs.rewards.host(own.reward)

        def iterate(search=SEARCH, cond=COND, **options):
            if options.get("prompt_ids") is None:
                cond = row(cond, 0)
            return fs.iterate(KEY, flow(), search, judge, cond=cond, chunk_size=4, **options)

        return own, iterate

    return start


def last(results):
    *_, result = results
    return result


def same(found, expected):
    for name in ("x0", "reward", "nfe", "verifier_calls"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    np.testing.assert_array_equal(found.kept.x0, expected.kept.x0)


@pytest.mark.slow
def test_seconds_become_evaluations_which_repeat_the_search(ticking):
    """A reward each but for the first step of finishing: n evaluations take n - 1 seconds.

    Nine tenths of 40 seconds are 36: 37 evaluations.
    """
    own, iterate = ticking()
    found = last(iterate(seconds=40.0))
    timing = found.timing
    assert (timing.nfe, timing.spent, timing.cut) == (37, 36.0, False)
    assert found.verifier_calls == 36 and found.nfe == 37
    # A round was computed twice to time it: of one candidate, the width of the search.
    assert (timing.verifier_calls, timing.preparing) == (2, 2.0)
    assert own.calls == found.verifier_calls + timing.verifier_calls
    same(found, last(iterate(nfe=timing.nfe)))
    assert len(found.top(2)) == 2
    # The search's own budget is the most.
    assert last(iterate(seconds=1e6)).timing.nfe == 200


@pytest.mark.slow
def test_what_is_saved_goes_on_with_what_is_left(ticking, tmp_path):
    _, iterate = ticking()
    expected = last(iterate(seconds=40.0))
    for result in iterate(seconds=40.0):
        if result.timing.spent >= 15.0:
            break
    fs.save_search(tmp_path, SEARCH, result)
    saved = fs.restore_search(tmp_path, SEARCH)
    assert saved.timing == result.timing
    resumed = list(iterate(seconds=40.0, resume=saved))
    assert [one.timing.spent for one in resumed] == [*range(16, 36), 35, 36]
    same(resumed[-1], expected)
    assert resumed[-1].timing.nfe == expected.timing.nfe
    # One that has spent them gives what it found, and computes nothing.
    own, iterate = ticking()
    (again,) = iterate(seconds=10.0, resume=saved)
    assert own.calls == 0 and again.timing.spent == 15.0
    assert again.reward == result.reward
    # It is a result like others: with evaluations it goes on too.
    same(last(iterate(nfe=expected.timing.nfe, resume=saved)), expected)


@pytest.mark.slow
def test_rounds_slower_than_measured_leave_time_to_finish(ticking):
    """Of the search's rewards 18 take a second, the others 3; finishing was measured to take 1."""
    _, iterate = ticking(slower=(20, 3.0))
    found = last(iterate(seconds=100.0))
    timing = found.timing
    assert timing.nfe == 91 and timing.cut
    assert found.info.finishing.sum() == 2 and found.nfe < 91
    # After 18 of a second and 27 of three it is 99 seconds, and finishing begins.
    assert found.verifier_calls == 18 + 27 + 1
    assert timing.spent == 18 + 27 * 3 + 3
    # Never later than by a round.
    assert timing.spent <= 100.0 + 3.0


@pytest.mark.slow
def test_the_deadline_ends_a_search_with_the_best_so_far(ticking):
    """Best-of-N scores a sample in its last step: 5 evaluations and a second."""
    _, iterate = ticking()
    whole = last(iterate(BON, seconds=20.0))
    assert (whole.timing.nfe // 5, whole.verifier_calls, whole.timing.cut) == (18, 18, False)
    _, iterate = ticking(slower=(2, 7.0))
    cut = last(iterate(BON, seconds=20.0))
    assert (cut.timing.nfe // 5, cut.nfe, cut.timing.cut) == (18, 3 * 5, True)
    assert cut.timing.spent == 21.0 and cut.reward == whole.info.best_reward[14]


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_prompts_share_the_seconds(devices, ticking):
    """Of three together a round takes three rewards, on a mesh too."""
    _, iterate = ticking()
    options = {"cond": problems(3, kinds=(0,)), "prompt_ids": [4, 9, 2]}
    if devices > 1:
        options["mesh"] = jax.make_mesh((devices,), ("prompt",), devices=jax.devices()[:devices])
    found = last(iterate(seconds=40.0, **options))
    # Nine tenths of 40 seconds are 12 rounds with rewards.
    assert found.timing.nfe == 13 and found.timing.spent == 36.0
    same(found, last(iterate(nfe=13, **options)))


@pytest.mark.slow
def test_too_few_seconds_name_the_least(ticking):
    _, iterate = ticking()
    least = least_nfe(SEARCH)
    with pytest.raises(ValueError, match=r"seconds must be at least .* for this search") as error:
        next(iterate(seconds=0.5))
    named = float(str(error.value).split("at least ")[1].split()[0])
    assert 0.9 * named == pytest.approx(least - 1, rel=0.01)
    assert last(iterate(seconds=named)).timing.nfe == least


@pytest.mark.slow
def test_out_of_time_keeps_what_can_be_resumed(ticking, monkeypatch):
    """The model, too slow by far, uses the seconds up before the first reward."""
    own, iterate = ticking()
    rounds = iterate(BON, seconds=20.0)
    first = next(rounds)
    assert first.timing.spent == 0.0
    stalled = iter([own.time, own.time + 30.0])
    monkeypatch.setattr(clock, "now", lambda: next(stalled, own.time + 30.0))
    with pytest.raises(OutOfTime, match=r"seconds = 20 ended before the first reward") as error:
        next(rounds)
    result = error.value.result
    assert len(result.info.time) == 2 and result.timing.cut
    _, iterate = ticking()
    assert last(iterate(BON, seconds=60.0, resume=result)).verifier_calls > 0


@pytest.mark.slow
def test_what_was_seen_ahead_is_no_answer_and_the_reward_not_to_blame(ticking):
    ahead = fs.search.svdd(nfe=200, kernel=SDE, grid=GRID, value="ode", value_steps=1)
    _, iterate = ticking(slower=(6, 50.0))
    cond = problems(2, kinds=(0,))
    with pytest.raises(OutOfTime, match=r"seconds = 100 ended before the first reward") as error:
        last(iterate(ahead, cond=cond, prompt_ids=[4, 9], seconds=100.0))
    result = error.value.result
    assert np.all(result.verifier_calls > 0) and np.all(np.isneginf(result.reward))
    assert np.any(result.info.reward > -np.inf)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"seconds": 0.0}, r"seconds must be a finite number above 0, got 0.0"),
        ({"seconds": float("nan")}, r"seconds must be a finite number above 0, got nan"),
        ({"seconds": float("inf")}, r"seconds must be a finite number above 0, got inf"),
        ({"seconds": -3}, r"seconds must be a finite number above 0, got -3"),
        ({"seconds": "60"}, r"seconds must be a number, got '60'"),
        ({"seconds": True}, r"seconds must be a number, got True"),
        ({"seconds": 60, "nfe": 40}, r"nfe and seconds are both given, 40 and 60, expected one"),
    ],
)
def test_wrong_seconds(options, error, ticking):
    _, iterate = ticking()
    with pytest.raises((ValueError, TypeError), match=error):
        iterate(**options)
