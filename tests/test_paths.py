"""A URL is refused wherever a path is expected: object stores have no locks and no renames."""

import re
from pathlib import Path
from typing import Any

import pytest
from refusing import refused

import flowsde as fs
from flowsde._checks import check_path
from flowsde.shapes import load_flow, load_reward

URLS = ["gs://bucket/run", "s3://bucket/run", "https://a.org/x.safetensors", "hf://owner/name"]


@pytest.mark.parametrize("url", URLS)
def test_urls_are_refused_also_as_pathlib_writes_them(url: str) -> None:
    for given in (url, Path(url)):
        with pytest.raises(ValueError, match=f"folder must be a path on this .*{url[:3]}"):
            check_path("folder", given)


@pytest.mark.parametrize("path", ["a", "/a/b:c", "a/gs:/b", "C:/x", "a:b/c", "", "~/x", "gs:"])
def test_paths_are_taken_as_they_are(path: str) -> None:
    assert check_path("folder", path) == Path(path) == check_path("folder", Path(path))


def test_other_types_are_refused() -> None:
    for value in (None, 3, b"a"):
        with pytest.raises(TypeError, match="folder must be a path, got"):
            check_path("folder", value)


def test_the_library_refuses_them_and_makes_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kernel = fs.kernels.ddim(fs.interpolants.linear())
    search = fs.search.bon(nfe=4, kernel=kernel, grid=fs.grids.uniform(2))
    # Never looked at.
    result: Any = None
    url = "gs://bucket/run"
    for call in (
        lambda: fs.save_search(url, search, result),
        lambda: fs.restore_search(url, search),
        lambda: fs.load(url),
        lambda: load_flow(Path(url)),
        lambda: load_reward(path=Path(url)),
    ):
        with pytest.raises(ValueError, match="must be a path on this machine"):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("--out", "sample x --out URL"),
        ("--prompts-file", "sample --prompts-file URL"),
        ("--model", "sample x --model URL"),
        ("--vae", "sample --model a --label 1 --vae URL"),
        ("--reward-model", "sample x --model a --reward-model a --reward-model URL"),
        ("--prompts-file", "batch --prompts-file URL --out b"),
        ("--out", "batch --prompts-file p --out URL"),
        ("--out", "compare --out URL"),
        ("--prompts-file", "compare --prompts-file URL"),
        ("--out", "train shapes --out URL"),
        ("SOURCE", "convert URL out"),
        ("SOURCE", "convert --to-torch URL out"),
        ("OUT", "convert a.safetensors URL"),
        ("OUT", "convert --to-torch a URL"),
    ],
)
def test_every_option_of_the_command_refuses_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    command: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, *command.replace("URL", "gs://bucket/run").split())
    assert re.search(f": {name} must be a path on this machine, .* got the URL 'gs:/", said)
    assert not list(tmp_path.iterdir())
