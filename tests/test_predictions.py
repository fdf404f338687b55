"""Conversions against closed forms in NumPy float64, for every interpolant and every pair."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_interpolants import CURVES, EXACT, INTERIOR, TIMES

import flowsde as fs

KINDS = ("velocity", "score", "x0", "x1")
CONVERSIONS = [(a, b) for a in KINDS for b in KINDS if a != b]
SILENT = ("poly2", "poly3", "linear_vp")  # at t = 1 their velocity is 0 or infinite
PAIRS = [(a, b) for a in CURVES for b in CURVES]
every_curve = pytest.mark.parametrize("name", CURVES)

# Data of independent entries, each a mixture of two Gaussians.
WEIGHTS, MEANS, VARIANCES = np.array([0.3, 0.7]), np.array([-1.0, 0.8]), np.array([0.2, 0.05])


def _convert(a, b):
    return getattr(fs, f"{a}_to_{b}")


def _coefficients(name, t, ndim):
    with np.errstate(divide="ignore", invalid="ignore"):
        return [c.reshape(c.shape + (1,) * (ndim - t.ndim)) for c in EXACT[name](t, 1 - t)]


def _exact(name, x, t):
    """Every kind of prediction for the mixture above, float64, at points x [*time, ...]."""
    alpha, sigma, d_alpha, d_sigma = _coefficients(name, t, x.ndim)
    spread = alpha[..., None] ** 2 * VARIANCES + sigma[..., None] ** 2
    pull = (x[..., None] - alpha[..., None] * MEANS) / spread
    log_joint = np.log(WEIGHTS) - 0.5 * (np.log(spread) + pull**2 * spread)
    share = np.exp(log_joint - log_joint.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    score = -np.sum(share * pull, -1)
    x0 = np.sum(share * (MEANS + alpha[..., None] * VARIANCES * pull), -1)
    with np.errstate(invalid="ignore"):
        # sigma sigma' of VP tends to beta_min / 2 at the data.
        growth = np.where(np.isfinite(d_sigma), sigma * d_sigma, 0.05)
        velocity = d_alpha * x0 - growth * score
    return {"velocity": velocity, "score": score, "x0": x0, "x1": -sigma * score}


def _points(name, t, rows=4):
    """Points [len(t), rows] a particle may visit."""
    rng = np.random.default_rng(0)
    k = rng.integers(0, 2, (len(t), rows))
    x0 = MEANS[k] + np.sqrt(VARIANCES[k]) * rng.normal(size=k.shape)
    alpha, sigma, *_ = _coefficients(name, t, 2)
    return alpha * x0 + sigma * rng.normal(size=k.shape)


@every_curve
def test_all_twelve_agree_with_the_exact_quantities(name):
    p, x = CURVES[name], _points(name, INTERIOR)
    exact = _exact(name, x, INTERIOR)
    with jax.enable_x64(True):
        for a, b in CONVERSIONS:
            ours = _convert(a, b)(p, jnp.asarray(x), jnp.asarray(INTERIOR), jnp.asarray(exact[a]))
            # alpha falls to 3e-5 (poly3), which divides roundings of 1e-16.
            np.testing.assert_allclose(ours, exact[b], rtol=1e-9, atol=1e-10, err_msg=f"{a} to {b}")


@every_curve
def test_conversions_return_along_every_cycle(name):
    """Holds for any prediction, not only for exact ones: a to b to c to a."""
    p, x = CURVES[name], _points(name, INTERIOR)
    wanted = np.random.default_rng(1).normal(size=x.shape)
    with jax.enable_x64(True):
        x, t = jnp.asarray(x), jnp.asarray(INTERIOR)
        for a, b in CONVERSIONS:
            middle = _convert(a, b)(p, x, t, jnp.asarray(wanted))
            for c in KINDS:
                there = middle if c == b else _convert(b, c)(p, x, t, middle)
                back = there if c == a else _convert(c, a)(p, x, t, there)
                # Rounding of the largest intermediate, seen through 1 / alpha and 1 / sigma.
                np.testing.assert_allclose(back, wanted, rtol=1e-8, atol=1e-7, err_msg=f"{a}{b}{c}")


def _finite_ends(name, a, b):
    """The docstrings: at which of t = 0 and t = 1 a conversion is finite."""
    ends = {0.0, 1.0}
    if b in ("x0", "velocity") and a in ("score", "x1") and name != "vp":
        ends.discard(1.0)  # x0 is not determined where alpha = 0; VP ends short of that
    if b == "score" or (a == "x0" and b in ("x1", "velocity")):
        ends.discard(0.0)
    if b == "velocity" and a != "score" and name == "vp":
        ends.discard(0.0)  # its sigma' is infinite
    if b == "velocity" and name == "linear_vp":
        ends.discard(1.0)  # its alpha' is infinite
    if a == "score" and (b != "velocity" or name == "vp"):
        ends.add(0.0)
    return ends


@every_curve
def test_ends_are_finite_and_exact_where_the_docstring_says_so(name):
    p, t = CURVES[name], np.array([0.0, 1.0])
    x = _points(name, t)
    exact = _exact(name, x, t)
    # The largest float32 stands for linear-VP's infinite velocity: models give finite ones.
    given = {kind: np.nan_to_num(value.astype(np.float32)) for kind, value in exact.items()}
    x32, t32 = jnp.asarray(x, jnp.float32), jnp.asarray(t, jnp.float32)
    for a, b in CONVERSIONS:
        ours = np.asarray(_convert(a, b)(p, x32, t32, jnp.asarray(given[a])))
        for i, end in enumerate(t):
            if end not in _finite_ends(name, a, b):
                assert not np.isfinite(ours[i]).all(), (a, b, end)
                continue
            wanted = exact[b][i]
            if (a, b, end) == ("velocity", "x0", 1.0) and name in SILENT:
                wanted = np.zeros(4)
            # At VP's end alpha = .0066 divides roundings of order 1e-7 in x and x1.
            scale = 150.0 if name == "vp" and end == 1.0 and a in ("score", "x1") else 1.0
            np.testing.assert_allclose(
                ours[i], wanted, rtol=5e-6, atol=2e-6 * scale, err_msg=f"{a} to {b} at {end}"
            )


@every_curve
def test_gradients_of_the_means_are_finite_at_the_ends(name):
    p, t = CURVES[name], jnp.asarray([0.0, 1.0])
    x = jnp.asarray(_points(name, np.array([0.0, 1.0])), jnp.float32)
    u = jnp.ones_like(x)
    for convert in (fs.velocity_to_x0, fs.velocity_to_x1):
        by_x, by_u = jax.grad(lambda x, u: jnp.sum(convert(p, x, t, u)), argnums=(0, 1))(x, u)  # noqa: B023
        assert np.isfinite(by_x).all() and np.isfinite(by_u).all()
    # At pure noise x1 = x / sigma; VP is 1e-4 short of that.
    np.testing.assert_allclose(by_x[1], 1.0 / np.asarray(p.sigma(t))[1], rtol=1e-4)


@pytest.mark.parametrize(("a", "b"), CONVERSIONS)
def test_shapes_and_dtypes_are_kept(a, b):
    convert = _convert(a, b)
    shapes = [((), ()), ((3,), ()), ((2, 3, 4), ()), ((5,), (5,)), ((5, 2, 3), (5,))]
    shapes.append(((5, 2, 3), (5, 2)))
    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype == np.float64):
            for p in CURVES.values():
                x, t = jax.ShapeDtypeStruct((5, 3), dtype), jax.ShapeDtypeStruct((5,), dtype)
                out = jax.eval_shape(lambda x, t, y: convert(p, x, t, y), x, t, x)  # noqa: B023
                chex.assert_trees_all_equal_shapes_and_dtypes(out, x)
            for of_x, of_t in shapes:
                x, t = jax.ShapeDtypeStruct(of_x, dtype), jax.ShapeDtypeStruct(of_t, dtype)
                p = CURVES["vp"]
                out = jax.eval_shape(lambda x, t, y: convert(p, x, t, y), x, t, x)  # noqa: B023
                chex.assert_trees_all_equal_shapes_and_dtypes(out, x)


@pytest.mark.parametrize(("a", "b"), CONVERSIONS)
def test_wrong_arguments_are_named(a, b):
    convert, p, x = _convert(a, b), CURVES["linear"], np.ones((3, 2), np.float32)
    with pytest.raises(ValueError, match=rf"{a} has shape \(3,\), expected that of x, \(3, 2\)"):
        convert(p, x, 0.5, x[:, 0])
    with pytest.raises(ValueError, match=r"t has shape \(2,\)"):
        convert(p, x, np.full(2, 0.5, np.float32), x)
    with pytest.raises(ValueError, match=r"t has shape \(3, 2, 1\)"):
        convert(p, x, np.full((3, 2, 1), 0.5, np.float32), x)
    for bad in (-0.1, 1.5, np.nan):
        with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
            convert(p, x, bad, x)
    with pytest.raises(TypeError, match="t must be floating"):
        convert(p, x, "half", x)


def test_a_scalar_time_is_a_batch_of_equal_times():
    x = np.random.default_rng(2).normal(size=(9, 4)).astype(np.float32)

    @jax.jit
    def both(x, one, many):
        return [fs.velocity_to_x0(CURVES["vp"], x, t, x[::-1]) for t in (one, many)]

    np.testing.assert_array_equal(*both(x, np.float32(0.25), np.full(9, 0.25, np.float32)))


# Pairs of interpolants.

MIXTURE = fs.analytic.mixture(
    [0.3, 0.7], [[-1.0, 0.5], [1.0, -0.4]], [[[0.3, 0.1], [0.1, 0.2]], [[0.15, 0.0], [0.0, 0.4]]]
)
PARTICLES = 6


@pytest.fixture(scope="module")
def visits():
    """Per target: points [times * particles, 2], their times and their exact means, float32."""
    rng = np.random.default_rng(3)
    x1 = rng.normal(size=(PARTICLES, 2)).astype(np.float32)
    k = rng.integers(0, 2, PARTICLES)
    x0 = np.asarray(MIXTURE.means)[k] + np.float32(0.5) * rng.normal(size=(PARTICLES, 2)).astype(
        np.float32
    )
    s = jnp.asarray(TIMES, jnp.float32)
    found = {}
    for name, p in CURVES.items():
        alpha, sigma = (np.asarray(f(s))[:, None, None] for f in (p.alpha, p.sigma))
        x = jnp.asarray((alpha * x0 + sigma * x1).reshape(-1, 2))
        times = jnp.repeat(s, PARTICLES)
        found[name] = x, times, MIXTURE.x0(p, x, times), MIXTURE.x1(p, x, times)
    return found


def _angle(name, t):
    alpha, sigma, *_ = _coefficients(name, np.asarray(t, np.float64), t.ndim)
    return np.arctan2(sigma, alpha)


# How far from the target's angle a source's own times may be. VP ends at alpha = .0066; linear-VP
# has float32 times 2^-24 apart near 1, where alpha = sqrt(1 - t^2) = 3.4527e-4 at the
# last; all others are a few roundings of an angle of pi / 2.
ANGLE_LIMIT = {"vp": 0.00662, "linear_vp": 3.453e-4}


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_means_of_every_pair_are_finite_and_exact(source, target, visits):
    x, s, x0, x1 = visits[target]
    p, q = CURVES[source], CURVES[target]
    ours = MIXTURE.flow(p).means(x, s, None, q)
    t, scale = fs.match_time(p, q, s)
    off = np.abs(_angle(source, t) - _angle(target, s))
    assert off.max() <= ANGLE_LIMIT.get(source, 5e-7)
    far = off > 5e-7
    assert source in ANGLE_LIMIT or not far.any()
    assert source != target or not far[: 8 * PARTICLES].any()
    exact_at_source = (None, None)
    if far.any():  # the exact answer of the nearest point the source has
        point = x * scale[:, None]
        exact_at_source = MIXTURE.x0(p, point, t), MIXTURE.x1(p, point, t)
    # Near pure noise x0 = mean + alpha cov x1 + …: its slope in the angle, with room for curvature.
    slope = 1.5 * np.linalg.norm(MIXTURE.covariance(), 2) * np.abs(x).max()
    for value, wanted, nearest in zip(ours, (x0, x1), exact_at_source, strict=True):
        assert value.dtype == jnp.float32 and np.isfinite(value).all()
        # Float32 roundings of x, scale, t and u, each 6e-8 of values up to `size`, added up.
        size = np.abs(x).max()
        error = np.abs(np.asarray(value) - wanted).max(-1)
        assert np.all(error[~far] <= 2e-5 * size), (error, t)
        assert np.all(error[far] <= 2e-5 * size + slope * off[far]), (error, off)
        if far.any():
            np.testing.assert_allclose(value[far], nearest[far], atol=2e-5 * size, rtol=0)


def _matched(source, target, s):
    """Source time of the target's angle, by bisection in NumPy."""
    wanted, low, high = _angle(target, s), np.zeros_like(s), np.ones_like(s)
    for _ in range(100):
        middle = (low + high) / 2
        above = _angle(source, middle) > wanted
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return (low + high) / 2


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_reparameterised_velocity_is_the_papers_formula(source, target):
    """u_bar = (c' / c) x + c t' u(x / c, t) with c = sigma_bar(s) / sigma(t)."""
    s = np.array([0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])  # VP as a source reaches all
    x = _points(target, s)
    t = _matched(source, target, s)
    a, b, da, db = _coefficients(source, t, 2)
    a_bar, b_bar, da_bar, db_bar = _coefficients(target, s, 2)
    rate = (a * db - b * da) / (a**2 + b**2)
    t_dot = (a_bar * db_bar - b_bar * da_bar) / (a_bar**2 + b_bar**2) / rate
    c = b_bar / b
    c_dot = db_bar / b - b_bar * db * t_dot / b**2
    formula = c_dot / c * x + c * t_dot * _exact(source, x / c, t)["velocity"]

    def model(x, t):
        with jax.ensure_compile_time_eval():
            return jnp.asarray(_exact(source, np.asarray(x), np.asarray(t))["velocity"])

    with jax.enable_x64(True):
        converted = fs.reparameterise(model, CURVES[source], CURVES[target])
        ours = converted(jnp.asarray(x), jnp.asarray(s))
        np.testing.assert_allclose(ours, formula, rtol=1e-9, atol=1e-9 * np.abs(formula).max())
    # Which is also the velocity of the same data under the target itself.
    np.testing.assert_allclose(ours, _exact(target, x, s)["velocity"], rtol=1e-9, atol=1e-8)


def test_reparameterise_passes_params_and_cond_on():
    p, q = CURVES["linear"], CURVES["vp"]
    x, s = np.ones((9, 4), np.float32), np.asarray(TIMES, np.float32)

    def model(params, x, t, cond):
        return params * x + cond + t[:, None]

    @jax.jit
    def both(x, s):
        four = fs.reparameterise(model, p, q)(jnp.float32(2.0), x, s, jnp.float32(0.5))
        return four, fs.reparameterise(lambda x, t: 2.0 * x + 0.5 + t[:, None], p, q)(x, s)

    four, two = both(x, s)
    np.testing.assert_array_equal(four, two)
    assert four.dtype == jnp.float32 and np.isfinite(four[1:]).all()
    with pytest.raises(TypeError, match="got 3 arguments"):
        fs.reparameterise(model, p, q)(1.0, x, s)
    with pytest.raises(ValueError, match="s must lie"):
        fs.reparameterise(model, p, q)(1.0, x, 2.0, None)
