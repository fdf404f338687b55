"""SMC with guided proposals, tempering, windows and funnels: E[exp(log_z)] = Z in closed form.

Of Gaussian data N(m, v I), DDIM with data_variance = v is exact at any step: the posterior means D
that SMC ends with are N(m, k I), k = alpha^2 v^2 / (alpha^2 v + sigma^2) at the last time. Tilted
by exp(r(D) / beta) of a quadratic reward, Z and the mean of D are known. Neither depends on the
proposal or on what happens on the way, at any number of particles.

On a fine grid the same holds of a mixture, up to the error of the steps.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowsde as fs
from flowsde.search.protocol import Evaluation

LINEAR = fs.interpolants.linear()
MEAN, VARIANCE, BETA = np.float32([0.4, -0.3]), 0.5, 0.6
B, Q = np.float32([0.8, 0.5]), np.float32([[-0.6, 0.2], [0.2, 0.3]])
GRID = (1.0, 0.75, 0.5, 0.3, 0.15, 0.0)
STEPS, PARTICLES, RUNS = len(GRID) - 1, 4, 20_000
DDIM = fs.kernels.ddim(LINEAR, data_variance=VARIANCE)
GUIDED = fs.kernels.guided(DDIM, temperature=BETA)
ALMOST = fs.kernels.guided(DDIM, temperature=2.0 * BETA)
"""Of another temperature than the search: as good a proposal as any."""

CASES = {
    "TDS": {"kernel": GUIDED},
    "DAS": {"kernel": GUIDED, "tempering": "exponential", "scheme": "ssp"},
    "DAS, adaptive": {"kernel": GUIDED, "tempering": "adaptive", "scheme": "ssp"},
    "current, window": {
        "potential": "current",
        "resample_from": 1,
        "resample_until": 2,
        "threshold": 1.0,
    },
    "funnel": {"funnel": 0.3, "scheme": "ssp"},
    "all": {
        "kernel": ALMOST,
        "potential": "max",
        "tempering": "polynomial",
        "funnel": 0.5,
        "interval": 2,
        "scheme": "residual",
    },
}


def worth(x, t, guided):
    """Means, reward and its gradient in x, of rows x [n, 2] at times t [n]."""
    t = t[:, None]
    alpha, sigma = 1.0 - t, t
    slope = alpha * VARIANCE / (jnp.square(alpha) * VARIANCE + jnp.square(sigma))
    x0 = MEAN[None] + slope * (x - alpha * MEAN[None])
    reward = x0 @ B + 0.5 * jnp.sum((x0 @ Q) * x0, -1)
    gradient = slope * (B[None] + x0 @ Q) if guided else None
    return Evaluation(x0, (x - alpha * x0) / sigma, reward, gradient)


@functools.partial(jax.jit, static_argnames=("search", "evaluate", "runs"))
def drive(key, search, evaluate, runs=RUNS):
    """Final states of independent runs."""

    def round_(state, _):
        state, asked = jax.vmap(search.ask)(state)
        each = jax.vmap(functools.partial(evaluate, guided=search.uses_gradient))
        return jax.vmap(search.tell)(state, asked, each(asked.x, asked.t))[0], None

    target, nfe = jnp.float32(jnp.inf), jnp.int32(search.nfe)
    keys = jax.random.split(key, runs)
    state = jax.vmap(lambda key: search.init(key, (2,), target, nfe))(keys)
    return jax.lax.scan(round_, state, length=search.steps)[0]


def scores(state, tilted, log_z):
    """Standard scores of the estimates of Z and of Z E[D], and the first one's standard error."""
    log_w = np.asarray(state.log_z, np.float64)[:, None] + np.asarray(state.log_weights, np.float64)
    used = np.isfinite(log_w)
    weights = np.exp(log_w) / used.sum(1, keepdims=True)
    x0 = np.where(used[..., None], np.asarray(state.particles.x0, np.float64), 0.0)
    found = np.column_stack([weights.sum(1), np.einsum("rn,rnd->rd", weights, x0)])
    exact = np.exp(float(log_z)) * np.append(1.0, np.asarray(tilted.mean(), np.float64))
    error = found.std(0) / len(found) ** 0.5
    return (found.mean(0) - exact) / error, error[0] / exact[0]


def exact():
    """The tilted law of the means that SMC ends with, and log Z."""
    alpha, sigma = 1.0 - GRID[-2], GRID[-2]
    spread = (alpha * VARIANCE) ** 2 / (alpha**2 * VARIANCE + sigma**2)
    return fs.analytic.gaussian(MEAN, spread).tilt(B, Q, BETA)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_estimates_are_unbiased(name):
    options = {"kernel": DDIM, "threshold": 0.7} | CASES[name]
    search = fs.search.smc(
        nfe=PARTICLES * STEPS, grid=GRID, temperature=BETA, finish="mean", **options
    )
    state = drive(jax.random.key(4), search, worth)
    found, error = scores(state, *exact())
    # A bias of 8 % of Z would not pass.
    assert np.all(np.abs(found) < 4.0) and error < 0.02, (found, error)


SAMPLES = {"value": "samples", "value_steps": 2, "value_samples": 2, "mass": "variance"}
AHEAD = {
    "TDS, mass": {"kernel": GUIDED, **SAMPLES},
    "DAS, mass": {"kernel": GUIDED, "tempering": "adaptive", **SAMPLES},
    "TDS, ode, branching": {"kernel": ALMOST, "value": "ode", "value_steps": 2, "branch_at": 2},
    "NoiseTilt": {"kernel": fs.kernels.noise_tilt(DDIM, 0.3)},
}


def quadratic(images, cond):
    return images @ B + 0.5 * jnp.sum((images @ Q) * images, -1)


@pytest.mark.slow
@pytest.mark.parametrize("name", AHEAD)
def test_estimates_of_guided_runs_are_unbiased(name):
    """Of whole runs: what is seen ahead, and gradients of the mean, are the runner's."""
    options = {"threshold": 0.7, "temperature": BETA, "finish": "mean"} | AHEAD[name]
    per_particle = {"TDS, ode, branching": 5 + 2, "NoiseTilt": 5}.get(name, 5 + 4 * 4)
    search = fs.search.smc(nfe=PARTICLES * per_particle, grid=GRID, **options)
    assert search.n_candidates == PARTICLES
    flow = fs.analytic.gaussian(MEAN, VARIANCE).flow()
    result = fs.run(jax.random.key(4), flow, search, quadratic, prompt_ids=np.arange(RUNS))
    assert np.all(result.nfe == search.nfe) and np.all(result.backward_passes == 4 * PARTICLES)
    found, error = scores(result.state, *exact())
    assert np.all(np.abs(found) < 4.0) and error < 0.02, (found, error)


MIXTURE = fs.analytic.mixture([0.3, 0.7], [[0.7, -0.5], [-0.7, 0.5]], [0.3, 0.2])
VP = fs.interpolants.vp()


def worth_of_mixture(x, t, guided):
    def reward(x):
        x0 = MIXTURE.x0(VP, x, t)
        return x0 @ B + 0.5 * jnp.sum((x0 @ Q) * x0, -1)

    gradient = jax.grad(lambda x: jnp.sum(reward(x)))(x) if guided else None
    return Evaluation(MIXTURE.x0(VP, x, t), MIXTURE.x1(VP, x, t), reward(x), gradient)


@pytest.mark.slow
def test_guided_samples_of_a_mixture_are_those_of_the_tilted_mixture():
    """Its components weigh otherwise, and lie elsewhere, than before."""
    kernel = fs.kernels.guided(
        fs.kernels.euler_maruyama(VP, fs.diffusion.square(1.0)), temperature=BETA
    )
    grid = (*np.linspace(1.0, 0.01, 24).tolist(), 0.0)
    particles, runs = 256, 64
    search = fs.search.smc(
        nfe=particles * 24, kernel=kernel, grid=grid, temperature=BETA, finish="mean",
        tempering="adaptive",
    )  # fmt: skip
    state = drive(jax.random.key(6), search, worth_of_mixture, runs)
    found, error = scores(state, *MIXTURE.tilt(B, Q, BETA))
    assert np.all(np.abs(found) < 4.0) and error < 0.02, (found, error)
