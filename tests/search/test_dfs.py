"""Depth-first search against chains followed one by one, its account, the law of its samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import GRID, HOLES, SDE, VP, batch, flow, reward, row, tools

import flowsde as fs

KEY = jax.random.key(4)
ODE = fs.kernels.ode_euler(VP)
COUNT, LAST = 12, len(GRID) - 2


def dfs(nfe=60, kernel=ODE, grid=GRID, **options):
    options = {"check_at": (2, 3), "backtrack": 2, "finish": "mean"} | options
    return fs.search.dfs(nfe=nfe, kernel=kernel, grid=grid, **options)


def run(search, **options):
    ids, cond = batch(COUNT)
    return fs.run(KEY, flow(), search, reward, cond=cond, prompt_ids=ids, invalid="warn", **options)


@jax.jit
def renoise(key, chain, step, draw, x, t, s):
    for i in (chain, step, draw):
        key = jax.random.fold_in(key, i)
    return fs.kernels.renoise(VP)(key, x, x, x, t, s)


def chain_alone(c, search, budget, bars, prompt_id, cond, noise, move, evaluate):
    """(what was evaluated, in order, with its step) of a chain, by recursion over its decisions."""
    key, grid = jax.random.fold_in(KEY, prompt_id), search.grid
    seen = []

    def visit(i, parent, noised=False):
        s = np.float32(grid[i])
        ids = (c, i, len(seen))
        if parent is None or i == 0:
            x = noise(key, *ids)
        elif noised:
            x = renoise(key, *ids, parent.x, parent.t, s)
        else:
            x = move(key, parent, s, *ids)
        point = evaluate(x, grid[i], cond)
        seen.append((i, point if i in bars else point._replace(reward=-np.inf)))
        return seen[-1][1]

    def left():
        return budget - len(seen)

    def above(i):
        return max(i - search.backtrack, 0)

    attempts = {i: [] for i in bars}
    point, i = visit(0, None), 0
    while True:
        if i in bars:
            attempts[i].append(point)
            # Up, down again to here, and what is below.
            returns = LAST - above(i) + 1 <= left()
            fails = not point.reward >= bars[i]
            if fails and len(attempts[i]) < search.tries and returns:
                i, point = above(i), visit(above(i), point, noised=True)
                continue
            if fails:
                point = max(attempts[i], key=lambda p: p.reward)
            attempts[i] = []
            if i == LAST:
                if left() >= LAST + 1:
                    i, point = 0, visit(0, None)
                elif returns:
                    i, point = above(i), visit(above(i), point, noised=True)
                else:
                    return seen
                continue
        i, point = i + 1, visit(i + 1, point)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "bars"),
    [
        ({"bar": (0.3, 0.0, 0.5)}, {2: 0.3, 3: 0.0, 4: 0.5}),
        (
            {"chains": 3, "kernel": SDE, "backtrack": 3, "tries": 2, "nfe": 121},
            {2: np.inf, 3: np.inf, 4: np.inf},
        ),
    ],
    ids=["bars", "none high enough"],
)
def test_equals_chains_followed_one_by_one(options, bars):
    ids, cond = batch(COUNT)
    search = dfs(**options)
    result = run(search)
    n = search.chains
    shares = [search.nfe // n + (c < search.nfe % n) for c in range(n)]
    for i in range(COUNT):
        size = cond["size"][i]
        one = int(ids[i]), row(cond, i), *tools(search.kernel)
        chains = [chain_alone(c, search, shares[c], bars, *one) for c in range(n)]
        every = [p for k in range(max(map(len, chains))) for c in chains for p in c[k : k + 1]]
        best = max((p for _, p in every if p.reward > -np.inf), key=lambda p: (-p.t, p.reward))
        assert result.nfe[i] == len(every) <= search.nfe
        assert result.verifier_calls[i] == sum(step in bars for step, _ in every)
        assert result.t[i] == best.t
        np.testing.assert_allclose(
            result.reward[i] / size, best.reward / size, rtol=2e-5, atol=5e-5
        )
        np.testing.assert_allclose(result.x[i], best.x, rtol=1e-4, atol=1e-4)
        for c, chain in enumerate(chains):
            # The last is always at the end, and what is left is less than going back from there.
            assert chain[-1][0] == LAST and shares[c] - len(chain) < search.backtrack + 1


@pytest.mark.slow
def test_no_bar_is_too_high():
    """Of the least budget too, every chain comes to its end, whatever it is worth."""
    budgets = np.arange(10, 10 + COUNT)
    result = run(dfs(30, bar=1e9, tries=100), nfe=budgets)
    np.testing.assert_array_equal(result.t, np.float32(GRID[LAST]))
    assert np.all(result.nfe <= budgets)


@pytest.mark.slow
def test_what_meets_the_target_passes_whatever_the_bar():
    result = run(dfs(bar=1e9), target_reward=-1e8)
    seen = np.isfinite(np.asarray(result.reward))
    assert seen.any() and np.all(np.asarray(result.nfe)[seen] < 60)
    accepted = np.asarray(result.info.accepted) & (np.asarray(result.info.reward) >= -1e8)
    assert accepted.any((0, 2))[seen].all()


@pytest.mark.slow
def test_below_every_bar_it_is_best_of_n():
    """Nothing fails: chains are samples, one after the other, each worth one call at the end."""
    result = run(dfs(60, bar=-1e30, chains=1, check_at=(2,)))
    # Of a reward with holes some are NaN, and below it.
    whole = batch(COUNT)[1]["kind"] != HOLES
    np.testing.assert_array_equal(result.nfe[whole], 60)
    times = np.asarray(result.info.time)[:, whole, 0]
    down = np.tile(np.float32(GRID[:-1]), 12)
    np.testing.assert_array_equal(times, np.broadcast_to(down[:, None], times.shape))


def blind(images, cond):
    """A reward that knows nothing of where a picture lies."""
    return jnp.sin(1e5 * images[:, 0])


@pytest.mark.slow
def test_without_preferences_samples_stay_the_models():
    """Noised part of the way and back, again and again."""
    data, count = fs.analytic.mixture([0.7, 0.3], [[1.0], [-1.0]], 0.05), 4000
    ode = fs.kernels.ode_euler(fs.interpolants.linear())
    search = fs.search.dfs(
        nfe=70, kernel=ode, grid=fs.grids.uniform(10), chains=1, check_at=1, tries=50, backtrack=5,
        finish="mean",
    )  # fmt: skip
    found = fs.run(
        KEY, data.flow(), search, blind,
        cond=np.zeros(count, np.float32), prompt_ids=np.arange(count),
    )  # fmt: skip
    x = np.asarray(found.x0[:, 0])
    # Four standard errors of the share, and a tenth of the spread that one sample has.
    assert abs(np.mean(x > 0.0) - 0.7) < 4.0 * np.sqrt(0.21 / count)
    plain = fs.sample(KEY, data.flow(), kernel=ode, grid=fs.grids.uniform(10), n=count)[:, 0]
    spread = np.std(x[x > 0.0]) / np.std(np.asarray(plain)[np.asarray(plain) > 0.0])
    assert abs(spread - 1.0) < 0.1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"nfe": 9}, ValueError, "nfe leaves 9 evaluations .* at least 10: 2 chains of 5 steps"),
        ({"bar": (0.1, 0.2)}, ValueError, r"bar must be one number or one for each of 3 checks"),
        ({"bar": "high"}, TypeError, "bar must be a number or numbers, got 'high'"),
        ({"bar": float("nan")}, ValueError, "bar must be a number, got nan"),
        ({"check_at": 5}, ValueError, "check_at must be an integer of at most 4, got 5"),
        ({"tries": 0}, ValueError, "tries must be an integer of at least 1, got 0"),
        ({"backtrack": 0}, ValueError, "backtrack must be an integer of at least 1, got 0"),
    ],
)
def test_errors_name_the_argument(options, error, message):
    with pytest.raises(error, match=message):
        dfs(**options)
