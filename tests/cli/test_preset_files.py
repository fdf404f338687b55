"""`--preset FILE`: the settings that a file has, what may replace them, and what is refused."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from refusing import refused

from flowsde.cli import compare, preset_files, presets
from flowsde.cli import main as cli
from flowsde.cli.options import Sample
from flowsde.cli.settings import PRESETS, Settings
from flowsde.cli.sources import source_of
from flowsde.cli.tune import Tune, _sample
from flowsde.tuning.settings import Setting
from flowsde.tuning.space import declared
from flowsde.tuning.tuned import Tuned

PROMPT = "one red circle"
SVDD: dict[str, Any] = {
    "nfe": 60, "interpolant": "linear", "kernel": "cps", "eta": 0.5, "grid": "uniform", "steps": 5,
    "chains": 3, "finish": "mean",
}  # fmt: skip


def _file(folder: Path, method: str = "svdd", **values: Any) -> str:
    path = folder / "mine.json"
    about = {"format": preset_files.FORMAT, "method": method, "settings": SVDD} | values
    path.write_text(json.dumps(about))
    return str(path)


def test_every_setting_that_races_is_the_same_search_by_options_and_by_its_file(
    tmp_path: Path,
) -> None:
    """Three ways to the same: the library's makers, the command's options, and the file."""
    command = Tune(prompt=(PROMPT,))
    for setting in declared(spread=2.0):
        given = source_of(_sample(command, setting, 200))
        values = dict(setting.options) | {"nfe": 200}
        if setting.method == "rbf":
            values["width"] = 1  # As all that are measured side by side.
        file = _file(tmp_path, setting.method, settings=values)
        offer = source_of(Sample(prompt=(PROMPT,), method=setting.method, preset=file))
        assert offer.settings == given.settings
        assert offer.search == given.search == setting.search(200)


def test_a_tuned_setting_without_steps_of_finishing_is_the_same_search_by_its_file(
    tmp_path: Path,
) -> None:
    own = {"interpolant": "vp", "kernel": "ddim", "grid": "uniform", "steps": 10, "chains": 2}
    setting = Setting.of("svdd", **own)
    tuned: Any = SimpleNamespace(setting=setting, search=setting.search(60), budget={"nfe": 60})
    tuned.sure, tuned._finishing = True, lambda: Tuned._finishing(tuned)
    (tmp_path / "mine.json").write_text(json.dumps(Tuned.preset(tuned)))
    offer = source_of(Sample(prompt=(PROMPT,), method="svdd", preset=str(tmp_path / "mine.json")))
    assert offer.search == setting.search(60)


def test_a_kernel_in_place_of_the_files_brings_its_own_diffusion(tmp_path: Path) -> None:
    file = _file(tmp_path)
    s = presets.resolve(file, "svdd", {"kernel": "euler_maruyama"})
    assert s.diffusion == PRESETS["recommended"]["svdd"].diffusion == "square"
    presets.build("svdd", s)


def test_times_of_a_model_need_one(tmp_path: Path) -> None:
    file = _file(tmp_path, settings=SVDD | {"grid": "model"})
    with pytest.raises(ValueError, match="--grid must be uniform, .*, got 'model'"):
        presets.build("svdd", presets.resolve(file, "svdd", {}))


def test_the_file_brings_its_method_and_options_replace_its_settings(tmp_path: Path) -> None:
    file = _file(tmp_path)
    command = cli._parse(["sample", PROMPT, "--preset", file, "--nfe", "90", "--chains", "2"])
    offer = source_of(command)
    s = offer.settings
    assert (command.method, s.nfe, s.chains, s.eta, s.steps) == ("svdd", 90, 2, 0.5, 5)
    assert (s.interpolant, s.kernel, s.finish) == ("linear", "cps", "mean")
    batch = cli._parse(["batch", "--prompts-file", "x", "--out", "y", "--preset", file])
    assert batch.method == "svdd"


def test_the_usual_method_is_that_of_the_preset_and_the_kind_of_model() -> None:
    def usual(*words: str, command: str = "sample") -> str:
        first = [command, PROMPT] if command == "sample" else [command]
        return cli._parse([*first, *words]).method

    folder = ["--prompts-file", "x", "--out", "y"]
    turbo, few = ["--model", "shapes-turbo"], ["--preset", "distilled"]
    assert usual() == usual("--model", "shapes") == usual(*folder, command="batch") == "smc"
    assert usual("--preset", "paper") == usual(*turbo, "--preset", "paper") == "svdd"
    assert usual("--model", "elsewhere") == "svdd"
    assert usual(*turbo) == usual(*few) == usual("--model", "elsewhere", *few) == "epsilon_greedy"
    assert usual(*turbo, "--method", "svdd") == usual(*few, "--method=svdd") == "svdd"
    assert usual(*folder, *turbo, command="batch") == "epsilon_greedy"
    # Which looks at particles, and does not choose among them.
    assert usual(*turbo, command="diagnose") == usual(command="diagnose") == "rbf"


def test_compare_adds_its_method_to_the_others(tmp_path: Path) -> None:
    file = _file(tmp_path)
    rows, _ = compare.plan(["bon", "rbf"], nfe=[60], preset=file)
    assert [row.method for row in rows] == ["bon", "rbf", "svdd"]
    assert rows[2].settings.chains == 3 and rows[2].settings.kernel == "cps"
    assert rows[1].settings == presets.resolve("recommended", "rbf", {"nfe": 60})
    # Beside the recommended settings of the same method.
    both, _ = compare.plan(["svdd"], nfe=[60], preset=file)
    assert [row.settings.kernel for row in both] == ["ddim", "cps"]
    assert len(set(compare.labels(both))) == 2
    few, _ = compare.plan(["bon"], nfe=[60], preset=file, model="shapes-turbo")
    assert few[0].settings.steps == PRESETS["distilled"]["bon"].steps


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"format": "flowsde preset 9"}, "mine.json: format must be one of 'flowsde preset 1'"),
        ({"method": "best"}, "mine.json: method must be one of 'bon'"),
        ({"settings": [1]}, "mine.json: settings must be an object"),
        ({"settings": SVDD | {"kernel": "gone"}}, "settings: kernel must be one of 'euler_maru"),
        ({"settings": SVDD | {"chains": 1.5}}, "mine.json: settings: chains must be an integer"),
        ({"settings": SVDD | {"eta": "much"}}, "mine.json: settings: eta must be a number"),
        ({"settings": SVDD | {"eta": "NaN"}}, "mine.json: settings: eta must be a finite number"),
        ({"settings": SVDD | {"nfe": 10**8}}, "nfe must be an integer from 1 to 1000000"),
        ({"seconds": -1}, "mine.json: seconds must be a finite number above 0, got -1"),
        ({"seconds": "5"}, "mine.json: seconds must be a number, got '5'"),
        ({"settings": SVDD | {"chain": 2}}, "mine.json: settings: there is no setting 'chain'"),
        ({"settings": SVDD | {"block": 2}}, "settings: block has no effect with method svdd"),
        ({"settings": {"nfe": 60}}, "mine.json: settings lacks the field interpolant"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(
    values: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, "sample", PROMPT, "--preset", _file(tmp_path, **values))


@pytest.mark.slow
def test_a_file_is_told_from_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("sample", PROMPT, "--preset")
    assert "there is no such file" in refused(capsys, *args, str(tmp_path / "none.json"))
    (tmp_path / "torn.json").write_text('{"format": ')
    assert "torn.json cannot be read" in refused(capsys, *args, str(tmp_path / "torn.json"))
    said = refused(capsys, *args, "mine")
    assert "--preset must be one of recommended, distilled, paper, or a file that ends" in said
    said = refused(capsys, *args, _file(tmp_path), "--method", "rbf")
    assert "--method must be svdd, that of --preset" in said and "got rbf" in said
    assert preset_files.is_file("./mine") and not preset_files.is_file("paper")


def test_every_setting_has_a_reader() -> None:
    assert set(preset_files._readers()) == {field.name for field in dataclasses.fields(Settings)}
