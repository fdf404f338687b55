"""Weights of 8 bits are what PyTorch makes of them, times the scales beside them."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
import toy
from outside import torch
from test_convert import converted, expected

from flowsde.models.converted.copying import put
from flowsde_converters import convert
from flowsde_converters.back import prepare_back, run_back
from flowsde_converters.files import open_checkpoint
from flowsde_converters.ignored import Copy
from flowsde_converters.safetensors_file import SafetensorsWriter

KINDS = {"float8_e4m3fn": ml_dtypes.float8_e4m3fn, "float8_e5m2": ml_dtypes.float8_e5m2}


def written(path, tensors):
    with SafetensorsWriter(path, tensors) as writer:
        for key, array in tensors.items():
            writer.write(key, array)
    return path


def wide(array):
    """float32, by PyTorch."""
    bits = torch.from_numpy(np.ascontiguousarray(array).view(np.uint8))
    return bits.view(getattr(torch, array.dtype.name)).to(torch.float32).numpy()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_code_is_the_number_that_pytorch_reads(name, dtype):
    codes = np.arange(256, dtype=np.uint8).view(KINDS[name])
    made = np.empty(256, dtype)
    put(made, codes)
    np.testing.assert_array_equal(made.astype(np.float32), wide(codes))


@pytest.fixture
def eight():
    """All weights but the biases of 8 bits."""
    made = {}
    for key, array in toy.tensors(width=16).items():
        made[key] = array if key.endswith("bias") else array.astype(ml_dtypes.float8_e4m3fn)
    return made


def scaled(eight, name, shape):
    """Scales beside the weights under a name, and what they make of these, by PyTorch."""
    rng = np.random.default_rng(1)
    scales, wanted = {}, dict(eight)
    for key, array in eight.items():
        if array.dtype.itemsize == 1:
            scale = rng.uniform(0.1, 3.0, shape(array)).astype(np.float32)
            beside = key.replace("weight", name) if "weight" in key else f"{key}_scale"
            scales[beside] = scale
            by = torch.from_numpy(scale.reshape(-1, 1))
            wanted[key] = (torch.from_numpy(wide(array)) * by).numpy()
    return scales, wanted


@pytest.mark.slow_but_one
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("scale_weight", lambda a: ()),
        ("weight_scale", lambda a: (1,)),
        ("scale_weight", lambda a: a.shape[:1]),
        ("weight_scale", lambda a: (a.shape[0], 1)),
    ],
    ids=["()", "(1,)", "(rows,)", "(rows, 1)"],
)
def test_weights_are_multiplied_by_their_scales(source, tmp_path, eight, name, shape):
    scales, wanted = scaled(eight, name, shape)
    inputs = {"head.scale_input": np.ones((), np.float32)}
    marks = {"scaled_fp8": np.zeros(2, ml_dtypes.float8_e4m3fn)}
    written(source, eight | scales | inputs | marks)
    found = converted(source, tmp_path / "out", dtype="float32")
    for path, array in expected(wanted).items():
        np.testing.assert_array_equal(found[path], array, strict=True)
    (note,) = convert.prepare(source).plans[""].checkpoint.notes
    assert name in note and "8 bits" in note


def test_scaled_weights_are_rounded_once_and_come_back_as_they_were_written(
    source, tmp_path, eight
):
    scales, wanted = scaled(eight, "scale_weight", lambda a: ())
    written(source, eight | scales)
    found = converted(source, tmp_path / "out")
    for path, array in expected(wanted).items():
        kind = np.float32 if path.endswith("bias") else toy.BF16
        np.testing.assert_array_equal(found[path], array.astype(kind), strict=True)
    run_back(tmp_path / "out", prepare_back(tmp_path / "out"), tmp_path / "back.safetensors")
    back = open_checkpoint(tmp_path / "back.safetensors")
    assert back.tensors.keys() == eight.keys()
    for key, array in wanted.items():
        kind = np.float32 if key.endswith("bias") else toy.BF16
        np.testing.assert_array_equal(back.read(key), array.astype(kind), strict=True)


def test_copies_have_scales_of_their_own(source, tmp_path, eight, families):
    """As encoder.embed_tokens.weight beside shared.weight; the copy is compared once scaled."""
    scales, wanted = scaled(eight, "scale_weight", lambda a: ())
    table = lambda *args: dataclasses.replace(  # noqa: E731
        toy.table(*args), ignored=(Copy(r"again\.weight", "head.weight"),)
    )
    families["toy"] = dataclasses.replace(
        toy.FAMILY,
        recognise=lambda *args: toy.recognise(*args)._replace(table=table(None, "original")),
    )
    copy = {"again.weight": eight["head.weight"], "again.scale_weight": scales["head.scale_weight"]}
    written(source, eight | scales | copy)
    found = converted(source, tmp_path / "out", dtype="float32")
    np.testing.assert_array_equal(found["head.kernel"], expected(wanted)["head.kernel"])
    copy["again.scale_weight"] = copy["again.scale_weight"] * 2
    written(source, eight | scales | copy)
    with pytest.raises(ValueError, match=r"again\.weight differs from head\.weight"):
        converted(source, tmp_path / "out2")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"b.1.x_scale_inv": np.ones((1, 1), np.float32)}, r"\(b\.1\.x_scale_inv\).*not supported"),
        ({"b.1.scale_weight": np.ones(1, np.float32)}, r"\(b\.1\.scale_weight\).*not supported"),
        ({"head.scale_weight": np.ones(3, np.float32)}, r"shape \(3,\), expected one scale for"),
        ({"head.scale_weight": np.ones((), np.int32)}, "is int32, expected floats"),
        ({"head.scale_weight": np.full((), np.nan, np.float32)}, "is NaN or infinite"),
        ({"b.1.x_scale": None}, r"b\.1\.x is of 8 bits and has no scale beside it"),
        (
            {"head.comfy_quant": np.frombuffer(b'{"format": "nvfp4"}', np.uint8)},
            "head.comfy_quant says 'nvfp4', expected float8_e4m3fn",
        ),
        ({"head.comfy_quant": np.zeros(3, np.uint8)}, "says None, expected float8_e4m3fn"),
    ],
)
def test_other_scales_are_one_error_each(source, tmp_path, eight, change, words):
    scales, _ = scaled(eight, "scale_weight", lambda a: ())
    held = {key: a for key, a in (eight | scales | change).items() if a is not None}
    written(source, held)
    with pytest.raises(ValueError, match=words) as error:
        converted(source, tmp_path / "out")
    assert len(str(error.value).splitlines()) <= 3
    assert not (tmp_path / "out").exists()


def test_a_format_of_eight_bits_is_taken_at_its_word(source, eight):
    scales, _ = scaled(eight, "scale_weight", lambda a: ())
    said = np.frombuffer(json.dumps({"format": "float8_e4m3fn"}).encode(), np.uint8)
    written(source, eight | scales | {"head.comfy_quant": said})
    assert not convert.prepare(source).plans[""].ignored
