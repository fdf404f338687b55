"""On meshes, what a run takes beside prompts: given noise and pictures, kernels that evaluate on
the way; devices in another order; and runs that go on with other devices than they began with."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from methods import ODE, assert_same
from problems import DIMENSION, GRID, SDE, VP, batch, flow, reward, row

import flowsde as fs

KEY = jax.random.key(6)
PROMPTS = 6
GLASS = fs.kernels.glass(VP, 3, rho=0.4)
NAMES = ("prompt", "particle")
SEARCHES = {
    "svdd": fs.search.svdd(
        nfe=121, kernel=GLASS, grid=GRID, finish_steps=4, value="ode", value_steps=2
    ),
    "smc": fs.search.smc(nfe=121, kernel=GLASS, grid=GRID, finish_steps=4, temperature=0.2),
    "halving": fs.search.halving(nfe=121, kernel=GLASS, grid=GRID, draft_steps=3, factor=3),
    "evolution": fs.search.evolution(
        nfe=121, kernel=GLASS, grid=GRID, children=3, parents=2, mutate_at=0.75, mutate_until=0.3
    ),
}
PLAIN = fs.search.rbf(nfe=41, kernel=SDE, grid=GRID, chains=2, seeds=2, width=3, finish_steps=4)
BEGUN = {
    "rbf": PLAIN,
    "pcn": fs.search.pcn(nfe=41, kernel=ODE, grid=GRID, chains=3),
    "zero order": fs.search.zero_order(nfe=41, kernel=ODE, grid=GRID, neighbours=3),
}


def mesh_of(*sizes, order=range(4)):
    devices = np.asarray(jax.devices())[list(order)][: np.prod(sizes)].reshape(sizes)
    return Mesh(devices, NAMES[: len(sizes)], axis_types=(AxisType.Auto,) * len(sizes))


def options():
    ids, cond = batch(PROMPTS, seed=2)
    return {"cond": cond, "prompt_ids": ids}


def go(search, how=fs.run, **others):
    return how(KEY, flow(), search, reward, **(options() | others))


@functools.cache
def alone(search):
    return go(search)


def same(result, other):
    result, other = (jax.device_get(one._replace(state=None)) for one in (result, other))
    assert_same(result, other, options()["cond"]["size"])


def same_each(found, lockstep):
    """Of a batch, each what its prompt finds in lock-step."""
    lockstep = jax.device_get(lockstep._replace(info=None, state=None))
    ids, cond = batch(PROMPTS, seed=2)
    assert sorted(found) == sorted(ids.tolist())
    for at, (i, size) in enumerate(zip(ids.tolist(), cond["size"], strict=True)):
        one, other = found[i], row(lockstep, at)
        assert one.nfe == other.nfe
        np.testing.assert_allclose(one.x0, other.x0, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(one.reward / size, other.reward / size, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", SEARCHES)
def test_evaluations_on_the_way(name):
    search = SEARCHES[name]
    for sizes in ((4,), (2, 2), (1, 4)):
        found = go(search, mesh=mesh_of(*sizes))
        same(found, alone(search))
        np.testing.assert_array_equal(found.info.charged.sum(0), found.nfe)
    packed = fs.batch(KEY, flow(), search, reward, mesh=mesh_of(2, 2), batch_size=3, **options())
    each = dict(packed)
    same_each(each, alone(search))
    computed = sum(one.evaluations for one in each.values())
    assert packed.totals.evaluations == computed + packed.totals.padding


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


GIVEN = {
    "noise of all": {"noise": normal(DIMENSION)},
    "noise of each": {"noise": normal(PROMPTS, DIMENSION)},
    "start and mask": {
        "start": normal(PROMPTS, DIMENSION, seed=1),
        "mask": np.asarray([True, False]),
        "noise": normal(PROMPTS, DIMENSION, seed=2),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BEGUN)
@pytest.mark.parametrize("given", GIVEN)
def test_what_particles_begin_from(name, given):
    search, given = BEGUN[name], GIVEN[given]
    wanted = go(search, **given)
    for sizes in ((4,), (2, 2)):
        same(go(search, mesh=mesh_of(*sizes), **given), wanted)
    on = {"mesh": mesh_of(2, 2), "batch_size": 3}
    same_each(dict(go(search, fs.batch, **on, **given)), wanted)
    if "mask" in given:
        np.testing.assert_array_equal(wanted.x0[:, 1], given["start"][:, 1])


@pytest.mark.slow
@pytest.mark.parametrize("order", [(3, 1, 2, 0), (1, 2, 3, 0)])
def test_devices_in_another_order(order):
    for sizes in ((4,), (2, 2), (1, 3)):
        mesh = mesh_of(*sizes, order=order)
        assert mesh.devices.flat[0].id == order[0]
        same(go(PLAIN, mesh=mesh), alone(PLAIN))
    same_each(dict(go(PLAIN, fs.batch, mesh=mesh_of(2, 2, order=order))), alone(PLAIN))


@pytest.mark.slow
@pytest.mark.parametrize("begun", [(2,), (2, 2), None])
def test_saved_on_a_mesh_and_gone_on_with_on_another(begun, tmp_path):
    """Written and read in between: of two devices, on four, in another order, and on one."""
    mesh = None if begun is None else mesh_of(*begun)
    first = next(go(PLAIN, fs.iterate, mesh=mesh, chunk_size=4))
    fs.save_search(tmp_path, PLAIN, first)
    for other in (mesh_of(4), mesh_of(2, 2, order=(3, 1, 2, 0)), mesh_of(1, 3), None):
        for saved in (first, fs.restore_search(tmp_path, PLAIN)):
            same(go(PLAIN, mesh=other, resume=saved), alone(PLAIN))


@pytest.mark.slow
@pytest.mark.parametrize("begun", [(2,), (1, 2), None])
def test_one_prompt_goes_on_with_other_devices(begun, tmp_path):
    """Without an axis of prompts, which a mesh has."""
    one = {"cond": row(options()["cond"], 2), "prompt_ids": None}
    first = next(go(PLAIN, fs.iterate, mesh=begun and mesh_of(*begun), **one))
    fs.save_search(tmp_path, PLAIN, first)
    wanted = jax.device_get(go(PLAIN, **one)._replace(state=None))
    for other in (mesh_of(4), mesh_of(1, 2), None):
        for saved in (first, fs.restore_search(tmp_path, PLAIN)):
            found = jax.device_get(go(PLAIN, mesh=other, resume=saved, **one)._replace(state=None))
            assert isinstance(found.nfe, int)
            assert_same(found, wanted, one["cond"]["size"])
