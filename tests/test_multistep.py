"""Multistep solvers of the ODE: order against another solver, diffusers' own, ends, `sample`.

The order is found in two parts: against the solver's own fine limit, and that limit against
fourth-order Runge-Kutta, on a mixture whose velocity is exact, in float64.
"""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_kernels import BIMODAL, INTERPOLANTS, LINEAR, NEXT_TO_1, rms, slope

import flowsde as fs
from flowsde import kernels
from flowsde.search import METHODS

VP = INTERPOLANTS["vp"]
KEY, GRID = jax.random.key(7), fs.grids.quadratic(5)
SOLVERS = {
    "adams": kernels.ode_adams, "dpm": kernels.dpm_solver_2m, "unipc": kernels.uni_pc
}  # fmt: skip


def pair(p, data, x, t):
    return data.x0(p, x, t), data.x1(p, x, t)


# Order

STEPS = (20, 40, 80, 160, 1280)


def follow(solver, data, x, span, remembers=True):
    """Particles [n, 1] after each of STEPS uniform steps over a span of times, from x."""
    p = solver.interpolant

    @jax.jit
    def end(times, n):
        def step(i, carry):
            x, before = carry
            t, s = times[i], times[i + 1]
            moved, now = solver(before, x, *pair(p, data, x, t), t, s)
            return moved, now if remembers else before

        return jax.lax.fori_loop(0, n, step, (x, solver.start(x)))[0]

    # Filled up, so that all numbers of steps are one program.
    grids = [np.pad(np.linspace(*span, n + 1), (0, max(STEPS) - n)) for n in STEPS]
    return [np.asarray(end(times, n)) for times, n in zip(grids, STEPS, strict=True)]


def runge_kutta(p, data, x, span, steps=640):
    """Fourth order, with the velocity alone."""
    h = (span[1] - span[0]) / steps

    def step(x, t):
        k1 = data.velocity(p, x, t)
        k2 = data.velocity(p, x + 0.5 * h * k1, t + 0.5 * h)
        k3 = data.velocity(p, x + 0.5 * h * k2, t + 0.5 * h)
        k4 = data.velocity(p, x + h * k3, jnp.maximum(t + h, 0.0))
        return x + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4), None

    return np.asarray(jax.lax.scan(step, x, np.linspace(*span, steps + 1)[:-1])[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver, order, name, span",
    [
        ("adams", 2, "linear", (1.0, 0.0)),
        ("dpm", 2, "linear", (0.9, 0.2)),
        ("unipc", 3, "linear", (0.9, 0.2)),
        ("adams", 2, "cosine", (0.9, 0.2)),
        ("dpm", 2, "cosine", (0.9, 0.2)),
        ("unipc", 3, "cosine", (0.9, 0.2)),
    ],
)
def test_order(solver, order, name, span):
    """Halving the steps quarters the error (an eighth in order 3), without memory it halves it.

    DPM-Solver++ and UniPC between the ends alone, where log(alpha / sigma) is infinite.
    """
    p = INTERPOLANTS[name]
    with jax.enable_x64(True):
        data = fs.analytic.mixture(*BIMODAL, dtype=jnp.float64)
        x = jnp.linspace(-2.0, 2.0, 41)[:, None]
        ours = follow(SOLVERS[solver](p), data, x, span)
        plain = follow(SOLVERS[solver](p), data, x, span, remembers=False)
        other = runge_kutta(p, data, x, span)
    errors = [rms(end - ours[-1]) for end in ours[:-1]]
    assert slope(STEPS[:-1], errors) >= order - 0.1
    assert rms(ours[-1] - other) <= 2.0 * errors[-1] * (160 / 1280) ** order
    first = [rms(end - other) for end in plain[:-1]]
    assert 0.85 <= slope(STEPS[:-1], first) <= 1.15
    assert errors[1] < 0.2 * first[1]


def test_adams_follows_the_exact_transport_of_a_gaussian_over_the_whole_grid():
    """x = m + sqrt(v) z at t = 0, from pure noise z."""
    m, v = 0.7, 0.36
    with jax.enable_x64(True):
        data = fs.analytic.gaussian([m], v, dtype=jnp.float64)
        z = jnp.linspace(-2.0, 2.0, 41)[:, None]
        found = follow(kernels.ode_adams(LINEAR), data, z, (1.0, 0.0))
    errors = [rms(x - (m + math.sqrt(v) * np.asarray(z))) for x in found]
    assert slope(STEPS, errors) >= 1.9


@pytest.mark.slow
def test_adams_is_exact_for_a_velocity_linear_in_time():
    """With a step to remember: x / (alpha + sigma) is then quadratic in sigma / (alpha + sigma)."""
    with jax.enable_x64(True):
        for p in INTERPOLANTS.values():
            times = jnp.asarray([0.9, 0.7, 0.4])
            scale = p.alpha(times) + p.sigma(times)
            u = p.sigma(times) / scale
            y = 0.3 + 1.2 * u - 0.7 * u**2
            slope = 1.2 - 1.4 * u  # x1 - x0, with y = (1 - u) x0 + u x1
            x0, x = y - u * slope, scale * y
            x1 = x0 + slope
            solver = kernels.ode_adams(p)
            before = kernels.Before(x[0], x0[0], x1[0], times[0])
            moved, now = solver(before, x[1], x0[1], x1[1], times[1], times[2])
            np.testing.assert_allclose(moved, x[2], rtol=1e-12)
            np.testing.assert_allclose(now.x, x[1], rtol=1e-12)


@pytest.mark.slow
def test_solvers_of_all_interpolants_go_the_same_way():
    """Matched angles, rescaled points: the ODE's path is the same, and so are the steps on it."""
    times = [0.9, 0.6, 0.3, 0.1]
    x0, x1 = jnp.asarray([[0.3, -0.2, 0.5], [0.9, 0.4, -1.0]])
    for make in SOLVERS.values():
        found = []
        for p in INTERPOLANTS.values():
            solver = make(p)
            matched = [fs.match_time(p, LINEAR, jnp.float32(t)) for t in times]
            x, before = None, solver.start(x0)
            for i, ((t, scale), (s, _)) in enumerate(itertools.pairwise(matched)):
                here = (1 - 0.1 * i) * x0, x1 + 0.2 * i  # means that change from step to step
                x = scale * (times[0] * x1 + (1 - times[0]) * x0) if x is None else x
                x, before = solver(before, x, *here, t, s)
            found.append(x / matched[-1][1])
        for other in found[1:]:
            np.testing.assert_allclose(other, found[0], rtol=1e-4, atol=1e-5)


# Others


@pytest.mark.slow_but_one
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", ["dpm", "unipc"])
def test_solvers_are_those_of_diffusers(name):
    """From their first time, .999, to 0, for a velocity that both are told."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    if name == "dpm":
        theirs = diffusers.DPMSolverMultistepScheduler(
            **flow, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
        )
    else:
        theirs = diffusers.UniPCMultistepScheduler(
            **flow, solver_type="bh2", solver_order=2, predict_x0=True, final_sigmas_type="zero"
        )
    theirs.set_timesteps(8)
    assert theirs.sigmas[0] > 0.99 and theirs.sigmas[-1] == 0.0
    solver, x = SOLVERS[name](LINEAR), jnp.linspace(-2.0, 2.0, 9)[None]
    sample, before = torch.as_tensor(np.array(x)), solver.start(x)
    move = jax.jit(solver)
    for step, (t, s) in zip(
        theirs.timesteps, itertools.pairwise(theirs.sigmas.numpy()), strict=True
    ):
        velocity = np.tanh(3.0 * np.asarray(x)) + 2.0 * t  # whatever it is
        x, before = move(before, x, x - t * velocity, x + (1 - t) * velocity, t, s)
        sample = theirs.step(torch.as_tensor(velocity), step, sample).prev_sample
        np.testing.assert_allclose(x, sample.numpy(), rtol=1e-4, atol=1e-4)


# Ends


@pytest.mark.slow_but_one
@pytest.mark.parametrize("name", INTERPOLANTS)
def test_finite_at_every_step_to_and_from_the_ends(name):
    p = INTERPOLANTS[name]
    flow = fs.analytic.mixture(*BIMODAL).flow()
    times = [1.0, NEXT_TO_1, 0.9, 0.5, 1e-4, 1e-7, 0.0]
    x = jnp.asarray([[0.4], [-1.3]]) * p.radius(jnp.ones(()))

    @partial(jax.jit, static_argnums=0)
    def move(solver, before, x, t, s):
        return solver(before, x, *flow.means(x, jnp.full(2, t), None, p), t, s)

    for make in SOLVERS.values():
        solver = make(p)
        for chosen in (times, times[:1] + times[2:], [1.0, 0.0], [0.5, 1e-7, 0.0]):
            at, before = x, solver.start(x)
            for t, s in itertools.pairwise(np.asarray(chosen, np.float32)):
                at, before = move(solver, before, at, t, s)
                assert np.isfinite(np.asarray(at)).all(), (solver, t, s)


@pytest.mark.slow
def test_the_first_step_is_ddims():
    """And so is every step of DPM-Solver++ next to an end, where its variable is infinite."""
    x0, x1 = jnp.asarray([[0.3, -0.2], [0.9, 0.4]])
    for p in (LINEAR, VP):
        for make in SOLVERS.values():
            solver, (t, s) = make(p), jnp.asarray([0.8, 0.5])
            x = p.alpha(t) * x0 + p.sigma(t) * x1
            moved, _ = solver(solver.start(x), x, x0, x1, t, s)
            wanted = kernels.ddim(p, 0.0)(KEY, x, x0, x1, t, s)
            np.testing.assert_allclose(moved, wanted, rtol=1e-5)
    solver = kernels.dpm_solver_2m(LINEAR)
    for last, t, s in ((1.0, 0.8, 0.5), (0.8, 0.5, 0.0)):
        before = kernels.Before(x0, -x0, x1, jnp.float32(last))
        x = (1 - t) * x0 + t * x1
        moved, _ = solver(before, x, x0, x1, t, s)
        np.testing.assert_allclose(
            moved, kernels.ddim(LINEAR, 0.0)(KEY, x, x0, x1, t, s), rtol=1e-5
        )


# Sample


@pytest.mark.slow
@pytest.mark.parametrize(
    "make, final", [(kernels.ode_adams, "kernel"), (kernels.dpm_solver_2m, "mean")]
)
def test_sample_follows_the_steps_and_counts_them(make, final):
    """In chunks too, whose rows are the particles' own; one evaluation a step."""
    seen = []
    data = fs.analytic.mixture(*BIMODAL)

    def velocity(params, x, t, cond):
        jax.debug.callback(lambda t: seen.append(len(t)), t)
        return jax.vmap(partial(data.velocity, LINEAR))(x, t)

    flow, solver = fs.Flow.from_callable(velocity, None, (1,)), make(VP)
    got = fs.sample(KEY, flow, kernel=solver, grid=GRID, n=5, final=final, chunk_size=3)
    jax.effects_barrier()
    assert seen == [3] * 2 * (len(GRID) - 1)

    @jax.jit
    def alone(i):
        x = jax.random.normal(jax.random.fold_in(jax.random.fold_in(KEY, i), 0), (1,))
        x *= VP.radius(jnp.ones(()))
        before = solver.start(x)
        for t, s in itertools.pairwise(np.asarray(GRID, np.float32)):
            x0, x1 = (a[0] for a in data.flow().means(x[None], t[None], None, VP))
            moved, before = solver(before, x, x0, x1, t, s)
            x = x0 if final == "mean" and s == 0.0 else moved
        return x

    np.testing.assert_allclose(got, [alone(i) for i in range(5)], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_adams_is_better_than_heun_for_as_many_evaluations():
    """The exact transport of a Gaussian, in float32: 20 evaluations of either."""
    data = fs.analytic.gaussian([0.7, -0.2], 0.36)
    start = [jax.random.fold_in(jax.random.fold_in(KEY, i), 0) for i in range(8)]
    exact = np.array([0.7, -0.2]) + 0.6 * np.stack([jax.random.normal(k, (2,)) for k in start])
    errors = {}
    for kernel, steps in ((kernels.ode_adams(LINEAR), 20), (kernels.ode_heun(LINEAR), 10)):
        x = fs.sample(KEY, data.flow(), kernel=kernel, grid=fs.grids.uniform(steps), n=8)
        errors[type(kernel).__name__] = rms(np.asarray(x) - exact)
    assert errors["ODEAdams"] < errors["ODEHeun"]


# Errors

FOLLOWING = ("bon", "halving", "lidar", "zero_order")
"""Searches that follow trajectories from noise."""


@pytest.mark.parametrize("name", [n for n in METHODS if n not in FOLLOWING])
def test_other_searches_refuse_a_solver(name):
    with pytest.raises(ValueError, match="no step before, got ODEAdams.*bon, halving, lidar"):
        METHODS[name](nfe=400, kernel=kernels.ode_adams(LINEAR), grid=GRID)


def test_a_reward_does_not_guide_a_solver():
    solver = kernels.ode_adams(LINEAR)
    with pytest.raises(TypeError, match="kernel must be a reverse-time.*ODEAdams"):
        kernels.reward_gradient(solver, 1.0)
    with pytest.raises(TypeError, match="interpolant must be"):
        kernels.ode_adams("linear")


def test_wrong_shapes():
    x, solver = jnp.ones((4, 2)), kernels.ode_adams(LINEAR)
    with pytest.raises(AssertionError, match="of one particle"):
        solver(solver.start(x[0]), x, x, x, 0.5, 0.4)
    with pytest.raises(ValueError, match=r"t has shape \(4,\)"):
        solver(solver.start(x), x, x, x, jnp.full(4, 0.5), 0.4)


def test_equal_by_value():
    assert kernels.ode_adams(LINEAR) == kernels.ode_adams(fs.interpolants.linear())
    different = [make(p) for make in SOLVERS.values() for p in (LINEAR, VP)]
    assert len({*different}) == 2 * len(SOLVERS)
