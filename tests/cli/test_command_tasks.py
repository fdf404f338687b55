"""--task of sample, batch and compare; with a small stand-in for the model and the rewards."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import stand_in
from refusing import refused

from flowsde.cli import compare, settings
from flowsde.cli import main as cli
from flowsde.shapes import verdict
from flowsde.shapes.tasks import SPLITS, TASKS, Challenge

TWO = "two red circles and two blue squares"
ODE = ["--method", "ode", "--steps", "2"]
ARGS = ["compare", "--methods", "bon", "--nfe", "6", "--steps", "3", "--prompts", "3"]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow and a reward that compile fast, for every task whose cond is tokens."""
    stand_in.use(monkeypatch.setattr)
    monkeypatch.setattr(Challenge, "load_reward", lambda *_: stand_in._reward)


def _result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_the_choices_are_the_tasks() -> None:
    """They are read from the source, so that the command need not wait for JAX."""
    assert settings.CHOICES["task"] == tuple(TASKS)
    assert settings.CHOICES["split"] == SPLITS


@pytest.mark.slow
def test_an_unknown_task_is_refused_without_jax() -> None:
    program = (
        "import sys; from flowsde.cli import main\n"
        f"try: main.main(['sample', {TWO!r}, '--task', 'side'])\n"
        "except SystemExit as stop: print(stop.code, 'jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    known = ", ".join(TASKS)
    assert done.stderr == f"flowsde sample: --task must be one of {known}, got 'side'\n"
    assert done.stdout == "2 False\n"


@pytest.mark.slow_but_one
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample", "two red circles", "--task", "sides"], "task sides expects two groups of diff"),
        (["sample", TWO, "--task", "row", "--model", "."], "--task has no effect with --model"),
        (["compare", "--task", "row", "--objects", "3"], "--objects has no effect with --task"),
        (["compare", "--split", "train"], "--split must be one of dev, test, got 'train'"),
        (["compare", "--task", "place"], "--task must be one of counts, many, sides"),
        (["compare", "--objects", "0"], "--objects must be an integer of at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert message in refused(capsys, *words, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_prompts_of_a_file_are_the_tasks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text(f"{TWO}\none red circle\n")
    for command in ("sample", "compare"):
        said = refused(capsys, command, "--prompts-file", str(file), "--task", "above")
        assert f"{file}:2: prompt 'one red circle': task above expects two groups" in said


@pytest.mark.slow
def test_sample_says_and_keeps_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["sample", TWO, *ODE, "--task", "sides", "--out", str(tmp_path)])
    said, found = capsys.readouterr().out, _result(tmp_path)
    assert f"asked   {TASKS['sides'].words(TWO)}\n" in said
    assert verdict.describe(found["heldout"]) in said
    assert found["settings"]["task"] == found["heldout"]["task"] == "sides"
    assert found["heldout"]["success"] is False
    # The same command is complete, and another task's is another run, in both directions.
    cli.main(["sample", TWO, *ODE, "--task", "sides", "--out", str(tmp_path)])
    assert "already complete" in capsys.readouterr().out
    said = refused(capsys, "sample", TWO, *ODE, "--out", str(tmp_path))
    assert "used --task sides, not counts" in said


@pytest.mark.slow
def test_a_result_of_counts_does_not_name_its_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that results of before are the same run."""
    cli.main(["sample", TWO, *ODE, "--out", str(tmp_path)])
    found = _result(tmp_path)
    assert "task" not in found["settings"]
    assert set(found["heldout"]) == {"exact", "rss", "counts", "unclear"}
    capsys.readouterr()
    said = refused(capsys, "sample", TWO, *ODE, "--task", "above", "--out", str(tmp_path))
    assert "used --task counts, not above" in said


@pytest.mark.slow
def test_folders_of_tasks_are_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for task in ("counts", "above"):
        cli.main(["sample", TWO, *ODE, "--task", task])
    slug = TWO.replace(" ", "-")
    found = {path.name for path in Path("flowsde-out").iterdir()}
    assert found == {f"{slug}-ode-seed0", f"{slug}-above-ode-seed0"}


@pytest.mark.slow
def test_batch_counts_what_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = {"exact": True, "rss": 0.0, "counts": {}, "unclear": 0, "task": "sides"}
    monkeypatch.setattr(verdict, "judge", lambda *_: seen | {"success": False, "numbers": {}})
    file = tmp_path / "prompts.txt"
    file.write_text(f"{TWO}\n")
    out = tmp_path / "out"
    cli.main(["batch", "--prompts-file", str(file), *ODE, "--task", "sides", "--out", str(out)])
    totals = json.loads((out / "batch.json").read_text())
    assert (totals["exact"], totals["success"]) == (1.0, 0.0)
    assert "100% exact matches, 0% what the task asks for" in capsys.readouterr().out


@pytest.mark.slow
def test_compare_uses_captions_and_judge_of_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    judge = Challenge.judge

    def every_other(self: Challenge, images: Any, texts: Any) -> Any:
        asked.extend(texts)
        found = judge(self, images, texts)
        found.success[::2] = True
        return found

    monkeypatch.setattr(Challenge, "judge", every_other)
    out = str(tmp_path / "out")
    cli.main([*ARGS, "--task", "sides", "--seeds", "1", "--out", out])
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert found["task"] == "sides" and found["prompts"] == asked == TASKS["sides"].captions(
        "dev", 3
    )
    (row,) = found["rows"]
    assert row["accuracy"] == pytest.approx(2 / 3) and row["exact"] == 0.0
    page = (tmp_path / "out" / "compare.html").read_text()
    assert f"Task sides: {TASKS['sides'].summary}." in page
    assert TASKS["sides"].phrase(()) in page and "exact captions" not in page
    assert "success" in capsys.readouterr().out
    said = refused(capsys, *ARGS, "--seeds", "1", "--out", out)
    assert "has --task sides, not counts" in said
    said = refused(
        capsys, *ARGS, "--seeds", "1", "--task", "sides", "--split", "test", "--out", out
    )
    assert "has other prompts" in said


@pytest.mark.slow
def test_parts_of_counts_without_success_are_read(tmp_path: Path) -> None:
    """As earlier versions wrote them."""
    rows, _ = compare.plan(["bon"], nfe=[6], given={"steps": 3})
    study = compare.Study(compare.captions(2), seeds=1)
    before = compare.measure(rows, study, tmp_path, progress=False)[rows[0]]
    (part,) = tmp_path.glob("*.npz")
    values = stand_in.measure.read_arrays(part)
    stand_in.measure.write_arrays(part, {k: v for k, v in values.items() if k != "success"})
    assert compare.measured_already(rows, study, tmp_path) == rows
    after = compare.measure(rows, study, tmp_path, progress=False)[rows[0]]
    assert (after.success == before.exact).all() and (after.success == after.exact).all()
    assert after.seconds == before.seconds
