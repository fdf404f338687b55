"""CLIP's tables fit the published models at full size, and are undone exactly."""

import dataclasses
import json
import re

import ml_dtypes
import numpy as np
import pytest
from outside import torch, transformers

from flowsde.models.common.paths import parameters
from flowsde.models.family import abstract
from flowsde_converters import clip
from flowsde_converters.tables import convert, unconvert

L_TEXT = {
    "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
    "num_hidden_layers": 12, "projection_dim": 768, "eos_token_id": 2,
}  # fmt: skip
L_VISION = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
    "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768,
}  # fmt: skip
H_TEXT = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
    "num_hidden_layers": 24, "projection_dim": 1024, "hidden_act": "gelu",
}  # fmt: skip
H_VISION = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 16,
    "num_hidden_layers": 32, "patch_size": 14, "projection_dim": 1024, "hidden_act": "gelu",
}  # fmt: skip


def both(text, vision):
    return transformers.CLIPConfig(
        text_config=text, vision_config=vision, projection_dim=text["projection_dim"]
    )


def large(name):
    """A public module without values, its family, and its config.json."""
    if name in ("L/14", "H/14"):
        config = both(L_TEXT, L_VISION) if name == "L/14" else both(H_TEXT, H_VISION)
        return transformers.CLIPModel, config, clip.FAMILY
    if name == "L/14 text":
        return transformers.CLIPTextModel, transformers.CLIPTextConfig(**L_TEXT), clip.TEXT
    config = transformers.CLIPVisionConfig(**H_VISION)
    return transformers.CLIPVisionModelWithProjection, config, clip.VISION


@pytest.mark.slow
@pytest.mark.parametrize("name", ["L/14", "H/14", "L/14 text", "H/14 vision"])
def test_full_size(name):
    kind, settings, family = large(name)
    with torch.device("meta"):
        module = kind(settings)
    checkpoint = {
        key: np.broadcast_to(np.float32(0), tuple(tensor.shape))
        for key, tensor in module.state_dict().items()
    }
    found = family.recognise(checkpoint, settings.to_dict())
    model = parameters(abstract(family, found.config))
    assert found.table.problems(checkpoint, model) == []
    ours = sum(int(np.prod(p.shape)) for p in model.values())
    assert ours == sum(p.numel() for p in module.parameters())
    again = family.config(**json.loads(json.dumps(dataclasses.asdict(found.config))))
    assert again == found.config
    # Only one family takes it.
    others = {clip.FAMILY, clip.TEXT, clip.VISION} - {family}
    assert not any(other.recognise(checkpoint, settings.to_dict()) for other in others)


def test_configuration_of_the_published_models():
    kind, settings, family = large("H/14")
    with torch.device("meta"):
        module = kind(settings)
    config = family.recognise(module.state_dict(), settings.to_dict()).config
    assert (config.vision.heads, config.vision.activation, config.text.eos) == (16, "gelu", 49407)
    assert config.vision.image == 224


TINY = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 12}


def tiny(dtype=np.float32):
    config = both(
        TINY | {"vocab_size": 9, "projection_dim": 6}, TINY | {"image_size": 8, "patch_size": 4}
    )
    with torch.device("meta"):
        shapes = transformers.CLIPModel(config).state_dict()
    rng = np.random.default_rng(0)
    return config.to_dict(), {
        key: rng.normal(size=tuple(shape.shape)).astype(dtype) for key, shape in shapes.items()
    }


def round_trip(family, checkpoint, settings):
    found = family.recognise(checkpoint, settings)
    model = abstract(family, found.config)
    params = convert(found.table, checkpoint, parameters(model))
    return found, unconvert(found.table, params)


def assert_same(back, checkpoint):
    assert back.keys() == checkpoint.keys()
    for key, tensor in checkpoint.items():
        np.testing.assert_array_equal(back[key], tensor, strict=True)


def test_unconvert_gives_back_the_same_bits():
    settings, checkpoint = tiny()
    _, back = round_trip(clip.FAMILY, checkpoint, settings)
    assert_same(back, checkpoint)


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize(
    ("family", "name"), [(clip.TEXT, "text_model."), (clip.VISION, "vision_model.")]
)
def test_a_tower_with_and_without_its_prefix(family, name, bare):
    settings, checkpoint = tiny()
    tower = {key: tensor for key, tensor in checkpoint.items() if key.startswith(name)}
    if bare:
        tower = {key.removeprefix(name): tensor for key, tensor in tower.items()}
    found, back = round_trip(family, tower, settings)
    assert found.layout == ("transformers-bare" if bare else "transformers")
    assert found.config.projection is None
    assert_same(back, tower)


def test_position_ids_are_passed_over():
    settings, checkpoint = tiny()
    ids = {
        f"{name}.embeddings.position_ids": np.arange(5)[None]
        for name in ("text_model", "vision_model")
    }
    _, back = round_trip(clip.FAMILY, checkpoint | ids, settings)
    assert_same(back, checkpoint)


@pytest.mark.slow_but_one
@pytest.mark.parametrize("dtype", [np.int64, np.float16, ml_dtypes.bfloat16])
def test_position_ids_count_from_0(dtype):
    settings, checkpoint = tiny()
    key = "vision_model.embeddings.position_ids"
    # What merged checkpoints have: 300 and more are rounded in 16 bits, and still in their order.
    ids = np.arange(577).astype(dtype)[None]
    round_trip(clip.FAMILY, checkpoint | {key: ids}, settings)
    ids[0, 41] = 40
    with pytest.raises(ValueError, match=f"{key} holds other positions than 0, 1, 2"):
        round_trip(clip.FAMILY, checkpoint | {key: ids}, settings)


def test_settings_that_config_json_has_to_say():
    settings, checkpoint = tiny()
    with pytest.raises(ValueError, match=re.escape("config.json: heads and activation")):
        clip.FAMILY.recognise(checkpoint, None)
    settings["text_config"]["eos_token_id"] = [3, 4]
    with pytest.raises(ValueError, match=re.escape("one integer, got [3, 4]")):
        clip.FAMILY.recognise(checkpoint, settings)


def test_another_models_keys_are_not_taken():
    other = {"embeddings.token_embedding.weight": np.zeros((2, 2)), "other": np.zeros(1)}
    for family in (clip.FAMILY, clip.TEXT, clip.VISION):
        assert family.recognise(other, None) is None


def test_layouts_are_named():
    settings, checkpoint = tiny()
    config = clip.FAMILY.recognise(checkpoint, settings).config
    with pytest.raises(ValueError, match="got 'original'"):
        clip.FAMILY.table(config, "original")
    with pytest.raises(ValueError, match="transformers-bare, got 'original'"):
        clip.TEXT.table(config.text, "original")
