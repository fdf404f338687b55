"""`check_convention`: exact models of known data are recognised, their errors in closed form."""

import warnings
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowsde as fs

LINEAR, VP = fs.interpolants.linear(), fs.interpolants.vp()
DATA = fs.analytic.mixture([0.4, 0.6], [[-1.0, 0.5], [1.0, -0.5]], [0.2, 0.4])


@cache
def points():
    return DATA.sample(jax.random.key(7), 64)


def model(reverse, kind, p=LINEAR, data=DATA):
    """The exact model of a convention, whatever it is told to be."""

    def predict(params, x, t, cond):
        t = 1.0 - t if reverse else t
        if kind == "negative_velocity":
            return -data.velocity(p, x, t)
        return getattr(data, kind)(p, x, t)

    return predict


def flow_of(fn, **options):
    return fs.Flow.from_callable(fn, None, (2,), **options)


@pytest.mark.slow
@pytest.mark.parametrize("p", [LINEAR, VP], ids=["linear", "vp"])
@pytest.mark.parametrize("kind", ["velocity", "negative_velocity", "x1"])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_convention_is_recognised_from_64_points(reverse, kind, p):
    time = (1.0, 0.0) if reverse else (0.0, 1.0)
    right = {"time": time, "prediction": kind}
    fn = model(reverse, kind, p)
    # Told nothing, and told the truth.
    if (reverse, kind) != (False, "velocity"):
        with pytest.warns(UserWarning, match="model predict predicts the data better with") as seen:
            check = fs.check_convention(flow_of(fn, interpolant=p), points())
        assert f"time=({time[0]:g}, {time[1]:g}), prediction='{kind}' than with" in str(
            seen[0].message
        )
        assert check.best == (time, kind) and check.given == ((0.0, 1.0), "velocity")
        assert check.error(check.given) > check.error(check.best)
        assert seen[0].filename == __file__
    with warnings.catch_warnings(action="error"):
        check = fs.check_convention(flow_of(fn, interpolant=p, **right), points())
    assert check.best == check.given == (time, kind)
    # Of known clusters' data, more is known at any time than their mean.
    assert np.all(check.errors[check.best] < 1.05) and check.error(check.best) < 0.7


@pytest.mark.slow
@pytest.mark.parametrize("p", [LINEAR, VP], ids=["linear", "vp"])
def test_errors_are_those_of_the_posterior(p):
    """For data N(m, v I): Var(x0 | x_t) / v = sigma^2 / (alpha^2 v + sigma^2)."""
    data = fs.analytic.gaussian([2.0, -1.0], 0.25)
    check = fs.check_convention(data.flow(p), data.sample(jax.random.key(1), 4096))
    alpha, sigma = p.alpha(check.times), p.sigma(check.times)
    wanted = sigma**2 / (0.25 * alpha**2 + sigma**2)
    # Each is a mean of 8,192 squares: 1.6 % standard error, and that of the variance.
    np.testing.assert_allclose(check.errors[check.given], wanted, rtol=0.1)
    np.testing.assert_allclose(
        jnp.arctan2(sigma, alpha), np.pi / 2 * np.array([0.1, 0.3, 0.5, 0.7, 0.9]), rtol=1e-4
    )


@pytest.mark.slow
def test_what_no_points_can_tell_apart_stays_as_given():
    """Of data that are noise, reversed time with the velocity negated is the same flow."""
    noise = fs.analytic.gaussian([0.0, 0.0], 1.0)
    points = noise.sample(jax.random.key(2), 64)
    for options in ({}, {"time": (1, 0), "prediction": "negative_velocity"}):
        flow = flow_of(model(False, "velocity", data=noise), **options)
        with warnings.catch_warnings(action="error"):
            check = fs.check_convention(flow, points)
        assert check.best == check.given


@pytest.mark.slow
def test_a_model_that_is_none_of_them():
    """Of too few points for the least bad to be clearly so."""
    flow = flow_of(lambda params, x, t, cond: 0.0 * x - 50.0)
    with pytest.warns(UserWarning, match="no better than their mean does.*interpolant, cond"):
        check = fs.check_convention(flow, points()[:2])
    assert check.error(check.best) > 1.0


@pytest.mark.slow
def test_time_of_its_own_scale_and_one_particle_at_a_time_with_cond():
    """Labels move the data: told the wrong ones, the model is worse."""
    labels = jnp.arange(64) % 3

    def one(x, own, label):
        assert x.shape == (2,) and own.shape == label.shape == ()
        move = label.astype(jnp.float32)
        t = 1.0 - own / 1000.0
        return -DATA.velocity(LINEAR, x - (1.0 - t) * move, t) + move

    options = {
        "call": "x, own=t, label=cond", "per_example": True, "time": (1000, 0),
        "prediction": "negative_velocity",
    }  # fmt: skip
    moved = points() + labels.astype(jnp.float32)[:, None]
    right = fs.check_convention(flow_of(one, **options), moved, labels)
    assert right.best == right.given == ((1000.0, 0.0), "negative_velocity")
    with warnings.catch_warnings(action="ignore"):
        wrong = fs.check_convention(flow_of(one, **options), moved, labels[::-1])
    assert wrong.error(wrong.given) > 1.2 * right.error(right.given)


@pytest.mark.slow
def test_the_table_has_the_best_first():
    with pytest.warns(UserWarning):
        check = fs.check_convention(flow_of(model(True, "velocity")), points())
    head, first, *others = str(check).splitlines()
    assert head.startswith("relative error at t =") and len(head.split()) == 5 + 5
    assert first.startswith("time=(1, 0), prediction='velocity'") and first.endswith("best")
    assert sum(line.endswith("given") for line in others) == 1 and len(others) == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": np.eye(2)[:1]}, r"data must have .* \(n, 2\) with n of at least 2, got \(1, 2\)"),
        ({"data": np.eye(2)[:, :1]}, r"data must have shape \(n, 2\) .* got \(2, 1\)"),
        ({"data": np.ones((4, 2))}, "data must be finite, and not all the same"),
        ({"data": np.full((4, 2), np.nan)}, "data must be finite"),
        ({"cond": np.zeros(3)}, r"cond has a leaf of shape \(3,\), expected leading axis"),
        ({"flow": None}, "flow must be a flowsde.Flow, got NoneType"),
        ({"flow": fs.guide(DATA.flow(), 2.0, jnp.zeros(1))}, "flow is guided"),
        ({"flow": flow_of(lambda params, x, t, cond: x[0])}, "model <lambda> returned shape"),
        ({"key": 3}, "key must be a JAX random key"),
    ],
)
def test_wrong_input_is_named(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fs.check_convention(**({"flow": DATA.flow(), "data": np.eye(2)} | change))
