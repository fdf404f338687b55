"""`flowsde sample --model` of videos: options, files and rewards."""

import dataclasses
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image
from refusing import refused

import flowsde as fs
from flowsde._version import __version__
from flowsde.cli import main as cli
from flowsde.cli import video_files
from flowsde.cli.sources import published, source_of
from flowsde.cli.tune import _as_searched, _sample
from flowsde.models import autoencoder_wan, clip, registry, t5, wan
from flowsde.models.clip.rewards import clip_score, image_embeddings, text_embeddings
from flowsde.models.common.tokenizers import clip_tokenizer
from flowsde.models.converted import load, parts, store
from flowsde.models.family import Sampling
from flowsde.tuning.settings import Setting

PROMPT, OTHER = tiny.PROMPTS
LEVELS = np.asarray([0.3, -0.5, 0.1], np.float32)
"""Of the latent frames that `Toy` makes; its videos have [0.3, -0.5, -0.5, 0.1, 0.1]."""
SHAPE = (3, 4, 6, 3)
FRAMES = [0.3, -0.5, -0.5, 0.1, 0.1]


def velocity(levels, x, t, cond):
    """Of the flow whose data is one video."""
    return (x - levels[None, :, None, None, None]) / jnp.maximum(t, 1e-6)[:, *[None] * 4]


def decode(x0):
    """The first latent frame is one frame, and each other is two."""
    return jnp.concatenate([x0[:, :1], jnp.repeat(x0[:, 1:], 2, axis=1)], axis=1)


class Toy:
    """Videos of five frames; the model is known."""

    unprompted, guidance, steps, frames = None, 1.0, {"ode": 2}, 5

    def __init__(self, folder, *, guidance, fps):
        self.fps = fps
        self.named = {"fps": fps}

    def grid(self, n):
        return None

    def encode(self, prompts):
        return [np.float32(len(prompt)) for prompt in prompts]

    def flow(self):
        return fs.Flow.from_callable(velocity, jnp.asarray(LEVELS), SHAPE, decode=decode)


def without_weights(folder):
    """A converted Wan 2.1 of the published sizes, of which the weights alone are not there."""
    nothing = {"files": {}, "dtypes": {}, "ignored": [], "config": None}
    vocab = tiny.write_t5_tokenizer(folder / "tokenizer")
    configs = {
        "transformer": (wan.FAMILY, wan.FAMILY.config()),
        "vae": (autoencoder_wan.FAMILY, autoencoder_wan.FAMILY.config()),
        "text_encoder": (t5.UMT5, t5.UMT5.config(vocab=vocab)),
    }
    for name, (family, config) in configs.items():
        (folder / name).mkdir()
        about = {"family": family.name, "layout": "diffusers", "dtype": "float32", "params": {},
                 "config": dataclasses.asdict(config), "source": nothing}  # fmt: skip
        store.write_config(folder / name, {"format": store.FORMAT, "version": __version__, **about})
    (folder / "scheduler").mkdir()
    scheduler = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / store.INDEX).write_text(json.dumps({"_class_name": "WanPipeline"}))
    about = {"models": sorted(configs), "copied": ["scheduler", "tokenizer"]}
    store.write_config(folder, {"format": store.PIPELINE, "version": __version__, **about})
    return folder


@pytest.fixture(scope="module")
def published_sizes(tmp_path_factory):
    return without_weights(tmp_path_factory.mktemp("wan"))


@pytest.fixture
def toy(published_sizes, monkeypatch, tmp_path):
    """The folder of a model that is `Toy`, in a folder of its own with a module of rewards."""
    monkeypatch.setattr(registry, "_registered", [])
    registry.register(Sampling(of="WanPipeline", title="a toy", make=Toy))
    monkeypatch.setattr(video_files, "kind", lambda: "webp")
    monkeypatch.chdir(tmp_path)
    return published_sizes


def source(folder, text):
    """Of a command, in which nothing is loaded."""
    words = ["sample", PROMPT, "--model", str(folder), *text.split()]
    return published.PublishedSource(cli._parse(words))


def sample(folder, text):
    """result.json of a command, and the names of the files."""
    cli.main(["sample", PROMPT, "--model", str(folder), "--out", "out", *text.split()])
    names = {path.name for path in Path("out").iterdir()}
    return json.loads(Path("out/result.json").read_text()), names


def level(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), np.float32).mean() / 127.5 - 1.0


@pytest.mark.slow
def test_a_trajectory_is_a_video_its_first_frame_and_a_sheet(toy, capsys):
    result, names = sample(toy, "--method ode --fps 4 --reward none")
    assert names == {"video.webp", "image.png", "frames.png", "result.json"}
    assert result["video"] == "video.webp" and result["reward"] is None
    assert level("out/image.png") == pytest.approx(0.3, abs=0.01)
    with Image.open("out/video.webp") as video:
        # What does not change is one frame for as long.
        assert video.n_frames == 3 and video.size == (6, 4)
    said = capsys.readouterr().out
    assert said.count("videos are animated WebP: for MP4, pip install 'flowsde[video]'") == 1
    assert "video   video.webp, 5 frames in 1.25 s" in said
    with pytest.raises(SystemExit):
        sample(toy, "--method ode --fps 5 --reward none")
    assert "used --fps 4.0, not 5.0" in capsys.readouterr().err


REWARDS = """
import numpy as np
def videos(videos, prompts, fps):
    assert videos.shape[1:] == (5, 4, 6, 3) and videos.dtype == np.float32
    return videos.mean((1, 2, 3, 4)) + fps * len(prompts[0])
def brightness(images, prompts):
    assert images.shape[1:] == (4, 6, 3)
    return images.mean((1, 2, 3)) + len(prompts[0])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reward", "expected", "named"),
    [
        ("videos", np.mean(FRAMES) + 4 * len(PROMPT), (None, None)),
        # The first, the middle and the last.
        ("brightness --reward-frames 3", np.mean(LEVELS) + len(PROMPT), (3, "mean")),
        ("brightness --over-frames minimum", -0.5 + len(PROMPT), (4, "minimum")),
    ],
)
def test_a_function_of_videos_or_of_their_frames(toy, reward, expected, named, capsys):
    Path("judges_of_videos.py").write_text(REWARDS)
    text = "--method bon --nfe 4 --steps 2 --fps 4 --reward judges_of_videos:"
    result, names = sample(toy, text + reward)
    assert result["reward"] == pytest.approx(expected, abs=1e-4)
    assert (result["nfe"], result["verifier_calls"]) == (4, 2)
    settings = result["settings"]
    assert (settings.get("reward_frames"), settings.get("over_frames")) == named
    assert {"video.webp", "path.png", "search.png", "frames.png"} <= names
    if named != (None, None):
        with pytest.raises(SystemExit):
            sample(toy, text + reward.split()[0])
        assert f"--reward-frames {named[0]}, not None" in capsys.readouterr().err


def test_previews_are_first_frames(toy):
    """Decoded from the first latent frame, whatever the others are."""
    made = source(toy, "--method ode --reward none --fps 4")
    flow = made.load([PROMPT]).flow
    x0 = np.full((2, *SHAPE), np.nan, np.float32)
    x0[:, 0] = np.asarray([0.2, -0.6], np.float32)[:, None, None, None]
    found = made.thumbnails(flow)(x0)
    assert found.shape == (2, 4, 6, 3)
    np.testing.assert_allclose(found.mean((1, 2, 3)), [0.2, -0.6], atol=0.005)


@pytest.mark.slow
def test_a_batch_has_a_video_for_each_prompt(toy):
    Path("prompts.txt").write_text(f"{PROMPT}\n{OTHER}\n")
    words = "--method ode --reward none --fps 4 --prompts-file prompts.txt --out batch"
    cli.main(["batch", "--model", str(toy), *words.split()])
    for prompt in (PROMPT, OTHER):
        folder = Path("batch") / published.slug(prompt)
        assert json.loads((folder / "result.json").read_text())["video"] == "video.webp"
        assert {path.name for path in folder.iterdir()} == {
            "image.png",
            "video.webp",
            "result.json",
        }
    assert Path("batch/sheet.png").exists()


HOST = "--reward operator:add"


@pytest.mark.slow
def test_what_wan_is_unless_told_otherwise(published_sizes):
    made = source(published_sizes, f"{HOST} --method bon --nfe 200")
    named = {k: v for k, v in made.named.items() if k not in ("model", "contents")}
    assert named == {"size": "832x480", "frames": 81, "fps": 16.0, "negative_prompt": ""}
    assert (made.settings.guidance, made.evaluations) == (5.0, 2)
    assert made.settings.grid == "model" and made.video in ("mp4", "webp")
    assert source(published_sizes, "--method ode").settings.steps == 50
    # A trajectory of guided steps takes two evaluations each.
    assert source(published_sizes, "--method ode").settings.nfe == 100

    made = source(published_sizes, f"{HOST} --method bon --guidance 1 --frames 1 --size 480x832")
    assert made.evaluations == 1 and made.video is None
    assert made.named["negative_prompt"] is None and "fps" not in made.named
    assert made._model._pipeline.latents(832, 480, 1) == (
        1, *[side // 8 for side in (made._model._height, made._model._width)]
    )  # fmt: skip


@pytest.mark.slow
def test_tuning_names_the_times_that_the_model_brings_along(published_sizes):
    words = ["tune", PROMPT, "--model", str(published_sizes), "--reward", "operator:add"]
    command = cli._parse([*words, "--nfe", "100"])
    for path, grid in (("linear", "model"), ("vp", "uniform")):
        moves = {"interpolant": path, "kernel": "ddim", "eta": 1.0, "data_variance": 0.0}
        setting = Setting.of("bon", **moves, grid="uniform", steps=4)
        assert _as_searched(command, setting)["grid"] == grid
        assert (
            source_of(_sample(command, _as_searched(command, setting), 100)).settings.grid == grid
        )


WRONG = [
    ("--frames 16", "--frames must be 1 and a multiple of 4, got 16: expected 13 or 17"),
    ("--frames 0", "--frames must be an integer of at least 1, got 0"),
    ("--frames 99999999999", "--frames must be an integer of at most 10000"),
    ("--size 832x", "--size must be WIDTHxHEIGHT or one number of pixels, of five digits at most"),
    ("--size 830x480", "--size: width must be a multiple of 16, got 830"),
    ("--fps 0", "--fps must be from 0.01 to 240, got 0"),
    ("--fps 1e-4", "--fps must be from 0.01 to 240, got 0.0001"),
    ("--frames 1 --fps 8", "--fps has no effect with --frames 1, got 8"),
    ("--guidance -1", "--guidance must be a finite number of at least 0, got -1"),
    ("--guidance 1 --negative-prompt x", "--negative-prompt has no effect with --guidance 1"),
    ("--text-tokens 256", "--text-tokens has no effect with a Wan 2.1, got 256"),
    ("--label 3", "--label has no effect with a Wan 2.1, got 3"),
    ("--reward-frames 99 --reward clip", "--reward-model must be a converted CLIP for"),
    (f"{HOST} --method bon --reward-frames 99", "--reward-frames must be an integer of at most 81"),
    (f"{HOST} --method bon --over-frames max", "--over-frames must be one of mean, minimum, got"),
    ("--reward consistency --method bon", "--reward-model must be a converted CLIP for"),
    ("--frames 1 --reward consistency --method bon", "consistency is a reward of videos, and"),
    ("--over-frames mean", "--over-frames has no effect with --reward none, got mean"),
    ("--heldout operator:add", "--heldout: scores pictures, and"),
    ("--frames 1 --reward-frames 2", "--reward-frames has no effect with --frames 1, got 2"),
    ("--reward weighted_of_videos:both --method bon --over-frames mean", "is of several rewards"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "says"), WRONG)
def test_wrong_values_are_refused_before_weights_are_read(
    published_sizes, text, says, monkeypatch, capsys, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(load, "load_module", lambda *_: pytest.fail("weights were read"))
    if "weighted" in text:
        Path("weighted_of_videos.py").write_text(
            "import flowsde as fs\n"
            "one = fs.rewards.host(lambda images, prompts: images.mean((1, 2, 3)), 'one')\n"
            "two = fs.rewards.host(lambda images, prompts: images.min((1, 2, 3)), 'two')\n"
            "both = fs.rewards.weighted([one, two], [1.0, 1.0])\n"
        )
    if "--method" not in text:
        text += " --method ode"
    words = ["sample", PROMPT, "--model", str(published_sizes), *text.split(), "--out", "out"]
    assert says in refused(capsys, *words)
    assert not Path("out").exists()


def test_a_picture_to_begin_from_is_refused(published_sizes, capsys, tmp_path):
    path = tmp_path / "x.png"
    Image.new("RGB", (8, 8)).save(path)
    words = ["sample", PROMPT, "--model", str(published_sizes), "--image", str(path)]
    said = refused(capsys, *words, "--method", "ode", "--out", str(tmp_path / "out"))
    assert f"--image has no effect with a Wan 2.1, got {path}" in said


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("wan")
    tiny.wan_pipeline(folder)
    return tiny.converted(folder / "source", folder / "out")


@pytest.mark.slow
def test_wan_searched_by_clip_over_frames(small, others, monkeypatch, tmp_path):
    """The reward is that of the answer's latents, decoded and scored by hand."""
    monkeypatch.chdir(tmp_path)
    folder = others["clip"]
    result, names = sample(
        small,
        "--frames 5 --size 32x16 --method bon --nfe 12 --steps 2 --reward clip --reward-frames 3 "
        f"--over-frames minimum --keep 2 --save-trajectory --reward-model {folder}",
    )
    kind = video_files.kind()
    pictures = {f"{name}.png" for name in ("image", "image-2", "sheet", "path", "search", "frames")}
    videos = [f"video.{kind}", f"video-2.{kind}"]
    assert names == {*videos, *pictures, "result.json", "trajectory.npz"}
    assert [one["video"] for one in result["kept"]] == videos
    # Three samples of two guided steps.
    assert (result["nfe"], result["evaluations"], result["verifier_calls"]) == (12, 12, 3)
    with np.load("out/trajectory.npz") as file:
        rewards, x0 = file["particle_reward"], file["particle_x0"]
    assert x0.shape[1:] == (3, 8, 16, 4) and np.nanmax(rewards) == result["reward"]
    pipeline = fs.load(small)
    flow = pipeline.flow(16, 32, 5)
    video = jax.jit(lambda decode, x: decode(x))(flow.decode, x0[np.nanargmax(rewards)][None])[0]
    assert video.shape == (5, 16, 32, 3)
    model = parts.read(folder, clip.FAMILY)
    tokens = clip_tokenizer(folder / "tokenizer", length=16)([PROMPT] * 3).ids

    @jax.jit
    def score(model, shown, tokens):
        return clip_score(model)(shown, text_embeddings(model, tokens))

    wanted = np.min(score(model, video[jnp.asarray([0, 2, 4])], tokens))
    assert result["reward"] == pytest.approx(float(wanted), abs=1e-4)
    with Image.open("out/image.png") as image:
        shown = np.asarray(image, np.float32) / 127.5 - 1.0
    np.testing.assert_allclose(shown, video[0], atol=0.005)


@pytest.mark.slow
def test_consistency_is_that_of_the_frames(toy, others, capsys):
    """By hand, of the frames that the answer has."""
    folder = others["clip"]
    text = f"--method bon --nfe 2 --steps 2 --fps 4 --reward consistency --reward-model {folder}"
    for wrong, says in (
        ("--over-frames mean", "--over-frames has no effect with --reward consistency, got mean"),
        ("--reward-frames 1", "--reward-frames must be 2 at least for --reward consistency"),
    ):
        words = f"{text} {wrong} --out out".split()
        assert says in refused(capsys, "sample", PROMPT, "--model", str(toy), *words)
    both = f"{text} --reward clip --reward-model {folder} --combine weighted --reward-weights 1 1"
    for more, count, by in (
        ("", 4, "mean"),
        ("--over-frames minimum --reward-frames 2", 2, "minimum"),
    ):
        named = source(toy, f"{both} {more}").named
        assert named["reward_frames"] == {"consistency": 2 if more else 5, "clip": count}
        assert named["over_frames"] == {"consistency": None, "clip": by}
    result, _ = sample(toy, f"{text} --reward-frames 3")
    assert result["settings"]["reward_frames"] == 3 and "over_frames" not in result["settings"]
    vision = parts.read(folder, clip.FAMILY).vision
    frames = np.broadcast_to(LEVELS[:, None, None, None], SHAPE)
    unit = np.asarray(jax.jit(image_embeddings)(vision, jnp.asarray(frames)))
    wanted = np.mean([a @ b for a, b in itertools.pairwise(unit)])
    assert result["reward"] == pytest.approx(float(wanted), abs=1e-4) and wanted < 0.9999


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 3])
def test_a_search_that_was_interrupted_writes_the_same_files(small, monkeypatch, tmp_path, after):
    """Videos, first frames, the sheet of frames, previews, arrays and the result."""
    monkeypatch.chdir(tmp_path)
    Path("judge_of_means.py").write_text(
        "def mean(videos, prompts):\n    return videos.mean((1, 2, 3, 4))\n"
    )
    text = (
        "--frames 5 --size 32x16 --method rbf --nfe 16 --steps 3 --guidance 1 --keep 2 --chains 1"
    )
    text += " --reward judge_of_means:mean --save-trajectory"
    words = ["sample", PROMPT, "--model", str(small), *text.split(), "--out"]
    cli.main([*words, "whole"])
    with monkeypatch.context() as patch:
        rounds = fs.iterate

        def stopped(*args, **given):
            for done, result in enumerate(rounds(*args, **given)):
                if done == after:
                    raise KeyboardInterrupt
                yield result

        patch.setattr(fs, "iterate", stopped)
        with pytest.raises(SystemExit):
            cli.main([*words, "out"])
    assert {path.name for path in Path("out").iterdir()} == {".flowsde"}
    cli.main([*words, "out"])
    names = {path.name for path in Path("whole").iterdir()}
    kind = video_files.kind()
    assert {f"video.{kind}", f"video-2.{kind}", "frames.png", "path.png", "search.png"} <= names
    assert names == {path.name for path in Path("out").iterdir()}
    # H.264 of the same frames need not be the same bytes; frames.png has them all.
    for name in names - {"result.json", "trajectory.npz", "video.mp4", "video-2.mp4"}:
        assert Path("out", name).read_bytes() == Path("whole", name).read_bytes(), name
    own, wanted = (json.loads(Path(each, "result.json").read_text()) for each in ("out", "whole"))
    assert own | {"seconds": None} == wanted | {"seconds": None}
    with np.load("out/trajectory.npz") as file, np.load("whole/trajectory.npz") as other:
        assert set(file) == set(other)
        for name in set(file) - {"seconds"}:
            np.testing.assert_array_equal(file[name], other[name], name)


@pytest.mark.slow
def test_wan_of_one_frame_is_a_picture(small, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = "--frames 1 --size 32x16 --method ode --steps 2 --guidance 1"
    result, names = sample(small, text)
    assert names == {"image.png", "result.json"} and "video" not in result
    assert (result["nfe"], result["evaluations"]) == (2, 2)
    with Image.open("out/image.png") as image:
        assert image.size == (32, 16)


@pytest.mark.slow
def test_the_text_encoder_is_gone_when_the_transformer_comes(small):
    made = source(small, "--frames 5 --size 32x16 --method ode")
    pipeline = made._model._pipeline
    assert pipeline.held == ()
    loaded = made.load([PROMPT])
    assert set(pipeline.held) == {"transformer", "vae"}
    assert loaded.flow.evaluations == 2 and loaded.flow.shape == (3, 8, 16, 4)
    assert loaded.chunk_size is not None and loaded.chunk_size >= 1
