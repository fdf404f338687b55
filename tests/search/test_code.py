"""CoDe and SVDD against children drawn one by one, and against their simpler twins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from problems import GRID, SDE, VP, batch, flow, reward, row, tools

import flowsde as fs

KEY = jax.random.key(4)
COUNT = 12
STEPS = len(GRID) - 1


def run(search, target=None, count=COUNT):
    ids, cond = batch(count)
    return fs.run(
        KEY, flow(), search, reward, cond=cond, prompt_ids=ids, target_reward=target, invalid="warn"
    )


def quotas_of(search):
    return np.asarray(search.quotas(np.int32(search.nfe)))


def code(nfe, **options):
    return fs.search.code(nfe=nfe, kernel=SDE, grid=GRID, finish="mean", **options)


def svdd(nfe, **options):
    return fs.search.svdd(nfe=nfe, kernel=SDE, grid=GRID, finish="mean", **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    "search",
    [
        svdd(31, chains=2),
        code(31, chains=2, block=2),
        code(47, chains=3, block=3),
        code(22, chains=1, block=STEPS),
    ],
    ids=["svdd", "blocks", "uneven", "whole"],
)
def test_equals_children_drawn_one_by_one(search):
    ids, cond = batch(COUNT)
    result = run(search)
    for i in range(COUNT):
        finished, charged = reference.code(search, KEY, int(ids[i]), row(cond, i), *tools())
        best = max(finished, key=lambda p: p.reward)
        assert result.nfe[i] == charged <= search.nfe
        size = cond["size"][i]
        np.testing.assert_allclose(
            result.reward[i] / size, best.reward / size, rtol=2e-5, atol=2e-5
        )
        np.testing.assert_allclose(result.x[i], best.x, rtol=1e-4, atol=1e-4)
    again = reward(result.image, cond)
    np.testing.assert_allclose(result.reward / cond["size"], again / cond["size"], atol=1e-5)
    quotas = quotas_of(search)
    ends = sum(quotas[:, i].sum() for i in range(search.block, STEPS - 1, search.block))
    np.testing.assert_array_equal(result.verifier_calls, ends + quotas[:, -1].sum())


@pytest.mark.parametrize("nfe", [10, 11, 15, 31, 58])
@pytest.mark.parametrize("block", [1, 2, 3, 4, 9])
def test_budget_is_used_but_for_less_than_a_child(nfe, block):
    search = code(nfe, chains=2, block=block)
    quotas = quotas_of(search)
    assert np.all(quotas >= 1) and quotas.max() == search.n_children
    assert quotas[:, 0].tolist() == [1, 1], "nothing is spent on copies of the start"
    unused = nfe - quotas.sum()
    assert 0 <= unused < search.chains * min(block, STEPS - 1)
    if block == 1:
        assert unused == 0


@pytest.mark.slow
def test_children_are_drawn_by_the_softmax_of_their_rewards():
    search = svdd(31, temperature=0.5)
    rewards = jnp.asarray([0.1, -jnp.inf, 0.4, -0.6, 0.4], jnp.float32)
    keys = jax.random.split(KEY, 20_000)
    zero = jnp.zeros((), jnp.int32)
    select = jax.jit(jax.vmap(search._select, (0, None, None, None)))
    picked = np.bincount(select(keys, zero, zero, rewards), minlength=5) / len(keys)
    expected = np.exp(np.asarray(rewards) / 0.5)
    expected /= expected.sum()
    error = np.sqrt(expected * (1 - expected) / len(keys))
    assert picked[1] == 0
    np.testing.assert_array_less(np.abs(picked - expected), 4.5 * error + 1e-9)
    for extreme in (1e6, 1e30, jnp.inf):
        only = jnp.asarray([0.0, -extreme, 0.0, extreme, -jnp.inf], jnp.float32)
        assert np.all(select(keys[:50], zero, zero, only) == 3)


@pytest.mark.slow
def test_stops_at_a_target_after_a_whole_block():
    search = svdd(31)
    full, early = run(search), run(search, target=0.3)
    met = np.asarray(early.reward) >= 0.3
    assert met.any() and (early.nfe[met] < full.nfe[met]).any()
    np.testing.assert_array_equal(early.nfe[~met], full.nfe[~met])
    assert set(np.asarray(early.nfe)) <= set(np.cumsum(quotas_of(search).sum(0)))


def test_a_deterministic_kernel_is_refused():
    with pytest.raises(ValueError, match="ODEEuler is deterministic, so all children"):
        fs.search.svdd(nfe=40, kernel=fs.kernels.ode_euler(VP), grid=GRID)
