"""`sample`: its random numbers belong to particles, its memory and programs to the settings."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowsde as fs
from flowsde._exact import Exact, Key
from flowsde.sampling import _sample

LINEAR = fs.interpolants.linear()
KERNEL = fs.kernels.ddim(LINEAR, 1.0)
GRID = fs.grids.quadratic(4)
KEY = jax.random.key(7)


def conditional(params, x, t, cond):
    u = jnp.tanh(x * params) + t[:, None]
    return u if cond is None else u + cond


def flow_of(velocity=conditional, shape=(2,)):
    return fs.Flow.from_callable(velocity, jnp.full((1, shape[-1]), 0.8, jnp.float32), shape)


def draw(n=8, **options):
    settings = {"flow": flow_of(), "kernel": KERNEL, "grid": GRID} | options
    return np.asarray(fs.sample(KEY, n=n, **settings))


def conditions(n):
    return np.linspace(-1.0, 1.0, 2 * n, dtype=np.float32).reshape(n, 2)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [KERNEL, fs.kernels.ode_heun(LINEAR)], ids=str)
def test_particles_do_not_depend_on_chunks_or_number(kernel):
    cond = conditions(8)
    whole = draw(8, cond=cond, kernel=kernel)
    assert whole.shape == (8, 2) and whole.dtype == np.float32
    assert len(np.unique(whole)) == 16
    for chunk in (1, 3, 100):
        got = draw(8, cond=cond, kernel=kernel, chunk_size=chunk)
        np.testing.assert_allclose(got, whole, rtol=1e-6, atol=1e-6)
    prefix = draw(5, cond=cond[:5], kernel=kernel)
    np.testing.assert_allclose(prefix, whole[:5], rtol=1e-6, atol=1e-6)


class Bits(fs.kernels.Kernel):
    """Moves a particle to its own random bits, 24 of which a float32 holds exactly."""

    def moments(self, x, x0, x1, t, s):
        raise NotImplementedError

    def __call__(self, key, x, x0, x1, t, s):
        return (jax.random.bits(key, x.shape, jnp.uint32) >> 8).astype(x.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("grid", [GRID, [1.0, 0.0]], ids=len)
def test_random_numbers_are_bitwise_the_same(grid):
    """Those of the last step, for any number of particles, chunk size and x64."""
    flow = fs.Flow.from_callable(lambda p, x, t, c: x, None, (3,))
    options = {"flow": flow, "kernel": Bits(LINEAR), "grid": grid}
    whole = draw(6, **options)
    assert len(np.unique(whole)) == 18
    for n, chunk in [(6, 1), (6, 4), (2, None)]:
        np.testing.assert_array_equal(draw(n, chunk_size=chunk, **options), whole[:n])
    with jax.enable_x64(True):
        again = draw(6, **options)
    assert again.dtype == np.float32
    np.testing.assert_array_equal(again, whole)


@pytest.mark.slow
def test_other_keys_give_other_particles():
    other = fs.sample(jax.random.key(8), flow_of(), kernel=KERNEL, grid=GRID, n=8)
    assert not np.any(np.asarray(other) == draw(8))


@pytest.mark.slow
def test_each_particle_has_its_own_condition():
    cond = conditions(5)
    together = draw(5, cond=cond, chunk_size=2)
    for i in (0, 3):
        same = np.broadcast_to(cond[i], (5, 2))
        np.testing.assert_allclose(draw(5, cond=same)[i], together[i], rtol=1e-6, atol=1e-6)
    tree = {"a": cond, "b": [np.arange(5)]}

    def velocity(params, x, t, cond):
        return conditional(params, x, t, cond["a"]) + 0.1 * cond["b"][0].astype(x.dtype)[:, None]

    got = draw(5, flow=flow_of(velocity), cond=tree, chunk_size=2)
    wanted = draw(5, cond=cond + 0.1 * np.arange(5, dtype=np.float32)[:, None])
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_final_mean_is_the_posterior_mean_at_the_last_time():
    """DDIM's own last step returns x0 as well; Euler-Maruyama's adds its noise."""
    np.testing.assert_allclose(draw(final="mean"), draw(final="kernel"), rtol=1e-6, atol=1e-6)
    noisy = fs.kernels.euler_maruyama(LINEAR, fs.diffusion.constant(0.5))
    ends = [draw(kernel=noisy, final=final) for final in ("mean", "kernel")]
    assert np.all(np.abs(ends[0] - ends[1]) > 1e-6)
    # One step: the mean at pure noise is the data's mean, for every particle.
    data = fs.analytic.gaussian([0.7, -0.2], 0.3)
    one = draw(flow=data.flow(), kernel=noisy, grid=[1.0, 0.0], final="mean")
    np.testing.assert_allclose(one, np.broadcast_to([[0.7, -0.2]], one.shape), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "p", [LINEAR, fs.interpolants.vp(), fs.interpolants.from_functions(lambda t: 1 - t, jnp.sin)]
)
def test_start_is_noise_of_the_interpolants_radius(p):
    """With one step the answer shows the start: x0 = x - u of a flow with u = 0."""
    flow = fs.Flow.from_callable(lambda params, x, t, c: jnp.zeros_like(x), None, (50_000,))
    x = draw(1, flow=flow, kernel=fs.kernels.ode_euler(p), grid=[1.0, 0.0], final="mean")
    radius = float(p.radius(jnp.float32(1.0)))
    # The linear source's point is the start times radius_source / radius_target.
    scale = float(fs.match_time(LINEAR, p, jnp.float32(1.0))[1])
    np.testing.assert_allclose(x.std(), radius * scale, rtol=5.0 / math.sqrt(2 * x.size))
    np.testing.assert_allclose(x.mean(), 0.0, atol=5.0 * radius * scale / math.sqrt(x.size))


@pytest.mark.slow
def test_heun_has_order_2():
    """Against the exact transport x -> m + sqrt(v) x of a Gaussian, from the same start."""
    data = fs.analytic.gaussian([0.7, -0.2], 0.36)
    start = [jax.random.fold_in(jax.random.fold_in(KEY, i), 0) for i in range(8)]
    start = np.stack([jax.random.normal(k, (2,), jnp.float32) for k in start])
    exact = np.array([0.7, -0.2]) + 0.6 * start
    # Below some 40 steps Heun's error, in exact arithmetic too, falls more slowly than h^2.
    steps, errors = (40, 160), {}
    for build in (fs.kernels.ode_euler, fs.kernels.ode_heun):
        errors[build] = [
            np.sqrt(np.mean((draw(flow=data.flow(), kernel=build(LINEAR), grid=grid) - exact) ** 2))
            for grid in map(fs.grids.uniform, steps)
        ]
    order = {k: math.log(e[0] / e[1]) / math.log(steps[1] / steps[0]) for k, e in errors.items()}
    assert order[fs.kernels.ode_euler] >= 0.9 and order[fs.kernels.ode_heun] >= 1.9
    # 160 steps of Euler cost twice what 40 of Heun do, and are worse.
    assert errors[fs.kernels.ode_heun][0] < errors[fs.kernels.ode_euler][1]


@pytest.mark.slow
def test_the_second_call_does_not_compile():
    traces = []

    def velocity(params, x, t, cond):
        traces.append(x.shape)
        return conditional(params, x, t, cond)

    flow, cond = flow_of(velocity), conditions(8)
    settings = {"kernel": KERNEL, "n": 8, "chunk_size": 4}
    fs.sample(KEY, flow, grid=GRID, cond=cond, **settings)
    before, size = len(traces), _sample._cache_size()
    assert before and set(traces) == {(4, 2)}
    again = {
        "key": jax.random.key(1),
        "flow": jax.tree.map(lambda a: 2.0 * a, flow),
        "grid": list(GRID),
        "cond": cond + 1.0,
    }
    fs.sample(**again, **settings | {"kernel": fs.kernels.ddim(fs.interpolants.linear(), 1)})
    assert len(traces) == before and _sample._cache_size() == size


@pytest.mark.slow
def test_memory_does_not_grow_with_steps():
    """But for the times themselves: 16 bytes a step at most, where the particles have 1 MB."""
    scale = jnp.float32(0.8)
    flow = fs.Flow.from_callable(lambda p, x, t, c: jnp.tanh(p * x), scale, (4096,))

    def temporaries(steps):
        lowered = _sample.lower(
            KEY,
            flow,
            None,
            Exact(KERNEL, Key(KERNEL)),
            tuple(fs.grids.uniform(steps)),
            64,
            64,
            "kernel",
        )
        return lowered.compile().memory_analysis().temp_size_in_bytes

    few, many = temporaries(10), temporaries(1000)
    assert few > 64 * 4096 * 4
    assert abs(many - few) <= 16 * 1000


@pytest.mark.parametrize(
    "options, error, match",
    [
        ({"n": 0}, ValueError, "n must be an integer of at least 1, got 0"),
        ({"n": True}, ValueError, "n must be an integer"),
        ({"n": "3"}, TypeError, "n must be an integer, got '3'"),
        ({"n": 2.0}, TypeError, "n must be an integer"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be"),
        ({"chunk_size": 1.5}, TypeError, "chunk_size must be"),
        ({"grid": [1.0, 0.5, 0.7, 0.0]}, ValueError, "grid must fall strictly.*position 2"),
        ({"grid": [1.0, 0.5, 0.5, 0.0]}, ValueError, "grid must fall strictly"),
        ({"grid": [0.0, 0.5, 1.0]}, ValueError, "grid must fall strictly"),
        ({"grid": [1.0, 0.5]}, ValueError, "grid must run from 1 to 0"),
        ({"grid": [0.9, 0.0]}, ValueError, "grid must run from 1 to 0"),
        ({"grid": [2.0, 0.0]}, ValueError, r"grid must lie in \[0, 1\], got 2.0"),
        ({"grid": [1.0, math.nan, 0.0]}, ValueError, r"grid must lie in \[0, 1\]"),
        ({"grid": [1.0]}, ValueError, "grid must hold at least two times"),
        ({"grid": 10}, ValueError, "grid must hold at least two times"),
        ({"cond": conditions(7)}, ValueError, r"cond has a leaf of shape \(7, 2\).*n = 8"),
        ({"cond": np.float32(1.0)}, ValueError, r"cond has a leaf of shape \(\)"),
        ({"kernel": "ddim"}, TypeError, "kernel must be .* got 'ddim'"),
        ({"kernel": fs.kernels.ddim}, TypeError, "kernel must be"),
        ({"kernel": fs.kernels.renoise(LINEAR)}, TypeError, "reverse-time.*Renoise"),
        ({"final": "x0"}, ValueError, "final must be 'kernel' or 'mean', got 'x0'"),
    ],
)
def test_wrong_input_is_named_before_anything_runs(options, error, match):
    def never(params, x, t, cond):
        raise AssertionError("the model was called")

    settings = {"n": 8, "kernel": KERNEL, "grid": GRID, "flow": flow_of(never)}
    with pytest.raises(error, match=match):
        fs.sample(KEY, **settings | options)


@pytest.mark.slow
def test_integers_are_times_too():
    np.testing.assert_array_equal(draw(grid=np.array([1, 0])), draw(grid=[1.0, 0.0]))


@pytest.mark.slow
def test_sample_inside_other_transformations():
    """A sampler is a function of its key: vmap over keys, grad through the chain."""
    flow = flow_of()
    run = partial(fs.sample, kernel=fs.kernels.ode_euler(LINEAR), grid=GRID, n=3)
    keys = jax.random.split(KEY, 2)
    both = jax.vmap(lambda k: run(k, flow))(keys)
    np.testing.assert_allclose(both[1], run(keys[1], flow), rtol=1e-6, atol=1e-6)

    def energy(flow):
        return jnp.sum(jnp.square(run(KEY, flow)))

    gradient = float(jax.grad(energy)(flow).params[0, 0])
    moved = [jax.tree.map(lambda a, h=h: a.at[0, 0].add(h), flow) for h in (1e-2, -1e-2)]
    numeric = (float(energy(moved[0])) - float(energy(moved[1]))) / 2e-2
    assert abs(gradient - numeric) < 1e-2 * abs(gradient)
