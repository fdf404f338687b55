"""Kernels: orders against fine limits and other solvers, finite ends, densities, invariances."""

import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

import flowsde as fs
from flowsde import diffusion, kernels
from flowsde.kernels.base import standard_normal

LINEAR = fs.interpolants.linear()
INTERPOLANTS = {
    "linear": LINEAR,
    "vp": fs.interpolants.vp(),
    "cosine": fs.interpolants.cosine(),
    "polynomial": fs.interpolants.polynomial(2),
    "linear_vp": fs.interpolants.linear_vp(),
    "from_functions": fs.interpolants.from_functions(lambda t: 1.0 - t**2, lambda t: 2.0 * t),
}
DIFFUSIONS = {
    "constant": diffusion.constant(),
    "sigma": diffusion.sigma(),
    "linear": diffusion.linear(),
    "square": diffusion.square(),
    "sin": diffusion.sin(),
    "clipping": diffusion.clipping(),
    "exp": diffusion.exp(),
    "tan": diffusion.tan(),
    "flow_grpo": diffusion.flow_grpo(),
    "forward": diffusion.forward(),
}
BIMODAL = ([0.3, 0.7], [[-1.2], [0.8]], [0.1, 0.3])
# One Gaussian, in two halves: it shares the compiled programs of two components.
MEAN, VARIANCE = 0.7, 0.36
GAUSSIAN = ([0.5, 0.5], [[MEAN], [MEAN]], VARIANCE)


def all_kernels(p):
    yield from (kernels.ode_euler(p), kernels.ode_heun(p))
    yield from (kernels.euler_maruyama(p, g) for g in DIFFUSIONS.values())
    yield from (kernels.sde_heun(p, g) for g in DIFFUSIONS.values())
    for eta in (0.0, 0.5, 1.0):
        for v in (0.0, 0.2):
            yield kernels.ddim(p, eta, v)
            yield kernels.cps(p, eta, v)
    yield from (kernels.exact(p, g) for g in DIFFUSIONS.values())
    for v in (0.0, 0.2):
        yield from (kernels.correlated(p, rho, data_variance=v) for rho in (-1.0, 0.4, 1.0))
        yield from (kernels.correlated(p, kappa=kappa, data_variance=v) for kappa in (0.0, 1.5))


# Orders: (a) against the kernel's own fine limit, (b) that limit against another solver


def slope(steps, errors):
    """Order of convergence: least squares in log-log."""
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


def padded_grids(steps):
    """Uniform grids [len(steps), max(steps) + 1], filled up with steps from 0 to 0."""
    return np.stack([np.pad(fs.grids.uniform(n), (0, max(steps) - n)) for n in steps])


ODE_STEPS = (20, 40, 80, 1280)
ODE_ORDERS = [(kernels.ode_euler, 1), (kernels.ode_heun, 2)]


@partial(jax.jit, static_argnums=0)
def follow_ode(kernel, data, x):
    """Ends [grid, n, 1] of particles [n, 1], for each of ODE_STEPS; exact means of `data`."""
    p = kernel.interpolant

    def step(x, ts):
        t, s = ts
        x0, x1 = data.x0(p, x, t), data.x1(p, x, t)
        moved = kernel(jax.random.key(0), x, x0, x1, t, s)
        if kernel.evaluations == 2:
            there = data.x0(p, moved, s), data.x1(p, moved, s)
            moved = kernel.correct(x, x0, x1, moved, *there, t, s)
        return moved, None

    def follow(grid):
        return jax.lax.scan(step, x, (grid[:-1], grid[1:]))[0]

    return jax.vmap(follow)(jnp.asarray(padded_grids(ODE_STEPS), x.dtype))


@partial(jax.jit, static_argnums=(0, 3))
def runge_kutta(p, data, x, steps):
    """Fourth-order solution of dx / dt = velocity from t = 1 to 0, without any kernel."""
    h = -1.0 / steps

    def step(x, t):
        k1 = data.velocity(p, x, t)
        k2 = data.velocity(p, x + 0.5 * h * k1, t + 0.5 * h)
        k3 = data.velocity(p, x + 0.5 * h * k2, t + 0.5 * h)
        k4 = data.velocity(p, x + h * k3, jnp.maximum(t + h, 0.0))
        return x + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4), None

    times = 1.0 - jnp.arange(steps, dtype=x.dtype) / steps
    return jax.lax.scan(step, x, times)[0]


def rms(a):
    return float(np.sqrt(np.mean(np.square(a))))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_order_of_the_ode_kernels(name):
    p = INTERPOLANTS[name]
    with jax.enable_x64(True):
        data = fs.analytic.mixture(*BIMODAL, dtype=jnp.float64)
        x = jnp.linspace(-2.0, 2.0, 41)[:, None]
        other = np.asarray(runge_kutta(p, data, x, 640))
        for build, order in ODE_ORDERS:
            ends = np.asarray(follow_ode(build(p), data, x))
            errors = [rms(end - ends[-1]) for end in ends[:-1]]
            assert slope(ODE_STEPS[:-1], errors) >= order - 0.1
            # The fine limit is the ODE's solution, to within its own error at 1280 steps.
            assert rms(ends[-1] - other) <= 2.0 * errors[-1] * (80 / 1280) ** order


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["linear", *(n for n in ("cosine", "from_functions"))],
)
def test_ode_kernels_follow_the_exact_transport_of_a_gaussian(name):
    """x = alpha m + sqrt(alpha^2 v + sigma^2) z with z conserved."""
    p = INTERPOLANTS[name]
    with jax.enable_x64(True):
        data = fs.analytic.mixture(*GAUSSIAN, dtype=jnp.float64)
        one, z = jnp.ones(()), jnp.linspace(-2.0, 2.0, 41)[:, None]
        x = p.alpha(one) * MEAN + jnp.sqrt(p.alpha(one) ** 2 * VARIANCE + p.sigma(one) ** 2) * z
        exact = np.asarray(MEAN + math.sqrt(VARIANCE) * z)
        for build, order in ODE_ORDERS:
            errors = [rms(end - exact) for end in np.asarray(follow_ode(build(p), data, x))]
            assert slope(ODE_STEPS, errors) >= order - 0.1


def heun_for_sde(x, noise, g):
    """The reverse SDE of a linear flow of N(MEAN, VARIANCE) by Heun's scheme, in NumPy."""

    def drift(x, t):
        spread = (1.0 - t) ** 2 * VARIANCE + t**2
        centred = x - (1.0 - t) * MEAN
        velocity = -MEAN + (t - (1.0 - t) * VARIANCE) / spread * centred
        return velocity + 0.5 * g(t) ** 2 / spread * centred

    times = 1.0 - np.arange(len(noise) + 1) / len(noise)
    for t, s, dw in zip(times[:-1], times[1:], noise, strict=True):
        guess = x + (s - t) * drift(x, t) + g(t) * dw
        x = x + 0.5 * (s - t) * (drift(x, t) + drift(guess, s)) + 0.5 * (g(t) + g(s)) * dw
    return x


@pytest.mark.slow
def test_strong_order_of_euler_maruyama():
    """Order 1, since the noise is additive (g depends on time alone), on shared Brownian paths."""
    fine, steps, paths = 2048, (16, 32, 64, 128, 2048), 200
    kernel = kernels.euler_maruyama(LINEAR, diffusion.square(scale=1.5))
    rng = np.random.default_rng(0)
    start = rng.standard_normal(paths)
    noise = rng.standard_normal((fine, paths)) / math.sqrt(fine)
    coarse = [noise.reshape(n, fine // n, paths).sum(1) for n in steps]
    coarse = np.stack([np.pad(dw, ((0, fine - len(dw)), (0, 0))) for dw in coarse])

    @jax.jit
    def follow(noise, grid):
        def step(x, inputs):
            dw, t, s = inputs
            x0, x1 = data.x0(LINEAR, x, t), data.x1(LINEAR, x, t)
            mean, std = kernel.moments(x, x0, x1, t, s)
            span = jnp.where(t > s, t - s, 1.0)
            return mean + std * dw[:, None] / jnp.sqrt(span), None

        return jax.lax.scan(step, start[:, None], (noise, grid[:-1], grid[1:]))[0][:, 0]

    with jax.enable_x64(True):
        data = fs.analytic.gaussian([MEAN], VARIANCE, dtype=jnp.float64)
        ends = np.asarray(jax.vmap(follow)(coarse, padded_grids(steps)))
    errors = [rms(end - ends[-1]) for end in ends[:-1]]
    assert slope(steps[:-1], errors) >= 0.9
    other = heun_for_sde(start, noise, lambda t: 1.5 * t**2)
    assert rms(ends[-1] - other) <= 2.0 * errors[-1] * 128 / fine


# Ends


NEXT_TO_1 = float(np.nextafter(np.float32(1.0), np.float32(0.0)))
EDGES = (1.0, NEXT_TO_1, 1.0 - 1e-7, 0.9, 0.5, 1e-4, 1e-7, 0.0)


@pytest.mark.slow_but_one
@pytest.mark.parametrize("name", INTERPOLANTS)
def test_finite_at_every_pair_of_times(name):
    p = INTERPOLANTS[name]
    pairs = np.array([(t, s) for t in EDGES for s in EDGES if s < t], np.float32)
    t, s = jnp.asarray(pairs[:, 0]), jnp.asarray(pairs[:, 1])
    flow = fs.analytic.mixture(*BIMODAL).flow()
    noise, data = jax.random.normal(jax.random.key(0), (2, t.size, 1))
    x = p.alpha(t)[:, None] * data + p.sigma(t)[:, None] * noise

    @jax.jit
    def moments(x, t, s):
        x0, x1 = flow.means(x, t, None, p)
        found = [jax.vmap(k.moments)(x, x0, x1, t, s) for k in all_kernels(p)]
        found.append(jax.vmap(kernels.renoise(p).moments)(x, x0, x1, s, t))
        moved = [mean + std[:, None] * noise for mean, std in found]
        moved = [y for y, k in zip(moved, all_kernels(p), strict=False) if k in corrected]
        there = flow.means(jnp.concatenate(moved), jnp.tile(s, len(moved)), None, p)
        there = zip(*(jnp.split(mean, len(moved)) for mean in there), strict=True)
        for k, y, (y0, y1) in zip(corrected, moved, there, strict=True):
            found.append((jax.vmap(k.correct)(x, x0, x1, y, y0, y1, t, s), t))
        return jnp.stack([jnp.append(mean, std[:, None], axis=1) for mean, std in found])

    corrected = [k for k in all_kernels(p) if k.evaluations == 2]
    finite = np.isfinite(np.asarray(moments(x, t, s))).all(-1)
    names = [*map(str, all_kernels(p)), "renoise", *(f"correct {k}" for k in corrected)]
    wrong = [(names[i], tuple(pairs[j])) for i, j in np.argwhere(~finite)]
    assert not wrong


# DDIM and CPS


def point(p, t, shape=(5,)):
    """x, x0, x1 that belong together."""
    x0, x1 = jax.random.normal(jax.random.key(3), (2, *shape))
    t = jnp.asarray(t, jnp.float32)
    return p.alpha(t) * x0 + p.sigma(t) * x1, x0, x1


KEY = jax.random.key(4)


@pytest.mark.slow
def test_ddim_0_is_linear_ode_euler():
    for t, s in [(1.0, 0.9), (0.8, 0.3), (0.5, 0.0)]:
        args = (KEY, *point(LINEAR, t), t, s)
        wanted = kernels.ode_euler(LINEAR)(*args)
        np.testing.assert_allclose(kernels.ddim(LINEAR, 0.0)(*args), wanted, atol=1e-6)


@pytest.mark.slow_but_one
@pytest.mark.parametrize("name", INTERPOLANTS)
def test_ddim_0_does_not_depend_on_the_interpolant(name):
    """Converting, stepping and converting back is the linear step: x0 and x1 are shared."""
    p, (t, s) = INTERPOLANTS[name], (0.8, 0.3)
    x, x0, x1 = point(LINEAR, t)
    (tp, scale_t), (sp, scale_s) = (fs.match_time(p, LINEAR, jnp.float32(u)) for u in (t, s))
    moved = kernels.ddim(p, 0.0)(KEY, x * scale_t, x0, x1, tp, sp)
    wanted = kernels.ddim(LINEAR, 0.0)(KEY, x, x0, x1, t, s)
    np.testing.assert_allclose(moved / scale_s, wanted, atol=2e-5)


@pytest.mark.parametrize("build", [kernels.ddim, kernels.cps])
def test_no_eta_is_deterministic(build):
    args = (*point(LINEAR, 0.8), 0.8, 0.3)
    kernel = build(LINEAR, 0.0)
    assert not kernel.stochastic
    np.testing.assert_array_equal(
        kernel(jax.random.key(0), *args), kernel(jax.random.key(1), *args)
    )
    assert kernel.moments(*args[:3], jnp.float32(0.8), jnp.float32(0.3))[1] == 0.0


@pytest.mark.parametrize("name", INTERPOLANTS)
@pytest.mark.parametrize("build", [kernels.ddim, kernels.cps])
def test_noise_level_is_right_at_any_step(name, build):
    """Fresh and kept noise: zeta^2 + rho^2 = sigma_s^2."""
    p = INTERPOLANTS[name]
    for eta in (0.0, 0.5, 1.0):
        t, s = jnp.float32(0.8), jnp.float32(0.3)
        zeta, rho = build(p, eta).zeta_and_rho(t, s)
        np.testing.assert_allclose(zeta**2 + rho**2, p.sigma(s) ** 2, rtol=1e-5)


def test_ddim_1_is_ancestral_sampling():
    """The noise of DDPM's posterior q(x_s | x_t, x0), for VP (Ho et al., 2020, eq. 7)."""
    p, t, s = INTERPOLANTS["vp"], jnp.float32(0.6), jnp.float32(0.5)
    x, x0, x1 = point(p, 0.6)
    mean, std = kernels.ddim(p, 1.0).moments(x, x0, x1, t, s)
    kept = p.alpha(t) / p.alpha(s)
    beta = 1.0 - kept**2
    weight = p.alpha(s) * beta / p.sigma(t) ** 2, kept * p.sigma(s) ** 2 / p.sigma(t) ** 2
    np.testing.assert_allclose(mean, weight[0] * x0 + weight[1] * x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(std**2, beta * p.sigma(s) ** 2 / p.sigma(t) ** 2, rtol=1e-4)


# Densities


STOCHASTIC = [
    kernels.euler_maruyama(LINEAR, diffusion.square()),
    kernels.ddim(LINEAR, 1.0),
    kernels.cps(INTERPOLANTS["vp"], 0.5),
    kernels.cps(LINEAR, 0.0, data_variance=0.3),
    kernels.ddim(INTERPOLANTS["cosine"], 0.0, data_variance=0.3),
    kernels.ddim(INTERPOLANTS["linear_vp"], 0.6, data_variance=0.1),
    kernels.exact(LINEAR, diffusion.square()),
    kernels.exact(INTERPOLANTS["vp"], diffusion.square(), data_variance=0.2),
    kernels.correlated(INTERPOLANTS["cosine"], rho=-0.4),
    kernels.correlated(LINEAR, kappa=1.5, data_variance=0.1),
    kernels.renoise(INTERPOLANTS["cosine"]),
]


def times_of(kernel):
    return (0.55, 0.7) if isinstance(kernel, kernels.Renoise) else (0.7, 0.55)


def share_kept(kernel, t, s, ratio):
    """rho of kernels at the noise level; those of `exact` here have g = 3 t^2."""
    if isinstance(kernel, kernels.CPS):
        return math.cos(0.5 * math.pi * kernel.eta)
    if isinstance(kernel, kernels.Correlated):
        return kernel.rho if kernel.kappa is None else ratio**kernel.kappa
    linear = kernel.interpolant == LINEAR

    def rate(u):  # sigma^2 is u^2, or 1 - exp(-T) of VP
        return 9.0 * u**4 / (u**2 if linear else -math.expm1(-(9.95 * u + 0.1) * u))

    return math.exp(-0.5 * scipy.integrate.quad(rate, s, t)[0])


def written_out(kernel, x, x0, x1, t, s):
    """Mean and standard deviation in float64, from the formulas of the module's docstrings."""
    x, x0, x1 = (np.asarray(a, np.float64) for a in (x, x0, x1))
    with jax.enable_x64(True):
        p, times = kernel.interpolant, (jnp.asarray(t), jnp.asarray(s))
        (alpha, next_alpha), (sigma, next_sigma) = (
            [float(f(a)) for a in times] for f in (p.alpha, p.sigma)
        )
    if isinstance(kernel, kernels.EulerMaruyama):  # linear, g = 3 t^2
        g = 3.0 * t**2
        return x + (s - t) * (x1 - x0 + 0.5 * g**2 * x1 / t), g * math.sqrt(t - s)
    if isinstance(kernel, kernels.Renoise):
        scale = next_alpha / alpha
        return scale * x, math.sqrt(next_sigma**2 - (scale * sigma) ** 2)
    if isinstance(kernel, kernels.DDIM):
        zeta = (
            kernel.eta
            * next_sigma
            * math.sqrt(1.0 - (alpha * next_sigma / (next_alpha * sigma)) ** 2)
        )
        rho = math.sqrt(next_sigma**2 - zeta**2)
    else:
        rho = next_sigma * share_kept(kernel, t, s, alpha * next_sigma / (next_alpha * sigma))
        zeta = math.sqrt(next_sigma**2 - rho**2)
    v = kernel.data_variance
    spread = v * sigma**2 / (alpha**2 * v + sigma**2)
    weight = next_alpha - rho * alpha / sigma
    return next_alpha * x0 + rho * x1, math.sqrt(zeta**2 + weight**2 * spread)


@pytest.mark.slow_but_one
@pytest.mark.parametrize("kernel", STOCHASTIC, ids=str)
def test_log_prob_is_the_gaussian_density(kernel):
    t, s = times_of(kernel)
    x, x0, x1 = point(kernel.interpolant, t, (3, 2))
    mean, std = written_out(kernel, x, x0, x1, t, s)
    for distance in (0.0, 0.5, 4.0):
        child = jnp.asarray(mean + distance * std * np.array([[1.0, -1.0]] * 3), jnp.float32)
        got = kernel.log_prob(child, x, x0, x1, t, s)
        assert got.shape == () and got.dtype == jnp.float32
        # Float32's roundings of the child and the mean, against std, enter with `distance`.
        np.testing.assert_allclose(
            got, scipy.stats.norm.logpdf(child, mean, std).sum(), rtol=1e-5, atol=1e-4
        )


@pytest.mark.slow
@pytest.mark.parametrize("kernel", STOCHASTIC, ids=str)
def test_log_prob_integrates_to_1_and_fits_the_draws(kernel):
    """In one dimension, by the trapezoidal rule; the mean too is that of the draws."""
    t, s = times_of(kernel)
    x, x0, x1 = point(kernel.interpolant, t, (1,))
    grid = jnp.linspace(-8.0, 8.0, 4001)

    @jax.jit
    def density_and_draws(grid):
        log_prob = jax.vmap(lambda y: kernel.log_prob(y[None], x, x0, x1, t, s))(grid)
        keys = jax.random.split(KEY, 4000)
        return jnp.exp(log_prob), jax.vmap(lambda k: kernel(k, x, x0, x1, t, s)[0])(keys)

    density, draws = (np.asarray(a, np.float64) for a in density_and_draws(grid))
    grid = np.asarray(grid, np.float64)
    assert abs(np.trapezoid(density, grid) - 1.0) < 1e-4
    mean = np.trapezoid(density * grid, grid)
    variance = np.trapezoid(density * (grid - mean) ** 2, grid)
    assert abs(draws.mean() - mean) < 5.0 * math.sqrt(variance / draws.size)
    assert abs(draws.var() / variance - 1.0) < 5.0 * math.sqrt(2.0 / draws.size)


@pytest.mark.parametrize(
    "kernel",
    [
        kernels.ode_euler(LINEAR),
        kernels.ode_heun(LINEAR),
        kernels.ddim(LINEAR, 0.0),
        kernels.correlated(LINEAR, rho=1.0),
        kernels.correlated(LINEAR, kappa=0.0),
    ],
    ids=str,
)
def test_deterministic_kernels_have_no_density(kernel):
    x, x0, x1 = point(LINEAR, 0.7)
    with pytest.raises(ValueError, match="deterministic"):
        kernel.log_prob(x, x, x0, x1, 0.7, 0.5)


def test_a_corrected_kernel_has_no_density():
    x, x0, x1 = point(LINEAR, 0.7)
    with pytest.raises(ValueError, match="SDEHeun.*no density in closed form"):
        kernels.sde_heun(LINEAR, diffusion.square()).log_prob(x, x, x0, x1, 0.7, 0.5)


@pytest.mark.slow_but_one
@pytest.mark.parametrize(
    "kernel, s",
    [
        (kernels.ddim(LINEAR, 1.0), 0.0),
        (kernels.cps(INTERPOLANTS["vp"], 0.5), 0.0),
        (kernels.euler_maruyama(LINEAR, diffusion.clipping()), 0.3),
        (kernels.exact(LINEAR, diffusion.clipping()), 0.3),
        (kernels.correlated(LINEAR, rho=0.4), 0.0),
        (kernels.renoise(LINEAR), 0.4),
    ],
    ids=str,
)
def test_log_prob_of_a_point_mass(kernel, s):
    """Without noise: the limit of N(mean, std^2) for std -> 0, and never NaN."""
    x, x0, x1 = point(kernel.interpolant, 0.4)
    mean, std = kernel.moments(x, x0, x1, jnp.float32(0.4), jnp.float32(s))
    assert std == 0.0
    assert kernel.log_prob(mean, x, x0, x1, 0.4, s) == math.inf
    assert kernel.log_prob(mean.at[0].add(0.1), x, x0, x1, 0.4, s) == -math.inf


# Renoise


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_renoise_keeps_the_marginals_and_composes(name):
    """Slope and variance of t -> u equal those of t -> s -> u, and keep a Gaussian's variance."""
    p = INTERPOLANTS[name]
    kernel = kernels.renoise(p)

    def moments(t, s):
        one, nothing = jnp.ones_like(t), jnp.zeros_like(t)
        slope, std = kernel.moments(one, nothing, nothing, t, s)
        return slope, std**2

    with jax.enable_x64(True):
        t, s, u = (jnp.asarray(a) for a in ([0.0, 0.0, 0.2, 0.4], [0.1, 0.5, 0.3, 0.8], [1.0] * 4))
        (k1, v1), (k2, v2), (k, v) = moments(t, s), moments(s, u), moments(t, u)
        np.testing.assert_allclose(k2 * k1, k, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(k2**2 * v1 + v2, v, rtol=1e-9)
        marginal = [p.alpha(a) ** 2 * 0.3 + p.sigma(a) ** 2 for a in (t, s, u)]
        np.testing.assert_allclose(k1**2 * marginal[0] + v1, marginal[1], rtol=1e-9)
        np.testing.assert_allclose(k**2 * marginal[0] + v, marginal[2], rtol=1e-9)
        np.testing.assert_allclose(k1 * p.alpha(t), p.alpha(s), rtol=1e-9)


# Types, shapes, keys, errors


@pytest.mark.slow
@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("shape", [(), (3,), (2, 4, 3)])
def test_float32_in_float32_out(x64, shape):
    with jax.enable_x64(x64):
        x, x0, x1 = (jnp.full(shape, a, jnp.float32) for a in (0.3, -0.2, 0.8))
        times = jnp.float32(0.6), jnp.float32(0.4)
        for kernel in all_kernels(INTERPOLANTS["vp"]):
            child = jax.eval_shape(kernel, KEY, x, x0, x1, *times)
            assert (child.shape, child.dtype) == (shape, jnp.float32), kernel
            if kernel.evaluations == 2:
                again = jax.eval_shape(kernel.correct, x, x0, x1, x, x0, x1, *times)
                assert (again.shape, again.dtype) == (shape, jnp.float32), kernel
            elif kernel.stochastic:
                density = jax.eval_shape(kernel.log_prob, x, x, x0, x1, *times)
                assert (density.shape, density.dtype) == ((), jnp.float32), kernel
        noisier = jax.eval_shape(kernels.renoise(LINEAR), KEY, x, x0, x1, *times[::-1])
        assert noisier.dtype == jnp.float32


@pytest.mark.slow
def test_keys():
    """The same key gives the same child, another key another, alone or in a batch."""
    x, x0, x1 = point(LINEAR, 0.7)
    keys = jax.random.split(jax.random.key(9), 2)[jnp.array([0, 0, 1])]

    @jax.jit
    def children(keys):
        down = [*STOCHASTIC[:2], STOCHASTIC[3]]
        moves = [partial(k, x=x, x0=x0, x1=x1, t=0.7, s=0.55) for k in down]
        moves.append(partial(kernels.renoise(LINEAR), x=x, x0=x0, x1=x1, t=0.55, s=0.7))
        return [(jax.vmap(move)(keys), move(keys[2])) for move in moves]

    for batch, alone in children(keys):
        np.testing.assert_array_equal(batch[0], batch[1])
        assert np.all(batch[0] != batch[2])
        np.testing.assert_allclose(batch[2], alone, rtol=1e-6, atol=1e-6)


def test_kernels_are_static_arguments():
    """Equal by value, so that two of the same settings share one compiled program."""

    @partial(jax.jit, static_argnums=0)
    @chex.assert_max_traces(n=2)
    def move(kernel, x):
        return kernel(KEY, x, x, x, 0.5, 0.4)

    x = jnp.ones(3)
    for _ in range(2):
        move(kernels.euler_maruyama(fs.interpolants.vp(), diffusion.square(3.0)), x)
        move(kernels.ddim(LINEAR, 1), x)
        move(kernels.ddim(fs.interpolants.linear(), 1.0), x)
    assert len({*all_kernels(LINEAR)}) == len([*all_kernels(LINEAR)])
    assert hash(kernels.cps(LINEAR, 0.5)) == hash(kernels.cps(LINEAR, 0.5))
    assert kernels.cps(LINEAR, 0.5) != kernels.ddim(LINEAR, 0.5)
    assert kernels.cps(LINEAR, 0.5) != kernels.cps(LINEAR, 0.6)


def test_evaluations():
    heun = (kernels.ODEHeun, kernels.SDEHeun)
    assert {k.evaluations for k in all_kernels(LINEAR) if isinstance(k, heun)} == {2}
    assert {k.evaluations for k in all_kernels(LINEAR) if not isinstance(k, heun)} == {1}
    x = jnp.ones(3)
    with pytest.raises(TypeError, match="DDIM.*one evaluation"):
        kernels.ddim(LINEAR).correct(x, x, x, x, x, x, 0.5, 0.4)


@pytest.mark.parametrize("build", [kernels.ddim, kernels.cps])
@pytest.mark.parametrize(
    "options, match",
    [
        ({"eta": -0.1}, r"eta must lie in \[0, 1\], got -0.1"),
        ({"eta": 1.1}, "eta"),
        ({"eta": math.nan}, "eta"),
        ({"data_variance": -1.0}, "data_variance"),
        ({"data_variance": math.nan}, "data_variance"),
        ({"data_variance": math.inf}, "data_variance"),
    ],
)
def test_wrong_settings(build, options, match):
    with pytest.raises(ValueError, match=match):
        build(LINEAR, **options)


def test_wrong_types():
    builds = [
        kernels.ode_euler,
        kernels.ode_heun,
        kernels.ddim,
        kernels.cps,
        kernels.renoise,
        kernels.correlated,
        partial(kernels.exact, diffusion=diffusion.square()),
        partial(kernels.euler_maruyama, diffusion=diffusion.square()),
        partial(kernels.sde_heun, diffusion=diffusion.square()),
    ]
    for build in builds:
        with pytest.raises(TypeError, match=r"interpolant must be .* got str"):
            build("linear")
    for build in (kernels.euler_maruyama, kernels.sde_heun, kernels.exact):
        with pytest.raises(TypeError, match="diffusion must be callable"):
            build(LINEAR, 3.0)


def test_a_kernel_moves_one_particle():
    x, batch = jnp.ones((4, 2)), jnp.full((4,), 0.5)
    for kernel in (STOCHASTIC[0], kernels.ode_heun(LINEAR), kernels.renoise(LINEAR)):
        with pytest.raises(ValueError, match=r"t has shape \(4,\).*jax.vmap"):
            kernel(KEY, x, x, x, batch, 0.4)
        with pytest.raises(ValueError, match=r"s has shape \(4,\)"):
            kernel(KEY, x, x, x, 0.5, batch)
    with pytest.raises(ValueError, match="t has shape"):
        STOCHASTIC[0].log_prob(x, x, x, x, batch, 0.4)
    with pytest.raises(ValueError, match="s has shape"):
        kernels.ode_heun(LINEAR).correct(x, x, x, x, x, x, 0.5, batch)


def test_the_means_are_of_the_same_particle():
    """What would broadcast to another shape is no particle's."""
    x = jnp.ones((4, 2))
    for kernel in STOCHASTIC:
        for x0, x1 in ((x[0], x), (x, x[:, :1]), (jnp.float32(0.0), x)):
            with pytest.raises(AssertionError, match="x, x0 and x1 are of one particle"):
                kernel(KEY, x, x0, x1, 0.5, 0.4)
        with pytest.raises(AssertionError, match="x, x0 and x1 are of one particle"):
            kernel.log_prob(x[0], x, x, x, 0.5, 0.4)
        with pytest.raises(AssertionError, match="x, x0 and x1 are of one particle"):
            kernel(KEY, x, jnp.ones((4, 2), int), x, 0.5, 0.4)
    for build in (kernels.sde_heun(LINEAR, diffusion.square()), kernels.ode_heun(LINEAR)):
        with pytest.raises(AssertionError, match="x, x0 and x1 are of one particle"):
            build.correct(x, x, x, x, x[0], x, 0.5, 0.4)


@pytest.mark.slow_but_one
@pytest.mark.parametrize(
    "build", [kernels.euler_maruyama, kernels.sde_heun, kernels.exact], ids=lambda b: b.__name__
)
def test_a_diffusion_coefficient_is_shaped_as_its_time(build):
    x = jnp.ones((4, 2))
    with pytest.raises(AssertionError, match=r"diffusion\(interpolant, t\), shaped as t"):
        build(LINEAR, lambda p, t: jnp.full(2, 0.5))(KEY, x, x, x, 0.5, 0.4)
    numbers = build(LINEAR, lambda p, t: 0.5), build(LINEAR, diffusion.constant(0.5))
    chex.assert_trees_all_equal(*(kernel(KEY, x, x, x, 0.5, 0.4) for kernel in numbers))


# Noise


@pytest.mark.slow_but_one
@pytest.mark.parametrize("shape", [(), (5,), (4, 6, 3)])
def test_noise_in_one_row_is_that_of_jax_bit_for_bit(shape):
    keys = jax.random.split(jax.random.key(9), 3)
    ours = jax.jit(jax.vmap(lambda key: standard_normal(key, shape)))(keys)
    theirs = jax.jit(jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32)))(keys)
    np.testing.assert_array_equal(ours, theirs)
