"""The command: files, settings, wrong values; with a small stand-in for the model unless slow."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import flowsde as fs
from flowsde import cli, presets, report, shapes
from flowsde.presets import PRESETS, Sample, resolve

PROMPT = "three red circles and two blue squares"
FILES = {"image.png", "path.png", "search.png", "result.json"}
TINY = ["--steps", "3", "--width", "2"]
RBF = [PROMPT, *TINY, "--nfe", "17", "--finish-steps", "2"]


def _velocity(params: jax.Array, x: jax.Array, t: jax.Array, cond: jax.Array) -> jax.Array:
    centre = params * jnp.mean(cond.astype(jnp.float32), axis=1)[:, None, None, None]
    return (x - centre) / jnp.maximum(t, 0.05)[:, None, None, None] * 0.5


def _reward(images: jax.Array, cond: jax.Array) -> jax.Array:
    return -jnp.mean(jnp.square(images), axis=(1, 2, 3))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow and a reward that compile fast."""
    flow = fs.Flow.from_callable(_velocity, jnp.float32(0.01), (32, 32, 3))
    monkeypatch.setattr(shapes, "load_flow", lambda: flow)
    monkeypatch.setattr(shapes, "load_reward", lambda measure: _reward)


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model fails the test."""

    def load(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(shapes, "load_flow", load)


def _sample(out: Path, *args: str) -> dict[str, Any]:
    cli.main(["sample", *args, "--out", str(out)])
    return json.loads((out / "result.json").read_text())


def _refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line that a wrong command prints."""
    with pytest.raises(SystemExit) as stop:
        cli.main(args)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.startswith("flowsde")
    return captured.err


def test_writes_everything(small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = _sample(tmp_path, *RBF)
    assert {p.name for p in tmp_path.iterdir()} == FILES
    for name in FILES - {"result.json"}:
        with Image.open(tmp_path / name) as picture:
            picture.verify()
    with Image.open(tmp_path / "image.png") as picture:
        assert picture.size == (256, 256)
        blocks = np.asarray(picture).reshape(32, 8, 32, 8, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    keys = (
        "prompt method seed settings reward heldout nfe evaluations verifier_calls seconds version"
    )
    assert set(keys.split()) <= set(result)
    assert result["prompt"] == PROMPT and result["method"] == "rbf" and result["seed"] == 0
    assert result["nfe"] == result["settings"]["nfe"] == 17
    assert result["evaluations"] >= result["nfe"]
    assert result["version"] == fs.__version__
    assert set(result["seconds"]) == {"total", "model", "verifier", "other"}
    assert set(result["heldout"]) == {"exact", "rss", "counts", "unclear"}
    out, err = capsys.readouterr()
    assert PROMPT in out and "17 NFE" in out and str(tmp_path) in out and "kernel=" in out
    assert "NFE/s" in err and "best reward" in err


@pytest.mark.parametrize(
    "method, nfe", [("ode", 3), pytest.param("sde", 3, marks=pytest.mark.slow), ("bon", 7)]
)
def test_other_methods(small: None, method: str, nfe: int, tmp_path: Path) -> None:
    options = ["--width", "2", "--nfe", "7"] if method == "bon" else []
    result = _sample(tmp_path, PROMPT, "--method", method, "--steps", "3", *options)
    # Best-of-N leaves what is less than a sample.
    assert result["settings"]["nfe"] == nfe and result["nfe"] == nfe // 3 * 3
    assert result["verifier_calls"] == nfe // 3
    assert {p.name for p in tmp_path.iterdir()} == FILES


def test_guidance_costs_two(small: None, tmp_path: Path) -> None:
    result = _sample(tmp_path, PROMPT, "--method", "ode", "--steps", "3", "--guidance", "2")
    assert result["nfe"] == result["evaluations"] == result["settings"]["nfe"] == 6


def test_seeds_and_overwriting(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _sample(tmp_path, *RBF)
    with monkeypatch.context() as patch:
        patch.setattr(shapes, "load_flow", lambda: pytest.fail("the model was loaded"))
        capsys.readouterr()
        said = _refused(capsys, "sample", *RBF, "--out", str(tmp_path))
    assert "--overwrite" in said and str(tmp_path) in said
    again = _sample(tmp_path, *RBF, "--overwrite")
    other = _sample(tmp_path, *RBF, "--overwrite", "--seed", "1")
    assert first["reward"] == again["reward"] != other["reward"]


def test_several_prompts_and_default_folder(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--method", "ode", "--steps", "3"]
    cli.main(["sample", "one red circle", "2 BLUE squares", *options, "--out", "both"])
    names = {p.name for p in Path("both").iterdir()}
    assert names == {"one-red-circle", "two-blue-squares"}
    cli.main(["sample", "one", "red", "circle", *options])
    alone = Path("flowsde-out/one-red-circle-ode-seed0")
    assert {p.name for p in alone.iterdir()} == FILES
    results = [
        json.loads((p / "result.json").read_text()) for p in (alone, Path("both/one-red-circle"))
    ]
    assert results[0]["prompt"] == "one red circle"
    assert results[0]["reward"] == results[1]["reward"]


def test_target_reward_stops(small: None, tmp_path: Path) -> None:
    result = _sample(tmp_path, *RBF, "--target-reward=-99")
    # The first draw of either chain, and finishing.
    assert result["nfe"] == 2 + 2 and result["settings"]["target_reward"] == -99.0


def test_a_failure_leaves_no_result(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr(report, "search_figure", fail)
    with pytest.raises(RuntimeError):
        cli.main(["sample", *RBF, "--out", str(tmp_path)])
    assert {p.name for p in tmp_path.iterdir()} == {"image.png", "path.png"}


def test_interruption(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_search", interrupt)
    with pytest.raises(SystemExit) as stop:
        cli.main(["sample", *RBF, "--out", str(tmp_path)])
    assert stop.value.code == 130
    assert capsys.readouterr().err.strip() == "flowsde sample: interrupted"
    assert not list(tmp_path.iterdir())


WRONG = [
    ("", "PROMPT"),
    ("three red dogs", "'dogs'"),
    ("six red circles", "'six'"),
    ("three red circles and", "prompt"),
    ("P --method mcts", "--method must be one of ode, sde, bon, rbf, got 'mcts'"),
    ("P --preset best", "--preset"),
    ("P --interpolant quadratic", "--interpolant"),
    ("P --kernel heun", "--kernel"),
    ("P --diffusion cubic", "--diffusion"),
    ("P --grid log", "--grid"),
    ("P --reward clip", "--reward"),
    ("P --last stop", "--last"),
    ("P --finish never", "--finish"),
    ("P --nfe 20", "nfe"),
    ("P --nfe 0", "--nfe"),
    ("P --nfe many", "--nfe: expected an integer, got 'many'"),
    ("P --nfe 2.5", "--nfe"),
    ("P --nfe", "--nfe"),
    ("P --steps -3", "--steps"),
    ("P --chains 0", "--chains"),
    ("P --seeds 0", "--seeds"),
    ("P --width 0", "--width"),
    ("P --finish-steps 0", "--finish-steps"),
    ("P --guidance nan", "--guidance"),
    ("P --guidance 2 --nfe 60", "nfe"),
    ("P --target-reward nan", "--target-reward"),
    ("P --target-reward inf", "--target-reward"),
    ("P --target-reward high", "--target-reward"),
    ("P --seed -1", "--seed"),
    ("P --seed x", "--seed"),
    ("P --kernel ddim --eta 2", "eta"),
    ("P --kernel ddim --eta nan", "--eta"),
    ("P --kernel ddim --data-variance -1", "data_variance"),
    ("P --diffusion-scale -1", "scale"),
    ("P --kernel ode_euler", "kernel"),
    ("P --kernel ode_euler --diffusion sin", "--diffusion has no effect"),
    ("P --kernel euler_maruyama --eta 1", "--eta has no effect with kernel euler_maruyama"),
    ("P --kernel ddim --diffusion sin", "--diffusion has no effect"),
    ("P --finish mean --finish-steps 3", "--finish-steps has no effect"),
    ("P --method bon --chains 3", "--chains has no effect with method bon"),
    ("P --method bon --nfe 10", "nfe"),
    ("P --method ode --width 3", "--width has no effect"),
    ("P --method ode --kernel ddim", "--kernel"),
    ("P --method sde --kernel ode_euler", "--kernel"),
    ("P --method ode --nfe 30 --steps 20", "--nfe"),
    ("P --method ode --nfe 3 --guidance 2", "--nfe"),
    ("P --metod ode", "--metod"),
    ("P --out /dev/null/x", "--out"),
]


@pytest.mark.parametrize("args, names", WRONG)
def test_wrong_values(
    no_work: None, args: str, names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["one red circle" if word == "P" else word for word in args.split()]
    said = _refused(capsys, "sample", *words)
    assert said.startswith("flowsde sample: ") and names in said


@pytest.mark.parametrize(
    "args, names",
    [
        ("", "sample"),
        ("smaple", "smaple"),
        ("train", "TASK must be one of"),
        ("train cat", "'cat'"),
        ("train scorer --steps 0", "--steps"),
        ("train scorer --steps x", "--steps"),
        ("train scorer --steps 100", "--warmup must be below --steps = 100, got 200"),
        ("train scorer --learning-rate nan", "--learning-rate"),
        ("train scorer --ema 1.5", "--ema"),
        ("train scorer --batch-size -1", "--batch-size"),
        ("train scorer --export-only --out /nowhere", "/nowhere"),
    ],
)
def test_wrong_commands(args: str, names: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert names.lower() in _refused(capsys, *args.split()).lower()


def test_a_prompt_given_twice_is_refused(
    no_work: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["one red circle", "1 red circle", "--out", str(tmp_path)]
    assert "twice" in _refused(capsys, "sample", *words)


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["sample", "--help"])
    assert not stop.value.code
    text = capsys.readouterr().out
    for field in dataclasses.fields(Sample):
        assert field.name == "prompt" or presets.flag(field.name) in text
    assert "None" not in text
    for words in presets.CHOICES.values():
        assert all(word in text for word in words)


def test_boxes_become_lines() -> None:
    drawn = (
        "╭─ Value error ──╮\n│ Error parsing --nfe: wrong │\n│ value │\n│ ──── │\n│ help │\n╰────╯"
    )
    ascii_only = (
        " Value error  \n ------- \n  Error parsing --nfe: wrong \n  value\n  ----- \n help"
    )
    assert cli._one_line(drawn) == cli._one_line(ascii_only) == "--nfe: wrong value"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--version"])
    assert capsys.readouterr().out == f"flowsde {fs.__version__}\n"


def test_options_are_the_settings() -> None:
    options = {f.name for f in dataclasses.fields(Sample)}
    assert {f.name for f in dataclasses.fields(presets.Settings)} <= options


def test_paper_preset() -> None:
    s = resolve("paper", "rbf", {})
    assert (s.nfe, s.chains, s.seeds, s.last, s.finish) == (500, 2, 1, "exhaust", "mean")
    search = presets.build("rbf", s)
    p = fs.interpolants.vp()
    assert search == fs.search.rbf(
        nfe=500,
        kernel=fs.kernels.euler_maruyama(p, fs.diffusion.square(scale=3.0)),
        grid=fs.grids.quadratic(10),
        chains=2,
        seeds=1,
        width=s.width or 1,
        finish="mean",
    )


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", presets.METHODS)
def test_every_preset_builds_and_explicit_options_win(preset: str, method: str) -> None:
    s = resolve(preset, method, {"interpolant": "cosine", "steps": 7, "grid": "shifted"})
    assert (s.interpolant, s.steps, s.grid) == ("cosine", 7, "shifted")
    search = presets.build(method, s)
    assert isinstance(search.interpolant, type(fs.interpolants.cosine()))
    assert search.nfe == s.nfe
    assert (method in ("ode", "sde")) == (s.nfe == 7)


@pytest.mark.parametrize("name", presets.DIFFUSIONS)
def test_a_diffusion_brings_its_own_scale(name: str) -> None:
    s = resolve("paper", "rbf", {"diffusion": name})
    ours = presets.build("rbf", s)
    given = {"diffusion": name, "diffusion_scale": 0.5}
    assert ours.kernel.diffusion == getattr(fs.diffusion, name)()  # type: ignore[attr-defined]
    assert resolve("paper", "rbf", given).diffusion_scale == 0.5


@pytest.mark.parametrize("method", ["ode", "sde"])
def test_steps_of_one_trajectory_are_its_budget(method: str) -> None:
    assert resolve("recommended", method, {"nfe": 9}).steps == 9
    assert resolve("recommended", method, {"nfe": 18, "guidance": 3.0}).steps == 9
    s = resolve("recommended", method, {})
    assert s.nfe == s.steps


@pytest.mark.slow
def test_the_real_command(tmp_path: Path) -> None:
    args = [sys.executable, "-m", "flowsde.cli", "sample", "two", "green", "triangles"]
    options = ["--nfe", "30", "--steps", "5", "--finish-steps", "4", "--out", str(tmp_path)]
    done = subprocess.run([*args, *options], capture_output=True, text=True, check=True)
    assert re.search(r"asked +two green triangles", done.stdout)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["nfe"] == 30 and result["reward"] <= 0.0
    again = subprocess.run([*args, *options], capture_output=True, text=True)
    assert again.returncode == 2 and again.stderr.count("\n") == 1 and not again.stdout
