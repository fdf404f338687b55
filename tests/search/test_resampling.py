"""Resampling schemes: copies are N w on average, spread as each scheme promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowsde.search.resampling import SCHEMES, inverse_cdf

N = 12
RUNS = 20_000
WEIGHTS = {
    "uneven": np.asarray([0.0, 3.0, 0.1, 0.0, 1.0, 0.5, 0.5, 2.4, 0.0, 1e-6, 4.5, 0.0]),
    "equal": np.ones(N),
    "one": np.eye(N)[5],
    "last": np.eye(N)[-1],
    "whole": np.repeat([2.0, 0.0], N // 2),
}


def copies(name, weights, runs=RUNS):
    """How often each particle was picked: [runs, N]."""
    with np.errstate(divide="ignore"):
        log_weights = jnp.asarray(np.log(weights) + 500.0, jnp.float32)
    keys = jax.random.split(jax.random.key(0), runs)
    ancestors = jax.jit(jax.vmap(lambda key: SCHEMES[name](key, log_weights, N)))(keys)
    assert ancestors.shape == (runs, N) and ancestors.dtype == jnp.int32
    assert jnp.all((ancestors >= 0) & (ancestors < N))
    return np.stack([(np.asarray(ancestors) == n).sum(1) for n in range(N)], 1)


@pytest.mark.slow
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("name", SCHEMES)
def test_copies_are_as_many_as_the_weight_asks_for(name, weights):
    picked = copies(name, weights)
    expected = N * weights / weights.sum()
    assert np.all(picked[:, weights == 0] == 0)
    # Independent draws have the largest variance, N w (1 - w).
    error = np.sqrt(np.maximum(expected * (1 - expected / N), 1e-4) / RUNS)
    np.testing.assert_array_less(np.abs(picked.mean(0) - expected), 4.5 * error + 1e-12)
    slack = 1e-4  # of float32 weights
    if name in ("systematic", "ssp"):
        assert np.all(picked >= np.floor(expected - slack))
        assert np.all(picked <= np.ceil(expected + slack))
    if name == "residual":
        assert np.all(picked >= np.floor(expected - slack))
    if name == "stratified":
        assert np.all(np.abs(picked - expected) < 2)


@pytest.mark.slow
def test_schemes_differ_in_spread_as_published():
    """Multinomial's copies vary most; systematic's and SSP's least, by rounding alone."""
    variance = {name: copies(name, WEIGHTS["uneven"]).var(0).sum() for name in SCHEMES}
    assert max(variance, key=lambda name: variance[name]) == "multinomial"
    fraction = N * WEIGHTS["uneven"] / WEIGHTS["uneven"].sum() % 1
    for name in ("systematic", "ssp"):
        assert variance[name] == pytest.approx((fraction * (1 - fraction)).sum(), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMES)
def test_one_particle_is_its_own_ancestor(name):
    assert SCHEMES[name](jax.random.key(0), jnp.asarray([-3.0], jnp.float32), 1).tolist() == [0]


@pytest.mark.slow_but_one
@pytest.mark.parametrize("name", SCHEMES)
def test_fewer_than_before_go_on(name):
    """5 of 12: copies are 5 w on average, none of them behind."""
    weights, n = WEIGHTS["uneven"], 5
    with np.errstate(divide="ignore"):
        log_weights = jnp.asarray(np.log(weights), jnp.float32)
    keys = jax.random.split(jax.random.key(2), RUNS)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: SCHEMES[name](key, log_weights, n)))(keys))
    picked = np.stack([(drawn[:, :n] == i).sum(1) for i in range(N)], 1)
    expected = n * weights / weights.sum()
    error = np.sqrt(np.maximum(expected * (1 - expected / n), 1e-4) / RUNS)
    np.testing.assert_array_less(np.abs(picked.mean(0) - expected), 4.5 * error + 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMES)
def test_room_behind_the_particles_changes_nothing(name):
    """Fewer particles than there is room for, their number a traced one."""
    with np.errstate(divide="ignore"):
        log_weights = jnp.asarray(np.log(WEIGHTS["uneven"]), jnp.float32)
    padded = jnp.pad(log_weights, (0, 5), constant_values=-jnp.inf)
    scheme = jax.jit(SCHEMES[name])
    for key in jax.random.split(jax.random.key(3), 50):
        ancestors = scheme(key, padded, jnp.int32(N))
        np.testing.assert_array_equal(ancestors[:N], scheme(key, log_weights, jnp.int32(N)))


@pytest.mark.slow
def test_shares_at_the_ends_pick_positive_weights():
    weights = jnp.asarray([0.0, 0.0, 0.3, 0.0, 0.7, 0.0, 0.0], jnp.float32)
    picked = inverse_cdf(weights, jnp.asarray([0.0, 0.2999, 0.3001, 1.0], jnp.float32))
    assert picked.tolist() == [2, 2, 4, 4]
