"""A conversion is right, whole and read back, or there is nothing; and it can be undone."""

import hashlib
import json
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import killed_convert
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
import toy
from safetensors.numpy import load_file, save_file

from flowsde.models.common.paths import parameters
from flowsde.models.converted import arrays
from flowsde.models.converted.arrays import Parameter
from flowsde.models.converted.configs import from_json
from flowsde.models.converted.store import flat
from flowsde_converters import convert, detect, stream
from flowsde_converters.back import prepare_back, run_back
from flowsde_converters.files import open_checkpoint
from flowsde_converters.safetensors_file import SafetensorsFile, SafetensorsWriter
from flowsde_converters.tables import convert as in_memory


def converted(source, out, **options):
    """Parameters that a conversion wrote, by path."""
    convert.run(convert.prepare(source, **options), out)
    about = json.loads((out / "config.json").read_text())
    return {path: Parameter(out / "params" / path).read() for path in about["params"]}


def expected(tensors, layout="original"):
    """The same by the table alone."""
    width = tensors["head.weight"].shape[1]
    config = toy.Config(sum(k.endswith("bias") for k in tensors) - 1, width)
    model = parameters(detect.abstract(toy.FAMILY, config))
    return in_memory(toy.table(config, layout), tensors, model)


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for path, array in wanted.items():
        np.testing.assert_array_equal(found[path], array, strict=True)


def left(folder):
    """Names of all there is but the source's file."""
    return {p.name for p in folder.iterdir()} - {"model.safetensors"}


@pytest.mark.slow_but_one
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_parameters_are_those_of_the_table(families, tmp_path, layout):
    tensors = toy.tensors(layout=layout)
    save_file(tensors, tmp_path / "model.safetensors")
    out = tmp_path / "deep" / "out"
    assert_same(converted(tmp_path / "model.safetensors", out), expected(tensors, layout))
    about = json.loads((out / "config.json").read_text())
    assert (about["family"], about["layout"], about["dtype"]) == ("toy", layout, "float32")
    assert from_json(toy.Config, about["config"]) == toy.Config(3, 4, (2,))


def test_large_blocks_are_written_one_by_one(source, tmp_path, monkeypatch):
    """As with blocks of more than a megabyte; files of a parameter are small enough to be many."""
    monkeypatch.setattr(stream, "_LEAST_BLOCK", 1)
    monkeypatch.setattr(arrays, "_FILE", 20)
    monkeypatch.setattr(stream, "_IN_FLIGHT", 0)
    out = tmp_path / "out"
    assert_same(converted(source, out), expected(toy.tensors()))
    files = [p.name for p in (out / "params" / "blocks.kernel").iterdir() if p.name != ".zarray"]
    assert sorted(files) == [f"{i}.{j}.0" for i in range(3) for j in range(4)]


@pytest.mark.slow
def test_few_blocks_are_in_memory(families, tmp_path, monkeypatch):
    """However many are stacked: those that wait for the disk, and the one that is made."""
    save_file(toy.tensors(depth=20, width=64), tmp_path / "model.safetensors")
    monkeypatch.setattr(stream, "_LEAST_BLOCK", 1)
    each = 64 * 64 * 4
    monkeypatch.setattr(stream, "_IN_FLIGHT", 2 * each)
    made, most = [], 0

    def recorded(*args):
        nonlocal most
        for block in blocks(*args):
            made.append(weakref.ref(block))
            alive = {id(one()): one().nbytes for one in made if one() is not None}
            most = max(most, sum(alive.values()))
            yield block
            del block

    blocks = stream.blocks
    monkeypatch.setattr(stream, "blocks", recorded)
    converted(tmp_path / "model.safetensors", tmp_path / "out")
    assert len(made) == 40
    # In flight, the last one, and the one that is made: not 20.
    assert 2 * each <= most <= 5 * each


def test_orbax_reads_the_checkpoint_by_itself(source, tmp_path):
    converted(source, tmp_path / "out")
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(tmp_path / "out" / "params")
    assert_same({path: np.asarray(a) for path, a in flat(tree).items()}, expected(toy.tensors()))


def test_zeros_are_written_too(families, tmp_path):
    tensors = {key: np.zeros_like(a) for key, a in toy.tensors().items()}
    save_file(tensors, tmp_path / "model.safetensors")
    assert_same(converted(tmp_path / "model.safetensors", tmp_path / "out"), expected(tensors))


def test_what_it_came_from_is_recorded(source, tmp_path):
    (tmp_path / "config.json").write_text('{"extra": [7]}')
    converted(source, tmp_path / "out")
    about = json.loads((tmp_path / "out" / "config.json").read_text())
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert about["source"]["files"] == {"model.safetensors": digest}
    assert about["source"]["config"] == {"extra": [7]}
    assert about["config"]["sizes"] == [2, 7]
    bias = about["params"]["head.bias"]
    wanted = hashlib.sha256(toy.tensors()["head.bias"][::-1].tobytes()).hexdigest()
    assert bias == {"shape": [2], "dtype": "float32", "sha256": wanted}
    assert str(tmp_path) not in json.dumps(about)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_rounded_to_the_nearest(source, tmp_path, dtype):
    found = converted(source, tmp_path / "out", dtype=dtype)
    wanted = {k: a.astype(detect.DTYPES[dtype]) for k, a in expected(toy.tensors()).items()}
    assert_same(found, wanted)


def test_everything_wrong_is_said_at_once_and_nothing_written(source, tmp_path):
    tensors = toy.tensors()
    tensors["b.1.z"] = tensors.pop("b.1.x")
    tensors["b.2.x"] = tensors["b.2.x"][:1]
    tensors["head.bias"] = tensors["head.bias"].astype(np.int32)
    save_file(tensors, source)
    with pytest.raises(ValueError) as error:
        converted(source, tmp_path / "out")
    lines = str(error.value).splitlines()
    assert lines[0] == "the checkpoint does not fit toy (original keys):"
    assert lines[1:3] == ["missing key b.1.x", "unexpected key b.1.z"]
    assert lines[3].startswith("b.2.x + b.2.y [(1, 4), (2, 4)] does not make blocks.kernel (4, 4)")
    assert lines[4] == "head.bias is int32, expected float64, float32, float16, bfloat16"
    assert len(lines) == 5 and not left(tmp_path)


def save_torch(tensors, path):
    from safetensors.torch import save_file as save

    save(tensors, path)


EIGHT = [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]


@pytest.mark.slow_but_one
@pytest.mark.parametrize("eight", EIGHT)
@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16", "float32"])
def test_eight_bits_are_widened_exactly(source, tmp_path, eight, dtype):
    torch = pytest.importorskip("torch")
    tensors = {key: a.astype(eight) for key, a in toy.tensors(width=16).items()}
    kind = getattr(torch, np.dtype(eight).name)
    bits = {key: torch.from_numpy(a.view(np.uint8)).view(kind) for key, a in tensors.items()}
    save_torch(bits, source)
    params = converted(source, tmp_path / "out", dtype=dtype)
    wide = {key: a.to(torch.float32).numpy() for key, a in bits.items()}
    for path, array in expected(wide).items():
        assert params[path].dtype == np.dtype(dtype or "bfloat16")
        np.testing.assert_array_equal(params[path].astype(np.float32), array)
    run_back(tmp_path / "out", prepare_back(tmp_path / "out"), tmp_path / "back.safetensors")
    again = SafetensorsFile(tmp_path / "back.safetensors")
    for key, array in tensors.items():
        np.testing.assert_array_equal(again.read(key).view(np.uint8), array.view(np.uint8))


def test_joined_tensors_may_be_of_several_dtypes(source, tmp_path):
    """NumPy has no dtype for bfloat16 and float16 together."""
    tensors = toy.tensors()
    kinds = {".x": toy.BF16, ".y": np.float16}
    tensors = {key: a.astype(kinds.get(key[-2:], np.float32)) for key, a in tensors.items()}
    with SafetensorsWriter(source.with_name("mixed.safetensors"), tensors) as writer:
        for key, array in tensors.items():
            writer.write(key, array)
    params = converted(source.with_name("mixed.safetensors"), tmp_path / "out")
    wide = {key: a.astype(np.float32) for key, a in tensors.items()}
    for path, array in expected(wide).items():
        np.testing.assert_array_equal(params[path], array, strict=True)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, toy.BF16])
def test_values_are_counted_that_are_not_finite(dtype):
    values = np.array([0.0, -0.0, 1.0, -65504.0, np.inf, -np.inf, np.nan, -np.nan, 1e-7], dtype)
    values[3] = np.finfo(np.float16).min if dtype != toy.BF16 else -3.3895e38
    assert stream.count_not_finite(values) == 4
    many = np.tile(values, 30_000).reshape(3, -1)
    assert stream.count_not_finite(many) == 120_000
    assert stream.count_not_finite(np.zeros((0, 3), dtype)) == 0


@pytest.mark.parametrize("least", [1, 2**20])
def test_values_that_are_not_finite_are_all_named(source, tmp_path, monkeypatch, least):
    monkeypatch.setattr(stream, "_LEAST_BLOCK", least)
    tensors = toy.tensors()
    tensors["b.1.x"][0, 1] = np.nan
    tensors["b.2.bias"][:] = -np.inf
    tensors["head.weight"][1, 1] = np.inf
    save_file(tensors, source)
    with pytest.raises(ValueError) as error:
        converted(source, tmp_path / "out")
    assert sorted(str(error.value).splitlines()[1:]) == [
        "b.1.x: 1 of 8 values are NaN or infinite",
        "b.2.bias: 4 of 4 values are NaN or infinite",
        "head.weight: 1 of 8 values are NaN or infinite",
    ]
    assert not left(tmp_path)


def test_values_that_are_too_large_for_the_dtype_are_named(source, tmp_path):
    tensors = toy.tensors()
    tensors["head.bias"][0] = 7e4
    save_file(tensors, source)
    with pytest.raises(ValueError, match=r"head\.bias: some values are too large for float16"):
        converted(source, tmp_path / "out", dtype="float16")
    assert not left(tmp_path)
    converted(source, tmp_path / "out", dtype="bfloat16")


def test_a_family_is_recognised_or_refused(families, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"other.weight": np.ones(3, np.float32)}, path)
    with pytest.raises(ValueError, match=r"no family known here, expected one of toy; its 1 keys"):
        convert.prepare(path)
    save_file(toy.tensors(), path)
    with pytest.raises(ValueError, match="unknown family 'flax', expected one of toy"):
        convert.prepare(path, family="flax")
    families["other"] = toy.dataclasses.replace(toy.FAMILY, name="other", recognise=lambda *_: None)
    with pytest.raises(ValueError, match="the checkpoint is of toy, expected other"):
        convert.prepare(path, family="other")
    families["twin"] = toy.dataclasses.replace(toy.FAMILY, name="twin")
    with pytest.raises(ValueError, match="fits toy, twin, expected --family to choose one"):
        convert.prepare(path)
    assert convert.prepare(path, family="twin").plans[""].family.name == "twin"


@pytest.mark.parametrize("shape", [(), (4,), (2, 4, 1)])
def test_shapes_that_lead_a_family_astray_are_an_error(source, shape):
    save_file(toy.tensors() | {"head.weight": np.zeros(shape, np.float32)}, source)
    with pytest.raises(ValueError, match="a toy checkpoint that cannot be"):
        convert.prepare(source)


def test_what_exists_is_kept(source, tmp_path):
    out = tmp_path / "out"
    first = converted(source, out)
    job = convert.prepare(source, dtype="bfloat16")
    with pytest.raises(ValueError, match=r"out exists, expected another one or --overwrite"):
        convert.run(job, out)
    assert_same(converted(source, tmp_path / "twin"), first)
    convert.run(job, out, overwrite=True)
    assert Parameter(out / "params" / "head.bias").dtype == toy.BF16
    assert left(tmp_path) == {"out", "twin"}


def test_only_a_conversion_is_overwritten(source, tmp_path):
    job = convert.prepare(source)
    (tmp_path / "mine").mkdir()
    convert.run(job, tmp_path / "mine", overwrite=True)
    (tmp_path / "yours").mkdir()
    (tmp_path / "yours" / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="yours was not written by a conversion, and is left"):
        convert.run(job, tmp_path / "yours", overwrite=True)
    with pytest.raises(ValueError, match="holds SOURCE"):
        convert.run(job, tmp_path, overwrite=True)
    assert (tmp_path / "yours" / "letter.txt").exists() and source.exists()


def test_a_failed_overwrite_leaves_the_old(source, tmp_path):
    old = converted(source, tmp_path / "out")
    tensors = toy.tensors()
    tensors["head.bias"][0] = np.nan
    save_file(tensors, source)
    with pytest.raises(ValueError, match="NaN"):
        convert.run(convert.prepare(source), tmp_path / "out", overwrite=True)
    found = {path: Parameter(tmp_path / "out" / "params" / path).read() for path in old}
    assert_same(found, old)
    assert left(tmp_path) == {"out"}


def test_a_disk_that_is_too_small_is_found_first(source, tmp_path, monkeypatch):
    job = convert.prepare(source)
    usage = shutil.disk_usage(tmp_path)._replace(free=job.to_write - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"takes .* GB, and .* are free"):
        convert.run(job, tmp_path / "out")
    assert not left(tmp_path)


def test_a_disk_that_forgets_is_noticed(source, tmp_path, monkeypatch):
    """A byte of a parameter changes after it was written."""

    def check(self, path, folder, writing):
        for write in writing:
            write.result()
        if path == "head.bias":
            file = folder / "0"
            file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
        return real(self, path, folder, writing)

    real = stream.Stream._check
    monkeypatch.setattr(stream.Stream, "_check", check)
    with pytest.raises(ValueError, match="head.bias reads back differently"):
        converted(source, tmp_path / "out")
    assert not left(tmp_path)


def test_an_interruption_leaves_nothing(source, tmp_path):
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert.run(convert.prepare(source), tmp_path / "out", advance=stop)
    assert not left(tmp_path)


@pytest.mark.slow
def test_a_killed_conversion_leaves_no_out(source, tmp_path):
    out = tmp_path / "out"
    script = Path(killed_convert.__file__)
    ran = subprocess.run([sys.executable, script, source, out], capture_output=True, text=True)
    assert ran.returncode == -9, ran.stderr
    assert left(tmp_path) == {".out.flowsde"}
    assert_same(converted(source, out), expected(toy.tensors()))
    assert left(tmp_path) == {"out"}


def back(source, out, **options):
    run_back(source, prepare_back(source), out, **options)
    return open_checkpoint(out)


@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, toy.BF16])
def test_round_trip_keeps_keys_and_bits(families, tmp_path, layout, dtype):
    tensors = toy.tensors(dtype=dtype, layout=layout)
    with convert_source(tmp_path, tensors) as source:
        converted(source, tmp_path / "out")
    found = back(tmp_path / "out", tmp_path / "back.safetensors")
    assert found.tensors.keys() == tensors.keys()
    for key, tensor in tensors.items():
        read = found.read(key)
        assert read.dtype == dtype and read.tobytes() == tensor.tobytes(), key


def convert_source(folder, tensors):
    """A checkpoint of any dtype, as a context."""
    from flowsde_converters.safetensors_file import SafetensorsWriter

    class Source:
        def __enter__(self):
            path = folder / "model.safetensors"
            with SafetensorsWriter(path, tensors) as writer:
                for key, tensor in tensors.items():
                    writer.write(key, tensor)
            return path

        def __exit__(self, *_):
            pass

    return Source()


def test_round_trip_of_mixed_dtypes_keeps_bits(families, tmp_path):
    """A parameter has one dtype, in which its tensors' values fit; back, each has its own."""
    tensors = toy.tensors()
    tensors["b.0.x"] = tensors["b.0.x"].astype(np.float16)
    tensors["b.1.y"] = tensors["b.1.y"].astype(toy.BF16)
    for key in ("b.0.bias", "b.1.bias", "b.2.bias", "head.bias"):
        tensors[key] = tensors[key].astype(toy.BF16)
    tensors["b.1.bias"] = tensors["b.1.bias"].astype(np.float16)
    with convert_source(tmp_path, tensors) as source:
        found = converted(source, tmp_path / "out")
    kinds = {path: a.dtype.name for path, a in found.items()}
    assert kinds == dict.fromkeys(kinds, "float32") | {"head.bias": "bfloat16"}
    again = back(tmp_path / "out", tmp_path / "back.safetensors")
    for key, tensor in tensors.items():
        assert again.tensors[key].dtype == tensor.dtype
        assert again.read(key).tobytes() == tensor.tobytes()


def test_back_to_a_folder_has_the_config_beside_it(source, tmp_path):
    (tmp_path / "config.json").write_text('{"extra": [7]}')
    converted(source, tmp_path / "out")
    found = back(tmp_path / "out", tmp_path / "again")
    assert found.config == {"extra": [7]}
    assert {p.name for p in (tmp_path / "again").iterdir()} == {"config.json", "model.safetensors"}
    with pytest.raises(ValueError, match="exists, expected another one"):
        back(tmp_path / "out", tmp_path / "again")


def test_back_refuses_what_is_there_and_what_is_not_converted(source, tmp_path):
    converted(source, tmp_path / "out")
    back(tmp_path / "out", tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="exists, expected another one or --overwrite"):
        back(tmp_path / "out", tmp_path / "b.safetensors")
    back(tmp_path / "out", tmp_path / "b.safetensors", overwrite=True)
    with pytest.raises(FileNotFoundError, match=r"no config\.json, expected what"):
        prepare_back(tmp_path / "out" / "params")


@pytest.fixture
def pipeline(families, tmp_path):
    """A pipeline of two models, a tokenizer and a scheduler."""
    folder = tmp_path / "pipeline"
    index = {
        "_class_name": "ToyPipeline",
        "transformer": ["diffusers", "Toy"],
        "text_encoder": ["transformers", "Toy"],
        "tokenizer": ["transformers", "Tokenizer"],
        "scheduler": ["diffusers", "Scheduler"],
        "safety_checker": [None, None],
        "force_zeros": True,
    }
    for name in ("transformer", "text_encoder", "tokenizer", "scheduler"):
        (folder / name).mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps(index))
    layout = toy.tensors(layout="diffusers")
    save_file(layout, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    (folder / "transformer" / "config.json").write_text('{"extra": []}')
    save_file(toy.tensors(depth=2), folder / "text_encoder" / "model.safetensors")
    (folder / "tokenizer" / "vocab.json").write_text('{"a": 0}')
    (folder / "tokenizer" / "deep").mkdir()
    (folder / "tokenizer" / "deep" / "merges.txt").write_text("a b")
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    # Beside a pipeline's folders lie copies of the same weights.
    save_file({"x": np.zeros(1)}, folder / "all.safetensors")
    return folder


def names(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_a_pipeline_is_converted_model_by_model(pipeline, tmp_path):
    out = tmp_path / "out"
    convert.run(convert.prepare(pipeline), out)
    for name, tensors in (
        ("transformer", toy.tensors(layout="diffusers")),
        ("text_encoder", toy.tensors(depth=2)),
    ):
        layout = "diffusers" if name == "transformer" else "original"
        for path, array in expected(tensors, layout).items():
            np.testing.assert_array_equal(Parameter(out / name / "params" / path).read(), array)
    kept = {"tokenizer/vocab.json", "tokenizer/deep/merges.txt", "scheduler/scheduler_config.json"}
    kept.add("model_index.json")
    for name in kept:
        assert (out / name).read_bytes() == (pipeline / name).read_bytes()
    run_back(out, prepare_back(out), tmp_path / "back")
    assert names(tmp_path / "back") == names(pipeline) - {"all.safetensors"}
    for name in names(tmp_path / "back"):
        if name.endswith(".safetensors"):
            ours, theirs = load_file(tmp_path / "back" / name), load_file(pipeline / name)
            assert_same(ours, theirs)


@pytest.mark.parametrize("kind", ["Kontext", "Fill", "Control", "Img2Img", "ControlNet"])
def test_relatives_of_flux_are_refused_before_they_are_read(pipeline, monkeypatch, kind):
    index = json.loads((pipeline / "model_index.json").read_text())
    index["_class_name"] = f"Flux{kind}Pipeline"
    (pipeline / "model_index.json").write_text(json.dumps(index))
    monkeypatch.setattr(convert, "open_checkpoint", lambda path: pytest.fail(f"read {path}"))
    words = f"is a Flux{kind}Pipeline, expected a FluxPipeline; its models"
    with pytest.raises(ValueError, match=words):
        convert.prepare(pipeline)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("Flux2Pipeline", "FLUX.2-dev, .* Mistral .* not supported; expected a Flux2KleinPipeline"),
        ("Flux2KleinInpaintPipeline", "expected a Flux2KleinPipeline; its models"),
    ],
)
def test_relatives_of_flux_2_are_refused_before_they_are_read(pipeline, monkeypatch, kind, says):
    index = json.loads((pipeline / "model_index.json").read_text()) | {"_class_name": kind}
    (pipeline / "model_index.json").write_text(json.dumps(index))
    monkeypatch.setattr(convert, "open_checkpoint", lambda path: pytest.fail(f"read {path}"))
    with pytest.raises(ValueError, match=f"is a {kind}.*{says}"):
        convert.prepare(pipeline)


def test_options_of_single_models_are_refused_for_pipelines(pipeline):
    for name in ("family", "entry"):
        with pytest.raises(ValueError, match=f"--{name} is for a single model"):
            convert.prepare(pipeline, **{name: "toy"})


def test_defects_of_all_parts_of_a_pipeline_are_said_at_once(pipeline, tmp_path):
    shutil.rmtree(pipeline / "scheduler")
    tensors = toy.tensors()
    del tensors["b.1.x"]
    save_file(tensors, pipeline / "text_encoder" / "model.safetensors")
    (pipeline / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"short")
    index = json.loads((pipeline / "model_index.json").read_text()) | {"../etc": ["a", "b"]}
    (pipeline / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError) as error:
        convert.prepare(pipeline)
    said = str(error.value)
    for words in (
        "names the part scheduler, which is missing",
        "names a part outside of the folder: the part must be a path in the folder, got '../etc'",
        "text_encoder: missing key b.1.x",
        "transformer: ",
        "truncated",
    ):
        assert words in said
