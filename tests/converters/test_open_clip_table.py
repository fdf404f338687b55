"""open_clip's keys: published sizes by shapes alone, bits there and back, and HPSv2's versions."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import flowsde as fs
from flowsde.models.clip.model import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from flowsde.models.common.paths import parameters
from flowsde.models.family import abstract
from flowsde_converters import clip, convert, open_clip
from flowsde_converters.back import prepare_back, run_back
from flowsde_converters.detect import plan
from flowsde_converters.files import open_checkpoint
from flowsde_converters.tables import convert as in_memory
from flowsde_converters.tables import unconvert

GOLDEN = Path(__file__).parents[1] / "data" / "open_clip.npz"
BESIDE = {"text_config": {"num_attention_heads": 3}, "vision_config": {"num_attention_heads": 2}}


@pytest.fixture(scope="module")
def weights():
    """State of open_clip's own class."""
    with np.load(GOLDEN) as held:
        return {k.removeprefix("weights/"): held[k] for k in held if k.startswith("weights/")}


@pytest.fixture(scope="module")
def shapes(weights):
    """Of our parameters."""
    return parameters(abstract(clip.FAMILY, clip.FAMILY.recognise(weights, BESIDE).config))


def published(depth, width, mlp, text_depth, text_width, joint, patch=14, side=224):
    """Shapes that open_clip gives a ViT."""

    def blocks(keys, depth, width, mlp):
        one = {
            "ln_1.weight": (width,), "ln_1.bias": (width,),
            "attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,),
            "attn.out_proj.weight": (width, width), "attn.out_proj.bias": (width,),
            "ln_2.weight": (width,), "ln_2.bias": (width,),
            "mlp.c_fc.weight": (mlp, width), "mlp.c_fc.bias": (mlp,),
            "mlp.c_proj.weight": (width, mlp), "mlp.c_proj.bias": (width,),
        }  # fmt: skip
        before = f"{keys}transformer.resblocks"
        return {f"{before}.{i}.{key}": shape for i in range(depth) for key, shape in one.items()}

    shapes = {
        "positional_embedding": (77, text_width), "text_projection": (text_width, joint),
        "logit_scale": (), "token_embedding.weight": (49408, text_width),
        "ln_final.weight": (text_width,), "ln_final.bias": (text_width,),
        "visual.class_embedding": (width,), "visual.proj": (width, joint),
        "visual.positional_embedding": ((side // patch) ** 2 + 1, width),
        "visual.conv1.weight": (width, 3, patch, patch),
        "visual.ln_pre.weight": (width,), "visual.ln_pre.bias": (width,),
        "visual.ln_post.weight": (width,), "visual.ln_post.bias": (width,),
    }  # fmt: skip
    shapes |= blocks("visual.", depth, width, mlp)
    shapes |= blocks("", text_depth, text_width, 4 * text_width)
    return {key: np.broadcast_to(np.float16(0), shape) for key, shape in shapes.items()}


def test_hpsv2_at_full_size():
    """Keys and parameters as open_clip 3.3.0 counts those of its ViT-H-14."""
    checkpoint = published(32, 1280, 5120, 24, 1024, 1024)
    assert len(checkpoint) == 686
    assert sum(a.size for a in checkpoint.values()) == 986_109_441
    found = open_clip.HPSV2_1.recognise(checkpoint, {"hps_version": "v2.1"})
    model = parameters(abstract(open_clip.HPSV2_1, found.config))
    assert found.table.problems(checkpoint, model) == []
    text, vision = found.config.text, found.config.vision
    assert (vision.heads, vision.image, vision.activation, vision.epsilon) == (
        16,
        224,
        "gelu",
        1e-5,
    )
    assert (text.heads, text.eos, text.activation, text.positions) == (16, None, "gelu", 77)


@pytest.mark.parametrize(
    ("sizes", "heads"),
    [
        ((12, 768, 3072, 12, 512, 512, 32), (12, 8)),
        ((24, 1024, 4096, 12, 768, 768), (16, 12)),
        ((40, 1408, 6144, 24, 1024, 1024), (16, 16)),
        ((48, 1664, 8192, 32, 1280, 1280), (16, 20)),
    ],
    ids=["B/32", "L/14", "g/14", "bigG/14"],
)
def test_other_published_sizes(sizes, heads):
    """Heads as open_clip's model_configs have them."""
    checkpoint = published(*sizes)
    found = clip.FAMILY.recognise(checkpoint, None)
    assert (found.config.vision.heads, found.config.text.heads) == heads
    assert "quick_gelu" in found.notes[0]
    quick = clip.FAMILY.recognise(checkpoint, {"hidden_act": "quick_gelu"})
    assert quick.config.vision.activation == quick.config.text.activation == "quick_gelu"


def test_a_key_of_three_parameters_comes_back_with_the_same_bits(weights, shapes):
    found = clip.FAMILY.recognise(weights, BESIDE)
    params = in_memory(found.table, weights, shapes)
    fused = weights["visual.transformer.resblocks.1.attn.in_proj_weight"]
    for k, name in enumerate(("query", "key", "value")):
        kernel = params[f"vision.blocks.{name}.kernel"][1]
        np.testing.assert_array_equal(kernel.T, fused[16 * k : 16 * (k + 1)])
    back = unconvert(found.table, params)
    assert back.keys() == weights.keys()
    for key, tensor in weights.items():
        np.testing.assert_array_equal(back[key], tensor, strict=True)


@pytest.mark.slow
def test_a_file_becomes_a_folder_and_a_file_again(weights, tmp_path):
    save_file(weights, tmp_path / "HPS_v2.1_compressed.safetensors")
    (tmp_path / "config.json").write_text('{"num_attention_heads": 2}')
    job = convert.prepare(tmp_path / "HPS_v2.1_compressed.safetensors", dtype="float32")
    assert job.plans[""].family.name == "hpsv2.1"
    convert.run(job, tmp_path / "out")
    assert type(fs.load(tmp_path / "out")).__name__ == "CLIP"
    run_back(tmp_path / "out", prepare_back(tmp_path / "out"), tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == weights.keys()
    for key, tensor in weights.items():
        np.testing.assert_array_equal(back[key], tensor, strict=True)
    # Under another name the version stays.
    assert convert.prepare(tmp_path / "back").plans[""].family.name == "hpsv2.1"


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("HPS_v2_compressed.pt", "v2.0"),
        ("HPS_v2.0.safetensors", "v2.0"),
        ("HPS_v2.1_compressed.pt", "v2.1"),
        ("hpsv2.1.safetensors", "v2.1"),
        ("HPSv3.safetensors", None),
        ("HPS_v21.pt", None),
        ("open_clip_pytorch_model.bin", None),
    ],
)
def test_the_version_is_that_of_the_files_name_or_of_the_family_asked_for(name, version):
    families = {"hpsv2": "v2.0", "hpsv2.1": "v2.1"}
    assert open_clip.told(None, [Path(name)]) == ({"hps_version": version} if version else {})
    assert open_clip.told("clip", [Path(name)]) == {}
    for family, own in families.items():
        if version in (None, own):
            assert open_clip.told(family, [Path(name)]) == {"hps_version": own}
        else:
            said = f"--family {family}: {name} is called HPSv2 {version}"
            with pytest.raises(ValueError, match=said):
                open_clip.told(family, [Path(name)])


def test_one_family_takes_a_checkpoint(weights):
    families = (clip.FAMILY, open_clip.HPSV2, open_clip.HPSV2_1)
    for at, version in enumerate((None, "v2.0", "v2.1")):
        beside = BESIDE if version is None else BESIDE | {"hps_version": version}
        found = [family.recognise(weights, beside) for family in families]
        assert [one is not None for one in found] == [i == at for i in range(3)]
        assert bool(found[at].notes) == (version is None)
    assert "--family hpsv2 or hpsv2.1" in clip.FAMILY.recognise(weights, BESIDE).notes[1]


def test_what_cannot_be_is_named(weights, shapes, tmp_path):
    save_file(weights, tmp_path / "clip.safetensors")
    checkpoint = open_checkpoint(tmp_path / "clip.safetensors")
    with pytest.raises(
        ValueError, match="transformer has 12 features, and its heads do not follow"
    ):
        plan(checkpoint)
    with pytest.raises(ValueError, match=r"hps_version must be v2.0 or v2.1, got 'v2.2'"):
        clip.FAMILY.recognise(weights, {"hps_version": "v2.2", **BESIDE})
    weights = dict(weights)
    key = "visual.transformer.resblocks.0.attn.in_proj_weight"
    weights[key] = weights[key][:-1]
    found = clip.FAMILY.recognise(weights, BESIDE)
    problems = found.table.problems(weights, shapes)
    assert len(problems) == 3 and all("47, expected 3 equal parts" in one for one in problems)
    with pytest.raises(ValueError, match="layout must be open_clip, got 'original'"):
        open_clip.HPSV2.table(CLIPConfig(), "original")


def test_sizes_are_read_off_the_shapes(weights):
    config = clip.FAMILY.recognise(weights, BESIDE).config
    common = {"depth": 2, "projection": 12, "activation": "gelu"}
    assert config == CLIPConfig(
        text=CLIPTextConfig(vocab=20, width=12, heads=3, mlp=24, positions=9, **common),
        vision=CLIPVisionConfig(width=16, heads=2, mlp=32, image=16, patch=4, **common),
    )
