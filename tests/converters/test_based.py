"""`flowsde convert --base`: one file in the place of a pipeline's transformer."""

import json

import ml_dtypes
import numpy as np
import pytest
import toy
from safetensors.numpy import load_file, save_file
from test_command import refused, say
from test_hub import Hub

import flowsde as fs
from flowsde.models import registry
from flowsde.models.common.paths import parameters
from flowsde.models.converted.arrays import Parameter
from flowsde.models.family import Pipeline
from flowsde_converters import flux, hub
from flowsde_converters.tables import convert as in_memory
from flowsde_converters.tables import unconvert

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def base(families, tmp_path, monkeypatch):
    """A pipeline whose transformer has a config.json alone, and a file for it."""
    known = Pipeline(name="ToyPipeline", build=lambda *_: None, transformer="toy")
    monkeypatch.setattr(registry, "_registered", [known])
    folder = tmp_path / "base"
    for name in ("transformer", "text_encoder", "tokenizer"):
        (folder / name).mkdir(parents=True)
    index = {"_class_name": "ToyPipeline"} | {
        name: ["a", "B"] for name in ("transformer", "text_encoder", "tokenizer")
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "transformer" / "config.json").write_text('{"extra": [5]}')
    save_file(toy.tensors(depth=2), folder / "text_encoder" / "model.safetensors")
    (folder / "tokenizer" / "vocab.json").write_text('{"a": 0}')
    save_file({f"model.{k}": a for k, a in toy.tensors().items()}, tmp_path / "tuned.safetensors")
    return folder


@pytest.mark.slow
def test_a_file_takes_the_place_of_a_transformer(base, tmp_path, capsys):
    tuned, out = tmp_path / "tuned.safetensors", tmp_path / "out"
    said, _ = say(capsys, tuned, out, "--base", base)
    assert f"takes   tuned.safetensors in the place of the transformer of {base}\n" in said
    about = json.loads((out / "transformer" / "config.json").read_text())
    # Of the base's config.json.
    assert about["config"]["sizes"] == [2, 5] and "tuned.safetensors" in about["source"]["files"]
    for name, depth in (("transformer", 3), ("text_encoder", 2)):
        found = Parameter(out / name / "params" / "blocks.kernel").read()
        config, tensors = toy.Config(depth, 4, (2,)), toy.tensors(depth=depth)
        model = parameters(toy.FAMILY.build(config, toy.Numerics(), toy.nnx.Rngs(0)))
        wanted = in_memory(toy.table(config, "original"), tensors, model)
        np.testing.assert_array_equal(found, wanted["blocks.kernel"], strict=True)
    for name in ("model_index.json", "tokenizer/vocab.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    assert "already complete" in say(capsys, tuned, out, "--base", base)[0]
    # A transformer of the base's own would be another conversion.
    save_file(toy.tensors(), base / WEIGHTS)
    assert "holds another conversion" in refused(capsys, base, out)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("{base} {out} --base {base}", "--base is for a single model, and SOURCE"),
        ("{tuned} {out} --base {tmp}", "holds no model_index.json, expected the folder of a pip"),
        ("{tuned} {out} --base {tuned}", "holds no model_index.json"),
        ("{tuned} {out} --base {tmp}/none", "--base {tmp}/none does not exist, and is no owner/na"),
        ("{tuned} {base} --base {base} --overwrite", "holds --base {base}, expected a new folder"),
        ("{tuned} {out} --base {base} --family toy", "--family has no effect with --base"),
        ("{tuned} {out} --base {base} --classes 3", "num_classes: settings are of a single model"),
        ("{tuned} {out} --base {base} --distilled", "--distilled has no effect"),
        ("--to-torch {base} {out} --base {base}", "--to-torch takes SOURCE and OUT, not --base"),
    ],
)
def test_what_is_no_base_is_refused(base, tmp_path, capsys, args, words):
    given = {"base": base, "tuned": tmp_path / "tuned.safetensors", "out": tmp_path / "out"}
    said = refused(capsys, *args.format(tmp=tmp_path, **given).split())
    assert words.format(tmp=tmp_path, **given) in said and not (tmp_path / "out").exists()


def test_a_file_of_another_model_than_the_base_is_refused(base, tmp_path, capsys):
    words = [tmp_path / "tuned.safetensors", tmp_path / "out", "--base", base]
    (base / "transformer" / "config.json").write_text('{"extra": 1}')
    said = refused(capsys, *words)
    assert "transformer: a toy checkpoint that cannot be" in said
    assert f"SOURCE was read with {base / 'transformer' / 'config.json'}: --base must be" in said
    index = json.loads((base / "model_index.json").read_text())
    for wrong in ({"_class_name": "OtherPipeline"}, {"transformer": [None, None]}):
        (base / "model_index.json").write_text(json.dumps(index | wrong))
        assert "expected one of FluxPipeline, " in refused(capsys, *words)
    assert not (tmp_path / "out").exists()


def test_a_transformer_alone_is_said_to_be_one(base, tmp_path, capsys):
    out, _ = say(capsys, tmp_path / "tuned.safetensors", "--check")
    assert "note    a transformer alone; to sample it, convert it with --base" in out


def test_weights_that_are_replaced_are_not_fetched(base, tmp_path, capsys, monkeypatch):
    files = ["model_index.json", "transformer/config.json", WEIGHTS, "tokenizer/vocab.json"]
    files += ["text_encoder/model.safetensors"]
    there = Hub(files, base).use(monkeypatch)
    say(capsys, tmp_path / "tuned.safetensors", tmp_path / "out", "--base", "owner/base")
    assert sorted(there.asked[2]) == sorted(set(files) - {WEIGHTS})
    assert WEIGHTS in hub.wanted(files)


@pytest.mark.slow
def test_a_fine_tune_of_flux_as_it_is_shared(folders, tmp_path, capsys):
    """In 8 bits, under the original names behind a prefix, with text encoder and autoencoder."""
    out = folders["dev"] / "out" / "transformer"
    about = json.loads((out / "config.json").read_text())
    params = {path: 1.5 * Parameter(out / "params" / path).read() for path in about["params"]}
    config = fs.load(folders["dev"] / "out").config
    tensors = unconvert(flux.table(config, "original"), params)
    eight = {
        f"model.diffusion_model.{key}": np.ascontiguousarray(a).astype(ml_dtypes.float8_e4m3fn)
        for key, a in tensors.items()
    }
    vae = load_file(folders["dev"] / "source" / "vae" / "diffusion_pytorch_model.safetensors")
    save_file(eight | {f"vae.{key}": a for key, a in vae.items()}, tmp_path / "style.safetensors")
    words = [tmp_path / "style.safetensors", tmp_path / "out", "--base", folders["dev"] / "source"]
    said, _ = say(capsys, *words)
    assert "transformer: flux, original keys" in said
    assert "keys that begin with 'model.diffusion_model.', without it, and leaves vae\n" in said
    found = fs.load(tmp_path / "out")
    assert found.config == config and found.steps == fs.load(folders["dev"] / "out").steps
    for path, array in params.items():
        wanted = array.astype(ml_dtypes.float8_e4m3fn).astype(ml_dtypes.bfloat16)
        read = Parameter(tmp_path / "out" / "transformer" / "params" / path).read()
        np.testing.assert_array_equal(read, wanted, strict=True)
    words[-1] = folders["schnell"] / "source"
    assert "config.json says guidance_embeds False" in refused(capsys, *words, "--overwrite")
