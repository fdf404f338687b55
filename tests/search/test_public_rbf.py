"""`allocation="reserve"` is the public code's rule: the same noise gives the same answer.

The rule is written again here in plain Python and float64, with the mixture's posterior mean, the
VP path and the Euler-Maruyama step in closed form: only the noise is the library's.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowsde as fs

KEY = jax.random.key(8)
RUNS, STEPS = 24, 10
CENTRES, VARIANCE = np.asarray([[1.0, -0.5], [-0.8, 0.7], [0.3, 1.2]]), 0.05
VP = fs.interpolants.vp()
SDE = fs.kernels.euler_maruyama(VP, fs.diffusion.square(3.0))


def reward(images, cond):
    return jnp.sin(7.0 * images[:, 0]) - jnp.square(images[:, 1])


def evaluate(x, s):
    """A particle, its posterior means and its reward."""
    exponent = 0.5 * s**2 * (20.0 - 0.1) + s * 0.1
    alpha, sigma = np.exp(-0.5 * exponent), np.sqrt(-np.expm1(-exponent))
    total = alpha**2 * VARIANCE + sigma**2
    apart = x - alpha * CENTRES
    likely = np.exp(-0.5 * np.sum(apart**2, axis=1) / total)
    means = CENTRES + alpha * VARIANCE / total * apart
    x0 = likely @ means / likely.sum()
    rate = s * (20.0 - 0.1) + 0.1
    x1 = (x - alpha * x0) / sigma
    velocity = -0.5 * rate * alpha * x0 + 0.5 * rate * alpha**2 / sigma * x1
    value = np.sin(7.0 * x0[0]) - x0[1] ** 2
    return types.SimpleNamespace(x=x, s=s, x0=x0, velocity=velocity, score=-x1 / sigma, r=value)


def move(parent, s, noise):
    g, step = 3.0 * parent.s**2, parent.s - s
    drift = parent.velocity - 0.5 * g**2 * parent.score
    return evaluate(parent.x - step * drift + g * np.sqrt(step) * noise, s)


def public_code(noise, nfe, chains, seeds):
    """(answer, evaluations); noise[c, i, j] is of draw j of chain c at time i."""
    times = np.sqrt(1.0 - (np.arange(STEPS) / STEPS) ** 2)
    quota = int((nfe - seeds * chains) / (STEPS * chains))
    state = []
    for c in range(chains):
        start = max((evaluate(x, 1.0) for x in noise[c, 0, :seeds]), key=lambda p: p.r)
        state.append([start, start.r, 0, quota, []])
    spent = seeds * chains
    while spent + chains < nfe:
        spent += chains
        for c, (parent, record, at, budget, children) in enumerate(state):
            child = move(parent, times[at + 1], noise[c, at + 1, len(children)])
            children.append(child)
            best = max(children, key=lambda p: p.r)
            state[c][1] = max(record, child.r)
            # Commits stop two steps before the end.
            if at == STEPS - 2 or (child.r <= record and len(children) < budget):
                continue
            chosen = child if child.r > record else best
            state[c] = [chosen, state[c][1], at + 1, quota + budget - len(children), []]
    return max((max(s[4], key=lambda p: p.r) for s in state), key=lambda p: p.r), spent


@functools.cache
def all_noise(chains, draws):
    """The library's, float64 [RUNS, chains, STEPS, draws, 2]."""

    def one(*ids):
        key = KEY
        for i in ids:
            key = jax.random.fold_in(key, i)
        return jax.random.normal(key, (2,), jnp.float32)

    ranges = (jnp.arange(n, dtype=jnp.int32) for n in (RUNS, chains, STEPS, draws))
    ids = jnp.meshgrid(*ranges, indexing="ij")
    drawn = jax.jit(jax.vmap(one))(*(i.reshape(-1) for i in ids))
    return np.asarray(drawn, np.float64).reshape(RUNS, chains, STEPS, draws, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("nfe", "chains", "seeds", "width"),
    [(100, 2, 25, 1), (97, 3, 4, 5)],
)
def test_every_seed_has_the_public_codes_answer(nfe, chains, seeds, width):
    search = fs.search.rbf(
        nfe=nfe, kernel=SDE, grid=fs.grids.quadratic(STEPS), chains=chains, seeds=seeds,
        width=width, allocation="reserve", finish="mean",
    )  # fmt: skip
    data = fs.analytic.mixture(np.ones(3), CENTRES, VARIANCE)
    result = fs.run(
        KEY, data.flow(), search, reward, cond=np.zeros(RUNS, np.float32),
        prompt_ids=np.arange(RUNS),
    )  # fmt: skip
    noise = all_noise(chains, nfe // chains)
    for i in range(RUNS):
        answer, spent = public_code(noise[i], nfe, chains, seeds)
        assert int(result.nfe[i]) == spent
        np.testing.assert_allclose(result.x0[i], answer.x0, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(result.reward[i], answer.r, rtol=1e-4, atol=1e-4)
        assert float(result.t[i]) == np.float32(fs.grids.quadratic(STEPS)[-2])


@pytest.mark.parametrize(
    ("nfe", "moves", "last"),
    # The published setting, and what it is for smaller budgets and for the smallest.
    [(500, 22, 48), (100, 2, 8), (70, 1, 1)],
)
def test_quotas_of_the_public_code(nfe, moves, last):
    search = fs.search.rbf(
        nfe=nfe, kernel=SDE, grid=fs.grids.quadratic(STEPS), seeds=25, allocation="reserve",
        finish="mean",
    )  # fmt: skip
    expected = [25, *[moves] * (STEPS - 2), last]
    np.testing.assert_array_equal(search.quotas(np.int32(nfe)), [expected] * 2)


def test_what_reserves_nothing_is_refused():
    def search(nfe, grid):
        return fs.search.rbf(
            nfe=nfe, kernel=SDE, grid=grid, seeds=25, allocation="reserve", finish_steps=10
        )

    with pytest.raises(ValueError, match="nfe leaves 69 .* at least 70: 2 chains of 25 seeds and"):
        search(79, fs.grids.quadratic(STEPS))
    with pytest.raises(ValueError, match="allocation 'reserve' needs a grid of at least 2 steps"):
        search(100, [1.0, 0.0])
    with pytest.raises(ValueError, match="allocation must be 'even' or 'reserve', got 'most'"):
        fs.search.rbf(nfe=100, kernel=SDE, grid=fs.grids.quadratic(STEPS), allocation="most")
