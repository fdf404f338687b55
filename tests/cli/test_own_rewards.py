"""`--reward MODULE:FUNCTION` and `URL#MODEL` with the embedded models."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import stand_in
from chat_server import judging, told
from PIL import Image
from refusing import refused

import flowsde as fs
from flowsde import shapes
from flowsde.cli import main as cli
from flowsde.cli import results
from flowsde.cli.options import Combining, Converted, Sample
from flowsde.cli.sources import about, source_of
from flowsde.diagnosis import statistics
from flowsde.shapes import weights

PROMPT, OTHER = "Two green  triangles", "one red circle"
"""The first is no canonical caption."""
FUNCTIONS = """
import numpy as np

def long(images, prompts):
    assert images.dtype == np.float32 and images.shape[1:] == (32, 32, 3)
    return images.mean((1, 2, 3)) + np.float32([len(one) for one in prompts])

def other(images, prompts):
    return images[:, 0, 0, 0]
"""
BON = "--method bon --steps 2 --nfe 8".split()


def _long(images: Any, prompts: list[str]) -> Any:
    return np.asarray(images).mean((1, 2, 3)) + np.float32([len(one) for one in prompts])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    stand_in.use(monkeypatch.setattr)
    (tmp_path / "own_judge.py").write_text(FUNCTIONS)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("own_judge", None)
    return tmp_path


def _json(path: str) -> dict[str, Any]:
    return json.loads(Path(path).read_text())


@pytest.mark.parametrize("model", [None, "shapes-turbo"])
def test_it_is_told_pictures_and_the_prompts_as_written(model: str | None) -> None:
    converted = Converted(model=None if model is None else Path(model), reward_timeout=5.0)
    given = Sample(prompt=(PROMPT, OTHER), reward=("own_judge:long",), converted=converted)
    source = source_of(given)
    assert source.settings.reward == "own_judge:long" and [*source.rewards] == ["own_judge:long"]
    loaded = source.load(source.prompts)
    assert loaded.reward.timeout == 5.0
    assert [task.reward_cond for task in loaded.tasks] == [PROMPT, OTHER]
    for task, prompt in zip(loaded.tasks, (PROMPT, OTHER), strict=True):
        np.testing.assert_array_equal(task.cond, shapes.encode(prompt))
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    found = loaded.reward(images, [PROMPT, OTHER])
    np.testing.assert_allclose(found, _long(images, [PROMPT, OTHER]), rtol=1e-6)


def test_beside_the_embedded_models_own() -> None:
    combining = Combining(combine="weighted", reward_weights=(2.0, 0.5))
    names = ("rss", "own_judge:long")
    source = source_of(Sample(prompt=(PROMPT,), reward=names, combining=combining))
    loaded = source.load(source.prompts)
    images = np.zeros((1, 32, 32, 3), np.float32) + np.float32(0.1)
    cond = np.stack([shapes.encode(PROMPT)])
    rss = np.asarray(stand_in._uneven_reward(images, cond))
    scores = loaded.reward.scores(images, [loaded.tasks[0].reward_cond])
    np.testing.assert_allclose(scores.reward, 2.0 * rss + 0.5 * _long(images, [PROMPT]), rtol=1e-5)
    assert source.settings.reward == "weighted(rss, own_judge:long)"


@pytest.mark.slow_but_one
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--reward own_judge:long --task sides",
         "--task sides cannot be with --reward own_judge:long: a task brings its own reward"),
        ("--reward own_judge:nothing", "--reward own_judge:nothing cannot be imported: Attribute"),
        ("--reward nowhere:f", "expected nowhere.py in this folder, or a module that is installed"),
        ("--reward own_judge:np", "--reward own_judge:np must be a function"),
        ("--reward clip", "--reward must be one of likelihood, rss, MODULE:FUNCTION or URL#MODEL, "
         "got 'clip'; others need --model"),
        ("--reward own_judge:long --kernel ddim --gradient-temperature 1",
         "--gradient-temperature wants a reward with a gradient, got --reward own_judge:long"),
        ("--reward own_judge:long --reward-timeout 0", "--reward-timeout must be a finite number "),
        ("--reward rss --reward-timeout 3",
         "--reward-timeout wants --reward MODULE:FUNCTION or URL#MODEL, got 3"),
        ("--reward own_judge:long --reward-model own_judge", "--reward-model has no effect"),
        ("--reward own_judge:long --heldout own_judge:long",
         "own_judge:long is the reward that is searched by"),
        ("--reward own_judge:long --reward own_judge:other",
         "--combine: is missing for 2 --reward"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_any_work(
    words: str, said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, "sample", PROMPT, *words.split(), "--out", "out")
    assert not (here / "out").exists()


@pytest.mark.slow
def test_weights_of_a_scorer_that_nothing_asks_are_refused(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "scorer").write_bytes(weights.packaged("scorer").read_bytes())
    words = ["sample", PROMPT, "--weights", "scorer", "--out", "out", "--reward"]
    said = refused(capsys, *words, "own_judge:long")
    assert "--weights of the scorer have no effect with --reward own_judge:long, got scorer" in said


@pytest.mark.slow
def test_sample_and_batch_search_by_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*BON, "--reward", "own_judge:long", "--heldout", "own_judge:other"]
    cli.main(["sample", PROMPT, *words, "--out", "one"])
    found = _json("one/result.json")
    kernel = fs.kernels.ode_euler(fs.interpolants.linear())
    expected = fs.run(
        jax.random.key(0), stand_in.FLOW,
        fs.search.bon(nfe=8, kernel=kernel, grid=fs.grids.uniform(2)),
        fs.rewards.host(_long), cond=shapes.encode(PROMPT), reward_cond=PROMPT,
    )  # fmt: skip
    assert found["reward"] == pytest.approx(float(expected.reward), rel=1e-5)
    assert found["settings"]["reward"] == "own_judge:long" and found["verifier_calls"] == 4
    assert found["heldout"]["exact"] in (True, False)
    with Image.open("one/image.png") as image:
        corner = float(np.asarray(image)[0, 0, 0]) / 127.5 - 1.0
    assert found["heldout_rewards"] == {"own_judge:other": pytest.approx(corner, abs=1e-6)}
    (here / "prompts.txt").write_text(f"{PROMPT}\n{OTHER}\n")
    cli.main(["batch", "--prompts-file", "prompts.txt", *words, "--out", "many"])
    same = _json("many/two-green-triangles/result.json")
    assert same["reward"] == pytest.approx(found["reward"], rel=1e-5)
    second = _json("many/one-red-circle/result.json")
    assert abs(second["reward"] - len(OTHER)) < 2.0
    capsys.readouterr()
    cli.main(["sample", PROMPT, *words, "--out", "one"])
    assert "already complete" in capsys.readouterr().out
    said = refused(capsys, "sample", PROMPT, *BON, "--reward", "own_judge:other", "--out", "one")
    assert "used --reward own_judge:long, not own_judge:other" in said


@pytest.mark.slow
def test_diagnose_and_tune_take_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_DRAWS", "_AT_ONCE"):
        monkeypatch.setattr(statistics, name, 20)
    reward = ["--reward", "own_judge:long"]
    small = ["--steps", "3", "--trajectories", "8", "--families", "2"]
    cli.main(["diagnose", PROMPT, *reward, *small, "--out", "diagnosed"])
    found = _json("diagnosed/diagnose.json")
    assert found["settings"]["reward"] == "own_judge:long" and len(found["rows"]) == 3
    words = ["--nfe", "12", "--seeds", "2", "--methods", "svdd", "--no-diagnosis"]
    cli.main(["tune", PROMPT, *reward, *words, "--out", "tuned"])
    tuned = _json("tuned/tune.json")
    assert tuned["settings"]["reward"] == "own_judge:long"
    # Outcomes are its rewards, the prompt's length and a picture's mean.
    for one in tuned["finalists"]:
        assert all(abs(outcome - len(PROMPT)) < 2.0 for outcome in one["outcomes"])


@pytest.mark.slow
def test_a_judge_at_a_url(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def bright(request: Any) -> list[tuple[str, float]]:
        (image,), (text,) = told(request)
        odds = float(image.mean()) if PROMPT in text else -3.0
        return [("Yes", -math.log1p(math.exp(-odds))), ("No", -math.log1p(math.exp(odds)))]

    with judging(bright) as server:
        words = ["sample", PROMPT, *BON, "--reward", f"{server.url}#a-judge", "--out", "out"]
        cli.main(words)
        found = _json("out/result.json")
        with Image.open("out/image.png") as image:
            mean = float(np.asarray(image).mean()) / 255.0
        assert found["reward"] == pytest.approx(mean, abs=0.01)
        assert found["settings"]["judge"]
        capsys.readouterr()
        cli.main(words)
        assert "already complete" in capsys.readouterr().out


def test_a_reward_of_another_version_does_not_go_on_in_a_folder(here: Path) -> None:
    """As of a server that was started again with another: its name is the same."""

    def found(version: str) -> dict[str, Any]:
        text = f"import flowsde as fs\nscore = fs.rewards.host(lambda x, p: x[:, 0, 0, 0]{version})"
        (here / "own_judge.py").write_text(text)
        sys.modules.pop("own_judge", None)
        command = Sample(prompt=(OTHER,), reward=("own_judge:score",))
        return about(command, source_of(command), OTHER)

    first = found(", version='first'")
    results.check_same(here, "finished", found(", version='first'"), first)
    for other, said in ((", version='second'", "second"), ("", "None")):
        with pytest.raises(ValueError, match=f"--reward-version first, not {said}"):
            results.check_same(here, "finished", found(other), first)
