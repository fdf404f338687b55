"""What a file may cost is bounded by what it holds, and so is what is said of it."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import toy
from safetensors.numpy import save_file
from test_command import refused
from test_files import entry, raw

from flowsde.models.autoencoder_kl.model import AutoencoderKLConfig
from flowsde.models.clip.model import CLIPTextConfig, CLIPVisionConfig
from flowsde.models.common.paths import parameters
from flowsde.models.family import abstract
from flowsde.models.flux.model import FluxConfig
from flowsde.models.sit.model import SiTConfig
from flowsde.models.t5.model import T5Config
from flowsde_converters import autoencoder_kl, clip, convert, flux, pickles, sit, t5
from flowsde_converters.depth import depth
from flowsde_converters.files import open_checkpoint, read_json
from flowsde_converters.tables import unconvert

FAR = 99_999_999
CLIP_JSON = {"num_attention_heads": 1, "hidden_act": "quick_gelu"}
VAE_JSON = {"scaling_factor": 1.0, "norm_num_groups": 1}
TEXT = dict(vocab=8, width=4, depth=2, heads=1, mlp=8, positions=4, activation="quick_gelu",
            epsilon=1e-5, eos=49407, projection=None)  # fmt: skip
VISION = dict(width=4, depth=2, heads=1, mlp=8, image=4, patch=2, channels=3,
              activation="quick_gelu", epsilon=1e-5, projection=None)  # fmt: skip
FLUX = FluxConfig(channels=4, heads=1, axes=(2, 2, 2), double=2, single=2, mlp=8, text=4, pooled=4,
                  guidance=False)  # fmt: skip
FLUX_JSON = {"axes_dims_rope": [2, 2, 2]}
T5_SIZES = dict(vocab=8, width=4, depth=2, heads=1, head=4, mlp=8, buckets=4, tied_head=False)
VAE = AutoencoderKLConfig(channels=3, latents=4, widths=(2, 4), blocks=1, groups=1, quant=False,
                          scale=1.0, shift=0.0)  # fmt: skip
SIT = SiTConfig(width=384, depth=2, heads=6, size=4, patch=2, channels=4, classes=3,
                learn_sigma=True)  # fmt: skip

# Family, configuration, layout, what lies beside, what a number of a block follows.
FAMILIES = {
    "sit": (sit.FAMILY, SIT, "original", {"num_classes": 3}, "blocks."),
    "flux double": (flux.FAMILY, FLUX, "original", FLUX_JSON, "double_blocks."),
    "flux single": (flux.FAMILY, FLUX, "original", FLUX_JSON, "single_blocks."),
    "flux of diffusers": (flux.FAMILY, FLUX, "diffusers", FLUX_JSON, "single_transformer_blocks."),
    "clip text": (clip.TEXT, CLIPTextConfig(**TEXT), "transformers", CLIP_JSON,
                  "text_model.encoder.layers."),
    "clip vision": (clip.VISION, CLIPVisionConfig(**VISION), "transformers", CLIP_JSON,
                    "vision_model.encoder.layers."),
    "t5": (t5.FAMILY, T5Config(**T5_SIZES, decoder_depth=2), "transformers", None,
           "decoder.block."),
    "t5 encoder": (t5.ENCODER, T5Config(**T5_SIZES, decoder_depth=0), "transformers", None,
                   "encoder.block."),
    "levels": (autoencoder_kl.FAMILY, VAE, "diffusers", VAE_JSON, "encoder.down_blocks."),
    "blocks": (autoencoder_kl.FAMILY, VAE, "diffusers", VAE_JSON,
               "encoder.down_blocks.0.resnets."),
    "levels of the original": (autoencoder_kl.FAMILY, VAE, "original", VAE_JSON, "encoder.down."),
}  # fmt: skip


def published(name):
    """Tensors of a small model, each of one stored number."""
    family, config, layout, _, _ = FAMILIES[name]
    shapes = parameters(abstract(family, config))
    params = {path: np.broadcast_to(np.float32(0), like.shape) for path, like in shapes.items()}
    return unconvert(family.table(config, layout), params)


@pytest.mark.slow_but_one
@pytest.mark.parametrize("name", FAMILIES)
def test_the_number_of_a_block_is_not_taken_at_its_word(name):
    family, config, _, beside, before = FAMILIES[name]
    tensors = published(name)
    assert family.recognise(tensors, beside).config == config
    one = next(key for key in tensors if key.startswith(f"{before}0."))
    tensors[one.replace(f"{before}0.", f"{before}{FAR}.")] = np.zeros(0, np.float32)
    with pytest.raises(ValueError, match=rf"there is no {before}\d, though there are .*{FAR}"):
        family.recognise(tensors, beside)


@pytest.mark.slow
def test_levels_and_blocks_of_an_autoencoder_are_there_together():
    """A thousand of each would be a million."""
    family, _, _, beside, _ = FAMILIES["levels"]
    tensors = published("levels")
    empty = np.zeros((2, 2, 3, 3), np.float32)
    for i in range(100):
        tensors[f"encoder.down_blocks.{i}.resnets.0.conv2.weight"] = empty
        tensors[f"encoder.down_blocks.0.resnets.{i}.conv2.weight"] = empty
    with pytest.raises(ValueError, match="100 levels of 100 blocks"):
        family.recognise(tensors, beside)


def test_depth_counts_numbers_without_a_gap():
    assert depth(["a.0.x", "a.1.x", "a.1.y", "b.5.x", "a.x", "xa.7.x"], "a.") == 2
    assert depth([], "a.") == 0
    for far in ("2", "01", "-1", "9" * 5000):
        # Neither 01 nor -1 is what a block is called, so that a key of it stays unexpected.
        keys = ["a.0.x", f"a.{far}.x"]
        if far == "-1":
            assert depth(keys, "a.") == 1
        else:
            with pytest.raises(
                ValueError, match=r"there is no a\.1, .* of a\.0, .*, up to a\."
            ) as e:
                depth(keys, "a.")
            assert len(str(e.value)) < 400
    with pytest.raises(ValueError, match=r"there is no a\.0"):
        depth(["a.1.x"], "a.")


def test_a_small_file_of_many_blocks_is_refused_before_they_are_listed(source):
    save_file(toy.tensors() | {f"b.{FAR}.bias": np.zeros(0, np.float32)}, source)
    with pytest.raises(ValueError, match=r"there is no b\.3, though there are 4"):
        convert.prepare(source)


def test_parameters_without_values_are_refused(tmp_path):
    """Their other sizes are in no byte of the file."""
    tensors = {key: np.ascontiguousarray(tensor) for key, tensor in published("clip text").items()}
    tensors["text_model.embeddings.position_embedding.weight"] = np.zeros((0, 4), np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CLIP_JSON))
    with pytest.raises(ValueError, match=r"positions has the shape \(0, 4\), expected values"):
        convert.prepare(tmp_path)


@pytest.mark.parametrize("text", [b"[" + b"[]," * 2**20 + b"1]", b'{"a":' + b"[" * 10**5])
def test_headers_and_indexes_of_many_parts_are_refused(tmp_path, text):
    words = "not JSON|objects and lists, expected at most"
    (tmp_path / "model.safetensors").write_bytes(raw(text))
    with pytest.raises(ValueError, match=words):
        open_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_bytes(text)
    with pytest.raises(ValueError, match=words):
        open_checkpoint(tmp_path)


def test_json_of_any_length_is_not_read(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=r"config\.json: 100000001 bytes of JSON"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "config.json", "b.safetensors"])
def test_pipes_are_refused_before_they_are_opened(tmp_path, monkeypatch, name):
    """Opening one waits until something is written to it."""
    save_file(toy.tensors(), tmp_path / "b.safetensors")
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    monkeypatch.setattr(Path, "open", lambda path, *_: pytest.fail(f"{path} was opened"))
    monkeypatch.setattr(io, "open", lambda path, *_: pytest.fail(f"{path} was opened"))
    path = tmp_path / ("b.safetensors" if name == "config.json" else name)
    with pytest.raises(ValueError, match=rf"{name} is a folder, a pipe or a device, expected a"):
        open_checkpoint(path)


def zipped(path, parts, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in parts.items():
            file.writestr(name, data)


class TestTorch:
    """Files of PyTorch's own."""

    @pytest.fixture(autouse=True)
    def torch(self):
        self.torch = pytest.importorskip("torch")

    def refused(self, path, words):
        with pytest.raises(ValueError, match=words) as error:
            open_checkpoint(path)
        assert str(path) in str(error.value)

    def test_one_number_is_not_repeated_without_end(self, tmp_path):
        tensor = self.torch.zeros(1).expand(2**40)
        self.torch.save({"a": tensor}, tmp_path / "a.pt")
        self.refused(tmp_path / "a.pt", f"tensors of {2**42} bytes in a file of .*repeats")

    def test_archives_are_what_they_say(self, tmp_path, monkeypatch):
        path = tmp_path / "a.pt"
        self.torch.save({"a": self.torch.zeros(1)}, path)
        with zipfile.ZipFile(path) as file:
            parts = {name: file.read(name) for name in file.namelist()}
        zipped(path, parts | {"a/data/1": bytes(10**7)}, zipfile.ZIP_DEFLATED)
        self.refused(path, "a compressed archive")
        # Ten entries for the same bytes.
        zipped(path, parts | {"a/data/1": bytes(10**4)})
        data = path.read_bytes()
        begin = data.index(b"PK\1\2")
        end = data.index(b"PK\5\6")
        last = data[data.rindex(b"PK\1\2") : end]
        size = end - begin + 9 * len(last)
        tail = bytearray(data[end:])
        tail[12:16] = size.to_bytes(4, "little")
        for at in (8, 10):
            tail[at : at + 2] = (len(parts) + 10).to_bytes(2, "little")
        path.write_bytes(data[:end] + last * 9 + bytes(tail))
        self.refused(path, "an archive of .* bytes in ")

    @pytest.mark.parametrize("legacy", [False, True])
    def test_pickles_are_short(self, tmp_path, monkeypatch, legacy):
        path = tmp_path / "a.pt"
        state = {f"{i}": self.torch.zeros(1) for i in range(100)}
        self.torch.save(state, path, _use_new_zipfile_serialization=not legacy)
        assert len(open_checkpoint(path).tensors) == 100
        monkeypatch.setattr(pickles, "_LONGEST", 1000)
        self.refused(path, "a pickle of .* bytes beside the tensors, expected at most 1000")

    def test_mappings_in_mappings_are_counted(self, tmp_path):
        """Of seven in memory ten million by name."""
        held = {"a": self.torch.zeros(1)}
        for _ in range(7):
            held = {str(i): held for i in range(10)}
        self.torch.save(held, tmp_path / "a.pt")
        self.refused(tmp_path / "a.pt", "more than 65536 mappings in one another")
        loop = {"a": self.torch.zeros(1)}
        loop["again"] = loop
        self.torch.save(loop, tmp_path / "a.pt")
        assert "a" in open_checkpoint(tmp_path / "a.pt").tensors

    def test_keys_are_not_written_out(self, tmp_path):
        """Sixty tuples in tuples are 2**60 in words."""
        key = ()
        for _ in range(12):
            key = (key, key)
        self.torch.save({key: self.torch.zeros(1)}, tmp_path / "a.pt")
        self.refused(tmp_path / "a.pt", "a tuple is a Tensor, expected tensors by key")

    @pytest.mark.parametrize("twice", [b"2", b"q\x01h\x01", b"\x94h\x01"])
    def test_tuples_in_tuples_are_not_hashed(self, tmp_path, twice):
        """Forty are 2**40 steps, in a hundred bytes: as a key, they would never be found."""
        path = tmp_path / "a.pt"
        self.torch.save({"a": self.torch.zeros(1)}, path)
        with zipfile.ZipFile(path) as file:
            parts = {name: file.read(name) for name in file.namelist()}
        pickled = next(name for name in parts if name.endswith("data.pkl"))
        # In a dict a tuple that is doubled again and again: by DUP, or from the memo.
        first = {b"\x94h\x01": b"\x80\x04}\x94)"}.get(twice, b"\x80\x02})")
        levels = [twice.replace(b"\x01", bytes([i])) + b"\x86" for i in range(1, 41)]
        data = first + b"".join(levels) + b"Ns."
        zipped(path, parts | {pickled: data})
        self.refused(path, "tuples in tuples beyond all use")

    @pytest.mark.parametrize("data", [b"\x80\x02.", b"\x80\x020.", b"\x80\x02h\x01."])
    def test_broken_pickles_end_in_a_line(self, tmp_path, data):
        """An empty stack is an IndexError, in Python's words."""
        path = tmp_path / "a.pt"
        self.torch.save({"a": self.torch.zeros(1)}, path)
        with zipfile.ZipFile(path) as file:
            parts = {name: file.read(name) for name in file.namelist()}
        pickled = next(name for name in parts if name.endswith("data.pkl"))
        zipped(path, parts | {pickled: data})
        self.refused(path, "broken")
        path.write_bytes(pickle.dumps(1, 2) + data)
        self.refused(path, "broken")


LONG = "\x1b]0;owned\x07\x9b2J\u202e\n" + "x" * 10**5


def printable(said, most=6000):
    assert len(said) < most
    assert all(line.isprintable() for line in said.splitlines())
    assert "owned" in said


def texts(tmp_path):
    """Files with names that a terminal obeys, and without end."""
    good = toy.tensors()
    yield "unexpected", good | {f"b.{LONG}.{i}": np.zeros(1) for i in range(20)}
    yield "unknown", {f"{i}{LONG}": np.zeros(1) for i in range(20)}
    yield "entries", {f"model.{LONG}.{i}": np.zeros(2) for i in range(20)} | good


def test_what_is_said_of_keys_is_short_and_safe_to_print(source, tmp_path, capsys):
    for _, tensors in texts(tmp_path):
        save_file(tensors, source)
        said = refused(capsys, source, "--check")
        printable(said)
        assert "\\x1b]0;" in said


@pytest.mark.parametrize(
    "header",
    [
        {LONG: 3},
        {LONG: entry(LONG)},
        {LONG: entry(shape=[LONG])},
        {"a": entry(LONG)},
        {"a": {**entry(), "shape": [[1]] * 10**5}},
        {LONG: entry(), "b": entry()},
        {LONG: entry(shape=[2])},
        {LONG: {**entry(), "owned": LONG}},
    ],
)
def test_what_is_said_of_headers_is_short_and_safe_to_print(tmp_path, header):
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw(header, bytes(4)))
    with pytest.raises(ValueError) as error:
        open_checkpoint(path)
    said = str(error.value)
    assert len(said) < 1500 and said.isprintable()


def test_what_is_said_of_indexes_is_short_and_safe_to_print(tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    for where in ({LONG: 3}, {LONG: LONG}, {f"{i}{LONG}": "x.safetensors" for i in range(20)}):
        path.write_text(json.dumps({"weight_map": where}))
        save_file({"a": np.zeros(1)}, tmp_path / "x.safetensors")
        with pytest.raises(ValueError) as error:
            open_checkpoint(tmp_path)
        printable(str(error.value), 4000)


def test_what_is_said_of_torch_files_is_short_and_safe_to_print(families, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pt"
    states = (
        {LONG: 3},
        {LONG: torch.zeros(1).to_sparse()},
        {LONG: {"a": torch.zeros(1)}},
        {"a": {"head.bias": torch.zeros(1), LONG: torch.zeros(1)}},
        {"ema": {f"{LONG}{i}": torch.zeros(2) for i in range(20)}, LONG: {"x": torch.zeros(1)}},
    )
    for state in states:
        torch.save(state, path)
        printable(refused(capsys, path, "--check"))
