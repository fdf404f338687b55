"""Weights files: the packaged ones, writing and reading; and runs of `flowsde train`."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from refusing import refused

import flowsde as fs
from flowsde import shapes
from flowsde.cli import main as cli
from flowsde.cli import presets
from flowsde.cli.pictures import pixels
from flowsde.shapes import card, networks, weights
from flowsde.shapes.flow_task import flow_task
from flowsde.shapes.model import ModelConfig
from flowsde.shapes.scorer import ScorerConfig
from flowsde.shapes.train import TrainConfig

TRAIN = "--batch-size 8 --warmup 1 --log-every 1 --save-every 2 --seed 5".split()
# Networks that compile fast.
SIZES = {
    "scorer": ScorerConfig(width=8, depth=1, hidden=8),
    "shapes": ModelConfig(width=16, depth=1, heads=2, stem=4),
    # Those of its teacher.
    "turbo": ModelConfig(),
}
PARAMS = {"a": {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}, "b": jnp.zeros(2)}


def test_weights_are_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    weights.save(path, PARAMS, "x", {"width": 3})
    params, config = weights.load(path, "x")
    chex.assert_trees_all_equal(params, PARAMS)
    assert config == {"width": 3} and weights.count(params) == 11
    assert list(tmp_path.iterdir()) == [path]
    digests = {weights.sha256(path)}
    for _ in range(9):
        weights.save(path, PARAMS, "x", {"width": 3})
        digests.add(weights.sha256(path))
    assert len(digests) == 1
    with pytest.raises(ValueError, match="holds 'x', expected weights of 'y'"):
        weights.load(path, "y")
    with pytest.raises(FileNotFoundError, match="'x'"):
        weights.load(tmp_path / "y.safetensors", "x")


@pytest.mark.parametrize(
    "name, least, most", [("shapes", 1e6, 1e7), ("turbo", 1e6, 1e7), ("scorer", 1e4, 1e6)]
)
def test_packaged_weights(name: str, least: float, most: float) -> None:
    path = weights.FOLDER / f"{name}.safetensors"
    params, _ = weights.load(path, name)
    assert least <= weights.count(params) <= most
    assert path.stat().st_size <= 15e6
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(params))


def test_packaged_cards_name_the_packaged_weights() -> None:
    for path in weights.FOLDER.glob("*.md"):
        found = re.findall(r"`(\w+\.safetensors)`, sha256 `(\w+)`", path.read_text())
        assert found
        for name, digest in found:
            assert weights.sha256(weights.FOLDER / name) == digest


def test_packaged_cards_name_the_recipe_that_is_the_default() -> None:
    text = (weights.FOLDER / card.CARD).read_text()
    commands = dict(re.findall(r"^(flowsde train (\w+) .*)$", text, re.MULTILINE))
    expected = {
        card.command(name, network.recipe): name for name, network in networks.NETWORKS.items()
    }
    assert commands == expected


def test_card_of_a_run_without_a_log(tmp_path: Path) -> None:
    path = tmp_path / "scorer.safetensors"
    weights.save(path, PARAMS, "scorer", {"stem": 3})
    card.write("scorer", tmp_path, path, TrainConfig(), 250)
    text = (tmp_path / card.CARD).read_text()
    assert "stopped early" in text and "250 of 3,000" in text and "| stem | 3 |" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scorer", "shapes", "turbo"])
def test_training_exports_and_resumes(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(
        networks.NETWORKS, name, networks.NETWORKS[name]._replace(sizes=SIZES[name])
    )
    command = ["train", name, "--out", str(tmp_path), "--steps", "4", *TRAIN, "--sheet-every", "9"]
    cli.main(command)
    path = tmp_path / f"{name}.safetensors"
    text = (tmp_path / card.CARD).read_text()
    digest = weights.sha256(path)
    assert digest in text and "Apache-2.0" in text and "stopped early" not in text
    with Image.open(tmp_path / card.LOSS) as picture:
        picture.verify()
    if name == "scorer":
        assert callable(shapes.load_reward(path=path))
    else:
        model = {"shapes": "shapes", "turbo": "shapes-turbo"}[name]
        assert shapes.load_flow(path, 1.0, model).shape == (32, 32, 3)
        assert "five" in text
        with pytest.raises(ValueError, match=f"holds '{name}', expected weights of"):
            shapes.load_flow(path, 1.0, "shapes" if name == "turbo" else "shapes-turbo")

    # The command in the card is that of this run: it continues it, and finds it finished.
    again = re.search(rf"^flowsde (train {name} .*)$", text, re.MULTILINE)
    assert again is not None
    cli.main([*again[1].split(), "--out", str(tmp_path)])
    assert weights.sha256(path) == digest
    assert [row["step"] for row in card.read_log(tmp_path, 9)] == [1, 2, 3, 4]

    path.unlink()
    cli.main(["train", name, "--out", str(tmp_path), "--export-only"])
    assert weights.sha256(path) == digest
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, "--learning-rate", "0.5"])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "another run" in err


def _write_shapes(folder: Path, **changed: Any) -> Path:
    """Weights of a small flow that was not trained."""
    config = SIZES["shapes"]
    params = flow_task(config).init(jax.random.key(3))
    params = jax.tree.map(lambda leaf: leaf + 0.05, params)
    path = folder / "shapes.safetensors"
    weights.save(path, params, "shapes", dataclasses.asdict(config) | changed)
    return path


@pytest.mark.slow
def test_the_command_takes_trained_weights(tmp_path: Path) -> None:
    """Those of the file that is given, and of the network that they are of."""
    path, out = _write_shapes(tmp_path), tmp_path / "out"
    words = ["one red circle", "--method", "ode", "--steps", "2", "--out", str(out)]
    # A run's folder stands for the files in it.
    cli.main(["sample", *words, "--weights", str(tmp_path)])
    found = json.loads((out / "result.json").read_text())
    assert found["settings"]["weights"] == [f"shapes {weights.sha256(path)}"]

    search = presets.build("ode", presets.resolve("recommended", "ode", {"steps": 2}))
    cond = shapes.encode("one red circle")
    result = fs.run(
        jax.random.key(0), shapes.load_flow(path), search, shapes.load_reward(), cond=cond
    )
    with Image.open(out / "image.png") as image:
        written = np.asarray(image)[::8, ::8].astype(int)
    assert np.abs(written - pixels(np.asarray(result.image)).astype(int)).max() <= 1
    np.testing.assert_allclose(found["reward"], result.reward, rtol=1e-4)


@pytest.mark.slow
def test_weights_that_cannot_be_used_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other, empty = (tmp_path / name for name in ("one", "other", "empty"))
    for folder in (one, other, empty):
        folder.mkdir()
    first, second = _write_shapes(one), _write_shapes(other, depth=7)
    (tmp_path / "text").write_text("no weights")
    weights.save(tmp_path / "else", PARAMS, "else", {})

    def said(*paths: Path, more: Sequence[str] = ()) -> str:
        words = [word for path in paths for word in ("--weights", str(path))]
        args = ["sample", "one red circle", "--out", str(tmp_path / "out"), *words, *more]
        return refused(capsys, *args)

    assert "both" in said(first, other) and "hold weights of shapes" in said(first, other)
    assert "folder of a run that ended" in said(empty)
    assert "folder of a run that ended" in said(tmp_path / "nowhere")
    assert f"{tmp_path / 'text'} cannot be read" in said(tmp_path / "text")
    assert "was not written by flowsde train" in said(tmp_path / "else")
    assert "--weights has no effect with --model" in said(first, more=["--model", str(one)])
    # A configuration that is another model's.
    assert "has shape" in said(second)
    assert not (tmp_path / "out" / "result.json").exists()
