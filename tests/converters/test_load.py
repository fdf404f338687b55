"""`flowsde.load`: the model that was written, on the devices that were asked for."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import save_file
from test_convert import converted, expected, pipeline  # noqa: F401

import flowsde as fs
from flowsde.models.common.layers import Numerics
from flowsde.models.common.paths import parameters
from flowsde.models.converted.store import sealed
from flowsde_converters import convert
from flowsde_converters.back import prepare_back, run_back


@pytest.fixture
def out(source, tmp_path):
    converted(source, tmp_path / "out")
    return tmp_path / "out"


def test_the_model_computes_what_the_tensors_say(out):
    model = fs.load(out)
    assert isinstance(model, toy.Toy)
    tensors = toy.tensors()
    x = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    t = np.linspace(0, 1, 5, dtype=np.float32)
    h = x + t[:, None]
    for i in range(3):
        weight = np.concatenate([tensors[f"b.{i}.x"], tensors[f"b.{i}.y"]])
        h = h @ weight.T + tensors[f"b.{i}.bias"]
    wanted = h @ tensors["head.weight"][::-1].T + tensors["head.bias"][::-1]
    found = model(jnp.asarray(x), jnp.asarray(t))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_family_may_make_a_flow(families, source, tmp_path):
    families["toy"] = dataclasses.replace(toy.FLOW, name="toy")
    converted(source, tmp_path / "out")
    flow = fs.load(str(tmp_path / "out"))
    assert isinstance(flow, fs.Flow) and flow.shape == (4,)
    leaves = {np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(flow.params)}
    assert leaves == {a.tobytes() for a in expected(toy.tensors()).values()}


@pytest.mark.slow
def test_dtypes_of_weights_and_activations(out):
    as_is, small = fs.load(out), fs.load(out, dtype=jnp.bfloat16)
    assert as_is.head.kernel.get_value().dtype == as_is.head.dtype == jnp.float32
    assert small.head.dtype == jnp.bfloat16
    for path, array in parameters(small).items():
        wanted = expected(toy.tensors())[path].astype(toy.BF16)
        np.testing.assert_array_equal(np.asarray(array), wanted, strict=True)
    mixed = fs.load(out, dtype=jnp.bfloat16, numerics=Numerics(dtype=jnp.float32))
    assert mixed.head.kernel.get_value().dtype == jnp.bfloat16 and mixed.head.dtype == jnp.float32


@pytest.mark.slow
def test_parameters_are_sharded_by_the_names_of_their_axes(out):
    mesh = jax.make_mesh((2, 2), ("prompt", "model"), (jax.sharding.AxisType.Auto,) * 2)
    split = {"blocks.kernel": (None, None, "model"), "blocks.bias": (None, "model")}
    fully = {
        "blocks.kernel": (None, "prompt", "model"),
        "blocks.bias": (None, "model"),
        "head.kernel": ("prompt",),
    }
    for rules, specs in ((None, split), (fs.ShardingRules(embed="prompt"), fully)):
        model = fs.load(out, mesh, rules=rules)
        for path, array in parameters(model).items():
            wanted = NamedSharding(mesh, PartitionSpec(*specs.get(path, ())))
            assert array.sharding.is_equivalent_to(wanted, array.ndim), path
            np.testing.assert_array_equal(array, expected(toy.tensors())[path])


def test_a_parameter_that_devices_do_not_share_evenly_is_named(out):
    mesh = jax.make_mesh((2, 2), ("prompt", "model"), (jax.sharding.AxisType.Auto,) * 2)
    with pytest.raises(ValueError, match=r"axis 'layer' of parameter blocks\.(bias|kernel), of si"):
        fs.load(out, mesh, rules=fs.ShardingRules(layer="prompt"))


def test_a_rule_names_an_axis_of_the_mesh(out):
    mesh = jax.make_mesh((4,), ("prompt",), (jax.sharding.AxisType.Auto,))
    with pytest.raises(ValueError, match="rules map 'mlp' to 'tensor', expected one of .*, prompt"):
        fs.load(out, mesh, rules=fs.ShardingRules(mlp="tensor"))
    with pytest.raises(ValueError, match="rules say how to split over a mesh, expected a mesh"):
        fs.load(out, rules=fs.ShardingRules())
    with pytest.raises(TypeError, match=r"rules must be flowsde\.ShardingRules, got dict"):
        fs.load(out, mesh, rules={"mlp": "prompt"})


def write(config, about):
    """A configuration that was written so."""
    config.write_text(json.dumps(sealed(about)))


def test_what_is_not_a_converted_model_is_refused(out, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist, expected what"):
        fs.load(tmp_path / "nowhere")
    config = out / "config.json"
    about = json.loads(config.read_text())
    config.write_text(json.dumps(about | {"format": "other"}))
    with pytest.raises(ValueError, match="of the format 'other', expected 'flowsde converted"):
        fs.load(out)
    write(config, about | {"family": "gone"})
    with pytest.raises(ValueError, match="unknown family 'gone', expected one of toy"):
        fs.load(out)
    write(config, about | {"config": {"depth": 3, "breadth": 4}})
    with pytest.raises(ValueError, match="unknown settings of Config: 'breadth'"):
        fs.load(out)
    write(config, about | {"config": about["config"] | {"depth": 4}})
    with pytest.raises(ValueError, match=r"blocks\.bias is \(3, 4\), expected \(4, 4\)"):
        fs.load(out)


@pytest.mark.parametrize(
    "gone", ["params", "params/head.bias", "params/head.bias/.zarray", "params/head.bias/0"]
)
def test_a_parameter_that_is_gone_is_an_error(out, gone):
    path = out / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match=r"params/.* (is missing, which .*|cannot be read: )"):
        fs.load(out)
    with pytest.raises(ValueError, match=r"params/(head\.bias|blocks\.kernel) cannot be read: "):
        fs.load(out, verify=False)


@pytest.mark.slow_but_one
@pytest.mark.parametrize("name", ["params/blocks.kernel/0.0.0", "params/head.bias/0"])
def test_a_bit_that_flipped_is_named(out, tmp_path, name):
    file = out / name
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    said = rf"params: {name.split('/')[1]} changed since it was written: its SHA-256 is not that"
    with pytest.raises(ValueError, match=said):
        fs.load(out)
    with pytest.raises(ValueError, match=said):
        run_back(out, prepare_back(out), tmp_path / "back.safetensors")
    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors", "out"}
    same = [
        np.array_equal(a, expected(toy.tensors())[path])
        for path, a in parameters(fs.load(out, verify=False)).items()
    ]
    assert sorted(same) == [False, True, True, True]


def test_a_field_that_changed_is_an_error(out):
    """Also one that the shapes of parameters say nothing of."""
    config = out / "config.json"
    about = json.loads(config.read_text())
    about["config"]["sizes"].append(8)
    config.write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"out/config\.json was changed since it was written"):
        fs.load(out)
    fs.load(out, verify=False)


@pytest.mark.slow_but_one
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"params": 3}, r"config\.json: params must be an object, got 3"),
        ({"config": []}, r"config\.json: config must be an object, got \[\]"),
        ({"config": {"depth": 3}}, r"config\.json: config lacks the field width"),
        ({"config": {"depth": 3, "width": 4.5}}, r"config: width must be an integer"),
        (
            {"config": {"depth": 3, "width": 4, "sizes": [[2]]}},
            r"config: sizes\[0\] must be an int",
        ),
        (
            {"config": {"depth": 3, "width": 4, "sizes": [2] * 99}},
            r"sizes must be a list of at most",
        ),
        ({"config": {"depth": 3, "width": 0}}, r"config\.json.*config makes no toy|is not of this"),
        ({"config": {"depth": 2**31 - 1, "width": 4}}, r"is not of this version's model"),
        ({"dtype": "int4"}, r"config\.json: dtype must be one of"),
        ({"source": {"files": {}}}, r"config\.json: source lacks the field dtypes"),
        ({"files": {"../x": "0" * 64}}, r"config\.json: files must be a path in the folder"),
        ({"files": {"a": "0"}}, r"config\.json: files: a must be a SHA-256"),
        ({"version": None}, r"config\.json: version must be a text"),
        (
            {"format": ["x"] * 1000},
            r"is of the format \['x', .*\.\.\., expected 'flowsde converted",
        ),
    ],
)
def test_a_hostile_configuration_is_one_line(out, change, said):
    config = out / "config.json"
    write(config, json.loads(config.read_text()) | change)
    for verify in (True, False):
        with pytest.raises(ValueError, match=said) as caught:
            fs.load(out, verify=verify)
        assert len(str(caught.value)) < 600


@pytest.mark.slow_but_one
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shape": [10**9]}, r"head\.bias cannot be read: a file is missing or truncated"),
        ({"shape": [10**12], "chunks": [10**12]}, r"head\.bias cannot be read: a file is missing"),
        ({"shape": [2, 1]}, r"\.zarray has chunks of 1 axes, expected 2"),
        ({"chunks": [0]}, r"\.zarray: chunks\[0\] must be an integer from 1"),
        ({"dtype": "<f8"}, r"head\.bias cannot be read: a file is missing or truncated"),
        ({"dtype": "<i4"}, r"head\.bias is int32 \(2,\), expected float32"),
        ({"dtype": "no"}, r"head\.bias cannot be read: .*no"),
        ({"compressor": {"id": "zlib"}}, r"\.zarray: compressor must be one of None"),
        ({"dimension_separator": "/"}, r"\.zarray: dimension_separator must be one of '\.'"),
        ({"zarr_format": None}, r"\.zarray: zarr_format must be one of 2"),
    ],
)
def test_a_hostile_description_of_an_array_is_one_line(out, change, said):
    """Whatever it says: the files that there are bound what is read."""
    path = out / "params" / "head.bias" / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"head\.bias/\.zarray was changed since it was written"):
        fs.load(out)
    with pytest.raises(ValueError, match=said):
        fs.load(out, verify=False)


def test_a_truncated_parameter_is_an_error(out):
    file = out / "params" / "head.bias" / "0"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"head\.bias cannot be read: a file is .* or truncated"):
        fs.load(out)


def test_a_pipeline_has_a_model_for_each_part(pipeline, tmp_path):  # noqa: F811
    convert.run(convert.prepare(pipeline), tmp_path / "out")
    with pytest.raises(ValueError, match=r"a pipeline, expected one of its models: .*transformer"):
        fs.load(tmp_path / "out")
    assert isinstance(fs.load(tmp_path / "out" / "transformer"), toy.Toy)


def test_large_parameters_load_from_many_files(families, tmp_path):
    tensors = toy.tensors(depth=2, width=1024)
    save_file(tensors, tmp_path / "model.safetensors")
    found = converted(tmp_path / "model.safetensors", tmp_path / "out")
    wanted = expected(tensors)
    for path, array in parameters(fs.load(tmp_path / "out")).items():
        np.testing.assert_array_equal(array, wanted[path], strict=True)
        np.testing.assert_array_equal(found[path], wanted[path], strict=True)
