"""The weighted sample of SMC: closed forms of a Gaussian, and each particle worth what it says.

Of Gaussian data N(m, v I), DDIM with data_variance = v is exact at any step, so the posterior means
that SMC ends with are Gaussian, and tilted by a quadratic reward their law and Z are known.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import METHODS
from problems import batch
from problems import flow as problem
from problems import reward as problem_reward

import flowsde as fs

LINEAR = fs.interpolants.linear()
MEAN, VARIANCE, BETA = np.float32([0.4, -0.3]), 0.5, 0.6
B, Q = np.float32([0.8, 0.5]), np.float32([[-0.6, 0.2], [0.2, 0.3]])
GRID = (1.0, 0.75, 0.5, 0.3, 0.15, 0.0)
PARTICLES, RUNS = 12, 400
DATA = fs.analytic.gaussian(MEAN, VARIANCE)


def velocity(params, x, t, cond):
    return DATA.velocity(LINEAR, x, t)


def reward(images, cond):
    return images @ B + 0.5 * jnp.sum((images @ Q) * images, -1)


def smc(ahead=0, **options):
    """Of particles that look ahead by so many evaluations each."""
    kernel = fs.kernels.ddim(LINEAR, data_variance=VARIANCE)
    options = {"kernel": kernel, "grid": GRID, "temperature": BETA} | options
    return fs.search.smc(nfe=PARTICLES * (len(GRID) - 1 + ahead) + 2, **options)


# Four of five steps look ahead, by three samples of an evaluation each.
VARIANCE_AWARE = smc(
    ahead=4 * 3, finish="mean", value="samples", value_steps=1, value_samples=3,
    mass="variance", tempering="polynomial", funnel=0.6, resample_until=2, scheme="ssp",
)  # fmt: skip
PSI = fs.search.psi(
    nfe=60, kernel=fs.kernels.ddim(LINEAR), grid=GRID, temperature=BETA, finish="mean"
)


def runs(search, n=RUNS):
    flow = fs.Flow.from_callable(velocity, {}, (2,))
    cond = {"none": np.zeros(n, np.float32)}
    ids = np.arange(n)
    return fs.run(jax.random.key(5), flow, search, reward, cond=cond, prompt_ids=ids)


@pytest.mark.slow
@pytest.mark.parametrize(
    "search",
    [
        smc(finish="mean"),
        fs.search.keep(smc(finish_steps=2, funnel=0.5), 2),
        VARIANCE_AWARE,
    ],
    ids=["plain", "wrapped", "variance-aware"],
)
def test_it_is_that_of_the_tilted_law(search):
    found = fs.search.weighted_sample(search, runs(search).state)
    w = np.exp(np.asarray(found.log_weights, np.float64))
    np.testing.assert_allclose(w.sum(1), 1.0, atol=1e-5)
    np.testing.assert_allclose(1.0 / np.sum(w**2, 1), found.ess, rtol=1e-4)
    alpha, sigma = 1.0 - GRID[-2], GRID[-2]
    spread = (alpha * VARIANCE) ** 2 / (alpha**2 * VARIANCE + sigma**2)
    tilted, log_z = fs.analytic.gaussian(MEAN, spread).tilt(B, Q, BETA)
    # Weighted by the evidence of its run, each estimate is unbiased at any number of particles.
    z = np.exp(np.asarray(found.log_z, np.float64))
    x0 = np.where(w[..., None] > 0.0, np.asarray(found.particles.x0, np.float64), 0.0)
    estimates = np.column_stack([z, z[:, None] * np.einsum("rn,rnd->rd", w, x0)])
    exact = np.exp(float(log_z)) * np.append(1.0, np.asarray(tilted.mean(), np.float64))
    error = estimates.std(0) / RUNS**0.5
    assert np.all(np.abs(estimates.mean(0) - exact) < 4.0 * error)
    # Without the weights it is another law: the test could have failed.
    used = np.isfinite(found.log_weights)
    plain = np.einsum("rn,rnd->rd", used / used.sum(1, keepdims=True), x0) * z[:, None]
    assert np.any(np.abs(plain.mean(0) - exact[1:]) > 6.0 * error[1:])


@pytest.mark.slow
def test_one_prompt_and_a_target():
    search = smc(finish="mean")
    flow = fs.Flow.from_callable(velocity, {}, (2,))
    alone = fs.run(jax.random.key(1), flow, search, reward)
    found = fs.search.weighted_sample(search, alone.state)
    assert found.log_weights.shape == (PARTICLES,) and found.log_z.shape == ()
    met = fs.run(jax.random.key(1), flow, search, reward, target_reward=-100.0)
    early = fs.search.weighted_sample(search, met.state)
    assert np.all(np.asarray(early.particles.t) == 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"potential": "sum"},
        {"potential": "max"},
        {"tempering": "polynomial"},
        {"temperature": (2.0, 1.0, 0.8, 0.7, BETA)},
    ],
)
def test_ended_early_it_is_weighed_by_all_of_the_reward(options):
    """Never resampled, each particle has the weight exp(reward / beta) at any time."""
    search = smc(finish="mean", threshold=0.0, **options)
    flow = fs.Flow.from_callable(velocity, {}, (2,))
    _, second, *_, last = fs.iterate(jax.random.key(1), flow, search, reward)
    for result in (second, last):
        found = fs.search.weighted_sample(search, result.state)
        w = np.exp(np.asarray(found.particles.reward, np.float64) / BETA)
        np.testing.assert_allclose(np.exp(found.log_weights), w / w.sum(), rtol=1e-4)
        np.testing.assert_allclose(found.log_z, np.log(w.mean()), rtol=1e-4, atol=1e-5)
    assert found.particles.t[0] == np.float32(GRID[-2])


@pytest.mark.slow
def test_each_particle_is_worth_its_reward():
    search, (ids, cond) = METHODS["smc"], batch(8)
    result = fs.run(jax.random.key(8), problem(), search, problem_reward, cond=cond, prompt_ids=ids)
    found = fs.search.weighted_sample(search, result.state)
    n = found.log_weights.shape[1]
    for i in range(n):
        again = np.asarray(problem_reward(2.0 * found.particles.x0[:, i], cond))
        again = np.where(np.isnan(again), -np.inf, again)
        scale = cond["size"]
        np.testing.assert_allclose(found.particles.reward[:, i] / scale, again / scale, atol=1e-5)


@pytest.mark.slow
def test_batch_gives_the_weights_of_run():
    search, n = fs.search.keep(smc(finish_steps=2), 4), 3
    flow = fs.Flow.from_callable(velocity, {}, (2,))
    cond, ids = {"none": np.zeros(n, np.float32)}, np.arange(n)
    given = {"cond": cond, "prompt_ids": ids}
    whole = fs.run(jax.random.key(5), flow, search, reward, **given)
    sample = fs.search.weighted_sample(search, whole.state)
    assert whole.weights is None
    moved = 0
    for i, found in fs.batch(jax.random.key(5), flow, search, reward, batch_size=5, **given):
        weights, own = found.weights, jax.tree.map(lambda a, i=i: np.asarray(a)[i], sample)
        for name in ("log_weights", "log_z", "ess"):
            np.testing.assert_allclose(
                getattr(weights, name), getattr(own, name), rtol=1e-4, atol=1e-5
            )
        np.testing.assert_allclose(weights.reward, own.particles.reward, rtol=1e-4, atol=1e-5)
        assert np.all(own.particles.t == weights.t)
        for answer in found.top(4):
            same = np.all(np.isclose(own.particles.x, answer.x, atol=1e-5), axis=1)
            if np.any(same) and answer.t == weights.t:
                total = np.log(np.sum(np.exp(own.log_weights[same])))
                np.testing.assert_allclose(answer.log_weight, total, rtol=1e-4, atol=1e-5)
            else:
                assert answer.log_weight == -np.inf and answer.t < weights.t
                moved += 1
    # Finishing leads on from one particle of each.
    assert 0 < moved <= n


def test_errors_name_the_argument():
    with pytest.raises(TypeError, match="search must be of psi, or of smc without restart_at"):
        fs.search.weighted_sample(METHODS["bon"], 0)
    with pytest.raises(ValueError, match=r"state is None: flowsde.batch keeps none"):
        fs.search.weighted_sample(METHODS["smc"], None)
    with pytest.raises(TypeError, match=r"state must be Result.state of a run of the search"):
        fs.search.weighted_sample(smc(finish="mean"), 3)
    with pytest.raises(TypeError, match=r"state must be Result.state of a run of the search"):
        fs.search.weighted_sample(PSI, 3)


@pytest.mark.slow
def test_of_psi_nothing_is_weighed_while_chains_walk():
    state = PSI.init(jax.random.key(0), (2,), jnp.float32(jnp.inf), jnp.int32(PSI.nfe))
    with pytest.raises(ValueError, match="of a run whose chains still walk"):
        fs.search.weighted_sample(PSI, state)
