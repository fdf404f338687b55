"""The command begins from a picture."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import stand_in
from jax.tree_util import Partial
from PIL import Image

import flowsde as fs
from flowsde.cli import beginning, presets
from flowsde.cli import main as cli
from flowsde.cli.options import Beginning

PROMPT = "one red circle"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow and a reward that compile fast."""
    stand_in.use(monkeypatch.setattr)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A red picture of 64 x 64 pixels, and a mask that is white in its left half."""
    image, mask = tmp_path / "red.png", tmp_path / "left.png"
    Image.new("RGB", (64, 64), (255, 0, 51)).save(image)
    white = np.zeros((64, 64), np.uint8)
    white[:, :32] = 255
    Image.fromarray(white).save(mask)
    return {"image": image, "mask": mask}


def latents(factor: int) -> fs.Flow:
    """Latents of `factor` pixels a side, whose picture is them, enlarged."""

    def decode(x0: Any) -> Any:
        return jnp.repeat(jnp.repeat(x0, factor, axis=1), factor, axis=2)

    flow = fs.Flow.from_callable(lambda p, x, t, c: x, None, (8, 8, 3), decode=decode)
    if factor == 1:
        return flow

    def encode(images: Any) -> Any:
        return images[:, ::factor, ::factor]

    return dataclasses.replace(flow, encode=Partial(encode))


@pytest.mark.parametrize("factor", [1, 3])
def test_files_become_data_of_the_flow(files: dict[str, Path], factor: int) -> None:
    flow = latents(factor)
    given = beginning.read(Beginning(image=files["image"], mask=files["mask"]), flow)
    assert given["start"].shape == given["mask"].shape == flow.shape
    np.testing.assert_allclose(given["start"], np.broadcast_to([1.0, -1.0, -0.6], flow.shape))
    np.testing.assert_array_equal(given["mask"][:, :4], True)
    np.testing.assert_array_equal(given["mask"][:, 4:], False)


def test_a_latent_stays_only_where_all_of_its_pixels_do(tmp_path: Path) -> None:
    white = np.zeros((24, 24), np.uint8)
    white[0, 3] = 255
    Image.new("RGB", (24, 24)).save(tmp_path / "image.png")
    Image.fromarray(white).save(tmp_path / "mask.png")
    options = Beginning(image=tmp_path / "image.png", mask=tmp_path / "mask.png")
    mask = beginning.read(options, latents(3))["mask"]
    assert mask[0, 1].all() and mask.sum() == 3


@pytest.mark.slow
def test_what_stays_is_in_the_picture_and_skipped_steps_are_not_charged(
    small: None, files: dict[str, Path], tmp_path: Path
) -> None:
    out, given = tmp_path / "out", [f"--{name}={path}" for name, path in files.items()]
    command = ["sample", PROMPT, "--method", "ode", "--steps", "4", *given, "--out", str(out)]
    cli.main([*command, "--strength", "0.5"])
    result = json.loads((out / "result.json").read_text())
    assert result["nfe"] == result["evaluations"] == result["settings"]["nfe"] == 2
    assert result["settings"]["strength"] == 0.5
    assert result["settings"]["image"].startswith(f"{files['image']} ")
    pixels = np.asarray(Image.open(out / "image.png"))
    assert (pixels[:, 128:] == [255, 0, 51]).all() and (pixels[:, :128] != [255, 0, 51]).any()
    for other in (["--strength", "1"], []):
        with pytest.raises(SystemExit):
            cli.main([*command, *other])
    with pytest.raises(SystemExit):
        cli.main(["sample", PROMPT, "--method", "ode", "--steps", "4", "--out", str(out)])


def test_trajectories_take_the_steps_that_are_run() -> None:
    settings = presets.resolve("recommended", "ode", {"steps": 10, "strength": 0.75})
    assert settings.nfe == 8
    np.testing.assert_array_equal(presets.grid(settings), fs.grids.uniform(10)[2:])
    with pytest.raises(ValueError, match="1 x the 8 of --steps that are run = 8 for the one"):
        presets.resolve("recommended", "ode", {"steps": 10, "strength": 0.75, "nfe": 10})
    search = presets.resolve("recommended", "rbf", {"nfe": 100, "strength": 0.5})
    made: Any = presets.build("rbf", search)
    assert made.nfe == 100 and len(made.inner.grid) - 1 == 5 and made.inner.grid[0] == 0.5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"strength": 0.5}, "--strength has no effect without --image"),
        ({"mask": Path("m.png")}, "--mask has no effect without --image"),
        ({"image": Path("nowhere.png")}, "--image nowhere.png: No such file"),
        ({"image": Path(__file__)}, "it is no picture that can be read"),
        ({"image": Path(__file__), "strength": 1.5}, "--strength must be above 0, to 1"),
    ],
)
def test_what_cannot_be_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        beginning.check(Beginning(**given))


def test_a_mask_without_white_is_refused(files: dict[str, Path]) -> None:
    beginning.check(Beginning(**files))
    grey = Image.new("L", (64, 64), 127)
    grey.save(files["mask"])
    with pytest.raises(ValueError, match=r"--mask: .*left\.png has no white"):
        beginning.check(Beginning(**files))


def test_a_mask_whose_white_is_cropped_away_is_refused(files: dict[str, Path]) -> None:
    white = np.zeros((64, 256), np.uint8)
    white[:, :4] = 255
    Image.fromarray(white).save(files["mask"])
    beginning.check(Beginning(**files))
    with pytest.raises(ValueError, match=r"--mask: .*left\.png has no white once it is cropped"):
        beginning.read(Beginning(**files), latents(3))
