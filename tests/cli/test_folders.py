"""Folders that hold a user's own files, another process's run, or an earlier version's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import stand_in
from refusing import refused

import flowsde as fs
from flowsde import _own, shapes
from flowsde.cli import main as cli
from flowsde.cli import resume, sample
from flowsde.cli.errors import CommandError

SAMPLE = ["sample", "two green triangles", "--method", "ode", "--steps", "2"]
BATCH = ["batch", "--method", "ode", "--steps", "2", "--prompts-file"]
COMPARE = "compare --methods ode --nfe 2 --prompts 1 --seeds 1 --steps 2".split()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.use(monkeypatch.setattr)


def _commands(tmp_path: Path, out: Path) -> dict[str, list[str]]:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one red circle\n")
    return {
        "sample": [*SAMPLE, "--out", str(out)],
        "batch": [*BATCH, str(prompts), "--out", str(out)],
        "compare": [*COMPARE, "--out", str(out)],
    }


def _read(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_files_of_the_users_are_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in (
        "search/1/t",
        "search/000000001.npz",
        "trace.npz",
        "parts/a.npz",
        "tmp/t",
        "2024/t",
    ):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    before = _read(out)
    for args in _commands(tmp_path, out).values():
        cli.main([*args, "--overwrite"])
    assert before.items() <= _read(out).items()


@pytest.mark.slow
def test_a_saved_search_lies_beside_what_is_there(tmp_path: Path) -> None:
    for name in ("1", "2", "7", "2024"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis").write_text("mine")
    before = _read(tmp_path)
    kernel = fs.kernels.ode_euler(fs.interpolants.linear())
    search = fs.search.bon(nfe=4, kernel=kernel, grid=fs.grids.uniform(2))
    data = fs.analytic.mixture([1.0], [[0.0, 0.0]], 0.1)
    for result in fs.iterate(jax.random.key(0), data.flow(), search, lambda x, c: -(x[:, 0] ** 2)):
        fs.save_search(tmp_path, search, result)
    saved = fs.restore_search(tmp_path, search)
    assert saved.nfe == result.nfe and saved.reward == result.reward
    after = _read(tmp_path)
    assert before.items() <= after.items()
    assert all(name.startswith(".flowsde/") for name in after.keys() - before.keys())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("sample", "image.png"),
        ("sample", "path.png"),
        ("batch", "sheet.png"),
        ("batch", "one-red-circle/image.png"),
        ("compare", "compare.html"),
        ("compare", "accuracy.png"),
    ],
)
def test_files_with_the_names_of_results_are_refused(
    command: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    args = _commands(tmp_path, out)[command]
    with monkeypatch.context() as patch:
        patch.setattr(shapes, "load_flow", lambda *_: pytest.fail("the model was loaded"))
        said = refused(capsys, *args)
    assert f"{out / name} already exists and is not a result of flowsde's" in said
    assert _read(out) == {name: b"mine"}
    cli.main([*args, "--overwrite"])
    assert (out / name).read_bytes() != b"mine"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["sample", "batch", "compare"])
def test_a_second_process_is_refused_and_changes_nothing(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The kernel's lock is of an open file: another in this process is as good as another's."""
    out = tmp_path / "out"
    args = _commands(tmp_path, out)[command]
    with _own.locked(out) as hidden:
        (hidden / "unfinished.json").write_text("{}")
        before = _read(out)
        for more in ([], ["--overwrite"]):
            said = refused(capsys, *args, *more)
            assert f"another flowsde process is writing to {out}" in said
        assert _read(out) == before
        (hidden / "unfinished.json").unlink()
    cli.main(args)
    left = {path.name for path in out.iterdir()}
    assert (".flowsde" in left) == (command == "compare")


@pytest.mark.slow
def test_a_run_of_another_process_meanwhile_is_not_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends between what this process has read and its turn."""
    args = [*SAMPLE, "--out", str(tmp_path)]
    jobs = sample.prepare(cli._parse(args))
    cli.main(args)
    before = _read(tmp_path)
    with pytest.raises(CommandError, match="another flowsde process has written to"):
        sample.run_all(jobs)
    assert _read(tmp_path) == before


@pytest.mark.slow
def test_an_unfinished_run_of_an_earlier_version_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "search").mkdir()
    (tmp_path / "unfinished.json").write_text(json.dumps({"begins": [0], "saves": [[0, 0.0]]}))
    args = [*SAMPLE, "--out", str(tmp_path)]
    assert "of an earlier version of flowsde, which this one cannot resume" in refused(
        capsys, *args
    )
    cli.main([*args, "--overwrite"])
    # One that it finished is one.
    capsys.readouterr()
    cli.main(args)
    assert f"{tmp_path} is already complete" in capsys.readouterr().out


@pytest.mark.slow
def test_resuming_a_finished_search_records_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill after the last save, before there is a result."""

    class Killed(BaseException):
        pass

    def die(*_: Any) -> None:
        raise Killed

    args: Callable[[str], list[str]]
    args = lambda name: [  # noqa: E731
        "sample", "two green triangles", "--method", "rbf", "--steps", "3", "--nfe", "17",
        "--finish-steps", "2", "--save-trajectory", "--out", str(tmp_path / name),
    ]  # fmt: skip
    monkeypatch.setattr(resume, "EVERY", 0.0)
    cli.main(args("whole"))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(sample, "_write", die)
        cli.main(args("killed"))
    cli.main(args("killed"))
    whole, killed = _read(tmp_path / "whole"), _read(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    for name in ("path.png", "image.png"):
        assert whole[name] == killed[name]
    with np.load(tmp_path / "whole/trajectory.npz") as one:
        with np.load(tmp_path / "killed/trajectory.npz") as other:
            for name in set(one) - {"seconds"}:
                np.testing.assert_array_equal(one[name], other[name], name)
