"""The command: files, settings, wrong values; with a small stand-in for the model unless slow."""

import dataclasses
import errno
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stand_in
from PIL import Image
from refusing import refused

import flowsde as fs
from flowsde import shapes
from flowsde.cli import main as cli
from flowsde.cli import options, parse, plots, presets, settings
from flowsde.cli import results as writing
from flowsde.cli.presets import resolve
from flowsde.cli.settings import PRESETS
from flowsde.search.resampling import SCHEMES
from flowsde.search.smc import POTENTIALS

PROMPT = "three red circles and two blue squares"
FILES = {"image.png", "path.png", "search.png", "result.json"}
RBF = [PROMPT, "--method", "rbf", *"--steps 3 --width 2 --nfe 17 --finish-steps 2".split()]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow and a reward that compile fast."""
    stand_in.use(monkeypatch.setattr)


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model fails the test."""

    def load(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(shapes, "load_flow", load)


def _sample(out: Path, *args: str) -> dict[str, Any]:
    cli.main(["sample", *args, "--out", str(out)])
    return json.loads((out / "result.json").read_text())


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
        "prompt method seed settings reward heldout nfe evaluations backward_passes "
        "verifier_calls seconds version"
    )
    assert set(keys.split()) <= set(result)
    assert result["prompt"] == PROMPT and result["method"] == "rbf" and result["seed"] == 0
    assert result["nfe"] == result["settings"]["nfe"] == 17
    assert result["evaluations"] >= result["nfe"]
    assert result["version"] == fs.__version__
    seconds = result["seconds"]
    assert set(seconds) == {"total", "model", "verifier", "other"}
    assert all(value > 0.0 for value in seconds.values())
    assert seconds["model"] + seconds["verifier"] + seconds["other"] == pytest.approx(
        seconds["total"], abs=0.003
    )
    assert set(result["heldout"]) == {"exact", "rss", "counts", "unclear"}
    out, err = capsys.readouterr()
    assert PROMPT in out and "17 NFE" in out and str(tmp_path) in out and "kernel=" in out
    assert "NFE/s" in err and "current reward" in err


SMALL = {
    "ode": "",
    "sde": "",
    "bon": "--nfe 7 --width 2",
    "halving": "--nfe 10 --draft-steps 2 --factor 2 --resume-at .9 --kernel ode_adams",
    "zero_order": "--nfe 10 --neighbours 2",
    "lidar": "--nfe 10 --draft-steps 2 --trajectories 1",
    "sop": "--nfe 20 --start 1 --forward 1 --backward 2 --finish mean",
    "evolution": "--nfe 17 --steps 3 --mutate-at .6 --mutate-until .3",
    "dfs": "--nfe 17 --chains 1 --backtrack 1 --bar=-1.5 --tries 2 --finish mean",
    "dts": "--nfe 10 --width 2 --branch-at 1 --explore .5",
    "pcn": "--nfe 11 --chains 2",
    "psi": "--nfe 17 --finish-steps 2 --walk 1",
    "smc": "--nfe 17 --finish-steps 2 --finish heun",
    "code": "--nfe 17 --finish mean --chains 1",
    "svdd": "--nfe 17 --finish mean --temperature .1",
    "epsilon_greedy": "--nfe 17 --finish mean --neighbours 2 --epsilon .3",
    "rbf": "--nfe 17 --width 2 --finish-steps 2",
}


@pytest.mark.slow
@pytest.mark.parametrize("method", settings.METHODS)
def test_every_method(small: None, method: str, tmp_path: Path) -> None:
    options = [*SMALL[method].split(), "--steps", "3", "--save-trajectory"]
    result = _sample(tmp_path, PROMPT, "--method", method, *options)
    assert {p.name for p in tmp_path.iterdir()} == FILES | {"trajectory.npz"}
    budget = result["settings"]["nfe"]
    # What is less than a sample, a particle or a child is left.
    assert budget - 2 <= result["nfe"] <= budget
    assert result["verifier_calls"] > 0 and result["backward_passes"] == 0

    with np.load(tmp_path / "trajectory.npz") as file:
        arrays = dict(file)
    rounds = len(arrays["time"])
    # Parts are those of a combined reward, drafts those of another flow.
    names = set(fs.search.Info._fields) - {"parts", "draft_evaluations"}
    assert names <= set(arrays)
    assert all(len(arrays[name]) == rounds for name in names)
    assert arrays["charged"].sum() == arrays["counted"].sum() == result["nfe"]
    assert arrays["evaluations"].sum() == result["evaluations"]
    assert arrays["verifier_calls"].sum() == result["verifier_calls"]
    n = len(arrays["particle_line"])
    assert arrays["particle_x0"].shape == (n, 32, 32, 3) and n > 0
    for name in ("round", "time", "reward", "nfe", "parent"):
        assert arrays[f"particle_{name}"].shape == (n,)
    assert (np.diff(arrays["particle_round"]) >= 0).all()
    assert (arrays["particle_parent"] < np.arange(n)).all()
    judged = np.isfinite(arrays["particle_reward"])
    rewards = -np.mean(np.square(arrays["particle_x0"][judged]), axis=(1, 2, 3))
    np.testing.assert_allclose(arrays["particle_reward"][judged], rewards, rtol=1e-4)
    # With SVDD's temperature the answer may be one that was not drawn.
    assert method == "svdd" or result["reward"] in arrays["particle_reward"]


@pytest.mark.slow
def test_gradients_are_asked_for_and_counted(small: None, tmp_path: Path) -> None:
    result = _sample(tmp_path, *RBF, "--gradient-temperature", "0.5")
    assert result["settings"]["gradient_temperature"] == 0.5
    assert 0 < result["backward_passes"] < result["nfe"] == 17
    search = presets.build("rbf", resolve("recommended", "rbf", {"gradient_temperature": 0.5}))
    assert search.uses_gradient and search.inner.kernel.temperature == 0.5


def test_what_the_gradient_does() -> None:
    def kernel(method: str, **given: Any) -> Any:
        search = presets.build(method, resolve("recommended", method, given))
        return getattr(search, "inner", search).kernel

    ddim = kernel("rbf")
    tilted, damped = (
        kernel("svdd", noise_tilt=0.3),
        kernel("smc", gradient_temperature=0.5, gradient_curvature=2.0),
    )
    assert tilted == fs.kernels.noise_tilt(ddim, 0.3)
    assert damped == fs.kernels.reward_gradient(ddim, 0.5, curvature=2.0, data_variance=0.25)
    assert kernel("svdd", noise_tilt=0.0) == ddim
    for method, given, message in (
        ("rbf", {"noise_tilt": 1.5}, "--noise-tilt is a share of the noise, 0 to 1, got 1.5"),
        ("rbf", {"noise_tilt": 0.3, "gradient_temperature": 0.5},
         "--gradient-temperature has no effect with --noise-tilt 0.3, got 0.5"),
        ("rbf", {"gradient_curvature": 1.0},
         "--gradient-curvature has no effect with no --gradient-temperature, got 1.0"),
        ("rbf", {"gradient_temperature": 1.0, "gradient_curvature": 1.0, "kernel": "cps",
                 "data_variance": 0.0},
         "--data-variance must be a finite number above 0, got 0.0"),
        ("rbf", {"gradient_temperature": 1.0, "gradient_curvature": 1.0,
                 "kernel": "euler_maruyama"},
         "--gradient-curvature has no effect with kernel euler_maruyama, got 1.0"),
        ("bon", {"noise_tilt": 0.3}, "--noise-tilt has no effect with method bon, kernel ode_eul"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(message)):
            kernel(method, **given)


@pytest.mark.slow
def test_guidance_costs_two(small: None, tmp_path: Path) -> None:
    result = _sample(tmp_path, PROMPT, "--method", "ode", "--steps", "3", "--guidance", "2")
    assert result["nfe"] == result["evaluations"] == result["settings"]["nfe"] == 6


@pytest.mark.slow
def test_keep_writes_the_next_best_too(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bon = [PROMPT, "--method", "bon", "--steps", "3", "--nfe", "12"]
    result = _sample(tmp_path / "kept", *bon, "--keep", "3")
    one = _sample(tmp_path / "one", *bon)
    names = ["image.png", "image-2.png", "image-3.png"]
    assert [kept["image"] for kept in result["kept"]] == names and "kept" not in one
    assert result["settings"]["keep"] == 3 and "keep" not in one["settings"]
    rewards = [kept["reward"] for kept in result["kept"]]
    assert rewards == sorted(rewards, reverse=True) and rewards[0] == result["reward"]
    assert result["reward"] == one["reward"]
    assert result["kept"][0]["heldout"] == result["heldout"]
    pictures = [(tmp_path / "kept" / name).read_bytes() for name in names]
    assert len(set(pictures)) == 3
    assert pictures[0] == (tmp_path / "one" / "image.png").read_bytes()
    with Image.open(tmp_path / "kept" / "sheet.png") as sheet:
        assert sheet.width > 200
    assert not (tmp_path / "one" / "sheet.png").exists() and "weighted_sample" not in result
    assert "kept " not in capsys.readouterr().out
    _sample(tmp_path / "more", *bon, "--keep", "9")
    assert "kept    4 of 9: the search came to no more" in capsys.readouterr().out


@pytest.mark.slow
def test_weights_are_in_the_results_of_sample_and_batch(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--method psi --steps 3 --nfe 18 --finish mean --keep 3".split()
    result = _sample(tmp_path / "one", PROMPT, *options)
    own = result["weighted_sample"]
    assert "weights of" in capsys.readouterr().out
    weights = np.exp(own["log_weights"])
    np.testing.assert_allclose(weights.sum(), 1.0, atol=1e-5)
    np.testing.assert_allclose(own["ess"], 1.0 / np.sum(weights**2), rtol=1e-4)
    assert own["log_z"] is None
    assert result["log_weight"] == result["kept"][0]["log_weight"]
    for one in result["kept"]:
        where = own["rewards"].index(one["reward"])
        np.testing.assert_allclose(one["log_weight"], own["log_weights"][where], rtol=1e-5)
    # The same weights in a batch, whose totals have log Z of every prompt.
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"one red circle\n{PROMPT}\n")
    cli.main(["batch", "--prompts-file", str(prompts), "--out", str(tmp_path / "all"), *options])
    folder = tmp_path / "all" / PROMPT.replace(" ", "-")
    packed = json.loads((folder / "result.json").read_text())
    assert packed.keys() == result.keys()
    for name in ("log_weights", "rewards"):
        np.testing.assert_allclose(packed["weighted_sample"][name], own[name], rtol=1e-3, atol=1e-5)
    first, second = json.loads((tmp_path / "all" / "batch.json").read_text())["weighted_samples"]
    assert second == {name: packed["weighted_sample"][name] for name in ("log_z", "ess")} != first


@pytest.mark.slow
def test_seeds_and_overwriting(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _sample(tmp_path, *RBF)
    with monkeypatch.context() as patch:
        patch.setattr(shapes, "load_flow", lambda *_: pytest.fail("the model was loaded"))
        capsys.readouterr()
        _sample(tmp_path, *RBF)
        assert f"{tmp_path} is already complete" in capsys.readouterr().out
        said = refused(capsys, "sample", *RBF, "--save-trajectory", "--out", str(tmp_path))
        assert "has no trajectory.npz; expected another --out, or --overwrite" in said
        said = refused(capsys, "sample", *RBF, "--seed", "1", "--out", str(tmp_path))
    assert "--seed 0, not 1" in said and "--overwrite" in said and str(tmp_path) in said
    again = _sample(tmp_path, *RBF, "--overwrite")
    other = _sample(tmp_path, *RBF, "--overwrite", "--seed", "1")
    assert first["reward"] == again["reward"] != other["reward"]


@pytest.mark.slow
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


@pytest.mark.slow
def test_target_reward_stops(small: None, tmp_path: Path) -> None:
    result = _sample(tmp_path / "finished", *RBF, "--target-reward=-99")
    # Either chain comes to the last of three times by first children that are better, which is the
    # least that it can take, and one is finished.
    assert result["nfe"] == 2 * 3 + 2 and result["settings"]["target_reward"] == -99.0
    # Of a search that answers with means, the first draw of either chain.
    of_means = [PROMPT, *"--method rbf --steps 3 --width 2 --nfe 17 --finish mean".split()]
    assert _sample(tmp_path / "mean", *of_means, "--target-reward=-99")["nfe"] == 2


@pytest.mark.slow
def test_a_picture_that_fails_costs_no_search(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no\nfonts")

    with monkeypatch.context() as patch:
        patch.setattr(plots, "path_figure", fail)
        assert _sample(tmp_path, *RBF)["nfe"] == 17
    assert {p.name for p in tmp_path.iterdir()} == FILES - {"path.png"}
    said = capsys.readouterr().err
    assert "\nflowsde sample: path.png could not be drawn: RuntimeError: no fonts\n" in said


@pytest.mark.slow
def test_an_answer_that_cannot_be_written_is_kept(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writing, "write_json", fail)
        with pytest.raises(SystemExit) as stop:
            cli.main(["sample", *RBF, "--out", str(tmp_path)])
    assert stop.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "stopped at 17 of 17 NFE: No space left on device; resume with: " in last
    assert last.endswith(f" --out {tmp_path}")
    assert "result.json" not in {p.name for p in tmp_path.iterdir()}
    assert _sample(tmp_path, *RBF)["nfe"] == 17
    assert {p.name for p in tmp_path.iterdir()} == FILES


WRONG = [
    ("", "PROMPT"),
    ("three red dogs", "'dogs'"),
    ("six red circles", "'six'"),
    ("three red circles and", "prompt"),
    (
        "P --method mcts",
        "--method must be one of ode, sde, bon, halving, zero_order, lidar, sop, evolution, dfs, "
        "dts, pcn, smc, psi, code, svdd, epsilon_greedy, rbf, got",
    ),
    ("P --preset best", "--preset"),
    ("P --interpolant quadratic", "--interpolant"),
    ("P --kernel heun", "--kernel"),
    ("P --diffusion cubic", "--diffusion"),
    ("P --grid log", "--grid"),
    ("P --reward clip", "--reward"),
    ("P --last stop", "--last"),
    ("P --finish never", "--finish"),
    ("P --nfe 20 --steps 20", "nfe"),
    ("P --nfe 0", "--nfe"),
    ("P --nfe many", "--nfe: expected an integer, got 'many'"),
    ("P --nfe 2.5", "--nfe"),
    ("P --nfe", "--nfe"),
    ("P --steps -3", "--steps"),
    ("P --chains 0", "--chains"),
    ("P --chain-seeds 0", "--chain-seeds"),
    ("P --width 0", "--width"),
    ("P --finish-steps 0", "--finish-steps"),
    ("P --guidance nan", "--guidance"),
    ("P --method svdd --guidance 2 --nfe 60 --steps 20", "nfe"),
    ("P --gradient-temperature -1", "--gradient-temperature must be a finite number of at least 0"),
    ("P --method bon --gradient-temperature 1", "--gradient-temperature has no effect with method"),
    ("P --target-reward nan", "--target-reward"),
    ("P --target-reward inf", "--target-reward"),
    ("P --target-reward high", "--target-reward"),
    ("P --keep 0", "--keep must be an integer of at least 1, got 0"),
    ("P --method ode --keep 2", "--keep has no effect with method ode, which comes to one"),
    ("P --seed -1", "--seed"),
    ("P --seed x", "--seed"),
    ("P --kernel ddim --eta 2", "eta"),
    ("P --kernel ddim --eta nan", "--eta"),
    ("P --kernel ddim --data-variance -1", "--data-variance"),
    ("P --diffusion-scale -1", "scale"),
    ("P --kernel ode_euler", "kernel"),
    ("P --kernel ode_adams", "--kernel must move a particle that has no step before, got ODEAdams"),
    ("P --method bon --kernel uni_pc --eta 0", "--eta has no effect with kernel uni_pc"),
    ("P --kernel ode_euler --diffusion sin", "--diffusion has no effect"),
    ("P --kernel euler_maruyama --eta 1", "--eta has no effect with kernel euler_maruyama"),
    ("P --kernel ddim --diffusion sin", "--diffusion has no effect"),
    ("P --finish mean --finish-steps 3", "--finish-steps has no effect"),
    ("P --method bon --chains 3", "--chains has no effect with method bon"),
    ("P --method bon --nfe 5", "nfe"),
    ("P --method ode --width 3", "--width has no effect"),
    ("P --method ode --kernel ddim", "--kernel"),
    ("P --method sde --kernel ode_euler", "--kernel"),
    ("P --method ode --nfe 30 --steps 20", "--nfe"),
    ("P --method ode --nfe 3 --guidance 2", "--nfe"),
    ("P --metod ode", "unknown option --metod; did you mean --method?"),
    ("P --method rbf --temperature 1", "--temperature has no effect with method rbf"),
    ("P --method smc --temperature 0", "temperature"),
    ("P --method smc --potential final --scheme ssp", "--scheme has no effect with potential"),
    ("P --method smc --potential final --funnel .5", "--funnel has no effect with potential"),
    ("P --method smc --potential final --tempering adaptive", "--tempering has no effect"),
    ("P --method smc --tempering-rate 1", "--tempering-rate has no effect with tempering none"),
    ("P --method smc --tempering adaptive --threshold 1", "--threshold must be above 0 and below"),
    ("P --method smc --funnel 0", "--funnel must be above 0 and at most 1, got 0.0"),
    ("P --method smc --resample-until 40", "--resample-until must be an integer of at most"),
    ("P --method smc --threshold 2", "threshold"),
    ("P --method smc --potential best", "--potential must be one of"),
    ("P --method smc --scheme none", "--scheme"),
    ("P --method smc --interval 0", "--interval"),
    ("P --method smc --chains 2", "--chains has no effect"),
    ("P --method smc --width 2", "--width has no effect"),
    ("P --method svdd --block 2", "--block has no effect with method svdd"),
    ("P --method svdd --chain-seeds 2", "--chain-seeds has no effect"),
    ("P --method code --block 0", "--block"),
    ("P --method code --kernel ode_euler", "kernel"),
    ("P --method sop --backward 2", "backward"),
    ("P --method sop --start 0", "--start"),
    ("P --method sop --temperature 1", "--temperature has no effect"),
    ("P --method bon --finish mean", "--finish has no effect with method bon"),
    ("P --method svdd --finish heun --finish-steps 3", "even"),
    ("P --prompts-file /nowhere", "--prompts-file: cannot read /nowhere: No such file"),
    ("P --out /dev/null/x", "--out"),
]


@pytest.mark.parametrize("args, names", WRONG)
def test_wrong_values(
    no_work: None, args: str, names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["one red circle" if word == "P" else word for word in args.split()]
    said = refused(capsys, "sample", *words)
    assert said.startswith("flowsde sample: ") and names in said


@pytest.mark.parametrize(
    "args, names",
    [
        ("smaple", "smaple"),
        ("train", "NETWORK must be one of"),
        ("train cat", "'cat'"),
        ("train scorer --steps 0", "--steps"),
        ("train scorer --steps x", "--steps"),
        ("train scorer --steps 100", "--warmup must be below --steps = 100, got 100"),
        ("train scorer --learning-rate nan", "--learning-rate"),
        ("train scorer --ema 1.5", "--ema"),
        ("train scorer --batch-size -1", "--batch-size"),
        ("train scorer --export-only --out /nowhere", "/nowhere"),
        ("train turbo --batch-size 4", "--batch-size must be at least 8 for turbo, got 4"),
        ("train scorer --export-only --steps 5", "--steps has no effect with --export-only"),
    ],
)
def test_wrong_commands(args: str, names: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert names.lower() in refused(capsys, *args.split()).lower()


def test_a_prompt_given_twice_is_refused(
    no_work: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["one red circle", "1 red circle", "--out", str(tmp_path)]
    assert "twice" in refused(capsys, "sample", *words)


FILE = """\ufeff# a comment
two blue squares\r

  # another
%s
"""


@pytest.mark.parametrize(
    "lines, says",
    [
        ("six red circles", "prompts.txt:5: prompt 'six red circles': unknown number 'six'"),
        ("2 blue squares", "prompts.txt:5: '2 blue squares' is given twice, first as .*txt:2"),
        ("1 red circle", "prompts.txt:5: .* twice, first as PROMPT 'one red circle'"),
    ],
)
def test_wrong_lines(
    no_work: None, lines: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes((FILE % lines).encode())
    said = refused(capsys, "sample", "one red circle", "--prompts-file", str(path))
    assert re.search(says, said)
    path.write_text("# nothing\n\n")
    assert "holds no prompt" in refused(capsys, "sample", "--prompts-file", str(path))


@pytest.mark.slow
def test_prompts_of_a_file(small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "prompts.txt", tmp_path / "out"
    path.write_bytes((FILE % "a red circle").encode())
    options = ["--prompts-file", str(path), "--method", "ode", "--steps", "3", "--out", str(out)]
    cli.main(["sample", *options])
    assert {p.name for p in out.iterdir()} == {"two-blue-squares", "one-red-circle"}
    assert all({p.name for p in folder.iterdir()} == FILES for folder in out.iterdir())
    said = capsys.readouterr().out
    assert said.index("prompt 1 of 2") < said.index("'two blue") < said.index("prompt 2 of 2")
    # One line has a folder of its own as well, and words come first.
    path.write_text("one red circle\n")
    cli.main(["sample", "two red circles", *options, "--overwrite"])
    path.write_text("three red circles\n")
    cli.main(["sample", *options])
    assert (out / "two-red-circles/result.json").exists()
    assert (out / "three-red-circles/result.json").exists()


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["sample", "--help"])
    assert not stop.value.code
    text = capsys.readouterr().out
    for name in options.names():
        assert name == "prompt" or settings.flag(name) in text
    assert "None" not in text
    own = settings.CHOICES.keys() & set(options.names())
    assert own == settings.CHOICES.keys() - {"split"}
    assert all(word in text for name in own for word in settings.CHOICES[name])


def test_boxes_become_lines() -> None:
    drawn = (
        "╭─ Value error ──╮\n│ Error parsing --nfe: wrong │\n│ value │\n│ ──── │\n│ help │\n╰────╯"
    )
    ascii_only = (
        " Value error  \n ------- \n  Error parsing --nfe: wrong \n  value\n  ----- \n help"
    )
    assert parse._message(drawn) == parse._message(ascii_only) == "--nfe: wrong value"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--version"])
    assert capsys.readouterr().out == f"flowsde {fs.__version__}\n"


def test_options_are_the_settings() -> None:
    assert {f.name for f in dataclasses.fields(settings.Settings)} <= set(options.names())


@pytest.mark.parametrize("method", ["bon", "halving", "smc", "svdd", "code", "sop"])
def test_paper_presets_of_others(method: str) -> None:
    search: Any = presets.build(method, resolve("paper", method, {}))
    assert search.nfe == 500
    linear, vp = fs.interpolants.linear(), fs.interpolants.vp()
    if method in ("bon", "halving", "sop"):
        assert search.kernel == fs.kernels.ode_euler(linear)
    else:
        assert search.kernel == fs.kernels.euler_maruyama(vp, fs.diffusion.square(scale=3.0))
        np.testing.assert_array_equal(search.grid, fs.grids.quadratic(10))
    match method:
        case "bon":
            assert search.samples == 50 and search.steps == 10
        case "halving":
            # 80 drafts of 4 steps, of which 20 go on for the other 9 times.
            assert search.drafts == 80 and search.draft == (0, 3, 6, 9)
        case "smc":
            assert search.n_candidates == 50 and search.temperatures == (0.1,) * 10
        case "svdd" | "code":
            # K = 25, and what drawing once at the start leaves.
            assert search.chains == 2 and search.temperature == 0.0
            assert search.block == (2 if method == "code" else 1)
            quotas = np.asarray(search.quotas(np.int32(search.nfe)))
            assert quotas[:, 1:].min() == 27 and quotas[:, 0].max() == 1
        case "sop":
            # K = 5; what is left is one child more in the first rounds.
            assert search.paths == 2 and search.n_candidates == 2 * 5 + 1


@pytest.mark.parametrize("method", ["code", "svdd", "rbf"])
def test_small_budgets_take_fewer_steps(method: str) -> None:
    def steps(nfe: int, **given: Any) -> tuple[int | None, int | None]:
        settings = presets.resolve("recommended", method, {"nfe": nfe, **given})
        assert presets.build(method, settings).nfe == nfe
        return settings.steps, settings.finish_steps

    assert [steps(nfe) for nfe in (12, 50, 100, 500)] == [(2, 1), (10, 3), (10, 3), (10, 3)]
    assert steps(60, guidance=2.0) == (6, 3)
    assert steps(50, steps=14) == (14, 3) and steps(50, finish_steps=8) == (10, 8)


def test_restarts_of_a_preset_go_where_they_do_not_belong() -> None:
    def resolved(**given: Any) -> tuple[Any, ...]:
        s = presets.resolve("recommended", "smc", {"nfe": 100, **given})
        presets.build("smc", s)
        return s.restart_at, s.steps, s.finish_steps

    assert resolved() == (0.5, 6, 3) and resolved(restart_at=0.7, steps=9) == (0.7, 9, 3)
    for other in (
        {"potential": "final"}, {"funnel": 0.5}, {"gradient_temperature": 1.0},
        {"noise_tilt": 0.2}, {"restart_at": 0.0},
    ):  # fmt: skip
        # As many steps as one pass is best in.
        assert resolved(**other) == (0.0, 10, 3) and resolved(**other, steps=7) == (0.0, 7, 3)
    assert resolved(steps=2) == (0.0, 2, 1) and resolved(steps=3) == (0.5, 3, 1)
    assert resolved(strength=0.3)[0] == 0.0 and resolved(strength=0.8)[0] == 0.5
    with pytest.raises(ValueError, match="--restart-at needs a grid of at least 3 steps"):
        resolved(steps=2, restart_at=0.5)
    with pytest.raises(ValueError, match=r"--particles has no effect with --restart-at 0\.0"):
        resolved(restart_at=0.0, particles=3)
    with pytest.raises(ValueError, match="--restart-at has no effect with funnel 0.5"):
        resolved(restart_at=0.5, funnel=0.5)


def test_what_is_recommended_depends_on_the_kind_of_model() -> None:
    assert settings.preset_of("recommended", "shapes") == "recommended"
    assert settings.preset_of("recommended", "shapes-turbo") == "distilled"
    assert settings.preset_of("paper", "shapes-turbo") == "paper"
    for nfe in (20, 50, 500):
        few = presets.resolve("distilled", "svdd", {"nfe": nfe})
        assert (few.steps, few.finish, few.finish_steps, few.chains) == (4, "mean", None, 4)
        assert presets.build("svdd", few).nfe == nfe


def test_what_competes_at_all_steps_does_so_at_those_that_are_given() -> None:
    def competes(**given: Any) -> tuple[int, ...]:
        s = presets.resolve("distilled", "epsilon_greedy", {"nfe": 50, **given})
        return presets.build("epsilon_greedy", s).branch_at  # type: ignore[attr-defined]

    assert competes() == (0, 1)
    assert competes(steps=4) == (0, 1, 2, 3) and competes(steps=1) == (0,)
    assert competes(steps=4, branch_at=1) == (3,)
    # Of a picture to begin from the last times are run.
    assert competes(strength=0.5) == (0,) and competes(steps=4, strength=0.5) == (0, 1)
    assert competes(strength=0.8) == (0,) and competes(strength=0.8, branch_at=1) == (0,)
    base = settings.Settings(kernel="ddim", steps=8, branch_at=2, nfe=50)
    assert presets.resolve_from(base, "epsilon_greedy", {"steps": 6}).branch_at == 2
    with pytest.raises(ValueError, match=r"^--branch-at must be an integer of at most 4, got 5"):
        competes(steps=4, branch_at=5)
    for method in ("epsilon_greedy", "ode"):
        with pytest.raises(ValueError, match="--strength must be 1 for a grid of one step"):
            presets.resolve("distilled", method, {"steps": 1, "strength": 0.8})


def test_paper_preset() -> None:
    s = resolve("paper", "rbf", {})
    assert (s.nfe, s.chains, s.seeds, s.last, s.finish) == (500, 2, 25, "exhaust", "mean")
    search = presets.build("rbf", s)
    p = fs.interpolants.vp()
    assert search == fs.search.rbf(
        nfe=500,
        kernel=fs.kernels.euler_maruyama(p, fs.diffusion.square(scale=3.0)),
        grid=fs.grids.quadratic(10),
        chains=2,
        seeds=25,
        allocation="reserve",
        width=s.width or 1,
        finish="mean",
    )


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", settings.METHODS)
def test_every_preset_builds_and_explicit_options_win(preset: str, method: str) -> None:
    s = resolve(preset, method, {"interpolant": "cosine", "steps": 11, "grid": "shifted"})
    assert (s.interpolant, s.steps, s.grid) == ("cosine", 11, "shifted")
    search = presets.build(method, s)
    assert isinstance(search.interpolant, type(fs.interpolants.cosine()))
    assert search.nfe == s.nfe
    assert (method in ("ode", "sde")) == (s.nfe == 11)


@pytest.mark.parametrize("name", settings.DIFFUSIONS)
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
    args = [sys.executable, "-m", "flowsde", "sample", "two", "green", "triangles"]
    options = ["--nfe", "30", "--steps", "5", "--finish-steps", "4", "--out", str(tmp_path)]
    done = subprocess.run([*args, *options], capture_output=True, text=True, check=True)
    assert re.search(r"asked +two green triangles", done.stdout)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["nfe"] == 30 and result["reward"] <= 0.0
    again = subprocess.run([*args, *options], capture_output=True, text=True)
    assert again.returncode == 0 and not again.stderr
    assert again.stdout == f"flowsde sample: {tmp_path} is already complete\n"


@pytest.mark.slow_but_one
@pytest.mark.parametrize("words", [[], ["--help"], ["--version"], ["sample", "--help"]])
def test_help_does_not_wait_for_jax(words: list[str]) -> None:
    code = (
        "import sys; from flowsde.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'jax', 'flax', 'matplotlib', 'orbax', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    found = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert ("--method" in found.stdout) == (words == ["sample", "--help"])
    assert found.stderr == "" and "flowsde" in found.stdout


def test_choices_are_what_there_is() -> None:
    """They are listed apart from it, so that help does not wait for it."""
    for name, words in settings.CHOICES.items():
        there = {
            "method": presets.MAKERS,
            "preset": PRESETS,
            "interpolant": fs.interpolants.__dict__,
            "kernel": fs.kernels.__dict__,
            "diffusion": fs.diffusion.__dict__,
            "grid": fs.grids.__dict__,
            "potential": POTENTIALS,
            "scheme": SCHEMES,
        }.get(name)
        assert there is None or set(words) <= set(there), name
        if name in ("method", "preset", "potential", "scheme"):
            assert tuple(words) == tuple(there), name


def test_inner_steps_of_a_kernel_are_part_of_the_budget() -> None:
    def made(method: str, **given: Any) -> tuple[settings.Settings, fs.search.Search]:
        s = presets.resolve("recommended", method, {"kernel": "glass", **given})
        return s, presets.build(method, s)

    s, search = made("rbf", nfe=100, inner_steps=2, kappa=1.0)
    vp = fs.interpolants.vp()
    assert (s.steps, s.eta, s.data_variance) == (10, None, None)
    assert search.kernel == fs.kernels.glass(vp, 2, kappa=1.0)  # type: ignore[attr-defined]
    # Of one trajectory, the noise is evaluated alone.
    s, search = made("sde", steps=5, inner_steps=3)
    assert s.nfe == search.nfe == 1 + 4 * 3
    assert made("sde", nfe=13, inner_steps=3)[0].steps == 5
    assert made("sde", nfe=26, inner_steps=3, guidance=2.0)[0].steps == 5
    for given, message in (
        ({"nfe": 14, "inner_steps": 3}, r"--nfe must be 1 x \(1 \+ \(--steps - 1\) x 3\) = 13 for"),
        ({"rho": 1.5}, "--rho must lie in"),
        ({"eta": 0.5}, "--eta has no effect with kernel glass"),
    ):
        with pytest.raises(ValueError, match=message):
            made("sde", **given)
    with pytest.raises(ValueError, match="--kernel must be stochastic with one evaluation a step"):
        made("rbf", gradient_temperature=0.5)
