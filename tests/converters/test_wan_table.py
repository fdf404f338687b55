"""Wan's published sizes fit both layouts' tables, and checkpoints come back bit for bit."""

import math

import numpy as np
import pytest

from flowsde.models.common.paths import parameters
from flowsde.models.family import abstract
from flowsde.models.wan.model import WanConfig
from flowsde_converters.tables import convert, unconvert
from flowsde_converters.wan import FAMILY

SMALL = WanConfig(channels=4, heads=2, head=24, depth=2, mlp=96, text=20)
HEADS = {"num_attention_heads": 2}
# Keys and parameters, and what diffusers is told of them.
PUBLISHED = {
    "t2v_1_3b": (825, 1.419e9, {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}),
    "t2v_14b": (1095, 14.29e9, {}),
}


def shapes_of(config):
    return parameters(abstract(FAMILY, config))


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return {
        path: rng.normal(size=a.shape).astype(np.float32) for path, a in shapes_of(SMALL).items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_checkpoints_fit(name):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    keys, count, settings = PUBLISHED[name]
    config = getattr(WanConfig, name)()
    with torch.device("meta"):
        theirs = diffusers.WanTransformer3DModel(**settings)
    tensors = {key: np.broadcast_to(np.int8(0), a.shape) for key, a in theirs.state_dict().items()}
    model = shapes_of(config)
    assert len(tensors) == keys
    found = FAMILY.recognise(tensors, dict(theirs.config))
    assert (found.config, found.layout) == (config, "diffusers")
    assert FAMILY.recognise(tensors, None).config == config
    assert found.table.problems(tensors, model) == []
    assert sum(math.prod(a.shape) for a in model.values()) == pytest.approx(count, rel=5e-4)


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_a_round_trip_is_bit_exact(params, layout):
    tensors = unconvert(FAMILY.table(SMALL, layout), params)
    found = FAMILY.recognise(tensors, HEADS)
    assert (found.config, found.layout) == (SMALL, layout)
    made = convert(found.table, tensors, params)
    assert made.keys() == params.keys()
    for path, array in params.items():
        np.testing.assert_array_equal(made[path], array, strict=True)


def test_the_original_layout_is_what_diffusers_takes_it_for(params):
    single = pytest.importorskip("diffusers.loaders.single_file_utils")
    torch = pytest.importorskip("torch")
    original = unconvert(FAMILY.table(SMALL, "original"), params)
    wanted = single.convert_wan_transformer_to_diffusers(
        {key: torch.from_numpy(np.ascontiguousarray(a)) for key, a in original.items()}
    )
    ours = unconvert(FAMILY.table(SMALL, "diffusers"), params)
    assert ours.keys() == wanted.keys()
    for key, tensor in wanted.items():
        np.testing.assert_array_equal(ours[key], tensor.numpy())


def test_what_shapes_leave_open_or_is_not_supported_is_an_error(params):
    tensors = unconvert(FAMILY.table(SMALL, "diffusers"), params)
    with pytest.raises(ValueError, match="48 features must be those of whole heads.* got 0"):
        FAMILY.recognise(tensors, None)
    with pytest.raises(ValueError, match="whole heads.* got 7"):
        FAMILY.recognise(tensors, {"num_attention_heads": 7})
    with pytest.raises(ValueError, match=r"eps in config.json must be 1e-06, got 0.1"):
        FAMILY.recognise(tensors, HEADS | {"eps": 0.1})
    with pytest.raises(ValueError, match="qk_norm in config.json must be rms_norm_across_heads"):
        FAMILY.recognise(tensors, HEADS | {"qk_norm": "rms_norm"})
    wide = tensors | {"patch_embedding.weight": np.zeros((48, 9, 1, 2, 2), np.float32)}
    with pytest.raises(ValueError, match="without an image besides: it takes 9 channels and gives"):
        FAMILY.recognise(wide, HEADS)
    image = tensors | {"condition_embedder.image_embedder.norm1.weight": np.zeros(3)}
    with pytest.raises(ValueError, match="image_embedder.norm1.weight is there"):
        FAMILY.recognise(image, HEADS)
    long = tensors | {"patch_embedding.weight": np.zeros((48, 4, 2, 2, 2), np.float32)}
    with pytest.raises(ValueError, match=r"patches must be 1 x 2 x 2 latents, got \[2, 2, 2\]"):
        FAMILY.recognise(long, HEADS)
    with pytest.raises(ValueError, match="'diffusers', 'original', got 'comfy'"):
        FAMILY.table(SMALL, "comfy")
    del tensors["proj_out.weight"]
    assert FAMILY.recognise(tensors, HEADS) is None
