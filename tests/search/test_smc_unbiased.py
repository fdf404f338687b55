"""SMC with guided proposals, tempering, windows and funnels: E[exp(log_z)] = Z in closed form.

Of Gaussian data N(m, v I), DDIM with data_variance = v is exact at any step: the posterior means D
that SMC ends with are N(m, k I), k = alpha^2 v^2 / (alpha^2 v + sigma^2) at the last time. Tilted
by exp(r(D) / beta) of a quadratic reward, Z and the mean of D are known. Neither depends on the
proposal or on what happens on the way, at any number of particles.
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


@functools.partial(jax.jit, static_argnames="search")
def drive(key, search):
    """Final states of independent runs."""

    def round_(state, _):
        state, asked = jax.vmap(search.ask)(state)
        each = jax.vmap(functools.partial(worth, guided=search.uses_gradient))
        return jax.vmap(search.tell)(state, asked, each(asked.x, asked.t))[0], None

    target, nfe = jnp.float32(jnp.inf), jnp.int32(search.nfe)
    keys = jax.random.split(key, RUNS)
    state = jax.vmap(lambda key: search.init(key, (2,), target, nfe))(keys)
    return jax.lax.scan(round_, state, length=STEPS)[0]


def scores(state):
    """Standard scores of the estimates of Z and of Z E[D]."""
    alpha, sigma = 1.0 - GRID[-2], GRID[-2]
    spread = (alpha * VARIANCE) ** 2 / (alpha**2 * VARIANCE + sigma**2)
    tilted, log_z = fs.analytic.gaussian(MEAN, spread).tilt(B, Q, BETA)
    log_w = np.asarray(state.log_z, np.float64)[:, None] + np.asarray(state.log_weights, np.float64)
    weights = np.exp(log_w) / np.isfinite(log_w).sum(1, keepdims=True)
    x0 = np.where(np.isfinite(log_w)[..., None], np.asarray(state.particles.x0, np.float64), 0.0)
    found = np.column_stack([weights.sum(1), np.einsum("rn,rnd->rd", weights, x0)])
    exact = np.exp(float(log_z)) * np.append(1.0, np.asarray(tilted.mean(), np.float64))
    return (found.mean(0) - exact) / (found.std(0) / RUNS**0.5), found.std(0) / exact


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_estimates_are_unbiased(name):
    options = {"kernel": DDIM, "threshold": 0.7} | CASES[name]
    search = fs.search.smc(
        nfe=PARTICLES * STEPS, grid=GRID, temperature=BETA, finish="mean", **options
    )
    state = drive(jax.random.key(4), search)
    found, deviation = scores(state)
    assert np.all(np.abs(found) < 4.0), found
    # Standard errors of less than 2 %: a bias of 8 % of Z does not pass.
    assert abs(deviation[0]) / RUNS**0.5 < 0.02
