"""What a function takes from around it is part of what it is; what counts its calls is not."""

import dataclasses
import logging
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowsde as fs
from flowsde._exact import Key
from flowsde._uses import used

SCALE, PAIR, SETTINGS, WEIGHTS = 1.0, (1.0, 2.0), {"scale": 1.0}, np.ones(2)
SPACE = types.SimpleNamespace(scale=1.0)
LINEAR = fs.interpolants.linear()
LOG = logging.getLogger("of a test")
CALLS, SEEN, COUNTS = 0, [], {"calls": 0}


def helper(x):
    return SCALE * x


def of_global(x, cond):
    return SCALE * x[:, 0]


def of_pair(x, cond):
    return PAIR[0] * x[:, 0]


def of_settings(x, cond):
    return SETTINGS["scale"] * x[:, 0]


def of_array(x, cond):
    return x @ WEIGHTS


def of_space(x, cond):
    return SPACE.scale * x[:, 0]


def of_record(x, cond):
    return RECORD.scale * LINEAR.alpha(x[:, 0])


def of_helper(x, cond):
    return (lambda y: helper(y))(x[:, 0])


def of_default(x, cond, scale=(1.0,), shift=0.0, *, power=1.0):
    return scale[0] * x[:, 0] ** power + shift


@dataclasses.dataclass
class Record:
    scale: float


RECORD = Record(1.0)


class Called:
    def __call__(self, x, cond):
        return self.scaled(x[:, 0])

    def scaled(self, x):
        return SCALE * x

    def other(self):
        return PAIR


@dataclasses.dataclass(frozen=True)
class Compared:
    power: float = 1.0

    def __call__(self, x, cond):
        return SCALE * x[:, 0] ** self.power


class Kernel(fs.kernels.DDIM):
    def zeta_and_rho(self, t, s):
        return SCALE * t, s


ONE = Called()
KERNEL = Kernel(fs.interpolants.linear(), 1.0)


def still(params, x, t, cond):
    return 0.5 * x


def put(name):
    return lambda value: globals().__setitem__(name, value)


def defaults(value):
    of_default.__defaults__ = value


CHANGES = {
    "a global": (of_global, put("SCALE"), 2.0, 1.0),
    "the sign of a zero": (of_global, put("SCALE"), -0.0, 1.0),
    "a global of a helper": (of_helper, put("SCALE"), 2.0, 1.0),
    "a helper": (of_helper, put("helper"), lambda x: x, helper),
    "a tuple": (of_pair, put("PAIR"), (2.0, 2.0), (1.0, 2.0)),
    "a dict": (of_settings, lambda v: SETTINGS.update(scale=v), 2.0, 1.0),
    "an array": (of_array, lambda v: WEIGHTS.fill(v), 2.0, 1.0),
    "a namespace": (of_space, lambda v: setattr(SPACE, "scale", v), 2.0, 1.0),
    "a record": (of_record, lambda v: setattr(RECORD, "scale", v), 2.0, 1.0),
    "a path": (of_record, put("LINEAR"), fs.interpolants.vp(), fs.interpolants.linear()),
    "a default": (of_default, defaults, ((2.0,), 0.0), ((1.0,), 0.0)),
    "the last default": (of_default, defaults, ((1.0,), 1.0), ((1.0,), 0.0)),
    "a keyword's": (of_default, lambda v: of_default.__kwdefaults__.update(power=v), 2.0, 1.0),
    "of an object": (ONE, put("SCALE"), 2.0, 1.0),
    "of a method": (ONE.scaled, put("SCALE"), 2.0, 1.0),
    "of a dataclass": (Compared(), put("SCALE"), 2.0, 1.0),
    "of a kernel": (KERNEL, put("SCALE"), 2.0, 1.0),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_is_taken_from_around_changes_a_function(kind):
    one, change, other, own = CHANGES[kind]
    before = Key(one)
    change(other)
    changed = Key(one)
    change(own)
    assert changed != before
    assert Key(one) == before


def test_of_an_enclosing_function():
    scale = 1.0

    def reward(x, cond):
        return scale * x[:, 0]

    before = Key(reward)
    scale = 2.0
    assert Key(reward) != before


def test_what_counts_calls_changes_nothing():
    own, kept = 0, []

    def reward(x):
        global CALLS
        nonlocal own
        own += 1
        CALLS += 1
        kept.append(x)
        COUNTS["calls"] += 1
        return x

    def noted(x):
        (lambda: SEEN.append(x))()
        LOG.debug("%s", x)
        return x

    for fn in (reward, noted):
        before = Key(fn)
        fn(1.0)
        LOG.setLevel(logging.DEBUG if LOG.level != logging.DEBUG else logging.INFO)
        assert Key(fn) == before
    before = Key(ONE)
    put("PAIR")((3.0,))  # of a method that is not called
    assert Key(ONE) == before
    put("PAIR")((1.0, 2.0))


@pytest.mark.slow
def test_a_run_has_the_value_of_now():
    """The reward of a picture is that of the function as it is when the search is run."""
    flow = fs.analytic.mixture([0.5, 0.5], [[1.0, 1.0], [-1.0, -1.0]], 0.1).flow()
    kernel = fs.kernels.ode_euler(fs.interpolants.linear())
    search = fs.search.bon(nfe=6, kernel=kernel, grid=fs.grids.uniform(3))

    def run():
        return fs.run(jax.random.key(0), flow, search, of_helper)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run()
        run()
    put("SCALE")(-2.0)
    try:
        with pytest.warns(UserWarning, match="reward: 'SCALE', which helper takes") as said:
            found = run()
    finally:
        put("SCALE")(1.0)
    assert len(said) == 1
    np.testing.assert_allclose(found.reward, -2.0 * found.image[0], rtol=1e-6)


class Diffusion:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, p, t):
        return self.scale * t


@pytest.fixture
def power():
    """A path of a global power, and what sets it."""
    path = fs.interpolants.from_functions(lambda t: 1.0 - t**SCALE, lambda t: t**SCALE)
    yield path, put("SCALE")
    put("SCALE")(1.0)


CHANGED = pytest.mark.filterwarnings("ignore:.*has changed since it was last used")


@CHANGED
@pytest.mark.slow
def test_times_of_a_path_that_has_changed(power):
    """At t^2 = 1 - t^2 the angle is pi / 4."""
    path, change = power
    np.testing.assert_allclose(path.time(path.angle(jnp.float32(0.5))), 0.5, rtol=1e-6)
    change(2.0)
    np.testing.assert_allclose(path.time(jnp.float32(np.pi / 4)), 0.5**0.5, rtol=1e-6)


@CHANGED
@pytest.mark.slow
def test_what_is_drawn_along_a_path_that_has_changed(power):
    """As along one that was so from the beginning."""
    path, change = power
    linear, (key, grid) = fs.interpolants.linear(), (jax.random.key(0), fs.grids.uniform(3))
    flow = fs.Flow.from_callable(still, None, (2,))
    data = np.random.default_rng(0).normal(size=(32, 2))

    def drawn(path):
        search = fs.search.bon(nfe=6, kernel=fs.kernels.ode_euler(path), grid=grid)
        other = fs.Flow.from_callable(still, None, (2,), interpolant=path)
        x0 = fs.posterior_samples(key, other, jnp.ones((1, 2)), 0.5, interpolant=linear)
        told = fs.check_convention(other, data)
        return fs.run(key, flow, search, of_pair).x0, x0, told.errors[told.given]

    before = drawn(path)
    change(2.0)
    of_square = drawn(fs.interpolants.from_functions(lambda t: 1.0 - t**2.0, lambda t: t**2.0))
    for was, now, wanted in zip(before, drawn(path), of_square, strict=True):
        assert not np.allclose(was, now)
        np.testing.assert_allclose(now, wanted, rtol=1e-5)


@CHANGED
@pytest.mark.slow
def test_a_diagnosis_of_a_kernel_that_has_changed():
    """It said that everything is compiled again, and went on with the old one."""
    flow = fs.analytic.gaussian([0.5, 0.0], 0.5).flow()

    def rewards(diffusion):
        kernel = fs.kernels.euler_maruyama(flow.interpolant, diffusion)
        options = {"kernel": kernel, "grid": fs.grids.uniform(3), "n": 8, "families": 0}
        return fs.diagnose(jax.random.key(0), flow, of_pair, **options).rewards

    one = Diffusion(1.0)
    rewards(one)
    one.scale = 2.0
    np.testing.assert_array_equal(rewards(one), rewards(Diffusion(2.0)))


@CHANGED
@pytest.mark.slow
def test_a_part_in_jax_of_a_reward_outside_it():
    """Each part once, by hand: SCALE x0 + x1."""
    first = fs.rewards.device(of_global, name="first")
    second = fs.rewards.host(lambda images, cond: images[:, 1], name="second")
    reward, images = fs.rewards.weighted([first, second], [1.0, 1.0]), np.float32([[3.0, 4.0]])
    assert reward(images, None).tolist() == [7.0]
    put("SCALE")(2.0)
    try:
        assert reward(images, None).tolist() == [10.0]
    finally:
        put("SCALE")(1.0)


def test_functions_that_are_installed_are_not_looked_into():
    """They call thousands of others."""
    assert not list(used(pytest.importorskip("scipy.optimize").minimize))
    assert [one.name for one in used(of_helper)] == ["helper"]
