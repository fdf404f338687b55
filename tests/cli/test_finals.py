"""`--tournament`: answers that were kept, compared in pairs after the search."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_in
from PIL import Image

from flowsde import _version
from flowsde.cli import main as cli
from flowsde.cli.errors import CommandError
from flowsde.cli.finals import Finals

FUNCTIONS = """
from pathlib import Path

def brighter(a, b, prompt):
    if Path("down").exists():
        raise RuntimeError("out of service")
    with open("asked.txt", "a") as file:
        file.write(f"{prompt}: {len(a)}\\n")
    return a.mean((1, 2, 3)) > b.mean((1, 2, 3))

def darker(a, b, prompt):
    return 1.0 - brighter(a, b, prompt)
"""
LEVELS = (90, 10, 200, 40)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with functions that compare."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("compares", None)
    (tmp_path / "compares.py").write_text(FUNCTIONS)
    return tmp_path


def _result(folder: Path, prompt: str = "a cat") -> Path:
    """A finished result with four pictures of different brightness."""
    folder.mkdir()
    names = ["image.png", *(f"image-{i}.png" for i in range(2, len(LEVELS) + 1))]
    for name, level in zip(names, LEVELS, strict=True):
        Image.new("RGB", (8, 8), (level,) * 3).save(folder / name)
    kept = [{"image": name, "reward": -float(i)} for i, name in enumerate(names)]
    counts = dict.fromkeys(("nfe", "evaluations", "backward_passes", "verifier_calls"), 1)
    about = {"prompt": prompt, "method": "bon", "seed": 3, "settings": {}}
    values = about | counts | {"version": _version.__version__, "reward": 0.0, "kept": kept}
    values["seconds"] = {"total": 1.0}
    (folder / "result.json").write_text(json.dumps(values))
    return folder


def _read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def _asked(here: Path) -> int:
    """Pairs so far."""
    lines = (here / "asked.txt").read_text().splitlines()
    return sum(int(line.rpartition(": ")[2]) for line in lines)


def test_the_ranking_is_that_of_the_pictures(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [_result(here / name, name) for name in ("one", "two")]
    before = _read(folders[0])
    # Everyone meets everyone: the order is that of brightness.
    finals = Finals("compares:brighter", 4, 3)
    finals.announce(len(finals.lacking(folders)))
    assert "6 pairs at most, of 2 prompts 12, asked of compares:brighter" in capsys.readouterr().out
    finals.report(folders)
    assert "winner  image-3.png after 6 pairs" in capsys.readouterr().out
    assert _asked(here) == 12 and "two: 2" in (here / "asked.txt").read_text()
    after = _read(folders[0])
    own = after.pop("tournament")
    assert after == before
    assert own["ranking"] == ["image-3.png", "image.png", "image-4.png", "image-2.png"]
    assert own["winner"] == "image-3.png" and own["calls"] == 6
    assert own["strength"] == sorted(own["strength"], reverse=True)
    for (first, second), outcome in zip(own["pairs"], own["outcome"], strict=True):
        assert outcome == float(LEVELS[first - 1] > LEVELS[second - 1])
    # Once is enough, and another judge, or number of rounds, is another tournament.
    Finals("compares:brighter", 4, 3).add(folders)
    assert _asked(here) == 12
    with pytest.raises(ValueError, match="of judge compares:brighter, not compares:darker; expect"):
        Finals("compares:darker", 4, 3).add(folders)
    with pytest.raises(ValueError, match="of --tournament-rounds 3, not None; expected another"):
        Finals("compares:brighter", 4).lacking(folders)


def test_a_judge_that_fails_loses_nothing(here: Path) -> None:
    folder = _result(here / "one")
    finals = Finals("compares:brighter", 4)
    (here / "down").touch()
    with pytest.raises(CommandError, match="--tournament compares:brighter: it raised RuntimeErr"):
        finals.add([folder])
    assert "tournament" not in _read(folder)
    (here / "down").unlink()
    finals.add([folder])
    assert _read(folder)["tournament"]["winner"] == "image-3.png"


@pytest.mark.parametrize(
    ("name", "keep", "rounds", "message"),
    [
        (None, 4, 2, "--tournament-rounds: has no effect without --tournament"),
        ("compares:brighter", 1, None, "--tournament: compares several answers, expected --keep 2"),
        ("brighter", 4, None, "--tournament: expected URL#MODEL or MODULE:FUNCTION, got 'bright"),
        ("compares:nothing", 4, None, "--tournament compares:nothing cannot be imported"),
        ("compares:brighter", 4, 0, "--tournament-rounds must be an integer of at least 1, got 0"),
    ],
)
def test_mistakes_name_the_option(
    name: str | None, keep: int, rounds: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Finals(name, keep, rounds)


@pytest.mark.slow
def test_sample_holds_one(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in.use(monkeypatch.setattr)
    args = ["sample", "one red circle", *"--method bon --steps 2 --nfe 8 --keep 3".split()]
    cli.main([*args, "--out", "out"])
    assert "tournament" not in _read(here / "out")
    # It gains one without another search.
    cli.main([*args, "--tournament", "compares:darker", "--out", "out"])
    said = capsys.readouterr().out
    assert said.index("3 pairs at most") < said.index("already complete") < said.index("winner ")
    ranking = _read(here / "out")["tournament"]["ranking"]
    means = [np.asarray(Image.open(here / "out" / name)).mean() for name in ranking]
    assert len(means) == 3 and means == sorted(means)
