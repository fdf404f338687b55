"""Local search over noise against draws made one by one, its account, and the law of its noise."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import GRID, SDE, VP, batch, flow, reward, row, tools

import flowsde as fs

KEY = jax.random.key(4)
ODE = fs.kernels.ode_euler(VP)
LINEAR = fs.interpolants.linear()
COUNT = 12


def zero_order(nfe=41, kernel=ODE, grid=GRID, **options):
    return fs.search.zero_order(
        nfe=nfe, kernel=kernel, grid=grid, **{"neighbours": 3, "perturbation": 0.4} | options
    )


def greedy(nfe=41, kernel=SDE, grid=GRID, **options):
    options = {"neighbours": 3, "perturbation": 0.4, "finish": "mean"} | options
    return fs.search.epsilon_greedy(nfe=nfe, kernel=kernel, grid=grid, **options)


def run(search, **options):
    ids, cond = batch(COUNT)
    return fs.run(KEY, flow(), search, reward, cond=cond, prompt_ids=ids, invalid="warn", **options)


@functools.cache
def moved(kernel):
    """x at s by the kernel with its noise given; from noise alone where there is no particle."""
    if isinstance(kernel, fs.kernels.Multistep):
        solve = tools(kernel)[1]
        return lambda p, s, z: z if p is None else solve(None, p, s)

    @jax.jit
    def move(x, x0, x1, t, s, z):
        mean, std = kernel.moments(x, x0, x1, t, s)
        return mean + std * z

    return lambda p, s, z: z if p is None else move(p.x, p.x0, p.x1, p.t, np.float32(s), z)


@jax.jit
def drawn(key, step, number):
    """(noise, uniform number) of a draw."""
    for i in (0, step, number):
        key = jax.random.fold_in(key, i)
    coin = jax.random.uniform(jax.random.fold_in(key, 2**31 - 3), (), jnp.float32)
    return jax.random.normal(key, (2,), jnp.float32), coin


def one_by_one(search, stages, epsilons, prompt_id, cond, evaluate, given=None):
    """(best of each stage, evaluations, rewards asked), each draw on its own.

    Args:
      stages: (positions in the grid, draws) of each.
      epsilons: of each stage.
      given: noise to begin with.
    """
    key, grid = jax.random.fold_in(KEY, prompt_id), search.grid
    lam = search.perturbation
    parent, charged, asked, seen = None, 0, 0, []
    for (steps, draws), epsilon in zip(stages, epsilons, strict=True):
        pivot, noise, around = None, given, given is not None and parent is None
        for start in range(0, draws, search.neighbours):
            found = []
            for number in range(start, min(start + search.neighbours, draws)):
                point = parent
                for i in steps:
                    z, coin = drawn(key, i, number)
                    if i == steps[0]:
                        if around and number == 0:
                            z = given
                        elif (start and coin >= epsilon) or (around and not start):
                            z = math.sqrt(1.0 - lam**2) * noise + lam * z
                        first = z
                    point = evaluate(
                        moved(search.solver or search.kernel)(point, grid[i], z), grid[i], cond
                    )
                    charged += 1
                found.append((point, first))
                asked += draws > 1 or steps[-1] == len(grid) - 2
            best = max(found, key=lambda pair: pair[0].reward)
            if pivot is None or best[0].reward > pivot.reward:
                pivot, noise = best
        parent = pivot
        if draws > 1 or steps[-1] == len(grid) - 2:
            seen.append(pivot)
    return seen, charged, asked


def check(search, stages, epsilons, given=None):
    ids, cond = batch(COUNT)
    result = run(search, noise=given)
    evaluate = tools(search.kernel)[2]
    for i in range(COUNT):
        seen, charged, asked = one_by_one(
            search, stages, epsilons, int(ids[i]), row(cond, i), evaluate, given
        )
        scored = [p for p in seen if p.reward > -np.inf]
        best = max(scored, key=lambda p: (-p.t, p.reward))
        size = cond["size"][i]
        assert result.nfe[i] == charged <= search.nfe
        assert result.verifier_calls[i] == asked
        assert result.t[i] == best.t
        np.testing.assert_allclose(
            result.reward[i] / size, best.reward / size, rtol=2e-5, atol=5e-5
        )
        np.testing.assert_allclose(result.x[i], best.x, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [ODE, fs.kernels.ode_adams(VP)], ids=["euler", "adams"])
def test_zero_order_equals_samples_drawn_one_by_one(kernel):
    check(zero_order(kernel=kernel), [(range(5), 8)], [0.0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "draws", "epsilons"),
    [
        # 40 / 4 each; epsilon falls to the middle of four steps and rises again.
        ({"epsilon": 0.7, "epsilon_middle": 0.1}, (1, 10, 10, 10, 10), (1, 0.7, 0.3, 0.3, 0.7)),
        (
            {"nfe": 32, "branch_at": (2, 4), "epsilon": 0.0, "epsilon_middle": 0.0},
            (1, 1, 15, 1, 14),
            (0, 0, 0, 0, 0),
        ),
        ({"nfe": 40, "branch_at": 5, "epsilon": 0.7}, (8,) * 5, (0.7, 0.7, 0.3, 0.3, 0.7)),
        (
            {"nfe": 31, "branch_at": (0, 3), "epsilon": 0.5, "epsilon_middle": 0.5},
            (14, 1, 1, 14, 1),
            (0.5,) * 5,
        ),
    ],
    ids=["all steps", "some", "start too", "start and one"],
)
def test_epsilon_greedy_equals_steps_drawn_one_by_one(options, draws, epsilons):
    check(greedy(**options), [((i,), n) for i, n in enumerate(draws)], epsilons)


@pytest.mark.slow
def test_given_noise_is_the_first_pivot():
    given = np.asarray([0.6, -1.1], np.float32)
    check(zero_order(kernel=fs.kernels.ode_adams(VP)), [(range(5), 8)], [0.0], given)


@pytest.mark.slow
def test_of_fresh_noise_it_is_svdd():
    """A neighbour that keeps nothing is a draw of its own."""
    ours = run(greedy(perturbation=1.0))
    svdd = run(fs.search.svdd(nfe=41, kernel=SDE, grid=GRID, chains=1, finish="mean"))
    size = batch(COUNT)[1]["size"]
    np.testing.assert_allclose(ours.x, svdd.x, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.reward / size, svdd.reward / size, rtol=1e-5, atol=1e-5)
    for name in ("nfe", "verifier_calls"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(svdd, name))


def still(params, x, t, cond):
    return jnp.zeros_like(x)


def samples(search, score, count):
    """x of the answers of a model that leaves noise as it is, [count]."""
    model = fs.Flow.from_callable(still, {}, (1,))
    found = fs.run(
        KEY, model, search, score, cond=np.zeros(count, np.float32), prompt_ids=np.arange(count)
    )
    return np.asarray(found.x[:, 0], np.float64)


def blind(images, cond):
    """A reward that knows nothing of where a picture lies."""
    return jnp.sin(1e5 * images[:, 0])


@pytest.mark.slow
def test_without_preferences_noise_stays_standard_normal():
    """Of 30 rounds with lambda = .8; were it only added, the variance would be far above 1."""
    count = 4000
    one = fs.kernels.ode_euler(LINEAR)
    search = zero_order(30, one, (1.0, 0.0), neighbours=1, perturbation=0.8)
    x = samples(search, blind, count)
    # Four standard errors of the mean and of the variance.
    assert abs(x.mean()) < 4.0 / math.sqrt(count)
    assert abs(x.var() - 1.0) < 4.0 * math.sqrt(2.0 / count)


@pytest.mark.slow
def test_of_fresh_noise_the_best_of_n_is_that_of_n_normals():
    """Phi of the largest of n normals has mean n / (n + 1); that of near ones has not."""
    count, n = 4000, 6
    make = functools.partial(zero_order, n, fs.kernels.ode_euler(LINEAR), (1.0, 0.0), neighbours=2)
    share = lambda images, cond: jax.scipy.stats.norm.cdf(images[:, 0])  # noqa: E731
    best = jax.scipy.stats.norm.cdf(samples(make(perturbation=1.0), share, count))
    error = math.sqrt(n / ((n + 1) ** 2 * (n + 2)) / count)
    assert abs(float(np.mean(best)) - n / (n + 1)) < 4.0 * error


@pytest.mark.slow
def test_the_best_is_never_lost():
    """A round whose neighbours are all worse leaves the pivot where it was."""
    result = run(zero_order(150))
    rewards = np.where(np.isfinite(result.info.reward), result.info.reward, -np.inf)
    best = np.maximum.accumulate(rewards.max(-1))
    told = best > -np.inf
    np.testing.assert_array_equal(result.info.best_reward[told], best[told])
    path = np.asarray(result.info.path_reward)[..., 0]
    assert np.all(path[1:] >= path[:-1])


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (zero_order, {"perturbation": 0.0}, "perturbation must be a share .* got 0.0"),
        (greedy, {"perturbation": 1.5}, "perturbation must be a share .* got 1.5"),
        (greedy, {"epsilon": 1.1}, "epsilon must be a probability from 0 to 1, got 1.1"),
        (greedy, {"epsilon_middle": -0.1}, "epsilon_middle must be a probability .* got -0.1"),
        (zero_order, {"neighbours": 0}, "neighbours must be an integer of at least 1, got 0"),
        (zero_order, {"nfe": 4}, "nfe leaves 4 evaluations for the search, expected at least 5"),
        (greedy, {"nfe": 4}, "nfe leaves 4 evaluations for the search, expected at least 5"),
        (greedy, {"kernel": ODE}, "kernel ODEEuler is deterministic, so all draws of a step are"),
    ],
)
def test_errors_name_the_argument(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
