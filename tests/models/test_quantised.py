"""Weights in eight bits: what is rounded and how, in every family, of converted folders."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from safetensors.numpy import save_file

import flowsde as fs
from flowsde.cli import main as cli
from flowsde.models.common.layers import FLOAT32, logical_axes
from flowsde.models.common.paths import parameters, with_parameters
from flowsde.models.common.quantised import FORMATS, quantise_layers, quantised_of
from flowsde.models.family import abstract
from flowsde.models.flux.model import FAMILY as FLUX
from flowsde.models.flux.model import FluxCond, FluxConfig
from flowsde.models.flux2.model import FAMILY as FLUX2
from flowsde.models.flux2.model import Flux2Cond, Flux2Config
from flowsde.models.load import nbytes
from flowsde.models.qwen3.model import FAMILY as QWEN3
from flowsde.models.qwen3.model import Qwen3Config
from flowsde.models.sd3.model import FAMILY as SD3
from flowsde.models.sd3.model import SD3Cond, SD3Config
from flowsde.models.sit.model import FAMILY as SIT
from flowsde.models.sit.model import SiTConfig
from flowsde.models.t5.model import ENCODER as T5
from flowsde.models.t5.model import T5Config
from flowsde.models.wan.model import FAMILY as WAN
from flowsde.models.wan.model import WanConfig
from flowsde.models.zimage.model import FAMILY as ZIMAGE
from flowsde.models.zimage.model import ZImageCond, ZImageConfig

PROMPT = tiny.PROMPTS[0]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def widened(values, scale):
    return values.astype(np.float32) * scale[..., None, :]


def test_int8_is_the_nearest_of_255_values_of_each_feature():
    kernel = normal(40, 7) * np.asarray([1e-6, 1e-3, 1.0, 3.0, 1e4, 0.0, 1e30], np.float32)
    values, scale = quantised_of(kernel, "int8")
    assert values.dtype == np.int8 and scale.dtype == np.float32
    np.testing.assert_array_equal(np.abs(values).max(axis=0), [127] * 5 + [0, 127])
    assert np.all(np.abs(widened(values, scale) - kernel) <= 0.5001 * scale)
    assert scale[5] == 0.0


def test_float8_is_that_of_torch():
    torch = pytest.importorskip("torch")
    kernel = normal(40, 5)
    values, scale = quantised_of(kernel, "float8_e4m3fn")
    theirs = torch.from_numpy(kernel / scale).to(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(values.astype(np.float32), theirs)
    # The largest of each feature is the format's.
    np.testing.assert_array_equal(np.abs(theirs).max(axis=0), np.full(5, 448.0))


@pytest.mark.parametrize("form", FORMATS)
def test_a_feature_of_subnormal_weights_is_zero_or_near(form):
    """Each would be of two digits or less in units of a subnormal scale, or overflow."""
    kernel = np.asarray([[1e-45, 2e-43, 4e-43, 6e-43, 1e-42, 1e-39, 1e-37]], np.float32).T
    for size in kernel[:, 0]:
        values, scale = quantised_of(kernel * 0 + size, form)
        found = widened(values, scale)
        assert np.all((found == 0) | (np.abs(found - size) <= 0.01 * size))
        assert scale[0] == 0 or scale[0] >= np.finfo(np.float32).tiny


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_feature_that_would_be_lost_is_an_error(wrong):
    kernel = normal(4, 3)
    kernel[2, 1] = wrong
    with pytest.raises(ValueError, match="a weight is NaN or infinite"):
        quantised_of(kernel, "int8")


def tokens(n, length, width, seed):
    return jnp.asarray(normal(n, length, width, seed=seed))


T = np.asarray([0.4, 1.0], np.float32)
IDS = np.asarray([[5, 6, 7, 1], [9, 1, 0, 0]], np.int32)
CASES = {
    "flux": (
        FLUX,
        FluxConfig(
            channels=16, heads=2, axes=(4, 6, 6), double=2, single=2, mlp=24, text=20, pooled=12,
            guidance=False,
        ),
        (normal(2, 4, 6, 4), T, FluxCond(tokens(2, 3, 20, 1), jnp.asarray(normal(2, 12)))),
    ),
    "flux2": (
        FLUX2,
        Flux2Config(channels=16, heads=2, axes=(2, 2, 2, 2), double=2, single=2, mlp=8, text=20),
        (normal(2, 4, 6, 4), T, Flux2Cond(tokens(2, 3, 20, 1))),
    ),
    "qwen3": (
        QWEN3,
        Qwen3Config(vocab=32, width=16, depth=2, heads=2, shared=1, head=8, mlp=24),
        (IDS,),
    ),
    "sd3": (
        SD3,
        SD3Config(
            channels=4, heads=2, head=8, depth=3, dual=2, qk_norm=True, mlp=24, text=20, pooled=12,
            side=6,
        ),
        (normal(2, 4, 6, 4), T, SD3Cond(tokens(2, 3, 20, 1), jnp.asarray(normal(2, 12)))),
    ),
    "sit": (
        SIT,
        SiTConfig(size=4, patch=2, width=16, depth=2, heads=2, classes=3),
        (normal(2, 4, 4, 4), T, np.asarray([0, 2])),
    ),
    "t5": (
        T5,
        T5Config(vocab=32, width=16, head=8, heads=2, mlp=24, depth=2),
        (IDS,),
    ),
    "wan": (
        WAN,
        WanConfig(channels=4, heads=2, head=24, depth=2, mlp=8, text=20),
        (normal(2, 1, 4, 6, 4), T, tokens(2, 3, 20, 1)),
    ),
    "zimage": (
        ZIMAGE,
        ZImageConfig(
            channels=4, heads=2, axes=(2, 2, 4), depth=2, refiners=1, mlp=24, text=20, time=16,
            condition=8,
        ),
        (normal(2, 4, 6, 4), T, ZImageCond(tokens(2, 32, 20, 1), np.asarray([5, 32], np.int32))),
    ),
}  # fmt: skip


def outputs(model, params, args):
    run = jax.jit(lambda params: with_parameters(model, params)(*args))
    return jax.tree.leaves(run(params))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("form", FORMATS)
def test_a_model_computes_what_its_rounded_weights_do(form, name):
    """Of rounded weights in float32 the plain layers' results are the expectation."""
    family, config, args = CASES[name]
    model = family.build(config, FLOAT32, rngs=nnx.Rngs(0))
    # No bias or gate is zero.
    params = {
        path: np.asarray(p) + 0.1 * normal(*p.shape, seed=i)
        for i, (path, p) in enumerate(parameters(model).items())
    }
    quantised = abstract(family, config)
    kernels = quantise_layers(quantised, form)
    assert kernels and all(params[path].ndim == 3 for path in kernels)
    held, rounded = dict(params), dict(params)
    for path in kernels:
        values, scale = map(
            np.stack, zip(*[quantised_of(one, form) for one in held.pop(path)], strict=True)
        )
        base = path.removesuffix("kernel")
        held |= {f"{base}values": values, f"{base}scale": scale}
        rounded[path] = widened(values, scale)
    got = outputs(quantised, held, args)
    expected = outputs(model, rounded, args)
    before = outputs(model, params, args)
    for one, other, plain in zip(got, expected, before, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5 * np.abs(other).max())
        assert not np.allclose(one, plain, rtol=1e-4)


def test_axes_are_those_of_the_kernels():
    model = abstract(FLUX, CASES["flux"][1])
    quantise_layers(model, "int8")
    names = logical_axes(model)["double"]["image"]["up"]
    assert names["values"].get_value() == ("layer", "embed", "mlp")
    assert names["scale"].get_value() == ("layer", "mlp")
    assert names["bias"].get_value() == ("layer", "mlp")


def rounded(module, form):
    """Parameters of a model that was read plainly, as they are to be in a format."""
    found = {}
    for path, p in parameters(module).items():
        a = np.asarray(p)
        if path.endswith(".kernel") and a.ndim == 3:
            base = path.removesuffix("kernel")
            parts = [quantised_of(one, form) for one in a]
            found[f"{base}values"], found[f"{base}scale"] = map(np.stack, zip(*parts, strict=True))
        else:
            found[path] = a
    return found


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("form", FORMATS)
def test_folders_are_read_in_it(folders, form, devices):
    folder, mesh = folders["dev"] / "out" / "transformer", None
    if devices > 1:
        mesh = jax.make_mesh((2, 2), ("prompt", "model"))
    expected = rounded(fs.load(folder), form)
    module = fs.load(folder, mesh, quantise=form)
    got = parameters(module)
    assert got.keys() == expected.keys()
    for path, one in got.items():
        np.testing.assert_array_equal(np.asarray(one), expected[path], err_msg=path)
        assert one.dtype == expected[path].dtype
    up = got["double.image.up.values"]
    assert len(up.sharding.device_set) == devices
    if devices > 1:
        assert up.addressable_shards[0].data.shape[-1] == up.shape[-1] // 2


@pytest.mark.slow
def test_adapters_are_in_what_is_rounded(folders, tmp_path):
    folder, file = folders["schnell"] / "out", tmp_path / "adapter.safetensors"
    keys = "transformer.single_transformer_blocks.0.proj_out"
    kernel = np.asarray(parameters(fs.load(folder / "transformer"))["single.leave.kernel"])
    down, up = normal(2, kernel.shape[1]), normal(kernel.shape[2], 2, seed=1)
    save_file({f"{keys}.lora_A.weight": down, f"{keys}.lora_B.weight": up}, file)
    merged = np.concatenate([kernel[:1] + (up @ down).T, kernel[1:]])
    module = fs.load(folder, lora={str(file): 1.0}, quantise="int8")._parts["transformer"]
    got = parameters(module)
    found = widened(*(np.asarray(got[f"single.leave.{name}"]) for name in ("values", "scale")))
    scale = np.asarray(got["single.leave.scale"])[:, None, :]
    assert np.all(np.abs(found - merged) <= 0.51 * scale)


@pytest.mark.slow
def test_sizes_are_those_in_memory(folders):
    folder = folders["dev"] / "out"
    said = nbytes(folder, "int8")
    for name, form in (("transformer", "int8"), ("text_encoder_2", "int8"), ("vae", None)):
        held = parameters(fs.load(folder / name, quantise=form)).values()
        assert said[name] == sum(p.nbytes for p in held)
    assert said["transformer"] < 0.5 * nbytes(folder)["transformer"] and said["vae"] > 0


@pytest.mark.slow
def test_what_cannot_be_held_in_it_is_named(folders):
    with pytest.raises(ValueError, match="no effect on a model of autoencoder_kl, which has no bl"):
        fs.load(folders["dev"] / "out" / "vae", quantise="int8")
    with pytest.raises(ValueError, match="quantise must be int8 or float8_e4m3fn, or None, got 'i"):
        fs.load(folders["dev"] / "out", quantise="int4")


@pytest.mark.slow
def test_what_is_not_finite_is_named(folders, tmp_path):
    folder = shutil.copytree(folders["dev"] / "out" / "transformer", tmp_path / "copy")
    path = folder / "params" / "single.leave.kernel"
    file = sorted(one for one in path.iterdir() if one.name[0].isdigit())[0]
    file.write_bytes(np.float32(np.nan).tobytes() + file.read_bytes()[4:])
    with pytest.raises(ValueError, match=r"single\.leave\.kernel: a weight is NaN or infinite; in"):
        fs.load(folder, quantise="int8", verify=False)
    # A file that was damaged is called so.
    with pytest.raises(ValueError, match=r"single\.leave\.kernel changed since it was written"):
        fs.load(folder, quantise="int8")


@pytest.mark.slow
def test_the_command_searches_with_it(folders, others, tmp_path, capsys):
    words = ["sample", PROMPT, "--model", str(folders["schnell"] / "out"), "--size", "16"]
    words += ["--method", "bon", "--nfe", "8", "--steps", "2", "--reward", "clip"]
    words += ["--reward-model", str(others["clip"])]
    cli.main([*words, "--quantise", "int8", "--out", str(tmp_path / "int8")])
    cli.main([*words, "--out", str(tmp_path / "plain")])
    results = [
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("int8", "plain")
    ]
    assert results[0]["settings"]["quantise"] == "int8"
    assert "quantise" not in results[1]["settings"]
    # Near, and not the same.
    assert 0 < abs(results[0]["reward"] - results[1]["reward"]) < 0.1
    for name, own in (("int8", []), ("plain", ["--quantise", "int8"])):
        with pytest.raises(SystemExit):
            cli.main([*words, *own, "--out", str(tmp_path / name)])
        assert "used --quantise" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*words, "--quantise", "int4"])
    assert "--quantise must be int8 or float8_e4m3fn, got 'int4'" in capsys.readouterr().err
