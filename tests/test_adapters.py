"""Models of other conventions: one exact field in each is the same flow; errors at the adapter."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import flowsde as fs
from flowsde.flow_options import Options

LINEAR, VP = fs.interpolants.linear(), fs.interpolants.vp()
DATA = fs.analytic.mixture([0.4, 0.6], [[-1.0, 0.5], [1.0, -0.5]], [0.2, 0.4])
KINDS = ("velocity", "negative_velocity", "x0", "x1", "score")
KEY = jax.random.key(0)


def predict(kind, p, x, t):
    """Of the mixture, in closed form; x [..., 2], t [...]."""
    if kind == "negative_velocity":
        return -DATA.velocity(p, x, t)
    return getattr(DATA, kind)(p, x, t)


def points(p):
    """Rows of x and t, both ends among them."""
    t = jnp.array([0.0, 0.25, 0.5, 0.75, 1.0])
    noise = jax.random.normal(jax.random.key(1), (5, 2))
    return p.alpha(t)[:, None] * DATA.sample(KEY, 5) + p.sigma(t)[:, None] * noise, t


def sampled(flow, cond=None):
    kernel = fs.kernels.ode_euler(flow.interpolant)
    return fs.sample(KEY, flow, kernel=kernel, grid=fs.grids.uniform(6), n=4, cond=cond)


def assert_is_the_exact_flow(flow, p=LINEAR, tolerance=1e-4, cond=None):
    """Means at both ends and between, and samples from noise to data."""
    x, t = points(p)
    rows = None if cond is None else jax.tree.map(lambda a: jnp.resize(a, (5, *a.shape[1:])), cond)
    for ours, wanted in zip(
        flow.means(x, t, rows, p), (DATA.x0(p, x, t), DATA.x1(p, x, t)), strict=True
    ):
        np.testing.assert_allclose(ours, wanted, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(
        sampled(flow, cond), sampled(DATA.flow(p)), rtol=tolerance, atol=tolerance
    )


@pytest.mark.slow
@pytest.mark.parametrize("p", [LINEAR, VP], ids=["linear", "vp"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_prediction_is_the_same_flow(kind, p):
    """From pure noise, where alpha = 0, the noise says x0 only to float32's square root."""
    flow = fs.Flow.from_callable(
        lambda params, x, t, cond: predict(kind, p, x, t),
        None,
        (2,),
        interpolant=p,
        prediction=kind,
    )
    assert_is_the_exact_flow(flow, p, 3e-3 if p is LINEAR and kind in ("x1", "score") else 1e-4)
    x, t = (a[1:-1] for a in points(p))
    np.testing.assert_allclose(
        flow.velocity_fn(None, x, t, None), DATA.velocity(p, x, t), rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("time", [(1, 0), (0, 1000), (999, 0)])
def test_every_time(time):
    data, noise = time

    def model(params, x, own, cond):
        return predict("velocity", LINEAR, x, (own - data) / (noise - data))

    assert_is_the_exact_flow(fs.Flow.from_callable(model, None, (2,), time=time))


@pytest.mark.slow
def test_reversed_time_with_its_own_velocity():
    """Data at t = 1 and data - noise, as flow matching from noise to data is often written."""

    def model(params, x, own, cond):
        return -predict("velocity", LINEAR, x, 1.0 - own)

    options = {"time": (1, 0), "prediction": "negative_velocity"}
    assert_is_the_exact_flow(fs.Flow.from_callable(model, None, (2,), **options))


def shifted(params, x, t, cond):
    """Right if params, t and cond are given their own places: cond is 2, params 3."""
    return predict("velocity", LINEAR, x, t) + (params - 3.0) + (cond - 2.0)[:, None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "call", "kwargs", "spread"),
    [
        (lambda t, x, cond, params: shifted(params, x, t, cond), "t, x, cond, params", {}, False),
        (lambda p, x, time, y: shifted(p, x, time, y), "params, x, time=t, y=cond", {}, False),
        (lambda p, x, t, *, label: shifted(p, x, t, label), "params, x, t, **cond", {}, True),
        (lambda p, x, t, c, *, plus: shifted(p, x, t, c) + plus, None, {"plus": 0.0}, False),
        (lambda x, t: shifted(3.0, x, t, 2.0 * jnp.ones_like(t)), "x, t", {}, False),
    ],
)
def test_every_call(model, call, kwargs, spread):
    cond = jnp.full(4, 2.0, jnp.float32)
    params = jnp.float32(3.0)
    flow = fs.Flow.from_callable(model, params, (2,), call=call, kwargs=kwargs)
    assert_is_the_exact_flow(flow, cond={"label": cond} if spread else cond)


def reversed_x0(own, x, scale):
    """Of one particle x [2], own [] falling from 1000 to 0 towards the noise."""
    assert x.shape == (2,) and own.shape == ()
    return scale * predict("x0", VP, x, 1.0 - own / 1000.0)


class LinenField(nn.Module):
    @nn.compact
    def __call__(self, own, x, label, train=True):
        scale = self.param("scale", nn.initializers.ones, ())
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return reversed_x0(own, x, scale) + (label - 2.0)


class NNXField(nnx.Module):
    def __init__(self, rngs):
        self.scale = nnx.Param(jnp.ones((), jnp.float32))
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, own, x, label, train):
        assert not train
        return reversed_x0(own, self.dropout(x), self.scale.get_value()) + (label - 2.0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linen", "nnx", "callable"])
def test_all_options_at_once(kind):
    """One mechanism: a per-example x0 of VP, of (own time, x), with labels and a flag."""
    options = {
        "interpolant": VP, "prediction": "x0", "time": (1000, 0), "call": "t, x, label=cond",
        "kwargs": {"train": False}, "per_example": True,
    }  # fmt: skip
    if kind == "linen":
        params = {"params": {"scale": jnp.ones((), jnp.float32)}}
        flow = fs.Flow.from_linen(LinenField(), params, (2,), **options)
    elif kind == "nnx":
        flow = fs.Flow.from_nnx(NNXField(nnx.Rngs(0)), (2,), **options)
    else:
        flow = fs.Flow.from_callable(
            lambda own, x, label, train: reversed_x0(own, x, 1.0) + (label - 2.0),
            None, (2,), **options,
        )  # fmt: skip
    assert_is_the_exact_flow(flow, VP, cond=jnp.full(4, 2.0, jnp.float32))


@pytest.mark.slow
def test_guidance_is_of_the_velocity_whatever_is_predicted():
    """Affine in the prediction: u(null) + scale (u(cond) - u(null)) for a shift of x0."""

    def model(kind):
        def shifted(params, x, t, cond):
            x0 = cond[:, None] * jnp.ones_like(x)
            x1 = (x - (1.0 - t)[:, None] * x0) / t[:, None]
            return {"x0": x0, "x1": x1, "velocity": x1 - x0}[kind]

        return fs.guide(fs.Flow.from_callable(shifted, None, (2,), prediction=kind), 3.0, 0.5)

    x, t = (a[1:-1] for a in points(LINEAR))
    cond = jnp.array([0.1, -0.4, 0.7])
    for kind in ("velocity", "x0", "x1"):
        x0, _ = model(kind).means(x, t, cond, LINEAR)
        wanted = jnp.broadcast_to((0.5 + 3.0 * (cond - 0.5))[:, None], x.shape)
        np.testing.assert_allclose(x0, wanted, rtol=1e-4, atol=1e-5)


def of_three(x, t, cond):
    return x


class Default(nnx.Module):
    def __call__(self, x, t, cond=None):
        return x if cond is None else x + cond


class Needed(nnx.Module):
    def __call__(self, x, t, cond):
        return x if cond is None else x + cond


class Two(nnx.Module):
    def __call__(self, x, t, train=False):
        assert train is False
        return x


@pytest.mark.slow
def test_a_condition_of_none():
    """It is passed to models that need one and left to those that have a default or no place."""
    x, t = points(LINEAR)
    for model in (Default(), Needed(), Two()):
        flow = fs.Flow.from_nnx(model, (2,))
        np.testing.assert_array_equal(flow.velocity_fn(flow.params, x, t, None), x)
    flow = fs.Flow.from_nnx(Two(), (2,))
    with pytest.raises(TypeError, match=r"\(x, t\) and has no place for cond.*call='x, t'"):
        flow.velocity_fn(flow.params, x, t, x)
    flow = fs.Flow.from_nnx(Two(), (2,), call="x, t")
    np.testing.assert_array_equal(flow.velocity_fn(flow.params, x, t, x), x)


class Swapped(nnx.Module):
    def __call__(self, t, x, cond=None):
        return x


class Flagged(nnx.Module):
    def __call__(self, x, t, cond, train):
        return x


class Keyword(nnx.Module):
    def __call__(self, x, t, *, label, train=True):
        return x


def by_keyword(params, x, *, timestep, label=None):
    return x


class Silent(nnx.Module):
    pass


class LinenSwapped(nn.Module):
    def __call__(self, timesteps, x):
        return x


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fs.Flow.from_nnx(Flagged(), (2,)), TypeError, r"\(x, t, cond\) or .*'train'"),
        (lambda: fs.Flow.from_nnx(Swapped(), (2,)), TypeError, r"x would be its 't'.*call='t, x'"),
        (lambda: fs.Flow.from_linen(LinenSwapped(), {}, (2,)), TypeError, "its 'timesteps'"),
        (lambda: fs.Flow.from_nnx(Keyword(), (2,)), TypeError, "call='x, t, label=cond'"),
        (
            lambda: fs.Flow.from_callable(by_keyword, None, (2,)),
            TypeError,
            "call='params, x, timestep=t, label=cond'",
        ),
        (lambda: fs.Flow.from_callable(of_three, None, (2,)), TypeError, "too many positional"),
        (lambda: fs.Flow.from_nnx(Silent(), (2,)), TypeError, "must have a __call__, Silent"),
        (
            lambda: fs.Flow.from_nnx(Flagged(), (2,), kwargs={"training": True}),
            TypeError,
            r"\(x, t, cond, training=True\) or",
        ),
        (lambda: fs.Flow.from_nnx(Default(), (2,), call="x; t"), ValueError, "call must be .* got"),
        (lambda: fs.Flow.from_nnx(Default(), (2,), call="x, s"), ValueError, "got 'x, s'"),
        (lambda: fs.Flow.from_nnx(Default(), (2,), call="t, cond"), ValueError, "'t, cond'"),
        (lambda: fs.Flow.from_nnx(Default(), (2,), call="t)(x"), ValueError, "call must be"),
        (lambda: fs.Flow.from_nnx(Default(), (2,), call=3), ValueError, "got 3"),
        (
            lambda: fs.Flow.from_nnx(Default(), (2,), prediction="noise"),
            ValueError,
            "prediction must be one of 'velocity', .*'x1'.* got 'noise'",
        ),
        (
            lambda: fs.Flow.from_nnx(Default(), (2,), interpolant="vp"),
            TypeError,
            "interpolant must be one of flowsde.interpolants, .* got 'vp'",
        ),
        (lambda: fs.Flow.from_nnx(Default(), (2,), time=(1, 1)), ValueError, "time must be"),
        (lambda: fs.Flow.from_nnx(Default(), (2,), time=1000), ValueError, "got 1000"),
        (
            lambda: fs.Flow.from_callable(of_three, None, (2,), kwargs={"a": np.ones(2)}),
            TypeError,
            r"kwargs\['a'\] must be a constant.*ndarray",
        ),
        (lambda: fs.Flow.from_callable(of_three, None, (2,), kwargs=3), TypeError, "kwargs must"),
    ],
)
def test_calls_that_do_not_fit_are_errors_at_the_adapter(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.slow
def test_a_wrong_prediction_is_named():
    x, t = points(LINEAR)
    for value, error, message in (
        (lambda x: x[:, :1], ValueError, r"the model's x0 returned shape \(5, 1\).*\(5, 2\)"),
        (lambda x: (x,), TypeError, "the model's x0 returned tuple, expected an array"),
    ):
        flow = fs.Flow.from_callable(
            lambda params, x, t, cond, value=value: value(x), None, (2,), prediction="x0"
        )
        with pytest.raises(error, match=message):
            flow.means(x, t, None, LINEAR)
    flow = fs.Flow.from_callable(lambda params, x, t, cond: (x,), None, (2,))
    with pytest.raises(TypeError, match="model <lambda> returned tuple, expected an array"):
        flow.means(x, t, None, LINEAR)


def of_three_options(**options):
    return fs.Flow.from_callable(lambda params, x, t, cond: x, None, (2,), **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: fs.Flow.from_nnx(NNXField(nnx.Rngs(0)), (2,), predict="velocity"),
            "Flow.from_nnx has no option 'predict', did you mean 'prediction'.? Its options are "
            "interpolant, decode, prediction, time, call, kwargs, per_example",
        ),
        (
            lambda: fs.Flow.from_linen(LinenField(), {}, (2,), interpolants=VP),
            "Flow.from_linen has no option 'interpolants', did you mean 'interpolant'",
        ),
        (
            lambda: of_three_options(zzz=1),
            "Flow.from_callable has no option 'zzz'; its options are interpolant,",
        ),
    ],
)
def test_an_unknown_option_is_named_with_those_that_there_are(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize("maker", [fs.Flow.from_callable, fs.Flow.from_linen, fs.Flow.from_nnx])
def test_options_are_seen_in_the_signature_and_described(maker):
    parameters = inspect.signature(maker).parameters
    assert not any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    own = [name for name, p in parameters.items() if p.kind == p.KEYWORD_ONLY]
    assert own == list(Options.__annotations__)
    for name in parameters:
        assert re.search(rf"^ +([a-z_]+, )*{name}(, [a-z_]+)*: ", maker.__doc__, re.MULTILINE), name
    # What is written out is what is left out.
    x, t = points(LINEAR)
    options = {name: parameters[name].default for name in own}
    flow = of_three_options(**options)
    np.testing.assert_array_equal(
        flow.means(x, t, None, LINEAR)[0], of_three_options().means(x, t, None, LINEAR)[0]
    )


@pytest.mark.parametrize("values", [(0.0, -0.0), (1, True, 1.0)])
def test_constants_that_python_calls_equal_are_others(values):
    """Each has a program of its own, whichever came first."""

    def model(params, x, t, cond, *, constant):
        kind = {int: 1.0, bool: 2.0, float: 3.0}[type(constant)]
        return x * kind * np.copysign(1.0, constant)

    flows = [fs.Flow.from_callable(model, None, (2,), kwargs={"constant": v}) for v in values]
    x, t = jnp.ones((1, 2)), jnp.full(1, 0.5)
    call = jax.jit(lambda flow, x, t: flow.velocity_fn(flow.params, x, t, None))
    kinds = {int: 1.0, bool: 2.0, float: 3.0}
    for flow, value in zip(flows, values, strict=True):
        wanted = kinds[type(value)] * np.copysign(1.0, value)
        np.testing.assert_array_equal(call(flow, x, t), np.full((1, 2), wanted))
