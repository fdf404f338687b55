"""`flowsde sample --model` on tiny converted models: results, files, and what is refused."""

import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

import flowsde as fs
from flowsde.cli import main as cli
from flowsde.cli.sources import published
from flowsde.models import clip
from flowsde.models.clip.rewards import clip_score, text_embeddings
from flowsde.models.common.tokenizers import clip_tokenizer
from flowsde.models.converted import load, parts, store
from flowsde.models.load import nbytes

PROMPT, OTHER = tiny.PROMPTS
KEYS = (
    "prompt method seed settings reward nfe evaluations backward_passes verifier_calls seconds "
    "version"
)


@pytest.fixture
def places(folders, others, tmp_path):
    """The folders by name, as strings."""
    names = {name: str(path) for name, path in others.items() if "diffusers" not in name}
    names |= {name: str(folders[name] / "out") for name in ("schnell", "dev")}
    return names | {"out": str(tmp_path / "out")}


def sample(places, text, *prompts):
    """result.json of a command, in which {name} is a folder."""
    words = [word.format(**places) for word in text.split()]
    cli.main(["sample", *prompts, *words, "--out", places["out"]])
    with open(f"{places['out']}/result.json") as file:
        result = json.load(file)
    assert set(KEYS.split()) <= set(result) and result["version"] == fs.__version__
    return result


def size(places):
    with Image.open(f"{places['out']}/image.png") as image:
        image.load()
        return image.size


def files(tmp_path):
    return {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.slow
def test_flux_without_a_reward(places, tmp_path, capsys):
    text = "--model {dev} --size 16x24 --steps 2 --method ode --guidance 2 --save-trajectory"
    result = sample(places, text, PROMPT)
    assert (result["prompt"], result["reward"], result["verifier_calls"]) == (PROMPT, None, 0)
    # Guidance is an input: it costs nothing.
    assert result["nfe"] == result["evaluations"] == 2
    settings = result["settings"]
    assert settings["guidance"] == 2.0 and settings["size"] == "16 wide, 24 high"
    assert (settings["grid"], settings["reward"], settings["model"]) == (
        "model", "none", places["dev"],
    )  # fmt: skip
    assert size(places) == (16, 24)
    assert files(tmp_path) == {"image.png", "result.json", "trajectory.npz"}
    with np.load(tmp_path / "out" / "trajectory.npz") as file:
        times = file["time"][:, 0]
    ours = fs.load(places["dev"])
    np.testing.assert_allclose(times, ours.grid(2, 24, 16)[:2], rtol=1e-6)
    # As these times were called at first; the option has the name that they have now.
    old = result | {"settings": settings | {"grid": "flux"}}
    (tmp_path / "out" / "result.json").write_text(json.dumps(old))
    sample(places, f"{text} --grid model", PROMPT)
    assert "is already complete" in capsys.readouterr().out
    # Sizes were height x width at first, which is another picture.
    old = result | {"settings": settings | {"size": "16x24"}}
    (tmp_path / "out" / "result.json").write_text(json.dumps(old))
    with pytest.raises(SystemExit):
        sample(places, text, PROMPT)
    assert "16x24" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sde", "rbf"])
def test_flux_searches_by_clip(places, method, tmp_path):
    spent = {"sde": 2, "rbf": 9}[method]
    more = {"sde": "", "rbf": "--nfe 9 --width 2 --finish mean"}[method]
    text = "--model {schnell} --size 16 --steps 2 --reward clip --reward-model {clip} --method "
    result = sample(places, f"{text} {method} {more}", PROMPT)
    assert result["nfe"] == spent and result["verifier_calls"] > 0
    assert files(tmp_path) == {"image.png", "path.png", "search.png", "result.json"}
    with Image.open(tmp_path / "out" / "image.png") as image:
        shown = np.asarray(image, np.float32)[None] / 127.5 - 1.0
    assert shown.shape == (1, 16, 16, 3)
    model = parts.read(Path(places["clip"]), clip.FAMILY)
    tokens = clip_tokenizer(Path(places["clip"]) / "tokenizer", length=16)([PROMPT]).ids
    # Up to the 256 levels of the file.

    @jax.jit
    def score(model, shown, tokens):
        return clip_score(model)(shown, text_embeddings(model, tokens))

    wanted = score(model, shown, tokens)
    assert result["reward"] == pytest.approx(float(wanted[0]), abs=0.01)


@pytest.mark.slow
def test_prompts_have_folders_and_rewards_of_their_own(places, tmp_path, monkeypatch, capsys):
    """A reward outside JAX, of a module in the folder in which the command is given."""
    (tmp_path / "judge.py").write_text(
        "import numpy as np\n"
        "seen = []\n"
        "def score(images, prompts):\n"
        "    seen.append((images.shape, images.dtype, prompts))\n"
        "    return images.mean((1, 2, 3)) + np.asarray([float(len(p)) for p in prompts])\n"
    )
    monkeypatch.chdir(tmp_path)
    text = (
        "--model {schnell} --size 16 --steps 2 --method bon --nfe 4 --width 2 --reward judge:score"
    )
    words = [word.format(**places) for word in text.split()]
    cli.main(["sample", PROMPT, OTHER, *words])
    import judge

    texts = {prompt for _, _, prompts in judge.seen for prompt in prompts}
    assert texts == {PROMPT, OTHER}
    assert {(shape[1:], str(dtype)) for shape, dtype, _ in judge.seen} == {((16, 16, 3), "float32")}
    for prompt in (PROMPT, OTHER):
        name = f"out-{prompt.replace(' ', '-')}-bon-seed0"
        result = json.loads((tmp_path / "flowsde-out" / name / "result.json").read_text())
        assert result["prompt"] == prompt and result["verifier_calls"] == 2
        assert abs(result["reward"] - len(prompt)) < 2
    capsys.readouterr()
    cli.main(["sample", PROMPT, OTHER, *words])
    assert capsys.readouterr().out.count("is already complete") == 2
    with pytest.raises(SystemExit):
        cli.main(["sample", PROMPT, *words, "--seed", "0", "--steps", "1"])
    assert "--steps 2, not 1" in capsys.readouterr().err


@pytest.mark.slow
def test_prompts_in_batches_have_rewards_of_their_own(places, tmp_path, monkeypatch):
    """A batch holds images of both, each scored with its own text."""
    (tmp_path / "lengths.py").write_text(
        "import numpy as np\n"
        "def score(images, prompts):\n"
        "    return images.mean((1, 2, 3)) + np.asarray([float(len(p)) for p in prompts])\n"
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n{OTHER}\n")
    text = "--model {schnell} --size 16 --steps 2 --method bon --nfe 4 --reward lengths:score"
    words = [word.format(**places) for word in text.split()]
    cli.main(
        ["batch", "--prompts-file", "prompts.txt", "--out", "out", "--batch-size", "4", *words]
    )
    for prompt in (PROMPT, OTHER):
        folder = tmp_path / "out" / published.slug(prompt)
        result = json.loads((folder / "result.json").read_text())
        assert result["prompt"] == prompt and result["verifier_calls"] == 2
        assert 0 < abs(result["reward"] - len(prompt)) < 2
        with Image.open(folder / "image.png") as image:
            mean = np.asarray(image, np.float32).mean() / 127.5 - 1.0
        assert result["reward"] - len(prompt) == pytest.approx(mean, abs=0.01)
    found = json.loads((tmp_path / "out" / "batch.json").read_text())
    assert found["runs"][0]["batches"] == 2 and found["occupancy"] == 1.0


@pytest.mark.slow
def test_sit_with_a_label_and_guidance(places, tmp_path):
    text = (
        "--model {sit} --vae {vae} --label 2 --guidance 3 --nfe 12 --steps 2 --method rbf "
        "--finish mean --reward aesthetic --reward-model {clip} --reward-model {head}"
    )
    result = sample(places, text)
    assert result["prompt"] == "label 2" and result["settings"]["label"] == 2
    assert result["settings"]["guidance"] == 3.0
    # Every candidate takes two evaluations.
    assert result["nfe"] == 12 and result["verifier_calls"] >= 6
    assert size(places) == (8, 8)
    assert files(tmp_path) == {"image.png", "path.png", "search.png", "result.json"}


@pytest.mark.slow
def test_sit_is_judged_by_a_prompt_of_its_own(places):
    text = (
        "--model {sit} --vae {vae} --label 1 --guidance 1 --steps 2 --method ode "
        "--reward pick --reward-model {clip}"
    )
    result = sample(places, text, PROMPT)
    assert result["prompt"] == PROMPT and result["nfe"] == 2 and result["verifier_calls"] == 1
    other = sample(places, f"{text} --overwrite", OTHER)
    assert other["reward"] != result["reward"]


@pytest.mark.slow
def test_flux_searches_by_hpsv2(places, tmp_path, capsys):
    """A search by one version; the other's reward refuses its weights."""
    places["hps"] = str(tiny.hpsv2(tmp_path / "hps"))
    text = "--model {schnell} --size 16x24 --steps 2 --method bon --nfe 4 --width 2 "
    result = sample(places, text + "--reward hpsv2.1 --reward-model {hps}", PROMPT)
    assert result["settings"]["reward"] == "hpsv2.1" and result["verifier_calls"] > 0
    # Of two vectors of length one.
    assert 0 < abs(result["reward"]) < 1
    with pytest.raises(SystemExit):
        sample(places, text + "--reward hpsv2 --reward-model {hps} --overwrite", PROMPT)
    said = capsys.readouterr().err
    assert "holds a model of hpsv2.1, expected one of hpsv2\n" in said
    with pytest.raises(SystemExit):
        sample(places, text + "--reward hpsv2.1 --reward-model {clip} --overwrite", PROMPT)
    assert "holds a model of clip, expected one of hpsv2.1" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("reward", ["imagereward", "vqascore-odds", "instructblip-odds", "qwen3vl"])
def test_flux_searches_by_a_model_that_reads_prompts(places, tmp_path, reward):
    """Two prompts, each told to the reward."""
    made = {"imagereward": tiny.image_reward, "vqascore-odds": tiny.clip_flant5}
    made |= {"instructblip-odds": tiny.instructblip, "qwen3vl": tiny.qwen3_vl}
    places["judge"] = str(made[reward](tmp_path / "judge"))
    text = "--model {schnell} --size 16 --steps 2 --method bon --nfe 4 --width 2 "
    text += f"--reward {reward} --reward-model {{judge}}"
    results = [sample(places, f"{text} --overwrite", prompt) for prompt in (PROMPT, OTHER)]
    assert all(result["verifier_calls"] > 0 for result in results)
    assert results[0]["reward"] != results[1]["reward"]


COUNTING = (
    "--model {sit} --vae {vae} --label 1 --guidance 1 --steps 2 --method bon --nfe 4 --width 2 "
    "--reward owlv2-smooth --reward-model {owl} "
)


@pytest.mark.slow
def test_sit_searches_by_counts(places, tmp_path, capsys):
    """Of the prompt, of an option, and of neither."""
    places["owl"] = str(tiny.owlv2(tmp_path / "owl"))
    result = sample(places, COUNTING, "three red cats and 2 dogs")
    assert result["settings"]["reward"] == "owlv2-smooth" and result["verifier_calls"] > 0
    assert result["reward"] < 0.0
    argv = ["sample", *COUNTING.format(**places).split(), "--out", places["out"]]
    own = ["--overwrite", "--reward-counts"]
    cli.main([*argv, *own, "three red cats, 2 dogs"])
    other = json.loads((tmp_path / "out" / "result.json").read_text())
    # What is counted is the same, whichever says it.
    assert other["reward"] == result["reward"]
    assert other["settings"]["reward_counts"] == "three red cats, 2 dogs"
    hard = [word.replace("owlv2-smooth", "owlv2").replace("bon", "svdd") for word in argv]
    for words, said in (
        (
            [*argv, "some pets", "--overwrite"],
            "'some pets' names no counts: expected a number",
        ),
        ([*argv, *own, "cats"], "--reward-counts: 'cats' names no counts"),
        ([*hard, *own, "2 cats", "--gradient-temperature", "1"], "wants a reward with a gradient"),
    ):
        with pytest.raises(SystemExit):
            cli.main(words)
        assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_sit_searches_by_questions(places, tmp_path, capsys):
    """Those of the prompt's own, of which there may be more than of another; a changed file is
    another run."""
    places["judge"], asked = str(tiny.qwen3_vl(tmp_path / "judge")), tmp_path / "questions.json"
    places["asked"] = str(asked)
    atom = {"question": "What is it?", "answers": ["a", "d"]}
    asked.write_text(json.dumps({PROMPT: ["Is it red?", atom], OTHER: ["Is it wet?"]}))
    text = "--model {sit} --vae {vae} --label 1 --guidance 1 --steps 2 --method bon --nfe 4 "
    text += "--width 2 --reward qwen3vl-atoms --reward-model {judge} --reward-questions {asked}"
    result = sample(places, text, PROMPT)
    full = {"question": "Is it red?", "answers": ["Yes"], "against": ["No"]}
    assert result["settings"]["reward_questions"] == [full, {**atom, "against": ["No"]}]
    # The file of the picture, by the same questions.
    image, out = str(Path(places["out"]) / "image.png"), tmp_path / "scores.json"
    words = ["--reward", "qwen3vl-atoms", "--reward-model", places["judge"], "--json", str(out)]
    cli.main(["score", image, *words, "--reward-questions", str(asked)])
    scored = json.loads(out.read_text())
    # Up to the 256 levels of the file.
    assert scored["images"][0]["reward"] == pytest.approx(result["reward"], rel=0.02)
    for prompt, changed, said in (
        (OTHER, {PROMPT: ["Is it red?"]}, f"has no questions about '{OTHER}', only about {PROMPT}"),
        (PROMPT, ["Is it wet?"], "used --reward-questions"),
        (PROMPT, [{"question": "Is it?", "answers": ["cats!"]}],
         "--reward-questions: answers must be words of one token each, got 'cats!'"),
    ):  # fmt: skip
        asked.write_text(json.dumps(changed))
        with pytest.raises(SystemExit):
            sample(places, text, prompt)
        assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_held_out_reward_says_what_it_would_as_the_reward(places):
    text = "--model {sit} --vae {vae} --label 1 --guidance 1 --steps 2 --method ode "
    given = sample(places, text + "--reward pick --reward-model {clip}", PROMPT)
    held = sample(places, text + "--heldout pick --heldout-model {clip} --overwrite", PROMPT)
    assert (held["reward"], held["verifier_calls"]) == (None, 0) and given["reward"] != 0.0
    # Up to the 256 levels of the file.
    assert held["heldout_rewards"] == {"pick": pytest.approx(given["reward"], rel=0.02)}
    assert set(held["heldout_versions"]) == {"pick"}


@pytest.mark.slow
def test_another_model_under_the_same_name_is_refused(places, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(places["sit"], model)
    text = f"--model {model} --vae {{vae}} --label 1 --guidance 1 --steps 2 --method ode"
    contents = sample(places, text)["settings"]["contents"]
    assert len(contents) == 2
    # As if it had been converted from other weights.
    about = store.read_config(model)
    about["params"] = {k: v | {"sha256": "0" * 64} for k, v in about["params"].items()}
    store.write_config(model, {k: v for k, v in about.items() if k not in ("files", "sha256")})
    with pytest.raises(SystemExit):
        sample(places, text)
    said = capsys.readouterr().err
    assert f"used converted models with the checksums ['{contents[0]}', " in said
    # A result of an earlier version has none.
    path = tmp_path / "out" / "result.json"
    old = json.loads(path.read_text())
    del old["settings"]["contents"]
    path.write_text(json.dumps(old))
    sample(places, text)
    assert "already complete" in capsys.readouterr().out


FLUX = "--model {dev}"
SIT = "--model {sit} --vae {vae}"
WRONG = [
    ("P --label 3", "--label has no effect without --model, got 3"),
    ("P --size 64", "--size has no effect without --model, got 64"),
    ("P --vae x", "--vae has no effect without --model"),
    ("P --reward-model x", "--reward-model has no effect without --model"),
    ("P --model /nowhere", "--model /nowhere: /nowhere does not exist, expected what"),
    ("P --model {clip}", "holds a model of clip, expected one of sit"),
    (f"{FLUX} --method ode", "PROMPT is missing"),
    (f"P P {FLUX} --method ode", "given twice"),
    (f"a red cat {FLUX} --method ode", "3 prompts of one word each; expected one in quotes, \"a "),
    (f"P {FLUX}", "--reward is missing for --method svdd"),
    (f"P {FLUX} --reward none", "--method svdd searches by a reward, got --reward none"),
    (f"P {FLUX} --reward likelihood", "--reward must be one of none, clip, pick, hpsv2, hps"),
    (f"P {FLUX} --reward clip", "--reward-model must be a converted CLIP for --reward clip"),
    (f"P {FLUX} --reward clip --reward-model {{sit}}", "model of sit, expected one of clip"),
    (f"P {FLUX} --reward aesthetic --reward-model {{clip}}", "a converted CLIP and then the head"),
    (f"P {FLUX} --method ode --reward-model {{clip}}", "must be no folder for --reward none"),
    (f"P {FLUX} --reward clip --reward-model {{clip}} --reward-counts 2",
     "--reward-counts has no effect with --reward clip, got '2'"),
    (f"P {FLUX} --reward clip --reward-model {{clip}} --reward-questions x",
     "--reward-questions has no effect with --reward clip, got x"),
    (f"P {FLUX} --reward qwen3vl-atoms --reward-model {{clip}}",
     "--reward-questions is missing for --reward qwen3vl-atoms, expected a JSON file of questions"),
    (f"P {FLUX} --reward qwen3vl-atoms --reward-model {{clip}} --reward-questions /nowhere",
     "--reward-questions: [Errno 2] No such file or directory: '/nowhere'"),
    (f"P {FLUX} --method ode --heldout qwen3vl-atoms --heldout-model {{clip}}",
     "--heldout cannot be qwen3vl-atoms, which asks what --reward-questions says"),
    (f"P {FLUX} --reward nosuch:thing",
     "--reward nosuch:thing cannot be imported: ModuleNotFoundError: No module named 'nosuch'; "
     "expected nosuch.py in this folder"),
    (f"P {FLUX} --reward os:listdir", "--reward os:listdir: reward is called as reward(images"),
    (f"P {FLUX} --reward os:sep", "--reward os:sep must be a function, got '/'"),
    (f"P {FLUX} --reward operator:add --gradient-temperature 1", "--gradient-temperature wants"),
    (f"P {FLUX} --method ode --target-reward 1", "--target-reward has no effect with"),
    (f"P {FLUX} --method ode --label 2", "--label has no effect with a FLUX.1, got 2"),
    (f"P {FLUX} --method ode --vae {{vae}}", "--vae has no effect with a FLUX.1"),
    (f"P {FLUX} --method ode --size large", "--size must be WIDTHxHEIGHT"),
    (f"P {FLUX} --method ode --size 32x30", "--size: height must be a multiple of 4, got 30"),
    (f"P {FLUX} --method ode --size 0x32", "--size: width must be"),
    (f"P {FLUX} --method ode --guidance -1", "--guidance: guidance must be"),
    (f"P {FLUX} --method ode --guidance nan", "--guidance must be a finite number"),
    ("P --model {schnell} --method ode --guidance 2", "--guidance: this model takes no guidance"),
    ("P --model {schnell} --method ode --guidance 2", "with --negative-prompt it guides, at two"),
    ("P --model {schnell} --method ode --negative-prompt x", "a --guidance other than 1, got none"),
    (
        "P --model {schnell} --method ode --negative-prompt x --guidance 1",
        "--negative-prompt wants a --guidance other than 1, got 1",
    ),
    (f"P {FLUX} --method ode --negative-prompt x", "takes its guidance scale as an input, got 'x'"),
    (f"P {FLUX} --method ode --text-tokens 513", "--text-tokens must be from 2 to 512, got 513"),
    (f"P {FLUX} --method ode --text-tokens 0", "--text-tokens must be"),
    ("P --negative-prompt x", "--negative-prompt has no effect without --model, got x"),
    (f"{SIT} --method ode --label 1 --text-tokens 9", "--text-tokens has no effect with a SiT"),
    (f"P {FLUX} --method ode --chains 2", "--chains has no effect with method ode"),
    (f"P {FLUX} --method ode --preset best", "--preset must be one of"),
    (f"P {FLUX} --reward operator:add --grid model", "--grid model wants --interpolant linear"),
    (f"{SIT} --method ode --label 1 --grid model", "--grid model has no effect with a SiT: its ti"),
    ("one red circle --grid model", "--grid must be one of uniform"),
    (f"P {FLUX} --method mcts", "--method"),
    (f"{SIT} --method ode", "--label is missing, expected 0 to 2"),
    (f"{SIT} --method ode --label 3", "--label must be from 0 to 2, got 3"),
    (f"{SIT} --method ode --label 1 --size 8", "--size has no effect with a SiT"),
    (f"P {SIT} --method ode --label 1", "PROMPT has no effect on a SiT without a"),
    (f"{SIT} --method ode --label 1 --guidance -2", "--guidance must be at least 0, got -2"),
    (f"{SIT} --label 1 --reward clip --reward-model {{clip}}", "PROMPT is missing"),
    (f"{SIT} --method ode --label 1 --heldout clip --heldout-model {{clip}}", "PROMPT is missing"),
    (f"P {FLUX} --method ode --heldout rss", "--heldout: rss scores pictures of the embedded mod"),
    (f"P {FLUX} --reward clip --reward-model {{clip}} --heldout clip --heldout-model {{clip}}",
     "--heldout: clip is the reward that is searched by, which sees every candidate"),
    ("--model {sit} --method ode --label 1", "--vae is missing, expected the folder"),
    ("--model {sit} --vae {clip} --method ode --label 1", "model of clip, expected one of autoenc"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("text, says", WRONG)
def test_wrong_values_are_refused_before_weights_are_read(
    places, text, says, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(load, "load_module", lambda *_: pytest.fail("weights were read"))
    words = ["a red cube" if word == "P" else word.format(**places) for word in text.split()]
    with pytest.raises(SystemExit) as stop:
        cli.main(["sample", *words, "--out", places["out"]])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert said.startswith("flowsde sample: ") and says in said
    assert not list(tmp_path.iterdir())


def test_names_of_folders():
    assert published.slug("a red cube") == "a-red-cube"
    # What is left out of a name is in its digest.
    odd = [published.slug(p) for p in ("A red cube", "a red cube!", "日本", "!", "x" * 200)]
    assert len({*odd, "a-red-cube"}) == 6
    assert all(re.fullmatch(r"[\w-]{1,67}", name) for name in odd)


@pytest.mark.slow
def test_times_are_the_models_own_only_along_its_own_path(places):
    def settings(text):
        words = [word.format(**places) for word in text.split()]
        command = cli._parse(["sample", PROMPT, "--model", places["dev"], *words])
        return published.PublishedSource(command).settings

    host = "--reward operator:add"
    assert settings("--method ode").steps == 28
    found = settings(f"--method rbf {host}")
    assert (found.grid, found.interpolant, found.data_variance) == ("uniform", "vp", 0.0)
    assert settings(f"--method rbf --interpolant linear {host}").grid == "model"
    assert settings("--method ode --grid cosine").grid == "cosine"
    assert settings(f"--method ode --preset paper --grid model {host}").grid == "model"
    paper = settings(f"--method rbf --preset paper {host}")
    assert (paper.grid, paper.steps) == ("quadratic", 10)


@pytest.mark.slow
def test_text_encoders_are_gone_when_the_transformer_comes(places):
    words = ["sample", PROMPT, "--model", places["schnell"], "--method", "ode", "--size", "16"]
    source = published.PublishedSource(cli._parse(words))
    pipeline = source._model._pipeline
    assert pipeline.held == ()
    assert len(source.load([PROMPT]).tasks) == 1
    assert set(pipeline.held) == {"transformer", "vae"}


@pytest.mark.slow
def test_weights_that_the_device_cannot_hold_are_refused_before_they_are_read(places, monkeypatch):
    held = nbytes(Path(places["dev"]))
    for name in ("transformer", "vae"):
        about = json.loads((Path(places["dev"]) / name / "config.json").read_text())
        sizes = [math.prod(one["shape"]) for one in about["params"].values()]
        assert held[name] == 4 * sum(sizes)  # float32
    command = cli._parse(["sample", PROMPT, "--model", places["dev"], "--method", "ode"])
    source = published.PublishedSource(command)
    small = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 9e4}, device_kind="a small GPU")
    monkeypatch.setattr(jax, "local_devices", lambda: [small])
    with pytest.raises(ValueError, match="weights of its transformer take .* of a small GPU, of a"):
        source.load([PROMPT])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--model {dev}", ["bon takes 6 steps, a plain picture of this model 28: see --steps 28"]),
        (
            "--model {schnell}",
            ["bon takes 6 steps, a plain picture of this model 4: see --preset d"],
        ),
        ("--model {dev} --steps 6", []),
        ("--model {schnell} --preset distilled", []),
    ],
)
def test_steps_of_a_search_that_are_not_the_models_are_said(places, words, said):
    given = ["sample", PROMPT, "--method", "bon", "--reward", "clip", "--reward-model", "{clip}"]
    command = cli._parse([word.format(**places) for word in [*given, *words.split()]])
    notes = published.PublishedSource(command)._notes
    assert len(notes) == len(said) and all(map(str.startswith, notes, said))
