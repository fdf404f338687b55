"""Beginning from something given, on flows with known answers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from methods import GLASS, GUIDED, ODE

import flowsde as fs
from flowsde.search.starting import check_start
from flowsde.start import Start

KEY = jax.random.key(5)
LINEAR, VP = fs.interpolants.linear(), fs.interpolants.vp()
X0 = np.asarray([0.3, -0.7], np.float32)
ANEW = np.asarray([True, False])


def gaussian(interpolant=LINEAR, shape=(2,), variance=0.25):
    """Of N(0, v): E[data | x] = alpha v x / (alpha^2 v + sigma^2), and the noise likewise."""

    def velocity(params, x, t, cond):
        t = t[:, None]
        x0 = (1.0 - t) * variance * x / ((1.0 - t) ** 2 * variance + t**2)
        x1 = t * x / ((1.0 - t) ** 2 * variance + t**2)
        return x1 - x0

    return fs.Flow.from_callable(velocity, None, shape)


LATE = {"nfe": 33, "grid": (0.02, 0.015, 0.01, 0.005, 0.0)}
OPTIONS = {
    "bon": {"kernel": problems.SDE, "width": 3},
    "halving, guided, rungs": {"kernel": GUIDED, "draft_steps": 2, "factor": 2, "rungs": 1},
    "evolution": {"kernel": ODE, "children": 3, "parents": 2, "mutate_at": 0.012},
    "zero_order": {"kernel": ODE, "neighbours": 3},
    "epsilon_greedy": {"kernel": problems.SDE, "neighbours": 2, "finish_steps": 4},
    "dfs": {"kernel": ODE, "check_at": (2,), "bar": 0.5, "finish_steps": 4},
    "dts": {"kernel": problems.SDE, "width": 3},
    "lidar": {"kernel": ODE, "draft_steps": 2, "trajectories": 1},
    "sop": {"kernel": ODE, "start": 1, "forward": 1, "backward": 2, "finish_steps": 4},
    "svdd, guided, adams": {"kernel": GUIDED, "finish": "adams", "finish_steps": 4},
    "code": {"kernel": problems.SDE, "block": 2, "finish_steps": 4},
    "smc, guided, tempered, funnel": {
        "kernel": GUIDED, "temperature": 2.0, "tempering": "exponential", "funnel": 0.4,
        "finish": "adams", "finish_steps": 4,
    },
    "rbf, glass": {"kernel": GLASS, "chains": 1, "seeds": 2, "width": 3, "finish_steps": 4},
    "rbf, quantile, samples": {
        "kernel": problems.SDE, "chains": 1, "width": 3, "accept": "quantile", "value": "samples",
        "value_steps": 1, "value_samples": 2,
    },
    "pcn": {"kernel": ODE, "chains": 3, "temperature": 0.3},
    "pcn, langevin": {"kernel": ODE, "chains": 2, "proposal": "langevin", "clip": 1.0},
    "psi": {"kernel": problems.SDE, "chains": 2, "walk": 3, "finish_steps": 4},
}  # fmt: skip
METHODS = {
    name: fs.search.METHODS[name.split(",")[0]](**options, **LATE)
    for name, options in OPTIONS.items()
}
METHODS["rbf, glass, kept"] = fs.search.keep(METHODS.pop("rbf, glass"), 2)


def test_every_method_is_tried():
    assert {name.split(",")[0] for name in METHODS} == set(fs.search.METHODS)


@pytest.mark.parametrize(("n", "strength", "steps"), [(10, 0.75, 8), (10, 1.0, 10), (20, 0.55, 11)])
def test_the_tail_of_a_grid_is_that_of_diffusers(n, strength, steps):
    tail, whole = fs.grids.tail(fs.grids.uniform(n), strength), fs.grids.uniform(n)
    # n - floor(n - n strength) steps, of real numbers.
    assert len(tail) == steps + 1
    np.testing.assert_array_equal(tail, whole[-len(tail) :])


@pytest.mark.parametrize(("n", "strength"), [(2, 0.8), (4, 0.8), (10, 0.95), (3, 0.999)])
def test_the_first_time_of_a_strength_below_one_is_below_one(n, strength):
    """Rounding would run all steps, and begin from noise alone."""
    tail = fs.grids.tail(fs.grids.uniform(n), strength)
    np.testing.assert_array_equal(tail, fs.grids.uniform(n)[1:])


def test_a_single_step_cannot_keep_a_picture():
    with pytest.raises(ValueError, match="strength must be 1 for a grid of one step.* got 0.8"):
        fs.grids.tail(fs.grids.uniform(1), 0.8)
    np.testing.assert_array_equal(fs.grids.tail(fs.grids.uniform(1), 1.0), [1.0, 0.0])


@pytest.mark.parametrize("strength", [0.0, -1.0, 1.5])
def test_a_strength_is_a_share(strength):
    with pytest.raises(ValueError, match="strength must be"):
        fs.grids.tail(fs.grids.uniform(4), strength)


@pytest.mark.slow
@pytest.mark.parametrize("interpolant", [LINEAR, VP])
def test_the_start_is_the_picture_with_noise(interpolant):
    """One step of Euler in linear time is linear in x: the law of the start can be read off."""
    t, n = 0.6, 20_000
    flow, kernel = gaussian(), fs.kernels.ddim(interpolant, eta=0.0)
    x = fs.sample(KEY, flow, kernel=kernel, grid=(t, 0.0), n=n, start=X0, final="mean")
    alpha, sigma = (float(f(jnp.float32(t))) for f in (interpolant.alpha, interpolant.sigma))
    gain = 0.25 * alpha / (0.25 * alpha**2 + sigma**2)
    error = gain * sigma / np.sqrt(n)
    np.testing.assert_allclose(np.mean(x, 0), gain * alpha * X0, atol=5.0 * error)
    np.testing.assert_allclose(np.var(x, 0), (gain * sigma) ** 2, rtol=0.06)


@pytest.mark.slow
def test_little_noise_leaves_the_picture_and_all_of_it_nothing():
    flow, kernel = gaussian(), fs.kernels.ode_euler(LINEAR)
    near = fs.sample(KEY, flow, kernel=kernel, grid=(1e-3, 0.0), n=5, start=X0)
    # x0 of N(0, v) is within sigma of x, and that within sigma and t x0 of the picture.
    np.testing.assert_allclose(near, np.broadcast_to(X0, (5, 2)), atol=6e-3)
    whole = fs.grids.uniform(3)
    without = fs.sample(KEY, flow, kernel=kernel, grid=whole, n=5)
    given = fs.sample(KEY, flow, kernel=kernel, grid=whole, n=5, start=X0)
    np.testing.assert_array_equal(given, without)


@pytest.mark.slow
def test_given_noise_is_where_a_sample_begins():
    flow, kernel = gaussian(), fs.kernels.ode_euler(LINEAR)
    noise = np.asarray([[1.0, 2.0], [-1.0, 0.5]], np.float32)
    whole = fs.sample(KEY, flow, kernel=kernel, grid=(1.0, 0.0), n=2, noise=noise)
    # One step from t = 1, where the mean of the data is 0 and that of the noise x.
    np.testing.assert_allclose(whole, 0.0, atol=1e-6)
    late = fs.sample(
        KEY, flow, kernel=kernel, grid=(0.5, 0.0), n=2, noise=noise, start=X0, chunk_size=1
    )
    x = 0.5 * X0 + 0.5 * noise
    np.testing.assert_allclose(late, 0.125 * x / (0.0625 + 0.25), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "final"), [
    (problems.SDE, "kernel"),
    (fs.kernels.ode_heun(VP), "mean"),
    (fs.kernels.dpm_solver_2m(VP), "kernel"),
    (fs.kernels.glass(LINEAR, inner_steps=3), "kernel"),
])  # fmt: skip
def test_what_a_mask_leaves_is_the_picture_to_the_bit(kernel, final):
    x = fs.sample(
        KEY, gaussian(), kernel=kernel, grid=fs.grids.uniform(4), n=3, start=X0, mask=ANEW,
        final=final,
    )  # fmt: skip
    np.testing.assert_array_equal(x[:, 1], np.float32(-0.7))
    assert len(np.unique(x[:, 0])) == 3


@pytest.mark.slow
def test_held_values_keep_the_noise_level_of_the_picture():
    """Under DDIM(1) the held values are those of the forward process of the picture."""
    seen = []

    def velocity(params, x, t, cond):
        jax.debug.callback(lambda x, t: seen.append((np.asarray(x), float(t[0]))), x, t)
        return x

    flow = fs.Flow.from_callable(velocity, None, (2,))
    fs.sample(
        KEY, flow, kernel=fs.kernels.ddim(LINEAR, 1.0), grid=fs.grids.uniform(4), n=4000,
        start=X0, mask=ANEW,
    )  # fmt: skip
    jax.effects_barrier()
    assert sorted({t for _, t in seen}) == [0.25, 0.5, 0.75, 1.0]
    for x, t in seen:
        held = x[:, 1]
        np.testing.assert_allclose(np.mean(held), (1.0 - t) * X0[1], atol=0.08 * t)
        np.testing.assert_allclose(np.std(held), t, rtol=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_search_begins_from_the_picture_and_is_charged_its_own_steps(name):
    """With little noise the answer is near the picture, and where it is held it is the picture."""
    search, flow = METHODS[name], problems.flow()
    ids, cond = (problems.row(tree, slice(1, 4)) for tree in problems.batch(4))
    options = {"cond": cond, "prompt_ids": ids, "start": X0, "mask": ANEW}
    result = fs.run(KEY, flow, search, problems.reward, **options)
    np.testing.assert_array_equal(result.x0[:, 1], X0[1])
    np.testing.assert_array_equal(result.image[:, 1], 2.0 * X0[1])
    np.testing.assert_allclose(result.x0[:, 0], X0[0], atol=0.4)
    assert np.all(result.nfe <= search.nfe)
    valid = result.info.charged > 0
    assert np.max(result.info.time[valid]) == np.float32(LATE["grid"][0])
    # Draws are as fresh as ever.
    assert len(np.unique(result.x0[:, 0])) == 3
    if name != "rbf, glass, kept":
        return
    for answers in result.top(2):
        assert all(one.x0[1] == X0[1] for one in answers)
    *_, rounds = fs.iterate(KEY, flow, search, problems.reward, chunk_size=2, **options)
    np.testing.assert_allclose(rounds.x, result.x, rtol=1e-5, atol=1e-5)
    packed = dict(fs.batch(KEY, flow, search, problems.reward, batch_size=4, **options))
    for i, number in enumerate(ids):
        np.testing.assert_allclose(packed[number].x, result.x[i], rtol=1e-5, atol=1e-5)
        assert packed[number].nfe == result.nfe[i]


@pytest.mark.slow
def test_samples_of_best_of_n_begin_from_the_picture_one_wave_after_the_other():
    """With a grid of one step a sample is the start's posterior mean, linear in it."""
    t, n = 0.5, 4000
    seen = []

    def judge(images, cond):
        seen.append(np.array(images))
        return images[:, 0]

    search = fs.search.bon(nfe=n, kernel=fs.kernels.ode_euler(LINEAR), grid=(t, 0.0), width=500)
    fs.run(KEY, gaussian(), search, fs.rewards.host(judge), start=X0)
    x = np.concatenate(seen) * (0.0625 + 0.25) / 0.125
    assert len(x) == n
    np.testing.assert_allclose(np.mean(x, 0), 0.5 * X0, atol=0.04)
    np.testing.assert_allclose(np.std(x, 0), 0.5, rtol=0.06)


@pytest.mark.slow
def test_a_picture_is_forgotten_at_t_1_and_another_is_another_run():
    search, flow = fs.search.bon(nfe=21, kernel=ODE, grid=problems.GRID), problems.flow()
    cond = problems.row(problems.batch(3)[1], 0)
    without = fs.run(KEY, flow, search, problems.reward, cond=cond)
    given = list(fs.iterate(KEY, flow, search, problems.reward, cond=cond, start=X0))
    np.testing.assert_allclose(given[-1].x, without.x, rtol=1e-5)
    again = fs.run(KEY, flow, search, problems.reward, cond=cond, start=X0, resume=given[3])
    np.testing.assert_allclose(again.x, without.x, rtol=1e-5)
    with pytest.raises(ValueError, match="another search, cond or reward_cond"):
        fs.run(KEY, flow, search, problems.reward, cond=cond, start=X0 + 1.0, resume=given[3])


@pytest.mark.parametrize(("given", "message"), [
    ({}, "must run from 1 to 0, got 0.5 to 0.0: .* expected start"),
    ({"noise": X0}, "expected start"),
    ({"start": X0[:1]}, r"start has shape \(1,\), expected \(2,\)"),
    ({"start": X0 * np.nan}, "start has values that are NaN"),
    ({"start": np.uint8([0, 255])}, "start is of bytes, as the pixels of a file are"),
    ({"start": X0, "mask": [0.5, 1.0]}, "mask must be True where"),
    ({"mask": ANEW}, "expected a start"),
])  # fmt: skip
def test_what_cannot_begin_is_named_before_any_work(given, message):
    kernel, grid = fs.kernels.ode_euler(LINEAR), (0.5, 0.0)
    with pytest.raises(ValueError, match=message):
        fs.sample(KEY, gaussian(), kernel=kernel, grid=grid, n=2, **given)
    search = fs.search.bon(nfe=1, kernel=kernel, grid=grid)
    with pytest.raises(ValueError, match=message):
        fs.run(KEY, gaussian(), search, lambda images, cond: images[:, 0], **given)


LOCAL = {
    "zero_order": fs.search.zero_order(nfe=44, kernel=ODE, grid=problems.GRID, neighbours=3),
    "epsilon_greedy": fs.search.epsilon_greedy(
        nfe=14, kernel=problems.SDE, grid=(1.0, 0.0), neighbours=3, finish="mean"
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", LOCAL)
def test_local_searches_begin_with_given_noise_and_with_neighbours_of_it(name):
    """sqrt(1 - lambda^2) of it, and lambda of fresh noise: as if it had been the best so far."""
    search, noise, n = LOCAL[name], np.asarray([1.5, -0.5], np.float32), 3000
    check_start(search, Start(noise=noise))

    @jax.jit
    @jax.vmap
    def first(key):
        state = search.init(key, (2,), jnp.float32(np.inf), jnp.int32(search.nfe))
        return search.beginning(Start(noise=noise)).ask(state)[1].x

    x = np.asarray(first(jax.random.split(KEY, n)), np.float64) / float(problems.VP.radius(1.0))
    np.testing.assert_allclose(x[:, 0], np.broadcast_to(noise, (n, 2)), rtol=1e-6)
    near = x[:, 1:].reshape(-1, 2)
    assert len(np.unique(near, axis=0)) == 2 * n
    lam = search.perturbation
    error = lam / np.sqrt(2 * n)
    assert np.all(np.abs(near.mean(0) - np.sqrt(1 - lam**2) * noise) < 4.0 * error)
    np.testing.assert_allclose(near.var(0), lam**2, rtol=4.0 * np.sqrt(2.0 / len(near)))


@pytest.mark.slow
def test_given_noise_of_a_local_search_is_the_same_however_it_is_run():
    search, flow = LOCAL["zero_order"], problems.flow()
    ids, cond = (problems.row(tree, slice(1, 4)) for tree in problems.batch(4))
    noise = np.asarray(jax.random.normal(KEY, (3, 2)))
    options = {"cond": cond, "prompt_ids": ids, "noise": noise}
    result = fs.run(KEY, flow, search, problems.reward, **options)
    rounds = list(fs.iterate(KEY, flow, search, problems.reward, chunk_size=2, **options))
    mesh = jax.make_mesh((1, 2), ("prompt", "particle"), (jax.sharding.AxisType.Auto,) * 2)
    again = [
        rounds[-1],
        # Resumed within the first round of draws.
        fs.run(KEY, flow, search, problems.reward, resume=rounds[1], **options),
        fs.run(KEY, flow, search, problems.reward, mesh=mesh, **options),
    ]
    for one in again:
        np.testing.assert_allclose(one.x, result.x, rtol=1e-5, atol=1e-5)
    packed = dict(fs.batch(KEY, flow, search, problems.reward, batch_size=4, **options))
    for i, number in enumerate(ids):
        np.testing.assert_allclose(packed[number].x, result.x[i], rtol=1e-5, atol=1e-5)
        assert packed[number].nfe == result.nfe[i]


def test_noise_of_draws_that_would_all_be_the_same_is_refused():
    options = {"grid": problems.GRID, "nfe": 30}
    for make, more in ((fs.search.bon, {}), (fs.search.halving, {"draft_steps": 2})):
        search = fs.search.keep(make(kernel=ODE, **more, **options), 2)
        with pytest.raises(ValueError, match="noise makes all first draws of search .* the same"):
            fs.run(KEY, gaussian(), search, lambda images, cond: images[:, 0], noise=X0)
    for search in (
        fs.search.bon(kernel=ODE, grid=problems.GRID, nfe=5),
        fs.search.bon(kernel=problems.SDE, **options),
        fs.search.evolution(kernel=ODE, **options),
    ):
        check_start(search, Start(noise=X0))


def test_a_search_that_draws_for_itself_is_refused():
    class Own(fs.search.BestOfN):
        beginning = None

    made = fs.search.bon(kernel=ODE, grid=problems.GRID, nfe=5)
    own = Own(**{field.name: getattr(made, field.name) for field in dataclasses.fields(made)})
    with pytest.raises(TypeError, match="search Own draws its own noise"):
        check_start(fs.search.keep(own, 2), Start(x0=X0))
    check_start(own, None)
