"""HPSv2 against open_clip's class and the published preprocessing, in float32."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_parity import error

from flowsde.models.clip import rewards
from flowsde.models.common.layers import Numerics
from flowsde.models.common.paths import parameters, with_parameters
from flowsde.models.family import abstract
from flowsde_converters import open_clip
from flowsde_converters.tables import convert

GOLDEN = Path(__file__).parents[1] / "data" / "open_clip.npz"
BESIDE = {
    "hps_version": "v2.1",
    "text_config": {"num_attention_heads": 3},
    "vision_config": {"num_attention_heads": 2},
}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as held:
        return dict(held)


@pytest.fixture(scope="module")
def model(golden):
    """Ours of open_clip's weights."""
    weights = {k.removeprefix("weights/"): a for k, a in golden.items() if k.startswith("weights/")}
    found = open_clip.HPSV2_1.recognise(weights, BESIDE)
    made = abstract(open_clip.HPSV2_1, found.config, Numerics())
    return with_parameters(made, convert(found.table, weights, parameters(made)))


pixels = jax.jit(rewards.padded_pixels, static_argnums=1)


def images(golden):
    return jnp.asarray(golden["pictures"].astype(np.float32) / 127.5 - 1.0)


def test_pixels(golden):
    ours = pixels(images(golden), 16)
    assert error(ours, golden["pixels"].transpose(0, 2, 3, 1)) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(16, 16, 16), (40, 31, 24), (9, 30, 24), (24, 17, 24), (50, 3, 16)],
)
def test_pixels_of_other_sizes(height, width, size):
    """Against the operators that torchvision calls for tensors; black is 0 before standardising."""
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).uniform(-1.0, 1.0, (1, height, width, 3)).astype(np.float32)
    shape = [round(side * (size / max(height, width))) for side in (height, width)]
    theirs = torch.nn.functional.interpolate(
        torch.tensor(0.5 * (x + 1.0)).permute(0, 3, 1, 2), shape, mode="bicubic", antialias=True
    )
    down, right = (size - side for side in shape)
    around = (right // 2, right - right // 2, down // 2, down - down // 2)
    theirs = torch.nn.functional.pad(theirs, around).permute(0, 2, 3, 1)
    ours = pixels(x, size)
    wanted = (theirs.numpy() - np.asarray(rewards.MEAN)) / np.asarray(rewards.STD)
    assert error(ours, wanted) < 2e-5


@pytest.mark.slow
def test_towers(model, golden):
    image = jax.jit(lambda x: model.vision(x).embedding)(golden["pixels"].transpose(0, 2, 3, 1))
    text = jax.jit(model.text_features)(golden["tokens"])
    assert error(image, golden["image"]) < 2e-5
    assert error(text, golden["text"]) < 2e-5


@pytest.mark.slow
def test_score_and_its_gradient(model, golden):
    """As a search's guidance takes it: by pixels in [-1, 1], which are twice those in [0, 1]."""
    reward = rewards.hps_score(model, "2.1", minibatch=1)
    text = golden["text"]
    wanted = text / np.linalg.norm(text, axis=-1, keepdims=True)

    @jax.jit
    def scored(reward, x):
        score, back = jax.vjp(lambda x: reward(x, wanted), x)
        return score, back(jnp.ones_like(score))[0]

    score, slope = scored(reward, images(golden))
    assert error(score, golden["score"]) < 1e-4
    assert error(2.0 * np.asarray(slope).transpose(0, 3, 1, 2), golden["gradient"]) < 1e-3
    # Weights are arguments, so that programs are shared and hold none.
    assert len(jax.tree.leaves(reward)) == len(parameters(model.vision))
    assert reward.minibatch == 1


@pytest.mark.slow
def test_versions_are_named(model):
    names = [rewards.hps_score(model, version).name for version in ("2.0", "2.1")]
    assert names == ["hpsv2", "hpsv2.1"]
    with pytest.raises(ValueError, match=r"version must be 2.0 or 2.1, got '2'"):
        rewards.hps_score(model, "2")
    with pytest.raises(ValueError, match=r"\[n, height, width, 3\], got \[1, 3, 24, 24\]"):
        rewards.padded_pixels(jnp.zeros((1, 3, 24, 24)))
