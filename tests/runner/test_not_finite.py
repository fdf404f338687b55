"""Models, decoders and rewards that give NaN, infinity or too large numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowsde as fs

KEY = jax.random.key(0)
LINEAR = fs.interpolants.linear()
KERNEL = fs.kernels.ddim(LINEAR)
GRID = fs.grids.uniform(3)
BON = fs.search.bon(nfe=12, kernel=fs.kernels.ode_euler(LINEAR), grid=GRID, width=2)
RBF = fs.search.rbf(nfe=14, kernel=KERNEL, grid=GRID, finish_steps=2)
MOST = np.finfo(np.float32).max


def scaled(params, x, t, cond):
    return params * x


def flow_of(scale, **options):
    return fs.Flow.from_callable(scaled, jnp.float32(scale), (2,), **options)


def blind(images, cond):
    """Does not look."""
    return jnp.zeros(images.shape[0], jnp.float32)


BLIND_HOST = fs.rewards.host(lambda images, cond: np.zeros(len(images), np.float32), "blind")


def last(results):
    return list(results)[-1]


def packed(key, flow, search, reward, **options):
    [(_, result)] = fs.batch(key, flow, search, reward, prompt_ids=[0], batch_size=3, **options)
    return result


WAYS = {
    "run": fs.run,
    "iterate": lambda *args, **options: last(fs.iterate(*args, **options)),
    "batch": packed,
}


@pytest.mark.slow
@pytest.mark.parametrize("reward", [blind, BLIND_HOST], ids=["device", "host"])
@pytest.mark.parametrize("go", WAYS.values(), ids=WAYS)
def test_a_model_that_is_not_finite_is_an_error(go, reward):
    with pytest.raises(ValueError, match=r"velocity_fn is not finite: 2 of 2 .* prompt ids \[0\]"):
        go(KEY, flow_of(np.nan), BON, reward)


def to_bytes(x0):
    return jnp.clip(x0, 0.0, 1.0).astype(jnp.uint8)


@pytest.mark.slow
def test_numbers_that_overflow_are_an_error_also_where_images_are_integers():
    """x grows 3e19 times a step: infinite in the third, of which bytes show nothing."""
    for decode in (None, to_bytes):
        with pytest.raises(ValueError, match="velocity_fn is not finite"):
            fs.run(KEY, flow_of(-1e20, decode=decode), BON, blind)


@pytest.mark.slow
@pytest.mark.parametrize("go", WAYS.values(), ids=WAYS)
def test_a_decoder_that_is_not_finite_is_an_error(go):
    flow = flow_of(0.0, decode=lambda x0: x0 / jnp.zeros_like(x0))
    with pytest.raises(ValueError, match=r"decode is not finite: 2 of 2 values of the image"):
        go(KEY, flow, BON, blind)


@pytest.mark.slow
def test_of_many_prompts_those_without_a_picture_are_named():
    flow = fs.Flow.from_callable(lambda params, x, t, cond: cond * x, None, (2,))
    go = partial(fs.run, KEY, flow, BON, blind, prompt_ids=[7, 8, 9])
    cond = np.array([[1.0], [np.nan], [1.0]], np.float32)
    with pytest.raises(ValueError, match=r"velocity_fn is not finite: 2 of 2 .*prompt ids \[8\]"):
        go(cond=cond)
    with pytest.warns(UserWarning, match=r"velocity_fn is not finite.* prompt ids \[8\]"):
        found = go(cond=cond, invalid="warn")
    np.testing.assert_array_equal(np.isfinite(found.image).all(1), [True, False, True])
    np.testing.assert_array_equal(np.isneginf(found.reward), [False, True, False])


def holes(params, x, t, cond):
    """NaN in the half plane of larger numbers."""
    return jnp.where(x[:, :1] > 0.0, jnp.nan, 0.5 * x)


def fond_of_holes(images, cond):
    return jnp.where(jnp.isnan(images[:, 0]), 9.0, images[:, 1])


FOND_HOST = fs.rewards.host(lambda images, cond: np.asarray(fond_of_holes(images, cond)), "fond")


@pytest.mark.slow
@pytest.mark.parametrize("reward", [fond_of_holes, FOND_HOST], ids=["device", "host"])
@pytest.mark.parametrize("search", [BON, RBF], ids=["bon", "rbf"])
def test_a_picture_of_nan_is_never_the_answer_while_there_is_another(search, reward):
    flow = fs.Flow.from_callable(holes, None, (2,))
    for go in (fs.run, packed) if search is BON else (fs.run,):
        found = go(KEY, flow, search, reward)
        assert np.isfinite(found.image).all() and found.image[1] == np.float32(found.reward)


def sample(flow, **options):
    return fs.sample(KEY, flow, kernel=KERNEL, grid=GRID, n=4, **options)


@pytest.mark.slow
def test_particles_that_are_not_finite_are_an_error():
    with pytest.raises(ValueError, match="4 of 4 particles are NaN or infinite: velocity_fn"):
        sample(flow_of(np.nan))
    flow = fs.Flow.from_callable(lambda params, x, t, cond: cond * x, None, (2,))
    with pytest.raises(ValueError, match="1 of 4 particles are NaN or infinite"):
        sample(flow, cond=np.array([[1.0], [np.inf], [1.0], [1.0]], np.float32), chunk_size=2)


@pytest.mark.slow
def test_traced_particles_are_not_looked_at():
    assert np.isnan(jax.jit(sample)(flow_of(np.nan))).all()
    keys = jax.random.split(KEY, 2)
    drawn = jax.vmap(lambda key: fs.sample(key, flow_of(1.0), kernel=KERNEL, grid=GRID, n=2))(keys)
    assert drawn.shape == (2, 2, 2)
    slope = jax.grad(lambda flow: jnp.sum(sample(flow)))(flow_of(0.5))
    assert np.isfinite(slope.params)


def large(value):
    """`value` in the upper half plane, below it numbers."""

    def score(images, cond):
        return np.where(images[:, 1] > 0.0, np.float64(value), images[:, 1].astype(np.float64))

    return fs.rewards.host(score, "large")


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.inf, 1e300])
def test_an_infinite_reward_is_the_largest_and_does_not_stop_a_search(value):
    found = fs.run(KEY, flow_of(0.5), BON, large(value))
    assert found.nfe == 12 and found.reward == MOST and found.image[1] > 0.0

    def score(images, cond):
        return jnp.where(images[:, 1] > 0.0, jnp.inf, images[:, 1])

    if value == np.inf:
        found = fs.run(KEY, flow_of(0.5), BON, score)
        assert found.nfe == 12 and found.reward == MOST
        stopped = fs.run(KEY, flow_of(0.5), BON, score, target_reward=1e300)
        assert stopped.nfe < 12 and stopped.reward == MOST


@pytest.mark.slow
def test_very_low_numbers_are_rewards():
    low = fs.rewards.host(lambda images, cond: np.full(len(images), -1e300), "low")
    assert fs.run(KEY, flow_of(0.5), BON, low).reward == -MOST
    none = fs.rewards.host(lambda images, cond: np.full(len(images), -np.inf), "none")
    with pytest.raises(ValueError, match="reward 'none' was NaN or -inf for every candidate"):
        fs.run(KEY, flow_of(0.5), BON, none)


@pytest.mark.slow
@pytest.mark.parametrize("potential", ["difference", "max", "sum"])
def test_weights_of_extreme_rewards_are_numbers(potential):
    """A particle of the largest reward wins over those of the lowest."""
    search = fs.search.smc(
        nfe=12, kernel=KERNEL, grid=GRID, temperature=0.01, potential=potential, finish="mean"
    )

    def score(images, cond):
        return jnp.where(images[:, 1] > 0.0, jnp.inf, jnp.float32(-MOST))

    found = fs.run(KEY, flow_of(0.5), search, score)
    assert not np.isnan(found.state.log_weights).any()
    assert found.reward == MOST


def raises_oddly(images, cond):
    class Odd(Exception):
        def __str__(self):
            raise TypeError

    raise Odd


def strict(images, cond):
    np.seterr(all="raise")
    return np.full(len(images), 1e-300)


@pytest.mark.slow
def test_host_rewards_that_do_odd_things():
    with pytest.raises(fs.rewards.RewardError, match="reward 'odd' raised Odd, in round 2"):
        fs.run(KEY, flow_of(0.5), BON, fs.rewards.host(raises_oddly, "odd"))
    with np.errstate():
        assert fs.run(KEY, flow_of(0.5), BON, fs.rewards.host(strict)).reward == 0.0
