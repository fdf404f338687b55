"""Searches with a kernel that evaluates the model on the way: decisions, and what is charged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counted import SEEN, counting_flow, counting_reward
from problems import GRID, VP, batch, flow, reward, row, tools

import flowsde as fs
from flowsde.search.protocol import BudgetTooSmall

KEY = jax.random.key(4)
M = 3
GLASS = fs.kernels.glass(VP, M, rho=0.4)
OPTIONS = {"kernel": GLASS, "grid": GRID, "finish_steps": 4}
COUNT, NFE = 6, 121
SEARCHES = {
    "bon": fs.search.bon(nfe=NFE, kernel=GLASS, grid=GRID, width=3),
    "rbf": fs.search.rbf(nfe=NFE, width=3, accept="quantile", **OPTIONS),
    "svdd": fs.search.svdd(nfe=NFE, value="ode", value_steps=2, **OPTIONS),
    "code": fs.search.code(nfe=NFE, block=2, branch_at=(1, 3), **OPTIONS),
    "smc": fs.search.smc(nfe=NFE, temperature=0.2, **OPTIONS),
    "sop": fs.search.sop(
        nfe=NFE, start=1, forward=1, backward=2, value="ode", value_steps=1, **OPTIONS
    ),
    "halving": fs.search.halving(nfe=NFE, kernel=GLASS, grid=GRID, draft_steps=3, factor=3),
    "halving, rungs": fs.search.halving(
        nfe=NFE, kernel=GLASS, grid=GRID, draft_steps=(2,), resume_at=0.0, factor=2, rungs=1
    ),
    "evolution": fs.search.evolution(
        nfe=NFE, kernel=GLASS, grid=GRID, children=3, parents=2, mutate_at=0.75, mutate_until=0.3
    ),
    "psi": fs.search.psi(nfe=NFE, temperature=0.2, chains=3, **OPTIONS),
    "dfs": fs.search.dfs(nfe=NFE, check_at=(2,), bar=0.5, **OPTIONS),
    "dts": fs.search.dts(nfe=NFE, kernel=GLASS, grid=GRID, branch_at=(1, 3), width=2),
    "zero_order": fs.search.zero_order(nfe=NFE, kernel=GLASS, grid=GRID, neighbours=3),
    "epsilon_greedy": fs.search.epsilon_greedy(nfe=NFE, neighbours=3, **OPTIONS),
}


def units(search):
    """Evaluations that the search may leave: less than its next unit of work."""
    own = getattr(search, "inner", search)
    match own:
        case fs.search.BestOfN() | fs.search.SMC() | fs.search.DTS() | fs.search.Evolution():
            return 1 + (own.steps - 1) * M
        case fs.search.PsiSampler():
            return 1  # one more proposal
        case fs.search.SuccessiveHalving():
            drafts, rest = own.draft, own.steps - 1 - own.resumed
            return 1 + (len(drafts) - 1 + rest) * M  # one more draft and its continuation
        case fs.search.DFS():
            return own.chains * (1 + (own.steps - 1) * M)
        case fs.search.NoiseSearch():
            return max(own.stages.cost)
        case fs.search.RBF():
            return own.chains * M
        case fs.search.CoDe():
            return own.chains * 2 * M
        case fs.search.SoP():
            return 1 + 2 * M + 1


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHES)
def test_all_is_counted_and_the_answer_is_a_point_of_the_flow(name):
    """Against what the model and a reward outside JAX see; in full batches, too."""
    search = SEARCHES[name]
    ids, cond = batch(COUNT)
    options = {"cond": cond, "prompt_ids": ids}
    SEEN.update(model=0)
    alone = fs.run(KEY, counting_flow(), search, reward, chunk_size=5, **options)
    jax.effects_barrier()
    assert SEEN["model"] == alone.evaluations.sum()
    assert np.all(alone.nfe <= NFE) and np.all(alone.evaluations >= alone.nfe)
    assert np.all(NFE - np.asarray(alone.nfe) < units(search))
    np.testing.assert_array_equal(alone.info.charged.sum(0), alone.nfe)
    x0, _ = flow().means(jnp.asarray(alone.x), jnp.asarray(alone.t), cond, VP)
    np.testing.assert_allclose(alone.x0, x0, rtol=1e-4, atol=1e-5)
    again = reward(alone.image, cond)
    np.testing.assert_allclose(alone.reward / cond["size"], again / cond["size"], atol=2e-5)
    SEEN.update(model=0, verifier=0)
    hosted = fs.rewards.host(counting_reward)
    packed = fs.batch(KEY, counting_flow(), search, hosted, batch_size=8, **options)
    found = dict(packed)
    jax.effects_barrier()
    totals = packed.totals
    assert SEEN["model"] == totals.evaluations == totals.nfe + totals.surplus + totals.padding
    assert SEEN["verifier"] == totals.verifier_calls
    for i, number in enumerate(ids):
        one, size = found[int(number)], cond["size"][i]
        assert one.nfe == alone.nfe[i]
        np.testing.assert_allclose(one.reward / size, alone.reward[i] / size, atol=2e-5)


def moved(key, point, s, cond, *ids):
    """A transition by the paper's 2 x 2 system, in NumPy float64 but for the model."""
    for i in ids:
        key = jax.random.fold_in(key, i)
    noise = np.asarray(jax.random.normal(key, point.x.shape), np.float64)
    (alpha_t, alpha_s), (sigma_t, sigma_s) = (
        [float(f(jnp.float32(time))) for time in (point.t, s)] for f in (VP.alpha, VP.sigma)
    )
    gamma = 0.4 * sigma_s / sigma_t
    alpha, sigma = alpha_s - gamma * alpha_t, sigma_s * (1 - 0.4**2) ** 0.5
    x, x0 = np.asarray(point.x, np.float64), np.asarray(point.x0, np.float64)
    there = gamma * x + noise
    for m in range(M):
        (a, b), (c, d) = ((tau * alpha, 1.0 - tau + tau * sigma) for tau in (m / M, (m + 1) / M))
        if m:
            loading, shared = np.array([alpha_t, a + gamma * alpha_t]), gamma * sigma_t**2
            covariance = np.array([[sigma_t**2, shared], [shared, b**2 + gamma * shared]])
            weighted = np.linalg.solve(covariance, loading)
            precision = loading @ weighted
            mean = (weighted[0] * x + weighted[1] * there) / precision
            time = VP.time(jnp.float32(np.arctan2(1.0, precision**0.5)))
            at = np.float32(float(VP.alpha(time)) * mean)
            one = jax.tree.map(lambda leaf: np.asarray(leaf)[None], cond)
            x0 = np.asarray(flow().means(jnp.asarray(at)[None], time[None], one, VP)[0][0])
        there = c * x0 + d * (there - gamma * x - a * x0) / b + gamma * x
    return np.float32(there)


@pytest.mark.slow
def test_svdd_equals_children_drawn_one_by_one():
    search = fs.search.svdd(nfe=60, kernel=GLASS, grid=GRID, chains=1, finish="mean")
    ids, cond = batch(3)
    result = fs.run(KEY, flow(), search, reward, cond=cond, prompt_ids=ids)
    noise, _, evaluate = tools(fs.kernels.ddim(VP))
    # One evaluation of noise, then as many children a step as M evaluations each pay for.
    children = np.full(4, (60 - 1) // (4 * M)) + (np.arange(4) < (60 - 1) // M % 4)
    for i in range(3):
        key, own = jax.random.fold_in(KEY, int(ids[i])), row(cond, i)
        current = evaluate(noise(key, 0, 0, 0), GRID[0], own)
        for step in range(1, 5):
            drawn = [
                moved(key, current, GRID[step], own, 0, step, j) for j in range(children[step - 1])
            ]
            points = [evaluate(x, GRID[step], own) for x in drawn]
            current = max(points, key=lambda p: p.reward)
        assert result.nfe[i] == 1 + M * children.sum()
        np.testing.assert_allclose(result.x[i], current.x, rtol=1e-3, atol=2e-4)


@pytest.mark.slow
def test_iterate_resumes_within(tmp_path):
    search = SEARCHES["rbf"]
    ids, cond = batch(2)
    options = {"cond": cond, "prompt_ids": ids}
    rounds = list(fs.iterate(KEY, flow(), search, reward, **options))
    fs.save_search(tmp_path, search, rounds[5])
    saved = fs.restore_search(tmp_path, search)
    *_, resumed = fs.iterate(KEY, flow(), search, reward, **options, resume=saved)
    for name in ("x", "reward", "nfe", "evaluations"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(rounds[-1], name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rbf", "smc"])
def test_rows_on_several_devices(name):
    """Each moves its own; the search may be told numbers of them."""
    search = SEARCHES[name]
    ids, cond = batch(4)
    options = {"cond": cond, "prompt_ids": ids}
    mesh = jax.make_mesh((2, 2), ("prompt", "particle"), (jax.sharding.AxisType.Auto,) * 2)
    alone = fs.run(KEY, flow(), search, reward, **options)
    there = fs.run(KEY, flow(), search, reward, **options, mesh=mesh)
    np.testing.assert_array_equal(there.nfe, alone.nfe)
    np.testing.assert_allclose(there.x, alone.x, rtol=1e-4, atol=1e-5)


class Careless(fs.search.BestOfN):
    """As a search of one's own that charges one evaluation a candidate."""

    charges_moves = False


@pytest.mark.parametrize("method", ["lidar", "pcn"])
def test_searches_that_follow_the_ode_refuse_it(method):
    with pytest.raises(ValueError, match="GLASS evaluates the model on its way .* so .*ode_euler"):
        getattr(fs.search, method)(nfe=NFE, kernel=GLASS, grid=GRID)
    # With M = 1 it does not, and LiDAR follows it.
    one = fs.kernels.glass(VP, 1)
    assert fs.search.lidar(nfe=NFE, kernel=one, grid=GRID).kernel == one


def test_what_cannot_work_is_refused():
    careless = Careless(nfe=NFE, kernel=GLASS, grid=GRID, width=2)
    with pytest.raises(ValueError, match="Careless does not say that it charges the evaluations"):
        fs.run(KEY, flow(), careless, reward, cond=row(batch(2)[1], 0))
    with pytest.raises(ValueError, match="'reserve' .* takes no kernel of inner steps, got GLASS"):
        fs.search.rbf(nfe=NFE, allocation="reserve", **OPTIONS)
    with pytest.raises(BudgetTooSmall, match="the grid takes 13 evaluations") as caught:
        fs.search.bon(nfe=12, kernel=GLASS, grid=GRID)
    assert caught.value.least == 13
