"""`flowsde convert --lora`: what it takes, says, refuses and records."""

import dataclasses
import hashlib
import json
import weakref

import ml_dtypes
import numpy as np
import pytest
import toy
from safetensors.numpy import load_file, save_file
from test_command import refused, say
from test_convert import converted, expected, left
from test_eight_bits import wide, written
from test_lora import dyadic

from flowsde.cli.convert import lora_named
from flowsde.models.converted.arrays import Parameter
from flowsde.models.converted.store import read_config
from flowsde_converters import convert, stream
from flowsde_converters.back import prepare_back, run_back
from flowsde_converters.complete import is_complete
from flowsde_converters.lora import check_values, with_loras
from flowsde_converters.lora_file import open_lora
from flowsde_converters.tables import fill

RNG = np.random.default_rng(0)
A, B = dyadic(RNG, 3, 4), dyadic(RNG, 2, 3)
PAIR = {"head.lora_A.weight": A, "head.lora_B.weight": B}


@pytest.fixture
def lora(tmp_path_factory):
    path = tmp_path_factory.mktemp("lora") / "style.safetensors"
    save_file(PAIR | {"head.alpha": np.array(6.0, np.float32)}, path)
    return path


def merged(tensors, scale):
    """With alpha / rank of 2."""
    return tensors | {"head.weight": tensors["head.weight"] + np.float32(scale * 2) * (B @ A)}


def test_what_is_merged_is_said_and_recorded(source, lora, tmp_path, capsys):
    out = tmp_path / "out"
    said, _ = say(capsys, source, out, "--lora", f"{lora}:0.5")
    assert "merges  style.safetensors: 1 layers, rank 3, scale 0.5\n" in said
    digest = hashlib.sha256(lora.read_bytes()).hexdigest()
    about = read_config(out)["source"]
    (one,) = about["loras"]
    assert (one["file"], one["sha256"], one["scale"]) == ("style.safetensors", digest, 0.5)
    # The same again has nothing to do; another scale, file or none is another conversion.
    assert "already complete" in say(capsys, source, out, "--lora", f"{lora}:0.5")[0]
    for words in (["--lora", lora], []):
        assert "holds another conversion" in refused(capsys, source, out, *words)


def test_other_values_or_settings_of_adapters_make_another_conversion(source, tmp_path):
    path = tmp_path / "adapter_model.safetensors"
    save_file(PAIR, path)
    converted(source, tmp_path / "out", loras=[(path, 0.5)])
    complete = lambda: is_complete(  # noqa: E731
        convert.prepare(source, loras=[(path, 0.5)]), tmp_path / "out"
    )
    assert complete()
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 7}')
    assert not complete()
    (tmp_path / "adapter_config.json").unlink()
    save_file({key: array + 1 for key, array in PAIR.items()}, path)
    assert not complete()


def test_folders_without_adapters_say_nothing_of_them(source, tmp_path):
    converted(source, tmp_path / "out")
    assert "loras" not in json.loads((tmp_path / "out" / "config.json").read_text())["source"]


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_weights_are_merged_in_float32_and_rounded_once(source, lora, tmp_path, dtype):
    kind = np.dtype(np.float32) if dtype is None else toy.BF16
    found = converted(source, tmp_path / "out", dtype=dtype, loras=[(lora, 0.5)])
    wanted = expected(merged(toy.tensors(), 0.5))
    for path, array in wanted.items():
        np.testing.assert_array_equal(found[path], array.astype(kind), strict=True)


def test_what_is_merged_comes_back_as_a_checkpoint(source, lora, tmp_path):
    converted(source, tmp_path / "out", loras=[(lora, 1.0)])
    run_back(tmp_path / "out", prepare_back(tmp_path / "out"), tmp_path / "back.safetensors")
    back, wanted = load_file(tmp_path / "back.safetensors"), merged(toy.tensors(), 1.0)
    assert back.keys() == wanted.keys()
    for key, array in wanted.items():
        np.testing.assert_array_equal(back[key], array, strict=True)


def test_weights_of_eight_bits_are_widened_scaled_and_merged(source, lora, tmp_path):
    tensors = toy.tensors()
    eight = tensors["head.weight"].astype(ml_dtypes.float8_e4m3fn)
    scale = np.array(0.5, np.float32)
    written(source, tensors | {"head.weight": eight, "head.scale_weight": scale})
    found = converted(source, tmp_path / "out", loras=[(lora, 1.0)])
    wanted = expected(merged(tensors | {"head.weight": wide(eight) * scale}, 1.0))
    np.testing.assert_array_equal(found["head.kernel"], wanted["head.kernel"].astype(toy.BF16))
    run_back(tmp_path / "out", prepare_back(tmp_path / "out"), tmp_path / "back.safetensors")


def test_biases_and_differences_are_added(source, tmp_path):
    held = PAIR | {
        "head.lora_B.bias": dyadic(RNG, 2),
        "head.alpha": np.array(6.0, np.float32),
        "b.1.diff_b": dyadic(RNG, 4),
    }
    path = tmp_path / "distilled.safetensors"
    save_file(held, path)
    found = converted(source, tmp_path / "out", loras=[(path, 0.5)])
    wanted = merged(toy.tensors(), 0.5)
    wanted["head.bias"] = wanted["head.bias"] + held["head.lora_B.bias"]
    wanted["b.1.bias"] = wanted["b.1.bias"] + np.float32(0.5) * held["b.1.diff_b"]
    for key, array in expected(wanted).items():
        np.testing.assert_array_equal(found[key], array, strict=True)


def test_one_merged_block_is_in_memory(families, tmp_path, monkeypatch):
    """However many are stacked."""
    tensors = toy.tensors(depth=20, width=64)
    save_file(tensors, tmp_path / "model.safetensors")
    monkeypatch.setattr(stream, "_LEAST_BLOCK", 1)
    alive, most = [], 0

    def change(joined):
        nonlocal most
        array = joined.astype(np.float32) + 1
        alive.append(weakref.ref(array))
        most = max(most, sum(one() is not None for one in alive))
        return array

    plan = convert.prepare(tmp_path / "model.safetensors").plans[""]
    changes = {"blocks.kernel": dict.fromkeys(range(20), change)}
    plan = dataclasses.replace(plan, changes=changes)
    convert.run(convert.Conversion(tmp_path, {"": plan}), tmp_path / "out")
    assert len(alive) == 20 and most <= 2
    kernel = Parameter(tmp_path / "out" / "params" / "blocks.kernel").read()
    np.testing.assert_array_equal(kernel, expected(tensors)["blocks.kernel"] + 1)


def test_adapters_of_text_encoders_are_left_and_named(source, tmp_path, capsys):
    path = tmp_path / "both.safetensors"
    other = {"lora_te1_text_model_x.lora_down.weight": A, "lora_te1_text_model_x.lora_up.weight": B}
    save_file(PAIR | other, path)
    said, _ = say(capsys, source, "--check", "--lora", path)
    assert "rank 3, scale 1, and leaves text_encoder\n" in said


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({"head.dora_scale": A}, "unknown key head.dora_scale of an adapter of another kind"),
        ({"head.hada_w1_a": A, "x": B}, "unknown key x"),
        (PAIR | {"lora_unet_head.lora_up.weight": B}, "without the other half"),
        (PAIR | {"diffusion_model.head.lora_up.weight": B}, "are for one layer"),
        ({"head.lora_A.weight": A * np.nan, "head.lora_B.weight": B}, "NaN or infinite"),
        ({"b.1.lora_A.weight": A, "b.1.lora_B.weight": B}, "b.1 has no weight in the model"),
        ({key: np.full_like(a, 3e38) for key, a in PAIR.items()}, "too large for float32"),
    ],
)
def test_broken_files_are_one_error_and_nothing_is_written(source, tmp_path, capsys, held, words):
    path = tmp_path / "broken.safetensors"
    save_file(held, path)
    said = refused(capsys, source, tmp_path / "out", "--lora", path)
    assert words in said and "Traceback" not in said
    assert left(tmp_path) == {"broken.safetensors"}


def test_truncated_files_are_refused(lora):
    whole = lora.read_bytes()
    for end in range(0, len(whole), 7):
        lora.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="truncated"):
            open_lora(lora)


@pytest.mark.slow
def test_files_that_were_tampered_with_are_an_error_or_what_the_library_reads(source, lora):
    whole, rng, outcomes = lora.read_bytes(), np.random.default_rng(0), set()
    plan = convert.prepare(source).plans[""]
    row = next(row for row in plan.found.table.rows if row.target == "head.kernel")
    for _ in range(400):
        file = bytearray(whole)
        at = rng.integers(len(file))
        file[at] = rng.choice([file[at] ^ (1 << rng.integers(8)), rng.integers(32, 127)])
        lora.write_bytes(file)
        try:
            found = with_loras(plan, [(open_lora(lora), 1.0)])
            check_values(found.loras)
        except ValueError as error:
            outcomes.add("error")
            assert str(error)
            continue
        outcomes.add("model")
        held = {key.rpartition("head.")[2]: a for key, a in load_file(lora).items()}
        alpha = held.get("alpha", np.array(3.0, np.float32))
        with np.errstate(over="ignore", invalid="ignore"):
            weight = toy.tensors()["head.weight"] + np.float32(alpha / 3.0) * (
                held["lora_B.weight"].astype(np.float32) @ held["lora_A.weight"].astype(np.float32)
            )
            made = fill(row, plan.model, plan.checkpoint.read, found.changes["head.kernel"])
        np.testing.assert_allclose(made, row.lay_out(weight), rtol=1e-6, atol=1e-6)
    assert outcomes == {"error", "model"}


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("[", "lora_adapter_metadata is '\\[', expected an object"),
        ("[]", "lora_adapter_metadata is '\\[\\]', expected an object"),
        ('{"lora_alpha": "x"}', "lora_alpha of PEFT's settings is 'x', expected a number"),
        ('{"alpha_pattern": [1]}', "alpha_pattern .* names of layers"),
        ('{"transformer.alpha_pattern": {"(a+)+": 1}}', "alpha_pattern .* names of layers"),
        ('{"transformer.use_dora": true}', "use_dora .* not supported"),
    ],
)
def test_settings_of_another_kind_are_refused(lora, said, words):
    save_file(PAIR, lora, {"lora_adapter_metadata": said})
    with pytest.raises(ValueError, match=words):
        file = open_lora(lora)
        file.factor("transformer", file.parts["transformer"][0], 3)


@pytest.mark.parametrize("words", ["{}:x", "{}:nan", "{}:", ":0.5", "{}.gone", "{}/gone"])
def test_wrong_words_are_refused(source, lora, capsys, words):
    said = refused(capsys, source, "--check", "--lora", words.format(lora))
    assert any(word in said for word in ("expected FILE or FILE:SCALE", "does not exist"))
    assert "Traceback" not in said


def test_a_name_with_a_colon_is_a_file(tmp_path):
    path = tmp_path / "a:2.safetensors"
    path.touch()
    assert lora_named(str(path)) == (str(path), 1.0)
    assert lora_named(f"{path}:-0.5") == (str(path), -0.5)


@pytest.mark.parametrize("ends", [("lora_A", "lora_B"), ("lora_down", "lora_up")])
def test_an_adapter_alone_is_called_one(tmp_path, ends):
    path = tmp_path / "style.safetensors"
    down, up = (f"transformer.blocks.0.to_q.{end}.weight" for end in ends)
    save_file({down: A, up: B}, path)
    with pytest.raises(ValueError, match="is a LoRA, which changes a model and is none"):
        convert.prepare(path)
