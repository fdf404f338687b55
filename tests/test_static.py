"""Static arguments are equal only if they compute the same; equal ones share a program."""

import dataclasses
import functools
import importlib
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowsde as fs
from flowsde.search.bon import BestOfN

programs = importlib.import_module("flowsde.runner.rounds")
_sample = importlib.import_module("flowsde.sampling")._sample

KEY = jax.random.key(0)
LINEAR = fs.interpolants.linear()
ODE = fs.kernels.ode_euler(LINEAR)
ONE_STEP = [1.0, 0.0]


def still(params, x, t, cond):
    """u = 0: x0 = x everywhere, under the linear interpolant."""
    return jnp.zeros_like(x)


FLOW = fs.Flow.from_callable(still, None, (2,))


class Scaled(fs.kernels.ODEEuler):
    """x_s = factor x; the attribute is no field, the class no dataclass."""

    def __init__(self, interpolant, factor):
        super().__init__(interpolant)
        self.factor = factor

    def moments(self, x, x0, x1, t, s):
        return self.factor * x, jnp.zeros_like(t)


class Bent(fs.interpolants.VP):
    def __init__(self, power):
        super().__init__(0.1, 20.0)
        object.__setattr__(self, "power", power)

    def integral(self, t):
        return self.power * super().integral(t)


class OwnInterpolant(fs.interpolants.Interpolant):
    """A curve of the user's own, no dataclass at all: (1 - t, power t)."""

    def __init__(self, power):
        self.power = power

    alpha = fs.interpolants.Linear.alpha
    alpha_dot = fs.interpolants.Linear.alpha_dot

    def sigma(self, t):
        return self.power * t

    def sigma_dot(self, t):
        return jnp.full_like(t, self.power)

    def time(self, angle):
        tan = jnp.tan(angle) / self.power
        return tan / (1.0 + tan)


class Coefficient(type(fs.diffusion.constant())):
    def __init__(self, scale, offset):
        super().__init__(scale)
        object.__setattr__(self, "offset", offset)

    def profile(self, p, t):
        return jnp.ones_like(t) + self.offset


class Shifted(BestOfN):
    """Best-of-N from noise that is moved."""

    def __init__(self, shift):
        given = fs.search.bon(nfe=2, kernel=ODE, grid=ONE_STEP, width=2)
        super().__init__(**{f.name: getattr(given, f.name) for f in dataclasses.fields(given)})
        object.__setattr__(self, "shift", shift)

    def extend(self, key, parent, step):
        return super().extend(key, parent, step) + self.shift


CASES = {
    "kernel": lambda value: Scaled(LINEAR, value),
    "interpolant": Bent,
    "own interpolant": OwnInterpolant,
    "diffusion": lambda value: Coefficient(0.3, value),
    "search": Shifted,
    "within": lambda value: fs.search.bon(nfe=9, kernel=Scaled(LINEAR, value), grid=ONE_STEP),
    "completed": lambda value: fs.search.svdd(
        nfe=40,
        kernel=fs.kernels.euler_maruyama(LINEAR, Coefficient(0.3, value)),
        grid=[1.0, 0.5, 0],
    ),
}


@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_equal_only_if_all_they_keep_is(make):
    assert make(2.0) == make(2.0) and hash(make(2.0)) == hash(make(2.0))
    assert repr(make(2.0)) == repr(make(2.0)) != repr(make(3.0))
    for other in (3.0, 2, True, np.float32(2.0), -2.0):
        assert make(2.0) != make(other)
    assert make(0.0) != make(-0.0) and make(1.0) != make(True)
    assert make(math.nan) == make(math.nan)
    assert len({make(2.0), make(2.0), make(3.0)}) == 2


@pytest.mark.slow
def test_a_kernel_runs_its_own_program():
    """x = factor noise, whichever ran first."""
    noise = fs.sample(KEY, FLOW, kernel=Scaled(LINEAR, 1.0), grid=ONE_STEP, n=3)
    for factor in (2.0, -4.0):
        x = fs.sample(KEY, FLOW, kernel=Scaled(LINEAR, factor), grid=ONE_STEP, n=3)
        np.testing.assert_array_equal(x, factor * noise)
    size = _sample._cache_size()
    fs.sample(KEY, FLOW, kernel=Scaled(LINEAR, -4.0), grid=ONE_STEP, n=3)
    assert _sample._cache_size() == size


@pytest.mark.slow
def test_a_search_runs_its_own_program():
    """The reward is that of moved noise: with u = 0 the posterior mean is the noise itself."""
    first = functools.partial(fs.run, KEY, FLOW)

    def height(images, cond):
        return images[:, 0]

    plain = first(Shifted(0.0), height)
    for shift in (5.0, -7.0):
        found = first(Shifted(shift), height).reward
        np.testing.assert_allclose(found, plain.reward + shift, rtol=1e-6)
    size = programs.run_rounds._cache_size()
    first(Shifted(-7.0), height)
    assert programs.run_rounds._cache_size() == size


def test_a_search_with_another_budget_or_width_keeps_all_it_keeps():
    for other in (Shifted(5.0).with_nfe(1), Shifted(5.0).replace(width=1)):
        assert other.shift == 5.0 and other != Shifted(5.0)
    with pytest.raises(ValueError, match="nfe = 0 is less than one sample"):
        Shifted(5.0).with_nfe(0)


def test_what_a_search_does_not_have_is_not_replaced():
    with pytest.raises(TypeError, match="Shifted has no 'nfee' to replace, expected nfe, "):
        Shifted(5.0).replace(nfee=1)
    vp = fs.kernels.ddim(fs.interpolants.vp())
    finishing = fs.search.svdd(nfe=20, kernel=vp, grid=fs.grids.uniform(3))
    with pytest.raises(TypeError, match="has no 'nfe' to replace.*: with_nfe gives a search ano"):
        finishing.replace(nfe=13)
    assert finishing.with_nfe(13).nfe == 13


@pytest.mark.slow
def test_an_interpolant_is_converted_as_what_it_is():
    """Under (1 - t, p t) the angle of the linear interpolant at s = 1/2 is at t = 1 / (1 + p)."""
    for power in (1.0, 3.0):
        t, scale = fs.match_time(OwnInterpolant(power), LINEAR, jnp.float32(0.5))
        np.testing.assert_allclose(t, 1.0 / (1.0 + power), rtol=1e-6)
        np.testing.assert_allclose(scale, 2.0 * power / (1.0 + power), rtol=1e-6)
    t, _ = fs.match_time(Bent(1.0), Bent(2.0), jnp.float32(0.5))
    wanted, _ = fs.match_time(fs.interpolants.vp(0.1, 20.0), fs.interpolants.vp(0.2, 40.0), 0.5)
    np.testing.assert_allclose(t, wanted, rtol=1e-6)


@pytest.mark.slow
def test_curves_of_functions_are_equal_if_the_functions_are():
    def falls(t):
        return 1.0 - t

    def bends(power):
        return fs.interpolants.from_functions(falls, lambda t: t**power)

    assert bends(2) != bends(2)
    assert fs.interpolants.from_functions(falls, jnp.sin) == fs.interpolants.from_functions(
        falls, jnp.sin
    )


@pytest.mark.slow
def test_a_changed_attribute_is_another_kernel():
    kernel = Scaled(LINEAR, 2.0)
    draw = functools.partial(fs.sample, KEY, FLOW, kernel=kernel, grid=ONE_STEP, n=3)
    before = draw()
    kernel.factor = 4.0
    np.testing.assert_array_equal(draw(), 2.0 * before)


@pytest.mark.parametrize("value", [[1.0], {"a": 1}, np.ones(2), jnp.ones(2), ([1.0],)])
def test_what_can_change_is_named(value):
    name = type(value).__name__
    kernel = Scaled(LINEAR, value)
    with pytest.raises(TypeError, match=f"Scaled.factor is of type {name}, which cannot"):
        fs.sample(KEY, FLOW, kernel=kernel, grid=ONE_STEP, n=2)
    search = fs.search.bon(nfe=2, kernel=kernel, grid=ONE_STEP)
    for go in (fs.run, fs.iterate, functools.partial(fs.batch, prompt_ids=[0])):
        with pytest.raises(TypeError, match=f"Scaled.factor is of type {name}"):
            go(KEY, FLOW, search, lambda images, cond: images[:, 0])


@dataclasses.dataclass(frozen=True)
class _Push:
    """A function of the user's own that is compared by its field."""

    power: float

    def __call__(self, *args):
        return jnp.zeros_like(args[1])


class _Hidden(_Push):
    def __init__(self, power, factor):
        super().__init__(power)
        object.__setattr__(self, "factor", factor)


class _Row(NamedTuple):
    power: float

    def __call__(self, *args):
        return jnp.zeros_like(args[1])


def own_search(value):
    """By the protocol, of a dataclass of the user's own."""

    @dataclasses.dataclass(frozen=True)
    class Own:
        pass

    for name in ("nfe", "n_candidates", "max_rounds"):
        setattr(Own, name, 1)
    functions = ("with_nfe", "with_width", "init", "ask", "tell", "done", "finishing", "best")
    for name in (*functions, "path", "lines"):
        setattr(Own, name, lambda *args: None)
    Own.interpolant, Own.uses_gradient, Own.path_name = LINEAR, False, "path"
    own = Own()
    object.__setattr__(own, "factor", value)
    return own


def judge(images, cond):
    return images[:, 0]


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("velocity_fn", {"flow": fs.Flow.from_callable(_Hidden(1.0, 2.0), None, (2,))}),
        ("decode", {"flow": fs.Flow.from_callable(still, None, (2,), decode=_Hidden(1.0, 2.0))}),
        ("reward", {"reward": _Hidden(1.0, 2.0)}),
        ("reward.func", {"reward": jax.tree_util.Partial(_Hidden(1.0, 2.0), jnp.ones(2))}),
        ("search", {"search": own_search(2.0)}),
        (
            "search.kernel.diffusion",
            {
                "search": fs.search.bon(
                    nfe=2,
                    kernel=fs.kernels.euler_maruyama(LINEAR, _Hidden(1.0, 2.0)),
                    grid=ONE_STEP,
                )
            },
        ),
    ],
)
def test_functions_and_searches_of_others_that_keep_more_than_their_fields(name, given):
    arguments = {"flow": FLOW, "search": Shifted(0.0), "reward": judge} | given
    with pytest.raises(TypeError, match=f"{name}.*, a \\w+, keeps 'factor'"):
        fs.run(KEY, *arguments.values())


def test_a_tuple_as_a_function():
    """Equal to any other tuple of the same values, whatever that computes."""
    with pytest.raises(TypeError, match="velocity_fn, a _Row, is compared as its values alone"):
        flow = fs.Flow.from_callable(_Row(1.0), None, (2,))
        fs.sample(KEY, flow, kernel=ODE, grid=ONE_STEP, n=2)


def test_whole_numbers_are_the_same_settings():
    assert fs.interpolants.vp(1, 20) == fs.interpolants.vp(1.0, 20.0)
    assert fs.diffusion.square(3) == fs.diffusion.square(3.0)
    assert fs.diffusion.exp(3, 1) == fs.diffusion.exp(3.0, 1.0)
