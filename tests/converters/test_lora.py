"""Adapters are merged as published, W + scale * alpha / rank * B A, whatever their keys are."""

import json
import re

import numpy as np
import pytest
from quick import slow
from safetensors.numpy import save_file

from flowsde.models.common.paths import parameters
from flowsde.models.family import abstract
from flowsde.models.flux.model import FluxConfig
from flowsde.models.wan.model import WanConfig
from flowsde_converters import blip, flux, wan
from flowsde_converters.detect import Plan
from flowsde_converters.family import Found
from flowsde_converters.files import Checkpoint, open_checkpoint
from flowsde_converters.lora import with_loras
from flowsde_converters.lora_file import open_lora
from flowsde_converters.safetensors_file import Tensor
from flowsde_converters.tables import convert, fill, sharing, unconvert, undone

RANK, ALPHA, SCALE = 4, 2.0, 0.5
FLUX = FluxConfig(
    channels=16, heads=2, axes=(4, 6, 6), double=1, single=2, mlp=128, text=20, pooled=24
)
WAN = WanConfig(channels=4, heads=2, head=24, depth=2, mlp=96, text=20)
MODELS = {
    "flux": (flux, FLUX, {"axes_dims_rope": [4, 6, 6]}),
    "wan": (wan, WAN, {"num_attention_heads": 2}),
}
DOUBLE, SINGLE = "transformer_blocks.0", "single_transformer_blocks.1"
# Layers as diffusers calls them.
LAYERS = {
    "flux": [
        *(f"{DOUBLE}.attn.{x}" for x in ("to_q", "to_v", "add_k_proj", "to_out.0", "to_add_out")),
        f"{DOUBLE}.norm1.linear", f"{DOUBLE}.ff_context.net.2",
        *(f"{SINGLE}.{x}" for x in ("attn.to_k", "proj_mlp", "proj_out", "norm.linear")),
        "norm_out.linear", "proj_out", "x_embedder",
    ],
    "wan": [
        "blocks.0.attn1.to_q", "blocks.1.attn2.to_out.0", "blocks.1.ffn.net.0.proj",
        "blocks.0.ffn.net.2", "condition_embedder.time_proj", "proj_out",
    ],
}  # fmt: skip
ORIGINAL = {
    "blocks.0.attn1.to_q": "blocks.0.self_attn.q",
    "blocks.1.attn2.to_out.0": "blocks.1.cross_attn.o",
    "blocks.1.ffn.net.0.proj": "blocks.1.ffn.0",
    "blocks.0.ffn.net.2": "blocks.0.ffn.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
}
"""Wan's, as its own code calls them."""


@pytest.fixture(scope="module")
def of_flux(tmp_path_factory):
    return made("flux", tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def of_wan(tmp_path_factory):
    return made("wan", tmp_path_factory.mktemp("wan"))


@pytest.fixture(params=["of_flux", slow("of_wan")])
def model(request):
    return request.getfixturevalue(request.param)


def made(name, folder):
    """A family, its configuration, parameters, tensors and opened checkpoints by layout."""
    module, config, beside = MODELS[name]
    rng = np.random.default_rng(0)
    shapes = parameters(abstract(module.FAMILY, config))
    params = {path: rng.normal(size=p.shape).astype(np.float32) for path, p in shapes.items()}
    tensors = {
        layout: {
            key: np.ascontiguousarray(a)
            for key, a in unconvert(module.FAMILY.table(config, layout), params).items()
        }
        for layout in ("diffusers", "original")
    }
    plans = {}
    for layout, held in tensors.items():
        save_file(held, folder / f"{layout}.safetensors")
        checkpoint = open_checkpoint(folder / f"{layout}.safetensors")
        found = module.FAMILY.recognise(checkpoint.tensors, beside)
        plans[layout] = Plan(checkpoint, module.FAMILY, found, shapes, tuple(held))
    return name, module.FAMILY, config, params, tensors, plans


def dyadic(rng, *shape):
    """Numbers of few bits, whose products and sums are exact in float32."""
    return (rng.integers(-8, 9, shape) / 16).astype(np.float32)


def adapters(tensors, layers, seed=3):
    """(A, B) by layer of a layout's tensors."""
    rng = np.random.default_rng(seed)
    shapes = {layer: tensors[f"{layer}.weight"].shape for layer in layers}
    return {
        layer: (dyadic(rng, RANK, shape[1]), dyadic(rng, shape[0], RANK))
        for layer, shape in shapes.items()
    }


def added(tensors, pairs, factor):
    """The published formula."""
    merged = dict(tensors)
    for layer, (a, b) in pairs.items():
        weight = tensors[f"{layer}.weight"].astype(np.float64)
        merged[f"{layer}.weight"] = (weight + factor * (b @ a)).astype(np.float32)
    return merged


def peft(pairs, before="transformer.", name=lambda layer: layer, alpha=None):
    held = {}
    for layer, (a, b) in pairs.items():
        key = f"{before}{name(layer)}"
        held |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
        if alpha is not None:
            held[f"{key}.alpha"] = np.array(alpha, np.float32)
    return held


def kohya(pairs, before="lora_unet_", name=lambda layer: layer, alpha=ALPHA):
    held = {}
    for layer, (a, b) in pairs.items():
        key = before + name(layer).replace(".", "_")
        held |= {f"{key}.lora_down.weight": a, f"{key}.lora_up.weight": b}
        held[f"{key}.alpha"] = np.array(alpha, np.float32)
    return held


def merged_params(tmp_path, model, layout, files, part=None):
    """Parameters of a checkpoint of a layout with files of adapters, (tensors, scale), merged."""
    loras = []
    for i, (held, scale) in enumerate(files):
        save_file(held, tmp_path / f"lora{i}.safetensors")
        loras.append((open_lora(tmp_path / f"lora{i}.safetensors"), scale))
    found = with_loras(model[-1][layout], loras, part)
    return {
        row.target: fill(row, found.model, found.checkpoint.read, found.changes.get(row.target, {}))
        for row in found.found.table.rows
    }


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for path, array in wanted.items():
        np.testing.assert_array_equal(found[path], array, strict=True, err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_adapters_of_diffusers_are_merged_into_either_layout(tmp_path, model, layout):
    name, family, config, params, tensors, _ = model
    pairs = adapters(tensors["diffusers"], LAYERS[name])
    table = family.table(config, "diffusers")
    for held, factor in (
        (peft(pairs), SCALE),
        (peft(pairs, "base_model.model."), SCALE),
        (peft(pairs, "", alpha=ALPHA), SCALE * ALPHA / RANK),
        (kohya(pairs, "lora_transformer_"), SCALE * ALPHA / RANK),
    ):
        found = merged_params(tmp_path, model, layout, [(held, SCALE)])
        wanted = convert(table, added(tensors["diffusers"], pairs, factor), params)
        assert_same(found, wanted)


@pytest.mark.parametrize("layout", ["diffusers", "original"])
def test_adapters_of_the_original_are_merged_into_either_layout(tmp_path, model, layout):
    name, family, config, params, tensors, _ = model
    layers = ORIGINAL.values() if name == "wan" else [
        "double_blocks.0.img_attn.qkv", "double_blocks.0.txt_attn.proj",
        "double_blocks.0.txt_mod.lin", "single_blocks.1.linear1", "single_blocks.0.linear2",
        "final_layer.adaLN_modulation.1", "final_layer.linear",
    ]  # fmt: skip
    pairs = adapters(tensors["original"], layers)
    table = family.table(config, "original")
    for held, factor in (
        (peft(pairs, "diffusion_model."), SCALE),
        (kohya(pairs), SCALE * ALPHA / RANK),
    ):
        found = merged_params(tmp_path, model, layout, [(held, SCALE)])
        wanted = convert(table, added(tensors["original"], pairs, factor), params)
        assert_same(found, wanted)


@pytest.mark.slow
def test_files_of_kohya_mean_what_diffusers_takes_them_for(tmp_path, of_flux):
    """Its reading of fused layers: three adapters, of the same A and parts of B."""
    utils = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    torch = pytest.importorskip("torch")
    *_, tensors, _ = of_flux
    layers = ["double_blocks.0.img_attn.qkv", "double_blocks.0.txt_mlp.0",
              "single_blocks.1.linear2", "single_blocks.0.modulation.lin"]  # fmt: skip
    held = kohya(adapters(tensors["original"], layers))
    theirs = utils._convert_kohya_flux_lora_to_diffusers(
        {key: torch.from_numpy(np.asarray(a)) for key, a in held.items()}
    )
    read = {key: np.ascontiguousarray(a.numpy()) for key, a in theirs.items()}
    assert any("attn.to_v.lora_B" in key for key in read)
    ours = merged_params(tmp_path, of_flux, "diffusers", [(held, SCALE)])
    assert_same(ours, merged_params(tmp_path, of_flux, "diffusers", [(read, SCALE)]))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["_convert_musubi_wan_lora", "_convert_non_diffusers_wan_lora"])
def test_files_of_wan_mean_what_diffusers_takes_them_for(tmp_path, of_wan, form):
    utils = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    torch = pytest.importorskip("torch")
    tensors = of_wan[-2]["original"]
    # It expects all of them.
    layers = [
        f"blocks.{i}.{kind}" for i in range(2) for kind in
        (*(f"{a}_attn.{x}" for a in ("self", "cross") for x in "qkvo"), "ffn.0", "ffn.2")
    ]  # fmt: skip
    pairs = adapters(tensors, layers)
    held = kohya(pairs) if "musubi" in form else peft(pairs, "diffusion_model.")
    if "musubi" not in form:
        rng = np.random.default_rng(5)
        held["diffusion_model.blocks.1.ffn.2.diff_b"] = dyadic(rng, 48)
    theirs = getattr(utils, f"{form}_to_diffusers")(
        {key: torch.from_numpy(np.asarray(a)) for key, a in held.items()}
    )
    read = {key: np.ascontiguousarray(a.numpy()) for key, a in theirs.items()}
    ours = merged_params(tmp_path, of_wan, "diffusers", [(held, SCALE)])
    assert_same(ours, merged_params(tmp_path, of_wan, "diffusers", [(read, SCALE)]))


def test_a_merged_layer_computes_what_the_layer_and_its_adapter_do(tmp_path, of_flux):
    """Forward, by PyTorch's own layers; q of a fused one."""
    torch = pytest.importorskip("torch")
    *_, tensors, _ = of_flux
    layer = f"{DOUBLE}.attn.to_q"
    ((a, b),) = adapters(tensors["diffusers"], [layer]).values()
    found = merged_params(
        tmp_path, of_flux, "original", [(kohya({layer: (a, b)}, "lora_transformer_"), SCALE)]
    )
    weight, bias = (
        torch.from_numpy(tensors["diffusers"][f"{layer}.{x}"]) for x in ("weight", "bias")
    )
    base = torch.nn.Linear(*weight.shape[::-1])
    down, up = (
        torch.nn.Linear(weight.shape[1], RANK, False),
        torch.nn.Linear(RANK, len(bias), False),
    )
    x = torch.from_numpy(np.random.default_rng(2).normal(size=(5, weight.shape[1]))).float()
    with torch.no_grad():
        for layer, values in (
            (base, weight),
            (down, torch.from_numpy(a)),
            (up, torch.from_numpy(b)),
        ):
            layer.weight.copy_(values)
        base.bias.copy_(bias)
        wanted = base(x) + SCALE * ALPHA / RANK * up(down(x))
    kernel, added_bias = found["double.image.qkv.kernel"][0], found["double.image.qkv.bias"][0]
    ours = x.numpy() @ kernel[:, : len(bias)] + added_bias[: len(bias)]
    np.testing.assert_allclose(ours, wanted.numpy(), rtol=1e-5, atol=1e-5)


def test_several_files_are_added_and_none_is_nothing(tmp_path, of_flux):
    _, family, config, params, tensors, _ = of_flux
    first, second = (adapters(tensors["diffusers"], LAYERS["flux"], seed) for seed in (3, 4))
    both = [(peft(first), 1.0), (peft(second), -0.25)]
    found = merged_params(tmp_path, of_flux, "original", both)
    # One rounding at the end: the sum of both in float64.
    total = dict(tensors["diffusers"])
    for layer, (a, b) in first.items():
        a2, b2 = second[layer]
        delta = (b @ a).astype(np.float64) - 0.25 * (b2 @ a2)
        total[f"{layer}.weight"] = total[f"{layer}.weight"] + delta
    wanted = convert(family.table(config, "diffusers"), total, params)
    for path, array in wanted.items():
        np.testing.assert_allclose(found[path], array, rtol=3e-7, atol=3e-7, err_msg=path)
    assert_same(merged_params(tmp_path, of_flux, "diffusers", [(peft(first), 0.0)]), params)


def test_what_peft_says_of_alpha_counts(tmp_path, of_flux):
    """In the file's metadata, as diffusers writes it, or in the JSON beside it."""
    *_, tensors, _ = of_flux
    pairs = adapters(tensors["diffusers"], [f"{DOUBLE}.attn.to_q", "proj_out"])
    settings = {"lora_alpha": 2 * ALPHA, "alpha_pattern": {"attn.to_q": ALPHA}, "r": RANK}
    named = json.dumps({f"transformer.{name}": value for name, value in settings.items()})
    save_file(peft(pairs), tmp_path / "a.safetensors", {"lora_adapter_metadata": named})
    save_file(peft(pairs, "base_model.model."), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    for name in ("a.safetensors", "adapter_model.safetensors"):
        file = open_lora(tmp_path / name)
        factors = {
            layer.name: file.factor("transformer", layer, RANK)
            for layer in file.parts["transformer"]
        }
        assert factors == {f"{DOUBLE}.attn.to_q": ALPHA / RANK, "proj_out": 2 * ALPHA / RANK}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"use_rslora": True}))
    file = open_lora(tmp_path / "adapter_model.safetensors")
    layer = next(one for one in file.parts["transformer"] if one.name == "proj_out")
    assert file.factor("transformer", layer, RANK) == 2 * ALPHA / RANK**0.5


A, B = np.ones((RANK, 32), np.float32), np.ones((32, RANK), np.float32)
KEY = f"transformer.{DOUBLE}.attn.to_q"


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (
            {f"{KEY[:-1]}x.lora_A.weight": A, "gone.lora_B.weight": B, "x.alpha": A[0, :1]},
            [f"unknown key {KEY[:-1]}x.lora_A.weight", "unknown key gone.lora_B.weight",
             "unknown key x.alpha"],
        ),
        ({f"{KEY}.lora_A.weight": A}, ["lora_A.weight stands without the other half"]),
        ({f"{KEY}.alpha": A[0, :1]}, ["alpha stands without the other half"]),
        (
            {f"{KEY}.lora_A.weight": A[:3], f"{KEY}.lora_B.weight": B},
            [r"is \(32, 4\) by \(3, 32\), expected what makes \(32, 32\)"],
        ),
        (
            {f"{KEY}.lora_A.weight": A, f"{KEY}.lora_B.weight": B[:31]},
            [r"is \(31, 4\) by \(4, 32\), expected what makes \(32, 32\)"],
        ),
        ({f"{KEY}.lora_A.weight": A, f"{KEY}.lora_B.weight": B[0]}, [r"is \(4,\) by \(4, 32\)"]),
        ({f"{KEY}.diff_b": A[0, :3]}, [r"diff_b is \(3,\), expected what makes \(32,\)"]),
        (
            {f"{KEY}.lora_A.weight": A.astype(np.int32), f"{KEY}.lora_B.weight": B},
            ["is int32, expected float64"],
        ),
        (
            {f"{KEY}.lora_A.weight": A, f"{KEY}.lora_B.weight": B, f"{KEY}.alpha": A[0, :2]},
            [r"alpha is \(2,\), expected a number"],
        ),
        (
            {f"{KEY}.lora_A.weight": A, f"{KEY}.lora_B.weight": B,
             f"{KEY}.alpha": np.array(np.nan, np.float32)},
            ["alpha is nan, expected a finite number"],
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_at_once(tmp_path, of_flux, held, words):
    with pytest.raises(ValueError, match="adapters do not fit flux") as error:
        merged_params(tmp_path, of_flux, "original", [(held, 1.0)])
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == len(words) and all(
        line.startswith("lora0.safetensors: ") for line in lines
    )
    for word in words:
        assert any(re.search(word, line) for line in lines), (word, lines)


@pytest.mark.slow
def test_a_key_of_several_parameters_takes_no_adapter(tmp_path):
    """Of BLIP's queries, keys and values in one tensor; a part alone would be merged otherwise."""
    config = blip.FAMILY.config()
    model = parameters(abstract(blip.FAMILY, config))
    table = blip.FAMILY.table(config, blip.LAYOUT)
    like = {path: np.broadcast_to(np.float32(0), p.shape) for path, p in model.items()}
    key = "blip.visual_encoder.blocks.0.attn.qkv.weight"
    rows = [row for row in table.rows if row.sources[0].replace("{i}", "0") == key]
    assert [row.part for row in rows] == [(0, 3), (1, 3), (2, 3)]
    shapes = {
        key: Tensor(a.shape, a.dtype)
        for group in sharing(table.rows)
        for key, a in undone(group, [like[row.target] for row in group])
    }
    checkpoint = Checkpoint(shapes, (tmp_path / "blip.safetensors",), None, (), {})
    found = Found(config, blip.LAYOUT, table)
    plan = Plan(checkpoint, blip.FAMILY, found, model, tuple(shapes))
    layer, (out, inner) = key.removesuffix(".weight"), shapes[key].shape
    save_file(
        {
            f"{layer}.lora_A.weight": np.zeros((1, inner), np.float32),
            f"{layer}.lora_B.weight": np.zeros((out, 1), np.float32),
        },
        tmp_path / "lora.safetensors",
    )
    with pytest.raises(ValueError, match="for a key of several parameters, into which none can be"):
        with_loras(plan, [(open_lora(tmp_path / "lora.safetensors"), 1.0)])
