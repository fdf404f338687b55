"""Published rewards of pictures over frames, and how alike neighbouring frames are."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from quick import slow

from flowsde.cli.sources.rewards import reward_source
from flowsde.conds import stacked
from flowsde.models.clip.model import CLIP, CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from flowsde.models.clip.rewards import MEAN, STD
from flowsde.models.common.layers import Numerics
from flowsde.models.common.paths import parameters
from flowsde.models.video_rewards import consistency, over_frames
from flowsde.modules import Bound

SIZES = {"width": 8, "depth": 1, "heads": 2, "mlp": 8, "projection": 4}
TINY = CLIPConfig(
    text=CLIPTextConfig(vocab=9, positions=4, **SIZES),
    vision=CLIPVisionConfig(image=16, patch=8, **SIZES),
)


def tiny_clip():
    return nnx.eval_shape(lambda: CLIP(TINY, Numerics(), rngs=nnx.Rngs(0)))


def by_angle(pixels):
    """A tower whose embedding is at the angle of the red of a picture, of any length."""
    red = pixels[:, 0, 0, 0] * STD[0] + MEAN[0]
    angle = jnp.pi * red
    return types.SimpleNamespace(embedding=3.0 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1))


by_angle.config = TINY.vision


@pytest.mark.parametrize(
    ("frames", "seen"), [slow(8, [0, 1, 2, 3, 4]), (3, [0, 2, 4]), slow(2, [0, 4])]
)
def test_consistency_by_hand(frames, seen):
    """The cosine of two angles is that of their difference."""
    reds = np.asarray([[0.1, 0.3, 0.2, 0.9, 0.4], [0.5] * 5], np.float32)
    videos = np.broadcast_to(2.0 * reds[:, :, None, None, None] - 1.0, (2, 5, 16, 16, 3))
    reward = consistency(tiny_clip(), frames=frames)
    assert isinstance(reward.fn.func, Bound)
    ours = jax.jit(reward.fn.func.fn, static_argnums=0)(by_angle, videos, None)
    wanted = np.cos(np.pi * np.diff(reds[:, seen], axis=1)).mean(axis=1)
    np.testing.assert_allclose(ours, wanted, rtol=1e-5)
    assert wanted[1] == 1.0


def test_consistency_is_of_videos():
    model = tiny_clip()
    reward = consistency(model, frames=4, minibatch=2)
    assert len(jax.tree.leaves(reward)) == len(parameters(model.vision))
    assert (reward.name, reward.minibatch) == ("consistency (of 4 frames)", 2)
    for shape in ((2, 1, 16, 16, 3), (2, 16, 16, 3)):
        with pytest.raises(ValueError, match="of two frames at least, got"):
            jax.eval_shape(reward.fn, jax.ShapeDtypeStruct(shape, jnp.float32), None)
    with pytest.raises(ValueError, match="frames must be an integer of at least 2, got 1"):
        consistency(model, frames=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hpsv2.1", "imagereward", "vqascore", "owlv2-smooth"])
def test_published_rewards_over_frames(name, tmp_path):
    """The mean of what they say of each frame."""
    made = {"hpsv2.1": tiny.hpsv2, "imagereward": tiny.image_reward, "owlv2-smooth": tiny.owlv2}
    made["vqascore"] = tiny.clip_flant5
    prompts = ["one red cat", tiny.PROMPTS[1]]
    reward, told = reward_source(name, [made[name](tmp_path)]).load(prompts)
    cond = stacked("told", told)
    videos = np.random.default_rng(0).uniform(-1, 1, (2, 3, 20, 16, 3)).astype(np.float32)
    ours = jax.jit(lambda reward, x: reward(x, cond))(over_frames(reward, frames=2), videos)
    of_frame = jax.jit(lambda reward, x: reward(x, cond))
    each = [of_frame(reward, videos[:, frame]) for frame in (0, 2)]
    np.testing.assert_allclose(ours, np.mean(each, axis=0), rtol=2e-5)
    assert np.isfinite(ours).all() and ours[0] != ours[1]
