"""`flowsde.load(lora=)`: what `flowsde convert --lora` would have written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from safetensors.numpy import save_file
from test_convert import converted, expected, pipeline  # noqa: F401
from test_lora import dyadic
from test_lora_command import PAIR, lora, merged  # noqa: F401

import flowsde as fs
from flowsde.models.common.paths import parameters


@pytest.fixture
def out(source, tmp_path):
    converted(source, tmp_path / "out")
    return tmp_path / "out"


def values(model):
    return {path: np.asarray(array) for path, array in parameters(model).items()}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for path, array in wanted.items():
        np.testing.assert_array_equal(found[path], array, strict=True)


@pytest.mark.slow
def test_one_file_and_several_with_scales(out, lora, tmp_path):  # noqa: F811
    assert_same(values(fs.load(out, lora=lora)), expected(merged(toy.tensors(), 1.0)))
    assert_same(values(fs.load(out, lora=str(lora))), expected(merged(toy.tensors(), 1.0)))
    block = dyadic(np.random.default_rng(5), 4)
    save_file({"b.1.diff_b": block}, tmp_path / "b.safetensors")
    scales = {str(lora): 0.5, str(tmp_path / "b.safetensors"): -0.25}
    tensors = merged(toy.tensors(), 0.5)
    tensors["b.1.bias"] = tensors["b.1.bias"] + np.float32(-0.25) * block
    assert_same(values(fs.load(out, lora=scales)), expected(tensors))


@pytest.mark.slow_but_one
@pytest.mark.parametrize("written", [None, "bfloat16"])
@pytest.mark.parametrize("asked", [None, jnp.bfloat16])
def test_it_is_rounded_once_after_merging(source, lora, tmp_path, written, asked):  # noqa: F811
    converted(source, tmp_path / "out", dtype=written)
    base = {k: a.astype(written or a.dtype).astype(np.float32) for k, a in toy.tensors().items()}
    kind = np.dtype(asked or written or np.float32)
    wanted = {path: a.astype(kind) for path, a in expected(merged(base, 0.5)).items()}
    assert_same(values(fs.load(tmp_path / "out", dtype=asked, lora={str(lora): 0.5})), wanted)


def test_each_device_has_its_part(out, lora):  # noqa: F811
    mesh = jax.make_mesh((2, 2), ("prompt", "model"), (jax.sharding.AxisType.Auto,) * 2)
    rules = fs.ShardingRules(embed="prompt")
    model = fs.load(out, mesh, rules=rules, lora=lora)
    assert_same(values(model), expected(merged(toy.tensors(), 1.0)))
    kernel = model.head.kernel.get_value()
    assert not kernel.sharding.is_fully_replicated
    assert kernel.sharding == fs.load(out, mesh, rules=rules).head.kernel.get_value().sharding


def test_what_does_not_fit_is_listed_before_weights_are_read(out, lora, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("flowsde.models.load.load_module", None)
    wrong = tmp_path / "wrong.safetensors"
    save_file({"tail.lora_A.weight": np.zeros((2, 4), np.float32), **PAIR}, wrong)
    with pytest.raises(ValueError, match=r"unknown key tail\.lora_A\.weight"):
        fs.load(out, lora=wrong)
    save_file(PAIR | {"head.lora_A.weight": np.full((3, 4), np.nan, np.float32)}, wrong)
    with pytest.raises(ValueError, match="NaN or infinite"):
        fs.load(out, lora=wrong)
    with pytest.raises(FileNotFoundError, match="expected a file of adapters"):
        fs.load(out, lora=tmp_path / "none.safetensors")
    with pytest.raises(TypeError, match="lora must be a path, got int"):
        fs.load(out, lora=3)
    with pytest.raises(TypeError, match="the scale of .* must be a number, got str"):
        fs.load(out, lora={str(lora): "1"})
    with pytest.raises(ValueError, match="the scale of .* must be finite"):
        fs.load(out, lora={str(lora): float("nan")})


def test_a_sum_that_its_dtype_does_not_hold_is_an_error(source, tmp_path):
    converted(source, tmp_path / "out", dtype="float16")
    path = tmp_path / "large.safetensors"
    save_file({"head.diff_b": np.full(2, 70_000, np.float32)}, path)
    with pytest.raises(ValueError, match=r"head\.bias with adapters is NaN or infinite in float16"):
        fs.load(tmp_path / "out", lora=path)
