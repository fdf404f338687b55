"""FLUX.2-klein's published sizes fit its tables, and checkpoints come back bit for bit."""

import functools
import math

import numpy as np
import pytest
from quick import slow
from safetensors.numpy import save_file

from flowsde.models.common.paths import parameters
from flowsde.models.family import abstract
from flowsde.models.flux2.model import Flux2Config
from flowsde_converters.convert import prepare
from flowsde_converters.flux2 import FAMILY, LAYOUTS
from flowsde_converters.tables import convert, unconvert

SMALL = Flux2Config(
    channels=16, heads=2, axes=(2, 2, 2, 4), double=2, single=3, mlp=12, text=6
)  # fmt: skip
AXES = {"axes_dims_rope": [2, 2, 2, 4]}
WIDTH = SMALL.width


def shapes_of(config):
    return parameters(abstract(FAMILY, config))


@functools.cache
def params():
    rng = np.random.default_rng(0)
    return {path: rng.normal(size=a.shape).astype(np.float32) for path, a in
            shapes_of(SMALL).items()}  # fmt: skip


def checkpoint(layout):
    return unconvert(FAMILY.table(SMALL, layout), params())


@pytest.mark.slow
def test_the_published_checkpoint_fits():
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    with torch.device("meta"):
        theirs = diffusers.Flux2Transformer2DModel(
            num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680,
            guidance_embeds=False,
        )  # fmt: skip
    tensors = {key: np.broadcast_to(np.int8(0), a.shape) for key, a in theirs.state_dict().items()}
    model = shapes_of(Flux2Config())
    assert len(tensors) == 169
    for told in (None, dict(theirs.config)):
        found = FAMILY.recognise(tensors, told)
        assert (found.config, found.layout) == (Flux2Config(), "diffusers")
    assert found.table.problems(tensors, model) == []
    assert sum(math.prod(a.shape) for a in model.values()) == pytest.approx(3.876e9, rel=5e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_round_trip_is_bit_exact(layout):
    tensors = checkpoint(layout)
    found = FAMILY.recognise(tensors, AXES)
    assert (found.config, found.layout) == (SMALL, layout)
    made = convert(found.table, tensors, params())
    assert made.keys() == params().keys()
    for path, array in params().items():
        np.testing.assert_array_equal(made[path], array, strict=True)


@pytest.mark.slow
def test_the_original_layout_is_what_diffusers_takes_it_for():
    single = pytest.importorskip("diffusers.loaders.single_file_utils")
    torch = pytest.importorskip("torch")
    held = {k: torch.from_numpy(np.ascontiguousarray(a)) for k, a in checkpoint("original").items()}
    wanted = single.convert_flux2_transformer_checkpoint_to_diffusers(held)
    ours = checkpoint("diffusers")
    assert ours.keys() == wanted.keys()
    for key, tensor in wanted.items():
        np.testing.assert_array_equal(ours[key], tensor.numpy())


@pytest.mark.parametrize("base", ["diffusers", slow("original")])
def test_adapters_may_have_the_other_layout(base, tmp_path):
    """Names of kohya's for the original layers, or of diffusers'; the same sum is added to q, k
    and v, or to the layer of all three, and to the last modulation in its own order."""
    begin = "model.diffusion_model." if base == "original" else ""
    save_file({f"{begin}{k}": np.array(a) for k, a in checkpoint(base).items()},
              tmp_path / "model.safetensors")  # fmt: skip
    rng = np.random.default_rng(1)
    names = {
        "diffusers": [  # of the adapters, beside weights that are so laid out
            ("lora_unet_double_blocks_1_img_attn_qkv", 3 * WIDTH, WIDTH),
            ("lora_unet_single_blocks_2_linear2", WIDTH, WIDTH + 12),
            ("lora_unet_final_layer_adaLN_modulation_1", 2 * WIDTH, WIDTH),
        ],
        "original": [
            *(("transformer.transformer_blocks.1.attn.to_" + x, WIDTH, WIDTH) for x in "qkv"),
            ("transformer.single_transformer_blocks.2.attn.to_out", WIDTH, WIDTH + 12),
            ("transformer.norm_out.linear", 2 * WIDTH, WIDTH),
        ],
    }[base]
    ends = ("lora_up", "lora_down") if base == "diffusers" else ("lora_B", "lora_A")
    pairs = {
        name: [rng.normal(size=s).astype(np.float32) for s in ((rows, 2), (2, columns))]
        for name, rows, columns in names
    }
    save_file(
        {
            f"{name}.{end}.weight": a
            for name, pair in pairs.items()
            for end, a in zip(ends, pair, strict=True)
        },
        tmp_path / "lora.safetensors",
    )
    loras = [(tmp_path / "lora.safetensors", 0.5)]
    plan = prepare(tmp_path / "model.safetensors", settings=AXES, loras=loras).plans[""]
    assert (plan.family.name, plan.found.layout) == ("flux2", base)
    *qkv, leave, last = (0.5 * b @ a for b, a in pairs.values())
    wanted = {
        ("double.image.qkv.kernel", 1): np.concatenate(qkv),
        ("single.leave.kernel", 2): leave,
        # The halves of the one are in the other's order.
        ("modulation.linear.kernel", 0): np.roll(last, WIDTH, axis=0),
    }
    assert {(path, i) for path, made in plan.changes.items() for i in made} == wanted.keys()
    for (path, i), delta in wanted.items():
        made = plan.changes[path][i](np.zeros_like(delta))
        np.testing.assert_allclose(made, delta, atol=1e-6)


@pytest.mark.parametrize(
    ("layout", "changes", "beside", "says"),
    [
        ("diffusers", {}, {}, r"must have the 10 features of a head between them, got None"),
        ("diffusers", {}, {"axes_dims_rope": [2, 2]}, r"between them, got \[2, 2\]"),
        ("diffusers", {}, AXES | {"rope_theta": 1e4}, "rope_theta .* must be 2000.0, got 10000.0"),
        ("diffusers", {}, AXES | {"guidance_embeds": True}, "must be False, got True"),
        (
            "original", {"guidance_in.in_layer.weight": (20, 256)}, AXES,
            "guidance_in.in_layer.weight takes a scale .* FLUX.2-dev .* FLUX.2-klein is supported",
        ),
        ("original", {"final_layer.linear.weight": (8, 20)}, AXES, "takes 16 values and .* 8, exp"),
    ],
)  # fmt: skip
def test_what_flux_2_leaves_open_or_is_not_supported_is_an_error(layout, changes, beside, says):
    tensors = checkpoint(layout)
    tensors |= {key: np.zeros(shape, np.float32) for key, shape in changes.items()}
    with pytest.raises(ValueError, match=says):
        FAMILY.recognise(tensors, beside)


def test_other_layouts_and_families():
    with pytest.raises(ValueError, match="'original', 'diffusers', got 'comfy'"):
        FAMILY.table(SMALL, "comfy")
    tensors = checkpoint("original")
    del tensors["single_stream_modulation.lin.weight"]
    assert FAMILY.recognise(tensors, AXES) is None
