"""--model of an embedded model, for sample, batch and compare."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from refusing import refused

import flowsde as fs
from flowsde import shapes
from flowsde.cli import main as cli
from flowsde.cli import presets, settings
from flowsde.pictures import pixels
from flowsde.shapes import weights

PROMPT = "one red circle"
ODE = ["--method", "ode", "--steps", "2"]
TURBO = ["--model", "shapes-turbo"]


def _result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_the_choices_are_the_models() -> None:
    assert settings.EMBEDDED == tuple(shapes.MODELS)
    with pytest.raises(ValueError, match="model must be one of shapes, shapes-turbo, got 'turbo'"):
        shapes.load_flow(model="turbo")


@pytest.mark.slow
def test_sample_samples_the_model_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["sample", PROMPT, *ODE, *TURBO, "--out", str(tmp_path)])
    assert _result(tmp_path)["settings"]["model"] == "shapes-turbo"
    flow = shapes.load_flow(model="shapes-turbo")
    search = presets.build("ode", presets.resolve("recommended", "ode", {"steps": 2}))
    cond = shapes.encode(PROMPT)
    expected = fs.run(jax.random.key(0), flow, search, shapes.load_reward(), cond=cond)
    with Image.open(tmp_path / "image.png") as image:
        drawn = np.asarray(image)[::8, ::8]
    assert np.abs(drawn.astype(int) - pixels(np.asarray(expected.image))).max() <= 1
    capsys.readouterr()
    cli.main(["sample", PROMPT, *ODE, *TURBO, "--out", str(tmp_path)])
    assert "already complete" in capsys.readouterr().out
    said = refused(capsys, "sample", PROMPT, *ODE, "--out", str(tmp_path))
    assert "used --model shapes-turbo, not shapes" in said


@pytest.mark.slow
def test_the_default_is_shapes_by_any_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["sample", PROMPT, *ODE, "--out", str(tmp_path)])
    assert "model" not in _result(tmp_path)["settings"]
    capsys.readouterr()
    cli.main(["sample", PROMPT, *ODE, "--model", "shapes", "--out", str(tmp_path)])
    assert "already complete" in capsys.readouterr().out
    said = refused(capsys, "sample", PROMPT, *ODE, *TURBO, "--out", str(tmp_path))
    assert "used --model shapes, not shapes-turbo" in said


@pytest.mark.slow_but_one
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample", PROMPT, *TURBO, "--label", "3"], "no effect with --model shapes-turbo, got 3"),
        (["compare", "--model", "turbo"], "--model must be one of shapes, shapes-turbo"),
    ],
)
def test_what_does_not_fit_is_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert message in refused(capsys, *words, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_weights_of_another_model_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(weights.packaged("turbo"))
    said = refused(capsys, "sample", PROMPT, "--weights", path, "--out", str(tmp_path / "out"))
    assert "holds weights of turbo, expected those of shapes or scorer" in said


@pytest.mark.slow
def test_compare_compares_on_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--methods", "bon", "--nfe", "4", "--steps", "2", "--prompts", "2", "--seeds", "1"]
    cli.main(["compare", *own, *TURBO, "--out", str(tmp_path)])
    found = json.loads((tmp_path / "compare.json").read_text())
    assert found["networks"] == [weights.sha256(weights.packaged(n)) for n in ("turbo", "scorer")]
    capsys.readouterr()
    assert "other --model or --weights" in refused(capsys, "compare", *own, "--out", str(tmp_path))
