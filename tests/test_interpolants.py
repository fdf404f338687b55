"""Interpolants against float64 formulas, their derivatives by autodiff, and their inverses."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowsde as fs

I = fs.interpolants  # noqa: E741


def _custom_alpha(t):
    return 1.0 - t**3


def _custom_sigma(t):
    return 1.5 * jnp.sin(0.5 * np.pi * t)


def _vp_integral(t):
    return 9.95 * t * t + 0.1 * t


CURVES = {
    "linear": I.linear(),
    "vp": I.vp(),
    "cosine": I.cosine(),
    "poly2": I.polynomial(2),
    "poly3": I.polynomial(3),
    "linear_vp": I.linear_vp(),
    "custom": I.from_functions(_custom_alpha, _custom_sigma),
}
EXACT = {  # alpha, sigma, alpha', sigma' in NumPy; u = 1 - t, exact in float64 for float32 t
    "linear": lambda t, u: (u, t, -1 + 0 * t, 1 + 0 * t),
    "vp": lambda t, u: (
        np.exp(-_vp_integral(t) / 2),
        np.sqrt(-np.expm1(-_vp_integral(t))),
        -(0.1 + 19.9 * t) / 2 * np.exp(-_vp_integral(t) / 2),
        (0.1 + 19.9 * t) / 2 * np.exp(-_vp_integral(t)) / np.sqrt(-np.expm1(-_vp_integral(t))),
    ),
    "cosine": lambda t, u: (
        np.sin(np.pi / 2 * u),
        np.sin(np.pi / 2 * t),
        -np.pi / 2 * np.sin(np.pi / 2 * t),
        np.pi / 2 * np.sin(np.pi / 2 * u),
    ),
    "poly2": lambda t, u: (u**2, t * (2 - t), -2 * u, 2 * u),
    "poly3": lambda t, u: (u**3, t * (3 - 3 * t + t * t), -3 * u**2, 3 * u**2),
    "linear_vp": lambda t, u: (np.sqrt(u * (1 + t)), t, -t / np.sqrt(u * (1 + t)), 1 + 0 * t),
    "custom": lambda t, u: (
        u * (1 + t + t * t),
        1.5 * np.sin(np.pi / 2 * t),
        -3 * t * t,
        0.75 * np.pi * np.sin(np.pi / 2 * u),
    ),
}
TIMES = (0.0, 1e-7, 1e-4, 0.1, 0.5, 0.9, 1 - 1e-4, 1 - 1e-7, 1.0)
INTERIOR = np.linspace(0.03, 0.97, 9)
DTYPES = (np.float32, np.float64)
every_curve = pytest.mark.parametrize("name", CURVES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def _x64(dtype):
    return jax.enable_x64(dtype == np.float64)


@every_dtype
@every_curve
def test_coefficients_are_their_formulas_up_to_both_ends(name, dtype):
    p = CURVES[name]
    t = np.asarray(TIMES, dtype)
    with _x64(dtype):
        ours = [np.asarray(f(jnp.asarray(t))) for f in (p.alpha, p.sigma, p.alpha_dot, p.sigma_dot)]
    with np.errstate(divide="ignore"):
        exact = EXACT[name](t.astype(np.float64), 1 - t.astype(np.float64))
    # A few roundings; exp(-T / 2) multiplies that of T by up to T / 2 = 5. The generic custom
    # curve is written with cancelling ends: there the rounding is relative to 1.
    rounding = 12 * np.finfo(dtype).eps
    for value, wanted in zip(ours, exact, strict=True):
        assert value.dtype == dtype
        infinite = ~np.isfinite(wanted)
        np.testing.assert_array_equal(value[infinite], wanted[infinite])
        floor = rounding if name == "custom" else np.finfo(dtype).tiny
        np.testing.assert_allclose(value[~infinite], wanted[~infinite], rtol=rounding, atol=floor)


def test_infinite_rates_are_only_the_documented_ones():
    infinite = set()
    for name, p in CURVES.items():
        t = jnp.asarray(TIMES, jnp.float32)
        for rate in ("alpha_dot", "sigma_dot", "variance_dot"):
            finite = np.isfinite(np.asarray(getattr(p, rate)(t)))
            infinite |= {(name, rate, TIMES[i]) for i in np.flatnonzero(~finite)}
    assert infinite == {("vp", "sigma_dot", 0.0), ("linear_vp", "alpha_dot", 1.0)}


@every_curve
def test_rates_are_the_derivatives(name):
    p = CURVES[name]
    with jax.enable_x64(True):
        t = jnp.asarray(INTERIOR)

        def slope(f):
            return jax.grad(lambda t: jnp.sum(f(t)))(t)

        ours = [f(t) for f in (p.alpha_dot, p.sigma_dot, p.variance_dot, p.determinant)]
        variance = slope(lambda t: jnp.square(p.sigma(t)))
        determinant = jnp.square(p.radius(t)) * slope(p.angle)
        wanted = [slope(p.alpha), slope(p.sigma), variance, determinant]
        chex.assert_trees_all_close(ours, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.slow_but_one
@every_dtype
def test_variance_rate_of_vp_is_beta_at_the_data(dtype):
    with _x64(dtype):
        p, zero = I.vp(0.3, 7.0), jnp.zeros((), dtype)
        np.testing.assert_allclose(p.variance_dot(zero), dtype(0.3), rtol=1e-7)
        np.testing.assert_allclose(
            jax.grad(lambda t: -jnp.expm1(-p.integral(t)))(zero), p.variance_dot(zero), rtol=1e-7
        )


@every_dtype
@every_curve
def test_time_inverts_the_angle(name, dtype):
    p, eps = CURVES[name], float(np.finfo(dtype).eps)
    t = np.asarray(TIMES, dtype)
    with _x64(dtype):
        angle = p.angle(jnp.asarray(t))
        found = p.time(angle)
        again = np.asarray(p.angle(found), np.float64)
        angle, found = np.asarray(angle, np.float64), np.asarray(found, np.float64)
    alpha, sigma, d_alpha, d_sigma = _exact(name, t)
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = (alpha * d_sigma - sigma * d_alpha) / (alpha**2 + sigma**2)
        # An angle is known to eps of itself and a time to eps of itself; each of the two limits
        # the round trip, the first through angle / angle' and the second through t angle'.
        # An infinite rate (VP at 0, linear-VP at 1) or a vanishing one leaves the other bound.
        in_time = 6 * eps * (t + np.where(rate > 0, angle / rate, np.inf))
        in_angle = 6 * eps * (angle + np.where(t > 0, t * rate, 0.0))
    assert np.all((found >= 0) & (found <= 1))
    assert np.all(np.abs(found - t) <= in_time), (found - t, in_time)
    # Beside a pole of the rate the angle moves by less than the rate at t says: sqrt(2 eps).
    steep = np.isfinite(rate) & (in_angle < 1e-4 if dtype == np.float32 else in_angle < 1e-8)
    assert np.all(np.abs(again - angle)[steep] <= in_angle[steep])
    assert np.all(np.abs(again - angle) <= 2 * np.sqrt(2 * eps))
    assert found[0] == 0.0


def _exact(name, t):
    t = t.astype(np.float64)
    with np.errstate(divide="ignore"):
        return EXACT[name](t, 1 - t)


@every_dtype
@every_curve
def test_time_ends_are_exact_and_beyond_the_end_is_the_end(name, dtype):
    p = CURVES[name]
    with _x64(dtype):
        ends = np.asarray(p.time(jnp.asarray([0.0, np.pi / 2], dtype)))
        np.testing.assert_array_equal(ends, [0.0, 1.0])
        assert ends.dtype == dtype


@every_curve
def test_polar_form(name):
    p = CURVES[name]
    with jax.enable_x64(True):
        t = jnp.linspace(0.0, 1.0, 101)
        alpha, sigma, r, angle = p.alpha(t), p.sigma(t), p.radius(t), p.angle(t)
        np.testing.assert_allclose(alpha**2 + sigma**2, r**2, rtol=1e-14)
        np.testing.assert_allclose(r * np.cos(angle), alpha, atol=1e-15 * 2)
        np.testing.assert_allclose(r * np.sin(angle), sigma, atol=1e-15 * 2)
        assert np.all(np.diff(angle) > 0)
        assert (float(angle[0]), float(alpha[0]), float(sigma[0])) == (0.0, 1.0, 0.0)
        assert float(angle[-1]) <= np.pi / 2


def _fresh():
    return [
        I.linear(),
        I.vp(),
        I.cosine(),
        I.polynomial(2),
        I.polynomial(3),
        I.linear_vp(),
        I.from_functions(_custom_alpha, _custom_sigma),
    ]


def test_equal_by_value_and_frozen():
    for i, (p, q) in enumerate(zip(CURVES.values(), _fresh(), strict=True)):
        assert p == q and p is not q and hash(p) == hash(q)
        assert all((p == other) == (i == j) for j, other in enumerate(_fresh()))
        with pytest.raises(dataclasses.FrozenInstanceError):
            p.n = 5
    assert I.vp(0.1, 19.0) != I.vp() and I.polynomial(2) == I.polynomial(2.0)
    assert I.from_functions(_custom_alpha, lambda t: t) != CURVES["custom"]


def test_equal_instances_share_one_trace():

    @partial(jax.jit, static_argnums=0)
    @chex.assert_max_traces(n=len(CURVES))
    def at(p, t):
        return p.alpha(t)

    t = jnp.float32(0.3)
    for p, again in zip(CURVES.values(), _fresh(), strict=True):
        chex.assert_trees_all_equal(at(p, t), at(again, t))
        chex.assert_trees_all_close(at(p, t), p.alpha(t), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: I.vp(0.0), "beta_min"),
        (lambda: I.vp(-1.0), "beta_min"),
        (lambda: I.vp(np.nan), "beta_min"),
        (lambda: I.vp(0.1, 0.05), "beta_max"),
        (lambda: I.vp(0.1, np.inf), "beta_max"),
        (lambda: I.vp(0.1, np.nan), "beta_max"),
        (lambda: I.polynomial(0.5), "n must"),
        (lambda: I.polynomial(np.nan), "n must"),
        (lambda: I.polynomial(np.inf), "n must"),
        (lambda: I.from_functions(lambda t: 0.9 - 0.9 * t, lambda t: t), r"alpha\(0\)"),
        (lambda: I.from_functions(lambda t: 1.0 - t, lambda t: 0.1 + t), r"sigma\(0\)"),
        (lambda: I.from_functions(lambda t: 1.0 - t, lambda t: 0.0 * t), "rise"),
        (lambda: I.from_functions(lambda t: 1.0 - t, lambda t: t * (1.5 - t)), None),
        (lambda: I.from_functions(lambda t: 1.0 + t, lambda t: t * (1.2 - t)), "rise"),
        (lambda: I.from_functions(lambda t: 1.0 - t, lambda t: 1.0 - 1.0 / (1.0 - t)), "sigma"),
        (lambda: I.from_functions(lambda t: jnp.log(1.0 - t) + 1.0, lambda t: t), "alpha"),
        (lambda: I.from_functions(lambda t: 1.0, lambda t: t), "alpha"),
        (lambda: I.from_functions(lambda t: 1.0 - t, lambda t: t[:3]), "sigma"),
    ],
)
def test_wrong_arguments_are_named(make, word):
    if word is None:  # the angle need not reach pi / 2, nor sigma rise, as long as the angle does
        assert make().alpha(jnp.float32(0.0)) == 1.0
        return
    with pytest.raises(ValueError, match=word):
        make()


@pytest.mark.parametrize("bad", [-0.1, 1.0001, np.nan, [0.2, 1.5], np.inf])
def test_match_time_names_a_time_outside(bad):
    with pytest.raises(ValueError, match=r"s must lie in \[0, 1\]"):
        fs.match_time(I.linear(), I.vp(), bad)


def test_match_time_names_a_time_of_the_wrong_kind():
    with pytest.raises(TypeError, match="s must be floating"):
        fs.match_time(I.linear(), I.vp(), np.asarray([True]))


@every_dtype
def test_match_time_keeps_shape_and_dtype(dtype):
    with _x64(dtype):
        for shape in ((), (1,), (2, 3)):
            s = jax.ShapeDtypeStruct(shape, dtype)
            for out in jax.eval_shape(lambda s: fs.match_time(I.vp(), I.linear(), s), s):
                assert (out.shape, out.dtype) == (shape, dtype)
    for number in (0, 1, 0.5):
        t, scale = fs.match_time(I.linear(), I.linear(), number)
        assert t.shape == () and t.dtype == scale.dtype == jnp.float32


@every_curve
def test_match_time_of_an_interpolant_with_itself_changes_nothing(name):
    s = jnp.asarray(TIMES, jnp.float32)
    t, scale = fs.match_time(CURVES[name], _fresh()[list(CURVES).index(name)], s)
    np.testing.assert_array_equal(scale, np.ones(9, np.float32))
    np.testing.assert_array_equal(t[:-1], s[:-1])
    # At t = 1 these velocities are infinite or 0: one float below, so that x0 exists.
    silent = name in ("poly2", "poly3", "linear_vp")
    assert t[-1] == (np.nextafter(np.float32(1), np.float32(0)) if silent else 1.0)


def test_match_time_stops_where_a_flat_curve_still_speaks():
    # n (1 - t)^(n - 1) leaves float32 well before t = 1 for n = 20.
    t, _ = fs.match_time(I.polynomial(20), I.linear(), jnp.float32(1.0))
    assert 0.9 < float(t) < 1.0
    determinant = float(I.polynomial(20).determinant(t))
    assert determinant >= np.finfo(np.float32).tiny
    smooth = I.from_functions(
        lambda t: jnp.square(jnp.cos(0.5 * np.pi * t)), lambda t: jnp.square(jnp.sin(1.5707 * t))
    )
    assert 0.99 < float(fs.match_time(smooth, I.linear(), 1.0)[0]) <= 1.0


def test_match_time_known_pairs():
    s = INTERIOR
    with jax.enable_x64(True):
        t, scale = fs.match_time(I.linear(), I.cosine(), jnp.asarray(s))
        tangent = np.tan(np.pi / 2 * s)
        np.testing.assert_allclose(t, tangent / (1 + tangent), rtol=1e-13)
        np.testing.assert_allclose(scale, np.hypot(t, 1 - t), rtol=1e-13)
        t, scale = fs.match_time(I.linear(), I.polynomial(2), jnp.asarray(s))
        np.testing.assert_allclose(t, s * (2 - s), rtol=1e-13)
        np.testing.assert_allclose(scale, 1.0, rtol=1e-13)


def test_everything_may_be_built_while_tracing():
    @jax.jit
    def inside(s):
        p = I.from_functions(lambda t: 1.0 - t**3, lambda t: 1.5 * t)

        def step(total, _):
            slope = jax.grad(lambda u: fs.match_time(I.polynomial(7), p, u)[0])(s[0])
            return total + fs.match_time(p, I.linear_vp(), s)[0] + slope, None

        return jax.lax.scan(step, jnp.zeros(9), None, length=2)[0]

    assert np.isfinite(inside(jnp.asarray(INTERIOR, jnp.float32))).all()
