"""Restarts of SMC: rounds told random rewards, the law of what is noised, and where lines lead."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from marginals import check_pictures_stay_the_models
from methods import METHODS
from problems import GRID, SDE, VP, batch, flow, reward

import flowsde as fs
from flowsde.cli.lineage import Trace
from flowsde.search.protocol import Evaluation

KEY = jax.random.key(6)
TIMES = fs.grids.uniform(6)
DDIM = fs.kernels.ddim(VP, eta=0.8)
GLASS = fs.kernels.glass(VP, inner_steps=2)
AT, N = 3, 4
COUNT = 12


def smc(nfe, **options):
    given = {"kernel": DDIM, "grid": TIMES, "temperature": 0.5, "finish": "mean"}
    return fs.search.smc(nfe=nfe, **given | {"restart_at": 0.5, "particles": N} | options)


@functools.partial(jax.jit, static_argnames="search")
def go_round(search, state, evals):
    state, asked = search.ask(state)
    return asked, *search.tell(state, asked, evals)


def rounds_of(search, shape, budget=None):
    """(asked, state before, state after, info) of each round, told random rewards."""
    rng = np.random.default_rng(2)
    nfe = jnp.int32(search.nfe if budget is None else budget)
    state = search.init(KEY, shape, jnp.float32(jnp.inf), nfe)
    while not bool(search.done(state)):
        w = search.n_candidates
        x0, x1 = rng.normal(size=(2, w, *shape)).astype(np.float32)
        told = Evaluation(x0, x1, rng.normal(-3.0, 1.0, w).astype(np.float32))
        before = state
        asked, state, info = go_round(search, state, told)
        yield asked, before, state, info
    assert int(state.left) < 6 - AT  # a copy's evaluations


@pytest.mark.slow
@pytest.mark.parametrize(("budget", "sizes"), [(68, [4, 4, 4, 4, 2]), (17, [2, 1]), (6, [1])])
def test_rounds_are_those_of_the_definition(budget, sizes):
    # 6 evaluations a particle, then 3 a copy; the program has room for the largest budget.
    search, dims = smc(68), 400
    rounds = rounds_of(search, (dims,), budget)
    best, noise, count = -np.inf, [], 0
    for k, n in enumerate(sizes):
        for i in range(AT if k else 0, 6):
            asked, before, state, info = next(rounds)
            np.testing.assert_array_equal(asked.valid, np.arange(N) < n)
            np.testing.assert_array_equal(asked.t, np.full(N, np.float32(TIMES[i])))
            assert int(info.charged) == n
            count += 1
            if k and i == AT:
                t, s = before.best.t, jnp.float32(TIMES[AT])
                scale = VP.alpha(s) / VP.alpha(t)
                std = jnp.sqrt(VP.sigma(s) ** 2 - (scale * VP.sigma(t)) ** 2)
                noise += list(np.asarray((asked.x[:n] - scale * before.best.x[None]) / std))
        rewards = np.where(asked.valid, info.reward, -np.inf)
        if rewards.max() > best:
            best = rewards.max()
            np.testing.assert_array_equal(state.best.x, asked.x[rewards.argmax()])
        assert float(state.best.reward) == float(info.best_reward) == best
        if k + 1 < len(sizes):
            np.testing.assert_array_equal(state.smc.log_weights[: sizes[k + 1]], 0.0)
            np.testing.assert_array_equal(state.smc.potential, 0.0)
    assert next(rounds, None) is None and count <= search.max_rounds
    if noise:
        # Four standard errors and more: each is standard normal, and all are drawn apart.
        noise = np.stack(noise).astype(np.float64)
        assert np.all(np.abs(noise.mean(1)) < 4 / np.sqrt(dims))
        assert np.all(np.abs(noise.std(1) - 1.0) < 4 / np.sqrt(2 * dims))
        assert np.all(np.abs(noise @ noise.T / dims - np.eye(len(noise))) < 5 / np.sqrt(dims))


@pytest.mark.slow
def test_one_pass_is_the_search_without_restarts():
    ids, cond = batch(COUNT)
    given = {"cond": cond, "prompt_ids": ids, "invalid": "warn"}
    once = fs.run(KEY, flow(), smc(N * 6, restart_at=0.0, particles=None), reward, **given)
    # Two evaluations are left, of three that a copy takes.
    same = fs.run(KEY, flow(), smc(N * 6 + 2), reward, **given)
    more = fs.run(KEY, flow(), smc(N * 6 + 24), reward, **given)
    np.testing.assert_array_equal(once.x, same.x)
    np.testing.assert_array_equal(once.nfe, same.nfe)
    size = cond["size"]
    assert np.all(more.reward / size >= once.reward / size - 1e-6)
    assert np.mean(more.reward > once.reward) > 0.5 and np.all(more.nfe == N * 6 + 24)


@pytest.mark.slow
def test_without_preferences_pictures_stay_the_models():
    def search(nfe):
        return fs.search.smc(
            nfe=nfe, kernel=fs.kernels.ddim(VP, eta=1.0), grid=fs.grids.uniform(40),
            temperature=10.0, restart_at=0.5, particles=1, finish="mean",
        )  # fmt: skip

    check_pictures_stay_the_models(search(40), search(140), moved=0.7)


@pytest.mark.slow
def test_a_move_that_evaluates_is_not_charged_where_noise_is_added():
    # Three evaluations a step but the first: 16 a particle, 7 a copy.
    search = smc(100, kernel=GLASS)
    ids, cond = batch(COUNT)
    found = fs.run(KEY, flow(), search, reward, cond=cond, prompt_ids=ids, invalid="warn")
    assert np.all(found.nfe == 4 * 16 + 4 * 7 + 7)
    np.testing.assert_array_equal(found.nfe, found.info.charged.sum(0))


@pytest.mark.slow
def test_lines_lead_from_pass_to_pass():
    search = fs.search.smc(
        nfe=90, kernel=SDE, grid=GRID, temperature=0.2, restart_at=0.85, particles=3,
        finish_steps=2,
    )  # fmt: skip
    at = search.inner.at
    ids, cond = batch(COUNT)
    climbs = 0
    for i in range(4):
        trace, one = Trace(search), jax.tree.map(lambda a, i=i: a[i], cond)
        key = jax.random.fold_in(KEY, int(ids[i]))
        for result in fs.iterate(key, flow(), search, reward, cond=one, invalid="warn"):
            trace.record(result)
        best = [shot for shot in trace.shots if shot.reward == float(result.reward)]
        line = trace.lineage(best[-1])
        assert line[0].time == 1.0
        for older, newer in itertools.pairwise(line):
            if newer.time >= older.time:
                climbs += 1
                assert older.time == np.float32(GRID[-2]) and newer.time == np.float32(GRID[at])
    assert climbs > 4


def test_it_has_no_weighted_sample():
    with pytest.raises(TypeError, match="search must be of psi, or of smc without restart_at"):
        fs.search.weighted_sample(METHODS["smc, restarts"], 0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"restart_at": 1.0}, ValueError, "restart_at must be a time between 0 and 1, got 1.0"),
        ({"restart_at": 2}, TypeError, "restart_at must be a time between 0 and 1, got 2"),
        ({"particles": 0}, ValueError, "particles must be an integer of at least 1, got 0"),
        ({"restart_at": 0.0}, ValueError, "particles has no effect without restart_at.*got 4"),
        ({"funnel": 0.5}, ValueError, "restart_at has no effect with funnel 0.5"),
        ({"potential": "final"}, ValueError, "restart_at has no effect with potential 'final'"),
        (
            {"grid": (1.0, 0.5, 0.0)},
            ValueError,
            "restart_at needs a grid of at least 3 steps.*got 2",
        ),
        (
            {"kernel": fs.kernels.guided(DDIM, temperature=1.0)},
            ValueError,
            "kernel Guided is guided by the reward's gradient, .* or restart_at 0",
        ),
    ],
)
def test_errors_name_the_argument(options, error, message):
    with pytest.raises(error, match=message):
        smc(60, **options)
