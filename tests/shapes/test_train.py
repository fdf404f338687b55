"""A run that dies continues bit for bit, whatever is trained."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flowsde import Flow
from flowsde.shapes import data
from flowsde.shapes.flow_task import flow_task
from flowsde.shapes.model import ModelConfig
from flowsde.shapes.scorer import ScorerConfig
from flowsde.shapes.scorer_task import scorer_task
from flowsde.shapes.train import Task, TrainConfig, fit, latest, optimizer

CONFIG = TrainConfig(steps=6, batch_size=4, warmup=2, log_every=2, save_every=2)


class Killed(Exception):
    """What ends a run in these tests."""


def _still(params: Any, x: jax.Array, t: jax.Array, cond: jax.Array) -> jax.Array:
    return x


def _scorer() -> Task:
    flow = Flow.from_callable(_still, None, (32, 32, 3))
    return scorer_task(ScorerConfig(width=8, depth=1, hidden=8), flow)


def _flow() -> Task:
    return flow_task(ModelConfig(width=16, depth=1, heads=2, stem=4))._replace(sheet=None)


def _line() -> Task:
    """A regression from noisy colours to themselves: compiles at once."""

    def init(key: jax.Array) -> Any:
        return {"linear": {"kernel": jax.random.normal(key, (3, 3), jnp.float32)}}

    def loss(params: Any, key: jax.Array, scenes: data.Scenes) -> jax.Array:
        noise = jax.random.normal(key, scenes.images.shape, jnp.float32)
        guess = (scenes.images + noise) @ params["linear"]["kernel"]
        return jnp.mean(jnp.square(guess - scenes.images))

    return Task("line", init, loss)


def _mortal(task: Task, last: int) -> Task:
    """The same task, but its run dies before step `last`."""

    def batch(seed: int, step: int, size: int) -> Any:
        if step >= last:
            raise Killed
        return task.batch(seed, step, size)

    return task._replace(batch=batch)


@pytest.mark.slow
@pytest.mark.parametrize("make", [_line, *(make for make in (_scorer, _flow))])
def test_a_killed_run_continues_exactly(make: Callable[[], Task], tmp_path: Path) -> None:
    task = make()
    whole = fit(task, CONFIG, tmp_path / "whole")
    with pytest.raises(Killed):
        fit(_mortal(task, last=5), CONFIG, tmp_path / "killed")
    continued = fit(task, CONFIG, tmp_path / "killed")
    chex.assert_trees_all_equal(whole, continued)
    logs = [(tmp_path / run / "log.jsonl").read_text() for run in ("whole", "killed")]
    rows = [[json.loads(line) for line in log.splitlines()] for log in logs]
    assert [r["step"] for r in rows[0]] == [2, 4, 6]
    assert [(r["step"], r["loss"]) for r in rows[0]] == [(r["step"], r["loss"]) for r in rows[1]]
    # A finished run is not trained again.
    again = fit(_mortal(task, last=0), CONFIG, tmp_path / "whole")
    chex.assert_trees_all_equal(whole, again)


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        fit(_mortal(_line(), last=0), CONFIG, tmp_path)
    with pytest.raises(ValueError, match="holds another run, of steps 6, not 7; expected another"):
        fit(_line(), dataclasses.replace(CONFIG, steps=7), tmp_path)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    def diverging(params: Any, key: jax.Array, batch: Any) -> jax.Array:
        return jnp.nan * params["linear"]["kernel"].sum()

    task = _line()._replace(loss=diverging)
    late, soon = dataclasses.replace(CONFIG, log_every=100), CONFIG
    for config, said in ((late, "weights are not finite after step 2"), (soon, "the loss is nan")):
        out = tmp_path / str(config.log_every)
        with pytest.raises(FloatingPointError, match=f"{said}.*; training has diverged"):
            fit(task, config, out)
        assert latest(task, config, out) is None


@pytest.mark.slow
def test_a_run_is_begun_anew_when_asked_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = fit(_line(), CONFIG, tmp_path / "whole")
    out, other = tmp_path / "out", dataclasses.replace(CONFIG, steps=4, seed=7)
    fit(_line(), other, out)
    for name in ("sheet_000004.png", "line.safetensors"):
        (out / name).write_text("of the former run")
    capsys.readouterr()
    anew = fit(_line(), CONFIG, out, overwrite=True)
    assert capsys.readouterr().out == f"discard the run in {out} at step 4\n"
    chex.assert_trees_all_equal(whole, anew)
    assert sorted(path.name for path in out.iterdir()) == [".flowsde", "log.jsonl"]
    again = fit(_mortal(_line(), last=0), CONFIG, out)
    chex.assert_trees_all_equal(whole, again)
    # Of others nothing is discarded.
    own = tmp_path / "own"
    own.mkdir()
    (own / "log.jsonl").write_text("mine")
    with pytest.raises(ValueError, match="is not of flowsde's"):
        fit(_line(), CONFIG, own, overwrite=True)
    assert (own / "log.jsonl").read_text() == "mine"


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    for name in ("log.jsonl", "line.safetensors", "sheet_000500.png"):
        own = tmp_path / name / "run"
        own.mkdir(parents=True)
        (own / name).write_text("mine\n" * 999)
        with pytest.raises(ValueError, match=f"{name} is not of flowsde's"):
            fit(_line(), CONFIG, own)
        assert (own / name).read_text() == "mine\n" * 999
        assert [path.name for path in own.iterdir()] == [name]
    old = tmp_path / "old"
    (old / "checkpoints").mkdir(parents=True)
    (old / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a run of an earlier version"):
        fit(_line(), CONFIG, old)


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", ["log.jsonl", ".flowsde/config.json", ".flowsde/checkpoints/000000001.npz", "all"]
)
def test_torn_files_do_not_lock_a_run(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut in the middle, or emptied: the run goes on from what is whole."""
    whole = fit(_line(), CONFIG, tmp_path / "whole")
    out = tmp_path / "torn"
    with pytest.raises(Killed):
        fit(_mortal(_line(), last=5), CONFIG, out)
    torn = [out / damage] if damage != "all" else [p for p in out.rglob("*") if p.is_file()]
    for path in torn:
        if path.name not in ("FLOWSDE.TAG", "lock"):
            path.write_bytes(path.read_bytes()[: -path.stat().st_size // 2])
    capsys.readouterr()
    continued = fit(_line(), CONFIG, out)
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("flowsde train: ")]
    assert len(lines) == {"all": 2, ".flowsde/checkpoints/000000001.npz": 1}.get(damage, 0)
    jax.tree.map(np.testing.assert_array_equal, whole, continued)
    logs = [(tmp_path / run / "log.jsonl").read_text() for run in ("whole", "torn")]
    rows = [[json.loads(line) for line in log.splitlines()] for log in logs]
    assert [(r["step"], r["loss"]) for r in rows[0]] == [(r["step"], r["loss"]) for r in rows[1]]


@pytest.mark.slow
def test_adam_alone_updates_networks_without_blocks() -> None:
    config = TrainConfig(steps=10, warmup=1, clip=1e9)
    peak = optax.warmup_cosine_decay_schedule(0.0, config.adam_learning_rate, 1, config.steps)
    params = {"linear": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}
    grads = jax.tree.map(lambda x: 0.1 + 0.2 * x, params)
    with jax.numpy_dtype_promotion("standard"):
        runs = []
        for tx in (optimizer(config), optax.adam(peak, nesterov=True)):
            state, updates = tx.init(params), None
            for _ in range(3):
                updates, state = tx.update(grads, state, params)
            runs.append(updates)
    assert all(bool((u != 0).all()) for u in jax.tree.leaves(runs[1]))
    chex.assert_trees_all_close(*runs, rtol=1e-5)
