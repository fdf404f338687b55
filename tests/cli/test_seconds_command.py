"""--seconds of the command, by a clock on which every look takes a hundredth of a second."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_in
from PIL import Image
from refusing import refused

from flowsde.cli import main as cli
from flowsde.runner import clock

PROMPT = "three red circles and two blue squares"
# Its schedule does not depend on rewards: what seconds buy is spent.
SVDD = [PROMPT, "--method", "svdd", *"--steps 3 --finish-steps 2 --keep 2 --nfe 200".split()]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow and a reward that compile fast, and a clock."""
    stand_in.use(monkeypatch.setattr)
    looks = itertools.count()
    monkeypatch.setattr(clock, "now", lambda: next(looks) / 100.0)


def _sample(out: Path, *args: str) -> dict[str, Any]:
    cli.main(["sample", *args, "--out", str(out)])
    return json.loads((out / "result.json").read_text())


@pytest.mark.slow
def test_the_evaluations_that_seconds_bought_buy_the_same(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _sample(tmp_path / "seconds", *SVDD, "--seconds", "0.7")
    timing = found["timing"]
    assert timing["seconds"] == found["settings"]["seconds"] == 0.7
    assert 0.0 < timing["spent"] <= 0.7 and not timing["cut"]
    assert f"planned for {timing['nfe']} NFE" in capsys.readouterr().out
    again = _sample(tmp_path / "nfe", *SVDD[:-1], str(timing["nfe"]))
    for name in ("reward", "nfe", "verifier_calls"):
        assert found[name] == again[name], name
    for name in ("image.png", "image-2.png"):
        one, other = (np.asarray(Image.open(tmp_path / of / name)) for of in ("seconds", "nfe"))
        np.testing.assert_array_equal(one, other)
    # What is complete stays as it is.
    assert _sample(tmp_path / "seconds", *SVDD, "--seconds", "0.7") == found
    assert "already complete" in capsys.readouterr().out


@pytest.mark.slow
def test_methods_are_compared_at_equal_seconds(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--methods", "ode", "bon", "svdd", "--prompts", "3", "--seeds", "1"]
    words += ["--seconds", "0.5", "--out", str(tmp_path)]
    cli.main(words)
    values = json.loads((tmp_path / "compare.json").read_text())
    ode, *searches = values["rows"]
    assert "budget_seconds" not in ode
    for row in searches:
        # At most a round late, which looks five times.
        assert row["budget_seconds"] == 0.5 and 0.0 < row["seconds"] < 0.5 + 0.05
        assert row["nfe"] == round(row["charged"]) > 0
    assert max(row["seconds"] for row in searches) > 0.3
    assert "Pictures, 0.5 s" in (tmp_path / "compare.html").read_text()
    assert searches[1]["against"] == searches[0]["label"]
    capsys.readouterr()
    cli.main(words)
    assert "is already complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seconds", "0"], "--seconds must be a finite number above 0, got 0.0"),
        (["--seconds", "nan"], "--seconds must be a finite number above 0, got nan"),
        (["--seconds", "soon"], "--seconds: expected a number, got 'soon'"),
        (["--seconds", "5", "--method", "ode"], "--seconds has no effect with method ode"),
    ],
)
def test_wrong_seconds_are_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, "sample", PROMPT, *words, "--out", str(tmp_path))


def test_compare_takes_one_kind_of_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--nfe", "40", "--seconds", "2", "--out", str(tmp_path)]
    assert "--nfe and --seconds are both given" in refused(capsys, *words)


@pytest.mark.slow
def test_too_few_seconds_name_the_option(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", *SVDD, "--seconds", "0.01", "--out", str(tmp_path)]
    with pytest.raises(SystemExit):
        cli.main(words)
    assert "--seconds must be at least 0." in capsys.readouterr().err


@pytest.mark.slow
def test_prompts_of_a_batch_share_the_seconds(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = [PROMPT, "one green circle", "two yellow squares"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    words = [
        "batch",
        "--prompts-file",
        str(tmp_path / "prompts.txt"),
        "--out",
        str(tmp_path / "out"),
    ]
    words += [*SVDD[1:], "--seconds", "2"]
    cli.main(words)
    values = json.loads((tmp_path / "out" / "batch.json").read_text())
    (run,) = values["runs"]
    timing = run["timing"]
    assert values["finished"] == 3 and timing["seconds"] == 2.0
    assert 0.0 < timing["spent"] <= 2.0 and not timing["cut"]
    assert values["nfe"] == 3 * timing["nfe"]
    capsys.readouterr()
    cli.main(words)
    assert "is already complete" in capsys.readouterr().out
