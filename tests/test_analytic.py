"""Gaussian mixtures: autodiff identities in float64, ends, moments of samples, tilts, errors."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_interpolants import CURVES, EXACT, INTERIOR, TIMES

import flowsde as fs
from flowsde.interpolants import Interpolant

A = fs.analytic
WEIGHTS = [0.2, 0.5, 0.3]
MEANS = np.array([[-1.0, 0.5], [1.0, -0.4], [0.2, 1.5]])
COVARIANCES = np.array(
    [[[0.3, 0.1], [0.1, 0.2]], [[0.15, 0], [0, 0.4]], [[0.5, -0.3], [-0.3, 0.3]]]
)
PARAMETERS = (WEIGHTS, MEANS, COVARIANCES)
ROWS = 6


def _points(p, dtype):
    """Points [9 * ROWS, 2] a particle visits at each of TIMES, and their times."""
    rng = np.random.default_rng(0)
    x0, x1 = MEANS[rng.integers(0, 3, (9, ROWS))], rng.normal(size=(2, 9, ROWS, 2))
    t = jnp.asarray(TIMES, dtype)
    alpha, sigma = (np.asarray(f(t), np.float64)[:, None, None] for f in (p.alpha, p.sigma))
    x = alpha * (x0 + 0.5 * x1[0]) + sigma * x1[1]
    return jnp.asarray(x.reshape(-1, 2), dtype), jnp.repeat(t, ROWS)


@pytest.mark.slow
def test_data_density_is_the_textbook_one():
    x = np.random.default_rng(1).normal(size=(9 * ROWS, 2))
    density = 0.0
    for w, m, c in zip(*PARAMETERS, strict=True):
        d = x - m
        exponent = -0.5 * np.einsum("ni,ij,nj->n", d, np.linalg.inv(c), d)
        density += w * np.exp(exponent) / (2 * np.pi * np.sqrt(np.linalg.det(c)))
    with jax.enable_x64(True):
        data = A.mixture(*PARAMETERS, dtype=jnp.float64)
        ours = data.log_prob(CURVES["linear"], x, np.zeros(9 * ROWS))
    np.testing.assert_allclose(ours, np.log(density), rtol=1e-12, atol=1e-12)


@dataclasses.dataclass(frozen=True)
class _Tangent(Interpolant):
    """Any curve near one of its times: its coefficients there and their rates, as numbers.

    One compiled program then serves every curve.
    """

    start: tuple
    rates: tuple

    def alpha(self, t):
        return self.start[0] + self.rates[0] * t

    def sigma(self, t):
        return self.start[1] + self.rates[1] * t

    def alpha_dot(self, t):
        return self.rates[0] * jnp.ones_like(t)

    def sigma_dot(self, t):
        return self.rates[1] * jnp.ones_like(t)

    def time(self, angle):
        raise NotImplementedError


@jax.jit
@jax.vmap
def _identities(data, x, start, rates):
    """Pairs of what must be equal at one point of one curve."""
    p, now = _Tangent(start, rates), jnp.zeros_like(x[0])
    score, rate = jax.grad(lambda x, t: data.log_prob(p, x, t), argnums=(0, 1))(x, now)
    divergence = jnp.trace(jax.jacfwd(lambda x: data.velocity(p, x, now))(x))
    u, x0, x1 = (f(p, x, now) for f in (data.velocity, data.x0, data.x1))
    return {
        "score": (data.score(p, x, now), score),
        "continuity": (rate, -divergence - jnp.sum(u * score)),
        "point": (start[0] * x0 + start[1] * x1, x),
        "velocity": (u, rates[0] * x0 + rates[1] * x1),
    }


@pytest.mark.slow
def test_score_continuity_and_means_by_autodiff():
    t = INTERIOR
    exact = [EXACT[name](t, 1 - t) for name in CURVES]
    alpha, sigma, d_alpha, d_sigma = (np.concatenate(values) for values in zip(*exact, strict=True))
    n = len(alpha)
    rng = np.random.default_rng(0)
    x0, x1 = MEANS[rng.integers(0, 3, n)] + rng.normal(size=(n, 2)) / 2, rng.normal(size=(n, 2))
    x = alpha[:, None] * x0 + sigma[:, None] * x1
    with jax.enable_x64(True):
        data = A.mixture(*PARAMETERS, dtype=jnp.float64)
        data = jax.tree.map(lambda a: jnp.broadcast_to(a[None], (n, *a.shape)), data)
        found = _identities(data, x, (alpha, sigma), (d_alpha, d_sigma))
    for name, (ours, wanted) in found.items():
        floor = 1e-11 * np.abs(wanted).max()
        np.testing.assert_allclose(ours, wanted, rtol=1e-10, atol=floor, err_msg=name)


@jax.jit
def _every(data, points):
    return {
        name: {
            kind: getattr(data, kind)(CURVES[name], x, t)
            for kind in ("x0", "x1", "score", "log_prob", "velocity")
        }
        for name, (x, t) in points.items()
    }


@pytest.mark.slow_but_one
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_finite_up_to_both_ends(dtype):
    with jax.enable_x64(dtype == np.float64):
        data = A.mixture(*PARAMETERS, dtype=dtype)
        points = {name: _points(p, dtype) for name, p in CURVES.items()}
        every = jax.device_get(_every(data, points))
        for name, p in CURVES.items():
            (x, t), found = points[name], every[name]
            for kind, value in found.items():
                assert value.dtype == dtype
                last = -ROWS if (name, kind) == ("linear_vp", "velocity") else None
                assert np.isfinite(value[:last]).all(), (name, kind)
            first, x0, x1 = np.asarray(x[:ROWS]), found["x0"], found["x1"]
            np.testing.assert_allclose(x0[:ROWS], first, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(x1[:ROWS], np.zeros_like(first))
            if name != "vp":  # which ends short of pure noise
                mean = np.broadcast_to(np.asarray(WEIGHTS) @ MEANS, (ROWS, 2))
                np.testing.assert_allclose(x0[-ROWS:], mean, rtol=1e-5)
                noise = np.asarray(x)[-ROWS:] / np.asarray(p.sigma(t))[-1]
                np.testing.assert_allclose(x1[-ROWS:], noise, rtol=1e-5)


def test_one_gaussian_is_linear_regression():
    m, c = np.array([0.7, -0.2]), np.array([[0.5, 0.2], [0.2, 0.3]])
    x, alpha, sigma = np.random.default_rng(2).normal(size=(9, 2)), 0.6, 0.4
    gain = alpha * c @ np.linalg.inv(alpha**2 * c + sigma**2 * np.eye(2))
    with jax.enable_x64(True):
        data = A.gaussian(m, c, dtype=jnp.float64)
        ours = jax.jit(lambda data, x, t: data.x0(CURVES["linear"], x, t))(data, x, np.float64(0.4))
        np.testing.assert_allclose(ours, m + (x - alpha * m) @ gain.T, rtol=1e-12)
        np.testing.assert_allclose(data.covariance(), c, rtol=1e-12)
        np.testing.assert_allclose(data.mean(), m, rtol=1e-12)


def test_isotropic_covariances_may_be_numbers():
    full = A.mixture([1, 3], MEANS[:2], [0.2 * np.eye(2), 0.5 * np.eye(2)])
    short = A.mixture([1, 3], MEANS[:2], [0.2, 0.5])
    chex.assert_trees_all_equal(full, short)
    np.testing.assert_allclose(np.exp(short.log_weights), [0.25, 0.75], rtol=1e-6)
    np.testing.assert_array_equal(
        A.mixture([1, 3], MEANS[:2], 0.3).variances, np.full((2, 2), 0.3, np.float32)
    )
    np.testing.assert_array_equal(
        A.gaussian([1.0, 2.0, 3.0], 0.3).variances[0], np.full(3, 0.3, np.float32)
    )
    assert A.gaussian([1.0, 2.0, 3.0], 0.3).dimension == 3


def test_samples_have_the_moments_and_the_weights():
    n = 20_000
    data = A.mixture(*PARAMETERS)
    x = np.asarray(jax.jit(lambda key: data.sample(key, n))(jax.random.key(5)), np.float64)
    assert x.shape == (n, 2)
    weights = np.asarray(WEIGHTS)
    mean = weights @ MEANS
    centred = MEANS - mean
    covariance = np.einsum(
        "k,kij->ij", weights, COVARIANCES + centred[:, :, None] * centred[:, None]
    )
    np.testing.assert_allclose(data.mean(), mean, rtol=1e-6)
    np.testing.assert_allclose(data.covariance(), covariance, rtol=1e-5, atol=1e-6)
    error = x.std(0) / np.sqrt(n)
    assert np.all(np.abs(x.mean(0) - mean) < 5 * error)
    products = (x - mean)[:, :, None] * (x - mean)[:, None]
    error = products.std(0) / np.sqrt(n)
    assert np.all(np.abs(products.mean(0) - covariance) < 5 * error)


def test_component_is_the_nearest_of_well_separated_ones():
    data = A.mixture([1, 1, 1], 10 * MEANS, COVARIANCES)
    component = jax.jit(lambda data, x: data.component(x))
    assert component(data, np.asarray(10 * MEANS, np.float32)).tolist() == [0, 1, 2]


LINEAR = np.array([0.8, -0.6])
QUADRATIC = np.array([[-1.2, 0.5], [0.5, 0.4]])
BETA = 0.7
"""With QUADRATIC, one of whose eigenvalues is above 0: below every component's precision."""


def _mixture(*parameters):
    with jax.enable_x64(True):
        return A.mixture(*parameters, dtype=jnp.float64)


def _tilt(data, *arguments, **options):
    with jax.enable_x64(True):
        return data.tilt(*arguments, **options)


def _moments(data):
    with jax.enable_x64(True):
        return np.asarray(data.mean()), np.asarray(data.covariance())


def _density(data, x):
    """Of the data at points x [n, d], by the definition; [n]."""
    total = 0.0
    for log_w, m, v, axes in zip(
        *(np.asarray(leaf) for leaf in jax.tree.leaves(data)), strict=True
    ):
        along = (x - m) @ axes
        total += np.exp(log_w - 0.5 * np.sum(along**2 / v + np.log(2.0 * np.pi * v), axis=1))
    return total


def _grid(dimension, bound, n):
    """Nodes [n^d, d] of the trapezoidal rule and the volume of a cell."""
    line = np.linspace(-bound, bound, n)
    nodes = np.stack(np.meshgrid(*(line,) * dimension, indexing="ij"), axis=-1)
    return nodes.reshape(-1, dimension), (line[1] - line[0]) ** dimension


@pytest.mark.parametrize(
    ("parameters", "linear", "quadratic", "beta"),
    [
        (([0.4, 0.6], [[-1.0], [1.5]], [0.3, 0.1]), [0.7], None, 0.5),
        (([0.4, 0.6], [[-1.0], [1.5]], [0.3, 0.1]), [0.7], [[0.9]], 0.5),
        (([0.4, 0.6], [[-1.0], [1.5]], [0.3, 0.1]), [-0.2], [[-5.0]], 0.5),
        (PARAMETERS, LINEAR, None, BETA),
        (PARAMETERS, [0.0, 0.0], QUADRATIC, BETA),
        (PARAMETERS, LINEAR, QUADRATIC, BETA),
    ],
)
def test_tilted_law_is_that_of_quadrature(parameters, linear, quadratic, beta):
    """By the trapezoidal rule, next to exact for an analytic density that vanishes at the ends."""
    data = _mixture(*parameters)
    tilted, log_z = _tilt(data, linear, quadratic, beta)
    x, cell = _grid(data.dimension, 16.0, 2_001 if data.dimension == 1 else 301)
    q = np.zeros((data.dimension,) * 2) if quadratic is None else np.asarray(quadratic)
    reward = x @ np.asarray(linear) + 0.5 * np.sum((x @ q) * x, axis=1)
    weights = _density(data, x) * np.exp(reward / beta) * cell
    z = weights.sum()
    np.testing.assert_allclose(log_z, np.log(z), rtol=1e-10, atol=1e-12)
    mean, covariance = _moments(tilted)
    exact = weights @ x / z
    centred = x - exact
    np.testing.assert_allclose(mean, exact, rtol=1e-10, atol=1e-12)
    wanted = (weights[:, None] * centred).T @ centred / z
    np.testing.assert_allclose(covariance, wanted, rtol=1e-10, atol=1e-12)
    density, wanted = _density(tilted, x), weights / (z * cell)
    np.testing.assert_allclose(density, wanted, rtol=1e-9, atol=1e-12 * wanted.max())
    assert np.exp(tilted.log_weights).sum() == pytest.approx(1.0, rel=1e-12)


def test_tilted_law_is_that_of_weighted_samples():
    """E_tilted[f] = E[f exp(r / beta)] / Z, and back: E[f] = Z E_tilted[f exp(-r / beta)]."""
    n, data = 20_000, A.mixture(*PARAMETERS)
    linear, quadratic = np.array([0.5, -0.3]), np.array([[-0.3, 0.1], [0.1, 0.2]])
    tilted, log_z = data.tilt(linear, quadratic)
    draw = jax.jit(lambda data, key: data.sample(key, n))
    for law, other, sign, seed in ((data, tilted, 1.0, 6), (tilted, data, -1.0, 7)):
        x = np.asarray(draw(law, jax.random.key(seed)), np.float64)
        reward = x @ linear + 0.5 * np.sum((x @ quadratic) * x, axis=1)
        weights = np.exp(sign * (reward - float(log_z)))
        mean = np.asarray(other.mean(), np.float64)
        products = np.einsum("ni,nj->nij", x - mean, x - mean).reshape(n, -1)
        wanted = np.concatenate([[1.0], mean, np.asarray(other.covariance()).reshape(-1)])
        values = weights[:, None] * np.concatenate([np.ones((n, 1)), x, products], axis=1)
        error = values.std(0) / np.sqrt(n)
        assert np.all(np.abs(values.mean(0) - wanted) < 4 * error)


def test_tilts_add_up_and_undo_each_other():
    data = _mixture(*PARAMETERS)
    first, log_z1 = _tilt(data, LINEAR, QUADRATIC, BETA)
    second, log_z2 = _tilt(first, [-0.3, 0.4], [[-0.2, 0.0], [0.0, -0.7]], BETA)
    both, log_z = _tilt(
        data, LINEAR + np.array([-0.3, 0.4]), QUADRATIC + np.diag([-0.2, -0.7]), BETA
    )
    back, log_z3 = _tilt(first, -LINEAR, -QUADRATIC, BETA)
    assert float(log_z) == pytest.approx(float(log_z1) + float(log_z2), rel=1e-12)
    assert float(log_z3) == pytest.approx(-float(log_z1), rel=1e-12)
    for ours, wanted in ((second, both), (back, data)):
        chex.assert_trees_all_close(_moments(ours), _moments(wanted), rtol=1e-11, atol=1e-13)
        np.testing.assert_allclose(ours.log_weights, wanted.log_weights, rtol=1e-11)
        np.testing.assert_allclose(ours.means, wanted.means, rtol=1e-11, atol=1e-13)


def test_limits_of_tilts():
    data = _mixture(*PARAMETERS)
    mean, covariance = _moments(data)
    # Nothing to tilt by.
    same, log_z = _tilt(data, [0.0, 0.0], np.zeros((2, 2)))
    assert float(log_z) == 0.0
    chex.assert_trees_all_close(_moments(same), (mean, covariance), rtol=1e-14)
    # A linear reward moves each component by its covariance and keeps it.
    tilted, _ = _tilt(data, LINEAR, temperature=BETA)
    np.testing.assert_allclose(tilted.means, MEANS + COVARIANCES @ LINEAR / BETA, rtol=1e-12)
    spread = np.einsum("kij,kj,klj->kil", tilted.axes, tilted.variances, tilted.axes)
    np.testing.assert_allclose(spread, COVARIANCES, rtol=1e-12, atol=1e-14)
    zero, _ = _tilt(data, LINEAR, np.zeros((2, 2)), BETA)
    np.testing.assert_array_equal(zero.means, tilted.means)
    # Hot: Z - 1 and the mean's shift are of first order, E[r] / beta and Cov(x, r) / beta.
    hot, log_z = _tilt(data, LINEAR, QUADRATIC, 1e6)
    reward = LINEAR @ mean + 0.5 * np.sum(QUADRATIC * (covariance + np.outer(mean, mean)))
    assert float(log_z) * 1e6 == pytest.approx(reward, rel=1e-5)
    hot, _ = _tilt(data, LINEAR, temperature=1e6)
    np.testing.assert_allclose((_moments(hot)[0] - mean) * 1e6, covariance @ LINEAR, rtol=1e-5)
    # Cold: all mass at the reward's only maximum, which here is that of every component.
    cold, _ = _tilt(data, [1.0, 2.0], -np.eye(2), 1e-6)
    np.testing.assert_allclose(cold.means, np.tile([1.0, 2.0], (3, 1)), atol=1e-4)
    np.testing.assert_allclose(cold.variances, np.full((3, 2), 1e-6), rtol=1e-4)


def test_strong_tilts_stay_finite_and_keep_the_dtype():
    """Weights of components that differ by far more than a float can hold."""
    tilted, log_z = A.mixture(*PARAMETERS).tilt([50.0, 0.0], temperature=0.01)
    chex.assert_type(jax.tree.leaves((tilted, log_z)), np.float32)
    chex.assert_tree_all_finite((tilted, log_z))
    assert log_z.shape == ()
    # Component 2 has the largest variance along the reward, which decides here.
    weights = np.exp(tilted.log_weights)
    np.testing.assert_array_equal(weights, [0.0, 0.0, 1.0])
    log_weight = np.log(0.3) + 5_000.0 * 0.2 + 0.5 * 5_000.0**2 * 0.5
    assert float(log_z) == pytest.approx(log_weight, rel=1e-6)


def test_flow_defaults_to_linear_and_is_a_pytree():
    data = A.mixture(*PARAMETERS)
    assert data.flow().interpolant == CURVES["linear"] and data.flow().shape == (2,)
    assert jax.tree.structure(data.flow()) == jax.tree.structure(A.mixture(*PARAMETERS).flow())
    assert len(jax.tree.leaves(data.flow(CURVES["vp"]))) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([1, 1], MEANS, 0.3), "means must be"),
        (([1.0], [1.0, 2.0], 0.3), "means must be"),
        (([1, 1, 0], MEANS, 0.3), "weights must be above 0"),
        (([1, 1, np.nan], MEANS, 0.3), "weights must be above 0"),
        (([1, 1, 1], MEANS, [0.3, 0.3, 0.0]), "positive definite"),
        (([1, 1, 1], MEANS, -0.3), "positive definite"),
        (([1, 1, 1], MEANS, np.tile([[1.0, 0.5], [0.0, 1.0]], (3, 1, 1))), "symmetric"),
        (([1, 1, 1], MEANS, np.ones((3, 3, 3))), "covariances must be"),
        (([1, 1, 1], MEANS, np.ones((2, 2))), "covariances must be"),
        (([1, 1, 1], MEANS, np.nan), "covariances must"),
        (([1, 1, 1], MEANS * np.nan, 0.3), "means must be finite"),
        (([1, 1, np.inf], MEANS, 0.3), "weights must be"),
        (([1, 1, 1], MEANS, [0.3, 0.3]), "covariances must be"),
    ],
)
def test_wrong_parameters_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        A.mixture(*arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([1.0],), r"linear must have shape \[2\], got \[1\]"),
        (([[1.0, 0.0]],), r"linear must have shape \[2\], got \[1, 2\]"),
        (([1.0, np.nan],), "linear must be finite"),
        (([1.0, 0.0], [1.0, 0.0]), r"quadratic must have shape \[2, 2\], got \[2\]"),
        (([1.0, 0.0], np.full((2, 2), np.inf)), "quadratic must be finite"),
        (([1.0, 0.0], [[0.0, 1.0], [0.0, 0.0]]), "quadratic must be symmetric"),
        (([1.0, 0.0], None, 0.0), "temperature must be a finite number above 0, got 0.0"),
        (([1.0, 0.0], None, np.inf), "temperature must be a finite number above 0, got inf"),
        (([1.0, 0.0], np.eye(2), 0.1), "quadratic / temperature must be below the precision"),
    ],
)
def test_wrong_tilts_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        A.mixture(*PARAMETERS).tilt(*arguments)


def test_tilt_exists_up_to_the_smallest_precision_of_any_component():
    data = A.mixture([0.5, 0.5], MEANS[:2], [0.5, 0.25])
    tilted, _ = data.tilt([0.0, 0.0], 1.99 * np.eye(2))
    np.testing.assert_allclose(tilted.variances, [[100.0, 100.0], [1 / 2.01, 1 / 2.01]], rtol=1e-5)
    for size in (2.0, 2.01, 4.01):  # the second component alone would allow the middle one
        with pytest.raises(ValueError, match="the tilted law does not exist"):
            data.tilt([0.0, 0.0], size * np.eye(2))


def test_wrong_points_and_times_are_named():
    data, p = A.mixture(*PARAMETERS), CURVES["linear"]
    for kind in ("x0", "x1", "score", "velocity", "log_prob"):
        method = getattr(data, kind)
        with pytest.raises(ValueError, match=r"x has shape \(3,\), expected \[..., 2\]"):
            method(p, np.ones(3, np.float32), 0.5)
        with pytest.raises(ValueError, match=r"x has shape \(\), expected \[..., 2\]"):
            method(p, np.float32(1.0), 0.5)
        with pytest.raises(ValueError, match=r"t has shape \(3,\)"):
            method(p, np.ones((4, 2), np.float32), np.ones(3, np.float32))
        with pytest.raises(ValueError, match="t must lie"):
            method(p, np.ones((4, 2), np.float32), 1.5)
        # t may not take the axis of one point's coordinates
        with pytest.raises(ValueError, match=r"t has shape \(2,\)"):
            method(p, np.ones(2, np.float32), np.ones(2, np.float32))
