"""Z-Image's and Qwen3's published sizes fit their tables, and checkpoints come back bit for bit."""

import functools
import math

import numpy as np
import pytest
from quick import slow
from safetensors.numpy import save_file

from flowsde.models.common.paths import parameters
from flowsde.models.family import abstract
from flowsde.models.qwen3.model import Qwen3Config
from flowsde.models.zimage.model import ZImageConfig
from flowsde_converters import qwen3, zimage
from flowsde_converters.convert import prepare
from flowsde_converters.tables import convert, unconvert

SMALL = {
    "zimage": ZImageConfig(
        channels=4, heads=2, axes=(2, 2, 4), depth=2, refiners=1, mlp=12, text=6, time=10,
        condition=8,
    ),
    "qwen3": Qwen3Config(vocab=9, width=8, depth=2, heads=4, shared=2, head=6, mlp=10),
}  # fmt: skip
FAMILIES = {"zimage": zimage.FAMILY, "qwen3": qwen3.FAMILY}
LAYOUTS = [("zimage", "diffusers"), ("zimage", "original"), ("qwen3", "transformers")]
AXES = {"axes_dims": [2, 2, 4]}
# Keys and parameters.
PUBLISHED = {"zimage": (521, 6.155e9), "qwen3": (398, 4.022e9)}


def shapes_of(family, config):
    return parameters(abstract(FAMILIES[family], config))


@functools.cache
def params_of(family):
    rng = np.random.default_rng(0)
    shapes = shapes_of(family, SMALL[family])
    return {path: rng.normal(size=a.shape).astype(np.float32) for path, a in shapes.items()}


def checkpoint(family, layout):
    """Parameters, and the tensors that they come from."""
    params = params_of(family)
    return params, unconvert(FAMILIES[family].table(SMALL[family], layout), params)


def published(name):
    """The PyTorch class at full size, without values."""
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        if name == "zimage":
            return pytest.importorskip("diffusers").ZImageTransformer2DModel()
        transformers = pytest.importorskip("transformers")
        # The config.json of Qwen3-4B.
        return transformers.Qwen3Model(
            transformers.Qwen3Config(
                hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, head_dim=128,
                num_attention_heads=32, num_key_value_heads=8, rope_theta=1e6, rms_norm_eps=1e-6,
            )
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_checkpoints_fit(name):
    keys, count = PUBLISHED[name]
    theirs = published(name)
    tensors = {key: np.broadcast_to(np.int8(0), a.shape) for key, a in theirs.state_dict().items()}
    config = type(SMALL[name])()
    model = shapes_of(name, config)
    assert len(tensors) == keys
    for told in (None, dict(theirs.config) if name == "zimage" else theirs.config.to_dict()):
        found = FAMILIES[name].recognise(tensors, told)
        assert found.config == config
    assert found.table.problems(tensors, model) == []
    assert sum(math.prod(a.shape) for a in model.values()) == pytest.approx(count, rel=5e-4)


@pytest.mark.slow_but_one
@pytest.mark.parametrize(("family", "layout"), LAYOUTS)
def test_a_round_trip_is_bit_exact(family, layout):
    params, tensors = checkpoint(family, layout)
    found = FAMILIES[family].recognise(tensors, AXES if family == "zimage" else None)
    assert (found.config, found.layout) == (SMALL[family], layout)
    made = convert(found.table, tensors, params)
    assert made.keys() == params.keys()
    for path, array in params.items():
        np.testing.assert_array_equal(made[path], array, strict=True)


@pytest.mark.slow
def test_the_original_layout_is_what_diffusers_takes_it_for():
    single = pytest.importorskip("diffusers.loaders.single_file_utils")
    torch = pytest.importorskip("torch")
    _, original = checkpoint("zimage", "original")
    held = {key: torch.from_numpy(np.ascontiguousarray(a)) for key, a in original.items()}
    held["norm_final.weight"] = torch.zeros(3)
    wanted = single.convert_z_image_transformer_checkpoint_to_diffusers(held)
    _, ours = checkpoint("zimage", "diffusers")
    assert ours.keys() == wanted.keys()
    for key, tensor in wanted.items():
        np.testing.assert_array_equal(ours[key], tensor.numpy())


@pytest.mark.parametrize("base", ["diffusers", slow("original")])
def test_adapters_may_have_the_other_layout(base, tmp_path):
    """The same sum is added to q, k and v, or to the layer of all three."""
    layout = {"diffusers": "original", "original": "diffusers"}[base]
    _, tensors = checkpoint("zimage", base)
    save_file({f"model.diffusion_model.{k}": np.array(a) for k, a in tensors.items()},
              tmp_path / "model.safetensors")  # fmt: skip
    rng = np.random.default_rng(1)
    names = {"original": ["qkv"], "diffusers": ["to_q", "to_k", "to_v"]}[layout]
    rows = 16 * 3 // len(names)
    pairs = [[rng.normal(size=s).astype(np.float32) for s in ((rows, 2), (2, 16))] for _ in names]
    save_file(
        {
            f"diffusion_model.layers.1.attention.{name}.lora_{half}.weight": a
            for name, pair in zip(names, pairs, strict=True)
            for half, a in zip("BA", pair, strict=True)
        },
        tmp_path / "lora.safetensors",
    )
    loras = [(tmp_path / "lora.safetensors", 0.5)]
    plan = prepare(tmp_path / "model.safetensors", settings=AXES, loras=loras).plans[""]
    assert (plan.family.name, plan.found.layout) == ("zimage", base)
    (target,) = plan.changes
    assert target == "blocks.attention.qkv.kernel" and list(plan.changes[target]) == [1]
    before = np.zeros((48, 16), np.float32)
    wanted = 0.5 * np.concatenate([b @ a for b, a in pairs])
    np.testing.assert_allclose(plan.changes[target][1](before), wanted, atol=1e-6)


def test_a_whole_language_model_is_read_without_its_head(tmp_path):
    _, tensors = checkpoint("qwen3", "transformers")
    held = {f"model.{key}": np.array(a) for key, a in tensors.items()}
    save_file(held | {"lm_head.weight": np.ones((9, 8), np.float32)},
              tmp_path / "model.safetensors")  # fmt: skip
    plan = prepare(tmp_path / "model.safetensors").plans[""]
    assert (plan.family.name, plan.found.config) == ("qwen3", SMALL["qwen3"])


@pytest.mark.parametrize(
    ("changes", "beside", "says"),
    [
        ({}, {}, r"must have the 8 features of a head between them, got None"),
        ({}, {"axes_dims": [4, 4, 4]}, r"between them, got \[4, 4, 4\]"),
        ({}, AXES | {"t_scale": 1.0}, "t_scale in config.json must be 1000.0, got 1.0"),
        ({}, AXES | {"all_patch_size": [2, 4]}, r"all_patch_size .* must be \[2\], got \[2, 4\]"),
        ({"siglip_pad_token": (1, 16)}, AXES, "without others: siglip_pad_token"),
        ({"noise_refiner.1.x": (1,)}, AXES, "must have as many blocks"),
    ],
)
def test_what_z_image_leaves_open_or_is_not_supported_is_an_error(changes, beside, says):
    _, tensors = checkpoint("zimage", "diffusers")
    tensors |= {key: np.zeros(shape, np.float32) for key, shape in changes.items()}
    with pytest.raises(ValueError, match=says):
        zimage.FAMILY.recognise(tensors, beside)


@pytest.mark.parametrize(
    ("beside", "says"),
    [
        ({"hidden_act": "gelu"}, "hidden_act in config.json must be silu, got 'gelu'"),
        ({"use_sliding_window": True}, "use_sliding_window in config.json must be False, got True"),
        ({"rope_scaling": {"type": "yarn"}}, "turned as by default, got 'yarn'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "turned as by default, got 'yarn'"),
    ],
)
def test_settings_of_qwen3_that_are_not_supported_are_an_error(beside, says):
    _, tensors = checkpoint("qwen3", "transformers")
    with pytest.raises(ValueError, match=says):
        qwen3.FAMILY.recognise(tensors, beside)


def test_settings_of_qwen3_are_read_as_either_version_writes_them():
    _, tensors = checkpoint("qwen3", "transformers")
    for told in (
        {"rope_theta": 5e6, "rope_scaling": None},
        {"rope_parameters": {"rope_theta": 5e6}},
    ):
        assert qwen3.FAMILY.recognise(tensors, told).config.theta == 5e6


def test_other_layouts_and_families():
    with pytest.raises(ValueError, match="'diffusers', 'original', got 'comfy'"):
        zimage.FAMILY.table(SMALL["zimage"], "comfy")
    with pytest.raises(ValueError, match="has the layout 'transformers', got 'gguf'"):
        qwen3.FAMILY.table(SMALL["qwen3"], "gguf")
    for family, layout, key in (
        ("zimage", "diffusers", "cap_pad_token"),
        ("qwen3", "transformers", "layers.0.self_attn.q_norm.weight"),
    ):
        _, tensors = checkpoint(family, layout)
        del tensors[key]
        assert FAMILIES[family].recognise(tensors, AXES) is None
