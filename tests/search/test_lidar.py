"""LiDAR against trajectories pulled one by one, and against tilted mixtures in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import GRID, SDE, VP, batch, flow, reward, row, tools
from quick import slow

import flowsde as fs

KEY = jax.random.key(4)
ODE = fs.kernels.ode_euler(VP)
LINEAR = fs.interpolants.linear()
COUNT = 12


def lidar(nfe=41, kernel=ODE, grid=GRID, **options):
    options = {"draft_steps": 3, "temperature": 0.3} | options
    return fs.search.lidar(nfe=nfe, kernel=kernel, grid=grid, **options)


def shift_of(search, particle, bank):
    """m' - m by sums over the bank, float64."""
    alpha, sigma = (float(f(jnp.float32(particle.t))) for f in (VP.alpha, VP.sigma))
    x = np.asarray(particle.x, np.float64)
    top, bottom, plain, count = 0.0, 0.0, 0.0, 0.0
    near = [-np.sum((x - alpha * np.asarray(y.x0)) ** 2) / (2.0 * sigma**2) for y in bank]
    value = [y.reward / search.temperature for y in bank]
    highest = max([a + b for a, b in zip(near, value, strict=True)])
    if highest == -np.inf:
        return 0.0 * x
    for y, a, b in zip(bank, near, value, strict=True):
        top = top + np.exp(a + b - highest) * np.asarray(y.x0, np.float64)
        bottom += np.exp(a + b - highest)
        plain = plain + np.exp(a - max(near)) * np.asarray(y.x0, np.float64)
        count += np.exp(a - max(near))
    return top / bottom - plain / count


def one_by_one(search, prompt_id, cond, noise, move, evaluate):
    """(all pictures, evaluations), each on its own."""
    key, grid = jax.random.fold_in(KEY, prompt_id), search.grid
    steps, d = len(grid) - 1, len(search.draft)
    left = search.nfe - search.trajectories * steps
    bank, spent = [], 0
    for number in range(left // d):
        point = evaluate(noise(key, number, 0), grid[0], cond)
        for slot in range(1, d):
            at = grid[search.draft[slot]]
            point = evaluate(move(key, point, at, number, slot), at, cond)
        bank.append(point)
        spent += d
    ended = []
    for number in range(search.trajectories):
        point = evaluate(noise(key, number, d), grid[0], cond)
        for i in range(1, steps):
            if point.t > search.pull_until:
                shift = search.scale * shift_of(search, point, bank)
                ratio = float(VP.alpha(point.t) / VP.sigma(point.t))
                x0 = np.asarray(point.x0 + shift, np.float32)
                x1 = np.asarray(point.x1 - ratio * shift, np.float32)
                point = point._replace(x0=x0, x1=x1)
            point = evaluate(move(key, point, grid[i], number, d + i), grid[i], cond)
        ended.append(point)
        spent += steps
    return bank + ended, spent


@pytest.mark.filterwarnings("ignore:reward 'reward' was NaN or -inf")
@pytest.mark.parametrize(
    "search",
    [
        slow(lidar()),
        slow(lidar(50, SDE, scale=3.0, pull_until=0.5)),
        slow(lidar(33, draft_steps=1, trajectories=1)),
        slow(lidar(kernel=fs.kernels.ode_adams(VP), scale=2.0)),
    ],
    ids=["ode", "sde", "one step", "adams"],
)
def test_equals_trajectories_pulled_one_by_one(search):
    ids, cond = batch(COUNT)
    result = fs.run(KEY, flow(), search, reward, cond=cond, prompt_ids=ids, invalid="warn")
    for i in range(COUNT):
        how = tools(search.solver or search.kernel)
        points, spent = one_by_one(search, int(ids[i]), row(cond, i), *how)
        size, last = cond["size"][i], min(p.t for p in points)
        assert result.nfe[i] == spent <= search.nfe
        assert result.verifier_calls[i] == len(points)
        # The first of equals.
        best = max((p for p in points if p.t == last), key=lambda p: p.reward)
        if best.reward == -np.inf:
            continue
        np.testing.assert_allclose(result.reward[i] / size, best.reward / size, atol=5e-5)
        np.testing.assert_allclose(result.x[i], best.x, rtol=1e-4, atol=1e-4)


DATA = fs.analytic.mixture([0.3, 0.7], [[0.7, -0.5], [-0.7, 0.5]], [0.3, 0.2])
SLOPE, BEND = np.float32([1.0, -0.5]), np.float32([[-0.8, 0.3], [0.3, -0.4]])
BETA = 0.5


def quadratic(images, cond):
    return images @ SLOPE + 0.5 * jnp.sum((images @ BEND) * images, axis=-1)


def bank_of(search, x):
    """A state whose bank are these data [n, 2] and their rewards."""
    n = len(x)
    state = search.init(KEY, (2,), jnp.float32(jnp.inf), jnp.int32(search.nfe))
    assert state.bank.t.shape == (n,)
    return state._replace(bank=state.bank._replace(x0=x, reward=quadratic(x, None)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "t"), [(VP, 0.4), (LINEAR, 0.6), (LINEAR, 1.0)], ids=["vp", "linear", "start"]
)
def test_moved_means_are_those_of_the_tilted_mixture(path, t):
    """Of many exact samples, whatever of the two means the model has."""
    n, t = 100_000, np.float32(t)
    search = fs.search.lidar(
        nfe=n + 2, kernel=fs.kernels.ode_euler(path), grid=(1.0, 0.5, 0.0), draft_steps=1,
        trajectories=1, temperature=BETA,
    )  # fmt: skip
    state = bank_of(search, DATA.sample(KEY, n))
    tilted, _ = DATA.tilt(SLOPE, BEND, temperature=BETA)
    x = np.random.default_rng(2).normal(size=(8, 2)).astype(np.float32)
    x0, x1 = DATA.x0(path, x, t), DATA.x1(path, x, t)
    nothing = jnp.full(8, -jnp.inf, jnp.float32)
    at = fs.search.Particle(x, jnp.full(8, t), x0, x1, nothing)
    moved = jax.jit(jax.vmap(search.pulled, (None, 0)))(state, at)
    np.testing.assert_allclose(moved.x0, tilted.x0(path, x, t), atol=0.03)
    np.testing.assert_allclose(moved.x1, tilted.x1(path, x, t), atol=0.03)
    assert np.abs(np.asarray(moved.x0 - x0)).max() > 0.2
    # Still means of data and noise at x.
    alpha, sigma = path.alpha(t), path.sigma(t)
    np.testing.assert_allclose(alpha * moved.x0 + sigma * moved.x1, x, atol=1e-4)


@pytest.mark.slow
def test_trajectories_sample_the_tilted_mixture():
    """Of a bank of the model's own drafts; without a pull they sample the mixture itself."""
    count, drafts, grid = 1000, 2000, fs.grids.uniform(20)
    shares, means = [], []
    for scale in (1.0, 0.0):
        search = fs.search.lidar(
            nfe=count * 20 + drafts * 10, kernel=fs.kernels.ode_euler(LINEAR), grid=grid,
            draft_steps=10, trajectories=count, temperature=BETA, scale=scale,
        )  # fmt: skip
        state = fs.run(KEY, DATA.flow(), search, quadratic).state
        x = np.asarray(state.particles.x0)[:count]
        shares.append(np.mean(np.asarray(DATA.component(x)) == 0))
        means.append(x.mean(0))
    tilted, _ = DATA.tilt(SLOPE, BEND, temperature=BETA)
    exact = np.mean(np.asarray(DATA.component(tilted.sample(KEY, 100_000))) == 0)
    plain = np.mean(np.asarray(DATA.component(DATA.sample(KEY, 100_000))) == 0)
    error = (0.25 / count) ** 0.5
    assert abs(shares[0] - exact) < 5.0 * error and abs(shares[1] - plain) < 5.0 * error
    assert abs(exact - plain) > 10.0 * error
    np.testing.assert_allclose(means[0], np.asarray(tilted.mean()), atol=0.1)


def test_drafts_without_a_reward_are_left_out_and_equal_ones_do_not_pull():
    search = fs.search.lidar(
        nfe=3 + 2, kernel=fs.kernels.ode_euler(LINEAR), grid=(1.0, 0.5, 0.0), draft_steps=1,
        trajectories=1, temperature=0.1,
    )  # fmt: skip
    drafts = np.float32([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    state = bank_of(search, drafts)
    x = np.float32([0.2, 0.1])
    at = fs.search.Particle(x, jnp.float32(0.5), x, x, jnp.float32(-jnp.inf))
    pulled = jax.jit(search.pulled)

    def moved(*rewards):
        bank = state.bank._replace(reward=jnp.asarray(rewards, jnp.float32))
        return np.asarray(pulled(state._replace(bank=bank), at).x0)

    away = np.sum((x - 0.5 * drafts) ** 2, axis=1) / (2.0 * 0.25)
    plain = np.exp(-away) / np.exp(-away).sum()
    np.testing.assert_allclose(moved(-np.inf, 3.0, -np.inf), x + drafts[1] - plain @ drafts, 1e-5)
    for equal in (0.7, -np.inf, np.inf, 1e30):
        np.testing.assert_allclose(moved(equal, equal, equal), x, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"nfe": 12},
            ValueError,
            "nfe = 12 is less than one draft and trajectories = 2 times .*13",
        ),
        ({"trajectories": 0}, ValueError, "trajectories must be an integer of at least 1, got 0"),
        ({"draft_steps": 6}, ValueError, "draft_steps must be an integer of at most 5, got 6"),
        ({"temperature": -1.0}, ValueError, "temperature must be a finite number above 0, got -1"),
        ({"scale": -1.0}, ValueError, "scale must be a finite number of at least 0, got -1"),
        ({"pull_until": 1.0}, ValueError, "pull_until must be a time from 0 and below 1, got 1"),
    ],
)
def test_errors_name_the_argument(options, error, message):
    with pytest.raises(error, match=message):
        lidar(**options)
