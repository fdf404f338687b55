"""Budgets in seconds of two flows, by a clock on which only their evaluations take time."""

import math
from fractions import Fraction

import jax
import numpy as np
import pytest
from methods import ODE, cheap
from problems import GRID, batch, flow, reward, row

import flowsde as fs
from flowsde.runner import clock, rounds
from flowsde.runner.deadline import OutOfTime

KEY = jax.random.key(6)
OF_FLOW, OF_DRAFT = 4.0, 1.0
SEARCH = fs.search.halving(
    nfe=400, kernel=ODE, grid=GRID, draft_cost=Fraction(1, 4), draft_steps=2, factor=4
)


@pytest.fixture
def ticking(monkeypatch):
    """Seconds pass while models are evaluated, `slower` times as many after the first rounds."""
    time, slower, step = [100.0], [1.0, math.inf], rounds.model_step

    def model_step(*args):
        evals, computed = step(*args)
        forward, drafts = (float(np.sum(a)) for a in (computed.forward, computed.drafts))
        slower[1] -= 1
        time[0] += (OF_FLOW * forward + OF_DRAFT * drafts) * (slower[0] if slower[1] < 0 else 1.0)
        return evals, computed

    model_step.eval_shape = step.eval_shape
    monkeypatch.setattr(rounds, "model_step", model_step)
    monkeypatch.setattr(clock, "now", lambda: time[0])
    return slower


def search(seconds):
    _, cond = batch(1)
    *_, found = fs.iterate(
        KEY, flow(), SEARCH, reward, cond=row(cond, 0), draft=cheap(), chunk_size=1,
        seconds=seconds,
    )  # fmt: skip
    return found


@pytest.mark.slow
def test_seconds_buy_evaluations_of_both_flows(ticking):
    found = search(200.0)
    timing = found.timing
    assert timing.spent == OF_FLOW * found.evaluations + OF_DRAFT * found.draft_evaluations
    assert not timing.cut and found.nfe <= timing.nfe
    # Nine tenths of them, but for what one more draft with its share of who goes on would take.
    whole = OF_FLOW * SEARCH._cost(5) / 5 + OF_FLOW * len(GRID)
    assert 180.0 - whole < timing.spent <= 180.0
    # A round of each flow was computed twice to time it.
    assert (timing.evaluations, timing.verifier_calls) == (4, 4)
    assert timing.preparing == 2 * (OF_FLOW + OF_DRAFT)
    alone = fs.run(
        KEY, flow(), SEARCH, reward, cond=row(batch(1)[1], 0), draft=cheap(), chunk_size=1,
        nfe=timing.nfe,
    )  # fmt: skip
    for name in ("x0", "reward", "nfe", "evaluations", "draft_evaluations"):
        np.testing.assert_array_equal(getattr(found, name), getattr(alone, name), err_msg=name)


@pytest.mark.slow
def test_a_search_that_ends_among_its_drafts_has_no_answer(ticking):
    ticking[:] = [50.0, 4]
    with pytest.raises(OutOfTime, match="ended before the first reward") as error:
        search(200.0)
    result = error.value.result
    assert result.draft_evaluations > 0 and result.evaluations == 0 and result.timing.cut


@pytest.mark.slow
def test_a_list_of_prompts_repeats_what_its_seconds_bought():
    ids, cond = batch(3)
    options = {"cond": cond, "prompt_ids": ids, "draft": cheap(), "batch_size": 4}
    packing = fs.batch(KEY, flow(), SEARCH, reward, seconds=30.0, **options)
    found = dict(packing)
    timing = packing.timing
    assert found.keys() == {int(i) for i in ids}
    assert not timing.cut and timing.nfe == SEARCH.nfe
    # Two batches of 4 of the flow and two scored, and two of drafts of as many.
    assert (timing.evaluations, timing.verifier_calls) == (4 * 4 + 2 * 4, 2 * 4)
    expected = dict(fs.batch(KEY, flow(), SEARCH, reward, nfe=timing.nfe, **options))
    for prompt, result in found.items():
        np.testing.assert_array_equal(result.x0, expected[prompt].x0)
        assert result.draft_evaluations == expected[prompt].draft_evaluations
