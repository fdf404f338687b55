"""A function that is written anew at each call is warned of, once; other functions are not."""

import gc
import warnings
import weakref

import jax
import jax.numpy as jnp
import pytest

import flowsde as fs
from flowsde import fresh

KEY = jax.random.key(0)
ODE = fs.kernels.ode_euler(fs.interpolants.linear())
SEARCH = fs.search.bon(nfe=2, kernel=ODE, grid=fs.grids.uniform(2))


def velocity(params, x, t, cond):
    return -x


def reward(images, cond):
    return images[:, 0]


FLOW = fs.Flow.from_callable(velocity, None, (2,))


def searching(diffusion):
    kernel = fs.kernels.euler_maruyama(fs.interpolants.linear(), diffusion)
    return fs.search.svdd(nfe=4, kernel=kernel, grid=fs.grids.uniform(2), finish="mean")


def go(flow=FLOW, reward=reward, how=fs.iterate, search=SEARCH):
    """Checked at the call; no round is run unless by `run`."""
    return how(KEY, flow, search, reward)


def scaled(scale):
    return lambda images, cond: scale * images[:, 0]


def test_a_lambda_in_a_loop_is_warned_of_once_with_its_name_and_the_users_line():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(4):
            go(reward=lambda images, cond: jnp.sum(images, axis=-1))
    (warning,) = caught
    assert str(warning.message).startswith("reward is a new function at each call, ")
    assert f"{__file__}:" in str(warning.message) and warning.filename == __file__


@pytest.mark.slow_but_one
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("flow", lambda: go(fs.Flow.from_callable(lambda p, x, t, c: x, None, (2,)))),
        ("flow", lambda: go(fs.Flow.from_callable(lambda x: x, None, (2,), call="x"))),
        (
            "flow",
            lambda: fs.sample(
                KEY,
                fs.Flow.from_callable(lambda p, x, t, c: x, None, (2,)),
                kernel=ODE,
                grid=[1.0, 0.0],
                n=1,
            ),
        ),
        (
            "decode",
            lambda: go(fs.Flow.from_callable(velocity, None, (2,), decode=lambda x: 2.0 * x)),
        ),
        ("reward", lambda: go(reward=scaled(2.0), how=fs.run)),
        ("reward", lambda: go(reward=jax.jit(lambda images, cond: images[:, 1]))),
        ("search", lambda: go(search=searching(lambda p, t: 2.0 * t))),
        ("reward", lambda: go(reward=fs.rewards.device(lambda images, cond: images[:, 1]))),
        ("reward", lambda: go(reward=jax.tree_util.Partial(lambda a, x, c: a * x[:, 0], 2.0))),
    ],
)
def test_every_argument_that_is_compiled(name, call):
    call()
    with pytest.warns(UserWarning, match=f"^{name} is a new function"):
        call()
    call()


def test_functions_that_differ_are_not_warned_of():
    """By what they close over or by their defaults; nor is the same one, or one outside JAX."""
    for scale in (1.0, 2.0, 3.0):
        go(reward=scaled(scale))
        go(reward=lambda images, cond, scale=scale: scale * images[:, 0])
        go(reward=fs.rewards.host(lambda images, cond: images[:, 0]))
        go()


def test_the_same_text_in_two_files_is_two_functions():
    for file in ("a.py", "b.py"):
        go(reward=eval(compile("lambda images, cond: images[:, 0]", file, "eval")))


def test_little_is_remembered():
    """No function is kept alive, and no more codes than a bound."""
    fn = scaled(5.0)
    fresh.warn_if_written_anew(2, reward=fn)
    gone = weakref.ref(fn)
    del fn
    gc.collect()
    assert gone() is None
    for i in range(2 * fresh._MOST):
        fresh.warn_if_written_anew(2, reward=eval(f"lambda images, cond: {i}"))
    assert len(fresh._seen) <= fresh._MOST
