"""Commands that are interrupted, in every way, and resumed."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_in
from refusing import refused

import flowsde as fs
from flowsde import shapes
from flowsde.cli import main as cli
from flowsde.cli import results, resume

PROMPT = "two green triangles"
KEPT = {".flowsde"}
OPTIONS = {
    "rbf": "--method rbf --steps 3 --width 2 --nfe 17 --finish-steps 2",
    "smc": "--method smc --steps 3 --nfe 17 --finish heun --finish-steps 2",
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.use(monkeypatch.setattr)


def _interrupt(patch: pytest.MonkeyPatch, after: int, act: Any = None) -> None:
    """Interrupt the search in the round after so many."""

    def stop() -> None:
        raise KeyboardInterrupt

    def iterate(*args: Any, **given: Any) -> Any:
        for done, result in enumerate(rounds(*args, **given)):
            if done == after:
                (act or stop)()
            yield result

    rounds = fs.iterate
    patch.setattr(fs, "iterate", iterate)


def _args(out: Path, method: str = "rbf") -> list[str]:
    return ["sample", PROMPT, *OPTIONS[method].split(), "--save-trajectory", "--out", str(out)]


def _stopped(capsys: pytest.CaptureFixture[str], *args: str, code: int = 130) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(args)
    assert stop.value.code == code
    return capsys.readouterr().err


def _files(folder: Path) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Result and trajectory but for the seconds, and the sheet of what was accepted."""
    result = json.loads((folder / "result.json").read_text())
    del result["seconds"]
    with np.load(folder / "trajectory.npz") as file:
        arrays = dict(file)
    del arrays["seconds"]
    return result, arrays, (folder / "path.png").read_bytes()


def _same(folder: Path, other: Path) -> None:
    assert not KEPT & {p.name for p in folder.iterdir()}
    result, arrays, sheet = _files(folder)
    expected, expected_arrays, expected_sheet = _files(other)
    assert result == expected
    assert set(arrays) == set(expected_arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, expected_arrays[name], name)
    assert sheet == expected_sheet


def _state(folder: Path) -> dict[str, Any]:
    """The last that an unfinished run has saved."""
    with np.load(sorted((folder / ".flowsde" / "search").iterdir())[-1]) as file:
        return dict(file)


@pytest.mark.slow
@pytest.mark.parametrize("method", OPTIONS)
def test_is_resumed_after_ctrl_c(
    method: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "par ts"
    cli.main(_args(whole, method))
    # Thrice, of which once before a round is done.
    for after in (2, 0, 1):
        with monkeypatch.context() as patch:
            _interrupt(patch, after)
            said = _stopped(capsys, *_args(parts, method))
        assert {p.name for p in parts.iterdir()} == KEPT
        found = re.search(r"\nflowsde sample: interrupted at (\d+) of 17 NFE; .*: (.*)", said)
        assert found
        nfe, command = found.groups()
        assert shlex.split(command)[-len(_args(parts, method)) :] == _args(parts, method)
    saved = _state(parts)
    assert 0 < int(nfe) < 17
    cli.main(_args(parts, method))
    assert f"at {nfe} of 17 NFE" in capsys.readouterr().out
    _same(parts, whole)
    result = json.loads((parts / "result.json").read_text())
    assert result["seconds"]["total"] > saved["seconds"] > 0.0
    # Rounds that compile, the first and those after an interruption, are not the model's time.
    with np.load(parts / "trajectory.npz") as file:
        seconds = np.delete(file["seconds"], [*saved["begins"], len(saved[".info.time"])], 0)
    assert result["seconds"]["model"] == pytest.approx(seconds[:, 0].sum(), abs=1e-3)


@pytest.mark.slow
def test_a_signal_is_looked_at_after_the_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        _interrupt(patch, 0, lambda: os.kill(os.getpid(), signal.SIGTERM))
        said = _stopped(capsys, *_args(tmp_path), code=143)
    assert "interrupted at 2 of 17 NFE; resume with: " in said
    assert {p.name for p in tmp_path.iterdir()} == KEPT
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    cli.main(_args(tmp_path))
    assert "at 2 of 17 NFE" in capsys.readouterr().out
    # What is finished stays as it is, and nothing is loaded for it.
    before = (tmp_path / "result.json").stat().st_mtime_ns
    monkeypatch.setattr(shapes, "load_flow", lambda *_: pytest.fail("the model was loaded"))
    cli.main(_args(tmp_path))
    assert f"{tmp_path} is already complete" in capsys.readouterr().out
    assert (tmp_path / "result.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_stop_before_the_first_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        _interrupt(patch, 0)
        said = _stopped(capsys, *_args(tmp_path))
    assert "interrupted at 0 of 17 NFE; resume with: " in said
    assert {p.name for p in tmp_path.iterdir()} == KEPT
    cli.main(_args(tmp_path))
    assert "no saved state" in capsys.readouterr().out


@pytest.mark.slow
def test_other_settings_are_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = OPTIONS["rbf"].split()
    with monkeypatch.context() as patch:
        _interrupt(patch, 2)
        _stopped(capsys, *_args(tmp_path))
    for kind in ("unfinished", "finished"):
        for args, says in (
            ([PROMPT, *ours, "--seed", "3"], "used --seed 0, not 3"),
            ([PROMPT, *ours, "--nfe", "19", "--last", "improve"],
             "used --nfe 17, not 19, --last exhaust, not improve"),
            ([PROMPT, *ours, "--target-reward=-1"], "used --target-reward None, not -1.0"),
            # The option's name, which is not the setting's.
            ([PROMPT, *ours, "--chain-seeds", "2"], "used --chain-seeds 1, not 2"),
            (["two red triangles", *ours], f"used PROMPT {PROMPT}, not two red triangles"),
            ([PROMPT, "--method", "ode"], "used --method rbf, not ode"),
        ):  # fmt: skip
            said = refused(capsys, "sample", *args, "--out", str(tmp_path))
            assert f"the {kind} run in {tmp_path} {says}; expected another --out, or" in said
        if kind == "unfinished":
            cli.main(_args(tmp_path))
            capsys.readouterr()
    # Asked to, it replaces what is finished.
    cli.main([*_args(tmp_path), "--seed", "3", "--overwrite"])
    assert f"discard the finished result in {tmp_path}" in capsys.readouterr().out
    assert json.loads((tmp_path / "result.json").read_text())["seed"] == 3


@pytest.mark.slow
def test_what_would_be_lost_is_said_before_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        _interrupt(patch, 2)
        _stopped(capsys, *_args(tmp_path), "--seed", "1")
    nfe = int(_state(tmp_path)[".nfe"])
    assert "used --seed 1, not 0" in refused(capsys, *_args(tmp_path))
    with monkeypatch.context() as patch:
        _interrupt(patch, 0)
        with pytest.raises(SystemExit):
            cli.main([*_args(tmp_path), "--overwrite"])
    captured = capsys.readouterr()
    said = f"discard {nfe} of 17 NFE of the unfinished run in {tmp_path}\n"
    assert captured.out.startswith(said)
    # What is printed to resume does not discard once more.
    assert "resume with: " in captured.err and "--overwrite" not in captured.err
    cli.main(_args(tmp_path))
    assert json.loads((tmp_path / "result.json").read_text())["seed"] == 0


@pytest.mark.slow
def test_all_prompts_are_discarded_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An interruption of the first leaves the others to the same command without --overwrite."""
    args = ["sample", "one red circle", PROMPT, "--method", "ode", "--steps", "2"]
    args += ["--out", str(tmp_path)]
    cli.main(args)
    with monkeypatch.context() as patch:
        _interrupt(patch, 0)
        with pytest.raises(SystemExit):
            cli.main([*args, "--seed", "1", "--overwrite"])
    assert capsys.readouterr().out.count("discard the finished result in ") == 2
    assert not list(tmp_path.glob("*/result.json"))
    cli.main([*args, "--seed", "1"])
    found = [json.loads(path.read_text())["seed"] for path in tmp_path.glob("*/result.json")]
    assert found == [1, 1]


@pytest.mark.slow
def test_the_old_option_is_accepted_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main([*_args(tmp_path), "--resume"])
    assert "--resume is no longer needed: the same command resumes\n" in capsys.readouterr().err
    assert "--resume: contradicts" in refused(capsys, *_args(tmp_path), "--resume", "--overwrite")


def test_prompts_that_are_finished_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["one red circle", "two red circles", "three red circles"]
    args = ["sample", *words, "--method", "ode", "--steps", "3", "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        rounds, calls = fs.iterate, iter(range(3))

        def iterate(*given: Any, **named: Any) -> Any:
            call = next(calls)
            for done, result in enumerate(rounds(*given, **named)):
                if (call, done) == (1, 2):
                    raise KeyboardInterrupt
                yield result

        patch.setattr(fs, "iterate", iterate)
        said = _stopped(capsys, *args)
    assert "interrupted at 2 of 3 NFE" in said
    cli.main(args)
    said = capsys.readouterr().out
    assert f"{tmp_path / 'one-red-circle'} is already complete" in said
    assert said.index("prompt 2 of 3") < said.index("at 2 of 3 NFE") < said.index("prompt 3 of 3")
    assert all((folder / "result.json").exists() for folder in tmp_path.iterdir())


@pytest.mark.slow
def test_it_saves_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(
        resume, "save_state", lambda _, arrays, __: saved.append(int(arrays[".nfe"]))
    )
    cli.main(_args(tmp_path / "seldom"))
    assert not saved
    monkeypatch.setattr(resume, "EVERY", 0.0)
    cli.main(_args(tmp_path / "often"))
    assert saved == sorted(set(saved)) and saved[-1] == 17 and len(saved) > 5


@pytest.mark.slow
def test_what_is_newer_than_the_state_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kill between the files of a save."""

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    cli.main(_args(tmp_path / "whole"))
    parts = tmp_path / "parts"
    with monkeypatch.context() as patch:
        _interrupt(patch, 3)
        _stopped(capsys, *_args(parts))
    with monkeypatch.context() as patch:
        patch.setattr(resume, "save_state", die)
        _interrupt(patch, 3)
        _stopped(capsys, *_args(parts))
    cli.main(_args(parts))
    _same(parts, tmp_path / "whole")


@pytest.mark.slow
def test_is_resumed_after_a_kill(tmp_path: Path) -> None:
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    script = str(Path(stand_in.__file__))
    killed = subprocess.run(
        [sys.executable, script, "4", *_args(parts)], capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL
    assert {p.name for p in parts.iterdir()} == KEPT
    cli.main(_args(parts))
    cli.main(_args(whole))
    _same(parts, whole)


@pytest.mark.slow
def test_an_option_left_out_again_is_another_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = OPTIONS["rbf"].split()
    cli.main(["sample", PROMPT, *ours, "--accept", "quantile", "--out", str(tmp_path)])
    said = _stopped(capsys, "sample", PROMPT, *ours, "--out", str(tmp_path), code=2)
    assert "--accept quantile, not None" in said


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("quantise", "int8"),
        ("reward_counts", "2 dogs"),
        ("skip_layers", "7,8,9"),
        ("skip_scale", 2.8),
    ],
)
def test_a_models_option_left_out_again_is_another_run(
    tmp_path: Path, option: str, value: Any
) -> None:
    plain = {"prompt": PROMPT, "method": "bon", "seed": 0, "version": "1", "settings": {"nfe": 8}}
    own: dict[str, Any] = plain | {"settings": {"nfe": 8, option: value}}
    for wanted, found in ((plain, own), (own, plain)):
        with pytest.raises(ValueError, match=f"used --{option.replace('_', '-')} "):
            results.check_same(tmp_path, "finished", wanted, found)
    results.check_same(tmp_path, "finished", own, own)
