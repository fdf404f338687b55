"""Completing the trajectory of the best particle, against Euler steps of the linear ODE by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
import reference
from problems import GRID, SDE, batch, flow, host_reward, row

import flowsde as fs
from flowsde.search import complete
from flowsde.search.finishing import LINE

KEY = jax.random.key(9)
STEPS, INNER = 4, 37
COUNT = 60


def search(finish, nfe):
    return fs.search.rbf(
        nfe=nfe, kernel=SDE, grid=GRID, chains=2, seeds=2, width=3, finish=finish,
        finish_steps=None if finish == "mean" else STEPS,
    )  # fmt: skip


def run(finish, nfe, target=None):
    return go(search(finish, nfe), target)


def run_inner(target):
    """What is completed, alone: unlike a search that ends with means, with no early answers."""
    inner = search("complete", INNER + STEPS).inner
    assert inner == search("mean", INNER).replace(early_answers=False)
    return go(inner, target)


def go(search, target):
    ids, cond = batch(COUNT)
    return fs.run(
        KEY, flow(), search, problems.reward, cond=cond, prompt_ids=ids, target_reward=target
    )


@jax.jit
def velocity(x, t, cond):
    cond = jax.tree.map(lambda a: a[None], cond)
    return problems.velocity(flow().params, x[None], t[None], cond)[0]


@jax.jit
def posterior_mean(flow, x, t, cond):
    return flow.means(x, t, cond, SDE.interpolant)[0]


def check(completed, inner):
    """Every prompt's completion by hand from the inner search's best; how many were not worse."""
    cond = batch(COUNT)[1]
    kept = 0
    for i in range(COUNT):
        start = reference.Point(inner.x[i], inner.t[i], None, None, None)
        x0, _ = reference.complete(velocity, start, STEPS, SDE.interpolant, row(cond, i))
        image = np.asarray(problems.decode(x0))
        reward = host_reward(image[None], row(batch(COUNT)[1], np.asarray([i])))[0]
        size = cond["size"][i]
        assert completed.reward[i] >= inner.reward[i]
        if completed.t[i] < inner.t[i]:
            kept += 1
        else:  # the posterior mean stays the answer; a NaN never wins
            assert completed.t[i] == inner.t[i]
            assert np.isnan(reward) or reward <= inner.reward[i] + 5e-4 * size
            x0, reward = inner.x0[i], inner.reward[i]
        np.testing.assert_allclose(completed.x0[i], x0, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(completed.reward[i] / size, reward / size, rtol=0, atol=5e-4)
    return kept


@pytest.mark.slow
def test_complete_follows_the_linear_ode_within_the_budget():
    cap = INNER + STEPS
    full, early = run("complete", cap), run("complete", cap, 0.4)
    best = jax.jit(jax.vmap(search("complete", cap).inner.best))
    np.testing.assert_array_equal(full.nfe, cap)
    assert 0 < check(full, best(full.state.inner)) < COUNT

    # A target met at the last time stops the search and its charges, and is still completed.
    inner = best(early.state.inner)
    check(early, inner)
    np.testing.assert_array_equal(inner.t, np.float32(GRID[-2]))
    met = np.asarray(inner.reward) >= 0.4
    assert 0 < met.sum() < COUNT
    assert np.any(np.asarray(early.nfe)[met] < cap)
    np.testing.assert_array_equal(np.asarray(early.nfe)[~met], cap)

    cond = batch(COUNT)[1]
    for result in (full, early):
        reevaluates(result, cond)


def reevaluates(result, cond):
    x0 = posterior_mean(flow(), result.x, result.t, cond)
    np.testing.assert_allclose(result.x0, x0, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result.image, problems.decode(result.x0), rtol=1e-6)
    reward = jax.jit(problems.reward)(result.image, cond)
    np.testing.assert_allclose(
        result.reward / cond["size"], reward / cond["size"], rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("target", [None, 0.4])
def test_completion_starts_from_what_the_search_alone_would_return(target):
    completed, inner = run("complete", INNER + STEPS, target), run_inner(target)
    np.testing.assert_array_equal(completed.nfe, np.asarray(inner.nfe) + STEPS)
    check(completed, inner)
    reevaluates(inner, batch(COUNT)[1])


@pytest.mark.slow
def test_finishing_by_heun_and_by_adams_is_of_second_order():
    """Against the exact image of the ODE's path, from the same start, by two and by four steps.

    For Gaussian data N(m, v) the linear ODE keeps (x - (1 - t) m) / sqrt((1 - t)^2 v + t^2).
    """
    mean, v, linear = np.float32([0.5, -0.5]), 0.09, fs.interpolants.linear()
    data = fs.analytic.gaussian(mean, v)

    def small(images, cond):
        return -jnp.sum(images**2, axis=-1)

    # One draw of noise, then finishing alone: the grid has one step.
    errors = {}
    every = {"complete": (8, 16), "heun": (8, 16, 32), "adams": (8, 16, 32)}
    for finish, all_steps in every.items():
        for steps in all_steps:
            one = fs.search.rbf(
                nfe=1 + steps, kernel=fs.kernels.ddim(linear), grid=[1.0, 0.0], chains=1,
                finish=finish, finish_steps=steps,
            )  # fmt: skip
            result = fs.run(KEY, data.flow(), one, small)
            noise = result.state.inner.chains.champion.x[0]
            t = float(result.t)
            # x at the last time, exactly; the image is the posterior mean there.
            x = (1 - t) * mean + np.sqrt((1 - t) ** 2 * v + t**2) * noise
            np.testing.assert_array_equal((result.nfe, result.evaluations), 1 + steps)
            assert np.isclose(t, 0.07, rtol=1e-5)
            errors[finish, steps] = float(jnp.max(jnp.abs(result.x - x)))
    assert errors["heun", 16] < 0.5 * errors["complete", 16]
    assert np.log2(errors["heun", 16] / errors["heun", 32]) > 1.6
    assert errors["heun", 8] > errors["heun", 16]
    assert errors["adams", 16] < errors["heun", 16]
    # 16 times for order 2 and 4 times for order 1; at these few steps it is not even.
    assert errors["adams", 8] > 8.0 * errors["adams", 32]


@pytest.mark.slow
def test_adams_finishing_is_its_steps_and_is_resumed_within_them(tmp_path):
    """Bit for bit from a save after any round: what the last step left is in the state."""
    vp, steps = fs.interpolants.vp(), 4
    model = fs.analytic.gaussian([0.5, -0.5], 0.09).flow()
    one = fs.search.rbf(
        nfe=1 + steps, kernel=fs.kernels.ddim(vp), grid=[1.0, 0.0], chains=1, finish="adams",
        finish_steps=steps,
    )  # fmt: skip
    assert str(one.solver) == "ODEAdams(interpolant=VP(beta_min=0.1, beta_max=20.0))"

    def judge(images, cond):
        return -jnp.sum(images**2, axis=-1)

    def go(**options):
        return [*fs.iterate(KEY, model, one, judge, **options)]

    whole = go()
    assert len(whole) == 1 + steps and whole[-1].nfe == 1 + steps

    @jax.jit
    def follow(x):
        solver, times = fs.kernels.ode_adams(vp), [jnp.float32(1.0)]
        first = LINE.time(vp.angle(times[0]))
        for k in range(1, steps + 1):
            times.append(vp.time(LINE.angle(first + (0.07 - first) * k / steps)))
        before = solver.start(x)
        for t, s in itertools.pairwise(times):
            x0, x1 = (a[0] for a in model.means(x[None], t[None], None, vp))
            x, before = solver(before, x, x0, x1, t, s)
        return x

    start = whole[-1].state.inner.chains.champion.x[0]
    np.testing.assert_allclose(whole[-1].state.particle.x, follow(start), rtol=1e-4, atol=1e-5)
    for i in (1, 3):
        fs.save_search(tmp_path / str(i), one, whole[i])
        *_, last = go(resume=fs.restore_search(tmp_path / str(i), one))
        np.testing.assert_array_equal(last.state.particle.x, whole[-1].state.particle.x)
        assert last.reward == whole[-1].reward and last.nfe == whole[-1].nfe


def test_what_is_nearly_finished_is_not_finished_by_default():
    """VP's last uniform time, .05, is .148 in linear time: sigma / (alpha + sigma) there."""
    linear = fs.kernels.ddim(fs.interpolants.linear())
    vp = fs.kernels.ddim(fs.interpolants.vp())
    for finish in ("complete", "heun"):
        for kernel, steps, expected in ((vp, 20, 10), (vp, 4, 2), (linear, 4, 2), (linear, 20, 0)):
            options = {"nfe": 100, "kernel": kernel, "grid": fs.grids.uniform(steps)}
            made = fs.search.rbf(finish=finish, **options)
            assert made.nfe == 100
            assert (made.steps if isinstance(made, fs.search.Complete) else 0) == expected
            told = fs.search.rbf(finish=finish, finish_steps=4, **options)
            assert told.steps == 4 and told.inner.nfe == 96


def test_times_are_those_of_particles_which_are_float32():
    """0.42 / 3 is below 0.14, twice the time at which finishing ends, in float64 alone."""
    last = 0.42 / 3
    assert last < 0.14 and np.float32(last) >= 0.14
    for grid in ((1.0, 0.6, last, 0.0), (1.0, 0.6, 0.14, 0.0)):
        assert complete.default_steps("complete", LINE, grid) == 1


def test_a_heun_step_takes_two_evaluations():
    with pytest.raises(ValueError, match="finish_steps must be even for finish 'heun'.* got 3"):
        fs.search.rbf(nfe=40, kernel=SDE, grid=GRID, finish="heun", finish_steps=3)


def test_steps_of_finishing_that_is_not_done_are_refused():
    with pytest.raises(ValueError, match="finish_steps has no effect with finish 'mean', got 3"):
        fs.search.svdd(nfe=40, kernel=SDE, grid=GRID, finish="mean", finish_steps=3)
