"""SD3's published sizes fit both layouts' tables, and checkpoints come back bit for bit."""

import math

import numpy as np
import pytest
import test_lora as lora
from safetensors.numpy import save_file

from flowsde.models.common.paths import parameters
from flowsde.models.family import abstract
from flowsde.models.sd3.model import SD3Config
from flowsde_converters import sd3
from flowsde_converters.depth import of_block
from flowsde_converters.detect import plan
from flowsde_converters.files import open_checkpoint
from flowsde_converters.sd3 import FAMILY
from flowsde_converters.tables import convert, unconvert

SIZES = dict(channels=4, heads=2, head=16, mlp=128, text=20, pooled=24, side=4)
# SD3, SD3.5 with second attentions, and with nothing but such blocks before the last.
SMALL = {
    "3": SD3Config(depth=2, **SIZES),
    "3.5": SD3Config(depth=5, dual=2, qk_norm=True, **SIZES),
    "dual": SD3Config(depth=2, dual=1, qk_norm=True, **SIZES),
}
HEADS = {"num_attention_heads": 2}
LAYOUTS = ("diffusers", "original")
# Keys and parameters, and what diffusers is told of them.
_SD3_5 = {"qk_norm": "rms_norm"}
PUBLISHED = {
    "medium": (683, 2.028e9, {"num_layers": 24, "num_attention_heads": 24,
                              "caption_projection_dim": 1536, "pos_embed_max_size": 192}),
    "medium_3_5": (909, 2.243e9, {"num_layers": 24, "num_attention_heads": 24,
                                  "caption_projection_dim": 1536, "pos_embed_max_size": 384,
                                  "dual_attention_layers": tuple(range(13)), **_SD3_5}),
    "large_3_5": (1227, 8.057e9, {"num_layers": 38, "num_attention_heads": 38,
                                  "caption_projection_dim": 2432, "pos_embed_max_size": 192,
                                  **_SD3_5}),
}  # fmt: skip


def shapes_of(config):
    return parameters(abstract(FAMILY, config))


def values(config):
    rng = np.random.default_rng(0)
    return {
        path: rng.normal(size=a.shape).astype(np.float32) for path, a in shapes_of(config).items()
    }


@pytest.fixture(scope="module")
def params():
    return values(SMALL["3.5"])


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_checkpoints_fit(name):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    keys, count, settings = PUBLISHED[name]
    config = getattr(SD3Config, name)()
    with torch.device("meta"):
        theirs = diffusers.SD3Transformer2DModel(**settings)
    tensors = {key: np.broadcast_to(np.int8(0), a.shape) for key, a in theirs.state_dict().items()}
    model = shapes_of(config)
    # The table of positions is a key of the files, and no parameter of diffusers'.
    assert len(tensors) == keys
    found = FAMILY.recognise(tensors, dict(theirs.config))
    assert (found.config, found.layout) == (config, "diffusers")
    assert FAMILY.recognise(tensors, None).config == config
    assert found.table.problems(tensors, model) == []
    sizes = {path: math.prod(a.shape) for path, a in model.items()}
    assert sizes.pop("positions") == config.side**2 * config.width
    assert sum(sizes.values()) == sum(a.numel() for a in theirs.parameters())
    assert sum(sizes.values()) == pytest.approx(count, rel=3e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["3.5", "dual"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_round_trip_is_bit_exact(params, name, layout):
    config, held = SMALL[name], params if name == "3.5" else values(SMALL[name])
    tensors = unconvert(FAMILY.table(config, layout), held)
    # The norms of queries tell the heads.
    found = FAMILY.recognise(tensors, None)
    assert (found.config, found.layout) == (config, layout)
    made = convert(found.table, tensors, held)
    assert made.keys() == held.keys()
    for path, array in held.items():
        np.testing.assert_array_equal(made[path], array, strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["3", "3.5"])
def test_the_original_layout_is_what_diffusers_takes_it_for(name):
    single = pytest.importorskip("diffusers.loaders.single_file_utils")
    torch = pytest.importorskip("torch")
    config, held = SMALL[name], values(SMALL[name])
    original = unconvert(FAMILY.table(config, "original"), held)
    # It reads its own sizes off these.
    wanted = single.convert_sd3_transformer_checkpoint_to_diffusers({
        f"model.diffusion_model.{key}": torch.from_numpy(np.ascontiguousarray(a))
        for key, a in original.items()
    })  # fmt: skip
    ours = unconvert(FAMILY.table(config, "diffusers"), held)
    assert ours.keys() == wanted.keys()
    for key, tensor in wanted.items():
        np.testing.assert_array_equal(ours[key], tensor.numpy())


@pytest.mark.slow
def test_a_single_file_is_taken_whole(tmp_path, params):
    tensors = unconvert(FAMILY.table(SMALL["3.5"], "original"), params)
    path = tmp_path / "sd3.5_medium.safetensors"
    save_file({f"model.diffusion_model.{key}": np.ascontiguousarray(a)
               for key, a in tensors.items()}, path)  # fmt: skip
    found = plan(open_checkpoint(path))
    assert (found.family.name, found.found.config) == ("sd3", SMALL["3.5"])
    assert found.ignored == []


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_adapters_of_diffusers_are_merged_into_either_layout(tmp_path, monkeypatch, layout):
    config, block = SMALL["3.5"], "transformer_blocks."
    monkeypatch.setitem(lora.MODELS, "sd3", (sd3, config, None))
    model = lora.made("sd3", tmp_path)
    *_, held, tensors, _ = model
    # Of blocks of all kinds, and a layer whose halves change places.
    layers = [f"{block}1.attn2.to_k", f"{block}3.attn.add_q_proj", f"{block}3.ff.net.2",
              f"{block}4.attn.to_out.0", f"{block}4.norm1_context.linear", "proj_out"]  # fmt: skip
    pairs = lora.adapters(tensors["diffusers"], layers)
    found = lora.merged_params(tmp_path, model, layout, [(lora.peft(pairs), 0.5)])
    merged = lora.added(tensors["diffusers"], pairs, 0.5)
    lora.assert_same(found, convert(FAMILY.table(config, "diffusers"), merged, held))


def test_blocks_may_begin_at_another_number():
    assert of_block("a.{i}.b", 2) == "a.2.b"
    assert [of_block("a.{i+13}.b.{i}", i) for i in (0, 9)] == ["a.13.b.0", "a.22.b.9"]
    assert of_block("a.0.b", 2) == "a.0.b"


def test_what_shapes_leave_open_or_is_not_supported_is_an_error(params):
    tensors = unconvert(FAMILY.table(SMALL["3.5"], "diffusers"), params)
    with pytest.raises(ValueError, match="whole heads, of 16 features .* got 4"):
        FAMILY.recognise(tensors, {"num_attention_heads": 4})
    with pytest.raises(ValueError, match="qk_norm in config.json must be rms_norm, got 'layer"):
        FAMILY.recognise(tensors, {"qk_norm": "layer_norm"})
    wide = tensors | {"pos_embed.proj.weight": np.zeros((32, 9, 2, 2), np.float32)}
    with pytest.raises(ValueError, match="got 2 x 2 and 9 in, 16 values a patch out"):
        FAMILY.recognise(wide)
    odd = tensors | {"pos_embed.pos_embed": np.zeros((1, 15, 32), np.float32)}
    with pytest.raises(ValueError, match="pos_embed must be of a square of places, got 15"):
        FAMILY.recognise(odd)
    key = "transformer_blocks.{}.attn2.to_out.0.weight"
    later = tensors | {key.format(3): tensors[key.format(1)]}
    with pytest.raises(ValueError, match=r"must be the first, got \[0, 1, 3\]"):
        FAMILY.recognise(later)
    with pytest.raises(ValueError, match="'diffusers', 'original', got 'comfy'"):
        FAMILY.table(SMALL["3"], "comfy")
    bare = {key: a for key, a in tensors.items() if ".norm_" not in key}
    with pytest.raises(ValueError, match="32 features must be those of whole heads.* got 0"):
        FAMILY.recognise(bare)
    found = FAMILY.recognise(bare, HEADS).config
    assert (found.heads, found.head, found.qk_norm) == (2, 16, False)
    del tensors["proj_out.weight"]
    assert FAMILY.recognise(tensors) is None
