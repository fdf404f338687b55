"""`flowsde batch`: its files, resuming after a kill, wrong values; on a stand-in for the model."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import stand_in
from PIL import Image
from refusing import refused

import flowsde as fs
from flowsde import shapes
from flowsde.cli import main as cli
from flowsde.cli.batch_folder import Folder
from flowsde.cli.batch_report import Failures
from flowsde.runner.packed.engine import Totals

PROMPTS = [
    "two green triangles",
    "one red circle",
    "three blue squares",
    "one yellow circle",
    "four red circles and one blue square",
    "two red squares",
    "one green circle",
]
SLUGS = [prompt.replace(" ", "-") for prompt in PROMPTS]
RBF = "--reward rss --steps 3 --nfe 21 --finish mean --method rbf".split()
RBF += "--batch-size 6 --target-reward=-0.18".split()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow and a reward that compile fast."""
    stand_in.use(monkeypatch.setattr)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("# a list\n\n" + "\n".join(PROMPTS) + "\n")
    return path


def _batch(file: Path, out: Path, *options: str) -> dict[str, Any]:
    cli.main(["batch", "--prompts-file", str(file), "--out", str(out), *RBF, *options])
    return json.loads((out / "batch.json").read_text())


def _results(out: Path) -> list[dict[str, Any]]:
    return [json.loads((out / slug / "result.json").read_text()) for slug in SLUGS]


@pytest.mark.slow
def test_writes_what_sample_writes(file: Path, tmp_path: Path) -> None:
    values = _batch(file, tmp_path / "batch")
    cli.main(["sample", "--prompts-file", str(file), "--out", str(tmp_path / "sample"),
              *RBF[:10], RBF[-1], "--width", "1"])  # fmt: skip
    lengths = set()
    for slug, one, other in zip(
        SLUGS, _results(tmp_path / "batch"), _results(tmp_path / "sample"), strict=True
    ):
        folder = tmp_path / "batch" / slug
        assert {path.name for path in folder.iterdir()} == {"image.png", "result.json"}
        surplus = one["evaluations"] - one["nfe"]
        assert one["verifier_calls"] - surplus == other["verifier_calls"]
        np.testing.assert_allclose(one["reward"], other["reward"], rtol=1e-5)
        own = ("prompt", "method", "seed", "preset", "nfe", "heldout", "version")
        assert {name: one[name] for name in own} == {name: other[name] for name in own}
        assert one.keys() == other.keys() and one["seconds"].keys() == other["seconds"].keys()
        pictures = [np.asarray(Image.open(tmp_path / way / slug / "image.png"), int)
                    for way in ("batch", "sample")]  # fmt: skip
        assert np.abs(pictures[0] - pictures[1]).max() <= 1
        lengths.add(one["nfe"])
    assert len(lengths) > 1
    (run,) = values["runs"]
    assert values["finished"] == run["prompts"] == len(PROMPTS) and values["prompts"] == PROMPTS
    assert run["evaluations"] == run["nfe"] + run["surplus"] + run["padding"]
    assert run["evaluations"] == 6 * run["batches"]
    assert values["occupancy"] == run["nfe"] / run["evaluations"]
    reached = sum(one["reward"] >= -0.18 for one in _results(tmp_path / "batch"))
    assert values["reached"] == reached and 0 < reached < len(PROMPTS)
    with Image.open(tmp_path / "batch" / "sheet.png") as sheet:
        assert sheet.width > 200


@pytest.mark.slow
def test_parts_are_the_whole_list(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [_batch(file, tmp_path / f"{i}", "--part", f"{i}/3") for i in (1, 2, 3)]
    assert [one["prompts"] for one in found] == [PROMPTS[i::3] for i in range(3)]
    assert sum(one["finished"] for one in found) == len(PROMPTS)
    again = _batch(file, tmp_path / "2", "--part", "02/3")
    assert again["prompts"] == PROMPTS[1::3] and len(again["runs"]) == 1 and again["part"] == "2/3"
    words = ["batch", "--prompts-file", str(file), "--out", str(tmp_path / "2"), *RBF]
    capsys.readouterr()
    said = refused(capsys, *words, "--part", "1/3")
    assert "used --part 2/3, not 1/3; expected another --out, or --overwrite" in said
    assert {path.name for path in (tmp_path / "2").iterdir() if path.is_dir()} == {*SLUGS[1::3]}


@pytest.mark.slow_but_one
@pytest.mark.parametrize(
    ("theirs", "ours"), [("1/3", "2/3"), ("1/3", None), (None, "1/3"), ("1/3", "1/2")]
)
def test_a_folder_of_another_part_is_refused(
    theirs: str | None,
    ours: str | None,
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also where none of its prompts is in the other part, whose results would be mixed in."""
    about = {"runs": [], "total_nfe": None, "prompts": PROMPTS[:1], "settings": {}, "seed": 0}
    (tmp_path / "out").mkdir()
    written = json.dumps(about | {"method": "rbf", "part": theirs})
    (tmp_path / "out/batch.json").write_text(written)
    words = ["batch", "--prompts-file", str(file), "--out", str(tmp_path / "out"), *RBF]
    said = refused(capsys, *words, *(["--part", ours] if ours else []))
    assert f"out used --part {theirs}, not {ours}; expected another --out" in said
    assert (tmp_path / "out/batch.json").read_text() == written


@pytest.mark.slow
@pytest.mark.parametrize("part", ["0/3", "4/3", "1", "1/0", "a/b", "-1/3", "1/3/5"])
def test_a_part_that_there_is_not_is_refused(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    words = ["batch", "--prompts-file", str(file), "--out", str(tmp_path / "out"), "--part", part]
    assert "--part: expected I/N with I from 1 to N" in refused(capsys, *words)
    words[-1] = "8/8"
    assert "--part: 8/8 has no prompt: there are 7 in all" in refused(capsys, *words)
    assert not (tmp_path / "out").exists()


def _table(path: Path, ids: list[str]) -> Path:
    rows = zip(ids, PROMPTS[: len(ids)], strict=True)
    path.write_text("key,prompt\n" + "".join(f"{id},{prompt}\n" for id, prompt in rows))
    return path


@pytest.mark.slow
def test_results_have_the_ids_of_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, out = _table(tmp_path / "a.csv", ["x/7", "08", "é"]), tmp_path / "out"
    found = _batch(table, out, "--id-column", "key")
    assert found["ids"] == dict(zip(["x/7", "08", "é"], SLUGS, strict=False))
    for id, slug in found["ids"].items():
        result = json.loads((out / slug / "result.json").read_text())
        assert result["id"] == id and result["prompt"] == PROMPTS[SLUGS.index(slug)]
    again = _batch(table, out, "--id-column", "key")
    assert len(again["runs"]) == 1 and again["ids"] == found["ids"]
    part = _batch(table, tmp_path / "part", "--id-column", "key", "--part", "2/2")
    assert part["ids"] == {"08": SLUGS[1]}
    capsys.readouterr()
    words = ["batch", "--prompts-file", str(table), "--out", str(out), *RBF]
    assert "gave 'two green triangles' the id x/7, not None" in refused(capsys, *words)
    (out / "batch.json").unlink()  # Results say it themselves.
    assert "used the id x/7, not None" in refused(capsys, *words)
    _table(table, ["08", "x/7", "é"])
    said = refused(capsys, *words, "--id-column", "key")
    assert "used the id x/7, not 08; expected another --out" in said


def test_a_failure_is_said_with_its_id() -> None:
    failed = Failures([{"prompt": "a cat"}, {"prompt": "a dog", "id": "x/7"}])
    failed.reasons |= {0: "why", 1: "how"}
    first, second = failed.lines()
    assert first == "prompt 1 of 2, 'a cat': why"
    assert second == "prompt 2 of 2, id x/7, 'a dog': how"
    assert failed.values() == [
        {"number": 1, "prompt": "a cat", "reason": "why"},
        {"number": 2, "prompt": "a dog", "id": "x/7", "reason": "how"},
    ]


@pytest.mark.slow_but_one
@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ({"y": SLUGS[0]}, "gave 'two green triangles' the id y, not x"),
        ({"y": SLUGS[5]}, f"gave the id y to {SLUGS[5]}, not to 'one red circle'"),
    ],
)
def test_a_folder_of_other_ids_is_refused(
    ids: dict[str, str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any prompt is finished."""
    table = _table(tmp_path / "a.csv", ["x", "y"])
    about = {"runs": [], "total_nfe": None, "prompts": PROMPTS[:1], "settings": {}, "seed": 0}
    (tmp_path / "out").mkdir()
    written = json.dumps(about | {"method": "rbf", "ids": ids})
    (tmp_path / "out/batch.json").write_text(written)
    words = ["batch", "--prompts-file", str(table), "--out", str(tmp_path / "out"), *RBF]
    assert said in refused(capsys, *words, "--id-column", "key")
    assert (tmp_path / "out/batch.json").read_text() == written


@pytest.mark.slow
def test_keep_writes_several_of_each(file: Path, tmp_path: Path) -> None:
    _batch(file, tmp_path / "one")
    _batch(file, tmp_path / "two", "--keep", "2")
    for slug, one, two in zip(
        SLUGS, _results(tmp_path / "one"), _results(tmp_path / "two"), strict=True
    ):
        assert one["reward"] == two["reward"] == two["kept"][0]["reward"]
        files = {path.name for path in (tmp_path / "two" / slug).iterdir()}
        assert files == {"result.json", *(kept["image"] for kept in two["kept"])}
    many = sum(len(two["kept"]) for two in _results(tmp_path / "two"))
    assert len(PROMPTS) < many <= 2 * len(PROMPTS)
    with (
        Image.open(tmp_path / "one" / "sheet.png") as small,
        Image.open(tmp_path / "two" / "sheet.png") as large,
    ):
        assert large.size > small.size
    # It resumes: nothing is found anew, and without --keep it is another run.
    again = _batch(file, tmp_path / "two", "--keep", "2")
    assert len(again["runs"]) == 1
    with pytest.raises(SystemExit):
        _batch(file, tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "kills"), [([], [3]), (["--total-nfe", "120"], [3, 2])], ids=["each", "total"]
)
def test_killed_and_resumed(
    file: Path, tmp_path: Path, more: list[str], kills: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """By SIGKILL, after so many prompts or attempts; what is finished is left as it is."""
    whole = _batch(file, tmp_path / "whole", *more)
    out = tmp_path / "killed"
    command = ["batch", "--prompts-file", str(file), "--out", str(out), *RBF, *more]
    script = str(Path(stand_in.__file__))
    for done in kills:
        found = subprocess.run([sys.executable, script, str(done), *command], capture_output=True)
        assert found.returncode == -9, found.stderr.decode()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/result.json")}
    assert 0 < len(before) < len(PROMPTS)
    capsys.readouterr()
    values = _batch(file, out, *more)
    assert f"resume  {len(before)} of 7 prompts are finished" in capsys.readouterr().out
    assert before.items() <= {p: p.stat().st_mtime_ns for p in out.glob("*/result.json")}.items()
    for one, other in zip(_results(out), _results(tmp_path / "whole"), strict=True):
        for changes in ("seconds", "evaluations", "verifier_calls"):
            del one[changes], other[changes]
        rewards = [one.pop("reward"), other.pop("reward")]
        attempts = [one.pop("attempts", []), other.pop("attempts", [])]
        np.testing.assert_allclose(*rewards, rtol=1e-5)
        assert [a["nfe"] for a in attempts[0]] == [a["nfe"] for a in attempts[1]]
        assert one == other
    assert len(values["runs"]) == len(kills) + 1 and len(whole["runs"]) == 1
    assert values["nfe"] == whole["nfe"] and values["finished"] == 7
    assert not list(out.glob("*/attempts.npz"))
    if more:
        assert values["nfe"] <= 120 < 7 * 21
        assert max(len(one["attempts"]) for one in _results(out)) > 1
    # Once more: nothing is left to do.
    assert _batch(file, out, *more)["runs"] == values["runs"]


def test_other_settings_are_refused_or_replace(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    ode = ["--prompts-file", str(file), "--out", str(out), "--method", "ode", "--steps", "3"]
    cli.main(["batch", *ode])
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(shapes, "load_flow", lambda *_: pytest.fail("the model was loaded"))
        said = refused(capsys, "batch", *ode, "--seed", "1")
        assert "--seed 0, not 1; expected another --out, or --overwrite" in said
        said = refused(capsys, "batch", *ode, "--total-nfe", "150", "--target-reward=-1")
        assert "--total-nfe None, not 150; expected another --out, or --overwrite" in said
        cli.main(["batch", *ode])
        assert f"{out} is already complete" in capsys.readouterr().out
        # What `sample` leaves has no attempts to resume.
        (out / "batch.json").unlink()
        for slug in SLUGS:
            path = out / slug / "result.json"
            values = json.loads(path.read_text())
            values["settings"]["target_reward"] = -1.0
            path.write_text(json.dumps(values))
        said = refused(capsys, "batch", *ode, "--total-nfe", "150", "--target-reward=-1")
        assert "used no --total-nfe; expected another --out" in said
    cli.main(["batch", *ode, "--seed", "1", "--overwrite"])
    assert "discard 7 of 7 prompts, finished" in capsys.readouterr().out
    assert {one["seed"] for one in _results(out)} == {1}


@pytest.mark.slow
def test_an_interruption_says_how_to_resume(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    args = ["batch", "--prompts-file", str(file), "--out", str(tmp_path / "out"), *RBF]
    with monkeypatch.context() as patch:
        patch.setattr("flowsde.cli.batch_folder.Folder.end", stop)
        with pytest.raises(SystemExit) as stopped:
            cli.main([*args, "--overwrite"])
    assert stopped.value.code == 130
    said = capsys.readouterr().err
    assert "interrupted with 0 of 7 prompts finished; the others start over; resume with: " in said
    assert said.strip().endswith(args[-1]) and "--resume" not in said


@pytest.mark.slow
def test_a_signal_as_the_last_prompt_ends_interrupts_nothing(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    end, left = Folder.end, iter(range(len(PROMPTS) - 1, -1, -1))

    def end_and_signal(*args: Any, **given: Any) -> None:
        end(*args, **given)
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Folder, "end", end_and_signal)
    assert _batch(file, tmp_path / "out")["finished"] == len(PROMPTS)
    said = capsys.readouterr()
    assert "prompts 7" in said.out and "interrupted" not in said.err


@pytest.mark.slow
def test_progress_is_shown_before_a_prompt_ends(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Totals] = []
    monkeypatch.setattr("flowsde.cli.batch._show", lambda bar, totals: seen.append(totals))
    (run,) = _batch(file, tmp_path / "out")["runs"]
    batches = [totals.batches for totals in seen]
    assert batches == sorted(batches) and 1 < len(batches) <= run["batches"]
    assert seen[0].prompts == 0 < seen[0].evaluations and seen[-1].batches == run["batches"]


WRONG = {
    "": "--prompts-file",
    "--prompts-file none.txt --out {out}": "--prompts-file: cannot read none.txt",
    "GIVEN --batch-size 0": "--batch-size must be an integer of at least 1, got 0",
    "GIVEN --batch-size x": "--batch-size: expected an integer, got 'x'",
    "GIVEN --slots 0": "--slots must be an integer of at least 1",
    "GIVEN --total-nfe 0": "--total-nfe must be an integer of at least 1",
    "GIVEN --total-nfe 900": "--total-nfe is shared by what prompts have reached: it wants --targ",
    "GIVEN --total-nfe 20 --target-reward 0": "--total-nfe must be at least",
    "GIVEN --target-reward nan": "--target-reward must be a finite number",
    "GIVEN --chains 0": "--chains",
    "--prompts-file {file} --out {file}": "--out: cannot make folder",
}


@pytest.mark.slow_but_one
@pytest.mark.parametrize(("words", "message"), WRONG.items(), ids=WRONG)
def test_wrong_values(
    words: str, message: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words.replace("GIVEN", "--prompts-file {file} --out {out}")
    args = words.format(file=file, out=tmp_path / "out").split()
    assert message in refused(capsys, "batch", *args)


@pytest.mark.slow
def test_calls_of_the_dear_part_of_a_cascade_are_in_the_results(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def dear(images: np.ndarray, cond: Any) -> np.ndarray:
        asked.append(len(images))
        return -np.square(images).mean((1, 2, 3))

    reward = fs.rewards.cascade(
        lambda images, cond: -jnp.abs(images[:, 0, 0, 0]),
        fs.rewards.host(dear, "dear"),
        threshold=-0.3,
        floor=-9.0,
    )
    monkeypatch.setattr(shapes, "load_reward", lambda *_: reward)
    values = _batch(file, tmp_path / "out")
    each = [one["part_calls"]["dear"] for one in _results(tmp_path / "out")]
    assert values["part_calls"] == {"dear": sum(asked)} == {"dear": sum(each)}
    assert 0 < sum(each) < values["verifier_calls"]
