"""The runner: one prompt, low precision, no valid reward, memory; see also `test_every_method`."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import GRID, SDE, VP, batch, decode, flow, host_reward, reward, row
from quick import slow

import flowsde as fs

programs = importlib.import_module("flowsde.runner.rounds")
records = importlib.import_module("flowsde.runner.records")

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


@pytest.mark.parametrize("search", [pytest.param(BON, id="bon"), slow(SEARCH, id="rbf")])
def test_one_prompt_without_ids_is_id_zero_without_an_axis(search):
    cond = batch(7)[1]
    single = fs.run(KEY, flow(), search, reward, cond=row(cond, 1))
    listed = fs.run(KEY, flow(), search, reward, cond=row(cond, np.asarray([1])), prompt_ids=[0])
    assert isinstance(single.nfe, int)
    assert single.x.shape == single.image.shape == (2,)
    assert single.info.time.shape == listed.info.time[:, 0].shape
    same(single, row(listed._replace(info=None, state=None), 0), cond["size"][1])


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
        carry = programs.start(
            jax.random.split(KEY, 1), jnp.full(1, search.nfe, jnp.int32), jnp.float32(jnp.inf),
            records.Program(search), shape=shape,
        )  # fmt: skip
        given = records.Model(model, fs.rewards.device(score), None)
        arguments = (carry, given, records.Program(search), records.Sizes(2, 2, 2))
        return programs.run_rounds.lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    particle = 4 * np.prod(shape)
    assert abs(temporary(100) - temporary(10)) < particle
