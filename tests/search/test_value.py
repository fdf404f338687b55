"""Looking ahead: what is seen, what it is worth, and what it costs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
import reference
from counted import SEEN, counting_flow, counting_reward
from problems import GRID, SDE, VP, batch, decode, flow, host_reward, reward, row, tools

import flowsde as fs
from flowsde.search.value import LookAhead

KEY = jax.random.key(4)
COUNT = 6
OPTIONS = {"nfe": 61, "kernel": SDE, "grid": GRID, "finish_steps": 4}
TWO = {"value": "samples", "value_steps": 1, "value_samples": 2}
ODE = {"value": "ode", "value_steps": 2}
SEARCHES = {
    "rbf": fs.search.rbf(width=3, accept="calibrated", **ODE, **OPTIONS),
    "svdd": fs.search.svdd(chains=1, **TWO, **OPTIONS),
    "code": fs.search.code(block=2, branch_at=(1, 3), **ODE, **OPTIONS),
    "smc": fs.search.smc(temperature=0.2, branch_at=2, **TWO, **OPTIONS),
    "sop": fs.search.sop(start=1, forward=1, backward=2, **ODE, **OPTIONS),
}


def gaussian_means(v, x, t):
    """Posterior means of data N(0, v) under the linear interpolant."""
    a, s = 1.0 - t[:, None], t[:, None]
    total = a * a * v + s * s
    return a * v * x / total, s * x / total


def look(kind, steps, samples=1, **options):
    return LookAhead(kind=kind, steps=steps, samples=samples, until=0.01, **options)


@pytest.mark.slow
def test_samples_follow_the_posterior():
    """Of Gaussian data, at t = .6: N(a v x / (a² v + s²), v s² / (a² v + s²))."""
    v, t, x, n = 0.25, 0.6, 0.8, 20_000
    total = 0.16 * v + 0.36
    means = functools.partial(gaussian_means, v)
    at = jnp.full((n,), t), jnp.full((n, 1), x)
    x0, x1 = means(at[1], at[0])
    keys = look("samples", 32).keys(jax.random.split(KEY, n))
    linear = fs.interpolants.linear()
    ends = look("samples", 32).ends(linear, means, at[1], at[0], x0, x1, keys)[:, 0, 0]
    np.testing.assert_allclose(jnp.mean(ends), 0.4 * v * x / total, atol=0.01)
    # First order in the steps, and from below: the mean at the last time is short of its spread.
    assert 0.85 < float(jnp.var(ends)) / (v * 0.36 / total) < 1.0


@pytest.mark.slow
def test_an_ode_ends_where_finishing_does():
    """Against Euler steps of the linear ODE by hand."""
    v, n = 0.25, 5
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 1)).astype(np.float32)
    linear = fs.interpolants.linear()

    def means(x, s):
        t, scale = fs.match_time(linear, VP, s)
        return gaussian_means(v, scale[:, None] * x, t)

    def velocity(x, t, cond):
        x0, x1 = gaussian_means(v, jnp.asarray(x)[None], jnp.asarray(t)[None])
        return (x1 - x0)[0]

    for s in (0.9, 0.5, 0.05):
        t = jnp.full((n,), s)
        ends = look("ode", 3).ends(VP, means, jnp.asarray(x), t, *means(x, t), None)
        for i in range(n):
            start = reference.Point(x[i], np.float32(s), None, None, None)
            x0, _ = reference.complete(velocity, start, 3, VP, None)
            np.testing.assert_allclose(ends[i, 0], x0, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_values_by_hand():
    rewards = jnp.asarray([[1.0, 2.0, 6.0], [-jnp.inf, 0.0, 0.0], [1e30, 1e30, 1e30]])
    mean = look("samples", 1, 3).combine(rewards)
    np.testing.assert_allclose(mean[0], 3.0, rtol=1e-6)
    assert mean[1] == -np.inf
    soft = look("samples", 1, 3, temperature=0.5).combine(rewards)
    expected = 0.5 * np.log(np.mean(np.exp([2.0, 4.0, 12.0])))
    np.testing.assert_allclose(soft, [expected, 0.5 * np.log(2 / 3), 1e30], rtol=1e-6)


@jax.jit
def _velocity(x, t, cond):
    cond = jax.tree.map(lambda a: a[None], cond)
    return problems.velocity(flow().params, x[None], t[None], cond)[0]


def _ode_reward(point, cond):
    x0, _ = reference.complete(_velocity, point, 2, VP, cond)
    one = jax.tree.map(lambda a: np.asarray(a)[None], cond)
    r = float(host_reward(np.asarray(decode(x0))[None], one)[0])
    return -np.inf if np.isnan(r) else r


@pytest.mark.slow
def test_svdd_equals_children_drawn_one_by_one():
    search = fs.search.svdd(
        nfe=61, kernel=SDE, grid=GRID, finish="mean", value="ode", value_steps=2
    )
    ids, cond = batch(COUNT)
    result = fs.run(KEY, flow(), search, reward, cond=cond, prompt_ids=ids)
    for i in range(COUNT):
        finished, charged = reference.code(
            search, KEY, int(ids[i]), row(cond, i), *tools(), look=_ode_reward, ahead=2
        )
        best = max(finished, key=lambda p: p.reward)
        assert result.nfe[i] == charged <= 61
        np.testing.assert_allclose(result.x[i], best.x, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHES)
def test_all_is_counted(name):
    """Against what the model and a reward outside JAX see; in full batches, too."""
    search = SEARCHES[name]
    ids, cond = batch(COUNT)
    options = {"cond": cond, "prompt_ids": ids}
    SEEN.update(model=0)
    alone = fs.run(KEY, counting_flow(), search, reward, chunk_size=5, **options)
    jax.effects_barrier()
    assert SEEN["model"] == alone.evaluations.sum()
    assert np.all(alone.nfe <= 61) and np.all(alone.evaluations >= alone.nfe)
    again = reward(alone.image, cond)
    np.testing.assert_allclose(alone.reward / cond["size"], again / cond["size"], atol=2e-5)
    SEEN.update(model=0, verifier=0)
    hosted = fs.rewards.host(counting_reward)
    packed = fs.batch(KEY, counting_flow(), search, hosted, batch_size=8, **options)
    found = dict(packed)
    jax.effects_barrier()
    totals = packed.totals
    assert SEEN["model"] == totals.evaluations == totals.nfe + totals.surplus + totals.padding
    assert SEEN["verifier"] == totals.verifier_calls
    for i, number in enumerate(ids):
        one, size = found[int(number)], cond["size"][i]
        assert one.nfe == alone.nfe[i]
        np.testing.assert_allclose(one.reward / size, alone.reward[i] / size, atol=2e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value": "median"}, "value must be 'mean', 'ode' or 'samples', got 'median'"),
        ({"value": "ode", "value_steps": 0}, "value_steps must be an integer of at least 1, got 0"),
        ({"value": "ode", "last": "improve"}, "last must be 'exhaust' with value 'ode'"),
        ({"value": "ode", "allocation": "reserve"}, "'reserve' .* takes no value, got 'ode'"),
        ({"value": "ode", "nfe": 30}, "expected at least 42: 2 chains of 1 seeds and 4 steps"),
    ],
)
def test_what_is_wrong_is_said(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fs.search.rbf(**(OPTIONS | {"finish": "mean", "finish_steps": None} | options))


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_a_guided_candidate_is_charged_for_looking_ahead_and_differentiated_once(packed):
    """One particle down 5 times, of which the last neither looks nor moves."""
    kernel = fs.kernels.reward_gradient(SDE, temperature=2.0)
    search = fs.search.smc(nfe=13, kernel=kernel, grid=GRID, finish="mean", temperature=0.2, **TWO)
    assert len(GRID) - 1 == 5 and search.n_candidates == 1
    ids, cond = batch(2)
    options = {"cond": cond, "prompt_ids": ids}
    SEEN.update(model=0)
    if packed:
        results = fs.batch(KEY, counting_flow(), search, reward, batch_size=1, **options)
        found = dict(results)
        found, totals = [found[int(i)] for i in ids], results.totals
        evaluations = totals.evaluations
    else:
        result = fs.run(KEY, counting_flow(), search, reward, chunk_size=1, **options)
        found = [jax.tree.map(lambda a, i=i: a[i], result._replace(info=None)) for i in range(2)]
        evaluations = result.evaluations.sum()
    jax.effects_barrier()
    assert SEEN["model"] == evaluations
    for one in found:
        assert (one.nfe, one.backward_passes, one.verifier_calls) == (5 + 4 * 2, 4, 5 + 4 * 2)
