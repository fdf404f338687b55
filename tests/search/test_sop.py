"""Search over Paths against children drawn one by one, and its schedule."""

import jax
import numpy as np
import pytest
from problems import GRID, SDE, VP, batch, flow, reward, row, tools

import flowsde as fs

KEY = jax.random.key(4)
ODE = fs.kernels.ode_euler(VP)
COUNT, STEPS = 12, len(GRID) - 1


def sop(nfe=33, kernel=ODE, grid=GRID, **options):
    options = {"start": 1, "forward": 1, "backward": 2} | options
    return fs.search.sop(nfe=nfe, kernel=kernel, grid=grid, finish="mean", **options)


@jax.jit
def renoise(key, j, slot, x, t, s):
    key = jax.random.fold_in(jax.random.fold_in(key, j), slot)
    return fs.kernels.renoise(VP)(key, x, x, x, t, s)


def one_by_one(search, prompt_id, cond, noise, move, evaluate):
    """(children of the last round, evaluations), each child on its own."""
    key, grid = jax.random.fold_in(KEY, prompt_id), search.grid
    charged, slot = 0, 0
    parents = []
    for j in range(search.paths):
        point = evaluate(noise(key, j, 0), grid[0], cond)
        for i in range(1, search.start + 1):
            point = evaluate(move(key, point, grid[i], j, i), grid[i], cond)
        parents.append(point)
        charged += search.start + 1
    here, slot = search.start, search.start + 1
    lengths = search._lengths
    left = search.nfe - charged
    each, left = left // sum(lengths), left % sum(lengths)
    for length in lengths:
        more = left >= length
        left -= length * more
        children, back = [], here - search.forward
        for j in range(each + more):
            parent = parents[j % search.paths]
            x = renoise(key, j, slot, parent.x, parent.t, np.float32(grid[back]))
            child = evaluate(x, grid[back], cond)
            for k in range(1, length):
                moved = move(key, child, grid[back + k], j, slot + k)
                child = evaluate(moved, grid[back + k], cond)
            children.append(child)
            charged += length
        here, slot = back + length - 1, slot + length
        parents = sorted(children, key=lambda p: -p.reward)[: search.paths]  # stable
    assert here == STEPS - 1
    return children, charged


@pytest.mark.slow
@pytest.mark.parametrize(
    "search",
    [
        sop(),
        sop(57, SDE, paths=3, backward=3),
        sop(47, start=2, forward=2, backward=3, paths=1),
    ],
    ids=["ode", "sde", "far"],
)
def test_equals_children_drawn_one_by_one(search):
    ids, cond = batch(COUNT)
    result = fs.run(KEY, flow(), search, reward, cond=cond, prompt_ids=ids, invalid="warn")
    for i in range(COUNT):
        children, charged = one_by_one(search, int(ids[i]), row(cond, i), *tools(search.kernel))
        best = max(children, key=lambda p: p.reward)
        size = cond["size"][i]
        assert result.nfe[i] == charged <= search.nfe
        np.testing.assert_allclose(
            result.reward[i] / size, best.reward / size, rtol=2e-5, atol=5e-5
        )
        np.testing.assert_allclose(result.x[i], best.x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("nfe", [44, 61, 100, 333])
@pytest.mark.parametrize("forward, backward", [(1, 2), (2, 4), (3, 7)])
def test_schedule_spends_all_but_less_than_a_child(nfe, forward, backward):
    search = sop(nfe, grid=fs.grids.uniform(10), start=3, forward=forward, backward=backward)
    schedule, children = search.schedule, np.asarray(search.children(np.int32(nfe)))
    particles = np.append(search.paths, children)[schedule.round]
    assert 0 <= nfe - particles.sum() < max(search._lengths)
    assert np.all(particles >= search.paths) and particles.max() == search.n_candidates
    # Forwards where noise is added, one step of the grid at a time everywhere else.
    jumps = np.diff(schedule.step)
    np.testing.assert_array_equal(jumps[schedule.noised[1:]], -forward)
    np.testing.assert_array_equal(jumps[~schedule.noised[1:]], 1)
    assert schedule.step[-1] == search.steps - 1 and schedule.ends[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forward": 2}, "forward must lie in 1 to start = 1, .* got 2"),
        ({"backward": 1}, "backward must be more steps than forward = 1, got 1"),
        ({"start": 4}, "start must be below the last evaluated time, number 4 .* got 4"),
        ({"nfe": 9}, "nfe leaves 9 .* expected at least .* 2 paths of one child in each of 3"),
        ({"paths": 0}, "paths must be an integer of at least 1, got 0"),
    ],
)
def test_errors_name_the_argument(options, message):
    with pytest.raises(ValueError, match=message):
        sop(**options)
