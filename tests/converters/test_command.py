"""`flowsde convert`: what it prints, what it refuses, and the hub."""

import sys
from pathlib import Path

import numpy as np
import pytest
import toy
from safetensors.numpy import load_file, save_file

from flowsde import cli
from flowsde_converters import hub

huggingface_hub = pytest.importorskip("huggingface_hub")
errors = pytest.importorskip("huggingface_hub.errors")


def say(capsys, *args):
    cli.main(["convert", *map(str, args)])
    return capsys.readouterr()


def refused(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        cli.main(["convert", *map(str, args)])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err


def test_says_what_was_found_and_written(source, tmp_path, capsys):
    save_file(toy.tensors() | {"b.0.ids": np.zeros(3, np.int64)}, source)
    out, err = say(capsys, source, tmp_path / "out", "--dtype", "bfloat16")
    lines = dict(line.split(None, 1) for line in out.splitlines())
    assert lines["found"].startswith("toy, original keys: 70 parameters in 11 tensors, float32")
    assert lines["config"] == "depth=3, width=4, sizes=(2,)"
    assert lines["ignores"] == "b.0.ids: the model has no use for them"
    assert lines["writes"] == "bfloat16"
    assert lines["folder"].startswith(f"{tmp_path / 'out'}: ")
    assert "100%" in err and "B/s" in err


def test_check_writes_nothing(source, tmp_path, capsys):
    tensors = toy.tensors()
    tensors["head.bias"][0] = np.nan
    save_file(tensors, source)
    out, _ = say(capsys, source, "--check")
    assert "all keys and shapes fit" in out
    del tensors["b.1.x"]
    save_file(tensors, source)
    assert "\n  missing key b.1.x\n" in refused(capsys, source, tmp_path / "out", "--check")
    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors"}


def test_there_and_back(source, tmp_path, capsys):
    say(capsys, source, tmp_path / "out")
    out, err = say(capsys, "--to-torch", tmp_path / "out", tmp_path / "back.safetensors")
    assert "toy, 4 parameters, float32" in out and "100%" in err
    for key, tensor in load_file(tmp_path / "back.safetensors").items():
        np.testing.assert_array_equal(tensor, toy.tensors()[key], strict=True)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("{source}", "OUT is missing"),
        ("{source} {tmp}", "holds SOURCE"),
        ("{source} {full}", "exists, expected another one or --overwrite"),
        ("{source} {out} --dtype int8", "--dtype"),
        ("{source} {out} --family gone", "unknown family 'gone', expected one of toy"),
        ("{source} {out} --revision main", "--revision is for the hub"),
        ("{tmp}/none.safetensors {out}", "does not exist"),
        ("--to-torch {source} {out}", "expected what `flowsde convert` wrote"),
        ("--to-torch {source} {out} --dtype float16", "--to-torch takes SOURCE and OUT, not --dt"),
        ("--to-torch {source} {out} --check", "--to-torch takes SOURCE and OUT, not --check"),
    ],
)
def test_wrong_values_are_refused(source, tmp_path, tmp_path_factory, capsys, args, words):
    full = tmp_path_factory.mktemp("full")
    given = {"source": source, "out": tmp_path / "out", "tmp": tmp_path, "full": full}
    said = refused(capsys, *args.format(**given).split())
    assert said.startswith("flowsde convert: ") and words in said
    assert said.count("\n") == 1
    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors"}


def test_help_reads_well(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["convert", "--help"])
    assert not stop.value.code
    out, err = capsys.readouterr()
    for words in ("SOURCE", "OUT", "--dtype", "--check", "--to-torch", "--overwrite", "hub"):
        assert words in out
    assert not err


class Hub:
    """What the hub has, and how it fails."""

    def __init__(self, files, folder, error=None, cached=False):
        self.files, self.folder, self.error, self.cached = files, folder, error, cached
        self.asked = None

    def model_info(self, name, revision, timeout):
        if self.error is not None:
            raise self.error
        siblings = [type("File", (), {"rfilename": name}) for name in self.files]
        return type("Info", (), {"siblings": siblings, "sha": "abc"})

    def snapshot_download(self, name, revision, allow_patterns=None, local_files_only=False):
        if local_files_only and not self.cached:
            raise errors.LocalEntryNotFoundError("not there")
        self.asked = (name, revision, allow_patterns)
        return str(self.folder)

    def use(self, monkeypatch):
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot_download)
        return self


def test_models_of_the_hub_are_fetched(source, tmp_path, capsys, monkeypatch):
    files = ["README.md", "config.json", "model.safetensors", "model.bin"]
    there = Hub(files, tmp_path).use(monkeypatch)
    say(capsys, "owner/name", tmp_path / "out", "--revision", "v1")
    assert there.asked == ("owner/name", "abc", ["config.json", "model.safetensors"])
    say(capsys, "owner/name/model.safetensors", tmp_path / "out2")
    assert (tmp_path / "out2" / "config.json").exists()


def response(kind):
    """An error of the hub's library, without its long list of arguments."""
    error = kind.__new__(kind)
    Exception.__init__(error, "said the hub")
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionError("no route"), "not in the cache, and the hub cannot be reached (no route)"),
        (errors.OfflineModeIsEnabled("offline"), "cannot be reached (offline)"),
        (response(errors.RepositoryNotFoundError), "the hub has no such model"),
        (response(errors.GatedRepoError), "its licence must be accepted"),
    ],
)
def test_what_the_hub_does_not_give_is_one_clear_error(tmp_path, capsys, monkeypatch, error, words):
    Hub([], tmp_path, error).use(monkeypatch)
    said = refused(capsys, "owner/name", tmp_path / "out")
    assert "SOURCE owner/name is no path here, and cannot be fetched: " in said and words in said
    assert not list(tmp_path.iterdir())


def test_offline_what_was_fetched_before_is_used(source, tmp_path, capsys, monkeypatch):
    Hub([], tmp_path, ConnectionError("no route"), cached=True).use(monkeypatch)
    say(capsys, "owner/name", tmp_path / "out")
    assert (tmp_path / "out" / "config.json").exists()


def test_without_the_hub_library_the_error_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "takes huggingface_hub, expected it installed" in refused(capsys, "a/b", tmp_path / "o")


def test_only_what_is_converted_is_fetched():
    pipeline = [
        "all.safetensors", "model_index.json", "picture.jpg", "scheduler/scheduler_config.json",
        "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer_2/spiece.model",
        "transformer/config.json", "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
        "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.bin",
    ]  # fmt: skip
    left = {"all.safetensors", "picture.jpg", "vae/diffusion_pytorch_model.fp16.safetensors",
            "vae/diffusion_pytorch_model.bin"}  # fmt: skip
    assert set(hub.wanted(pipeline)) == set(pipeline) - left
    assert hub.wanted(pipeline, "all.safetensors") == ["all.safetensors"]
    vae = {"vae/config.json", "vae/diffusion_pytorch_model.safetensors"}
    assert set(hub.wanted(pipeline, "vae")) == vae
    assert hub.wanted(["a.pt", "config.json", "x/b.safetensors"]) == ["config.json", "a.pt"]
    assert hub.wanted(["config.json"]) == [] == hub.wanted(pipeline, "unet")
    for name in ("owner/name", "owner/name/a/b.pt"):
        assert hub.is_id(name)
    for name in ("name", "/owner/name", str(Path("a b") / "c")):
        assert not hub.is_id(name)
