"""Batches whose rows are split over a mesh: the same results, every row counted where it is."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from methods import METHODS, also
from problems import GRID, SDE, batch, decode, flow, host_reward, reward, row

import flowsde as fs
from flowsde.runner import chunks
from flowsde.runner.packed import engine, steps

KEY = jax.random.key(6)
PROMPTS = 7
NAMES = ("prompt", "particle", "model")


def mesh_of(*sizes):
    return jax.make_mesh(sizes, NAMES[: len(sizes)], (AxisType.Auto,) * len(sizes))


def given(search):
    ids, cond = batch(PROMPTS, seed=2)
    return {"cond": cond, "prompt_ids": ids} | also(search)


def packed(search, score=reward, **options):
    """Results by id, of each the same fields as of a run, and totals."""
    found = fs.batch(KEY, flow(), search, score, **(given(search) | options))
    return dict(found), found.totals


@functools.cache
def alone(name):
    """In lock-step, on one device."""
    return fs.run(KEY, flow(), METHODS[name], reward, **given(METHODS[name]))


def assert_are(found, name):
    """What runs alone find: waves that grew have a surplus, on which nothing else depends."""
    ids, cond = batch(PROMPTS, seed=2)
    assert set(found) == set(ids.tolist())
    lockstep = jax.device_get(alone(name)._replace(info=None, state=None))
    for at, (i, size) in enumerate(zip(ids.tolist(), cond["size"], strict=True)):
        one, other = found[i], row(lockstep, at)
        assert (one.nfe, one.t) == (other.nfe, other.t)
        for field in ("x", "x0", "image"):
            a, b = getattr(one, field), getattr(other, field)
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=field)
        np.testing.assert_allclose(one.reward / size, other.reward / size, atol=1e-5)


def assert_adds_up(found, totals):
    computed = sum(one.evaluations for one in found.values())
    assert totals.evaluations == computed + totals.padding
    assert totals.nfe == sum(one.nfe for one in found.values())
    assert totals.surplus == computed - totals.nfe


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rbf", "smc", "halving", "guided halving, rungs", "dts", "lidar"])
def test_prompts_on_a_mesh_are_prompts_alone(name):
    """Split over both axes, and over one of three devices, which slots do not share evenly."""
    for sizes in ((2, 2), (3,)):
        found, totals = packed(METHODS[name], mesh=mesh_of(*sizes), batch_size=3)
        assert_are(found, name)
        assert_adds_up(found, totals)


@pytest.mark.slow
@pytest.mark.parametrize("large", [False, True])
def test_the_devices_compute_what_is_counted(large, monkeypatch):
    """Rows of every device; guidance costs two, and looking ahead two more where it is done."""
    for limit in ("LARGE", "TINY"):
        monkeypatch.setattr(chunks, limit, 0 if large else getattr(chunks, limit))
    jax.clear_caches()
    seen = []

    def counting(params, x, t, cond):
        jax.debug.callback(lambda t: seen.append(t.shape[0]), t)
        return params * x + cond[:, None]

    inner = fs.Flow.from_callable(counting, jnp.float32(0.7), (2,))
    guided = fs.guide(inner, 2.0, jnp.float32(0.0))
    search = fs.search.svdd(
        nfe=60, kernel=SDE, grid=GRID, finish_steps=3, value="ode", value_steps=2
    )
    results = fs.batch(
        KEY, guided, search, lambda images, cond: jnp.sin(3.0 * images[:, 0]),
        cond=[np.float32(c) for c in np.linspace(-1, 1, 9)], batch_size=3, target_reward=0.9,
        mesh=mesh_of(2, 2),
    )  # fmt: skip
    found = dict(results)
    jax.effects_barrier()
    totals = results.totals
    assert sum(seen) == totals.evaluations == totals.nfe + totals.surplus + totals.padding
    assert set(seen) == ({24, 16} if large else {24}), "of four devices, guided"
    assert sum(one.nfe for one in found.values()) == totals.nfe


@pytest.mark.slow
@pytest.mark.parametrize("latents", [False, True])
def test_a_reward_outside_jax(latents):
    def score(shown, cond):
        return host_reward(np.asarray(decode(shown)) if latents else shown, cond)

    hosted = fs.rewards.host(score, minibatch=3, latents=latents)
    found, totals = packed(METHODS["rbf"], hosted, mesh=mesh_of(2, 2), batch_size=2)
    assert_are(found, "rbf")
    assert_adds_up(found, totals)


@pytest.mark.slow
def test_a_shared_budget_and_one_in_seconds():
    on = {"mesh": mesh_of(2, 2), "batch_size": 2}
    budget = {"target_reward": 0.4, "total_nfe": 41 * PROMPTS}
    (found, totals), (wanted, _) = (packed(METHODS["smc"], **budget, **own) for own in (on, {}))
    assert totals.nfe <= 41 * PROMPTS
    assert {i: one.nfe for i, one in found.items()} == {i: one.nfe for i, one in wanted.items()}
    for i, one in found.items():
        np.testing.assert_allclose(one.x, wanted[i].x, rtol=1e-5, atol=1e-5)
    found, totals = packed(METHODS["smc"], seconds=600, **on)
    assert set(found) == set(given(METHODS["smc"])["prompt_ids"].tolist())
    assert {one.timing.nfe for one in found.values()} == {41}, "enough for all"


@pytest.mark.slow
def test_devices_do_alike_what_is_not_evaluating(monkeypatch):
    """Between two batches nothing is exchanged but what a batch was worth."""
    compiled = []

    def noting(*args, **options):
        if not compiled:
            compiled.append(steps.advance.lower(*args, **options).compile().as_text())
        return steps.advance(*args, **options)

    monkeypatch.setattr(engine, "advance", noting)
    packed(METHODS["smc"], mesh=mesh_of(2, 2), batch_size=2)
    kinds = re.findall(r" (all-[a-z]+|collective-[a-z]+|reduce-scatter)[-a-z]*\(", compiled[0])
    assert set(kinds) <= {"all-gather"}


@pytest.mark.slow
def test_what_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match="mesh axis 'other' of 2 devices splits neither"):
        packed(METHODS["smc"], mesh=jax.make_mesh((2,), ("other",), (AxisType.Auto,)))
    with pytest.raises(ValueError, match="expected a mesh with them"):
        packed(METHODS["smc"], rules=fs.ShardingRules())
