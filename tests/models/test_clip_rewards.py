"""Rewards by CLIP against the public preprocessing and models of `transformers`."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from outside import torch, transformers
from torch_parity import error, port, randomised, tensors

from flowsde.models.aesthetic.model import AestheticConfig
from flowsde.models.clip import rewards as rewards
from flowsde.models.common.layers import Numerics
from flowsde.models.common.paths import parameters
from flowsde_converters import aesthetic, clip
from flowsde_converters.tables import unconvert

SIDE = 24
TOWER = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
}  # fmt: skip


evaluate = jax.jit(lambda reward, images, cond: reward(images, cond))


def pictures(n, height, width, seed=0):
    """Eight-bit pictures of noise, the hardest to resize, and the same in [-1, 1]."""
    bits = np.random.default_rng(seed).integers(0, 256, (n, height, width, 3)).astype(np.uint8)
    return bits, jnp.asarray(bits.astype(np.float32) / 127.5 - 1.0)


def processed(bits, size):
    """Pixels [n, 3, size, size] of the public preprocessing."""
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    return processor(list(bits), return_tensors="np")["pixel_values"]


@pytest.fixture(scope="module")
def model():
    """CLIP of `transformers`, ours, and tokens of two prompts."""
    config = transformers.CLIPConfig(
        text_config=TOWER | {
            "vocab_size": 50, "max_position_embeddings": 9, "eos_token_id": 49,
            "bos_token_id": 1, "pad_token_id": 0,
        },
        vision_config=TOWER | {"image_size": SIDE, "patch_size": 8},
        projection_dim=20,
    )  # fmt: skip
    module = randomised(transformers.CLIPModel(config))
    module.logit_scale.data.fill_(1.2)
    tokens = np.random.default_rng(0).integers(2, 48, (2, 9))
    tokens[:, 6] = 49
    return module, port(clip.FAMILY, module, config.to_dict())[0], tokens


@pytest.fixture(scope="module")
def embeddings(model):
    _, ours, tokens = model
    return rewards.text_embeddings(ours, jnp.asarray(tokens, jnp.int32))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(75, 101, 56), (50, 34, 56), (40, 31, 24), (24, 24, 24), (230, 226, 224)],
)
def test_pixels(height, width, size):
    bits, images = pictures(2, height, width)
    ours = rewards.clip_pixels(images, size)
    theirs = processed(bits, size).transpose(0, 2, 3, 1)
    assert ours.shape == theirs.shape
    # In units of [0, 1], where the public ones are rounded to 1/255 after each axis.
    assert (np.abs(ours - theirs) * np.asarray(rewards.STD)).max() < 1e-2


def test_pixels_are_clipped():
    ours = rewards.clip_pixels(jnp.full((1, 24, 24, 3), 7.0), 24)
    white = (1.0 - np.asarray(rewards.MEAN)) / np.asarray(rewards.STD)
    np.testing.assert_allclose(ours[0, 3, 4], white, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(SIDE, SIDE), (40, 31)])
def test_scores(model, embeddings, height, width):
    module, ours, tokens = model
    bits, images = pictures(2, height, width)
    with torch.no_grad():
        out = module(torch.tensor(tokens), torch.tensor(processed(bits, SIDE)))
    cosine = (out.image_embeds * out.text_embeds).sum(-1).numpy()
    score = evaluate(rewards.clip_score(ours), images, embeddings)
    np.testing.assert_allclose(score, cosine, atol=1e-3)
    logits, picked = out.logits_per_image.diagonal(), rewards.pick_score(ours)
    # Of a scale of exp(1.2).
    np.testing.assert_allclose(evaluate(picked, images, embeddings), logits, atol=3.3e-3)


@pytest.mark.slow
def test_scale(model, embeddings):
    _, ours, _ = model
    _, images = pictures(2, SIDE, SIDE)
    score = evaluate(rewards.clip_score(ours), images, embeddings)
    scaled = rewards.clip_score(ours, scale=2.5)
    np.testing.assert_allclose(evaluate(scaled, images, embeddings), 2.5 * score, rtol=1e-5)


class Head(torch.nn.Module):
    """As the checkpoint's keys say: linear layers, dropout between them."""

    def __init__(self, *widths):
        super().__init__()
        layers = []
        for i, (a, b) in enumerate(itertools.pairwise(widths)):
            layers.append(torch.nn.Linear(a, b))
            if i < 3:
                layers.append(torch.nn.Dropout(0.1))
        self.layers = torch.nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)[:, 0]


@pytest.mark.slow
def test_aesthetic_score(model):
    module, ours, _ = model
    head = randomised(Head(20, 24, 12, 8, 6, 1))
    ours_head, found = port(aesthetic.FAMILY, head)
    assert found.config.widths == (20, 24, 12, 8, 6)
    back = unconvert(found.table, parameters(ours_head))
    assert back.keys() == tensors(head).keys()
    for key, tensor in tensors(head).items():
        np.testing.assert_array_equal(back[key], tensor, strict=True)
    bits, images = pictures(2, SIDE, SIDE)
    with torch.no_grad():
        out = module.get_image_features(torch.tensor(processed(bits, SIDE))).pooler_output
        theirs = head(out / out.norm(dim=-1, keepdim=True))
    score = evaluate(rewards.aesthetic(ours.vision, ours_head), images, None)
    assert error(score, theirs) < 1e-3


def test_full_size_head():
    with torch.device("meta"):
        module = Head(768, 1024, 128, 64, 16, 1)
    found = aesthetic.FAMILY.recognise(module.state_dict(), None)
    assert found.config == AestheticConfig()
    assert aesthetic.FAMILY.recognise(dict(list(module.state_dict().items())[:-1]), None) is None


@pytest.mark.slow
def test_gradients_stop_only_where_values_are_clipped():
    x = jnp.asarray([[-2.0, -0.5, 0.3, 1.7]] * 4)[None, :, :, None] * jnp.ones((1, 1, 1, 3))
    slope = jax.grad(lambda x: rewards.clip_pixels(x, 4).sum())(x)
    wanted = np.asarray([0.0, 0.5, 0.5, 0.0])[None, None, :, None] / np.asarray(rewards.STD)
    np.testing.assert_allclose(slope, np.broadcast_to(wanted, x.shape), rtol=1e-5)
    grown = jax.grad(lambda x: rewards.clip_pixels(x, 6).sum())(0.3 * x)
    assert (grown > 0).all()


@pytest.mark.slow
def test_parameters_are_arguments(model, embeddings):
    _, ours, _ = model
    reward = rewards.clip_score(ours)
    assert len(jax.tree.leaves(reward)) == len(jax.tree.leaves(ours.vision)) + 1
    assert reward.name == "clip_score"
    compiled = jax.jit(lambda reward, images, cond: reward(images, cond))
    _, images = pictures(2, SIDE, SIDE)
    compiled(reward, images, embeddings)
    compiled(rewards.clip_score(ours, scale=3.0), images, embeddings)
    assert compiled._cache_size() == 1


@pytest.mark.slow
def test_bfloat16_towers_give_float32_scores(model, embeddings):
    module, ours, _ = model
    half = Numerics(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    small, _ = port(clip.FAMILY, module, module.config.to_dict(), half)
    _, images = pictures(2, SIDE, SIDE)
    score = evaluate(rewards.clip_score(small), images, embeddings)
    exact = evaluate(rewards.clip_score(ours), images, embeddings)
    assert score.dtype == jnp.float32
    np.testing.assert_allclose(score, exact, atol=2e-2)


@pytest.mark.slow
def test_what_does_not_fit_is_named(model, embeddings):
    _, ours, _ = model
    with pytest.raises(ValueError, match=r"\[n, height, width, 3\], got \[1, 3, 24, 24\]"):
        rewards.clip_pixels(jnp.zeros((1, 3, 24, 24)))
    with pytest.raises(ValueError, match=r"shape \[3, 20\], got \[2, 20\]"):
        jax.eval_shape(rewards.clip_score(ours), jnp.zeros((3, 24, 24, 3)), embeddings)
    with pytest.raises(ValueError, match="scale must be positive and finite, got 0"):
        rewards.clip_score(ours, scale=0)
