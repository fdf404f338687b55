"""Estimates against closed forms: Gaussian data N(0, 1), the linear interpolant, DDIM(1).

The posterior mean is a x with a = alpha / (alpha^2 + sigma^2), and a step x_s = b x + c eps, so all
values are Gaussian under the reward r(x) = x, and their laws follow by hand.
"""

import itertools
import math

import jax
import numpy as np
import pytest
import scipy.stats

import flowsde as fs
from flowsde.diagnosis import statistics
from flowsde.diagnosis.trajectories import Measured

DATA = fs.analytic.gaussian([0.0], 1.0)
KERNEL = fs.kernels.ddim(fs.interpolants.linear())
STEPS, N, FAMILIES = 6, 4000, 2000
TIMES = 1.0 - np.arange(STEPS) / STEPS


def reward(images, cond):
    return images[:, 0]


def square(images, cond):
    return images[:, 0] ** 2


def chain():
    """a, variance of x at each time, b, c of each step."""
    alpha, sigma = 1.0 - TIMES, TIMES
    norm = alpha**2 + sigma**2
    a, e = alpha / norm, sigma / norm  # x0 and x1 of x
    kept = np.divide(alpha[:-1] * sigma[1:], alpha[1:] * sigma[:-1])  # of the noise
    b = alpha[1:] * a[:-1] + sigma[1:] * kept * e[:-1]
    c = sigma[1:] * np.sqrt(1.0 - kept**2)
    variance = [1.0]
    for b_i, c_i in zip(b, c, strict=True):
        variance.append(b_i**2 * variance[-1] + c_i**2)
    return a, np.asarray(variance), b, c


@pytest.fixture(scope="module")
def found():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "_DRAWS", 100)
        options = {"kernel": KERNEL, "grid": fs.grids.uniform(STEPS), "n": N, "chunk_size": N // 2}
        return {
            r: fs.diagnose(jax.random.key(3), DATA.flow(), r, families=families, **options)
            for r, families in ((reward, FAMILIES), (square, 0))
        }


def expected():
    """By name, with the error that is allowed: about four standard ones."""
    a, variance, b, c = chain()
    to_end = np.asarray([np.prod(b[i:]) for i in range(STEPS)])  # of x_i in the last x
    pearson = to_end * np.sqrt(variance / variance[-1])
    after = np.sqrt(np.maximum(variance[-1] - to_end[:-1] ** 2 * variance[:-1], 0.0))
    # Correlation of siblings' values and finals given the state; of the last step 1.
    within = np.minimum(to_end[1:] * c / after, 1.0)
    choice = within * after / np.sqrt(variance[-1]) / math.sqrt(math.pi)
    rise = (a[1:] * b - a[:-1]) ** 2 * variance[:-1] + a[1:] ** 2 * c**2
    return {
        "correlation": (np.where(a > 0, 6.0 / np.pi * np.arcsin(pearson / 2.0), np.nan), 0.06),
        "gain": (np.zeros(STEPS - 1), 0.06),
        "gain_spread": (np.sqrt(rise), 0.04),
        "rises": (np.full(STEPS - 1, 0.5), 0.035),
        "spread": (c / np.sqrt(variance[1:]), 0.07),
        "final_spread": (after / np.sqrt(variance[-1]), 0.07),
        "agreement": (0.5 + np.arcsin(within) / np.pi, 0.045),
        "choice": (choice, 0.065),
        # A further trajectory's gain is 1 / sqrt(pi) deviations for all its evaluations.
        "worth": (choice * math.sqrt(math.pi) * STEPS, 0.7),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", statistics.NAMES)
def test_closed_forms(name, found):
    exact, error = expected()[name]
    estimate = getattr(found[reward], name)
    np.testing.assert_allclose(estimate.value, exact, atol=error)


@pytest.mark.slow
def test_intervals_hold_what_they_should(found):
    """They are 95 %; of some fifty, which depend on each other, a few may miss."""
    inside = []
    for name, (exact, _) in expected().items():
        value, low, high = getattr(found[reward], name)
        # The last final value is its own; what is the same for all has no interval.
        real = (high - low) > 1e-6
        inside += ((low <= exact) & (exact <= high))[real].tolist()
        assert np.all((low <= value) & (value <= high) | ~real)
    assert len(inside) > 40 and np.mean(inside) > 0.85


@pytest.mark.slow
def test_natural_gain_of_a_reward_that_grows(found):
    """E[x0^2] is a^2 Var(x): posterior means are shrunk, and less from step to step."""
    a, variance, *_ = chain()
    second = a**2 * variance
    np.testing.assert_allclose(found[square].gain.value, np.diff(second), atol=0.09)
    assert np.all(found[square].gain.low > 0.0)


def test_ranks_and_correlation_are_scipys():
    rng = np.random.default_rng(0)
    values = np.round(rng.normal(size=(3, 30, 4)), 1)  # many ties
    values[0, :5, 1] = -np.inf
    finals = values[..., 3] + np.round(rng.normal(size=(3, 30)))
    assert np.array_equal(statistics.ranks(values), scipy.stats.rankdata(values, axis=1) - 1.0)
    ours = statistics.spearman(values, finals)
    for b in range(3):
        for t in range(4):
            theirs = scipy.stats.spearmanr(values[b, :, t], finals[b]).statistic
            assert ours[b, t] == pytest.approx(theirs, abs=1e-12)


@pytest.mark.slow
def test_ode_ranks_from_the_first_time_on():
    """Along the ODE of Gaussian data order never changes; and there are no siblings."""
    kernel = fs.kernels.ode_euler(fs.interpolants.vp())
    ode = fs.diagnose(
        jax.random.key(0), DATA.flow(), reward, kernel=kernel, grid=fs.grids.uniform(4), n=50
    )
    np.testing.assert_allclose(ode.correlation.value, 1.0, atol=1e-9)
    assert not ode.stochastic and ode.sibling_rewards.size == 0 and ode.nfe == 200
    assert "deterministic: no siblings" in str(ode)
    assert np.isnan(ode.worth.value).all() and ode._repr_png_()[:4] == b"\x89PNG"


@pytest.mark.parametrize("many", [2, 3])
@pytest.mark.parametrize("bad", [0, 1, 4, 6, 7])
def test_the_best_of_many_is_that_of_all_subsets_of_what_is_finite(many, bad):
    finals = np.random.default_rng(many).normal(size=(2, 7))
    finals[1, np.random.default_rng(bad).permutation(7)[:bad]] = -np.inf
    for own, found in zip(finals, statistics._best_of(finals, many), strict=True):
        own = own[np.isfinite(own)]
        best = [max(some) for some in itertools.combinations(own, many)]
        wanted = np.mean(best) - own.mean() if best else np.nan
        assert found == pytest.approx(wanted, abs=1e-12, nan_ok=True)


def test_one_reward_that_is_no_number_hides_nothing():
    """Left out, it moves what is estimated of the others by their share at most."""
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(64, 4)).astype(np.float32)
    near = rng.normal(size=(32, 3, 2)).astype(np.float32)
    worth = []
    for last in (rewards[-1, -1], np.float32(-np.inf)):
        own = rewards.copy()
        own[-1, -1] = last
        one = Measured(own, near, near + 0.5, 1, 1, 1, np.zeros(2))
        worth.append(statistics.estimate([one], along=4, each=1)["worth"])
    assert np.isfinite(worth[1]).all()
    np.testing.assert_allclose(worth[1].value, worth[0].value, rtol=0.1)
