"""Bad input: an error naming the argument, what came and what was expected, before any work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import GRID, SDE, VP

import flowsde as fs

KEY = jax.random.key(0)
ODE = fs.kernels.ode_euler(VP)


def rbf(**changes):
    options = {"nfe": 50, "kernel": SDE, "grid": GRID, "finish_steps": 10}
    return fs.search.rbf(**(options | changes))


def bon(**changes):
    return fs.search.bon(**({"nfe": 50, "kernel": ODE, "grid": GRID} | changes))


@pytest.mark.parametrize("make", [rbf, bon])
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"nfe": 0}, ValueError, "nfe must be an integer of at least 1, got 0"),
        ({"nfe": -3}, ValueError, "nfe must be an integer of at least 1, got -3"),
        ({"nfe": 50.0}, TypeError, "nfe must be an integer, got 50.0"),
        ({"nfe": True}, ValueError, "nfe .* got True"),
        ({"nfe": 3}, ValueError, "nfe .*3|nfe .*-7"),
        ({"width": 0}, ValueError, "width .* at least 1, got 0"),
        ({"width": 1.5}, TypeError, "width must be an integer, got 1.5"),
        ({"kernel": "euler"}, TypeError, "kernel must be .*Kernel, got 'euler'"),
        ({"kernel": None}, TypeError, "kernel must be .*Kernel, got None"),
        ({"kernel": fs.kernels.renoise(VP)}, TypeError, "kernel must be a reverse-time .*Renoise"),
        (
            {"kernel": fs.kernels.ode_heun(VP)},
            ValueError,
            "kernel .*one evaluation.*ODEHeun with 2",
        ),
        ({"grid": [1.0, 0.5, 0.7, 0.0]}, ValueError, "grid must fall strictly, got 0.5 then 0.7"),
        ({"grid": [1.0, 1.0, 0.0]}, ValueError, "grid must fall strictly, got 1.0 then 1.0"),
        ({"grid": [1.0, 0.5]}, ValueError, "grid must run from 1 to 0, got 1.0 to 0.5"),
        ({"grid": [1.0, np.nan, 0.0]}, ValueError, r"grid must lie in \[0, 1\], got nan"),
        ({"grid": [1.5, 0.5, 0.0]}, ValueError, r"grid must lie in \[0, 1\], got 1.5"),
        ({"grid": [1.0]}, ValueError, r"grid must hold at least two times, .*got shape \(1,\)"),
        ({"grid": 10}, ValueError, r"grid must hold at least two times, .*got 10"),
    ],
)
def test_searches(make, changes, error, message):
    with pytest.raises(error, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"chains": 0}, ValueError, "chains .* got 0"),
        ({"seeds": 0}, ValueError, "seeds .* got 0"),
        ({"last": "all"}, ValueError, "last must be 'exhaust' or 'improve', got 'all'"),
        ({"finish": "ode"}, ValueError, "finish must be 'complete', .* or 'mean', got 'ode'"),
        ({"finish_steps": 0}, ValueError, "finish_steps .* got 0"),
        ({"finish_steps": 2.0}, TypeError, "finish_steps must be an integer, got 2.0"),
        ({"finish_steps": 50}, ValueError, "nfe leaves 0 .* expected at least 10"),
        ({"chains": 11}, ValueError, "nfe leaves 40 .* expected at least 55: 11 chains of 1 seeds"),
        ({"kernel": ODE}, ValueError, "kernel ODEEuler is deterministic"),
        ({"kernel": fs.kernels.ddim(VP, eta=0.0)}, ValueError, "kernel DDIM is deterministic"),
    ],
)
def test_rbf(changes, error, message):
    with pytest.raises(error, match=message):
        rbf(**changes)


CALLS = []


def velocity(params, x, t, cond):
    return -x


def reward(images, cond):
    jax.debug.callback(lambda: CALLS.append("reward"))
    return jnp.sum(images, axis=-1)


def flow(fn=velocity):
    return fs.Flow.from_callable(fn, None, (2,))


TWO = {"prompt_ids": [4, 5]}


@pytest.mark.parametrize("go", [fs.run, fs.iterate])
@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ({"flow": velocity}, {}, TypeError, "flow must be a flowsde.Flow, got function"),
        ({"search": "rbf"}, {}, TypeError, "search must be a flowsde.search.Search, got str"),
        ({"reward": 3}, {}, TypeError, "reward must be callable, got 3"),
        (
            {"reward": lambda images, cond: images},
            {},
            ValueError,
            r"reward '<lambda>' returned shape \(\d+, 2\) .* expected shape \(\d+,\)",
        ),
        (
            {"reward": lambda images, cond: jnp.sum(images)},
            {},
            ValueError,
            r"reward '<lambda>' returned shape \(\) .* expected shape",
        ),
        (
            {"reward": lambda images, cond: jnp.argmax(images, axis=-1)},
            {},
            ValueError,
            "reward '<lambda>' returned .*dtype int.* expected .* a floating dtype",
        ),
        (
            {"reward": lambda images, cond: [1.0]},
            {},
            TypeError,
            r"reward '<lambda>' returned \[1.0\], expected an array",
        ),
        (
            {"flow": flow(lambda params, x, t, cond: x[:, :1])},
            {},
            ValueError,
            r"model <lambda> returned shape \(\d+, 1\) .* expected shape \(\d+, 2\)",
        ),
        (
            {"flow": flow(lambda params, x, t, cond: x.astype(jnp.int32))},
            {},
            ValueError,
            "model <lambda> returned .*dtype int32.* a floating dtype",
        ),
        ({}, {"chunk_size": 0}, ValueError, "chunk_size .* got 0"),
        ({}, {"chunk_size": 2.5}, TypeError, "chunk_size must be an integer, got 2.5"),
        ({}, {"prompt_ids": []}, ValueError, "prompt_ids must be at least one integer"),
        ({}, {"prompt_ids": 3}, ValueError, "prompt_ids must be at least one integer.*got 3"),
        ({}, {"prompt_ids": [0.5]}, ValueError, r"prompt_ids .* got \[0.5\]"),
        ({}, {"prompt_ids": [[1, 2]]}, ValueError, r"prompt_ids .* got \[\[1, 2\]\]"),
        ({}, {"prompt_ids": ["a"]}, ValueError, r"prompt_ids .* got \['a'\]"),
        (
            {},
            TWO | {"cond": np.zeros((3, 1), np.float32)},
            ValueError,
            r"cond has a leaf of shape \(3, 1\), expected leading axis len\(prompt_ids\) = 2",
        ),
        ({}, TWO | {"cond": np.float32(1.0)}, ValueError, r"cond has a leaf of shape \(\)"),
        ({}, {"target_reward": np.nan}, ValueError, "target_reward must be .*number.* got nan"),
        ({}, {"target_reward": -np.inf}, ValueError, "target_reward must be .* got -inf"),
        ({}, {"target_reward": "high"}, TypeError, "target_reward must be a number, got 'high'"),
        ({}, {"target_reward": [1.0, 2.0]}, ValueError, "target_reward must be one number"),
        ({}, {"nfe": 51}, ValueError, "nfe must be at most that of the search, 50, got 51"),
        ({}, {"nfe": [50, 40]}, ValueError, r"nfe must be an integer or one for each of 1 prompts"),
        ({}, TWO | {"nfe": [50, 3]}, ValueError, "nfe leaves -7 evaluations for the search"),
        ({}, {"nfe": 40.0}, ValueError, "nfe must be an integer .* got 40.0"),
        ({}, {"invalid": "ignore"}, ValueError, "invalid must be 'error' or 'warn', got 'ignore'"),
    ],
)
def test_runner(go, arguments, options, error, message):
    arguments = {"flow": flow(), "search": rbf(), "reward": reward} | arguments
    CALLS.clear()
    with pytest.raises(error, match=message):
        go(KEY, *arguments.values(), **options)
    assert not CALLS, "the error came after work had begun"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda images, cond: images, r"reward 'score' returned shape \(\d+, 2\)"),
        (lambda images, cond: np.zeros(len(images), int), "reward 'score' returned .*dtype int64"),
        (lambda images, cond: None, r"reward 'score' returned shape \(\) and dtype object"),
    ],
)
def test_host_rewards(fn, message):
    with pytest.raises(fs.rewards.RewardError, match=message + ".*, in round 0"):
        fs.run(KEY, flow(), rbf(), fs.rewards.host(fn, "score"))
    with pytest.raises(TypeError, match=r"fn must be callable.*got 7"):
        fs.rewards.host(7)


class OneNumber(fs.kernels.Kernel):
    """Whose mean is a number, to which the noise of all of x would be added."""

    def moments(self, x, x0, x1, t, s):
        return jnp.sum(x0), jnp.zeros_like(t)


def test_a_mean_of_another_shape_is_named():
    kernel, x = OneNumber(VP), np.ones(3, np.float32)
    grid = fs.grids.uniform(3)
    with pytest.raises(AssertionError, match="the mean of kernel OneNumber is that of one"):
        jax.eval_shape(lambda: kernel(KEY, x, x, x, 0.5, 0.4))
    search = fs.search.bon(nfe=3, kernel=kernel, grid=grid)
    one = np.float32(1.0)
    parent = fs.search.Particle(x, one, x, x, one)
    with pytest.raises(AssertionError, match="the mean of kernel OneNumber is that of one"):
        jax.eval_shape(lambda: search.extend(KEY, parent, jnp.int32(1)))
