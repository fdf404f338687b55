"""Branching at some steps alone: which they are, where the budget goes, and what is found."""

import itertools

import jax
import numpy as np
import pytest
import reference
from problems import GRID, SDE, batch, flow, reward, row, tools

import flowsde as fs
from flowsde.search.branching import as_steps

KEY = jax.random.key(4)
STEPS = len(GRID) - 1
LINE = fs.grids.uniform(10)


def test_steps_by_number_position_and_time():
    assert as_steps(None, LINE) is None
    assert as_steps(3, LINE) == (3, 6, 9)
    assert as_steps(9, LINE) == tuple(range(1, 10))
    assert as_steps(1, LINE) == (9,)
    assert as_steps((7, 2), LINE) == (2, 7)
    assert as_steps((0.78, 0.31), LINE) == (2, 7)
    assert as_steps(np.asarray([0.5]), LINE) == (5,)


def test_the_start_too_where_it_can_be_one():
    for given in (None, 1, 3, 9, (7, 2), (0.78, 0.31)):
        assert as_steps(given, LINE, start=True) == as_steps(given, LINE)
    assert as_steps(10, LINE, start=True) == tuple(range(10))
    assert as_steps((3, 0), LINE, start=True) == (0, 3)
    assert as_steps((1.0, 0.31), LINE, start=True) == (0, 7)
    assert as_steps((0.99,), LINE, start=True) == (0,) and as_steps((0.99,), LINE) == (1,)
    assert as_steps(2, fs.grids.uniform(2), start=True) == (0, 1)
    # Of a given picture the start is below 1.
    half = fs.grids.tail(fs.grids.uniform(4), 0.5)
    assert as_steps((0.5, 0.25), half, start=True) == (0, 1) and as_steps((0.5,), half) == (1,)
    for one in (1, (0,), (1.0,), (0.3,)):
        assert as_steps(one, fs.grids.uniform(1), start=True) == (0,)
    for wrong in (True, -1, 10, 1.5, 0.0):
        said = "branch_at must hold positions in the grid from 0 to 9, or times above 0 and up to 1"
        with pytest.raises(ValueError, match=said):
            as_steps((wrong,), LINE, start=True)
    with pytest.raises(ValueError, match="branch_at must be an integer of at most 10, got 11"):
        as_steps(11, LINE, start=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "branch_at must have at least one of positions in the grid from 1 to 9"),
        ((0,), "branch_at must hold positions .* got 0"),
        ((10,), "branch_at must hold positions .* got 10"),
        ((1.0,), "branch_at must hold positions .* got 1.0"),
        ((0.5, 5), "branch_at must hold different steps"),
        (10, "branch_at must be an integer of at most 9"),
        ("some", "branch_at must be a number of steps, or positions .* got 'some'"),
        (0.5, "branch_at must be a number of steps, or positions .* got 0.5"),
    ],
)
def test_what_is_wrong_is_said(given, message):
    with pytest.raises((ValueError, TypeError), match=message):
        as_steps(given, LINE)


def quotas(search, nfe):
    return np.asarray(search.quotas(np.int32(nfe)))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [(1,), (2, 3), (4,), (1, 2, 3, 4)])
def test_the_budget_goes_to_the_steps_chosen(steps):
    options = {"kernel": SDE, "grid": GRID, "chains": 2, "finish": "mean", "branch_at": steps}
    for nfe in (20, 31, 58):
        others = [i for i in range(STEPS) if i not in steps]
        for make, seeds in ((fs.search.svdd, 1), (fs.search.rbf, 1)):
            search = make(nfe=nfe, **options)
            own = quotas(search, nfe)
            assert own.sum() == nfe
            assert np.all(own[:, others] == seeds)
            assert np.ptp(own[:, steps]) <= 2
        blocks = fs.search.code(nfe=nfe, block=2, **options)
        assert nfe - quotas(blocks, nfe).sum() < 2 * 2
        for start in steps:
            length = min(2, min([s for s in (*steps, STEPS) if s > start]) - start)
            assert np.ptp(quotas(blocks, nfe)[:, start : start + length], axis=1).max() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block", "steps"),
    [(1, (2, 3)), (2, (1, 4))],
)
def test_equals_children_drawn_one_by_one(block, steps):
    search = fs.search.code(
        nfe=41, kernel=SDE, grid=GRID, chains=2, block=block, branch_at=steps, finish="mean"
    )
    ids, cond = batch(8)
    result = fs.run(KEY, flow(), search, reward, cond=cond, prompt_ids=ids, invalid="warn")
    for i in range(8):
        finished, charged = reference.code(search, KEY, int(ids[i]), row(cond, i), *tools())
        best = max(finished, key=lambda p: p.reward)
        assert result.nfe[i] == charged
        size = cond["size"][i]
        np.testing.assert_allclose(result.reward[i] / size, best.reward / size, atol=2e-5)
        np.testing.assert_allclose(result.x[i], best.x, rtol=1e-4, atol=1e-4)
    # Rewards are of the ends of blocks, and of the last step.
    ends = {min(s + block - 1, STEPS - 1) for s in steps}
    per_time = quotas(search, 41).sum(0)
    expected = sum(per_time[i] for i in ends | {STEPS - 1})
    np.testing.assert_array_equal(result.verifier_calls, expected)


@pytest.mark.slow
def test_smc_weighs_at_the_steps_chosen():
    search = fs.search.smc(
        nfe=60, kernel=SDE, grid=GRID, temperature=0.1, threshold=1.0, branch_at=(2,), finish="mean"
    )
    ids, cond = batch(8)
    result = fs.run(KEY, flow(), search, reward, cond=cond, prompt_ids=ids, invalid="warn")
    n = 60 // STEPS
    np.testing.assert_array_equal(result.verifier_calls, 2 * n)
    moved = np.asarray(result.info.ancestors) != np.arange(n)
    assert moved[2].any() and not moved[[0, 1, 3, 4]].any()
    ess = np.asarray(result.info.ess)
    np.testing.assert_allclose(ess[[0, 1, 3]], n, rtol=1e-6)
    with pytest.raises(ValueError, match="branch_at has no effect with potential 'final'"):
        fs.search.smc(nfe=60, kernel=SDE, grid=GRID, potential="final", branch_at=2)


@pytest.mark.slow
def test_a_gradient_where_none_compete_leaves_the_bar_of_rbf():
    """Rewards come with gradients at every step: r* is of the steps that branch all the same."""
    kernel = fs.kernels.reward_gradient(SDE, temperature=2.0)
    search = fs.search.rbf(
        nfe=31, kernel=kernel, grid=GRID, seeds=2, branch_at=(2, 4), finish="mean"
    )
    ids, cond = batch(6)
    results = list(fs.iterate(KEY, flow(), search, reward, cond=cond, prompt_ids=ids))
    competes, quiet, given = np.isin(np.arange(5), (0, 2, 4)), 0, 0
    for before, after in itertools.pairwise(results):
        old, new = before.state.chains, after.state.chains
        ended = np.asarray(new.stage > old.stage)
        alone = ended & ~competes[np.minimum(old.stage, 4)]
        quiet += alone.sum()
        np.testing.assert_array_equal(new.incumbent_reward[alone], old.incumbent_reward[alone])
        given += np.any(np.asarray(new.parent.gradient)[alone] != 0.0, -1).sum()
    # Of two chains of each prompt, at steps 1 and 3.
    assert quiet == 6 * 2 * 2 and given > 0
