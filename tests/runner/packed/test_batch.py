"""Prompts packed into batches are the prompts alone, and every row is counted once."""

import functools

import jax
import jax.numpy as jnp
import methods
import numpy as np
import pytest
from problems import (
    GRID,
    SDE,
    SMOOTH,
    VP,
    batch,
    by_sign,
    decode,
    flow,
    problems,
    reward,
    row,
    traced,
)

import flowsde as fs
from flowsde.runner import chunks
from flowsde.runner.packed import steps

KEY = jax.random.key(21)
ODE = fs.kernels.ode_euler(VP)
GUIDED = fs.kernels.guided(SDE, temperature=2.0)
PROMPTS, TARGET = 12, 0.4
OPTIONS = {"nfe": 41, "grid": GRID, "finish_steps": 4}
METHODS = {
    "bon": fs.search.bon(nfe=41, kernel=fs.kernels.ode_adams(VP), grid=GRID, width=3),
    "rbf": fs.search.rbf(kernel=SDE, chains=2, seeds=2, **OPTIONS),
    "svdd": fs.search.svdd(kernel=SDE, temperature=0.2, **OPTIONS),
    "code": fs.search.code(kernel=SDE, block=2, **OPTIONS),
    "smc": fs.search.smc(kernel=SDE, temperature=0.2, **OPTIONS),
    "sop": fs.search.sop(kernel=ODE, start=1, forward=1, backward=2, **OPTIONS),
    "guided rbf, heun": fs.search.rbf(kernel=GUIDED, finish="heun", **OPTIONS),
}
METHODS |= {
    name: methods.METHODS[name]
    for name in (
        *("guided halving, rungs", "lidar", "evolution", "zero order", "epsilon greedy"),
        *("dfs", "dts", "pcn, langevin", "guided psi"),
    )
}
BUDGETS = np.resize([41, 33, 29, 37], PROMPTS)


@functools.cache
def alone(method):
    """Each prompt in a run of its own, with a budget of its own."""
    ids, cond = batch(PROMPTS)
    return {
        int(ids[i]): fs.run(
            KEY, flow(), METHODS[method], reward, cond=row(cond, np.asarray([i])),
            prompt_ids=ids[i : i + 1], target_reward=TARGET, nfe=int(BUDGETS[i]),
        )
        for i in range(PROMPTS)
    }  # fmt: skip


def packed(method, order, **options):
    """The results by id, and the totals."""
    ids, cond = batch(PROMPTS)
    results = fs.batch(
        KEY, flow(), METHODS[method], reward, cond=row(cond, order), prompt_ids=ids[order],
        nfe=BUDGETS[order], target_reward=TARGET, **options,
    )  # fmt: skip
    return dict(results), results.totals


def assert_same(found, method):
    ids, cond = batch(PROMPTS)
    size = dict(zip(ids.tolist(), cond["size"], strict=True))
    assert found.keys() == alone(method).keys()
    for i, one in found.items():
        other = row(alone(method)[i]._replace(info=None, state=None), 0)
        assert (one.nfe, one.t) == (other.nfe, other.t)
        # A surplus of waves is one of rewards, too.
        assert one.verifier_calls == other.verifier_calls + one.evaluations - one.nfe
        for name in ("x", "x0", "image"):
            a, b = getattr(one, name), getattr(other, name)
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(one.reward / size[i], other.reward / size[i], atol=1e-5)


def assert_adds_up(totals, found, size):
    """Every row of every batch is a prompt's or padding."""
    computed = sum(one.evaluations for one in found.values())
    assert totals.evaluations == totals.batches * size == computed + totals.padding
    assert totals.nfe == sum(one.nfe for one in found.values())
    assert totals.surplus == computed - totals.nfe
    assert totals.prompts == len(found)
    assert totals.verifier_calls == sum(one.verifier_calls for one in found.values())
    assert totals.occupancy == totals.nfe / totals.evaluations


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_prompts_in_batches_are_prompts_alone(method):
    """Early stopping and budgets of their own: no two are of one length."""
    assert len({one.nfe.item() for one in alone(method).values()}) > 2
    other = np.random.default_rng(0).permutation(PROMPTS)
    ways = [(other, {"batch_size": 8})]
    if method in ("rbf", "smc"):
        ways.append((np.arange(PROMPTS), {"batch_size": 8}))
        ways.append((other[::-1], {"batch_size": 5, "slots": 3}))
    for order, options in ways:
        found, totals = packed(method, order, **options)
        assert_same(found, method)
        assert_adds_up(totals, found, options["batch_size"])


@pytest.mark.slow
def test_waves_grow_when_few_prompts_are_left():
    """To the width that fits; one program each, and none of them a second time."""
    advance, before = steps.advance, steps.advance._cache_size()
    found, totals = packed("rbf", np.arange(PROMPTS), batch_size=64)
    assert_same(found, "rbf")
    assert_adds_up(totals, found, 64)
    assert totals.widths[:2] == (2, 4) and totals.surplus > 0
    used = advance._cache_size()
    assert used - before == len(totals.widths)
    again, same = packed("rbf", np.arange(PROMPTS), batch_size=64)
    assert advance._cache_size() == used and same == totals
    # A single prompt begins with waves that fill the batch.
    ids, cond = batch(PROMPTS)
    results = fs.batch(
        KEY, flow(), METHODS["rbf"], reward, cond=row(cond, [3]), prompt_ids=ids[3:4],
        nfe=BUDGETS[3], target_reward=TARGET,
    )  # fmt: skip
    ((_, one),) = results
    assert results.totals.widths == (16,)
    assert one.nfe == again[int(ids[3])].nfe
    np.testing.assert_allclose(one.x, again[int(ids[3])].x, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_finished_prompt_makes_room():
    """Two at a time, so the first to end is of the first two, and nobody waits for long."""
    results = fs.batch(
        KEY, flow(), METHODS["rbf"], reward, cond=batch(PROMPTS)[1], target_reward=TARGET,
        batch_size=4, slots=2,
    )  # fmt: skip
    order = [i for i, _ in results]
    assert sorted(order) == list(range(PROMPTS))
    assert order[0] in (0, 1) and all(i <= place + 1 for place, i in enumerate(order))
    # Two chains of two prompts are four candidates: the batches are full but for the finishing.
    assert results.totals.surplus == 0 and results.totals.occupancy > 0.7


@pytest.mark.slow
def test_draws_are_the_same_bits():
    """At the first time of a grid a particle is its noise."""
    search = fs.search.rbf(nfe=6, kernel=SDE, grid=fs.grids.uniform(1), finish="mean", chains=1)
    ids, cond = batch(PROMPTS)[0], problems(PROMPTS, kinds=(SMOOTH,))
    whole = fs.run(KEY, flow(), search, reward, cond=cond, prompt_ids=ids)
    for i, one in fs.batch(KEY, flow(), search, reward, cond=cond, prompt_ids=ids, batch_size=7):
        (at,) = np.flatnonzero(ids == i)
        np.testing.assert_array_equal(one.x, whole.x[at])


@pytest.mark.slow
@pytest.mark.parametrize("large", [False, True])
def test_the_device_sees_what_is_counted(large, monkeypatch):
    """By a model that counts its rows; guidance costs two. A large one is compiled for two rows
    as well as for a batch."""
    if large:
        monkeypatch.setattr(chunks, "LARGE", 0)
        monkeypatch.setattr(chunks, "TINY", 0)
        jax.clear_caches()
    seen = []

    def counting(params, x, t, cond):
        jax.debug.callback(lambda t: seen.append(t.shape[0]), t)
        return params * x + cond[:, None]

    inner = fs.Flow.from_callable(counting, jnp.float32(0.7), (2,))
    guided = fs.guide(inner, 2.0, jnp.float32(0.0))
    search = fs.search.rbf(nfe=60, kernel=SDE, grid=GRID, finish_steps=3)
    results = fs.batch(
        KEY, guided, search, lambda images, cond: jnp.sin(3.0 * images[:, 0]),
        cond=[np.float32(c) for c in np.linspace(-1, 1, 9)], batch_size=16, target_reward=0.9,
    )  # fmt: skip
    found = dict(results)
    jax.effects_barrier()
    totals = results.totals
    assert sum(seen) == totals.evaluations == totals.nfe + totals.surplus + totals.padding
    assert (
        set(seen) == ({32, 4} if large else {32})
        and sum(one.nfe for one in found.values()) == totals.nfe
    )
    assert max(one.nfe for one in found.values()) == 60 and len(totals.widths) > 1


@pytest.mark.slow
def test_one_trace_and_the_second_call_compiles_nothing():
    counted_velocity, counted_reward, traces = traced()
    model = fs.Flow.from_callable(
        counted_velocity, {"scale": jnp.ones((), jnp.float32)}, (2,), decode=decode
    )

    def go(seed, target):
        results = fs.batch(
            jax.random.key(seed), model, METHODS["svdd"], counted_reward, cond=batch(PROMPTS)[1],
            target_reward=target, batch_size=6,
        )  # fmt: skip
        return len(list(results))

    go(0, None)
    assert traces == {"model": 1, "reward": 1}, "one trace a shape, the check included"
    programs = (steps.advance, steps.evaluate)
    sizes = [program._cache_size() for program in programs]
    assert go(1, 0.2) == PROMPTS
    assert traces == {"model": 1, "reward": 1}
    assert [program._cache_size() for program in programs] == sizes


@pytest.mark.slow
def test_no_reward_at_all_is_an_error_or_a_warning():
    ids, cond = batch(PROMPTS)
    some = row(cond, np.arange(3))
    nothing = by_sign(some, np.nan, np.nan)
    mixed = jax.tree.map(lambda a, b: np.concatenate([a[:2], b[:1]]), some, nothing)
    options = {"cond": mixed, "prompt_ids": ids[:3], "batch_size": 4}
    with pytest.raises(ValueError, match=r"reward 'reward' was NaN or -inf .* prompt ids \[17\]"):
        list(fs.batch(KEY, flow(), METHODS["svdd"], reward, **options))
    with pytest.warns(UserWarning, match=r"prompt ids \[17\]"):
        found = dict(fs.batch(KEY, flow(), METHODS["svdd"], reward, invalid="warn", **options))
    assert found[17].reward == -np.inf and np.isfinite(found[17].x).all()


WRONG = {
    "batch_size must be an integer of at least 1, got 0": {"batch_size": 0},
    "slots must be an integer of at least 1": {"slots": 0},
    "prompt_ids must be different integers": {"prompt_ids": [1, 1, 2]},
    "prompt_ids is missing": {"cond": None},
    "leading axis len": {"prompt_ids": [1, 2]},
    "cond is an empty list": {"cond": []},
    "cond is a list of different": {"cond": [np.zeros(2), np.zeros(3)]},
    "nfe must be at most": {"nfe": 42},
    "nfe must be an integer or one for each": {"nfe": [30, 30]},
    "target_reward": {"target_reward": np.nan},
    "invalid must be": {"invalid": "skip"},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments(message):
    """At the call, before any work."""
    options = {"cond": batch(PROMPTS)[1], **WRONG[message]}
    if message.startswith(("prompt_ids must", "leading", "nfe must be an integer or")):
        options["cond"] = row(options["cond"], np.arange(3))
    with pytest.raises(ValueError, match=message):
        fs.batch(KEY, flow(), METHODS["svdd"], reward, **options)


@pytest.mark.slow
@pytest.mark.parametrize("outside", [False, True])
def test_conds_of_all_prompts_stay_on_the_host(outside):
    def model(params, x, t, cond):
        return params * x + cond["text"].mean(1, keepdims=True)

    def score(images, cond):
        return images.sum(1) - cond["text"][:, 0]

    cond = {"text": np.random.default_rng(0).normal(size=(23, 57)).astype(np.float32)}
    flow = fs.Flow.from_callable(model, jnp.ones(()), (3,))
    kernel = fs.kernels.ddim(fs.interpolants.linear())
    search = fs.search.svdd(nfe=12, kernel=kernel, grid=fs.grids.uniform(3))
    reward = fs.rewards.host(score) if outside else fs.rewards.device(score)
    for i, result in fs.batch(KEY, flow, search, reward, cond=cond, batch_size=4, slots=3):
        assert cond["text"].shape not in {array.shape for array in jax.live_arrays()}
        if i % 11 == 0:
            own = {"text": cond["text"][[i]]}
            alone = fs.run(KEY, flow, search, reward, cond=own, prompt_ids=[i])
            np.testing.assert_allclose(result.reward, alone.reward[0], rtol=1e-5)


@pytest.mark.slow
def test_a_list_of_keys_is_a_cond():
    def model(params, x, t, cond):
        return params * x + jax.vmap(jax.random.normal)(cond)[:, None]

    keys = jax.random.split(KEY, 3)
    flow = fs.Flow.from_callable(model, jnp.ones(()), (2,))
    search = fs.search.bon(nfe=4, kernel=fs.kernels.ddim(fs.interpolants.linear()), grid=(1.0, 0.0))
    reward = fs.rewards.device(lambda images, _: images[:, 0])
    found = dict(fs.batch(KEY, flow, search, reward, cond=list(keys)))
    lockstep = fs.run(KEY, flow, search, reward, cond=keys, prompt_ids=range(3))
    np.testing.assert_allclose([found[i].reward for i in range(3)], lockstep.reward, rtol=1e-5)
