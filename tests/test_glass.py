"""GLASS transitions and posterior samples, against closed forms and the paper's own formula."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowsde as fs
from flowsde import kernels

LINEAR = fs.interpolants.linear()
INTERPOLANTS = {
    "linear": LINEAR,
    "vp": fs.interpolants.vp(),
    "cosine": fs.interpolants.cosine(),
    "polynomial": fs.interpolants.polynomial(2),
    "linear_vp": fs.interpolants.linear_vp(),
    # Noise of radius 2 at t = 1.
    "from_functions": fs.interpolants.from_functions(lambda t: 1.0 - t**2, lambda t: 2.0 * t),
}
KEY = jax.random.key(3)
MEAN, VARIANCE = 0.7, 0.25
WEIGHTS, CENTRES, SPREADS = [0.35, 0.65], [-1.5, 1.0], [0.1, 0.2]


def means_of(data, p):
    """E[data | x_t] and E[noise | x_t] of a batch."""
    return lambda x, t: (data.x0(p, x, t), data.x1(p, x, t))


@partial(jax.jit, static_argnums=0)
def transitions(kernel, data, x, noise, t, s):
    """x_s of particles [n, d], with the noise given."""
    means = means_of(data, kernel.interpolant)
    t, s = jnp.full(x.shape[:1], t, x.dtype), jnp.full(x.shape[:1], s, x.dtype)
    mean, std = jax.vmap(kernel.begin)(x, *means(x, t), t, s)
    return kernel.arrive(means, x, mean + std[:, None] * noise, t, s)


def linear_coefficients(t, s, rho):
    """(abar, gamma, sbar) under the linear interpolant."""
    gamma = rho * s / t
    return 1.0 - s - gamma * (1.0 - t), gamma, s * math.sqrt(1.0 - rho**2)


# Relative errors of the variance at (t, s) = (.8, .5) of Gaussian data of variance .25, for M = 1,
# 2, 4, 8 and 32, from draws of another implementation, which are good to about .005.
STEPS = (1, 2, 4, 8, 32)
ERRORS = {
    0.0: (-0.195, -0.111, -0.058, -0.032, -0.007),
    0.25: (-0.188, -0.105, -0.058, -0.028, -0.006),
    0.4: (-0.193, -0.108, -0.059, -0.032, -0.004),
    0.9: (-0.439, -0.306, -0.181, -0.099, -0.029),
    1.0: (-1.0, -0.968, -0.791, -0.505, -0.154),
}


@pytest.mark.slow
@pytest.mark.parametrize("rho", ERRORS)
def test_moments_of_a_gaussian(rho):
    """p(x_s | x_t) = N(abar D + gamma x, abar^2 V + sbar^2): the draw is linear in its noise."""
    t, s, x = 0.8, 0.5, 0.9
    alpha, gamma, sigma = linear_coefficients(t, s, rho)
    total = 0.04 * VARIANCE + 0.64
    mean = MEAN + 0.2 * VARIANCE / total * (x - 0.2 * MEAN)
    variance = alpha**2 * VARIANCE * 0.64 / total + sigma**2
    errors = []
    with jax.enable_x64(True):
        data = fs.analytic.gaussian([MEAN], VARIANCE, dtype=jnp.float64)
        for steps in STEPS:
            kernel = kernels.glass(LINEAR, steps, rho=rho)
            ends = transitions(kernel, data, jnp.full((2, 1), x), jnp.arange(2.0)[:, None], t, s)
            np.testing.assert_allclose(ends[0], alpha * mean + gamma * x, rtol=1e-12)
            errors.append(float((ends[1, 0] - ends[0, 0]) ** 2) / variance - 1.0)
    np.testing.assert_allclose(errors, ERRORS[rho], atol=0.005)
    np.testing.assert_allclose(errors[0], sigma**2 / variance - 1.0, atol=1e-12)
    # First order in 1 / M.
    if rho < 0.5:
        np.testing.assert_allclose(errors[3] / errors[4], 4.0, rtol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", INTERPOLANTS)
def test_one_inner_step_is_the_kernel_of_that_correlation(name):
    p = INTERPOLANTS[name]
    with jax.enable_x64(True):
        x0, x1 = jax.random.normal(KEY, (2, 5), jnp.float64)
        for t, s in ((0.9, 0.6), (0.5, 0.1), (1.0, 0.7), (0.3, 0.0)):
            t, s = jnp.float64(t), jnp.float64(s)
            x = p.alpha(t) * x0 + p.sigma(t) * x1
            for kernel, options in (
                (kernels.cps(p, 0.5), {"rho": math.cos(math.pi / 4)}),
                (kernels.cps(p, 0.0), {"rho": 1.0}),
                (kernels.cps(p, 1.0), {"rho": 0.0}),
                (kernels.ddim(p, 0.0), {"kappa": 0.0}),
                (kernels.ddim(p, 1.0), {"kappa": 1.0}),
            ):
                own = kernels.glass(p, 1, **options)
                expected = kernel.moments(x, x0, x1, t, s)
                for one, other in zip(own.moments(x, x0, x1, t, s), expected, strict=True):
                    np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-7)
                assert own.stochastic == kernel.stochastic
        assert own.evaluations == 1 and own.inner_evaluations == 0
        point = own.moments(x, x0, x1, t, s)[0] + 0.1
        density = [k.log_prob(point, x, x0, x1, t, jnp.float64(0.1)) for k in (own, kernel)]
        np.testing.assert_allclose(*density, rtol=1e-6)


@pytest.mark.slow
def test_one_transition_from_noise_is_the_ode():
    """Of the noise that it draws; x_1 itself says nothing of the data."""
    with jax.enable_x64(True):
        data = fs.analytic.mixture(WEIGHTS, np.c_[CENTRES], SPREADS, dtype=jnp.float64)
        x, noise = jax.random.normal(KEY, (2, 6, 1), jnp.float64)
        ends = transitions(kernels.glass(LINEAR, 8), data, x, noise, 1.0, 0.0)
        euler, moved = kernels.ode_euler(LINEAR), noise
        for t, s in zip(*(jnp.asarray(fs.grids.uniform(8))[i:][:8] for i in (0, 1)), strict=True):
            moved = euler(KEY, moved, *means_of(data, LINEAR)(moved, t), t, s)
        np.testing.assert_allclose(ends, moved, rtol=1e-9, atol=1e-12)


def published_point(alpha_t, sigma_t, gamma, alpha, sigma, x, moved):
    """Sufficient statistic of (x_t, X) by the 2 x 2 system of the paper: (m, lambda)."""
    loading = np.array([alpha_t, alpha + gamma * alpha_t])
    shared = gamma * sigma_t**2
    covariance = np.array([[sigma_t**2, shared], [shared, sigma**2 + gamma * shared]])
    weighted = np.linalg.solve(covariance, loading)
    precision = loading @ weighted
    return (weighted[0] * x + weighted[1] * moved) / precision, precision


@pytest.mark.slow_but_one
@pytest.mark.parametrize("t, s, rho", [(0.8, 0.5, 0.4), (0.6, 0.0, 0.0), (0.9, 0.3, -0.7)])
def test_the_point_is_that_of_the_two_by_two_system(t, s, rho):
    m = 4
    kernel = kernels.glass(LINEAR, m, rho=rho)
    alpha, gamma, sigma = linear_coefficients(t, s, rho)
    with jax.enable_x64(True):
        x, moved = jax.random.normal(KEY, (2, 3), jnp.float64)
        for step in range(1, m):
            point, time = kernel.observe(step, x, moved, jnp.float64(t), jnp.float64(s))
            tau = step / m
            path = (tau * alpha, 1.0 - tau + tau * sigma)
            where, precision = published_point(1.0 - t, t, gamma, *path, x, moved)
            np.testing.assert_allclose(time, 1.0 / (1.0 + math.sqrt(precision)), rtol=1e-9)
            np.testing.assert_allclose(point, (1.0 - time) * where, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", INTERPOLANTS)
def test_inner_times_fall_from_t(name):
    p, x = INTERPOLANTS[name], jnp.ones(1, jnp.float32)
    for t, s in ((1.0, 0.8), (0.9, 0.5), (0.4, 0.0), (1e-3, 0.0)):
        for rho in (-1.0, 0.0, 0.4, 1.0):
            kernel = kernels.glass(p, 6, rho=rho)
            found = [kernel.observe(m, x, x, jnp.float32(t), jnp.float32(s)) for m in range(1, 6)]
            times = np.asarray([float(time) for _, time in found])
            assert np.all(np.isfinite([float(point[0]) for point, _ in found]))
            assert np.all(np.diff(times) <= 1e-6) and np.all(
                (times >= 0.0) & (times <= np.float32(t))
            )


@pytest.mark.slow
@pytest.mark.parametrize(
    "t, s, rho, steps",
    [(0.8, 0.5, 0.4, 4), (0.7, 0.0, 0.0, 8), (0.6, 0.3, 0.999, 6), (0.9, 0.4, -1.0, 3)],
)
def test_float32_is_enough(t, s, rho, steps):
    ends = []
    for dtype in (jnp.float32, jnp.float64):
        with jax.enable_x64(True):
            data = fs.analytic.mixture(WEIGHTS, np.c_[CENTRES], SPREADS, dtype=dtype)
            x, noise = np.random.default_rng(0).normal(size=(2, 16, 1))
            kernel = kernels.glass(LINEAR, steps, rho=rho)
            x, noise = jnp.asarray(x, dtype), jnp.asarray(noise, dtype)
            ends.append(np.asarray(transitions(kernel, data, x, noise, t, s)))
    assert ends[0].dtype == np.float32
    np.testing.assert_allclose(*ends, atol=5e-6)


@pytest.mark.slow_but_one
@pytest.mark.parametrize("name", INTERPOLANTS)
def test_finite_at_every_pair_of_times(name):
    p, flow = INTERPOLANTS[name], fs.analytic.mixture(WEIGHTS, np.c_[CENTRES], SPREADS).flow()
    below = float(np.nextafter(np.float32(1.0), np.float32(0.0)))
    edges = (1.0, below, 0.9, 0.5, 1e-4, 1e-7, 0.0)
    pairs = np.array([(t, s) for t in edges for s in edges if s < t], np.float32)
    t, s = jnp.asarray(pairs[:, 0]), jnp.asarray(pairs[:, 1])
    data, noise = jax.random.normal(KEY, (2, t.size, 1), jnp.float32)

    @partial(jax.jit, static_argnums=0)
    def ends(kernel, t, s):
        x = p.alpha(t)[:, None] * data + p.sigma(t)[:, None] * noise
        x0, x1 = flow.means(x, t, None, p)
        drawn = jax.vmap(kernel.draw, (None, 0, 0, 0, 0, 0))(KEY, x, x0, x1, t, s)
        return kernel.arrive(lambda x, t: flow.means(x, t, None, p), x, drawn, t, s)

    for options in ({"rho": -1.0}, {"kappa": 1.0}):
        assert np.all(np.isfinite(ends(kernels.glass(p, 3, **options), t, s)))


def quantiles(weights, centres, variances, levels):
    """Of a one-dimensional mixture, from its distribution function on a fine grid."""
    x = np.linspace(-6.0, 6.0, 20_001)
    spread = np.sqrt(2.0 * np.asarray(variances))
    below = 0.5 * (1.0 + np.vectorize(math.erf)((x[:, None] - np.asarray(centres)) / spread))
    return np.interp(levels, below @ np.asarray(weights), x)


def distance(samples, *mixture):
    """W1 of samples to a mixture."""
    levels = (np.arange(len(samples)) + 0.5) / len(samples)
    return float(np.mean(np.abs(np.sort(samples) - quantiles(*mixture, levels))))


@pytest.mark.slow
def test_samples_follow_the_data():
    """W1 of the ends of chains of four transitions: more inner steps bring it down."""
    data, grid = fs.analytic.mixture(WEIGHTS, np.c_[CENTRES], SPREADS), fs.grids.uniform(4)
    found = []
    for steps in (2, 8, 32):
        kernel = kernels.glass(LINEAR, steps)
        x = fs.sample(KEY, data.flow(), kernel=kernel, grid=grid, n=8_000)
        found.append(distance(np.asarray(x)[:, 0], WEIGHTS, CENTRES, SPREADS))
    # About .02 is what 8,000 exact draws have.
    assert found[0] > 2.0 * found[1] and max(found[1:]) < 0.05


def exact_posterior(x, t):
    """p(x0 | x_t = x) of the mixture under the linear interpolant: weights, centres, variances."""
    alpha, sigma = 1.0 - t, t
    variances, centres = np.asarray(SPREADS), np.asarray(CENTRES)
    total = alpha**2 * variances + sigma**2
    log_weights = np.log(WEIGHTS) - 0.5 * (x - alpha * centres) ** 2 / total - 0.5 * np.log(total)
    weights = np.exp(log_weights - log_weights.max())
    centres = centres + alpha * variances / total * (x - alpha * centres)
    return weights / weights.sum(), centres, variances * sigma**2 / total


@pytest.mark.slow
def test_posterior_samples_follow_the_posterior():
    data = fs.analytic.mixture(WEIGHTS, np.c_[CENTRES], SPREADS)
    x, t = np.float32([[0.1], [-0.6]]), np.float32([0.7, 0.5])
    for steps, most in ((64, 0.03), (8, 0.15)):
        drawn = fs.posterior_samples(KEY, data.flow(), x, t, n=6_000, inner_steps=steps)
        assert drawn.shape == (2, 6_000, 1)
        for own, x_i, t_i in zip(np.asarray(drawn), x, t, strict=True):
            assert distance(own[:, 0], *exact_posterior(x_i[0], t_i)) < most


SEEN = {"model": 0}


def counting(params, x, t, cond):
    jax.debug.callback(lambda t: SEEN.update(model=SEEN["model"] + t.shape[0]), t)
    return jnp.tanh(x) * params + cond[:, None]


@pytest.mark.slow
def test_posterior_samples_belong_to_their_numbers_and_share_the_first_step():
    flow = fs.Flow.from_callable(counting, jnp.float32(0.7), (2,))
    x = np.asarray(jax.random.normal(KEY, (3, 2)), np.float32)
    t, cond = np.float32([0.9, 0.5, 0.0]), np.float32([0.1, 0.2, 0.3])
    draw = partial(fs.posterior_samples, KEY, flow, x, t, cond, inner_steps=3)
    SEEN.update(model=0)
    whole = np.asarray(draw(n=4))
    jax.effects_barrier()
    assert SEEN["model"] == 3 * (1 + 4 * 2)
    np.testing.assert_allclose(draw(n=4, chunk_size=5), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(draw(n=2), whole[:, :2], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(whole[2], np.broadcast_to(x[2], (4, 2)))
    mean = fs.posterior_samples(KEY, flow, x, t, cond, n=2, inner_steps=1)
    x0, _ = flow.means(jnp.asarray(x), jnp.asarray(t), jnp.asarray(cond), LINEAR)
    np.testing.assert_allclose(mean, np.broadcast_to(x0[:, None], (3, 2, 2)), rtol=1e-6)
    # Under another interpolant, the same picture of the same noise level.
    vp = INTERPOLANTS["vp"]
    s = np.asarray(vp.time(LINEAR.angle(jnp.asarray(t))))
    there = x * np.asarray(vp.radius(s) / LINEAR.radius(jnp.asarray(t)))[:, None]
    other = fs.posterior_samples(KEY, flow, there, s, cond, n=4, inner_steps=3, interpolant=vp)
    np.testing.assert_allclose(other, whole, rtol=1e-3, atol=2e-4)


@pytest.mark.slow
def test_sample_counts_and_repeats():
    """K transitions take K M evaluations of a particle, whose draws are its own."""
    flow = fs.Flow.from_callable(counting, jnp.float32(0.7), (2,))
    cond, grid = np.float32([0.1, 0.2, 0.3]), fs.grids.uniform(5)
    draw = partial(fs.sample, KEY, flow, kernel=kernels.glass(LINEAR, 3), grid=grid)
    SEEN.update(model=0)
    whole = draw(n=3, cond=cond)
    jax.effects_barrier()
    assert SEEN["model"] == 3 * 5 * 3
    one = draw(n=2, cond=cond[:2], chunk_size=1)
    np.testing.assert_allclose(one, whole[:2], rtol=1e-5, atol=1e-6)
    SEEN.update(model=0)
    draw(n=3, cond=cond, final="mean")
    jax.effects_barrier()
    assert SEEN["model"] == 3 * (4 * 3 + 1)


def test_what_is_wrong_is_said():
    for options, message in (
        ({"rho": 1.5}, r"rho must lie in \[-1, 1\], got 1.5"),
        ({"rho": math.nan}, "rho must be a finite number, got nan"),
        ({"kappa": -1.0}, "kappa must be a finite number of at least 0, got -1"),
        ({"rho": 0.4, "kappa": 1.0}, "rho must be left out with kappa, got 0.4 and 1.0"),
        ({"inner_steps": 0}, "inner_steps must be an integer of at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            kernels.glass(LINEAR, **options)
    kernel, x, t = kernels.glass(LINEAR, 2), jnp.zeros(2, jnp.float32), jnp.float32(0.5)
    with pytest.raises(TypeError, match="takes 1 evaluations of the model on the way to s"):
        kernel(KEY, x, x, x, t, t)
    with pytest.raises(TypeError, match="takes 1 evaluations of the model on the way to s"):
        kernel.moments(x, x, x, t, t)
    with pytest.raises(ValueError, match="no density in closed form"):
        kernel.log_prob(x, x, x, x, t, t)
    with pytest.raises(ValueError, match="one evaluation a step .* got GLASS"):
        kernels.reward_gradient(kernel, 1.0)
    flow = fs.analytic.gaussian([0.0], 1.0).flow()
    for x, t, message in (
        (np.zeros((2, 3)), 0.5, r"x must have shape \[b, \*\[1\]\], got \[2, 3\]"),
        (np.zeros((2, 1)), [0.5] * 3, r"t must be one time or \[2\], got shape \[3\]"),
        (np.zeros((2, 1)), 1.5, r"t must lie in \[0, 1\], got 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            fs.posterior_samples(KEY, flow, np.float32(x), np.float32(t))
