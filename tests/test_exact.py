"""Values that Python calls equal have programs of their own; those made alike twice share one."""

import dataclasses
import functools
import importlib
import math
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import flowsde as fs
from flowsde._exact import Exact, Key

_sample = importlib.import_module("flowsde.sampling")._sample
rounds = importlib.import_module("flowsde.runner.rounds")

KEY = jax.random.key(0)
LINEAR = fs.interpolants.linear()
ODE = fs.kernels.ode_euler(LINEAR)
ONE_STEP = [1.0, 0.0]


def scale(value):
    """A number that tells apart all that Python calls equal."""
    return {int: 2.0, bool: 3.0, float: 4.0}[type(value)] * math.copysign(1.0, value)


@dataclasses.dataclass(frozen=True)
class Velocity:
    power: Any

    def __call__(self, params, x, t, cond):
        return scale(self.power) * x


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weights:
    power: Any = dataclasses.field(metadata={"static": True})

    def __call__(self, images):
        return scale(self.power) * images


class Linen(linen.Module):
    power: Any

    @linen.compact
    def __call__(self, x, t):
        return scale(self.power) * x


class NNX(nnx.Module):
    def __init__(self, power):
        self.power = power

    def __call__(self, x, t):
        return scale(self.power) * x


class Plain:
    """Compared by identity."""

    def __init__(self, power):
        self.power = power

    def __call__(self, params, x, t, cond):
        return scale(self.power) * x


def of_params(params, x, t, cond):
    return params(x)


def of_cond(params, x, t, cond):
    return cond(x)


def still(params, x, t, cond):
    return jnp.zeros_like(x)


@dataclasses.dataclass(frozen=True)
class Diffusion:
    power: Any

    def __call__(self, p, t):
        return scale(self.power) * jnp.ones_like(t)


ONE = Plain(0)


def changed(value):
    """The same object every time."""
    ONE.power = value
    return ONE


FLOWS = {
    "dataclass": lambda v: (Velocity(v), None, None),
    "partial": lambda v: (functools.partial(Velocity(v)), None, None),
    "params": lambda v: (of_params, Weights(v), None),
    "cond": lambda v: (of_cond, None, Weights(v)),
    "a changed object": lambda v: (changed(v), None, None),
}


def last(kind, value):
    """x after one step from noise, of a velocity that is scale(value) x."""
    cond = None
    if kind == "linen":
        flow = fs.Flow.from_linen(Linen(value), {}, (2,))
    elif kind == "nnx":
        flow = fs.Flow.from_nnx(NNX(value), (2,))
    else:
        fn, params, cond = FLOWS[kind](value)
        flow = fs.Flow.from_callable(fn, params, (2,))
    return fs.sample(KEY, flow, kernel=ODE, grid=ONE_STEP, n=2, cond=cond)


@pytest.fixture(scope="module")
def noise():
    flow = fs.Flow.from_callable(still, None, (2,))
    return fs.sample(KEY, flow, kernel=ODE, grid=ONE_STEP, n=2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flow. the attribute 'power'")
@pytest.mark.parametrize("kind", [*FLOWS, "linen", "nnx"])
@pytest.mark.parametrize("values", [(1, True, 1.0), (0.0, -0.0)], ids=str)
def test_a_flow_runs_its_own_program(kind, values, noise):
    """An Euler step from t = 1 to 0 is x - u(x)."""
    for value in values:
        np.testing.assert_allclose(last(kind, value), (1.0 - scale(value)) * noise, rtol=1e-6)
    size = _sample._cache_size()
    for value in values:
        last(kind, value)
    assert _sample._cache_size() == size


@pytest.mark.slow
def test_a_kernel_runs_its_own_program():
    """With u = 0 the SDE's last step has the coefficient's noise, of standard deviation g."""
    flow = fs.Flow.from_callable(still, None, (2,))

    def spread(value):
        kernel = fs.kernels.euler_maruyama(LINEAR, Diffusion(value))
        return fs.sample(KEY, flow, kernel=kernel, grid=[1.0, 0.5, 0.0], n=2)

    fresh = Diffusion(3.0), Diffusion(True)
    assert fresh[0] != fresh[1] and Diffusion(1) == Diffusion(True)
    first, second = spread(1), spread(True)
    assert np.abs(first - second).max() > 0.1
    size = _sample._cache_size()
    np.testing.assert_array_equal(spread(True), second)
    assert _sample._cache_size() == size


@dataclasses.dataclass(frozen=True)
class Judge:
    power: Any

    def __call__(self, images, cond):
        return jnp.full(images.shape[0], scale(self.power))


@dataclasses.dataclass(frozen=True)
class Added:
    power: Any

    def __call__(self, number, images, cond):
        return jnp.full(images.shape[0], scale(self.power)) + number


@dataclasses.dataclass(frozen=True)
class Decoder:
    power: Any

    def __call__(self, x0):
        return jnp.full_like(x0, scale(self.power))


@dataclasses.dataclass(frozen=True)
class OwnSearch:
    """Of the protocol alone: another search, whose candidates it replaces."""

    inner: Any
    power: Any

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def with_nfe(self, nfe):
        return dataclasses.replace(self, inner=self.inner.with_nfe(nfe))

    def ask(self, state):
        state, asked = self.inner.ask(state)
        return state, asked._replace(x=jnp.full_like(asked.x, scale(self.power)))


BON = fs.search.bon(nfe=1, kernel=ODE, grid=ONE_STEP)
STILL = fs.Flow.from_callable(still, None, (2,))


def height(images, cond):
    return images[:, 0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Told:
    power: Any = dataclasses.field(metadata={"static": True})
    number: Any = dataclasses.field(default_factory=lambda: jnp.zeros(()))


def told(images, cond):
    return jnp.full(images.shape[0], scale(cond.power))


RUNS = {
    "reward": lambda v: {"reward": Judge(v)},
    "reward with parameters": lambda v: {
        "reward": jax.tree_util.Partial(Added(v), jnp.float32(0.0))
    },
    "reward_cond": lambda v: {"reward": told, "reward_cond": Told(v)},
    "decode": lambda v: {
        "reward": height, "flow": fs.Flow.from_callable(still, None, (2,), decode=Decoder(v))
    },
    # The posterior mean under u = 0 is the point itself.
    "search": lambda v: {"reward": height, "search": OwnSearch(BON, v)},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_a_search_runs_its_own_program(kind):
    def found(value):
        return fs.run(KEY, **({"flow": STILL, "search": BON} | RUNS[kind](value))).reward

    for value in (1, True):
        assert found(value) == pytest.approx(scale(value))
    size = rounds.run_rounds._cache_size()
    assert found(True) == pytest.approx(scale(True))
    assert rounds.run_rounds._cache_size() == size


class Row(NamedTuple):
    power: Any


class Equal:
    """Of a class that compares instances itself."""

    def __init__(self, power):
        self.power = power

    def __eq__(self, other):
        return isinstance(other, Equal) and (self.power,) == (other.power,)

    def __hash__(self):
        return hash(self.power)


WITHIN = [
    lambda v: v, lambda v: (v,), lambda v: [v], lambda v: {"a": v}, lambda v: frozenset([v]),
    Row, Velocity, Equal, Linen, lambda v: functools.partial(scale, v),
    lambda v: jax.tree_util.Partial(Velocity(v)), lambda v: jax.tree.structure(Weights(v)),
    lambda v: nnx.split(NNX(v))[0], lambda v: jax.tree.structure({"a": [Weights(v)]}),
    lambda v: Velocity(Velocity(v)), lambda v: Exact(scale, Key(v)),
    lambda v: types.MappingProxyType({"a": v}), lambda v: Linen((v, {"a": v})),
]  # fmt: skip


@pytest.mark.parametrize("within", WITHIN)
def test_keys(within):
    different = [0.0, -0.0, False, 0, 1, True, 1.0, np.float32(1), np.int32(1), 1 + 0j, "1", None]
    keys = [Key(within(value)) for value in [*different, math.nan, math.inf]]
    assert len(set(keys)) == len(keys)
    for value, key in zip([*different, math.nan, math.inf], keys, strict=True):
        assert Key(within(value)) == key and hash(Key(within(value))) == hash(key)


def test_an_object_is_itself_as_it_is_now():
    one, other = Plain(1), Plain(1)
    key = Key(one)
    assert Key(one) == key != Key(other)
    one.power = 1.0
    assert Key(one) != key
    one.power = 1
    assert Key(one) == key


def test_what_is_no_number():
    assert Key(float("nan")) == Key(math.nan)


@pytest.mark.parametrize(
    "enclosing",
    [
        lambda one: one.__call__,
        lambda one: functools.partial(one),
        lambda one: jax.tree_util.Partial(functools.partial(one)),
        lambda one: jax.jit(one),
        lambda one: lambda *args: one(*args),
        lambda one: types.SimpleNamespace(inner=[one]),
        Velocity,
    ],
)
def test_what_encloses_an_object_changes_with_it(enclosing):
    one = Plain(1)
    outer = enclosing(one)
    key = Key(outer)
    assert Key(outer) == key
    one.power = 2
    assert Key(outer) != key


def test_what_holds_itself():
    one = Plain(1)
    one.inner = [one]
    assert Key(one) == Key(one)


def test_counting_its_traces_makes_no_function_another():
    traces = []

    def velocity(params, x, t, cond):
        traces.append(1)
        return -x

    flow = fs.Flow.from_callable(velocity, None, (2,))
    for _ in range(2):
        fs.sample(KEY, flow, kernel=ODE, grid=ONE_STEP, n=2)
    assert len(traces) == 1
