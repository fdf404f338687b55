"""Tournaments against orders that are known."""

import itertools

import jax
import numpy as np
import pytest

import flowsde as fs
from flowsde.pairwise import strengths

KEY = jax.random.key(11)


def truth(a, b, cond):
    """Finalists are numbers: the larger is the better."""
    return (a > b) + 0.5 * (a == b)


def noisy(rng, scale):
    """Whom a Bradley-Terry judge of these strengths prefers."""

    def compare(a, b, cond):
        return (rng.random(len(a)) < 1.0 / (1.0 + np.exp(scale * (b - a)))).astype(float)

    return compare


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3, 7, 8])
def test_when_all_have_met_all_the_order_is_the_true_one(n):
    for seed in range(5):
        values = np.random.default_rng(seed).permutation(n).astype(float)
        found = fs.tournament(jax.random.fold_in(KEY, seed), truth, values, rounds=99)
        np.testing.assert_array_equal(values[found.ranking], np.arange(n)[::-1])
        assert found.calls == (n - 1 + n % 2) * (n // 2)


@pytest.mark.slow_but_one
@pytest.mark.parametrize(("n", "rounds"), [(8, 3), (16, 4), (9, 4), (5, 2), (1, 3)])
def test_calls_are_as_stated_and_nobody_meets_twice(n, rounds):
    asked = []

    def compare(a, b, cond):
        assert cond == "a red fox"
        asked.extend(zip(a.tolist(), b.tolist(), strict=True))
        return truth(a, b, cond)

    values = np.random.default_rng(1).permutation(n).astype(float)
    found = fs.tournament(KEY, compare, values, "a red fox", rounds=rounds)
    assert found.calls == len(asked) == rounds * (n // 2) == len(found.pairs)
    assert len({frozenset(pair) for pair in asked}) == len(asked)
    played = np.bincount(found.pairs.reshape(-1), minlength=n)
    if n > 1:
        # Of an odd number another one sits out each round.
        assert played.min() >= rounds - n % 2 and played.max() <= rounds
    assert sorted(found.ranking) == list(range(n))
    twice = fs.tournament(KEY, truth, values, rounds=rounds, both_orders=True)
    assert twice.calls == 2 * found.calls


def test_the_best_of_a_power_of_two_wins_in_as_many_rounds():
    for seed in range(20):
        values = np.random.default_rng(seed).permutation(16).astype(float)
        found = fs.tournament(jax.random.fold_in(KEY, seed), truth, values, rounds=4)
        assert values[found.ranking[0]] == 15.0


@pytest.mark.slow
def test_more_noisy_games_find_the_order_better():
    rng, values = np.random.default_rng(0), np.arange(8.0)
    every = list(itertools.combinations(range(8), 2))

    def agreement(rounds):
        """Kendall's tau to the true order, mean of 60."""
        taus = []
        for i in range(60):
            key = jax.random.fold_in(KEY, i)
            found = fs.tournament(key, noisy(rng, 0.7), values, rounds=rounds)
            ranks = np.argsort(found.ranking[::-1])
            taus.append(np.mean([np.sign(ranks[b] - ranks[a]) for a, b in every]))
        return np.mean(taus)

    few, many = agreement(2), agreement(7)
    assert 0.2 < few < many - 0.1 < 1.0


def test_strengths_are_at_the_maximum():
    rng = np.random.default_rng(2)
    pairs = np.asarray([rng.choice(6, 2, replace=False) for _ in range(40)])
    outcome = rng.random(40).round(1)

    def log_likelihood(s):
        d = s[pairs[:, 0]] - s[pairs[:, 1]]
        games = outcome * np.log1p(np.exp(-d)) + (1.0 - outcome) * np.log1p(np.exp(d))
        draws = 0.5 * (np.log1p(np.exp(-s)) + np.log1p(np.exp(s)))
        return -games.sum() - draws.sum()

    s = strengths(6, pairs, outcome)
    for step in np.concatenate([np.eye(6), rng.normal(size=(20, 6))]):
        assert log_likelihood(s) >= log_likelihood(s + 1e-4 * step)
        assert log_likelihood(s) >= log_likelihood(s - 1e-4 * step)


def test_ties_keep_their_order_and_a_judge_of_the_first_place_is_evened_out():
    values = np.asarray([1.0, 3.0, 3.0, 1.0])
    found = fs.tournament(KEY, truth, values, rounds=3)
    np.testing.assert_array_equal(found.ranking, [1, 2, 0, 3])
    unsure = fs.tournament(KEY, lambda a, b, cond: np.full(len(a), np.nan), values, rounds=3)
    np.testing.assert_array_equal(unsure.ranking, [0, 1, 2, 3])
    first = fs.tournament(
        KEY, lambda a, b, cond: np.ones(len(a)), values, rounds=3, both_orders=True
    )
    np.testing.assert_allclose(first.strength, 0.0, atol=1e-9)


def test_the_same_key_gives_the_same_games():
    values = np.arange(9.0)
    one, two = (fs.tournament(KEY, truth, values, rounds=3) for _ in range(2))
    np.testing.assert_array_equal(one.pairs, two.pairs)
    other = fs.tournament(jax.random.key(12), truth, values, rounds=3)
    assert (one.pairs != other.pairs).any()


@pytest.mark.parametrize(("compare", "images", "message"), [
    (lambda a, b, cond: a[:1], np.arange(4.0), "compare returned shape"),
    (lambda a, b, cond: a + 7.0, np.arange(4.0), "numbers from 0 to 1, got"),
    (truth, np.zeros(0), "at least one finalist"),
    (truth, [np.zeros(2), np.zeros(3)], "n of one shape"),
])  # fmt: skip
def test_what_is_wrong_is_named(compare, images, message):
    with pytest.raises(ValueError, match=message):
        fs.tournament(KEY, compare, images)
