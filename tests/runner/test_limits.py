"""Methods at the limits where they are simpler ones: the same particles, bit for bit.

Against paths that a program of another shape draws, to float32 rounding.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import GRID, SDE, batch, flow, reward, row

import flowsde as fs
from flowsde.search.grid import fold_in_ids

KEY = jax.random.key(4)
STEPS = len(GRID) - 1
PROMPTS = 12
MEAN = {"kernel": SDE, "grid": GRID, "finish": "mean"}


def run(search, judge=reward):
    ids, cond = batch(PROMPTS)
    return fs.run(KEY, flow(), search, judge, cond=cond, prompt_ids=ids, invalid="warn").state


@pytest.mark.slow
def test_one_child_of_svdd_and_of_code_is_quota_one_of_rbf():
    plain = run(fs.search.rbf(nfe=2 * STEPS, **MEAN)).chains.parent
    for one in (fs.search.svdd(nfe=2 * STEPS, **MEAN), fs.search.code(nfe=2 * STEPS, **MEAN)):
        np.testing.assert_array_equal(run(one).parents.x, plain.x)
    # Both are steps of the kernel, one after the other.
    children = follow(fs.search.rbf(nfe=2 * STEPS, **MEAN), chains=2, children=1)
    np.testing.assert_allclose(children[:, :, 0], plain.x, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_smc_with_a_constant_reward_is_best_of_n_of_the_sde():
    def constant(images, cond):
        return jnp.full(images.shape[0], 0.5, jnp.float32)

    n = 5
    weighted = run(fs.search.smc(nfe=n * STEPS, **MEAN), constant)
    samples = run(fs.search.bon(nfe=n * STEPS, kernel=SDE, grid=GRID, width=n), constant)
    np.testing.assert_array_equal(weighted.particles.x, samples.particles.x)
    np.testing.assert_array_equal(weighted.log_weights, np.full((PROMPTS, n), np.float32(5.0)))
    np.testing.assert_array_equal(weighted.log_z, 0.0)


@pytest.mark.slow
def test_code_in_one_block_is_best_of_k_paths_from_one_start():
    search = fs.search.code(nfe=1 + 6 * (STEPS - 1), chains=1, block=STEPS, **MEAN)
    assert search.n_children == 6
    state = run(search)
    # The first of the paths is that of SVDD with one child, the others differ in their draws alone.
    alone = run(fs.search.svdd(nfe=STEPS, chains=1, **MEAN))
    np.testing.assert_array_equal(state.children.x[:, 0, 0], alone.parents.x[:, 0])
    paths = follow(search, chains=1, children=6)
    np.testing.assert_allclose(state.children.x, paths, rtol=1e-4, atol=1e-5)
    best = np.argmax(state.children.reward[:, 0], axis=1)
    winners = np.asarray(state.children.x)[np.arange(PROMPTS), 0, best]
    np.testing.assert_array_equal(state.champion.x, winners)


def follow(search, chains, children):
    """x at the last time [P, chains, children] of paths that the kernel draws on its own."""
    ids, cond = batch(PROMPTS)
    shape = (PROMPTS, chains, children)
    prompt, c, j = (i.reshape(-1).astype(np.int32) for i in np.indices(shape))

    @jax.jit
    def paths(flow, keys, cond, times):
        def draw(step):
            return jax.vmap(lambda key, c, j: fold_in_ids(key, c, step, j))(
                keys, c, jnp.where(step > 0, j, 0)
            )

        def move(step, x):
            t, s = (jnp.full(len(x), times[i], jnp.float32) for i in (step - 1, step))
            x0, x1 = flow.means(x, t, cond, SDE.interpolant)
            return jax.vmap(SDE)(draw(step), x, x0, x1, t, s)

        noise = jax.vmap(lambda key: jax.random.normal(key, (2,), jnp.float32))
        start = SDE.interpolant.radius(jnp.ones((), jnp.float32)) * noise(draw(jnp.int32(0)))
        return jax.lax.fori_loop(jnp.int32(1), jnp.int32(STEPS), move, start)

    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.asarray(ids[prompt], jnp.uint32))
    return np.asarray(paths(flow(), keys, row(cond, prompt), jnp.float32(GRID))).reshape(*shape, 2)


def test_svdd_is_code_in_blocks_of_one_step():
    for options in ({}, {"temperature": 0.3, "chains": 3}):
        one = fs.search.svdd(nfe=50, **MEAN, **options)
        other = fs.search.code(nfe=50, block=1, **MEAN, **options)
        assert one == other and hash(one) == hash(other)
