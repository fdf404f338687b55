"""Checkpoints as their libraries save them, through the whole conversion and back."""

import argparse
import json
import warnings

import jax
import numpy as np
import pytest
from outside import torch
from safetensors.numpy import load_file, save_file

import flowsde as fs
from flowsde.models import registry
from flowsde.models.common.paths import parameters
from flowsde.models.converted.load import load_module
from flowsde.models.converted.opened import open_model
from flowsde.models.converted.store import read_config
from flowsde.models.family import abstract
from flowsde.models.sit.model import SiTConfig
from flowsde_converters import convert, sit
from flowsde_converters.back import prepare_back, run_back
from flowsde_converters.detect import families, plan
from flowsde_converters.files import open_checkpoint
from flowsde_converters.lora_load import merges
from flowsde_converters.tables import convert as in_memory
from flowsde_converters.tables import unconvert


def test_every_family_has_a_name_of_its_own():
    known = families()
    assert {"sit", "clip", "clip_text", "clip_vision", "t5", "t5_encoder"} <= known.keys()
    assert all(name == family.name for name, family in known.items())


@pytest.mark.slow
def test_a_training_checkpoint_of_sit_makes_a_flow(tmp_path):
    config = SiTConfig(width=384, depth=1, heads=6, size=4, classes=3)
    rng = np.random.default_rng(0)
    model = parameters(abstract(sit.FAMILY, config))
    params = {k: rng.normal(size=p.shape, scale=0.1).astype(p.dtype) for k, p in model.items()}
    tensors = unconvert(sit.table(config, "original"), params)
    state = {key: torch.from_numpy(np.ascontiguousarray(a)) for key, a in tensors.items()}
    other = {key: torch.zeros_like(a) for key, a in state.items()}
    held = {"model": other, "ema": state, "opt": {}, "args": argparse.Namespace(model="SiT-S/2")}
    torch.save(held, tmp_path / "sit.pt")

    job = convert.prepare(
        tmp_path / "sit.pt", settings={"num_classes": 3, "prediction": "velocity"}
    )
    found = job.plans[""]
    assert (found.family.name, found.found.config) == ("sit", config)
    assert found.checkpoint.notes == ("sit.pt: 'ema' of model, ema, opt, args",)
    convert.run(job, tmp_path / "out")
    flow = fs.load(tmp_path / "out")
    assert isinstance(flow, fs.Flow) and flow.shape == (4, 4, 4)
    wanted = {a.tobytes() for a in params.values()}
    assert {np.asarray(a).tobytes() for a in jax.tree.leaves(flow.params)} == wanted

    run_back(tmp_path / "out", prepare_back(tmp_path / "out"), tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(back[key], tensor, strict=True)


@pytest.mark.slow
def test_sit_at_full_size_is_recognised_by_shapes_alone(tmp_path):
    """As `--check` would see it; no values, no memory."""
    config = SiTConfig.preset("XL/2")
    model = parameters(abstract(sit.FAMILY, config))
    like = {k: np.broadcast_to(np.float32(0), p.shape) for k, p in model.items()}
    tensors = unconvert(sit.table(config, "original"), like)
    checkpoint = open_checkpoint_of(tensors)
    found = plan(checkpoint)
    assert found.found.config == config and len(found.used) == 292
    assert found.count == sum(a.size for a in tensors.values())


def open_checkpoint_of(tensors):
    """An opened checkpoint without files."""
    from flowsde_converters.files import Checkpoint
    from flowsde_converters.safetensors_file import Tensor

    return Checkpoint({k: Tensor(a.shape, a.dtype) for k, a in tensors.items()}, (), None, (), {})


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """FLUX's models, tiny, as diffusers and transformers save them."""
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    models = {
        "transformer": diffusers.FluxTransformer2DModel(
            in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=20, pooled_projection_dim=24,
            guidance_embeds=True, axes_dims_rope=(4, 6, 6),
        ),
        "vae": diffusers.AutoencoderKL(
            block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=16, norm_num_groups=4,
            use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.3611,
            shift_factor=0.1159,
        ),
        "text_encoder": transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=8, eos_token_id=2,
            )
        ),
        "text_encoder_2": transformers.T5EncoderModel(
            transformers.T5Config(
                vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
                feed_forward_proj="gated-gelu",
            )
        ).to(torch.bfloat16),
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, model in models.items():
            model.save_pretrained(folder / name)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    parts = [*models, "tokenizer"]
    index = {"_class_name": "FluxPipeline"} | {name: ["library", "Class"] for name in parts}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.slow
def test_the_models_of_a_pipeline_convert_load_and_come_back(pipeline, tmp_path):
    job = convert.prepare(pipeline)
    named = {name: one.family.name for name, one in job.plans.items()}
    assert named == {
        "transformer": "flux", "vae": "autoencoder_kl", "text_encoder": "clip_text",
        "text_encoder_2": "t5_encoder",
    }  # fmt: skip
    convert.run(job, tmp_path / "out")
    for name, one in job.plans.items():
        checkpoint = one.checkpoint
        tensors = {key: checkpoint.read(key) for key in checkpoint.tensors}
        wanted = in_memory(one.found.table, tensors, one.model)
        found = parameters(fs.load(tmp_path / "out" / name))
        assert found.keys() == wanted.keys()
        for path, array in wanted.items():
            np.testing.assert_array_equal(np.asarray(found[path]), array, strict=True)
    run_back(tmp_path / "out", prepare_back(tmp_path / "out"), tmp_path / "back")
    for name, one in job.plans.items():
        back = open_checkpoint(tmp_path / "back" / name)
        assert back.config == one.checkpoint.config
        assert back.tensors.keys() == set(one.used)
        for key in one.used:
            assert back.tensors[key].dtype == one.checkpoint.tensors[key].dtype
            assert back.read(key).tobytes() == one.checkpoint.read(key).tobytes(), key


@pytest.mark.slow
def test_adapters_of_a_pipeline_go_into_its_transformer_and_its_encoder(pipeline, tmp_path):
    """One file for both, of kohya, as the fused q, k and v of the original code; one of diffusers
    for a second encoder."""
    rng = np.random.default_rng(0)
    pairs = {
        "lora_unet_double_blocks_1_img_attn_qkv": ((2, 32), (96, 2)),
        "lora_te1_text_model_encoder_layers_1_mlp_fc1": ((2, 16), (32, 2)),
        "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q": ((2, 16), (16, 2)),
    }
    held = {
        f"{name}.lora_{half}.weight": rng.integers(-8, 9, shape).astype(np.float32) / 16
        for name, shapes in pairs.items()
        for half, shape in zip(("down", "up"), shapes, strict=True)
    }
    save_file(held, tmp_path / "both.safetensors")
    job = convert.prepare(pipeline, loras=[(tmp_path / "both.safetensors", 0.5)])
    convert.run(job, tmp_path / "out")
    qkv, fc1, q = (
        0.5 * held[f"{name}.lora_up.weight"] @ held[f"{name}.lora_down.weight"] for name in pairs
    )
    attention = "transformer_blocks.1.attn."
    added = {
        "transformer": {
            f"{attention}to_{x}.weight": part
            for x, part in zip("qkv", np.split(qkv, 3), strict=True)
        },
        "text_encoder": {"text_model.encoder.layers.1.mlp.fc1.weight": fc1},
        "text_encoder_2": {"encoder.block.0.layer.0.SelfAttention.q.weight": q},
        "vae": {},
    }
    for name, one in job.plans.items():
        checkpoint = one.checkpoint
        tensors = {key: checkpoint.read(key) for key in checkpoint.tensors}
        for key, delta in added[name].items():
            key = key if key in tensors else key.removeprefix("text_model.")
            wide = tensors[key].astype(np.float32) + delta
            tensors[key] = wide.astype(tensors[key].dtype)
        wanted = in_memory(one.found.table, tensors, one.model)
        found = parameters(fs.load(tmp_path / "out" / name))
        for path, array in wanted.items():
            np.testing.assert_array_equal(np.asarray(found[path]), array, strict=True)
        about = read_config(tmp_path / "out" / name)["source"]
        assert [merged["file"] for merged in about.get("loras", [])] == (
            ["both.safetensors"] if added[name] else []
        )
    convert.run(convert.prepare(pipeline), tmp_path / "plain")
    changed = merges(tmp_path / "plain", {str(tmp_path / "both.safetensors"): 0.5})
    assert {folder.name for folder in changed} == {name for name in added if added[name]}
    for folder, of_model in changed.items():
        opened = open_model(folder, registry.families())
        found = parameters(load_module(opened, merges=of_model))
        for path, array in parameters(fs.load(tmp_path / "out" / folder.name)).items():
            np.testing.assert_array_equal(np.asarray(found[path]), np.asarray(array), strict=True)
    save_file({"lora_te2_x.lora_down.weight": np.ones((2, 2), np.float32)},
              tmp_path / "other.safetensors")  # fmt: skip
    with pytest.raises(ValueError, match="text_encoder_2: .*unknown key lora_te2_x"):
        convert.prepare(pipeline, loras=[(tmp_path / "other.safetensors", 1.0)])
    with pytest.raises(ValueError, match="text_encoder_2: .*unknown key lora_te2_x"):
        merges(tmp_path / "plain", tmp_path / "other.safetensors")


@pytest.mark.slow
def test_a_clip_converts_with_its_scale_and_tokenizer_and_comes_back(tmp_path):
    """The scale of its cosine has no axes; its tokenizer lies beside the weights."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    config = transformers.CLIPConfig(
        text_config={**sizes, "vocab_size": 50, "max_position_embeddings": 8},
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
        projection_dim=12,
    )
    source, out, back = (tmp_path / name for name in ("source", "out", "back"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.CLIPModel(config).save_pretrained(source)
    (source / "vocab.json").write_text('{"a": 0}')
    (source / "merges.txt").write_text("#version: 0.2\n")
    (source / "README.md").write_text("not copied")
    convert.run(convert.prepare(source), out)
    assert {path.name for path in out.iterdir()} == {"config.json", "params", "tokenizer"}
    assert {path.name for path in (out / "tokenizer").iterdir()} == {"vocab.json", "merges.txt"}
    scale = fs.load(out).logit_scale.get_value()
    held = load_file(source / "model.safetensors")
    np.testing.assert_array_equal(scale, held["logit_scale"])
    run_back(out, prepare_back(out), back)
    for name in ("vocab.json", "merges.txt"):
        assert (back / name).read_bytes() == (source / name).read_bytes()
    returned = load_file(back / "model.safetensors")
    for key, tensor in returned.items():
        np.testing.assert_array_equal(tensor, held[key], strict=True)
    assert "logit_scale" in returned
