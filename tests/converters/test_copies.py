"""What is copied lies in the source, or in the hub's store beside it, and lands inside OUT."""

import json
import os
import shutil

import pytest
import toy
from safetensors.numpy import save_file
from test_convert import names, pipeline  # noqa: F401

from flowsde.models.converted.store import sealed
from flowsde_converters import convert
from flowsde_converters.back import prepare_back, run_back


@pytest.fixture
def outside(tmp_path):
    """A folder with a secret."""
    folder = tmp_path / "outside"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "key").write_text("secret")
    return folder


@pytest.fixture
def single(families, tmp_path):
    """The folder of a single model with its tokenizer."""
    folder = tmp_path / "single"
    folder.mkdir()
    save_file(toy.tensors(), folder / "model.safetensors")
    (folder / "vocab.json").write_text("{}")
    (folder / "merges.txt").write_text("")
    (folder / "config.json").write_text("{}")
    return folder


def link(path, to):
    """A link in the place of what was there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.symlink_to(to)


def refused(source, tmp_path, said):
    with pytest.raises(ValueError, match=said):
        convert.run(convert.prepare(source), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["merges.txt", "config.json", "model.safetensors"])
def test_links_out_of_a_single_model_are_refused(single, tmp_path, outside, name):
    shutil.copy(single / name, outside / name)
    link(single / name, outside / name)
    refused(single, tmp_path, rf"single/{name} leads to .*outside/{name}, outside of .*single: exp")
    # Links within it are followed.
    shutil.move(outside / name, single / "there")
    link(single / name, "there")
    convert.run(convert.prepare(single), tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer" / "vocab.json").read_text() == "{}"
    assert not any(p.is_symlink() for p in (tmp_path / "out").rglob("*"))


@pytest.mark.parametrize(
    "name",
    ["tokenizer", "tokenizer/vocab.json", "tokenizer/deep", "transformer", "model_index.json",
     "transformer/diffusion_pytorch_model.safetensors", "scheduler/new"],
)  # fmt: skip
def test_links_out_of_a_pipeline_are_refused(pipeline, tmp_path, outside, name):  # noqa: F811
    path = pipeline / name
    to = outside / "deep" / "moved"
    if path.exists():
        shutil.move(path, to)
    else:
        to.write_text("secret")
    link(path, to)
    refused(pipeline, tmp_path, r"leads to .*outside.*, outside of|is a link")


@pytest.mark.slow_but_one
@pytest.mark.parametrize("to", [".", "..", "../tokenizer", "../transformer"])
def test_links_to_folders_that_may_lead_around_are_refused(pipeline, tmp_path, to):  # noqa: F811
    link(pipeline / "tokenizer" / "deep", to)
    refused(pipeline, tmp_path, r"deep is no file, expected one")


def test_pipes_are_refused(pipeline, tmp_path):  # noqa: F811
    os.mkfifo(pipeline / "tokenizer" / "pipe")
    refused(pipeline, tmp_path, r"pipe is no file, expected one")


@pytest.mark.slow
def test_a_snapshot_of_the_hub_is_followed_into_its_store(pipeline, tmp_path, outside):  # noqa: F811
    """Its files are links to ../../blobs/DIGEST."""
    model = tmp_path / "hub" / "models--owner--name"
    snapshot = model / "snapshots" / "abc"
    (model / "blobs").mkdir(parents=True)
    for i, name in enumerate(sorted(names(pipeline))):
        shutil.copy(pipeline / name, model / "blobs" / str(i))
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        up = "../" * (name.count("/") + 2)
        (snapshot / name).symlink_to(f"{up}blobs/{i}")
    convert.run(convert.prepare(snapshot), tmp_path / "out")
    convert.run(convert.prepare(pipeline), tmp_path / "twin")
    assert names(tmp_path / "out") == names(tmp_path / "twin")
    assert not any(p.is_symlink() for p in (tmp_path / "out").rglob("*"))
    # A model of it alone, too.
    convert.run(convert.prepare(snapshot / "transformer"), tmp_path / "one")
    shutil.rmtree(tmp_path / "out")
    link(snapshot / "tokenizer" / "vocab.json", "../../../../other")
    (tmp_path / "hub" / "other").write_text("secret")
    refused(snapshot, tmp_path, r"vocab\.json leads to .*/hub/other, outside of")
    # Folders that are only called so are no hub's.
    plain = tmp_path / "snapshots" / "x"
    shutil.copytree(pipeline, plain)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0").write_text("{}")
    link(plain / "tokenizer" / "vocab.json", "../../../blobs/0")
    refused(plain, tmp_path, r"vocab\.json leads to .*/blobs/0, outside of")


WAYS = ["../outside", "/etc", "..", ".", "", "a/../../outside", "deep/x", "a\\b", "a\0b", 3, None]


@pytest.mark.slow_but_one
@pytest.mark.parametrize("name", WAYS, ids=repr)
@pytest.mark.parametrize("field", ["copied", "models"])
def test_names_out_of_a_converted_pipeline_stay_inside(
    pipeline,  # noqa: F811
    tmp_path,
    outside,
    field,
    name,
):
    convert.run(convert.prepare(pipeline), tmp_path / "out")
    config = tmp_path / "out" / "config.json"
    about = json.loads(config.read_text())
    about[field][0] = name
    config.write_text(json.dumps(sealed(about)))
    before = {p for p in tmp_path.rglob("*")}
    with pytest.raises(ValueError, match=rf"config\.json: {field}\[0\] must be a"):
        run_back(tmp_path / "out", prepare_back(tmp_path / "out"), tmp_path / "deep" / "back")
    assert {p for p in tmp_path.rglob("*")} == before


def test_links_in_a_converted_folder_are_not_followed_out(pipeline, tmp_path, outside):  # noqa: F811
    convert.run(convert.prepare(pipeline), tmp_path / "out")
    models = prepare_back(tmp_path / "out")
    link(tmp_path / "out" / "tokenizer", outside / "deep")
    with pytest.raises(ValueError, match=r"tokenizer leads to .*outside/deep, outside of"):
        run_back(tmp_path / "out", models, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    with pytest.raises(ValueError, match=r"tokenizer/\S+ is missing, which"):
        prepare_back(tmp_path / "out")
