"""Files are read as the libraries read them, or refused with what is wrong; nothing else runs."""

import json

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors import numpy as library

from flowsde_converters.files import has_weights, open_checkpoint
from flowsde_converters.safetensors_file import DTYPES, SafetensorsFile, SafetensorsWriter

F32 = np.arange(6, dtype=np.float32).reshape(2, 3)


def raw(header, data=b""):
    """A safetensors file of any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def of_every_dtype():
    """Tensors of every dtype and of odd shapes."""
    shapes = [(), (3,), (0, 2), (2, 3), (1, 2, 1), (5,)]
    return {
        f"{name}.{i}": np.arange(int(np.prod(shape))).reshape(shape).astype(dtype)
        for name, dtype in DTYPES.items()
        for i, shape in enumerate(shapes)
    }


def test_what_the_writer_writes_reads_back(tmp_path):
    tensors = of_every_dtype()
    path = tmp_path / "a.safetensors"
    with SafetensorsWriter(path, tensors) as writer:
        for key in reversed(list(tensors)):
            writer.write(key, tensors[key])
    file = SafetensorsFile(path)
    assert file.tensors.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(file.read(key), tensor, strict=True)
        assert file.tensors[key].begin % tensor.itemsize == 0


def test_the_library_reads_what_the_writer_writes(tmp_path):
    tensors = {k: a for k, a in of_every_dtype().items() if not k.startswith(("BF16", "F8"))}
    path = tmp_path / "a.safetensors"
    with SafetensorsWriter(path, tensors) as writer:
        for key, tensor in tensors.items():
            writer.write(key, np.asfortranarray(tensor) if tensor.ndim else tensor)
    read = library.load_file(path)
    assert read.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(read[key], tensor, strict=True)


def test_reads_what_the_library_writes_at_any_alignment(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(
        raw({"odd": entry("U8", (1,), (0, 1)), "a": entry("F32", (2, 3), (1, 25))},
            b"\7" + F32.tobytes())
    )  # fmt: skip
    np.testing.assert_array_equal(SafetensorsFile(path).read("a"), F32, strict=True)
    library.save_file({"a": F32, "b": F32.T.copy()}, path, {"format": "pt"})
    np.testing.assert_array_equal(SafetensorsFile(path).read("b"), F32.T, strict=True)


def test_an_unwritten_tensor_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="never written: b"):
        with SafetensorsWriter(tmp_path / "a.safetensors", {"a": F32, "b": F32}) as writer:
            writer.write("a", F32)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (b"", "truncated"),
        (b"\x08", "truncated"),
        (raw({"a": entry()})[:20], "truncated"),
        (raw({"a": entry()}, b"123"), "truncated: .* bytes, expected"),
        (raw({"a": entry()}, b"12345"), "1 bytes after the last tensor"),
        ((2**62).to_bytes(8, "little") + b"{}", "truncated"),
        (raw(b"not json"), "not JSON"),
        (raw(b"\xff\xfe{}"), "not JSON"),
        (raw(b"[" * 200_000), "not JSON"),
        (raw([]), "a list, expected an object"),
        (raw(b'{"a": 1, "a": 2}'), "the key a 2 times"),
        (raw(b'{"a":{"dtype":"F32","dtype":"F32"}}'), "the key dtype 2 times"),
        (raw({"a": 3}), "a is .*, expected dtype, shape and data_offsets"),
        (raw({"a": {"dtype": "F32"}}), "a is .*, expected dtype, shape and data_offsets"),
        (raw({"a": entry("F31")}), "dtype F31, expected one of F64"),
        (raw({"a": entry(["F32"])}), "dtype"),
        (raw({"a": entry(shape=[-1])}), "shape"),
        (raw({"a": entry(shape=[1.0])}), "shape"),
        (raw({"a": entry(shape=[True])}), "shape"),
        (raw({"a": entry(shape=[2**60, 0])}), "shape"),
        (raw({"a": entry(shape=[1] * 40)}), "shape"),
        (raw({"a": entry(offsets=[0])}), "data_offsets"),
        (raw({"a": entry(offsets=[4, 0])}, b"1234"), "a has -4 bytes, expected 4"),
        (raw({"a": entry(shape=[2])}, b"1234"), "a has 4 bytes, expected 8"),
        (raw({"a": entry(), "b": entry()}, b"1234"), "b begins at byte 0, expected 4"),
        (raw({"a": entry(offsets=[4, 8])}, b"12345678"), "a begins at byte 4, expected 0"),
        (raw({}), "holds no tensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_broken_files_are_refused_by_name(tmp_path, file, words):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(file)
    with pytest.raises(ValueError, match=words) as error:
        open_checkpoint(path)
    assert str(path) in str(error.value)


@pytest.fixture
def shards(tmp_path):
    """Two shards with an index."""
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    library.save_file({"a": F32}, tmp_path / names[0])
    library.save_file({"b": F32 + 1, "c": F32 + 2}, tmp_path / names[1])
    where = {"a": names[0], "b": names[1], "c": names[1]}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return tmp_path


@pytest.mark.parametrize("index", [True, False])
def test_shards_are_one_checkpoint(shards, index):
    if not index:
        (shards / "model.safetensors.index.json").unlink()
    for path in (shards, shards / "model-00002-of-00002.safetensors"):
        found = open_checkpoint(path)
        assert len(found.paths) == 2
        for i, key in enumerate("abc"):
            np.testing.assert_array_equal(found.read(key), F32 + i, strict=True)


def test_defects_of_shards_are_said_together(shards):
    one, two = sorted(shards.glob("*.safetensors"))
    library.save_file({"a": F32, "b": F32}, one)
    index = shards / "model.safetensors.index.json"
    where = json.loads(index.read_text())["weight_map"] | {"d": two.name, "e": "gone.safetensors"}
    index.write_text(json.dumps({"weight_map": where}))
    with pytest.raises(ValueError) as error:
        open_checkpoint(shards)
    said = str(error.value)
    for words in (
        f"{one.name} has b, model.safetensors.index.json does not",
        f"{two.name} lacks d, model.safetensors.index.json has it",
        "the shard gone.safetensors is missing",
        f"b is in {one.name} and in {two.name}",
    ):
        assert words in said
    assert len(said.splitlines()) == 5


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", 3, "x"])
def test_an_index_names_files_beside_it_only(shards, name):
    index = shards / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="expected the name of a file beside it"):
        open_checkpoint(shards)


def test_the_missing_shard_of_a_series_is_named(shards):
    (shards / "model.safetensors.index.json").unlink()
    (shards / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match="model-00001-of-00002.safetensors is missing"):
        open_checkpoint(shards)


def test_a_folder_has_one_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="holds no weights"):
        open_checkpoint(tmp_path)
    library.save_file({"a": F32}, tmp_path / "x.safetensors")
    library.save_file({"a": F32 + 1}, tmp_path / "y.safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors, y\.safetensors, expected one"):
        open_checkpoint(tmp_path)
    library.save_file({"a": F32 + 2}, tmp_path / "diffusion_pytorch_model.safetensors")
    library.save_file({"a": F32 + 3}, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    np.testing.assert_array_equal(open_checkpoint(tmp_path).read("a"), F32 + 2)


SHARDED = {
    "older variants": "model-0000{i}-of-00002.fp16.safetensors",
    "variants": "diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors",
    "short endings": "model-0000{i}-of-00002.sft",
    "capitals": "MODEL-0000{i}-of-00002.SAFETENSORS",
}


@pytest.mark.parametrize("name", SHARDED.values(), ids=SHARDED)
@pytest.mark.parametrize("index", [None, "model.safetensors.index.json",
                                   "model.safetensors.index.fp16.json"])  # fmt: skip
def test_shards_under_other_names(tmp_path, name, index):
    paths = [tmp_path / name.format(i=i) for i in (1, 2)]
    for path, key in zip(paths, "ab", strict=True):
        library.save_file({key: F32}, path)
    if index:
        where = {key: path.name for path, key in zip(paths, "ab", strict=True)}
        (tmp_path / index).write_text(json.dumps({"weight_map": where}))
    for path in (tmp_path, paths[1], *([tmp_path / index] if index else [])):
        found = open_checkpoint(path)
        assert found.tensors.keys() == {"a", "b"} and len(found.paths) == 2
        np.testing.assert_array_equal(found.read("b"), F32, strict=True)
    paths[0].unlink()
    with pytest.raises(ValueError, match=f"the shard {paths[0].name} is missing"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name", ["a.sft", "a.SAFETENSORS", "model.Safetensors", "model.fp16.safetensors", "x.SFT"]
)
def test_weights_under_other_names(tmp_path, name):
    library.save_file({"a": F32}, tmp_path / name)
    for path in (tmp_path, tmp_path / name):
        assert has_weights(tmp_path)
        np.testing.assert_array_equal(open_checkpoint(path).read("a"), F32, strict=True)


def test_two_variants_are_not_chosen_between(tmp_path):
    for i in (1, 2):
        for kind in ("fp16", "bf16"):
            path = tmp_path / f"model-0000{i}-of-00002.{kind}.safetensors"
            library.save_file({f"{i}": F32}, path)
    with pytest.raises(ValueError, match="expected one checkpoint: name the file"):
        open_checkpoint(tmp_path)
    found = open_checkpoint(tmp_path / "model-00001-of-00002.bf16.safetensors")
    assert all("bf16" in path.name for path in found.paths) and len(found.paths) == 2


@pytest.mark.parametrize("about", [3, {"a": 3}, {"a": {}}, []])
def test_notes_of_a_header_are_texts(tmp_path, about):
    """As the library has it."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw({"__metadata__": about, "a": entry()}, b"1234"))
    with pytest.raises(SafetensorError):
        library.load_file(path)
    with pytest.raises(ValueError, match="__metadata__ of the header, expected an object of texts"):
        open_checkpoint(path)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.npz is no checkpoint, expected one of \.safetensors"):
        open_checkpoint(tmp_path / "a.npz")
    library.save_file({"a": F32}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"config\.json holds a list, expected an object"):
        open_checkpoint(tmp_path)


def test_a_file_and_an_index_of_others_are_not_chosen_between(shards):
    """Whatever libraries take: whoever saved the second may have left the first from before."""
    library.save_file({key: F32 + 9 for key in "abc"}, shards / "model.safetensors")
    said = "holds model.safetensors, model.safetensors.index.json, expected one checkpoint"
    with pytest.raises(ValueError, match=said):
        open_checkpoint(shards)
    for name, value in (("model.safetensors", 9), ("model.safetensors.index.json", 0)):
        found = open_checkpoint(shards / name)
        np.testing.assert_array_equal(found.read("a"), F32 + value, strict=True)
