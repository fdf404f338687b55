"""`--heldout`: rewards that no search sees score finished pictures, and change nothing else."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_in
from PIL import Image
from refusing import refused

from flowsde._files import read_arrays
from flowsde.cli import main as cli
from flowsde.cli.sources.known import KNOWN

FUNCTIONS = """
from pathlib import Path
import numpy as np
import flowsde as fs

def told(images, prompts):
    with open("calls.txt", "a") as calls:
        calls.write("".join(f"{prompt}\\n" for prompt in prompts))
    return np.float32(images.mean((1, 2, 3))) + 10.0 * np.float32([len(one) for one in prompts])

def red(images, prompts):
    return np.float32(images[..., 0].mean((1, 2)))

def fragile(images, prompts):
    if Path("down").exists():
        raise RuntimeError("out of service")
    return red(images, prompts)

def nowhere(images, prompts):
    return np.full(len(images), np.nan, np.float32)

versioned = fs.rewards.host(red, version=Path("version").read_text())
"""
PROMPTS = ["two green triangles", "one red circle"]
OPTIONS = "--method bon --reward rss --steps 3 --nfe 9 --keep 2".split()


def _functions(folder: Path) -> None:
    (folder / "version").write_text("v1")
    (folder / "judges.py").write_text(FUNCTIONS)
    sys.modules.pop("judges", None)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with functions, in whose `out` is a result that one of them has scored."""
    folder = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        stand_in.use(patch.setattr)
        patch.chdir(folder)
        _functions(folder)
        _sample("--heldout", "judges:told")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with functions, and a flow and a reward that compile fast."""
    stand_in.use(monkeypatch.setattr)
    monkeypatch.chdir(tmp_path)
    _functions(tmp_path)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    return tmp_path


@pytest.fixture
def found(here: Path, searched: Path) -> dict[str, Any]:
    """The result of `searched`, in this folder."""
    shutil.copytree(searched / "out", "out")
    shutil.copy(searched / "calls.txt", ".")
    return json.loads(Path("out/result.json").read_text())


def _sample(*more: str) -> dict[str, Any]:
    cli.main(["sample", PROMPTS[0], *OPTIONS, "--out", "out", *more])
    return json.loads(Path("out/result.json").read_text())


def _calls() -> list[str]:
    """Prompts that `told` was given, one a picture."""
    path = Path("calls.txt")
    return path.read_text().split("\n")[:-1] if path.exists() else []


def _expected(path: Path | str, prompt: str) -> float:
    """`told` of a picture in a file."""
    with Image.open(path) as file:
        pixels = np.asarray(file, np.float64) / 127.5 - 1.0
    return float(pixels.mean() + 10.0 * len(prompt))


def _without(values: dict[str, Any]) -> dict[str, Any]:
    """A result but for what held-out rewards say, and the time that it took."""
    own = {k: v for k, v in values.items() if not k.startswith("heldout_") and k != "seconds"}
    return own | {"kept": [_without(one) for one in values.get("kept", ())]}


@pytest.mark.slow
def test_it_scores_the_answers_alone(
    found: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    # Of many candidates the two that were found.
    assert len(found["kept"]) == 2 and _calls() == PROMPTS[:1] * 2
    assert found["verifier_calls"] >= 3
    for one in found["kept"]:
        expected = _expected(f"out/{one['image']}", PROMPTS[0])
        assert one["heldout_rewards"] == {"judges:told": pytest.approx(expected, abs=1e-4)}
    assert found["heldout_rewards"] == found["kept"][0]["heldout_rewards"]
    # What `score` says of the file.
    cli.main(["score", "out/image.png", "--reward", "judges:told"])
    expected = _expected("out/image.png", PROMPTS[0])
    assert capsys.readouterr().out.split()[0] == f"{expected:.4f}"


@pytest.mark.slow
def test_a_result_gains_what_it_lacks_and_keeps_what_it_has(
    found: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    both = _sample("--heldout", "judges:red")
    said = capsys.readouterr().out
    assert "is already complete" in said
    assert f"heldout {both['heldout_rewards']['judges:red']:.4f} by judges:red\n" in said
    assert _without(both) == _without(found) and both["seconds"] == found["seconds"]
    for one, before in zip(both["kept"], found["kept"], strict=True):
        assert set(one["heldout_rewards"]) == {"judges:told", "judges:red"}
        told = before["heldout_rewards"]["judges:told"]
        assert one["heldout_rewards"]["judges:told"] == told
    # Nothing is asked twice; a command without it leaves it as it is.
    assert _sample("--heldout", "judges:told") == both == _sample()
    assert len(_calls()) == 2


@pytest.mark.slow
def test_a_failure_loses_nothing_and_the_same_command_adds_it(
    found: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("down").touch()
    with pytest.raises(SystemExit) as stop:
        _sample("--heldout", "judges:fragile")
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert "--heldout judges:fragile: reward 'judges:fragile' raised RuntimeError: out of" in said
    assert "resume with: " in said
    assert json.loads(Path("out/result.json").read_text()) == found
    Path("down").unlink()
    assert "judges:fragile" in _sample("--heldout", "judges:fragile")["heldout_rewards"]


@pytest.mark.slow
def test_another_version_is_refused(
    found: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    scored = _sample("--heldout", "judges:versioned")
    assert scored["heldout_versions"] == {"judges:versioned": "v1"}
    capsys.readouterr()
    Path("version").write_text("v2")
    sys.modules.pop("judges")
    args = ["sample", PROMPTS[0], *OPTIONS, "--out", "out", "--heldout", "judges:versioned"]
    assert refused(capsys, *args) == (
        "flowsde sample: the result in out was scored by --heldout judges:versioned of version "
        "v1, not v2; expected another --out, or --overwrite\n"
    )
    assert json.loads(Path("out/result.json").read_text()) == scored


@pytest.mark.slow
def test_a_search_is_what_it_is_without(found: dict[str, Any]) -> None:
    picture = Path("out/image.png").read_bytes()
    assert _without(_sample("--overwrite")) == _without(found)
    assert Path("out/image.png").read_bytes() == picture


@pytest.mark.slow
def test_what_is_wrong_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    searched = (
        "is the reward that is searched by, which sees every candidate; expected one that it does "
        "not see"
    )
    for words, line in (
        (["--heldout", "rss"], f"--heldout: rss {searched}"),
        (["--heldout", "judges:red", "--heldout", "judges:red"],
         "--heldout: judges:red is given twice"),
        (["--heldout", "none"],
         "--heldout: pictures are scored by one, expected another than none"),
        (["--heldout", "judges:absent"],
         "--heldout judges:absent cannot be imported: AttributeError: module 'judges' has no "
         "attribute 'absent'"),
        (["--heldout", "best"],
         f"--heldout must be one of {', '.join(KNOWN)}, URL#MODEL or MODULE:FUNCTION, got 'best'"),
        (["--heldout", "pick"],
         "--heldout-model must be a converted CLIP for --heldout pick, got none"),
        (["--heldout", "judges:red", "--heldout-model", "a", "--heldout-model", "b"],
         "--heldout-model: is needed by no --heldout, got a"),
        (["--heldout-model", "a"], "--heldout-model: is needed by no --heldout, got a"),
    ):  # fmt: skip
        args = ["sample", PROMPTS[0], *OPTIONS, "--out", "out", *words]
        assert refused(capsys, *args) == f"flowsde sample: {line}\n"
        assert not Path("out").exists()
    args = ["compare", "--methods", "bon", "--nfe", "9", "--steps", "3", "--reward", "rss"]
    said = refused(capsys, *args, "--out", "out", "--heldout", "rss")
    assert said == f"flowsde compare: --heldout: rss {searched}\n"


@pytest.mark.slow
def test_batch_has_the_means(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["batch", "--prompts-file", "prompts.txt", *OPTIONS, "--out", "out"]
    cli.main(args)
    cli.main([*args, "--heldout", "judges:told"])
    folders = [Path("out") / prompt.replace(" ", "-") for prompt in PROMPTS]
    expected = [_expected(f / "image.png", p) for f, p in zip(folders, PROMPTS, strict=True)]
    for folder, wanted in zip(folders, expected, strict=True):
        one = json.loads((folder / "result.json").read_text())
        assert one["heldout_rewards"]["judges:told"] == pytest.approx(wanted, abs=1e-4)
        left = {path.name for path in folder.iterdir()} - {"image-2.png"}
        assert left == {"image.png", "result.json"}
    values = json.loads(Path("out/batch.json").read_text())
    assert len(values["runs"]) == 1 and set(_calls()) == {*PROMPTS}
    assert values["heldout_rewards"] == {"judges:told": pytest.approx(np.mean(expected), abs=1e-4)}
    assert f"heldout {np.mean(expected):.4f} by judges:told\n" in capsys.readouterr().out


@pytest.mark.slow
def test_compare_has_a_column_with_intervals(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["compare", "--methods", "bon", "--nfe", "9", "--steps", "3", "--reward", "rss"]
    args += ["--seeds", "2", "--out", "out", "--prompts"]
    own = ["--heldout", "judges:told", "--heldout", "judges:nowhere"]
    cli.main([*args, "3"])
    cli.main([*args, "3", *own])
    asked = len(_calls())
    assert asked == 3 * 2
    # More prompts: only they are asked.
    cli.main([*args, "4", *own])
    assert len(_calls()) == 4 * 2
    found = json.loads(Path("out/compare.json").read_text())
    assert found["heldout"] == {"judges:told": None, "judges:nowhere": None}
    (row,) = found["rows"]
    parts = [read_arrays(path)["images"] for path in Path("out/.flowsde/parts").glob("*.npz")]
    # A part of the first three and one of the fourth, of each seed.
    assert sorted(map(len, parts)) == [1, 1, 3, 3]
    brightness = np.concatenate([
        np.mean([part for part in parts if len(part) == n], axis=(0, 2, 3, 4)) for n in (3, 1)
    ])  # fmt: skip
    lengths = np.asarray([len(prompt) for prompt in found["prompts"]])
    each = brightness / 127.5 - 1.0 + 10.0 * lengths
    assert row["heldout judges:told"] == pytest.approx(each.mean(), abs=1e-3)
    assert each.min() <= row["heldout judges:told_low"] < each.mean()
    assert each.mean() < row["heldout judges:told_high"] <= each.max()
    # What is no number has no mean.
    assert row["heldout judges:nowhere"] is None
    assert "held-out judges:told" in Path("out/compare.html").read_text()
    assert "heldout judges:told" in Path("out/compare.csv").read_text()
    capsys.readouterr()
    assert refused(capsys, *args, "4") == (
        "flowsde compare: the comparison in out has --heldout judges:nowhere, which this command "
        "leaves out; expected another --out, or --overwrite\n"
    )
