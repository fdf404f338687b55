"""One budget for all prompts."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import GRID, SDE, SMOOTH, flow, problems, reward, row

import flowsde as fs
from flowsde.runner.packed.budget import Outcome, least_nfe, next_budgets

KEY = jax.random.key(5)
SEARCH = fs.search.rbf(kernel=SDE, nfe=60, grid=GRID, finish_steps=4)
PROMPTS, TARGET = 9, 0.4
COND = problems(PROMPTS, seed=3, kinds=(SMOOTH,)) | {"size": np.ones(PROMPTS, np.float32)}


def shared(total, order=None, **options):
    order = np.arange(PROMPTS) if order is None else order
    results = fs.batch(
        KEY, flow(), SEARCH, reward, cond=row(COND, order), prompt_ids=order, total_nfe=total,
        target_reward=TARGET, **options,
    )  # fmt: skip
    return dict(results), results.totals


@pytest.mark.slow
def test_it_is_a_hard_cap_and_what_is_left_goes_to_the_hard_ones():
    total = 25 * PROMPTS
    found, totals = shared(total, batch_size=8)
    assert sum(one.nfe for one in found.values()) == totals.nfe <= total
    assert totals.evaluations == totals.nfe + totals.surplus + totals.padding
    # The first attempt is the search alone with an equal share.
    first = {
        i: fs.run(
            KEY, flow(), SEARCH, reward, cond=row(COND, [i]), prompt_ids=[i], nfe=25,
            target_reward=TARGET,
        )
        for i in found
    }  # fmt: skip
    met = {i for i, one in first.items() if one.reward[0] >= TARGET}
    assert 0 < len(met) < PROMPTS
    for i, one in found.items():
        if i in met:
            assert one.nfe == first[i].nfe[0]
            np.testing.assert_allclose(one.x, first[i].x[0], rtol=1e-5, atol=1e-5)
        else:
            assert one.nfe >= first[i].nfe[0] and one.reward >= first[i].reward[0] - 1e-5
    hard = set(found) - met
    assert sum(found[i].nfe for i in hard) > 25 * len(hard)
    # It is spent, or all have reached the target.
    spent = total - totals.nfe < least_nfe(SEARCH)
    assert spent or all(one.reward >= TARGET for one in found.values())


@pytest.mark.slow
def test_packing_and_order_do_not_matter():
    total = 25 * PROMPTS
    found, _ = shared(total, batch_size=8)
    other, _ = shared(total, np.arange(PROMPTS)[::-1], batch_size=5, slots=2)
    assert found.keys() == other.keys()
    for i, one in found.items():
        assert (one.nfe, one.t) == (other[i].nfe, other[i].t)
        np.testing.assert_allclose(one.x, other[i].x, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(one.reward, other[i].reward, atol=1e-5)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_budgets_add_up(data):
    """Against any outcomes: never more than there is, and never less than a search takes."""
    n, least = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 12))
    most = [least + data.draw(st.integers(0, 40)) for _ in range(n)]
    total = n * least + data.draw(st.integers(0, 200))
    ids = data.draw(st.permutations(range(n)))
    rewards = st.sampled_from([0.2, 0.7, 1.0])
    ended, spent = [], 0
    while budgets := next_budgets(total, least, most, ids, 1.0, ended):
        assert spent + sum(budgets.values()) <= total
        assert all(least <= budget <= most[p] for p, budget in budgets.items())
        done = {p for attempts in ended for p, one in attempts.items() if one.reward >= 1.0}
        assert not done & set(budgets)
        assert ended or set(budgets) == set(range(n))
        outcomes = {
            p: Outcome(data.draw(st.integers(1, budget)), data.draw(rewards))
            for p, budget in budgets.items()
        }
        ended.append(outcomes)
        spent += sum(one.nfe for one in outcomes.values())
    met = {p for attempts in ended for p, one in attempts.items() if one.reward >= 1.0}
    assert len(met) == n or total - spent < least


def test_the_closest_come_first():
    first = {0: Outcome(10, 0.1), 1: Outcome(10, 0.5), 2: Outcome(3, 1.0), 3: Outcome(9, 0.5)}
    ids = [7, 9, 8, 6]
    assert next_budgets(45, 10, [20] * 4, ids, 1.0, [first]) == {3: 13}
    assert next_budgets(53, 10, [20] * 4, ids, 1.0, [first]) == {3: 11, 1: 10}
    assert next_budgets(200, 10, [20] * 4, ids, 1.0, [first]) == {3: 20, 1: 20, 0: 20}


def test_the_smallest_budget():
    for search in (SEARCH, fs.search.bon(nfe=60, kernel=SDE, grid=GRID)):
        least = least_nfe(search)
        search.with_nfe(least)
        with pytest.raises(ValueError):
            search.with_nfe(least - 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_nfe": 1000}, "total_nfe is shared .* it wants target_reward"),
        ({"total_nfe": 125, "target_reward": 0.5}, r"total_nfe must be at least 126"),
        ({"total_nfe": 0, "target_reward": 0.5}, "total_nfe must be an integer of at least 1"),
    ],
)
def test_wrong_totals(options, message):
    with pytest.raises(ValueError, match=message):
        fs.batch(KEY, flow(), SEARCH, reward, cond=COND, **options)
