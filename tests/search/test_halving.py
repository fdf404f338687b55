"""Successive halving against trajectories followed one by one, and its account."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import GRID, SDE, VP, batch, flow, reward, row, tools

import flowsde as fs

KEY = jax.random.key(5)
ODE = fs.kernels.ode_euler(VP)
COUNT, STEPS = 12, len(GRID) - 1
LATER = {"draft_steps": (1, 3, 4), "resume_at": float(GRID[1]), "rungs": (3,), "factor": 2}


def halving(nfe=47, kernel=ODE, grid=GRID, **options):
    return fs.search.halving(nfe=nfe, kernel=kernel, grid=grid, **options)


def run(search, **options):
    ids, cond = batch(COUNT)
    return fs.run(KEY, flow(), search, reward, cond=cond, prompt_ids=ids, invalid="warn", **options)


def one_by_one(legs, resumed, factor, nfe, search, prompt_id, cond, noise, move, evaluate):
    """(points that have a reward, charged), each trajectory on its own.

    Args:
      legs: positions in the grid, from one rung to the next.
      resumed: the position, among the first leg's, from which the second goes on.
    """
    key, grid = jax.random.fold_in(KEY, prompt_id), search.grid

    def numbers(drafts):
        return [int(np.ceil(drafts / factor**r)) for r in range(len(legs))]

    def cost(counts):
        return sum(n * len(leg) for n, leg in zip(counts, legs, strict=True))

    drafts = max(n for n in range(1, nfe + 1) if cost(numbers(n)) <= nfe)
    counts = numbers(drafts)
    while len(legs) > 1 and counts[-1] < counts[-2] and cost(counts) + len(legs[-1]) <= nfe:
        counts[-1] += 1

    scored, charged, slot = [], 0, 0
    going = dict.fromkeys(range(counts[0]))
    for r, leg in enumerate(legs):
        ends, starts = {}, {}
        for j, point in going.items():
            for k, i in enumerate(leg):
                if point is None:
                    x = noise(key, j, 0)
                else:
                    x = move(key, point, grid[i], j, slot + k)
                point = evaluate(x, grid[i], cond)
                charged += 1
                if r == 0 and i == resumed:
                    starts[j] = point
            ends[j] = point
            scored.append(point)
        slot += len(leg)
        if r + 1 < len(legs):
            best = sorted(ends, key=lambda j: (-ends[j].reward, j))[: counts[r + 1]]
            going = {j: starts.get(j, ends[j]) for j in sorted(best)}
    return scored, charged


def answer(points):
    """Of the lowest time that has a reward, the best; the first of equals."""
    scored = [p for p in points if p.reward > -np.inf]
    return max(scored, key=lambda p: (-p.t, p.reward)) if scored else None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "legs", "resumed"),
    [
        # ceil(4 k / 2) = 2, 4: times of the grid from the first to the last.
        ({"draft_steps": 3, "factor": 3}, [(0, 2, 4), (1, 2, 3, 4)], 0),
        (
            {"draft_steps": (1, 4), "resume_at": float(GRID[1]) - 0.01, "rungs": (3,), "factor": 2},
            [(0, 1, 4), (2, 3), (4,)],
            1,
        ),
        (
            {"draft_steps": 0, "rungs": 2, "factor": 2, "kernel": SDE, "nfe": 60},
            [(0, 1, 2), (3,), (4,)],
            2,
        ),
        ({"draft_steps": 2, "kernel": SDE, "factor": 4, "nfe": 31}, [(0, 4), (1, 2, 3, 4)], 0),
        (
            {"draft_steps": 3, "factor": 2, "kernel": fs.kernels.ode_adams(VP)},
            [(0, 2, 4), (1, 2, 3, 4)],
            0,
        ),
        ({**LATER, "kernel": fs.kernels.uni_pc(VP)}, [(0, 1, 3, 4), (2, 3), (4,)], 1),
    ],
    ids=["drafts", "resumed later, rungs", "stopped early", "sde", "adams", "unipc, kept, rungs"],
)
def test_equals_trajectories_followed_one_by_one(options, legs, resumed):
    ids, cond = batch(COUNT)
    search = halving(**options)
    result = run(search)
    for i in range(COUNT):
        points, charged = one_by_one(
            legs, resumed, options["factor"], search.nfe, search, int(ids[i]), row(cond, i),
            *tools(search.solver or search.kernel),
        )  # fmt: skip
        best, size = answer(points), cond["size"][i]
        assert result.nfe[i] == charged <= search.nfe
        assert result.verifier_calls[i] == len(points)
        assert result.t[i] == best.t
        np.testing.assert_allclose(
            result.reward[i] / size, best.reward / size, rtol=2e-5, atol=5e-5
        )
        np.testing.assert_allclose(result.x[i], best.x, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"rungs": 0}, {"rungs": 2, "factor": 1}])
def test_without_halving_it_is_best_of_n(options):
    """To the bit; rewards of those that all go on change nothing."""
    bon = run(fs.search.bon(nfe=43, kernel=ODE, grid=GRID, width=100))
    same = run(halving(43, draft_steps=0, **options))
    for name in ("x", "x0", "t", "reward", "nfe", "evaluations"):
        np.testing.assert_array_equal(getattr(same, name), getattr(bon, name), err_msg=name)


@functools.cache
def brute(draft, legs, factor, nfe):
    """The most drafts that a budget pays for, by trying."""
    lengths = [draft, *legs]

    def cost(n):
        return sum(-(-n // factor**r) * length for r, length in enumerate(lengths))

    return max(n for n in range(nfe + 1) if cost(n) <= nfe), cost


@pytest.mark.slow_but_one
@pytest.mark.parametrize("factor", [1, 2, 3, 7, 10**6])
@pytest.mark.parametrize("draft, rungs", [(0, 0), (0, 2), (3, 0), (4, 1), (1, 3)])
def test_the_number_of_drafts_follows_from_the_budget(factor, draft, rungs):
    grid = fs.grids.uniform(8)
    search = halving(301, grid=grid, factor=factor, draft_steps=draft, rungs=rungs)
    lengths = [len(leg) for leg in search._legs]
    numbers = jax.jit(jax.vmap(search.trajectories))
    budgets = np.arange(sum(lengths), 302, dtype=np.int32)
    for nfe, counts in zip(budgets.tolist(), np.asarray(numbers(budgets)), strict=True):
        drafts, cost = brute(lengths[0], tuple(lengths[1:]), factor, nfe)
        spent = int(counts @ lengths)
        assert counts[0] == drafts and spent <= nfe < cost(drafts + 1)
        expected = [-(-drafts // factor**r) for r in range(len(lengths))]
        np.testing.assert_array_equal(counts[:-1], expected[:-1])
        if len(lengths) > 1:
            # More finalists as long as there are any and the budget pays for them.
            assert counts[-1] == counts[-2] or nfe - spent < lengths[-1]
            assert counts[-1] >= expected[-1]
    assert search.drafts == search.n_candidates == counts[0]


def test_a_huge_budget_is_divided_exactly():
    search = halving(2**31 - 1, grid=fs.grids.uniform(8), factor=3, draft_steps=3, rungs=1)
    drafts, last = search.drafts, 2**31 - 1
    assert search._cost(drafts) <= last < search._cost(drafts + 1)
    counts = np.asarray(search.trajectories(jnp.int32(last)), np.int64)
    assert counts[0] == drafts and counts @ search._lengths <= last


@pytest.mark.slow
def test_nothing_is_evaluated_twice():
    """Drafts share the first time with what goes on from it, which is charged once."""
    search = halving(3 * 3 + 4, draft_steps=3, factor=3)
    result = run(search)
    assert search.drafts == 3
    np.testing.assert_array_equal(result.nfe, 13)
    np.testing.assert_array_equal(result.verifier_calls, 3 + 1)
    for i in range(COUNT):
        counted = result.info.counted[:, i]
        times = np.sort(result.info.time[:, i][counted])
        expected = np.sort(np.float32([*np.repeat(np.asarray(GRID)[[0, 2, 4]], 3), *GRID[1:5]]))
        np.testing.assert_array_equal(times, expected)


@pytest.mark.slow
def test_drafts_are_answers_before_anything_else_is():
    """An answer after the first leg, of the drafts; it never becomes worse at the same time."""
    ids, cond = batch(COUNT)
    search = halving(draft_steps=2, factor=4)
    rounds = list(fs.iterate(KEY, flow(), search, reward, cond=cond, prompt_ids=ids))
    best = np.stack([np.asarray(r.reward) for r in rounds])
    assert np.isneginf(best[0]).all() and np.isfinite(best[1:]).all()
    assert (np.diff(best[1:], axis=0) >= 0.0).all()
    np.testing.assert_array_equal(rounds[1].t, np.full(COUNT, np.float32(GRID[-2])))

    met = run(search, target_reward=0.2)
    stopped = np.asarray(rounds[1].reward) >= 0.2
    assert 0 < stopped.sum() < COUNT
    drafts = 2 * search.drafts
    np.testing.assert_array_equal(np.asarray(met.nfe) == drafts, stopped)


@pytest.mark.slow
def test_lines_follow_drafts_to_their_ends():
    search = halving(draft_steps=2, factor=4)
    cond = row(batch(COUNT)[1], 1)
    seen = []
    for result in fs.iterate(KEY, flow(), search, reward, cond=cond):
        info = jax.tree.map(lambda a: a[-1], result.info)
        lines = search.lines(result.state, info)
        number, parent = np.asarray(lines.number), np.asarray(lines.parent)
        seen.append((number[number >= 0], parent[number >= 0], np.asarray(lines.particle.reward)))
    drafts, others = seen[1], [s for k, s in enumerate(seen) if k not in (1, len(seen) - 1)]
    assert sorted(drafts[0]) == list(range(search.drafts)) and (drafts[1] == -1).all()
    assert all(len(number) == 0 for number, *_ in others)
    rewards = np.empty(search.drafts)
    rewards[drafts[0]] = drafts[2][: search.drafts]
    finalists = seen[-1][0]
    np.testing.assert_array_equal(finalists, seen[-1][1])
    assert set(finalists) == set(np.argsort(-rewards, kind="stable")[: len(finalists)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nfe": 6, "draft_steps": 3}, "nfe = 6 is less than one draft .* take 7 evaluations"),
        ({"factor": 0}, "factor must be an integer of at least 1, got 0"),
        ({"draft_steps": 6}, "draft_steps must be an integer of at most 5, got 6"),
        ({"draft_steps": (0, 4)}, "draft_steps must hold positions in the grid from 1 to 4"),
        ({"resume_at": 1.5}, "resume_at must be a time between 0 and 1, got 1.5"),
        ({"resume_at": float("nan")}, "resume_at must be a time between 0 and 1, got nan"),
        ({"rungs": 4}, "rungs must be an integer of at most 3, got 4"),
        ({"rungs": (2,), "resume_at": 0.8, "draft_steps": (2, 4)}, "rungs must lie behind pos"),
        ({"rungs": (4,)}, "rungs must lie behind position 0 .* before the last, 4, got"),
    ],
)
def test_errors_name_the_argument(options, message):
    with pytest.raises(ValueError, match=message):
        halving(**options)


def test_drafts_take_times_of_the_grid():
    grid = fs.grids.uniform(10)
    plans = {
        (4, 1.0): ((0, 3, 6, 9), 0),
        (4, 0.68): ((0, 3, 6, 9), 3),
        (None, 1.0): ((0, 3, 6, 9), 0),
        # The last time is none to go on from.
        (2, 0.1): ((0, 9), 0),
        (1, 0.3): ((0,), 0),
    }
    for (steps, time), (draft, resumed) in plans.items():
        search = halving(100, grid=grid, draft_steps=steps, resume_at=time)
        assert (search.draft, search.resumed) == (draft, resumed)
    assert halving(100, grid=fs.grids.uniform(5)).draft == (0, 4)
    assert halving(100, grid=fs.grids.uniform(1)).draft == (0,)
    # Steps of the grid are not made again; of all of them nothing is left to do.
    assert halving(100, grid=grid, draft_steps=(1, 2, 9)).resumed == 2
    assert halving(100, grid=grid, draft_steps=10)._lengths == [10]
    assert halving(100, rungs=2) == halving(100, rungs=2, draft_steps=0)
