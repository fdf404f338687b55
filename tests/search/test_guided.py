"""Kernels guided by the gradient of the reward, against closed forms of a Gaussian flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowsde as fs

KEY = jax.random.key(8)
VP = fs.interpolants.vp()
VARIANCE, MEAN, BETA = 0.25, np.float32([0.5, -0.5]), 0.5
DATA = fs.analytic.gaussian(MEAN, VARIANCE)
DDIM = fs.kernels.ddim(VP, data_variance=VARIANCE)
GUIDED = fs.kernels.guided(DDIM, temperature=BETA)
WEIGHTS = np.float32([1.0, 2.0])
GRID = fs.grids.uniform(6)


def linear_reward(images, cond):
    return images @ WEIGHTS


@pytest.mark.slow
def test_guidance_tilts_the_kernel_by_the_linearised_reward():
    x, x0, x1, gradient = jax.random.normal(KEY, (4, 3), jnp.float32)
    t, s = jnp.float32(0.7), jnp.float32(0.5)
    base = fs.kernels.euler_maruyama(VP, fs.diffusion.constant(1.0))
    guided = fs.kernels.guided(base, temperature=0.3)
    points = x[None] + jnp.asarray(
        [[0.0, 0.0, 0.0], [0.2, -0.1, 0.4], [-0.5, 0.3, 0.1]], jnp.float32
    )
    tilted = jax.vmap(lambda y: guided.log_prob(y, x, x0, x1, t, s, gradient))(points)
    plain = jax.vmap(lambda y: base.log_prob(y, x, x0, x1, t, s))(points)
    # Up to the normalising constant, the log ratio is gradient . x_s / temperature.
    ratio = np.asarray(tilted - plain - points @ gradient / 0.3)
    np.testing.assert_allclose(ratio, np.full(3, ratio[0]), atol=1e-4)
    draws = jax.vmap(lambda k: guided(k, x, x0, x1, t, s, gradient))(jax.random.split(KEY, 20_000))
    mean, std = guided.moments(x, x0, x1, t, s, gradient)
    error = np.abs(np.asarray(draws.mean(0) - mean))
    assert np.all(error < 4.5 * float(std) / 20_000**0.5)
    np.testing.assert_allclose(draws.std(0), np.full(3, float(std)), rtol=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [None, 3])
def test_the_gradient_goes_through_decoder_and_model(chunk):
    """E[x0 | x] of Gaussian data has slope alpha v / (alpha^2 v + sigma^2) in x."""
    flow = fs.Flow.from_callable(
        lambda params, x, t, cond: params.velocity(fs.interpolants.linear(), x, t), DATA, (2,),
        decode=lambda x0: 3.0 * x0,
    )  # fmt: skip
    search = fs.search.svdd(nfe=26, kernel=GUIDED, grid=GRID, chains=1, finish="mean")
    results = list(fs.iterate(KEY, flow, search, linear_reward, chunk_size=chunk))
    for result in results[:-1]:
        alpha, sigma = VP.alpha(result.state.parents.t), VP.sigma(result.state.parents.t)
        slope = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
        expected = 3.0 * np.asarray(slope)[:, None] * WEIGHTS[None]
        np.testing.assert_allclose(result.state.parents.gradient, expected, rtol=2e-4, atol=1e-6)
    # Candidates of the last time move no further.
    np.testing.assert_array_equal(results[-1].state.parents.gradient, 0.0)
    assert results[-1].info.backward_passes[-1] == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ode", "samples"])
def test_gradients_are_of_the_mean_and_rewards_of_what_is_seen_ahead(kind):
    search = fs.search.svdd(
        nfe=18, kernel=GUIDED, grid=GRID, chains=1, finish="mean", value=kind, value_steps=3,
        value_samples=1,
    )  # fmt: skip
    assert search.n_candidates == 1 and search.value.cost == 3
    *results, last = fs.iterate(KEY, DATA.flow(), search, linear_reward)
    # Neither at the first time, of which one is drawn, nor at the last.
    assert last.nfe == 6 + 4 * 3

    def means(x, t):
        return jax.vmap(lambda x, t: (DATA.x0(VP, x, t), DATA.x1(VP, x, t)))(x, t)

    for result in results:
        parents = result.state.parents
        alpha, sigma = VP.alpha(parents.t), VP.sigma(parents.t)
        slope = np.asarray(alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2))
        np.testing.assert_allclose(parents.gradient, slope[:, None] * WEIGHTS, rtol=2e-4, atol=1e-6)
        of_mean = np.asarray(parents.x0) @ WEIGHTS
        if parents.t == 1.0:
            continue
        if kind == "ode":
            own = (parents.x, parents.t, parents.x0, parents.x1)
            seen = np.asarray(search.value.ends(VP, means, *own, None))[:, 0] @ WEIGHTS
            np.testing.assert_allclose(parents.reward, seen, rtol=1e-4, atol=1e-5)
        assert np.all(np.abs(parents.reward - of_mean) > 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["svdd", "rbf", "bon", "halving", "sop", "code", "smc"])
def test_guided_searches_find_more_reward(method):
    """400 seeds of each, at equal evaluations; one trajectory of `bon` is DPS."""
    options = {"nfe": 25, "grid": GRID} | {"bon": {"nfe": 6}}.get(method, {})
    options |= {"finish": "mean"} if method not in ("bon", "halving") else {}
    options |= {"start": 1, "forward": 1, "backward": 2, "nfe": 32} if method == "sop" else {}
    rewards = {}
    for name, kernel in (("plain", DDIM), ("guided", GUIDED)):
        search = getattr(fs.search, method)(kernel=kernel, **options)
        result = fs.run(
            KEY, DATA.flow(), search, linear_reward,
            cond=np.zeros(400, np.float32), prompt_ids=np.arange(400),
        )  # fmt: skip
        rewards[name] = np.asarray(result.reward)
    gain = rewards["guided"] - rewards["plain"]
    assert gain.mean() > 4 * gain.std() / len(gain) ** 0.5


def test_what_cannot_be_guided_is_refused():
    guided = fs.kernels.guided
    for kernel, error, message in (
        (fs.kernels.ode_euler(VP), ValueError, "kernel must be stochastic .* got ODEEuler"),
        (fs.kernels.ddim(VP, eta=0.0), ValueError, "kernel must be stochastic .* got DDIM"),
        (fs.kernels.renoise(VP), TypeError, "kernel must be a reverse-time flowsde Kernel, got Re"),
        (GUIDED, TypeError, "kernel must be a reverse-time flowsde Kernel, got Guided"),
        ("ddim", TypeError, "kernel must be a reverse-time flowsde Kernel, got 'ddim'"),
    ):
        with pytest.raises(error, match=message):
            guided(kernel, 1.0)
    with pytest.raises(ValueError, match="temperature must be a finite number above 0, got 0"):
        guided(DDIM, 0.0)
    with pytest.raises(TypeError, match="guided by a reward, which only a search has"):
        fs.sample(KEY, DATA.flow(), kernel=GUIDED, grid=GRID, n=2)
    x, t = jnp.zeros(2, jnp.float32), jnp.float32(0.5)
    with pytest.raises(TypeError, match="needs the gradient of a reward"):
        GUIDED(KEY, x, x, x, t, jnp.float32(0.4))


@pytest.mark.slow
@pytest.mark.parametrize("p", [VP, fs.interpolants.linear()], ids=["vp", "linear"])
def test_a_damped_gradient_is_that_of_the_tilted_law(p):
    """Gaussian data and reward -c |x - a|^2: the score of the tilted data less that of the data."""
    c, a = 1.5, np.float32([1.0, 0.2])
    tilted, _ = DATA.tilt(2.0 * c * a, -2.0 * c * np.eye(2), BETA)
    base = fs.kernels.ddim(p, data_variance=VARIANCE)
    damped = fs.kernels.reward_gradient(base, BETA, curvature=c)
    x = np.float32([0.3, -1.1])
    for t, s in ((0.95, 0.8), (0.5, 0.4), (0.2, 0.1)):
        t, s = jnp.float32(t), jnp.float32(s)
        reward = lambda x, t=t: -c * jnp.sum(jnp.square(DATA.x0(p, x, t) - a))  # noqa: E731
        gradient = jax.grad(reward)(jnp.asarray(x))
        x0, x1 = DATA.x0(p, x, t), DATA.x1(p, x, t)
        mean, std = damped.moments(jnp.asarray(x), x0, x1, t, s, gradient)
        plain, _ = base.moments(jnp.asarray(x), x0, x1, t, s)
        wanted = tilted.score(p, x, t) - DATA.score(p, x, t)
        np.testing.assert_allclose((mean - plain) / std**2, wanted, rtol=2e-4, atol=1e-5)
        assert np.all(np.abs(gradient / BETA) > 1.01 * np.abs(wanted))


@pytest.mark.slow
def test_damped_guidance_samples_the_tilted_law():
    """Means of 400 trajectories; without damping they are pulled too far."""
    c, a, n = 1.5, np.float32([1.0, 0.2]), 400
    tilted, _ = DATA.tilt(2.0 * c * a, -2.0 * c * np.eye(2), BETA)
    base = fs.kernels.euler_maruyama(VP, fs.diffusion.forward())

    def near(images, cond):
        return -c * jnp.sum(jnp.square(images - a[None]), axis=-1)

    distances = {}
    for name, curvature in (("plain", None), ("damped", c)):
        damping = {} if curvature is None else {"curvature": c, "data_variance": VARIANCE}
        kernel = fs.kernels.reward_gradient(base, BETA, **damping)
        search = fs.search.bon(nfe=100, kernel=kernel, grid=fs.grids.cosine(100))
        result = fs.run(
            KEY, DATA.flow(), search, near,
            cond=np.zeros(n, np.float32), prompt_ids=np.arange(n),
        )  # fmt: skip
        off = np.asarray(result.x0) - np.asarray(tilted.mean())
        distances[name] = np.abs(off.mean(0)).max()
    spread = np.sqrt(np.asarray(tilted.covariance())[0, 0] / n)
    assert distances["damped"] < 4.5 * spread < distances["plain"]


def test_damping_needs_to_know_the_data():
    plain = fs.kernels.ddim(VP)
    for options, message in (
        ({"curvature": 1.0}, "data_variance must be a finite number above 0, got 0.0"),
        ({"curvature": -1.0}, "curvature must be a finite number of at least 0, got -1"),
        ({"data_variance": 1.0}, "data_variance is of the damping, which a curvature makes, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            fs.kernels.reward_gradient(plain, 1.0, **options)
    assert "curvature" not in repr(fs.kernels.reward_gradient(plain, 1.0))
