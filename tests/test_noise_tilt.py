"""Gradients made to look like noise: bounds by simulation, what passes, what is changed."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import flowsde as fs
from flowsde import kernels
from flowsde.kernels.noise_tilt import as_noise, bounds, whiten

KEY = jax.random.key(5)
LINEAR = fs.interpolants.linear()
BASE = kernels.ddim(LINEAR)
TILES, SIZE = 256, 64


def test_bounds_hold_as_often_as_they_say():
    """Ranks (r, j) of draws of noise lie within bounds of level .3 seven times in ten."""
    tiles, size, n = 6, 5, 8_000
    noise = np.random.default_rng(0).normal(size=(n, tiles, size))
    limits = bounds(tiles, size, level=0.3)
    found = {
        "values": np.sort(np.sort(noise, 2), 1),
        "means": np.sort(noise.mean(2) * math.sqrt(size), 1)[..., None],
        "energies": np.sort(np.square(noise).sum(2), 1)[..., None],
    }
    for name, ordered in found.items():
        low, high = getattr(limits, name)
        share = np.mean((ordered > low) & (ordered < high), 0)
        assert np.abs(share - 0.7).max() < 4.5 * math.sqrt(0.21 / n)


@pytest.mark.slow
def test_noise_passes():
    noise = jax.random.normal(KEY, (TILES, SIZE), jnp.float32)
    same = np.asarray(as_noise(noise, bounds(TILES, SIZE)))
    assert np.mean(np.abs(same - noise) > 1e-5) < 0.002
    whole = np.asarray(whiten(noise, SIZE), np.float64)
    noise = np.asarray(noise, np.float64)
    cosine = (whole * noise).sum() / np.linalg.norm(whole) / np.linalg.norm(noise)
    assert cosine > 0.99999
    # Of any size that the gradient has.
    for scale in (1e-30, 1e30):
        again = whiten(scale * jnp.asarray(noise, jnp.float32), SIZE)
        np.testing.assert_allclose(again, whole, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_smooth_gradient_becomes_noise():
    """A random walk: values, means of tiles and low frequencies far beyond those of noise."""
    walk = jnp.cumsum(jax.random.normal(KEY, (TILES * SIZE,), jnp.float32))
    white = np.asarray(whiten(walk, SIZE))
    assert 0.9 < np.linalg.norm(white) / math.sqrt(white.size) < 1.05
    assert scipy.stats.kstest(white, "norm").statistic < 0.05
    means = np.sort(math.sqrt(SIZE) * white.reshape(TILES, SIZE).mean(1))
    low, high = (limit[:, 0] for limit in bounds(TILES, SIZE).means)
    assert np.all((means > low - 1e-3) & (means < high + 1e-3))
    # The direction is still the gradient's.
    walk = np.asarray(walk)
    cosine = white @ walk / np.linalg.norm(white) / np.linalg.norm(walk)
    assert cosine > 0.04


@pytest.mark.slow
def test_the_law_given_the_gradient():
    """N(mean + std sqrt(rho) w, (1 - rho) std^2), with its density."""
    x, x0, x1, gradient = jax.random.normal(KEY, (4, 4, 4), jnp.float32)
    t, s, rho = jnp.float32(0.7), jnp.float32(0.5), 0.4
    kernel = kernels.noise_tilt(BASE, rho)
    plain, std = BASE.moments(x, x0, x1, t, s)
    mean = plain + std * math.sqrt(rho) * whiten(gradient)
    n = 20_000
    draw = jax.vmap(lambda key: kernel(key, x, x0, x1, t, s, gradient))
    draws = np.asarray(draw(jax.random.split(KEY, n)))
    spread = float(std) * math.sqrt(1.0 - rho)
    assert np.abs(draws.mean(0) - mean).max() < 4.5 * spread / math.sqrt(n)
    np.testing.assert_allclose(draws.std(0), np.full((4, 4), spread), rtol=0.03)
    own = kernel.log_prob(x, x, x0, x1, t, s, gradient)
    np.testing.assert_allclose(own, scipy.stats.norm.logpdf(x, mean, spread).sum(), rtol=1e-4)


@pytest.mark.slow
def test_without_a_gradient_it_is_the_kernel_itself():
    x, x0, x1 = jax.random.normal(KEY, (3, 4), jnp.float32)
    t, s = jnp.float32(0.7), jnp.float32(0.5)
    own = kernels.noise_tilt(BASE)(KEY, x, x0, x1, t, s, jnp.zeros_like(x))
    np.testing.assert_array_equal(own, BASE(KEY, x, x0, x1, t, s))


def rising(images, cond):
    return images @ jnp.linspace(1.0, -1.0, 8, dtype=jnp.float32)


@pytest.mark.slow
def test_a_search_takes_it_and_finds_more_reward():
    data = fs.analytic.gaussian(np.zeros(8), 0.5)
    rewards = []
    for kernel in (BASE, kernels.noise_tilt(BASE)):
        search = fs.search.bon(nfe=8, kernel=kernel, grid=fs.grids.uniform(8))
        result = fs.run(
            KEY, data.flow(), search, rising, cond=np.zeros(40, np.float32),
            prompt_ids=np.arange(40),
        )  # fmt: skip
        rewards.append(np.asarray(result.reward))
        assert np.all(result.backward_passes == 7 * kernel.uses_gradient)
    gain = rewards[1] - rewards[0]
    assert gain.mean() > 4 * gain.std() / math.sqrt(40)


def test_what_is_wrong_is_said():
    for kernel, options, error, message in (
        (kernels.ode_euler(LINEAR), {}, ValueError, "kernel must be stochastic .* got ODEEuler"),
        (kernels.noise_tilt(BASE), {}, TypeError, "reverse-time flowsde Kernel, got NoiseTilt"),
        (BASE, {"rho": 1.5}, ValueError, r"rho must lie in \[0, 1\], got 1.5"),
        (BASE, {"tile": 0}, ValueError, "tile must be an integer of at least 1, got 0"),
    ):
        with pytest.raises(error, match=message):
            kernels.noise_tilt(kernel, **options)
    with pytest.raises(ValueError, match="tile must divide the 8 values of a particle, got 3"):
        whiten(jnp.ones(8, jnp.float32), 3)
    with pytest.raises(TypeError, match="reverse-time flowsde Kernel, got NoiseTilt"):
        kernels.reward_gradient(kernels.noise_tilt(BASE), 1.0)
