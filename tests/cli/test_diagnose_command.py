"""`flowsde diagnose`: files, resuming, and what is refused; with a small stand-in for the model."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import stand_in
from PIL import Image
from refusing import refused

import flowsde as fs
from flowsde import shapes
from flowsde.cli import diagnose
from flowsde.cli import main as cli
from flowsde.diagnosis import statistics

PROMPT = "two green triangles"
SMALL = ["--steps", "3", "--trajectories", "10", "--families", "4"]
FILES = {"diagnose.json", "diagnose.png", "diagnose.html"}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.use(monkeypatch.setattr)
    monkeypatch.setattr(statistics, "_DRAWS", 20)
    monkeypatch.setattr(statistics, "_AT_ONCE", 20)


def _diagnose(out: Path, *args: str) -> dict[str, Any]:
    cli.main(["diagnose", *args, *SMALL, "--out", str(out)])
    return json.loads((out / "diagnose.json").read_text())


@pytest.mark.slow
def test_writes_what_the_library_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = _diagnose(tmp_path, PROMPT)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    with Image.open(tmp_path / "diagnose.png") as picture:
        picture.verify()
    assert (tmp_path / "diagnose.html").read_text().count("<tr>") == 4
    kernel = fs.kernels.ddim(fs.interpolants.vp(), 1.0, 0.25)
    own = fs.diagnose(
        jax.random.key(0), stand_in.FLOW, shapes.load_reward("likelihood"), kernel=kernel,
        grid=fs.grids.uniform(3), n=10, families=4, cond=shapes.encode(PROMPT),
    )  # fmt: skip
    for ours, theirs in zip(told["rows"], own.table(), strict=True):
        assert list(ours) == list(theirs)
        a, b = (np.asarray(list(row.values()), np.float64) for row in (ours, theirs))
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)  # None is NaN
    assert told["nfe"] == own.nfe == 3 * 10 + 4 * 3 and told["prompts"] == [PROMPT]
    assert told["settings"]["interpolant"] == "vp" and told["seconds"]["total"] > 0.0
    out, err = capsys.readouterr()
    assert "rank correlation" in out and f"{own.nfe} NFE" in out and "NFE/s" in err


@pytest.mark.slow
def test_same_command_again_does_nothing_and_another_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _diagnose(tmp_path, PROMPT)
    before = (tmp_path / "diagnose.json").stat().st_mtime_ns
    _diagnose(tmp_path, PROMPT)
    assert "already complete" in capsys.readouterr().out
    assert (tmp_path / "diagnose.json").stat().st_mtime_ns == before
    args = ["diagnose", PROMPT, *SMALL, "--out", str(tmp_path)]
    said = refused(capsys, *args, "--kernel", "cps")
    assert "the finished run in" in said and "--kernel ddim, not cps" in said
    assert _diagnose(tmp_path, PROMPT, "--kernel", "cps", "--overwrite")["settings"]["eta"] == 1.0
    assert "discard the diagnosis" in capsys.readouterr().out


@pytest.mark.slow
def test_interrupted_it_goes_on_with_the_next_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = [PROMPT, "one red circle"]
    whole = _diagnose(tmp_path / "whole", *prompts)
    calls: list[Any] = []
    stop_at, real = 2, diagnose.measured

    def measured(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(diagnose, "measured", measured)
    with pytest.raises(SystemExit) as stop:
        _diagnose(tmp_path / "parts", *prompts)
    assert stop.value.code == 130
    assert "resume with: " in capsys.readouterr().err
    calls.clear()
    resumed = _diagnose(tmp_path / "parts", *prompts)
    assert len(calls) == 1 and "1 of 2 prompts are measured" in capsys.readouterr().out
    assert resumed["rows"] == whole["rows"] and resumed["nfe"] == whole["nfe"]
    assert {path.name for path in (tmp_path / "parts").iterdir()} == FILES


@pytest.mark.slow
def test_deterministic_kernel_and_another_reward(tmp_path: Path) -> None:
    ode = _diagnose(tmp_path, PROMPT, "--method", "bon", "--reward", "rss")
    assert ode["settings"]["kernel"] == "ode_euler" and ode["nfe"] == 30
    assert any("deterministic: no siblings" in said for said in ode["words"])


def test_files_of_the_users_are_not_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "diagnose.html").write_text("mine")
    said = refused(capsys, "diagnose", PROMPT, *SMALL, "--out", str(tmp_path))
    assert "diagnose.html already exists and is not a result" in said
    assert (tmp_path / "diagnose.html").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--families 11", "--families must be an integer of at most 10"),
        ("--families 1", "--families must be at least 2, or 0 for none"),
        ("--siblings 1", "--siblings must be an integer of at least 2"),
        ("--trajectories 3", "--trajectories must be an integer of at least 8"),
        ("--gradient-temperature 2", "--gradient-temperature: "),
        ("--reward beauty", "--reward must be one of likelihood, rss"),
        ("--kernel ode_euler", "is deterministic"),
        ("--method bon --kernel ode_adams", "--kernel: must move a particle that has no step"),
        ("--nfe 50", "unknown option --nfe"),
        ("--eta 3", "--eta must lie in [0, 1]"),
    ],
)
def test_wrong_options(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert said in refused(capsys, "diagnose", PROMPT, *SMALL, *words.split(), "--out", out)
