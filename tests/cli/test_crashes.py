"""Commands that die, or find the disk full, at every write and rename, and are resumed."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_in
from injection import Died, disk
from quick import slow

from flowsde.cli import main as cli
from flowsde.cli import plots, resume
from flowsde.shapes import verdict

SAMPLE = "--method bon --steps 1 --nfe 3 --width 1 --save-trajectory".split()
BATCH = "--method bon --steps 1 --nfe 2 --width 1 --batch-size 2".split()
MINE = {"search/7/thesis": "mine", "trace.npz": "mine", "unfinished.txt": "mine"}


class _Figure:
    """Drawn at once, of all that the real one shows."""

    def __init__(self, *shown: Any):
        self._shown = repr(shown)

    def savefig(self, path: Path, **_: Any) -> None:
        path.write_text(self._shown)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.use(monkeypatch.setattr)
    monkeypatch.setattr(resume, "EVERY", 0.0)
    # Three quarters of a run: reading the words of a command, looking at pictures, and drawing.
    parse = functools.cache(lambda args, parse=cli._parse: parse(list(args)))
    monkeypatch.setattr(cli, "_parse", lambda args: parse(tuple(args)))
    seen = {"exact": False, "rss": 1.0, "counts": {}, "unclear": 0}
    monkeypatch.setattr(verdict, "judge", lambda *_: seen)
    monkeypatch.setattr(plots, "path_figure", lambda title, trace, *_: _Figure(title, trace.shots))
    monkeypatch.setattr(plots, "search_figure", lambda title, *_: _Figure(title))


def _tree(out: Path) -> dict[str, Any]:
    """All that lies in a folder, but for the seconds that it took."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.is_dir():
            found[name] = None
        elif path.name in ("result.json", "batch.json"):
            found[name] = json.loads(path.read_text())
            found[name].pop("seconds", None)
            found[name].pop("runs", None)
            for timing in ("evaluations", "verifier_calls", "occupancy"):
                found[name].pop(timing, None)
        elif path.name == "trajectory.npz":
            with np.load(path) as file:
                found[name] = {key: file[key].tolist() for key in file if key != "seconds"}
        else:
            found[name] = path.read_bytes()
    return found


def _begin(out: Path) -> None:
    """A folder in which the user has files."""
    for name, content in MINE.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(content)


def _sample(out: Path, *more: str) -> None:
    cli.main(["sample", "two green triangles", *SAMPLE, "--out", str(out), *more])


def _batch(out: Path, *more: str) -> None:
    prompts = out.parent / "prompts.txt"
    prompts.write_text("one red circle\ntwo green squares\n")
    cli.main(["batch", "--prompts-file", str(prompts), *BATCH, "--out", str(out), *more])


def _shared(out: Path, *more: str) -> None:
    _batch(out, "--total-nfe", "6", "--target-reward", "10", *more)


def _whole(command: Callable[..., None], tmp_path: Path) -> tuple[dict[str, Any], int]:
    """What an unbroken run leaves, and how many points it passes, once it is compiled."""
    for name in ("compiling", "whole"):
        whole = tmp_path / name
        _begin(whole)
        with disk(whole) as counted:
            command(whole)
    found = _tree(whole)
    assert set(MINE) <= set(found) and ".flowsde" not in found
    return found, counted.points


@pytest.mark.parametrize(("command", "each"), [slow(_sample, 1), slow(_batch, 1), slow(_shared, 3)])
def test_dies_at_every_write_and_is_resumed(
    command: Callable[..., None], each: int, tmp_path: Path
) -> None:
    expected, points = _whole(command, tmp_path)
    assert points > 100
    for at in range(0, points, each):
        out = tmp_path / f"died-{at}"
        _begin(out)
        with disk(out, dies_at=at), pytest.raises(Died):
            command(out)
        command(out)
        assert _tree(out) == expected, at


@pytest.mark.slow
@pytest.mark.parametrize(("command", "each"), [(_sample, 2), (_batch, 4)])
def test_finds_the_disk_full_at_every_write_and_is_resumed(
    command: Callable[..., None], each: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, points = _whole(command, tmp_path)
    failed = 0
    for at in range(0, points, each):
        out = tmp_path / f"full-{at}"
        _begin(out)
        capsys.readouterr()
        try:
            with disk(out, full_from=at):
                command(out)
        except SystemExit as stop:
            failed += 1
            # Before any work, or in it.
            assert stop.code in (1, 2)
            said = capsys.readouterr().err.splitlines()[-1]
            assert said.startswith("flowsde ") and "No space left on device" in said
        command(out)
        assert _tree(out) == expected, at
    assert failed > points // each // 2
