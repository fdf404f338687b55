"""ImageReward against BLIP's classes of `transformers`, its table, and its reward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from outside import torch, transformers
from torch_parity import apply, error, randomised

from flowsde.models.aesthetic.model import AestheticConfig
from flowsde.models.blip.model import BLIPTextConfig, ImageRewardConfig
from flowsde.models.blip.rewards import image_reward
from flowsde.models.clip.model import CLIPVisionConfig
from flowsde.models.clip.rewards import clip_pixels
from flowsde.models.common.layers import Numerics
from flowsde.models.common.paths import parameters, with_parameters
from flowsde.models.family import abstract
from flowsde_converters import blip
from flowsde_converters.tables import convert, unconvert

SIDE, PAD = 32, 0
TINY_VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": SIDE, "patch_size": 8, "layer_norm_eps": 1e-6,
}  # fmt: skip
TINY_TEXT = {
    "vocab_size": 50, "hidden_size": 24, "encoder_hidden_size": 32, "intermediate_size": 40,
    "num_hidden_layers": 2, "num_attention_heads": 3, "max_position_embeddings": 40,
    "layer_norm_eps": 1e-12, "is_decoder": True,
}  # fmt: skip
BESIDE = {
    "vision_config": {"num_attention_heads": 4}, "text_config": {"num_attention_heads": 3},
}  # fmt: skip
WIDTHS = (24, 20, 12, 8, 6)


def public(vision, text, widths):
    """The image tower, the text encoder, and the head as the published class has it."""
    places = [torch.nn.Identity() for _ in range(8)]
    for i, place in enumerate((0, 2, 4, 6, 7)):
        places[place] = torch.nn.Linear(widths[i], (*widths, 1)[i + 1])
    return torch.nn.ModuleDict(
        {
            "vision": transformers.BlipVisionModel(transformers.BlipVisionConfig(**vision)),
            "text": transformers.BlipTextModel(
                transformers.BlipTextConfig(**text), add_pooling_layer=False
            ),
            "layers": torch.nn.Sequential(*places),
        }
    )


def file_key(key):
    """The published file's name of a tensor of `public`."""
    model, _, rest = key.partition(".")
    if model == "layers":
        return f"mlp.{key}"
    if model == "text":
        return f"blip.text_encoder.{rest}"
    for theirs, files in (
        ("embeddings.class_embedding", "cls_token"),
        ("embeddings.position_embedding", "pos_embed"),
        ("embeddings.patch_embedding", "patch_embed.proj"),
        ("encoder.layers", "blocks"),
        ("layer_norm1", "norm1"),
        ("layer_norm2", "norm2"),
        ("self_attn.projection", "attn.proj"),
        ("self_attn", "attn"),
        ("post_layernorm", "norm"),
    ):
        rest = rest.replace(theirs, files)
    return f"blip.visual_encoder.{rest}"


def file_of(module):
    """What the published file would hold, with what no reward depends on."""
    held = {file_key(key): tensor for key, tensor in module.state_dict().items()}
    width = held["mlp.layers.0.weight"].shape[1]
    vision = held["blip.visual_encoder.cls_token"].shape[-1]
    for name, size in (("vision_proj", vision), ("text_proj", width)):
        held[f"blip.{name}.weight"] = torch.zeros(256, size)
        held[f"blip.{name}.bias"] = torch.zeros(256)
    places = held["blip.text_encoder.embeddings.position_embeddings.weight"].shape[0]
    held["blip.text_encoder.embeddings.position_ids"] = torch.arange(places)[None]
    return held


@pytest.fixture(scope="module")
def tiny():
    """The public parts, their file, and ours of it."""
    module = randomised(public(TINY_VISION, TINY_TEXT, WIDTHS))
    held = {key: tensor.numpy() for key, tensor in file_of(module).items()}
    found = blip.FAMILY.recognise(held, BESIDE)
    made = abstract(blip.FAMILY, found.config, Numerics())
    params = convert(found.table, held, parameters(made))
    return module, held, found, with_parameters(made, params)


def tokens():
    """Of two texts, the second padded."""
    ids = np.random.default_rng(0).integers(1, 50, (2, 9)).astype(np.int32)
    ids[1, 5:] = PAD
    return ids


def pixels(n=2):
    return np.random.default_rng(1).normal(size=(n, SIDE, SIDE, 3)).astype(np.float32)


def theirs(module, x, ids):
    """Tokens of the image, of the text, and rewards, by the published formula."""
    image = module["vision"](x).last_hidden_state
    ids = torch.tensor(ids.astype(np.int64))
    text = module["text"](
        input_ids=ids,
        attention_mask=(ids != PAD).long(),
        encoder_hidden_states=image,
        encoder_attention_mask=torch.ones(image.shape[:2], dtype=torch.long),
        is_decoder=False,
    ).last_hidden_state
    value = module["layers"](text[:, 0])[:, 0]
    return image, text, (value - 0.16717362830052426) / 1.0333394966054072


def as_torch(x):
    return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2))


def parts(model, x, ids):
    image = model.vision(x)
    return image, model.text(ids, image), model(x, ids)


@pytest.mark.slow
def test_towers_and_rewards(tiny):
    module, _, _, model = tiny
    ids = tokens()
    with torch.no_grad():
        wanted = theirs(module, as_torch(pixels()), ids)
    ours = apply(model, parts, pixels(), ids)
    assert error(ours[0], wanted[0]) < 2e-5
    # Of padding nothing is read.
    for row, length in ((0, 9), (1, 5)):
        assert error(ours[1][row, :length], wanted[1][row, :length]) < 2e-5
    assert error(ours[2], wanted[2]) < 1e-4


@pytest.mark.slow
def test_gradient_of_the_image(tiny):
    """Through the preprocessing too, of a picture of the model's own size."""
    module, _, _, model = tiny
    images = np.random.default_rng(2).uniform(-0.9, 0.9, (2, SIDE, SIDE, 3)).astype(np.float32)
    reward = image_reward(model, minibatch=1)

    @jax.jit
    def scored(reward, x):
        score, back = jax.vjp(lambda x: reward(x, tokens()), x)
        return score, back(jnp.ones_like(score))[0]

    score, slope = scored(reward, images)
    x = as_torch(clip_pixels(jnp.asarray(images), SIDE)).requires_grad_()
    wanted = theirs(module, x, tokens())[2]
    wanted.sum().backward()
    assert error(score, wanted) < 1e-4
    # Pixels in [-1, 1] are halved, and divided by each colour's deviation.
    std = np.asarray((0.26862954, 0.26130258, 0.27577711))
    assert error(slope, x.grad.numpy().transpose(0, 2, 3, 1) / (2.0 * std)) < 1e-3
    # Weights are arguments, so that programs are shared and hold none.
    assert len(jax.tree.leaves(reward)) == len(parameters(model))
    assert (reward.name, reward.minibatch) == ("imagereward", 1)


@pytest.mark.slow
def test_a_file_comes_back_with_the_same_bits(tiny):
    _, held, found, model = tiny
    back = unconvert(found.table, {k: np.asarray(a) for k, a in parameters(model).items()})
    left = {key for key in held if "_proj" in key.split(".")[1] or key.endswith("position_ids")}
    assert len(left) == 5 and back.keys() == held.keys() - left
    for key, tensor in back.items():
        np.testing.assert_array_equal(tensor, held[key], strict=True)


@pytest.mark.slow
def test_full_size():
    """Of the published sizes; keys and parameters as the published class counts them."""
    vision = {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 224, "patch_size": 16,
    }  # fmt: skip
    text = {
        "vocab_size": 30524, "hidden_size": 768, "encoder_hidden_size": 1024,
        "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "max_position_embeddings": 512,
    }  # fmt: skip
    with torch.device("meta"):
        held = file_of(public(vision, text, (768, 1024, 128, 64, 16)))
    assert len(held) == 625
    counted = sum(a.numel() for key, a in held.items() if not key.endswith("position_ids"))
    assert counted == 446_665_953
    checkpoint = {
        key: np.broadcast_to(np.float32(0), tuple(tensor.shape)) for key, tensor in held.items()
    }
    found = blip.FAMILY.recognise(checkpoint, None)
    assert found.config == ImageRewardConfig()
    assert found.table.problems(checkpoint, parameters(abstract(blip.FAMILY, found.config))) == []


@pytest.mark.slow
def test_what_cannot_be_is_named(tiny):
    _, held, _, model = tiny
    assert blip.FAMILY.recognise({k: a for k, a in held.items() if "mlp" not in k}, None) is None
    with pytest.raises(ValueError, match="32 features are not those of heads of 64: expected num_"):
        blip.FAMILY.recognise(held, None)
    with pytest.raises(ValueError, match="layout must be original, got 'diffusers'"):
        blip.FAMILY.table(ImageRewardConfig(), "diffusers")
    with pytest.raises(ValueError, match="heads must divide width, got 5 and 768"):
        BLIPTextConfig(heads=5)
    with pytest.raises(ValueError, match="images of 1024 features and the head texts of 768, got"):
        ImageRewardConfig(vision=CLIPVisionConfig(width=32), head=AestheticConfig())
    with pytest.raises(ValueError, match=r"\[n, 32, 32, 3\], got \[2, 16, 16, 3\]"):
        jax.eval_shape(model, jnp.zeros((2, 16, 16, 3)), jnp.asarray(tokens()))
    with pytest.raises(ValueError, match="at most 40 places, got 41"):
        jax.eval_shape(model, jnp.asarray(pixels()), jnp.zeros((2, 41), jnp.int32))
