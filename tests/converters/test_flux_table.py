"""FLUX.1's published sizes fit both layouts' tables, and checkpoints come back bit for bit."""

import math

import numpy as np
import pytest

from flowsde.models.common.paths import parameters
from flowsde.models.family import abstract
from flowsde.models.flux.model import FluxConfig
from flowsde_converters.flux import FAMILY
from flowsde_converters.tables import convert, unconvert

# Billions of parameters; keys of the original layout and of diffusers'.
PUBLISHED = {"dev": (11.9014, 780, 1160), "schnell": (11.8912, 776, 1156)}
SMALL = FluxConfig(
    channels=16, heads=2, axes=(4, 6, 6), double=2, single=3, mlp=128, text=20, pooled=24
)
AXES = {"axes_dims_rope": [4, 6, 6]}


def shapes_of(config):
    return parameters(abstract(FAMILY, config))


@pytest.fixture(scope="module", params=PUBLISHED)
def published(request):
    config = getattr(FluxConfig, request.param)()
    return request.param, config, shapes_of(config)


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    return {
        path: rng.normal(size=a.shape).astype(np.float32) for path, a in shapes_of(SMALL).items()
    }


def same(back, tensors):
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(back[key], tensor, strict=True)


@pytest.mark.slow
def test_published_checkpoints_of_diffusers_fit(published):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    name, config, model = published
    with torch.device("meta"):
        theirs = diffusers.FluxTransformer2DModel(guidance_embeds=name == "dev")
    tensors = {key: np.broadcast_to(np.int8(0), a.shape) for key, a in theirs.state_dict().items()}
    assert len(tensors) == PUBLISHED[name][2]
    assert FAMILY.recognise(tensors, dict(theirs.config)).config == config
    assert FAMILY.table(config, "diffusers").problems(tensors, model) == []


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_published_sizes_have_their_keys_and_parameters(published, layout):
    name, config, model = published
    views = {path: np.broadcast_to(np.int8(0), a.shape[1:]) for path, a in model.items()}
    # Views of one byte a block: only what a move copies takes memory.
    table = FAMILY.table(config, layout)
    shapes = {}
    for row in table.rows:
        shape = model[row.target].shape
        view = views[row.target] if row.stacked else np.broadcast_to(np.int8(0), shape)
        parts = row.invert(view)
        for keys in row.keys(model):
            shapes.update(zip(keys, parts, strict=True))
    billions, original, diffusers = PUBLISHED[name]
    assert len(shapes) == (original if layout == "original" else diffusers)
    assert sum(math.prod(a.shape) for a in shapes.values()) / 1e9 == pytest.approx(
        billions, abs=5.1e-5
    )
    assert FAMILY.recognise(shapes, None)[:3] == (config, layout, table)
    assert table.problems(shapes, model) == []
    if layout == "original":
        assert shapes["double_blocks.18.img_attn.qkv.weight"].shape == (9216, 3072)
        assert shapes["double_blocks.18.txt_mod.lin.bias"].shape == (18432,)
        assert shapes["single_blocks.37.linear1.weight"].shape == (21504, 3072)
        assert shapes["single_blocks.37.linear2.weight"].shape == (3072, 15360)
        assert shapes["single_blocks.37.norm.key_norm.scale"].shape == (128,)


@pytest.mark.slow
def test_round_trip_over_both_layouts_is_bit_exact(params):
    diffusers = unconvert(FAMILY.table(SMALL, "diffusers"), params)
    found = FAMILY.recognise(diffusers, AXES)
    assert found.config == SMALL and found.layout == "diffusers"
    made = convert(found.table, diffusers, params)
    same(made, params)

    original = unconvert(FAMILY.table(SMALL, "original"), made)
    found = FAMILY.recognise(original, AXES)
    assert found.config == SMALL and found.layout == "original"
    same(convert(found.table, original, params), params)


@pytest.mark.slow
def test_layouts_hold_the_same_numbers_where_they_should(params):
    ours = unconvert(FAMILY.table(SMALL, "original"), params)
    theirs = unconvert(FAMILY.table(SMALL, "diffusers"), params)
    joined = {
        "double_blocks.1.img_attn.qkv.weight": "transformer_blocks.1.attn.to_{}.weight",
        "double_blocks.1.txt_attn.qkv.bias": "transformer_blocks.1.attn.add_{}_proj.bias",
    }
    for key, parts in joined.items():
        wanted = np.concatenate([theirs[parts.format(x)] for x in "qkv"])
        np.testing.assert_array_equal(ours[key], wanted)
    single = [
        theirs[f"single_transformer_blocks.2.{key}.weight"]
        for key in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    ]
    np.testing.assert_array_equal(ours["single_blocks.2.linear1.weight"], np.concatenate(single))
    for end in ("weight", "bias"):
        scale, shift = np.split(theirs[f"norm_out.linear.{end}"], 2)
        wanted = np.concatenate([shift, scale])
        np.testing.assert_array_equal(ours[f"final_layer.adaLN_modulation.1.{end}"], wanted)
    renamed = {
        "time_in.out_layer.weight": "time_text_embed.timestep_embedder.linear_2.weight",
        "vector_in.in_layer.weight": "time_text_embed.text_embedder.linear_1.weight",
        "guidance_in.in_layer.bias": "time_text_embed.guidance_embedder.linear_1.bias",
        "double_blocks.0.img_mod.lin.weight": "transformer_blocks.0.norm1.linear.weight",
        "double_blocks.0.txt_mlp.2.weight": "transformer_blocks.0.ff_context.net.2.weight",
        "double_blocks.0.txt_attn.norm.key_norm.scale":
            "transformer_blocks.0.attn.norm_added_k.weight",
        "double_blocks.0.txt_attn.proj.weight": "transformer_blocks.0.attn.to_add_out.weight",
        "single_blocks.0.modulation.lin.bias": "single_transformer_blocks.0.norm.linear.bias",
        "single_blocks.0.norm.query_norm.scale": "single_transformer_blocks.0.attn.norm_q.weight",
        "final_layer.linear.weight": "proj_out.weight",
    }  # fmt: skip
    for key, other in renamed.items():
        np.testing.assert_array_equal(ours[key], theirs[other])


def test_other_checkpoints_are_not_a_flux(params):
    tensors = unconvert(FAMILY.table(SMALL, "diffusers"), params)
    tensors = {key: a for key, a in tensors.items() if not key.startswith("single_")}
    assert FAMILY.recognise(tensors, AXES) is None


def test_what_shapes_leave_open_or_is_not_supported_is_an_error(params):
    tensors = unconvert(FAMILY.table(SMALL, "original"), params)
    with pytest.raises(ValueError, match="the 16 features of a head between them, got None"):
        FAMILY.recognise(tensors, None)
    with pytest.raises(ValueError, match=r"got \[16, 56, 56\]"):
        FAMILY.recognise(tensors, {"axes_dims_rope": [16, 56, 56]})
    fill = tensors | {"img_in.weight": np.zeros((32, 96), np.float32)}
    with pytest.raises(ValueError, match=r"takes 96 values and final_layer.linear.weight gives 16"):
        FAMILY.recognise(fill, AXES)
    for values, kin in ((384, "FLUX.1 Fill"), (128, "FLUX.1 Canny, Depth")):
        relative = tensors | {
            "img_in.weight": np.zeros((32, values), np.float32),
            "final_layer.linear.weight": np.zeros((64, 32), np.float32),
        }
        with pytest.raises(ValueError, match=f"takes {values} values .* gives 64, .*: {kin} and"):
            FAMILY.recognise(relative, AXES)
    without = SMALL.guidance is False
    with pytest.raises(ValueError, match=f"guidance_embeds {without}, and guidance_in.in_layer"):
        FAMILY.recognise(tensors, AXES | {"guidance_embeds": without})
    FAMILY.recognise(tensors, AXES | {"guidance_embeds": not without})
    with pytest.raises(ValueError, match="'original', 'diffusers', got 'comfy'"):
        FAMILY.table(SMALL, "comfy")
