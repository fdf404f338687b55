"""Programs are compiled once, also where parameters are committed to a device, and together."""

import collections
import logging
import re
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from problems import GRID, SDE, host_reward, reward, traced, velocity
from problems import batch as some_prompts

import flowsde as fs
from flowsde.runner import compiling
from flowsde.runner.mesh import ALONE

SEARCH = fs.search.svdd(nfe=24, kernel=SDE, grid=GRID, finish_steps=2)
KEY = jax.random.key(3)


def model(where):
    scale = jnp.ones((), jnp.float32)
    scale = scale if where is None else jax.device_put(scale, where)
    return fs.Flow.from_callable(velocity, {"scale": scale}, (2,))


def compiled(caplog, do):
    """How often each program of more than one operation was compiled."""
    jax.clear_caches()
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        result = do()
    names = re.findall(r"Compiling jit\((\w+)\)", caplog.text)
    own = ("ask", "evaluate_model", "evaluate_reward", "tell", "answer", "advance")
    own += ("evaluate", "evaluate_and_show", "scored", "run_rounds", "empty")
    return result, {name: n for name, n in collections.Counter(names).items() if name in own}


@pytest.mark.slow_but_one
@pytest.mark.parametrize("way", ["iterate", "run", "resume", "batch", "seconds", "batch seconds"])
@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("mesh", [False, True])
def test_what_a_round_gives_lies_where_the_first_found_it(mesh, outside, way, caplog):
    """On the device that parameters are committed to, as `fs.load` gives them; or on a mesh."""
    device = None if mesh else jax.devices()[1]
    score = fs.rewards.host(host_reward) if outside else reward
    ids, cond = some_prompts(4)
    args = (KEY, model(device), SEARCH, score)
    told = {"cond": cond, "prompt_ids": ids}
    if mesh:
        axes = (AxisType.Auto, AxisType.Auto)
        told["mesh"] = jax.make_mesh((2, 2), ("prompt", "particle"), axes)
    ways = {
        "run": lambda: fs.run(*args, **told),
        "iterate": lambda: [*fs.iterate(*args, **told)][-1],
        "resume": lambda: [*fs.iterate(*args, **told, resume=first)][-1],
        "seconds": lambda: [*fs.iterate(*args, **told, seconds=60.0)][-1],
        "batch": lambda: dict(fs.batch(*args, **told, batch_size=3)),
        "batch seconds": lambda: dict(fs.batch(*args, **told, batch_size=3, seconds=60.0)),
    }
    first = next(fs.iterate(*args, **told)) if way == "resume" else None
    result, counts = compiled(caplog, ways[way])
    assert counts and set(counts.values()) == {1}, counts
    images = [one.image for one in result.values()] if isinstance(result, dict) else [result.image]
    assert mesh or all(image.devices() == {device} for image in images)


def test_compiled_together_is_what_is_called(caplog):
    def twice(x):
        return jnp.sin(2.0 * x)

    def both(x, y):
        return x @ y

    x = jnp.ones((4, 4))
    programs = jax.jit(twice), jax.jit(both)
    shape = compiling.results_of(programs[0], ALONE, x)
    compiling.compile_all([(programs[0], (x,)), (programs[1], (shape, x))])
    caplog.clear()
    with jax.log_compiles():
        y = programs[1](programs[0](x), x)
    assert "Compiling" not in caplog.text and "XLA compilation" not in caplog.text
    assert y.shape == (4, 4)


@pytest.mark.parametrize("late", ["lower", "compile"])
def test_an_error_does_not_wait_for_what_compiles(late, monkeypatch):
    monkeypatch.setattr(compiling.os, "cpu_count", lambda: 8)
    go_on, ended = threading.Event(), threading.Event()

    def slow():
        go_on.wait(10.0)
        ended.set()

    def fail(*_):
        raise ValueError("this one")

    first = SimpleNamespace(lower=lambda: SimpleNamespace(compile=slow))
    lower = fail if late == "lower" else lambda: SimpleNamespace(compile=fail)
    try:
        with pytest.raises(ValueError, match="this one"):
            compiling.compile_all([(first, ()), (SimpleNamespace(lower=lower), ())])
        assert not ended.is_set()
    finally:
        go_on.set()


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(4,), (2, 2), None], ids=["prompts", "particles", "alone"])
def test_model_and_reward_are_traced_once(mesh):
    """The check before a run and the run share the trace, on a mesh too, and in batches that the
    prompts do not fill."""
    counted_velocity, counted_reward, traces = traced()
    ids, cond = some_prompts(4)
    told = {"cond": cond, "prompt_ids": ids}
    if mesh is not None:
        axes = ("prompt", "particle")[: len(mesh)]
        told["mesh"] = jax.make_mesh(mesh, axes, (AxisType.Auto,) * len(mesh))
    flow = fs.Flow.from_callable(counted_velocity, {"scale": jnp.ones((), jnp.float32)}, (2,))
    for way in (fs.run, fs.iterate, fs.batch):
        jax.clear_caches()
        traces.update(model=0, reward=0)
        found = way(KEY, flow, SEARCH, counted_reward, **told)
        assert found if way is fs.run else list(found)
        assert traces == {"model": 1, "reward": 1}, way


@pytest.mark.slow
def test_what_is_told_may_be_committed_alone(caplog):
    """And models to one device each, which is refused."""
    ids, cond = some_prompts(4)
    told = {"cond": jax.device_put(cond, jax.devices()[2]), "prompt_ids": ids}
    result, counts = compiled(
        caplog, lambda: [*fs.iterate(KEY, model(None), SEARCH, reward, **told)][-1]
    )
    assert set(counts.values()) == {1} and result.image.devices() == {jax.devices()[2]}
    elsewhere = fs.rewards.device(
        jax.tree_util.Partial(
            lambda scale, images, cond: scale * images[:, 0],
            jax.device_put(jnp.ones(()), jax.devices()[1]),
        )
    )
    with pytest.raises(ValueError, match="committed to different devices, cpu:2 and cpu:1"):
        fs.run(KEY, model(jax.devices()[2]), SEARCH, elsewhere, **told)
