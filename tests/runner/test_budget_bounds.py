"""Budgets, counts and grids that int32 or the memory cannot hold are refused by name."""

import dataclasses
import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowsde as fs
from flowsde._checks import check_count

programs = importlib.import_module("flowsde.runner.rounds")

KEY = jax.random.key(0)
LINEAR = fs.interpolants.linear()
GRID = fs.grids.uniform(3)
OPTIONS = {"grid": GRID, "kernel": fs.kernels.ddim(LINEAR), "finish": "mean"}
BON = fs.search.bon(nfe=30, kernel=fs.kernels.ode_euler(LINEAR), grid=GRID, width=2)
LARGE = 2**31 - 1


def velocity(params, x, t, cond):
    return params * x


def flow_of(*shape):
    return fs.Flow.from_callable(velocity, jnp.float32(0.5), shape)


def first(images, cond):
    return images[:, 0]


METHODS = {
    "bon": partial(fs.search.bon, grid=GRID, kernel=fs.kernels.ode_euler(LINEAR)),
    "halving": partial(
        fs.search.halving, grid=GRID, kernel=fs.kernels.ode_euler(LINEAR), draft_steps=2
    ),
    "lidar": partial(fs.search.lidar, grid=GRID, kernel=fs.kernels.ode_euler(LINEAR)),
    "rbf": partial(fs.search.rbf, **OPTIONS),
    "svdd": partial(fs.search.svdd, **OPTIONS),
    "code": partial(fs.search.code, **OPTIONS),
    "smc": partial(fs.search.smc, **OPTIONS),
    "zero_order": partial(fs.search.zero_order, grid=GRID, kernel=fs.kernels.ode_euler(LINEAR)),
    "epsilon_greedy": partial(fs.search.epsilon_greedy, **OPTIONS),
    "dfs": partial(fs.search.dfs, **OPTIONS),
    "dts": partial(fs.search.dts, grid=GRID, kernel=fs.kernels.ddim(LINEAR)),
    "pcn": partial(fs.search.pcn, grid=GRID, kernel=fs.kernels.ode_euler(LINEAR)),
    "psi": partial(fs.search.psi, **OPTIONS),
    "evolution": partial(fs.search.evolution, grid=GRID, kernel=fs.kernels.ode_euler(LINEAR)),
    "sop": partial(
        fs.search.sop, start=1, forward=1, backward=2, **OPTIONS | {"grid": fs.grids.uniform(4)}
    ),
}


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_budgets_of_searches(make):
    for wrong in (2**31, 2**32 + 30):
        with pytest.raises(ValueError, match=f"nfe must be .* at most {LARGE}, got {wrong}"):
            make(nfe=wrong)
    # Either its rounds do not fit, or what they may take is more than is counted.
    search = make(nfe=LARGE)
    with pytest.raises(ValueError, match=f"nfe = {LARGE} (makes rounds of|may take) .* too large"):
        fs.run(KEY, flow_of(1024, 1024, 3), search, first)


FINISHED = {name: partial(make, finish="heun", finish_steps=4) for name, make in METHODS.items()}
for _whole in ("bon", "halving", "evolution", "zero_order", "dts", "lidar", "pcn"):
    FINISHED.pop(_whole)
FINISHED["rbf, reserve"] = partial(FINISHED["rbf"], allocation="reserve", chains=3, seeds=2)


@pytest.mark.parametrize(
    "make",
    [*METHODS.values(), *FINISHED.values()],
    ids=[*METHODS, *(f"{n}, heun" for n in FINISHED)],
)
def test_a_budget_that_is_too_small_says_the_least(make):
    """Which is enough, and one less is not; of a model whose evaluations cost two, twice that."""
    with pytest.raises(fs.search.BudgetTooSmall, match="nfe") as raised:
        make(nfe=1)
    least = raised.value.least
    search = make(nfe=least)
    for wrong in (lambda: make(nfe=least - 1), lambda: search.with_nfe(least - 1)):
        with pytest.raises(fs.search.BudgetTooSmall) as raised:
            wrong()
        assert raised.value.least == least
    two = dataclasses.replace(flow_of(2), evaluations=2)
    with pytest.raises(fs.search.BudgetTooSmall) as raised:
        fs.run(KEY, two, make(nfe=2 * least), first, nfe=2 * least - 1)
    assert raised.value.least == 2 * least


WAYS = (fs.run, fs.iterate, fs.batch)


@pytest.mark.parametrize("wrong", [2**32 + 30, 30 - 2**32, -30, 0, 10**100, 10**5000], ids=range(6))
def test_budgets_of_prompts(wrong):
    """Less a multiple of 2**32, the first two are 30."""
    got = str(wrong) if abs(wrong) < 2**80 else r"(an integer of \d+ bits)"
    for go in WAYS:
        for nfe in (wrong, [30, wrong]):
            with pytest.raises(ValueError, match=f"nfe must .*got {got}"):
                go(KEY, flow_of(2), BON, first, prompt_ids=[0, 1], nfe=nfe)


@pytest.mark.parametrize("name", ["batch_size", "slots"])
def test_sizes_of_batches(name):
    with pytest.raises(ValueError, match=f"{name} must be .* at most {LARGE}, got {2**31}"):
        fs.batch(KEY, flow_of(2), BON, first, prompt_ids=[0], **{name: 2**31})


def test_a_shared_budget_of_many_prompts_may_be_larger():
    shared = partial(fs.batch, KEY, flow_of(2), BON, first, prompt_ids=[0], target_reward=0.0)
    shared(total_nfe=2**40).close()
    with pytest.raises(ValueError, match=f"total_nfe must be .* at most {2**63 - 1}, got {2**63}"):
        shared(total_nfe=2**63)


def test_chunks_widths_and_particles():
    wrong = f"must be an integer of at most {LARGE}, got {2**31}"
    with pytest.raises(ValueError, match=f"chunk_size {wrong}"):
        fs.run(KEY, flow_of(2), BON, first, chunk_size=2**31)
    with pytest.raises(ValueError, match=f"width {wrong}"):
        fs.search.rbf(nfe=30, width=2**31, **OPTIONS)
    with pytest.raises(ValueError, match=f"n {wrong}"):
        fs.sample(KEY, flow_of(2), kernel=OPTIONS["kernel"], grid=GRID, n=2**31)
    with pytest.raises(ValueError, match="nfe = 30 makes rounds of .*the width, is too large"):
        fs.run(KEY, flow_of(2), fs.search.rbf(nfe=30, width=LARGE, **OPTIONS), first)


def test_surplus_counts():
    """Charged 2**25, but 128 candidates wide: 2**32 may be computed."""
    search = fs.search.rbf(nfe=2**25, width=128, **OPTIONS)
    with pytest.raises(ValueError, match=f"may take {2**32} evaluations"):
        fs.run(KEY, flow_of(2), search, first)


@pytest.mark.slow
def test_a_huge_budget_takes_no_memory_before_it_is_spent():
    """A log of all rounds would be one of 2**29."""
    search = fs.search.rbf(nfe=2**30, **OPTIONS)
    options = {"target_reward": -1e30}
    found = fs.run(KEY, flow_of(2), search, first, **options)
    *_, last = fs.iterate(KEY, flow_of(2), search, first, **options)
    assert found.nfe == last.nfe == 2
    assert len(found.info.time) == len(last.info.time) == 1


@pytest.mark.slow
def test_rounds_that_do_not_fit_into_one_log(monkeypatch):
    search = fs.search.bon(nfe=33, kernel=fs.kernels.ode_euler(LINEAR), grid=GRID, width=1)
    go = partial(fs.run, KEY, flow_of(2), search, first)
    whole = go()
    monkeypatch.setattr(programs, "ROUNDS", 4)
    monkeypatch.setattr(importlib.import_module("flowsde.runner.run"), "_ROOM", 4)
    programs.run_rounds.clear_cache()
    parts = go()
    *_, last = fs.iterate(KEY, flow_of(2), search, first)
    programs.run_rounds.clear_cache()
    assert len(whole.info.time) == len(parts.info.time) == len(last.info.time) == 33
    assert whole.nfe == parts.nfe == last.nfe == 33
    for other in (parts, last):
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-6),
            whole.info._replace(seconds=None),
            other.info._replace(seconds=None),
        )


@pytest.mark.parametrize("n", [2**20 + 1, 2**31, 2**40])
def test_grids(n):
    wrong = f"n must be an integer of at most {2**20}, got {n}"
    makes = [fs.grids.uniform, fs.grids.quadratic, fs.grids.cosine]
    for make in (*makes, partial(fs.grids.shifted, shift=3.0), partial(fs.grids.flux, tokens=256)):
        with pytest.raises(ValueError, match=wrong):
            make(n)


def test_grids_of_ones_own():
    with pytest.raises(ValueError, match=f"grid must hold at most {2**20 + 1} times, got 2097153"):
        fs.search.bon(nfe=30, kernel=OPTIONS["kernel"], grid=np.linspace(1.0, 0.0, 2**21 + 1))
    assert fs.grids.uniform(2**20)[1] == 1.0 - 2.0**-20


def test_very_long_numbers_are_said_in_short():
    with pytest.raises(ValueError, match="n must be .* got an integer of 16610 bits"):
        check_count("n", 10**5000)
