"""What fails while a command works: the right exit code, one line, and nothing that is lost."""

import errno
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import stand_in

import flowsde as fs
from flowsde import shapes
from flowsde._schema import number
from flowsde.cli import drawings, plots
from flowsde.cli import main as cli

PROMPTS = ["two green triangles", "one red circle", "three blue squares"]
SAMPLE = ["sample", PROMPTS[0], *"--method rbf --steps 2 --nfe 9 --width 1 --finish mean".split()]
BATCH = ["batch", *"--method rbf --steps 2 --nfe 7 --finish mean --batch-size 8".split()]
HOST: dict[str, Any] = {}
"""By name, what the reward does before it judges."""


def _judge(images: np.ndarray, cond: np.ndarray) -> np.ndarray:
    """Outside JAX, from pictures and captions."""
    rewards = -np.mean(np.square(images), axis=(1, 2, 3)) * (1 + cond.sum(1) % 4)
    return HOST["act"](rewards, cond)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow that compiles fast, and a reward outside JAX."""
    stand_in.use(monkeypatch.setattr)
    HOST["act"] = lambda rewards, cond: rewards
    reward = fs.rewards.host(_judge, "judge")
    monkeypatch.setattr(shapes, "load_reward", lambda *_: reward)


def _run(args: list[str]) -> int:
    try:
        cli.main(args)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def _found(out: Path) -> list[Any]:
    """Prompts, rewards and evaluations."""
    every = [json.loads(path.read_text()) for path in sorted(out.rglob("result.json"))]
    return [(one["prompt"], one["reward"], one["nfe"]) for one in every]


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures of searches, which take most of the time."""
    monkeypatch.setattr(drawings, "draw", lambda *_: None)


@pytest.fixture
def commands(tmp_path: Path) -> dict[str, list[str]]:
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS))
    return {"sample": SAMPLE, "batch": [*BATCH, "--prompts-file", str(file)]}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sample", "batch"])
def test_an_error_in_any_reward(
    unseen: None,
    name: str,
    commands: dict[str, list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def count(rewards: np.ndarray, cond: Any) -> np.ndarray:
        if next(calls) == fails:
            raise ConnectionError("no service")
        return rewards

    args, HOST["act"] = commands[name], count
    calls, fails = itertools.count(), -1
    assert _run([*args, "--out", str(tmp_path / "whole")]) == 0
    whole, most = _found(tmp_path / "whole"), next(calls)
    assert most >= 4
    for fails in range(most):
        out = tmp_path / str(fails)
        calls = itertools.count()
        assert _run([*args, "--out", str(out)]) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith(f"flowsde {name}: ")
        assert "reward 'judge' raised ConnectionError: no service" in last
        assert "test_cli_failures.py:" in last and "resume with: " in last.partition("; ")[2]
        assert (
            _run(
                [
                    *args,
                    "--out",
                    str(out),
                ]
            )
            == 0
        )
        found = _found(out)
        assert [(p, n) for p, _, n in found] == [(p, n) for p, _, n in whole]
        np.testing.assert_allclose([r for _, r, _ in found], [r for _, r, _ in whole], rtol=1e-5)


class _Failing(io.StringIO):
    """Fails from the k-th write or flush on."""

    def __init__(self, k: int, code: int):
        super().__init__()
        self._left, self._code = k, code

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise OSError(self._code, "lost")

    def write(self, text: str) -> int:
        self._count()
        return super().write(text)

    def flush(self) -> None:
        self._count()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sample", "batch"])
@pytest.mark.parametrize(("code", "expected"), [(errno.EPIPE, 141), (errno.ENOSPC, 1)])
def test_an_error_in_any_print(
    unseen: None,
    name: str,
    code: int,
    expected: int,
    commands: dict[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    args = commands[name]
    assert _run([*args, "--out", str(tmp_path / "whole")]) == 0
    for k in itertools.count():
        out = tmp_path / str(k)
        with monkeypatch.context() as patch:
            stream = _Failing(k, code)
            patch.setattr(sys, "stdout", stream)
            found = _run([*args, "--out", str(out)])
        assert _found(out) == _found(tmp_path / "whole")
        last = capsys.readouterr().err.splitlines()[-1]
        if stream._left >= 0:
            assert found == 0
            break
        assert found == expected
        assert ("stdout cannot be written: lost" in last) == (code == errno.ENOSPC)
    assert k > 5


@pytest.mark.slow
def test_stderr_may_be_lost_and_both_closed(
    unseen: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, streams in enumerate(
        [(None, None), (io.StringIO(), _Failing(2, errno.EIO)), (io.StringIO(), None)]
    ):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", streams[0])
            patch.setattr(sys, "stderr", streams[1])
            assert _run([*SAMPLE, "--out", str(tmp_path / str(i))]) == 0
    assert len({tuple(_found(tmp_path / str(i))[0]) for i in range(3)}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.inf, 1e300])
def test_rewards_that_json_has_no_word_for(
    value: float, commands: dict[str, list[str]], tmp_path: Path
) -> None:
    def one_is(rewards: np.ndarray, cond: Any) -> np.ndarray:
        return np.where(cond[:, 2] == cond[:, 2].max(), value, rewards).astype(np.float64)

    HOST["act"] = one_is
    assert _run([*SAMPLE, "--out", str(tmp_path / "one")]) == 0
    assert {p.name for p in (tmp_path / "one").glob("*.png")} == {
        "image.png", "path.png", "search.png",
    }  # fmt: skip
    assert number(_found(tmp_path / "one")[0][1], "reward") > 3e38
    for _ in range(2):
        assert _run([*commands["batch"], "--out", str(tmp_path / "many")]) == 0
    assert len(_found(tmp_path / "many")) == 3
    values = json.loads((tmp_path / "many" / "batch.json").read_text())
    assert number(values["reward"], "mean") > 1e38 and values["failed"] == []


@pytest.mark.slow
def test_one_prompt_without_a_reward_does_not_block_a_list(
    commands: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hopeless = shapes.encode(PROMPTS[1])

    def nan(rewards: np.ndarray, cond: Any) -> np.ndarray:
        return np.where((cond == hopeless).all(1), np.nan, rewards)

    out, HOST["act"] = tmp_path / "out", nan
    for _ in range(2):
        assert _run([*commands["batch"], "--out", str(out)]) == 1
        said = capsys.readouterr()
        assert said.err.splitlines()[-2:] == [
            "flowsde batch: 1 prompt failed:",
            "prompt 2 of 3, 'one red circle': reward 'judge' was NaN or -inf for every candidate",
        ]
        assert "Traceback" not in said.err and "prompts 2" in said.out
        assert [prompt for prompt, _, _ in _found(out)] == [PROMPTS[2], PROMPTS[0]]
    (failed,) = json.loads((out / "batch.json").read_text())["failed"]
    assert failed["number"] == 2 and failed["prompt"] == PROMPTS[1]
    assert (out / "sheet.png").exists()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/result.json")}
    HOST["act"] = lambda rewards, cond: rewards
    assert _run([*commands["batch"], "--out", str(out)]) == 0
    assert before.items() <= {p: p.stat().st_mtime_ns for p in out.glob("*/result.json")}.items()
    assert len(_found(out)) == 3
    # And so for `sample`, which has nothing to resume for such a prompt.
    HOST["act"] = nan
    words = ["sample", *PROMPTS, *SAMPLE[2:], "--out", str(tmp_path / "each")]
    assert _run(words) == 1
    assert [prompt for prompt, _, _ in _found(tmp_path / "each")] == [PROMPTS[2], PROMPTS[0]]
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "flowsde sample" in one]
    assert line.startswith("flowsde sample: 'one red circle' stopped at ")
    assert line.endswith("NFE: reward 'judge' was NaN or -inf for every candidate")


@pytest.mark.slow
@pytest.mark.parametrize("notices", [True, False])
def test_a_model_that_gives_nan(
    notices: bool,
    commands: dict[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def nan(params: Any, x: Any, t: Any, cond: Any) -> Any:
        return x * jnp.float32(jnp.nan)

    flow = fs.Flow.from_callable(nan, jnp.float32(0.01), (32, 32, 3))
    monkeypatch.setattr(shapes, "load_flow", lambda *_: flow)
    if not notices:
        HOST["act"] = lambda rewards, cond: np.zeros_like(rewards)
    ode = ["--method", "ode", "--steps", "2"]
    out = tmp_path / "sample"
    assert _run(["sample", PROMPTS[0], *ode, "--out", str(out)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("flowsde sample: 'two green triangles' stopped at ")
    assert "resume" not in last and not list(out.glob("*.png"))
    out = tmp_path / "batch"
    assert _run([*commands["batch"][:1], *commands["batch"][-2:], *ode, "--out", str(out)]) == 1
    said = capsys.readouterr().err
    assert "3 prompts failed" in said and "Traceback" not in said
    assert not list(out.rglob("*.png")) and not _found(out)


@pytest.mark.slow
def test_prompts_that_matplotlib_would_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A formula that is none, and a letter that no font has."""

    def titled(draw: Callable[..., Any]) -> Callable[..., Any]:
        return lambda title, *rest: draw("a $x_$ sign \U0001f408 ^{", *rest)

    for name in ("path_figure", "search_figure"):
        monkeypatch.setattr(plots, name, titled(getattr(plots, name)))
    assert _run([*SAMPLE, "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "image.png", "path.png", "search.png",
    }  # fmt: skip
    assert "could not be drawn" not in capsys.readouterr().err


def test_a_long_prompt_makes_no_long_message(capsys: pytest.CaptureFixture[str]) -> None:
    def lines() -> Iterator[str]:
        yield "one red " + "x" * 100_000
        yield "\x1b]0;owned\x07" * 1000

    for words in lines():
        assert _run(["sample", words]) == 2
        said = capsys.readouterr().err
        assert len(said) < 1000 and said.count("\n") == 1
        assert said.rstrip("\n").isprintable()
