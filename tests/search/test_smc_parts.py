"""Parts of SMC: the weight of a guided proposal, shares of tempering, the counts of a funnel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowsde as fs
from flowsde.search import Particle
from flowsde.search.smc import funnel, tempering
from flowsde.search.smc.weights import log_ratio

VP = fs.interpolants.vp()
EULER = fs.kernels.euler_maruyama(VP, fs.diffusion.square(1.5))


def parent(d, t):
    """A particle of d values with a gradient, at time t."""
    x, x0, x1, gradient = np.random.default_rng(d).normal(size=(4, d)).astype(np.float32)
    return Particle(x, jnp.float32(t), x0, x1, jnp.float32(0.0), gradient)


@pytest.mark.slow
def test_weight_of_a_guided_draw_is_its_closed_form():
    """- a . e - |a|^2 / 2 of the draw m + v (a + e), a = v gradient / beta, at a picture's size."""
    of = parent(20_000, 0.6)
    kernel, s = fs.kernels.guided(EULER, temperature=0.3), jnp.float32(0.55)
    mean, std = EULER.moments(of.x, of.x0, of.x1, of.t, s)
    v, e = float(std), np.random.default_rng(0).normal(size=of.x.size)
    a = v * of.gradient.astype(np.float64) / 0.3
    x = np.asarray(mean, np.float64) + v * (a + e)
    expected = -a @ e - 0.5 * a @ a
    found = float(log_ratio(kernel, jnp.asarray(x, jnp.float32), of, s))
    assert found == pytest.approx(expected, abs=2e-5 * abs(expected))


@pytest.mark.slow
def test_weights_of_draws_average_to_one():
    """E_q[p / q] = 1, whatever the gradient."""
    of, s = parent(2, 0.6), jnp.float32(0.5)
    kernel = fs.kernels.guided(EULER, temperature=1.5)
    keys = jax.random.split(jax.random.key(0), 100_000)

    def weight(key):
        x = kernel(key, of.x, of.x0, of.x1, of.t, s, of.gradient)
        return jnp.exp(log_ratio(kernel, x, of, s))

    weights = np.asarray(jax.jit(jax.vmap(weight))(keys), np.float64)
    assert abs(weights.mean() - 1.0) < 4.0 * weights.std() / len(keys) ** 0.5
    assert weights.std() > 0.05


@pytest.mark.slow
def test_without_noise_nothing_is_owed():
    """DDIM to t = 0: both are the same point."""
    of = parent(3, 0.4)
    kernel = fs.kernels.guided(fs.kernels.ddim(fs.interpolants.linear()), temperature=0.3)
    x = kernel(jax.random.key(0), of.x, of.x0, of.x1, of.t, jnp.float32(0.0), of.gradient)
    assert float(log_ratio(kernel, x, of, jnp.float32(0.0))) == 0.0


@pytest.mark.slow
def test_extreme_gradients_leave_numbers():
    """A draw that is moved out of float32 has weight 0; if all are, that step weighs nothing."""
    of, s = parent(3, 0.6), jnp.float32(0.5)
    kernel = fs.kernels.guided(EULER, temperature=1e-30)
    far = of._replace(gradient=jnp.full(3, 1e30, jnp.float32))
    x = kernel(jax.random.key(0), far.x, far.x0, far.x1, far.t, s, far.gradient)
    assert not np.isfinite(x).any() and float(log_ratio(kernel, x, far, s)) == -np.inf
    search = fs.search.smc(nfe=16, kernel=kernel, grid=fs.grids.uniform(4), finish="mean")
    state = search.init(jax.random.key(0), (3,), jnp.float32(jnp.inf), jnp.int32(16))
    rewards = jnp.log(jnp.asarray([1.0, 2.0, 3.0, 4.0], jnp.float32)) / 10.0
    for ratio, wanted in (
        ([0.0, -np.inf, 0.0, 0.0], np.asarray([1.0, 0.0, 3.0, 4.0]) / 8.0),
        ([-np.inf] * 4, np.asarray([1.0, 2.0, 3.0, 4.0]) / 10.0),
    ):
        told = search._weigh(state, rewards, jnp.asarray(ratio, jnp.float32))
        np.testing.assert_allclose(jax.nn.softmax(told.log_weights), wanted, rtol=1e-5)


@pytest.mark.slow
def test_a_guided_kernel_says_what_it_guides():
    class Opaque(type(EULER)):
        @property
        def uses_gradient(self):
            return True

    kernel = Opaque(VP, fs.diffusion.square(1.0))
    with pytest.raises(ValueError, match="kernel Opaque is guided .* attribute `inner`, got None"):
        fs.search.smc(nfe=40, kernel=kernel, grid=fs.grids.uniform(4))


def test_shares_rise_to_one_at_the_last_step():
    assert tempering.shares("none", None, 4) is None
    np.testing.assert_allclose(
        tempering.shares("exponential", None, 3), [0.0, 2**0.5 - 1.0, 1.0], rtol=1e-12
    )
    # DAS' setting for 100 steps: .008 is there after 87 of them.
    das = np.asarray(tempering.shares("exponential", 0.008, 100))
    np.testing.assert_allclose(das, np.minimum(1.008 ** np.arange(100) - 1.0, 1.0), rtol=1e-9)
    assert np.argmax(das == 1.0) == 87
    # The last has all of the reward, reached or not.
    assert tempering.shares("exponential", 0.001, 50)[-1] == 1.0
    np.testing.assert_allclose(
        tempering.shares("polynomial", 3.0, 4), [0.0, 1 / 27, 8 / 27, 1.0], rtol=1e-12
    )


@pytest.mark.slow_but_one
@pytest.mark.parametrize("share", [1.0, 0.5, 0.07])
def test_a_funnel_pays_for_as_many_as_fit(share):
    costs = np.asarray([1, 3, 1, 3, 3, 1], np.int32)
    parts = funnel.thousandths(share, np.asarray([True, False, True, True, True, False]))
    shares = share ** (np.asarray([0, 1, 1, 3, 4, 5]) / 5)
    np.testing.assert_array_equal(parts, np.ceil(1000 * shares))

    def price(n):
        return int(np.sum(np.ceil(n * parts / 1000) * costs))

    budgets = [12, 13, 30, 77, 1234]
    most = jax.jit(lambda nfe: funnel.most_of(nfe, parts, costs, funnel.most(1234, parts, costs)))
    for nfe in budgets:
        n = funnel.most(nfe, parts, costs)
        assert price(n) <= nfe < price(n + 1)
        assert int(most(jnp.int32(nfe))) == n
    # One particle goes on to the end; of very many the counts are still whole and exact.
    assert np.all(funnel.particles(1, parts) == 1)
    large = 2**31 // 7
    assert funnel.particles(large, parts.astype(object))[-1] == -(-large * int(parts[-1]) // 1000)
    assert np.all(np.asarray(funnel.particles(jnp.int32(large), parts)) > 0)
