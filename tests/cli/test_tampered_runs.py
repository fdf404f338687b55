"""Files of ours that were tampered with: the same result, or one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tampering import tamper
from test_crashes import _batch, _sample, _shared, _tree, small

import flowsde as fs
from flowsde.cli import main as cli
from flowsde.cli.compare import command as comparing
from flowsde.shapes.train import Task, TrainConfig, fit

assert small
COMPARE = "compare --methods bon --nfe 2 --prompts 2 --seeds 1 --steps 1".split()


def _compare(out: Path, *more: str) -> None:
    cli.main([*COMPARE, "--out", str(out), *more])


def _stop(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def _interrupted(command: Callable[..., None], out: Path, where: str) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(where, _stop)
        command(out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "where", "times"),
    [
        (_sample, None, 15),
        (_sample, "flowsde.cli.sample._write", 40),
        (_batch, None, 15),
        (_shared, "flowsde.cli.batch_folder.Folder.end_attempts", 30),
        (_compare, None, 20),
    ],
    ids=["sample", "unfinished sample", "batch", "unfinished batch", "compare"],
)
def test_commands(
    command: Callable[..., None],
    where: str | None,
    times: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(comparing, "figure", lambda *_: None)
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
    whole, begun = tmp_path / "whole", tmp_path / "begun"
    command(whole)
    expected = _results(whole)
    if where is None:
        shutil.copytree(whole, begun)
    else:
        _interrupted(command, begun, where)
    refused = 0
    for seed in range(times):
        out = tmp_path / str(seed)
        shutil.copytree(begun, out)
        done = tamper(out, np.random.default_rng(seed))
        # What is finished is left as it is.
        damaged = {n: (out / n).read_bytes() for n in expected if (out / n).is_file()}
        capsys.readouterr()
        try:
            command(out)
        except SystemExit as stop:
            refused += 1
            # Before any work, or once a prompt's turn has come.
            assert stop.code in (1, 2), done
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("flowsde ") and len(line) < 1000 and "\x1b" not in line, done
            continue
        after = {name: (out / name).read_bytes() for name in expected}
        if command is _compare or not damaged.items() <= after.items():
            assert _results(out) == expected, done
    assert refused < times


def _results(out: Path) -> dict[str, Any]:
    """What a command is asked for, but for seconds."""
    if (out / "compare.json").exists():
        values = json.loads((out / "compare.json").read_text())
        for row in values["rows"]:
            del row["seconds"]
        return {"compare.json": values}
    every = _tree(out)
    return {name: every[name] for name in every if name.endswith(("result.json", "image.png"))}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*going on from the save before it")
def test_saved_searches(tmp_path: Path) -> None:
    kernel = fs.kernels.euler_maruyama(fs.interpolants.vp(), fs.diffusion.square(3.0))
    search = fs.search.rbf(nfe=9, kernel=kernel, grid=fs.grids.uniform(3), finish="mean")
    flow = fs.analytic.mixture([1.0], [[0.0, 0.0]], 0.1).flow()
    reward = lambda x, _: -(x[:, 0] ** 2)  # noqa: E731
    every = list(fs.iterate(jax.random.key(0), flow, search, reward))
    for result in every[1:4]:
        fs.save_search(tmp_path / "saved", search, result)
    known = {r.nfe: r for r in every}
    read = 0
    for seed in range(50):
        out = tmp_path / str(seed)
        shutil.copytree(tmp_path / "saved", out)
        done = tamper(out, np.random.default_rng(seed))
        try:
            found = fs.restore_search(out, search)
        except (ValueError, FileNotFoundError) as error:
            assert len(str(error)) < 1000, done
            continue
        read += 1
        wanted = known[found.nfe]
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            if not jax.dtypes.issubdtype(getattr(one, "dtype", float), jax.dtypes.prng_key):
                np.testing.assert_array_equal(one, other, done)
    assert read > 25


@pytest.mark.slow
def test_training_runs(tmp_path: Path) -> None:
    def init(key: jax.Array) -> Any:
        return {"linear": {"kernel": jax.random.normal(key, (3, 3), jnp.float32)}}

    def loss(params: Any, key: jax.Array, batch: Any) -> jax.Array:
        return jnp.mean(jnp.square(batch @ params["linear"]["kernel"]))

    def batch(seed: int, step: int, size: int) -> Any:
        return np.random.default_rng((seed, step)).normal(size=(size, 3)).astype(np.float32)

    task = Task("line", init, loss, batch=batch)
    config = TrainConfig(steps=4, batch_size=2, warmup=1, log_every=1, save_every=1)
    expected = fit(task, config, tmp_path / "whole")
    went_on = 0
    for seed in range(20):
        out = tmp_path / str(seed)
        shutil.copytree(tmp_path / "whole", out)
        done = tamper(out, np.random.default_rng(seed))
        try:
            found = fit(task, config, out)
        except ValueError as error:
            assert len(str(error)) < 1000, done
            continue
        went_on += 1
        jax.tree.map(np.testing.assert_array_equal, expected, found)
    assert went_on > 10
