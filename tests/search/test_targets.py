"""What meets a target: pictures, and means of the last time; means above it only if asked for.

Of data at +1 and -1, the posterior mean at high noise is near 0, where no picture is.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowsde as fs
from flowsde.search import Complete

DATA = fs.analytic.mixture([0.5, 0.5], [[1.0, 1.0], [-1.0, -1.0]], 1e-4)
KERNEL = fs.kernels.ddim(fs.interpolants.vp())
GRID = (1.0, 0.85, 0.7, 0.5, 0.3, 0.15, 0.05, 0.0)
TARGET, NFE = -0.5, 60
METHODS = {
    "svdd": {},
    "rbf": {},
    "code": {"block": 1},
    "smc": {"temperature": 0.5},
    "sop": {"start": 1, "forward": 1, "backward": 2},
    "dfs": {"bar": 0.0},
    "psi": {"temperature": 0.5},
    "epsilon_greedy": {},
}


def between(images, cond):
    """-2 of every picture and 0 of their mean."""
    return -jnp.sum(jnp.square(images), axis=-1)


def go(method, finish):
    make = getattr(fs.search, method)
    search = make(nfe=NFE, kernel=KERNEL, grid=GRID, finish=finish, **METHODS[method])
    result = fs.run(jax.random.key(3), DATA.flow(), search, between, target_reward=TARGET)
    return search, result


@pytest.mark.slow_but_one
@pytest.mark.parametrize("method", METHODS)
def test_no_mean_that_is_finished_yet_meets_a_target(method):
    search, result = go(method, "complete")
    assert isinstance(search, Complete)
    reached = result.info.counted & (result.info.reward >= TARGET)
    assert np.any(reached), "means at high noise are what this is about"
    assert result.t <= GRID[-2] and abs(result.reward + 2.0) < 0.1
    np.testing.assert_allclose(np.abs(result.image), 1.0, atol=0.1)
    assert result.nfe >= 0.9 * NFE


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_mean_that_is_the_answer_meets_it(method):
    result = go(method, "mean")[1]
    assert result.reward >= TARGET and result.t > GRID[-2]
    assert result.nfe < NFE


DRAFTS = {"lidar": {"draft_steps": 3, "trajectories": 1}, "halving": {"draft_steps": 3}}


@pytest.mark.slow
@pytest.mark.parametrize("method", DRAFTS)
def test_no_mean_that_guides_a_draft_meets_a_target(method):
    kernel = fs.kernels.guided(KERNEL, temperature=5.0)
    make = getattr(fs.search, method)
    search = make(nfe=NFE, kernel=kernel, grid=GRID, **DRAFTS[method])
    result = fs.run(jax.random.key(3), DATA.flow(), search, between, target_reward=TARGET)
    reached = result.info.counted & (result.info.reward >= TARGET)
    assert np.any(reached), "means at high noise are what this is about"
    assert result.t <= GRID[-2]


def stopped(search):
    """State after two rounds, and that in which finishing, told to begin there, has ended."""
    flow = DATA.flow()
    _, second, *_ = fs.iterate(jax.random.key(3), flow, search, between)
    state = search.with_stop(second.state, jnp.asarray(True))
    rounds = 0
    while not search.done(state):
        state, asked = search.ask(state)
        x0, x1 = flow.means(asked.x, asked.t, None, search.interpolant)
        told = jnp.where(asked.wants_reward, between(x0, None), -jnp.inf)
        state, _ = search.tell(state, asked, fs.search.Evaluation(x0, x1, told))
        rounds += 1
    return second.state, state, rounds


@pytest.mark.slow
def test_stopped_early_the_answer_is_the_picture_and_not_the_mean():
    search = fs.search.svdd(nfe=NFE, kernel=KERNEL, grid=GRID)
    before, state, rounds = stopped(search)
    mean = search.inner.best(before.inner)
    assert mean.t == np.float32(GRID[1]) and mean.reward >= TARGET
    assert rounds == search.steps
    np.testing.assert_allclose(np.abs(search.best(state).x0), 1.0, atol=0.1)
    assert abs(search.best(state).reward + 2.0) < 0.1


@pytest.mark.slow
def test_stopped_early_no_mean_is_kept_beside_the_picture():
    search = fs.search.keep(fs.search.svdd(nfe=NFE, kernel=KERNEL, grid=GRID), 3)
    before, state, _ = stopped(search)
    assert np.all(before.kept.reward >= TARGET)
    answer, kept = search.best(state), state.kept
    assert kept.reward[0] == answer.reward and kept.t[0] == answer.t < GRID[-2]
    np.testing.assert_array_equal(kept.reward[1:], -np.inf)
