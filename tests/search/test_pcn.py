"""pCN against chains walked one by one, detailed balance, and laws known in closed form."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import GRID, SDE, VP, batch, decode, flow, reward, row, tools

import flowsde as fs
from flowsde.search.pcn import Walker

KEY = jax.random.key(4)
ODE = fs.kernels.ode_euler(VP)
LINEAR = fs.interpolants.linear()
COUNT = 12
ONE = (1.0, 0.0)
ACCEPT = 2**31 - 1
PICTURE = np.float32([-2.0])


def pcn(nfe=41, kernel=ODE, grid=GRID, **options):
    options = {"chains": 3, "temperature": 0.3} | options
    return fs.search.pcn(nfe=nfe, kernel=kernel, grid=grid, **options)


@jax.jit
def gradient(x, cond):
    cond = jax.tree.map(lambda a: a[None], cond)

    def score(x):
        x0, _ = flow().means(x[None], jnp.ones(1, jnp.float32), cond, VP)
        return reward(decode(x0), cond)[0]

    return jax.grad(score)(x)


@jax.jit
def log_uniform(key, chain, draw):
    for number in (chain, draw, ACCEPT):
        key = jax.random.fold_in(key, number)
    return -jax.random.exponential(key, (), jnp.float32)


def forth(pull, a, b, rho, e):
    """log q(b | a) less that without a pull, from the two Gaussian densities."""
    s = math.sqrt(1.0 - rho**2)
    free = b - rho * a
    moved = free - s * math.sqrt(e) / 2.0 * pull
    return (np.sum(free**2) - np.sum(moved**2)) / (2.0 * s**2)


def one_by_one(search, prompt_id, cond, noise, move, evaluate):
    """(best picture, where each chain is, pictures), each picture on its own."""
    key, grid, e = jax.random.fold_in(KEY, prompt_id), search.grid, search.step_size
    rho = (1.0 - e / 4.0) / (1.0 + e / 4.0)
    pictures = search.nfe // (len(grid) - 1)
    chains, best = [None] * search.chains, None
    for number in range(pictures):
        draw, c = divmod(number, search.chains)
        z = np.asarray(noise(key, c, draw), np.float64)
        if draw:
            x, pull, old = chains[c]
            x, z = np.asarray(x, np.float64), z + math.sqrt(e) / 2.0 * pull
            z = rho * x + math.sqrt(1.0 - rho**2) * z
        new = z.astype(np.float32)
        pull = np.zeros_like(z)
        if search.langevin:
            pull = np.asarray(gradient(new, cond), np.float64) / search.temperature
            pull = np.where(np.isfinite(pull), pull, 0.0)
            pull /= max(np.linalg.norm(pull) / (search.clip or np.inf), 1.0)
        point = evaluate(new, grid[0], cond)
        for i in range(1, len(grid) - 1):
            point = evaluate(move(key, point, grid[i]), grid[i], cond)
        if best is None or point.reward > best.reward:
            best = point
        ratio = np.inf
        if draw and old.reward > -np.inf:
            ratio = (point.reward - old.reward) / search.temperature
            ratio += forth(pull, z, x, rho, e) - forth(chains[c][1], x, z, rho, e)
        if draw == 0 or float(log_uniform(key, c, draw)) < ratio:
            chains[c] = new, pull, point
    return best, [chain[2] for chain in chains], pictures


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:reward 'reward' was NaN or -inf")
@pytest.mark.parametrize(
    "search",
    [
        pcn(),
        pcn(proposal="langevin", clip=0.8),
        pcn(23, chains=2, step_size=2.0),
    ],
    ids=["random", "langevin", "few"],
)
def test_equals_chains_walked_one_by_one(search):
    ids, cond = batch(COUNT)
    result = fs.run(KEY, flow(), search, reward, cond=cond, prompt_ids=ids, invalid="warn")
    moved = 0
    for i in range(COUNT):
        best, chains, pictures = one_by_one(
            search, int(ids[i]), row(cond, i), *tools(search.kernel)
        )
        size = cond["size"][i]
        assert result.nfe[i] == pictures * search.steps <= search.nfe
        assert search.langevin or result.verifier_calls[i] == pictures
        np.testing.assert_allclose(result.reward[i] / size, best.reward / size, atol=5e-5)
        np.testing.assert_allclose(result.x[i], best.x, rtol=1e-4, atol=1e-4)
        where = search.path(row(result.state, i))
        np.testing.assert_allclose(where.x, [p.x for p in chains], rtol=1e-4, atol=1e-4)
        accepted = np.asarray(result.info.accepted[:, i]).sum()
        assert search.chains <= accepted <= pictures
        moved += accepted
    # Neither all nor none: decisions are seen.
    assert COUNT * search.chains < moved < COUNT * pictures


def bumps(images, cond):
    """Not linear, not symmetric."""
    x = images[:, 0]
    return jnp.sin(2.0 * x) + 0.5 * jnp.cos(x) - 0.1 * jnp.square(x)


def still(params, x, t, cond):
    """The posterior mean is x itself at every time."""
    return jnp.zeros_like(x)


def shrinking(params, x, t, cond):
    """At t = 1 the posterior mean is x; down the grid (1, .5, 0) the end is .5 x."""
    return jnp.where(t < 1.0, 1.0, 0.0)[:, None] * x


def walk(velocity, nfe, grid=ONE, prompts=4000, of=bumps, picture=None, **options):
    search = fs.search.pcn(
        nfe=nfe, kernel=fs.kernels.ode_euler(LINEAR), grid=grid, chains=1, **options
    )
    model = fs.Flow.from_callable(velocity, None, (1,))
    ids = np.arange(prompts)
    return fs.run(
        KEY, model, search, of, cond=np.zeros(prompts, np.float32), prompt_ids=ids, start=picture
    )


def start(x, reward, slope):
    """Chains [n] in one dimension at noise x, whose pictures have these rewards."""
    x, r = (np.asarray(a, np.float32) for a in (x, reward))
    point = fs.search.Particle(x[:, None], np.ones_like(x), x[:, None], x[:, None], r)
    return Walker(x[:, None], np.float32(slope)[:, None], point)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("proposal", ["random", "langevin"])
def test_detailed_balance(proposal, clip):
    """pi(a) q(b | a) min(1, ratio) is symmetric: the ratio is pi(b) q(a | b) / pi(a) q(b | a)."""
    if proposal == "random" and clip:
        pytest.skip("clip is of the gradient")
    beta, e = 0.4, 0.7
    search = fs.search.pcn(
        nfe=9, kernel=fs.kernels.ode_euler(LINEAR), grid=ONE, step_size=e, temperature=beta,
        proposal=proposal, clip=clip,
    )  # fmt: skip
    a, b = (np.random.default_rng(1).normal(size=(2, 400)) * 1.5).astype(np.float32)
    score = lambda x: np.sin(2.0 * x) + 0.5 * np.cos(x)  # noqa: E731
    slope = lambda x: 2.0 * np.cos(2.0 * x) - 0.5 * np.sin(x)  # noqa: E731
    rho = (1.0 - e / 4.0) / (1.0 + e / 4.0)
    variance = 1.0 - rho**2

    def log_law(x):
        return score(x) / beta - 0.5 * np.square(x)

    def log_proposal(y, x):
        pull = slope(x) / beta if proposal == "langevin" else 0.0 * x
        pull = np.clip(pull, -clip, clip) if clip else pull
        mean = rho * x + math.sqrt(variance * e) / 2.0 * pull
        return -0.5 * np.square(y - mean) / variance

    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    expected = log_law(b64) + log_proposal(a64, b64) - log_law(a64) - log_proposal(b64, a64)
    found = search.log_ratio(
        *(start(x, score(x.astype(np.float64)), slope(x.astype(np.float64))) for x in (a, b))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def expected_cdf(at, beta, scale=1.0, shift=0.0):
    """Of noise weighed by exp(reward / beta) of `shift` and `scale` times it, by quadrature."""
    x = np.linspace(-8.0, 8.0, 40_001)
    y = shift + scale * x
    log = (np.sin(2.0 * y) + 0.5 * np.cos(y) - 0.1 * y**2) / beta - 0.5 * x**2
    weights = np.exp(log - log.max())
    return np.interp(at, x, np.cumsum(weights) / weights.sum())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("velocity", "grid", "scale", "shift", "options"),
    [
        (still, ONE, 1.0, 0.0, {}),
        (still, ONE, 1.0, 0.0, {"proposal": "langevin"}),
        (shrinking, (1.0, 0.5, 0.0), 0.5, 0.0, {"proposal": "langevin", "clip": 1.0}),
        (still, (0.8, 0.0), 0.8, -0.4, {"picture": PICTURE, "proposal": "langevin"}),
    ],
    ids=["random", "langevin", "langevin down a grid", "langevin from a picture"],
)
def test_chains_sample_the_noise_weighed_by_the_reward(velocity, grid, scale, shift, options):
    """Down a grid the gradient is that of another reward, and the law is the end's all the same."""
    beta, count = 1.0, 4000
    result = walk(velocity, 60 * (len(grid) - 1), grid, temperature=beta, **options)
    x = np.asarray(result.state.current.noise).reshape(-1)
    at = np.linspace(-2.0, 2.0, 9)
    exact, found = expected_cdf(at, beta, scale, shift), np.mean(x[:, None] <= at, axis=0)
    assert np.all(np.abs(found - exact) < 4.0 * np.sqrt(exact * (1.0 - exact) / count))
    # Plain noise is far from it.
    normal = 0.5 * (1.0 + np.vectorize(math.erf)(at / math.sqrt(2.0)))
    assert np.max(np.abs(normal - exact)) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "picture"), [(1.0, None), (0.5, PICTURE)], ids=["from noise", "from a picture"]
)
def test_a_linear_reward_is_followed_without_rejections(first, picture):
    """Noise weighed by exp(b x) is N(b, 1), to which the Langevin form goes in steps of e / 2."""
    slope, count = 3.0, 4000
    result = walk(
        still, 20, (first, 0.0), of=partial(_linear, slope), prompts=count, temperature=1.0,
        proposal="langevin", picture=picture,
    )  # fmt: skip
    assert np.mean(result.info.accepted) > 0.9999  # all but for rounding
    x = np.asarray(result.state.current.noise).reshape(-1)
    # A step keeps 7 / 9 of the distance, and begins from 0.
    mean = first * slope * (1.0 - (7.0 / 9.0) ** 19)
    assert abs(x.mean() - mean) < 4.0 / count**0.5 and abs(x.var() - 1.0) < 4.0 * (2 / count) ** 0.5


def _linear(slope, images, cond):
    return slope * images[:, 0]


@pytest.mark.slow
def test_one_chain_begins_with_given_noise_and_the_others_near_it():
    """At a share rho of it, with as much fresh noise as keeps the variance: none is the same."""
    given, count = np.float32([1.5, -0.5]), 2000
    options = {"cond": np.zeros(count, np.float32), "prompt_ids": np.arange(count)}
    model = fs.Flow.from_callable(still, None, (2,))
    search = pcn(4, fs.kernels.ode_euler(LINEAR), ONE, chains=4, step_size=2.0)
    result = fs.run(KEY, model, search, bumps, noise=given, **options)
    np.testing.assert_array_equal(result.nfe, 4)
    first = np.asarray(result.state.current.noise)
    np.testing.assert_array_equal(first[:, 0], np.broadcast_to(given, (count, 2)))
    fresh = np.sqrt(1.0 - search.rho**2)
    others = first[:, 1:].reshape(-1, 2)
    assert len(np.unique(others, axis=0)) == len(others)
    error = fresh / np.sqrt(len(others))
    assert np.all(np.abs(others.mean(0) - search.rho * given) < 4.0 * error)
    np.testing.assert_allclose(others.var(0), fresh**2, rtol=0.08)


@pytest.mark.slow
def test_steep_rewards_need_a_clip():
    """Published gradients are rescaled, or hardly any proposal would be accepted."""
    moves = {}
    for clip in (None, 1.0):
        options = {"temperature": 0.01, "proposal": "langevin", "clip": clip}
        result = walk(still, 30, prompts=200, **options)
        moves[clip] = np.mean(np.asarray(result.info.accepted)[1:])
    assert moves[1.0] > 3.0 * moves[None]


def test_the_step_size_says_how_much_noise_is_kept():
    """The public code has a second setting for it, which contradicts the first."""
    assert pcn().rho == pytest.approx(7.0 / 9.0) and pcn(step_size=4.0).rho == 0.0
    assert pcn(step_size=1e-6).rho == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kernel": SDE}, ValueError, "kernel EulerMaruyama is stochastic, so .*ode_euler"),
        ({"nfe": 4}, ValueError, "nfe = 4 is less than one picture: the grid takes 5 evaluations"),
        ({"step_size": 4.5}, ValueError, "step_size must be above 0 and at most 4, got 4.5"),
        ({"temperature": 0.0}, ValueError, "temperature must be a finite number above 0, got 0"),
        ({"proposal": "hmc"}, ValueError, "proposal must be 'random' or 'langevin', got 'hmc'"),
        ({"clip": 1.0}, ValueError, "clip has no effect with proposal 'random', got 1.0"),
        ({"clip": -1.0, "proposal": "langevin"}, ValueError, "clip must be a finite number above"),
        ({"chains": 0}, ValueError, "chains must be an integer of at least 1, got 0"),
    ],
)
def test_errors_name_the_argument(options, error, message):
    with pytest.raises(error, match=message):
        pcn(**options)
