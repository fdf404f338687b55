"""How far each kernel's variance is from the truth, against an outside closed form.

For data N(m, v I) both posterior means are affine in x, so every kernel maps N(mu, V) to
N(k mu + b, k^2 V + std^2). `tests/data/kernel_variance.json` holds the relative error of V after
each step; here k and std come out of the kernels themselves (k by forward mode), and the same
rows are then met by simulated particles.
"""

import json
import math
import pathlib
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowsde as fs

TABLE = json.loads((pathlib.Path(__file__).parent / "data" / "kernel_variance.json").read_text())
MEAN = 0.7
PARTICLES = 100_000
INTERPOLANTS = {
    "linear": fs.interpolants.linear(),
    "vp": fs.interpolants.vp(0.1, 20.0),
    "cosine": fs.interpolants.cosine(),
    "polynomial": fs.interpolants.polynomial(2),
    "linear_vp": fs.interpolants.linear_vp(),
}


def parse(name: str, p: fs.interpolants.Interpolant, v: float) -> fs.kernels.Kernel:
    """The kernel of a row's name."""
    if name == "euler_maruyama":
        return fs.kernels.euler_maruyama(p, fs.diffusion.square(scale=3.0))
    match = re.fullmatch(r"(ddim|cps)\(([\d.]+)(,data_variance=v)?\)", name)
    if match is None:
        raise ValueError(f"unknown kernel {name!r}")
    build = {"ddim": fs.kernels.ddim, "cps": fs.kernels.cps}[match[1]]
    return build(p, float(match[2]), data_variance=v if match[3] else 0.0)


def posterior_means(p, x, t, v):
    """E[data | x_t] and E[noise | x_t] of data N(MEAN, v), written out."""
    alpha, sigma = p.alpha(t), p.sigma(t)
    scaled = (x - alpha * MEAN) / (alpha**2 * v + sigma**2)
    return MEAN + alpha * v * scaled, sigma * scaled


def exact(p, t, v):
    """Mean and variance of the marginal at t."""
    return p.alpha(t) * MEAN, p.alpha(t) ** 2 * v + p.sigma(t) ** 2


def affine(kernel, v, t, s):
    """Slope k, mean at 0 and standard deviation of a kernel with the exact posterior means."""

    def mean_and_std(x):
        return kernel.moments(x, *posterior_means(kernel.interpolant, x, t, v), t, s)

    zero = jnp.zeros_like(t)
    (offset, std), (slope, _) = jax.jvp(mean_and_std, (zero,), (jnp.ones_like(t),))
    return slope, offset, std


@partial(jax.jit, static_argnums=0)
def variance_errors(groups, grid):
    """Relative errors of the variance [row, step] by the affine recursion.

    A group is (kernel, data variances); its rows are compiled together.
    """

    def errors(kernel, v):
        def step(variance, ts):
            slope, _, std = affine(kernel, v, *ts)
            variance = slope**2 * variance + std**2
            return variance, variance / exact(kernel.interpolant, ts[1], v)[1] - 1.0

        return jax.lax.scan(step, exact(kernel.interpolant, grid[0], v)[1], (grid[:-1], grid[1:]))[
            1
        ]

    vectors = [(kernel, jnp.asarray(vs, grid.dtype)) for kernel, vs in groups]
    return jnp.concatenate([jax.vmap(partial(errors, k))(vs) for k, vs in vectors])


def rows(interpolant):
    return [row for row in TABLE["rows"] if row["interpolant"] == interpolant]


def row_groups(interpolant):
    """((kernel, (v, ...)), ...) and, in the same order, v [row] and the errors [row, step]."""
    grouped = {}
    for row in rows(interpolant):
        v = row["data_variance"]
        kernel = parse(row["kernel"], INTERPOLANTS[interpolant], v)
        grouped.setdefault(kernel, []).append((v, row["relative_variance_error"]))
    groups = tuple((kernel, tuple(v for v, _ in found)) for kernel, found in grouped.items())
    flat = [pair for found in grouped.values() for pair in found]
    return groups, np.array([v for v, _ in flat]), np.array([error for _, error in flat])


def test_every_row_is_read():
    assert len(rows("vp")) + len(rows("linear")) == len(TABLE["rows"]) == 42
    np.testing.assert_allclose(TABLE["grid"], fs.grids.quadratic(10), atol=1e-12)
    with pytest.raises(ValueError, match="unknown kernel"):
        parse("euler", INTERPOLANTS["vp"], 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("interpolant", ["vp", "linear"])
def test_closed_form(interpolant):
    groups, _, expected = row_groups(interpolant)
    with jax.enable_x64(True):
        got = np.asarray(variance_errors(groups, jnp.asarray(TABLE["grid"], jnp.float64)))
    np.testing.assert_allclose(got, expected, rtol=0.0, atol=1e-5)


@partial(jax.jit, static_argnums=0)
def simulated_variances(groups, key, grid):
    """Variances [row, step] of clouds of particles moved by the kernels, with common keys."""

    def move(kernel, vs, keys, clouds, t, s):
        def one(x, v):
            x0, x1 = posterior_means(kernel.interpolant, x, t, v)
            return jax.vmap(kernel, (0, 0, 0, 0, None, None))(keys, x, x0, x1, t, s)

        return jax.vmap(one)(clouds, jnp.asarray(vs, grid.dtype))

    def step(state, inputs):
        i, t, s = inputs
        keys = jax.random.split(jax.random.fold_in(key, i), PARTICLES)
        state = [move(*group, keys, x, t, s) for group, x in zip(groups, state, strict=True)]
        return state, jnp.concatenate([jnp.var(x, axis=1) for x in state])

    def start(kernel, vs):
        mean, variance = exact(kernel.interpolant, grid[0], jnp.asarray(vs, grid.dtype))
        return mean + jnp.sqrt(variance)[:, None] * noise[None]

    noise = jax.random.normal(key, (PARTICLES,), grid.dtype)
    inputs = (1 + jnp.arange(grid.size - 1), grid[:-1], grid[1:])
    return jax.lax.scan(step, [start(*group) for group in groups], inputs)[1].T


@pytest.mark.slow
@pytest.mark.parametrize("interpolant", ["linear", "vp"])
def test_simulated_particles(interpolant):
    groups, v, expected = row_groups(interpolant)
    grid = jnp.asarray(TABLE["grid"], jnp.float32)
    got = np.asarray(simulated_variances(groups, jax.random.key(5), grid), np.float64)
    with jax.enable_x64(True):
        s = jnp.asarray(TABLE["grid"][1:])[None]
        truth = np.asarray(exact(INTERPOLANTS[interpolant], s, jnp.asarray(v)[:, None])[1])
    # A sample variance of N Gaussians has relative standard error sqrt(2 / N).
    rtol = 5.0 * math.sqrt(2.0 / PARTICLES)
    np.testing.assert_allclose(got, truth * (1.0 + expected), rtol=rtol)


def padded(grid):
    """30 steps: further ones from 0 to 0, which move nothing."""
    return np.pad(grid, (0, 31 - grid.size))


@pytest.mark.slow
@pytest.mark.parametrize("interpolant", INTERPOLANTS)
def test_data_variance_is_exact_at_any_number_of_steps(interpolant):
    p = INTERPOLANTS[interpolant]
    groups = tuple(
        (build(p, dial, data_variance=v), (v,))
        for build, dial, v in [
            (fs.kernels.ddim, 1.0, 0.05),
            (fs.kernels.ddim, 0.0, 1.0),
            (fs.kernels.cps, 0.5, 0.25),
            (fs.kernels.cps, 1.0, 0.05),
            (fs.kernels.correlated, 0.4, 0.25),
            (fs.kernels.exact, fs.diffusion.square(), 0.25),
        ]
    )
    kinds = (fs.grids.uniform, fs.grids.quadratic)
    grids = np.stack([padded(grid(n)) for n in (3, 10, 30) for grid in kinds])
    with jax.enable_x64(True):
        got = jax.vmap(partial(variance_errors, groups))(jnp.asarray(grids))
    np.testing.assert_allclose(np.asarray(got), 0.0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [3, 10, 30])
def test_data_variance_holds_for_simulated_particles(steps):
    """At the data end the cloud is N(m, v), in float32, where the other kernels are off."""
    p, v = INTERPOLANTS["linear"], 0.25
    groups = tuple((k, (v,)) for k in (fs.kernels.ddim(p, 1.0, v), fs.kernels.cps(p, 0.5, v)))
    grid = jnp.asarray(padded(fs.grids.quadratic(steps)), jnp.float32)
    got = np.asarray(simulated_variances(groups, jax.random.key(6), grid))[:, -1]
    np.testing.assert_allclose(got, v, rtol=5.0 * math.sqrt(2.0 / PARTICLES))
