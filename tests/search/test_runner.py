"""The runner: `run` against `iterate`, batches, chunks, host rewards, recompilation, memory."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import GRID, SDE, VP, batch, decode, flow, host_reward, reward, row, velocity

import flowsde as fs

runner = importlib.import_module("flowsde.search.run")

KEY = jax.random.key(6)
SEARCH = fs.search.rbf(
    nfe=37, kernel=SDE, grid=GRID, chains=2, seeds=2, width=3, finish_steps=3
)  # completing
BON = fs.search.bon(nfe=31, kernel=fs.kernels.ode_euler(VP), grid=GRID, width=4)
HOST = fs.rewards.host(host_reward)


def same(one, other, size, rtol=1e-6):
    """Counts and times exactly, values to float32 rounding."""
    for name in ("nfe", "verifier_calls"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_allclose(one.t, other.t, rtol=1e-6)
    np.testing.assert_allclose(one.x, other.x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(one.image, other.image, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(one.reward / size, other.reward / size, rtol=rtol, atol=rtol)


@pytest.mark.slow
@pytest.mark.parametrize("search", [SEARCH, BON], ids=["rbf", "bon"])
@pytest.mark.parametrize("target", [None, 0.4])
def test_run_equals_iterate_and_host_rewards_equal_jax_ones(search, target):
    ids, cond = batch(7)
    options = {"cond": cond, "prompt_ids": ids, "target_reward": target, "chunk_size": 5}
    whole = fs.run(KEY, flow(), search, reward, **options)
    rounds = list(fs.iterate(KEY, flow(), search, reward, **options))
    hosted = fs.run(KEY, flow(), search, HOST, **options)
    for other in (rounds[-1], hosted):
        same(whole, other, cond["size"], 1e-6 if other is not hosted else 1e-5)
        np.testing.assert_array_equal(whole.evaluations, other.evaluations)
        for name in ("time", "counted", "charged", "path_time"):
            np.testing.assert_array_equal(getattr(whole.info, name), getattr(other.info, name))
        for name in ("reward", "best_reward", "path_reward"):
            a, b = getattr(whole.info, name), getattr(other.info, name)
            scale = cond["size"].reshape((1, 7) + (1,) * (a.ndim - 2))
            np.testing.assert_allclose(a / scale, b / scale, rtol=1e-5, atol=1e-5)
    # Round r's result is the state after r rounds, and its log has r rows.
    assert [r.info.time.shape[0] for r in rounds] == list(range(1, len(rounds) + 1))
    assert np.all(np.diff([r.nfe.sum() for r in rounds]) >= 0)
    for r in (rounds[0], rounds[len(rounds) // 2]):
        np.testing.assert_array_equal(r.info.charged.sum(axis=0), r.nfe)
        np.testing.assert_array_equal(r.info.best_reward[-1], r.reward)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 3, None])
def test_a_prompt_alone_is_the_prompt_in_a_batch(chunk):
    ids, cond = batch(7)
    together = fs.run(KEY, flow(), SEARCH, reward, cond=cond, prompt_ids=ids, chunk_size=chunk)
    for i in range(7):
        size = cond["size"][i]
        one_cond = row(cond, np.asarray([i]))
        alone = fs.run(KEY, flow(), SEARCH, reward, cond=one_cond, prompt_ids=ids[i : i + 1])
        log, logs = alone.info.path_time, together.info.path_time
        alone = row(alone._replace(info=None, state=None), 0)
        same(alone, row(together._replace(info=None, state=None), i), size, 1e-5)
        np.testing.assert_array_equal(log[:, 0], logs[: len(log), i])


def test_one_prompt_without_ids_is_id_zero_without_an_axis():
    cond = batch(7)[1]
    single = fs.run(KEY, flow(), SEARCH, reward, cond=row(cond, 1))
    listed = fs.run(KEY, flow(), SEARCH, reward, cond=row(cond, np.asarray([1])), prompt_ids=[0])
    assert isinstance(single.nfe, int)
    assert single.x.shape == single.image.shape == (2,)
    assert single.info.time.shape == listed.info.time[:, 0].shape
    same(single, row(listed._replace(info=None, state=None), 0), cond["size"][1])


def test_second_call_neither_traces_nor_compiles():
    traces = {"model": 0, "reward": 0}

    def counted_velocity(params, x, t, cond):
        traces["model"] += 1
        return velocity(params, x, t, cond)

    def counted_reward(scale, images, cond):
        traces["reward"] += 1
        return scale * reward(images, cond)

    def search():  # equal, not the same object
        return fs.search.rbf(
            nfe=31,
            kernel=fs.kernels.euler_maruyama(fs.interpolants.vp(), fs.diffusion.square(3.0)),
            grid=fs.grids.quadratic(5),
            finish="mean",
        )

    def model(scale):
        params = {"scale": jnp.asarray(scale, jnp.float32)}
        return fs.Flow.from_callable(counted_velocity, params, (2,), decode=decode)

    def go(seed, scale, weight, target=None):
        return fs.run(
            jax.random.key(seed),
            model(scale),
            search(),
            jax.tree_util.Partial(counted_reward, jnp.float32(weight)),
            cond=row(batch(7)[1], seed),
            target_reward=target,
        )

    first = go(1, 1.0, 1.0)
    assert traces == {"model": 1, "reward": 1}, "one trace a shape, the check included"
    sizes = runner._run._cache_size(), runner._answer._cache_size()
    second = go(2, 0.5, 2.0)
    go(3, 1.0, 1.0, 0.1)
    assert traces == {"model": 1, "reward": 1}
    assert (runner._run._cache_size(), runner._answer._cache_size()) == sizes
    assert not np.allclose(first.x, second.x)


@pytest.mark.slow
def test_bfloat16_models_and_rewards_leave_the_state_float32():
    low = fs.Flow.from_callable(
        lambda params, x, t, cond: x.astype(jnp.bfloat16), None, (2,), decode=decode
    )
    result = fs.run(
        KEY, low, BON, lambda images, cond: jnp.sum(images, axis=-1).astype(jnp.bfloat16)
    )
    assert {a.dtype for a in (result.x, result.x0, result.t, result.reward)} == {np.dtype("f4")}


@pytest.mark.slow
def test_x64_keeps_the_state_float32():
    with jax.enable_x64(True):
        _, cond = batch(7)
        result = fs.run(KEY, flow(), SEARCH, reward, cond=row(cond, 2))
    for leaf in jax.tree.leaves((result.x, result.x0, result.reward, result.info, result.state)):
        if jax.dtypes.issubdtype(leaf.dtype, np.number):
            assert leaf.dtype in (np.float32, np.int32), leaf.dtype
    plain = fs.run(KEY, flow(), SEARCH, reward, cond=row(cond, 2))
    same(plain, result, cond["size"][2], 1e-5)


@pytest.mark.slow
def test_nothing_valid_warns_and_returns_when_asked_to():
    def nowhere(images, cond):
        return jnp.full(images.shape[0], jnp.nan)

    ids, cond = batch(3)
    options = {"cond": cond, "prompt_ids": ids}
    message = rf"reward 'nowhere' was NaN or -inf for every .* prompt ids {ids.tolist()}".replace(
        "[", r"\["
    ).replace("]", r"\]")
    with pytest.raises(ValueError, match=message):
        fs.run(KEY, flow(), BON, nowhere, **options)
    with pytest.warns(UserWarning, match=message):
        result = fs.run(KEY, flow(), BON, nowhere, invalid="warn", **options)
    assert np.all(np.isneginf(result.reward))
    assert np.all(np.isfinite(result.x))
    with pytest.raises(ValueError, match="reward 'nothing' was NaN"):
        fs.run(
            KEY, flow(), BON, fs.rewards.host(lambda x, c: np.full(len(x), np.nan), "nothing"),
            **options,
        )  # fmt: skip


@pytest.mark.slow
def test_memory_does_not_grow_with_steps(full_optimization):
    """Temporary memory of the compiled run at one budget, 10 and 100 steps, large particles."""
    shape = (64, 64, 3)

    def temporary(steps):
        model = fs.Flow.from_callable(
            lambda params, x, t, cond: params * x, jnp.float32(0.5), shape
        )
        search = fs.search.rbf(
            nfe=400, kernel=SDE, grid=fs.grids.quadratic(steps), chains=1, width=2, finish="mean"
        )
        score = jax.tree_util.Partial(lambda images, cond: jnp.mean(images, axis=(1, 2, 3)))
        arguments = (jax.random.split(KEY, 1), model, search, score, None, jnp.float32(jnp.inf), 2)
        return runner._run.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    particle = 4 * np.prod(shape)
    assert abs(temporary(100) - temporary(10)) < particle
