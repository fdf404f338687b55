"""Rewards that the server knows by name are those that the command searches by."""

from pathlib import Path

import numpy as np
import pytest
import tiny

from flowsde import shapes
from flowsde.cli.named_rewards import load
from flowsde.cli.sources.rewards import reward_source
from flowsde.conds import stacked

IMAGES = np.random.default_rng(0).uniform(-1.0, 1.0, (3, 32, 32, 3)).astype(np.float32)
PROMPTS = ["one red cat", tiny.PROMPTS[1], "one red cat"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "clip",
        "pick",
        "hpsv2.1",
        "imagereward",
        "vqascore-odds",
        "instructblip",
        "owlv2-smooth",
        "qwen3vl-counts",
        "aesthetic",
    ],
)
def test_of_a_converted_clip(name: str, tmp_path: Path) -> None:
    made = {"hpsv2.1": tiny.hpsv2, "imagereward": tiny.image_reward}
    made |= {"vqascore-odds": tiny.clip_flant5, "owlv2-smooth": tiny.owlv2}
    made |= {"qwen3vl-counts": tiny.qwen3_vl, "instructblip": tiny.instructblip}
    folders = [made.get(name, tiny.clip)(tmp_path / "model")]
    if name == "aesthetic":
        folders.append(tiny.aesthetic_head(tmp_path / "head"))
    served = load(name, folders)
    reward, told = reward_source(name, folders).load(PROMPTS)
    cond = None if name == "aesthetic" else stacked("told", told)
    expected = np.asarray(reward(IMAGES, cond))  # type: ignore[arg-type]
    np.testing.assert_allclose(served.fn(IMAGES, PROMPTS), expected, rtol=1e-5)
    assert served.name == name and served.version == load(name, folders).version
    if name != "aesthetic":
        with pytest.raises(TypeError, match="prompts' texts"):
            served.fn(IMAGES, None)


@pytest.mark.slow
def test_of_the_embedded_model() -> None:
    served = load("rss", [])
    cond = np.stack([shapes.encode("two green triangles")] * 2)
    black = np.full((2, 32, 32, 3), -1, np.float32)
    expected = np.asarray(shapes.load_reward("rss")(black, cond))
    np.testing.assert_array_equal(served.fn(black, cond), expected)
    # Pixels are what they stand for.
    np.testing.assert_array_equal(served.fn(np.zeros(black.shape, np.uint8), cond), expected)
    assert served.version == load("rss", []).version != load("likelihood", []).version


def test_wrong_names() -> None:
    with pytest.raises(ValueError, match="--reward-model must be a converted CLIP"):
        load("clip", [])
    with pytest.raises(ValueError, match="no folder"):
        load("rss", [Path("x")])
