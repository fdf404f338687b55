"""Rollover Budget Forcing against Algorithm 2 in plain Python, and its invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from problems import (
    GRID,
    ROUNDED,
    SDE,
    SMOOTH,
    accepted_path,
    batch,
    flow,
    host_reward,
    problems,
    row,
    tools,
)
from problems import (
    by_sign as with_signs,
)
from problems import reward as REWARD

import flowsde as fs

KEY = jax.random.key(4)
EXACT = 2e-5  # of the reward's scale: float32 in programs of different shapes


def search(nfe=61, chains=2, seeds=2, width=1, last="exhaust"):
    return fs.search.rbf(
        nfe=nfe, kernel=SDE, grid=GRID, chains=chains, seeds=seeds, width=width, last=last,
        finish="mean",
    )  # fmt: skip


def run(problem, count, target=None, seed=0):
    ids, cond = batch(count, seed)
    return fs.run(KEY, flow(), problem, REWARD, cond=cond, prompt_ids=ids, target_reward=target)


def compare_with_reference(problem, result, cases, target, seed=0):
    """Compare the first `cases` problems of the batch; how many met the target."""
    ids, cond = batch(len(result.nfe), seed)
    met = 0
    for i in range(cases):
        best, accepted, charged = reference.rbf(
            problem, KEY, int(ids[i]), row(cond, i), *tools(), np.inf if target is None else target
        )
        assert int(result.nfe[i]) == charged
        scale = EXACT * cond["size"][i]
        np.testing.assert_allclose(result.reward[i], best.reward, rtol=EXACT, atol=scale)
        np.testing.assert_allclose(result.x[i], best.x, rtol=1e-4, atol=1e-4)
        assert float(result.t[i]) == float(best.t)
        met += target is not None and best.reward >= target
        if target is None:
            for c, points in enumerate(accepted):
                path = accepted_path(result.info, i, c)
                assert list(path) == [float(p.t) for p in points]
                expected = [p.reward for p in points]
                np.testing.assert_allclose(list(path.values()), expected, rtol=EXACT, atol=scale)
    return met


@pytest.mark.parametrize(
    ("nfe", "chains", "seeds", "width", "last"),
    [
        (50, 3, 4, 7, "improve"),
        pytest.param(37, 1, 1, 1, "improve", marks=pytest.mark.slow),
        pytest.param(29, 3, 2, 2, "exhaust", marks=pytest.mark.slow),
    ],
)
def test_equals_algorithm_2_one_at_a_time(nfe, chains, seeds, width, last):
    check_against_reference(search(nfe, chains, seeds, width, last), nfe)


@pytest.mark.slow
def test_equals_algorithm_2_as_users_compile_it(full_optimization):
    check_against_reference(search(53, 2, 3, 4), 53)


def check_against_reference(problem, seed, count=40):
    result = run(problem, count, None, seed)
    compare_with_reference(problem, result, count, None, seed)
    result = run(problem, count, 0.5, seed)
    met = compare_with_reference(problem, result, count, 0.5, seed)
    assert 0 < met < count, "the target must bind in some problems and not in others"


@pytest.mark.parametrize(
    ("chains", "seeds", "last", "widths"),
    [
        (2, 2, "exhaust", (1, 2, 5, 8, 25)),
        (3, 1, "improve", (1, 25)),
    ],
)
@pytest.mark.slow
def test_width_changes_neither_answer_nor_charge(chains, seeds, last, widths):
    count = 200
    size = batch(count)[1]["size"]
    outcomes = {}
    for target in (None, 0.5):
        for width in widths:
            problem = search(61, chains, seeds, width, last)
            result = run(problem, count, target)
            if width == 1:
                compare_with_reference(problem, result, 30, target)
            paths = None
            if target is None:
                paths = [
                    accepted_path(result.info, i, c) for i in range(count) for c in range(chains)
                ]
            outcomes[width] = jax.device_get((result.nfe, result.x, result.t, result.reward)), paths
            assert np.all(result.evaluations >= result.nfe)
            assert np.all(np.asarray(result.nfe) <= 61)
            np.testing.assert_array_equal(result.info.charged.sum(axis=0), result.nfe)
            if width > 1:  # the surplus is reported
                assert np.sum(result.evaluations) > np.sum(result.nfe)
        (nfe, x, t, reward), paths = outcomes[1]
        if target is not None:
            hit = reward >= target
            assert 0 < hit.sum() < count
            assert np.all(nfe[hit] <= 61)
            assert np.any(nfe[hit] < 61)
        for width in widths[1:]:
            (other_nfe, other_x, other_t, other_reward), other_paths = outcomes[width]
            np.testing.assert_array_equal(other_nfe, nfe)
            np.testing.assert_array_equal(other_t, t)
            np.testing.assert_allclose(other_x, x, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(other_reward / size, reward / size, rtol=EXACT, atol=EXACT)
            if target is None:
                for one, other in zip(paths, other_paths, strict=True):
                    assert list(one) == list(other)
        if target is None and last == "exhaust":
            np.testing.assert_array_equal(nfe, 61)


@pytest.mark.slow
def test_quota_of_one_is_the_plain_sde():
    chains, seeds, steps = 2, 1, len(GRID) - 1
    problem = search(chains * (seeds + steps - 1), chains, seeds, 3)
    ids, cond = batch(7)
    result = run(problem, 7)
    np.testing.assert_array_equal(result.nfe, problem.nfe)
    noise, move, evaluate = tools()
    for i in range(7):
        key = jax.random.fold_in(KEY, int(ids[i]))
        for c in range(chains):
            point = evaluate(noise(key, c, 0, 0), 1.0, row(cond, i))
            rewards = [point.reward]
            for stage in range(1, steps):
                point = evaluate(
                    move(key, point, GRID[stage], c, stage, 0), GRID[stage], row(cond, i)
                )
                rewards.append(point.reward)
            np.testing.assert_allclose(
                result.state.chains.parent.x[i, c], point.x, rtol=1e-4, atol=1e-4
            )
            path = accepted_path(result.info, i, c)
            assert list(path) == [float(np.float32(t)) for t in GRID[:-1]]
            atol = EXACT * cond["size"][i]
            np.testing.assert_allclose(list(path.values()), rewards, rtol=EXACT, atol=atol)


@pytest.mark.slow
def test_a_grid_of_one_step_is_best_of_noise():
    problem = fs.search.rbf(nfe=9, kernel=SDE, grid=[1.0, 0.0], chains=2, finish="mean", width=3)
    cond = problems(7, kinds=(SMOOTH,))
    result = fs.run(KEY, flow(), problem, REWARD, cond=cond, prompt_ids=np.arange(7))
    np.testing.assert_array_equal(result.nfe, 9)
    np.testing.assert_array_equal(result.t, np.ones(7))
    np.testing.assert_array_equal(result.reward, result.info.reward.max(axis=(0, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("width", [5, 1])
def test_first_draw_wins_ties_and_infinities_are_rewards(width):
    """One compiled program a width: the reward's values come in as its parameters."""

    def by_sign(values, images, cond):
        return jnp.where(images[:, 0] > 0.0, values[0], values[1])

    def outcome(above, below):
        values = jnp.asarray([above, below], jnp.float32)
        return fs.run(
            KEY, flow(), problem, jax.tree_util.Partial(by_sign, values), cond=row(batch(7)[1], 0)
        )

    problem = search(33, 2, 2, width)
    tied = outcome(2.5, 2.5)
    cond = with_signs(row(batch(7)[1], 0), 2.5, 2.5)
    first, _, _ = reference.rbf(problem, KEY, 0, cond, *tools())
    np.testing.assert_allclose(tied.x, first.x, rtol=1e-4, atol=1e-4)
    assert (tied.reward, tied.nfe, tied.t) == (2.5, 33, np.float32(GRID[-2]))
    assert outcome(np.nan, 1.0).reward == 1.0
    assert outcome(-np.inf, -1e30).reward == np.float32(-1e30)
    plus = outcome(np.inf, 0.0)  # the largest number, which is no target
    assert (plus.reward, plus.nfe) == (np.finfo(np.float32).max, 33)
    assert outcome(1e6, 1e-6).reward == np.float32(1e6)
    assert outcome(-1e-6, -1e6).reward == np.float32(-1e-6)
    for nothing in (np.nan, -np.inf):
        with pytest.raises(ValueError, match=r"reward 'by_sign' was NaN or -inf.*prompt ids \[0\]"):
            outcome(nothing, nothing)


@pytest.mark.slow
def test_quotas_sum_to_the_budget():
    for chains in (1, 2, 3):
        for seeds in (1, 4):
            for nfe in range(chains * (seeds + len(GRID) - 2), 64):
                quotas = np.asarray(search(nfe, chains, seeds).quotas(np.int32(nfe)))
                assert quotas.sum() == nfe
                assert quotas.min() >= 1
                assert np.ptp(quotas.sum(axis=1)) <= 1
                assert np.ptp(quotas[0, 1:]) <= 1


def test_rounded_problems_have_ties():
    """The problems the other tests rest on do exercise the strictness of 'above r*'."""
    cond = problems(40, kinds=(ROUNDED,))
    images = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    rewards = host_reward(images, cond) / cond["size"]
    assert np.unique(np.round(rewards, 3)).size < 10
