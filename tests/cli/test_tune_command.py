"""`flowsde tune`: files, resuming, and what is refused; with outcomes that are made up."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_in
from refusing import refused

from flowsde.cli import main as cli
from flowsde.cli.settings import MOST_IN_SECONDS
from flowsde.cli.sources import source_of
from flowsde.tuning import carry_out
from flowsde.tuning.device import device
from flowsde.tuning.measure import Block
from flowsde.tuning.prices import MOST, Price

PROMPT = "two green triangles"
SMALL = ["--nfe", "60", "--seeds", "6", "--methods", "svdd", "--no-diagnosis"]
FILES = {"tune.json", "preset.json", "report.md", "race.png"}


class Made:
    """Rewards of which those of Best-of-N are lower by 1; noise of the units, common to all."""

    def __init__(self) -> None:
        self.calls, self.searches, self.stop_at = 0, 0, -1

    def __call__(self, subject: Any, search: Any, units: Any, final: bool = False) -> Block:
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        self.searches += len(units)
        rng, n = np.random.default_rng([u for unit in units for u in unit]), len(units)
        mean = {"BestOfN": 0.0}.get(type(search).__name__, 1.0)
        scores = np.ones(n) if final else np.empty(0)
        return Block(mean + rng.normal(size=n), scores, 60 * n, 60 * n, 9 * n, 0.1)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    stand_in.use(monkeypatch.setattr)
    own = Made()
    monkeypatch.setattr(carry_out, "measure", own)
    monkeypatch.setattr("flowsde.cli.tune.probe", lambda subject: [0.0, 1.0, 0.5])
    return own


def _tune(out: Path, *args: str) -> dict[str, Any]:
    cli.main(["tune", PROMPT, *SMALL, *args, "--out", str(out)])
    return json.loads((out / "tune.json").read_text())


def test_writes_a_preset_that_sample_takes_and_a_page(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = _tune(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert told["sure"] and told["to_best_of_n"][0] == pytest.approx(1.0)
    page = (tmp_path / "report.md").read_text()
    assert "It is surely better than the tuned Best-of-N" in page and "![The race]" in page
    assert told["cost"]["nfe"] == 60 * made.searches
    preset = json.loads((tmp_path / "preset.json").read_text())
    assert "seconds" not in preset and MOST == MOST_IN_SECONDS
    assert preset["method"] == "svdd" and preset["settings"]["nfe"] == 60
    command = cli._parse(["sample", PROMPT, "--preset", str(tmp_path / "preset.json")])
    assert command.method == "svdd"
    out = capsys.readouterr().out
    assert "Use `svdd" in out and "preset.json" in out
    assert "12 settings of 2 methods race: at most " in out and " searches of 60 NFE, " in out


@pytest.mark.slow
def test_a_budget_in_seconds_is_the_presets_which_sample_takes(
    made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def price(subject: Any, timed: Any, setting: Any, prompt: int) -> Price:
        # As sample runs it: with room for all that seconds may buy.
        asked.append((timed.seconds, timed.search_of(setting).nfe, timed.chunk_size))
        return Price(60, 0.1, 0.2, 0.3, 0.0, "", 10, 5, 2.0, device())

    monkeypatch.setattr(carry_out, "price", price)
    words = ["tune", PROMPT, "--seeds", "6", "--methods", "svdd", "--no-diagnosis"]
    words += ["--seconds", "5", "--out", str(tmp_path)]
    cli.main(words)
    told = json.loads((tmp_path / "tune.json").read_text())
    assert set(asked) == {(5.0, 2000, None)} and len(asked) == len(told["prices"])
    assert told["settings"]["seconds"] == 5.0 and "nfe" not in told["settings"]
    assert {one["buys"] for one in told["prices"].values()} == {60}
    assert "with 5 s (60 NFE here) a picture" in (tmp_path / "report.md").read_text()
    file = str(tmp_path / "preset.json")
    preset = json.loads((tmp_path / "preset.json").read_text())
    assert preset["seconds"] == 5.0 and preset["settings"]["nfe"] == 60

    sample = ["sample", PROMPT, "--preset", file]
    command = cli._parse(sample)
    assert (command.method, command.seconds) == ("svdd", 5.0)
    assert source_of(command).settings.nfe == 2000
    assert cli._parse([*sample, "--method", "svdd"]).seconds == 5.0
    for more, seconds, nfe in ((["--seconds", "9"], 9.0, 2000), (["--nfe", "80"], None, 80)):
        command = cli._parse([*sample, *more])
        assert command.seconds == seconds and source_of(command).settings.nfe == nfe
    # Those of batch are of all its prompts together.
    batch = cli._parse(["batch", "--prompts-file", "x", "--out", "y", "--preset", file])
    assert batch.seconds is None and batch.method == "svdd"
    capsys.readouterr()
    again = [*words[: words.index("--seconds")], "--nfe", "60", "--out", str(tmp_path)]
    assert "--nfe None, not 60" in refused(capsys, *again)


def test_too_few_seconds_name_the_option(
    made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    least = Price(0, 0.1, 0.2, 0.3, 7.5, "so few", 10, 5, 2.0, device())
    monkeypatch.setattr(carry_out, "price", lambda *args: least)
    with pytest.raises(SystemExit):
        cli.main(["tune", PROMPT, "--seconds", "5", "--out", str(tmp_path)])
    assert "--seconds must be at least 7.5: so few" in capsys.readouterr().err
    # The folder is nobody's: more seconds may be given next.
    assert made.calls == 0 and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_interrupted_it_goes_on_and_another_is_refused(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = _tune(tmp_path / "whole")
    every, made.calls, made.stop_at = made.calls, 0, 4
    with pytest.raises(SystemExit) as stop:
        _tune(tmp_path / "parts")
    assert stop.value.code == 130 and "resume with: " in capsys.readouterr().err
    args = ["tune", PROMPT, *SMALL, "--out", str(tmp_path / "parts")]
    assert "--nfe 60, not 90" in refused(capsys, *args, "--nfe", "90")
    assert "used --seeds 6, not 7" in refused(capsys, *args, "--seeds", "7")
    made.calls, made.stop_at = 0, -1
    resumed = _tune(tmp_path / "parts")
    assert made.calls == every - 4 and resumed == whole
    made.calls = 0
    _tune(tmp_path / "parts", "--methods", "svdd", "svdd")
    assert made.calls == 0 and "already complete" in capsys.readouterr().out
    other = [word if word != PROMPT else "one red circle" for word in args]
    assert "the finished run in" in refused(capsys, *other)
    # Nothing of what is discarded can be taken for the new.
    made.stop_at = 4
    with pytest.raises(SystemExit):
        _tune(tmp_path / "parts", "--nfe", "90", "--overwrite")
    assert [path.name for path in (tmp_path / "parts").iterdir()] == [".flowsde"]
    made.stop_at = -1
    assert _tune(tmp_path / "parts", "--nfe", "90")["settings"]["nfe"] == 90


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--nfe 0", "--nfe must be an integer of at least 1, got 0"),
        ("--nfe 1", "--nfe"),
        ("--seconds 3", "--nfe and --seconds are both given, 60 and 3, expected one"),
        ("--seconds nan", "--seconds must be a finite number above 0, got nan"),
        ("--seeds 1", "--seeds must be at least 2 of fewer than 8 prompts"),
        ("--methods ode", "--methods"),
        ("--target-reward nan", "--target-reward must be a finite number"),
        ("--reward best", "--reward must be one of"),
    ],
)
def test_options_that_are_wrong_are_named(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "none")
    assert said in refused(capsys, "tune", PROMPT, *SMALL, *words.split(), "--out", out)
    assert not (tmp_path / "none").exists()
