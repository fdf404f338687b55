"""Models of the hub: what is fetched, and what is said when it cannot be."""

import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_command import refused, say

from flowsde_converters import hub

huggingface_hub = pytest.importorskip("huggingface_hub")
errors = pytest.importorskip("huggingface_hub.errors")


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


@pytest.mark.slow
def test_models_of_the_hub_are_fetched(source, tmp_path, capsys, monkeypatch):
    files = ["README.md", "config.json", "model.safetensors", "model.bin"]
    there = Hub(files, tmp_path).use(monkeypatch)
    say(capsys, "owner/name", tmp_path / "out", "--revision", "v1")
    assert there.asked == ("owner/name", "abc", ["config.json", "model.safetensors"])
    say(capsys, "owner/name/model.safetensors", tmp_path / "out2")
    assert (tmp_path / "out2" / "config.json").exists()


def test_adapters_of_the_hub_are_fetched_with_their_settings(
    source, tmp_path, tmp_path_factory, capsys, monkeypatch
):
    """Without them, another alpha would be taken."""
    folder = tmp_path_factory.mktemp("lora")
    pair = {"head.lora_A.weight": np.ones((1, 4), np.float32)}
    pair["head.lora_B.weight"] = np.ones((2, 1), np.float32)
    save_file(pair, folder / "adapter_model.safetensors")
    files = ["README.md", "adapter_config.json", "adapter_model.safetensors", "x.safetensors"]
    there = Hub(files, folder).use(monkeypatch)
    name = "owner/style/adapter_model.safetensors"
    out, _ = say(capsys, source, "--check", "--lora", f"{name}:0.5")
    assert "merges  adapter_model.safetensors: 1 layers, rank 1, scale 0.5" in out
    assert there.asked == ("owner/style", "abc", files[1:3])
    Hub([], folder, ConnectionError("no route")).use(monkeypatch)
    said = refused(capsys, source, "--check", "--lora", name)
    assert f"--lora {name} is no path here, and cannot be fetched" in said


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


def test_a_pipeline_that_is_refused_is_not_fetched(tmp_path, capsys, monkeypatch):
    """But for its small files, which say what it is."""
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "Flux2Pipeline"}')
    weights = "transformer/diffusion_pytorch_model.safetensors"
    there = Hub(["model_index.json", weights], folder).use(monkeypatch)
    said = refused(capsys, "owner/dev", tmp_path / "out")
    assert "SOURCE owner/dev is not fetched: " in said
    assert "is a Flux2Pipeline: FLUX.2-dev, whose texts Mistral reads, which is not" in said
    assert there.asked[2] == ["model_index.json"] and not (tmp_path / "out").exists()


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
    assert hub.wanted(["a.PT", "b.SFT", "model.safetensors.index.json"]) == [
        "model.safetensors.index.json",
        "b.SFT",
    ]
    assert hub.wanted(["config.json"]) == [] == hub.wanted(pipeline, "unet")
    for name in ("name", "/owner/name", str(Path("a b") / "c")):
        with pytest.raises(ValueError, match="is no owner/name of the hub"):
            hub.fetch(name)


@pytest.mark.parametrize("inside", ["..", "../other", "vae/../../x", "../../../etc/passwd"])
def test_a_file_of_the_hub_is_inside_its_model(tmp_path, monkeypatch, inside):
    """Without a network, of what is in the cache."""
    Hub([], tmp_path, ConnectionError("no route"), cached=True).use(monkeypatch)
    assert hub.fetch("owner/name/vae") == tmp_path / "vae"
    with pytest.raises(ValueError, match="leaves the model, expected a file or folder inside it"):
        hub.fetch(f"owner/name/{inside}")
