"""Particles under every interpolant and kernel end with the law of the data.

The model is the exact flow of a mixture of two Gaussians *on the linear interpolant*; kernels run
on others through `Flow.means`. Particles start from the exact marginal at t = 1 and follow 400
steps of the cosine grid, whose steps shrink towards t = 1 as (pi / 2n)^2 / 2, so that a diffusion
coefficient growing like (1 - t)^-1/2 gives steps that forget the error of the first one, and
whose last step is short, so that little posterior spread is lost there. There every bias is
below one standard error of 20,000 particles; the tests allow five.

DDIM(1) loses posterior spread, (delta log q)^2 u / (1 + u)^3 of a mode's variance v a step, with
q = sigma^2 / alpha^2 and u = q / v. Steps uniform in sqrt(u / (1 + u)) make the loss least, 4 / n:
its n = 800 is below one standard error too, under every interpolant, the grid being one of angles.

What holds for CPS: with a fixed eta every step redraws the same share of the noise, by a finite
Langevin-like kick which leaves a Gaussian of variance V with (1 + c) / (2 - (1 - c) sigma^2 / V)
times that variance, c = cos(eta pi / 2). More steps are more kicks, not smaller ones: plain
cps(.5) does *not* converge. It converges as eta ~ n^-1/2, to the SDE with
g^2 dt = (eta pi / 2)^2 sigma^2, and that is what is tested on the mixture. With `data_variance`
it is exact for Gaussian data of that variance at any number of steps, tested at a fixed eta here.
"""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowsde as fs
from flowsde import diffusion, kernels

PARTICLES, STEPS, POSTERIOR_STEPS = 20_000, 400, 800
MIXTURE = fs.analytic.mixture(
    [0.35, 0.65], [[-1.5, 0.5], [1.0, -0.5]], [[[0.2, 0.1], [0.1, 0.3]], [[0.35, 0.0], [0.0, 0.15]]]
)
GAUSSIAN = fs.analytic.gaussian([0.7, -0.4], 0.25)
INTERPOLANTS = {
    "linear": fs.interpolants.linear(),
    "vp": fs.interpolants.vp(),
    "cosine": fs.interpolants.cosine(),
    "polynomial": fs.interpolants.polynomial(2),
    "linear_vp": fs.interpolants.linear_vp(),
    # Noise of radius 2 at t = 1.
    "from_functions": fs.interpolants.from_functions(lambda t: 1.0 - t**2, lambda t: 2.0 * t),
}
# Scales: Euler-Maruyama contracts by g^2 h / 2 sigma^2 a step, which must stay well below 1 where
# the law is still to be made. `tan` at its default reaches g = 38: at scale 1 it is at most 12.7,
# next to t = 1 where the grid is fine. The radius-2 interpolant only makes this easier.
DIFFUSIONS = {
    "constant": diffusion.constant(),
    "sigma": diffusion.sigma(1.5),
    "linear": diffusion.linear(1.5),
    "square": diffusion.square(3.0),
    "sin": diffusion.sin(1.5),
    "clipping": diffusion.clipping(3.0),
    "exp": diffusion.exp(3.0),
    "tan": diffusion.tan(1.0),
    "flow_grpo": diffusion.flow_grpo(),
    "forward": diffusion.forward(),
}
OTHERS = {
    "ode_euler": kernels.ode_euler,
    "ode_heun": kernels.ode_heun,
    "sde_heun": partial(kernels.sde_heun, diffusion=diffusion.square(3.0)),
    "ddim(1)": partial(kernels.ddim, eta=1.0),
    "exact": partial(kernels.exact, diffusion=diffusion.square(3.0)),
    "cps(n^-1/2)": partial(kernels.cps, eta=1.0 / math.sqrt(POSTERIOR_STEPS)),
    "cps(.5,data_variance)": partial(kernels.cps, eta=0.5, data_variance=0.25),
}
FAST = {
    ("linear", "square"),
    ("linear", "forward"),
    ("linear", "cps(.5,data_variance)"),
    ("vp", "ode_heun"),
}
CASES = [
    pytest.param(*case, marks=[] if case in FAST else pytest.mark.slow)
    for case in itertools.product(INTERPOLANTS, (*DIFFUSIONS, *OTHERS))
    # In terms of angles CPS is one and the same under every interpolant.
    if case[1] != "cps(n^-1/2)" or case[0] in ("linear", "from_functions")
]


def grid_for(kernel, v=0.25):
    if getattr(kernel, "data_variance", 0.0) > 0.0:
        return jnp.asarray(fs.grids.cosine(10), jnp.float32)
    if not isinstance(kernel, kernels.DDIM | kernels.CPS):
        return jnp.asarray(fs.grids.cosine(STEPS), jnp.float32)
    phi = jnp.arcsin(1.0 - jnp.arange(POSTERIOR_STEPS + 1) / POSTERIOR_STEPS)
    return kernel.interpolant.time(jnp.arctan2(math.sqrt(v) * jnp.sin(phi), jnp.cos(phi)))


@partial(jax.jit, static_argnums=(1, 2))
def follow(data, p, name, which, key):
    """Particles [n, 2] at t = 0; all diffusion coefficients share one compiled program."""
    if name in OTHERS:
        kernel = OTHERS[name](p)
    else:
        branches = [partial(g, p) for g in DIFFUSIONS.values()]
        kernel = kernels.euler_maruyama(p, lambda _, t: jax.lax.switch(which, branches, t))
    flow = data.flow()
    # Not `key` itself for the steps: fold_in(key, 1) is split(key)[1].
    start, noise, steps = jax.random.split(key, 3)

    def means(x, t):
        return flow.means(x, jnp.full((PARTICLES,), t), None, p)

    def step(x, inputs):
        i, t, s = inputs
        x0, x1 = means(x, t)
        # A kernel moves one particle of any shape: all of them together are one.
        moved = kernel(jax.random.fold_in(steps, i), x, x0, x1, t, s)
        if kernel.evaluations == 2:
            moved = kernel.correct(x, x0, x1, moved, *means(moved, s), t, s)
        return moved, None

    grid = grid_for(kernel)
    noise = jax.random.normal(noise, (PARTICLES, 2), jnp.float32)
    x = p.alpha(grid[0]) * data.sample(start, PARTICLES) + p.sigma(grid[0]) * noise
    return jax.lax.scan(step, x, (1 + jnp.arange(grid.size - 1), grid[:-1], grid[1:]))[0]


def responsibilities(data, x):
    """P(component | x) [n, k]; their expectations are the weights exactly."""
    centred = x[:, None] - np.asarray(data.means, np.float64)
    along = np.einsum("nkd,kde->nke", centred, np.asarray(data.axes, np.float64))
    variances = np.asarray(data.variances, np.float64)
    log_joint = np.asarray(data.log_weights) - 0.5 * np.sum(
        along**2 / variances + np.log(variances), axis=-1
    )
    joint = np.exp(log_joint - log_joint.max(axis=1, keepdims=True))
    return joint / joint.sum(axis=1, keepdims=True)


def standard_errors(values, exact):
    """Largest distance of the mean of values [n, ...] from `exact`, in standard errors."""
    error = np.abs(values.mean(axis=0) - np.asarray(exact, np.float64))
    return float(np.max(error / (values.std(axis=0) / math.sqrt(len(values)))))


# What takes the time here is running, not compiling.
@pytest.mark.slow
@pytest.mark.usefixtures("full_optimization")
@pytest.mark.parametrize("interpolant, kernel", CASES)
def test_mean_covariance_and_weights(interpolant, kernel):
    data = GAUSSIAN if "data_variance" in kernel else MIXTURE
    which = list(DIFFUSIONS).index(kernel) if kernel in DIFFUSIONS else 0
    name = "euler_maruyama" if kernel in DIFFUSIONS else kernel
    x = follow(data, INTERPOLANTS[interpolant], name, which, jax.random.key(11))
    x = np.asarray(x, np.float64)
    mean, covariance = np.asarray(data.mean()), np.asarray(data.covariance())
    centred = x - mean
    assert standard_errors(x, mean) < 5.0
    assert standard_errors(centred[:, :, None] * centred[:, None, :], covariance) < 5.0
    # E[P(k | x)] = w_k and E[P(k | x) (x - m_k)(x - m_k)^T] = w_k S_k, exactly.
    shares, weights = responsibilities(data, x), np.exp(np.asarray(data.log_weights, np.float64))
    assert np.allclose(shares, 1.0) or standard_errors(shares, weights) < 5.0
    from_mode = x[:, None] - np.asarray(data.means, np.float64)
    within = shares[..., None, None] * from_mode[..., :, None] * from_mode[..., None, :]
    axes, variances = np.asarray(data.axes), np.asarray(data.variances)
    covariances = np.einsum("kij,kj,klj->kil", axes, variances, axes)
    assert standard_errors(within, weights[:, None, None] * covariances) < 5.0


def test_plain_cps_keeps_the_variance_its_kicks_leave():
    """The formula above, at the limit sigma^2 << V: c = cos(pi / 4), (1 + c) / 2 = .854."""
    p, v, steps = INTERPOLANTS["linear"], 0.25, 12_000
    c = math.cos(math.pi / 4.0)
    kernel = kernels.cps(p, 0.5)

    @jax.jit
    def kick(variance, t):
        total = (1.0 - t) ** 2 * v + t**2
        mean, std = kernel.moments(jnp.ones_like(t), (1.0 - t) * v / total, t / total, t, t)
        return mean**2 * variance + std**2

    with jax.enable_x64(True):
        for t in (0.3, 0.1, 0.03):
            t = jnp.asarray(t)
            variance = total = (1.0 - t) ** 2 * v + t**2
            variance = jax.lax.fori_loop(0, steps, lambda _, a, t=t: kick(a, t), variance)
            wanted = (1.0 + c) / (2.0 - (1.0 - c) * t**2 / total)
            np.testing.assert_allclose(variance / total, wanted, rtol=1e-6)
