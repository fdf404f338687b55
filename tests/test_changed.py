"""Objects that change after a program was compiled from them run a new one, and are warned of."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowsde as fs

FLOW = fs.analytic.mixture([0.5, 0.5], [[1.0, 1.0], [-1.0, -1.0]], 0.1).flow()
GRID = fs.grids.uniform(3)
SEARCH = fs.search.bon(nfe=6, kernel=fs.kernels.ddim(fs.interpolants.linear()), grid=GRID)


class Reward:
    def __init__(self, weight):
        self.weight = weight

    def score(self, x, cond):
        return self.weight * x[:, 0]

    def __call__(self, x, cond):
        return self.score(x, cond)


class Model:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, params, x, t, cond):
        return self.scale * x


def run(reward):
    return fs.run(jax.random.key(0), FLOW, SEARCH, reward)


def sample(model):
    flow = fs.Flow.from_callable(model, None, (2,))
    kernel = fs.kernels.ode_euler(fs.interpolants.linear())
    return fs.sample(jax.random.key(0), flow, kernel=kernel, grid=GRID, n=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        lambda one: one.score,
        lambda one: jax.tree_util.Partial(partial(one)),
    ],
)
def test_of_a_reward(given):
    one = Reward(1.0)
    first = given(one)
    run(first)
    run(first)
    one.weight = -1.0
    with pytest.warns(UserWarning, match="reward: the attribute 'weight' of a Reward has changed"):
        found = run(first)
    np.testing.assert_allclose(found.reward, -found.image[0], rtol=1e-6)
    # Once for each object.
    one.weight = -2.0
    found = run(first)
    np.testing.assert_allclose(found.reward, -2.0 * found.image[0], rtol=1e-6)


@pytest.mark.slow
def test_of_a_model_in_sample():
    model = Model(1.0)
    sample(model)
    model.scale = np.float32(2.0)
    with pytest.warns(UserWarning, match="'scale' of a Model has changed since"):
        found = sample(model)
    np.testing.assert_array_equal(found, sample(Model(np.float32(2.0))))


@pytest.mark.slow
def test_arrays_in_the_place_of_others():
    model = Model(jnp.ones((1, 2)))
    sample(model)
    model.scale = jnp.ones((1, 2))
    with pytest.warns(UserWarning, match="'scale' of a Model"):
        sample(model)


@pytest.mark.slow
def test_what_does_not_change_the_program_is_no_reason():
    one = Reward(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(one)
        one.weight = 1.0
        one.kept = "made by the first call"
        run(one)
        run(Reward(-1.0))
