"""`flowsde score` and `flowsde rewards`: pictures in files, against what they were made to be."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from chat_server import judging, told
from PIL import Image
from quick import slow
from refusing import refused

from flowsde.cli import main as cli
from flowsde.cli.pictures import save_image
from flowsde.shapes import captions, data

FUNCTIONS = """
import numpy as np

def told(images, prompts):
    assert images.dtype == np.float32 and images.ndim == 4
    return images[:, 0, 0, 0] + 10.0 * np.float32([len(one) for one in prompts])

def broken(images, prompts):
    raise RuntimeError("out of service")
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "scoring.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _picture(path: Path, red: int, width: int = 4, height: int = 3) -> Path:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = red
    Image.fromarray(pixels).save(path)
    return path


def test_a_function_is_told_pictures_and_prompts(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Of two sizes in turn, and more of one size than are scored at once.
    files = [_picture(here / f"{i}.png", 10 * i, width=4 + i % 2) for i in range(19)]
    prompts = ["x" * i for i in range(19)]
    said = [word for prompt in prompts for word in ("--prompt", prompt)]
    words = ["--reward", "scoring:told", "--json", "scores.json", *said]
    cli.main(["score", *map(str, files), *words])
    expected = [10 * i / 127.5 - 1.0 + 10.0 * i for i in range(19)]
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [file for _, file in lines] == [str(file) for file in files]
    np.testing.assert_allclose([float(score) for score, _ in lines], expected, atol=1e-4)
    found = json.loads((here / "scores.json").read_text())
    assert found["reward"] == "scoring:told"
    assert [row["prompt"] for row in found["images"]] == prompts
    np.testing.assert_allclose([row["reward"] for row in found["images"]], expected, atol=1e-5)


def test_a_judge_at_a_url(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def dark(request: Any) -> list[tuple[str, float]]:
        (image,), (text,) = told(request)
        odds = float(image.sum()) if "a red fox" in text else 0.0
        return [("Yes", -math.log1p(math.exp(-odds))), ("No", -math.log1p(math.exp(odds)))]

    file = _picture(here / "1.png", 51, width=2, height=1)  # 2 values of 1/5
    with judging(dark) as server:
        name = f"{server.url}#a-judge"
        cli.main(["score", str(file), "--prompt", "a red fox", "--reward", name])
        assert capsys.readouterr().out.split()[0] == "0.4000"
        server.faults.append("401")
        assert refused(capsys, "score", str(file), "--prompt", "x", "--reward", name).endswith(
            "answered 401: as told\n"
        )


def test_one_prompt_is_of_all_and_otherwise_of_the_result_beside(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "out").mkdir()
    files = [str(_picture(here / "out" / name, 255)) for name in ("image.png", "image-2.png")]
    (here / "out" / "result.json").write_text('{"prompt": "four"}')
    for words, length in ([], 4), (["--prompt", "ab"], 2):
        cli.main(["score", *files, "--reward", "scoring:told", *words])
        scores = [float(line.split()[0]) for line in capsys.readouterr().out.splitlines()]
        assert scores == [1.0 + 10.0 * length] * 2


@pytest.mark.slow
def test_the_embedded_reward_of_a_rendered_scene(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two triangles are two triangles, and one short of three."""
    (image,) = data.scenes(3, [0], groups=[captions.parse("two green triangles")]).images
    save_image(here / "image.png", image)
    for prompt, least, most in (
        ("two green triangles", -0.2, 0.0),
        ("three green triangles", -1.5, -0.6),
    ):
        cli.main(["score", "image.png", "--reward", "rss", "--prompt", prompt])
        assert least <= float(capsys.readouterr().out.split()[0]) <= most


def test_what_is_wrong_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _picture(here / "a.png", 1)
    (here / "b.png").write_text("no picture")
    told = ["--reward", "scoring:told"]
    for words, line in (
        (["a.png", *told], "--prompt: is missing, and no result.json beside a.png has it"),
        (["a.png", "a.png", "a.png", *told, "--prompt", "x", "--prompt", "y"],
         "--prompt: expected one, or one for each of 3 pictures, got 2"),
        (["b.png", *told, "--prompt", "x"], "IMAGE b.png: it is no picture that can be read"),
        (["c.png", *told, "--prompt", "x"], "IMAGE c.png: No such file or directory"),
        (["a.png", "--reward", "rss", "--prompt", "one red circle"],
         "IMAGE a.png: expected a picture of the embedded model, 32 x 32 or enlarged from that "
         "without smoothing, got 4 x 3"),
        (["a.png", "--reward", "rss", "--reward-timeout", "3", "--prompt", "one red circle"],
         "--reward-timeout: has no effect with --reward rss"),
        (["a.png", "--reward", "scoring:absent", "--prompt", "x"],
         "--reward scoring:absent cannot be imported: AttributeError: module 'scoring' has no "
         "attribute 'absent'"),
        (["a.png", "--reward", "none"],
         "--reward: pictures are scored by one, expected another than none"),
        (["a.png", "--reward", "pick", "--reward-timeout", "3"],
         "--reward-timeout has no effect with --reward pick, got 3.0"),
        (["a.png", "--reward", "pick"],
         "--reward-model must be a converted CLIP for --reward pick, got none"),
    ):  # fmt: skip
        assert refused(capsys, "score", *words) == f"flowsde score: {line}\n"
    with pytest.raises(SystemExit) as stop:
        cli.main(["score", "a.png", "--reward", "scoring:broken", "--prompt", "x"])
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert "reward 'scoring:broken' raised RuntimeError: out of service" in said


@pytest.mark.parametrize("models", [0, slow(2)])
def test_rewards_that_there_are(
    models: int, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if models:
        tiny.clip(here / "clip")
        tiny.aesthetic_head(here / "head")
        tiny.hpsv2(here / "hps")
        tiny.image_reward(here / "blip")
        tiny.clip_flant5(here / "vqa")
    cli.main(["rewards", *(["clip", "head/out", "hps", "blip", "vqa"] if models else ["."])])
    said = capsys.readouterr().out
    for name in ("likelihood", "rss", "none", "clip", "pick", "hpsv2", "hpsv2.1",
                 "imagereward", "vqascore", "vqascore-odds", "instructblip", "instructblip-odds",
                 "owlv2", "owlv2-smooth", "qwen3vl", "qwen3vl-share", "qwen3vl-odds",
                 "qwen3vl-atoms", "qwen3vl-counts", "aesthetic", "consistency", "URL#MODEL",
                 "MODULE:FUNCTION"):  # fmt: skip
        assert f"\n{name} " in said
    ready = [line for line in said.splitlines() if line.startswith("--reward")]
    assert (
        ready
        == [
            "--reward clip --reward-model clip/out",
            "--reward pick --reward-model clip/out",
            "--reward hpsv2.1 --reward-model hps/out",
            "--reward imagereward --reward-model blip/out",
            "--reward vqascore --reward-model vqa/out",
            "--reward vqascore-odds --reward-model vqa/out",
            "--reward aesthetic --reward-model clip/out --reward-model head/out",
            "--reward consistency --reward-model clip/out",
        ][: 8 * (models > 0)]
    )
    assert refused(capsys, "rewards", "scoring.py") == (
        "flowsde rewards: FOLDER: scoring.py is no folder\n"
    )
