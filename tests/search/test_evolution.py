"""Evolution against pictures drawn one by one, its account, and the marginal of its children."""

import jax
import numpy as np
import pytest
from marginals import check_pictures_stay_the_models
from problems import GRID, SDE, VP, batch, flow, reward, row, tools

import flowsde as fs

KEY = jax.random.key(4)
ODE = fs.kernels.ode_euler(VP)
LINEAR = fs.interpolants.linear()
COUNT = 12


def evolution(nfe=41, kernel=ODE, grid=GRID, **options):
    options = {"children": 3, "parents": 2, "mutate_at": float(GRID[2])} | options
    return fs.search.evolution(nfe=nfe, kernel=kernel, grid=grid, **options)


@jax.jit
def renoise(key, number, step, x, t, s):
    key = jax.random.fold_in(jax.random.fold_in(key, number), step)
    return fs.kernels.renoise(VP)(key, x, x, x, t, s)


def one_by_one(search, starts, prompt_id, cond, noise, move, evaluate):
    """(best pictures, evaluations, pictures, positions of mutation), each child on its own."""
    key, grid = jax.random.fold_in(KEY, prompt_id), search.grid
    steps, left, number = len(grid) - 1, search.nfe, 0
    parents, used = [], []
    for_each = (left - search.children * steps) / len(starts)
    while True:
        born, fresh = [], number < search.children
        # Shares of the budget end where the next time's begin.
        later = search.nfe - left - search.children * steps
        start = next((s for i, s in enumerate(starts) if later < (i + 1) * for_each), starts[-1])
        for j in range(search.children):
            if left < (steps if fresh else steps - start):
                break
            first = 0 if fresh else start
            if fresh:
                x = noise(key, number, 0)
            else:
                mother = parents[j % len(parents)]
                x = renoise(key, number, start, mother.x, mother.t, np.float32(grid[start]))
            child = evaluate(x, grid[first], cond)
            for i in range(first + 1, steps):
                child = evaluate(move(key, child, grid[i], number, i), grid[i], cond)
            left -= steps - first
            born.append(child)
            number += 1
        if not born:
            return parents, search.nfe - left, number, used
        used += [] if fresh else [start]
        # Stable: of equals, those that were there first.
        parents = sorted(parents + born, key=lambda p: -p.reward)[: search.parents]
        if len(born) < search.children:
            return parents, search.nfe - left, number, used


@pytest.mark.slow
@pytest.mark.parametrize(
    ("search", "starts"),
    [
        (evolution(), [2]),
        (evolution(50, SDE, children=4, parents=1), [2]),
        (evolution(33, mutate_at=float(GRID[1])), [1]),
        (evolution(60, SDE, mutate_at=float(GRID[1]), mutate_until=float(GRID[3])), [1, 2, 3]),
    ],
    ids=["ode", "sde", "early", "falling"],
)
def test_equals_pictures_drawn_one_by_one(search, starts):
    ids, cond = batch(COUNT)
    result = fs.run(KEY, flow(), search, reward, cond=cond, prompt_ids=ids, invalid="warn")
    for i in range(COUNT):
        parents, charged, drawn, used = one_by_one(
            search, starts, int(ids[i]), row(cond, i), *tools(search.kernel)
        )
        size = cond["size"][i]
        assert result.nfe[i] == charged <= search.nfe
        assert result.verifier_calls[i] == drawn
        assert len(set(used)) == len(starts) and used == sorted(used)
        np.testing.assert_allclose(
            result.reward[i] / size, parents[0].reward / size, rtol=2e-5, atol=5e-5
        )
        np.testing.assert_allclose(result.x[i], parents[0].x, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_without_a_second_generation_it_is_best_of_n():
    ids, cond = batch(COUNT)
    flat = {"cond": cond, "prompt_ids": ids, "invalid": "warn"}
    one = fs.run(KEY, flow(), evolution(30, children=6), reward, **flat)
    bon = fs.search.bon(nfe=30, kernel=ODE, grid=GRID, width=6)
    other = fs.run(KEY, flow(), bon, reward, **flat)
    np.testing.assert_array_equal(one.x, other.x)
    np.testing.assert_array_equal(one.nfe, other.nfe)


@pytest.mark.slow
def test_without_preferences_pictures_stay_the_models():
    # Ten in eleven answers are descendants, noised up to times that fall.
    ode = fs.kernels.ode_euler(fs.interpolants.linear())

    def search(nfe):
        return fs.search.evolution(
            nfe=nfe, kernel=ode, grid=fs.grids.uniform(10), children=1, mutate_at=0.7,
            mutate_until=0.3,
        )  # fmt: skip

    check_pictures_stay_the_models(search(10), search(60), moved=0.8)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"parents": 4}, ValueError, "parents must be at most children = 3, got 4"),
        ({"nfe": 4}, ValueError, "nfe = 4 is less than one sample: the grid takes 5 evaluations"),
        ({"mutate_at": 1.0}, ValueError, "mutate_at must be a time between 0 and 1, got 1.0"),
        ({"mutate_at": 2}, TypeError, "mutate_at must be a time between 0 and 1, got 2"),
        ({"mutate_until": 0.0}, ValueError, "mutate_until must be a time between 0 and 1, got 0.0"),
        (
            {"mutate_until": 0.97},
            ValueError,
            "mutate_until must be at most mutate_at = .*, got 0.97",
        ),
        ({"grid": (1.0, 0.5, 0.0)}, ValueError, "mutate_at needs a grid of at least 3 steps"),
        ({"children": 0}, ValueError, "children must be an integer of at least 1, got 0"),
    ],
)
def test_errors_name_the_argument(options, error, message):
    with pytest.raises(error, match=message):
        evolution(**options)
