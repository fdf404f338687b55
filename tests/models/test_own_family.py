"""A family of your own: once registered, the command samples it, with options that it names."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import toy
from PIL import Image
from safetensors.numpy import save_file

import flowsde as fs
from flowsde.cli import main as cli
from flowsde.models import registry
from flowsde.models.family import Sampling
from flowsde_converters import convert, detect

SHAPE = (4, 6, 3)


def velocity(level, x, t, cond):
    """Of the flow whose data is one picture, all of it `level` times the length of the prompt."""
    data = (level * cond)[:, None, None, None]
    return (x - data) / jnp.maximum(t, 1e-6)[:, None, None, None]


class Sampled:
    """Reads prompts by their length, and --label for a level of grey."""

    unprompted, guidance, steps = None, 1.0, {"ode": 3}

    def __init__(self, folder, *, guidance, label):
        if guidance is not None:
            raise ValueError("--guidance has no effect with a toy")
        self._level = label / 100
        self.named = {"label": label}

    def grid(self, n):
        return fs.grids.cosine(n)

    def encode(self, prompts):
        return [np.float32(len(prompt)) for prompt in prompts]

    def flow(self):
        return fs.Flow.from_callable(velocity, jnp.float32(self._level), SHAPE)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A converted model of the family, which is known in this test."""
    monkeypatch.setattr(registry, "_registered", [])
    monkeypatch.setattr(detect, "_registered", {})
    detect.register(toy.FAMILY)
    save_file(toy.tensors(), tmp_path / "toy.safetensors")
    convert.run(convert.prepare(tmp_path / "toy.safetensors"), tmp_path / "out")
    return tmp_path / "out"


def test_a_family_of_your_own_is_sampled(folder, tmp_path, capsys):
    words = ["sample", "four", "--model", str(folder), "--method", "ode", "--label", "11"]
    words += ["--out", str(tmp_path / "found")]
    with pytest.raises(SystemExit):
        cli.main(words)
    said = capsys.readouterr().err
    assert f"{folder} holds a model of toy, expected one of sit or FluxPipeline" in said

    registry.register(Sampling(of="toy", title="a toy", make=Sampled))
    with pytest.raises(SystemExit):
        cli.main([*words, "--size", "8"])
    assert "--size has no effect with a toy, got 8" in capsys.readouterr().err
    cli.main([*words, "--save-trajectory"])
    result = json.loads((tmp_path / "found" / "result.json").read_text())
    assert (result["nfe"], result["settings"]["label"]) == (3, 11)
    with np.load(tmp_path / "found" / "trajectory.npz") as file:
        np.testing.assert_allclose(file["time"][:, 0], fs.grids.cosine(3)[:3], rtol=1e-6)
    # Four letters of .11: .44 in [-1, 1] is .72 of 255.
    with Image.open(tmp_path / "found" / "image.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.full(SHAPE, 184, np.uint8))
