"""A tiny Z-Image against diffusers' own pipeline: prompts, latents and images; and searched."""

import json
import warnings

import jax
import numpy as np
import pytest
import tiny
from outside import diffusers, torch
from PIL import Image

import flowsde as fs
from flowsde.cli import main as cli
from flowsde.cli.sources.published import PublishedSource
from flowsde.flow import initial_noise
from flowsde.models.common.tokenizers import qwen3_tokenizer
from flowsde.models.zimage import schedule
from flowsde_converters import convert

SIZE = (12, 20)
PROMPT, OTHER = tiny.PROMPTS


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(diffusers' pipeline, ours, the folder), with the times of Z-Image."""
    folder = tmp_path_factory.mktemp("zimage")
    theirs = tiny.zimage_pipeline(folder, turbo=False)
    tiny.converted(folder / "source", folder / "out")
    return theirs, fs.load(folder / "out"), folder


@pytest.fixture(scope="module")
def turbo(base, tmp_path_factory):
    """As `base`, with the times of Z-Image-Turbo."""
    folder = tmp_path_factory.mktemp("turbo")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs = diffusers.ZImagePipeline(**base[0].components | {"scheduler": scheduler})
    theirs.set_progress_bar_config(disable=True)
    theirs.save_pretrained(folder / "source")
    tiny.converted(folder / "source", folder / "out")
    return theirs, fs.load(folder / "out"), folder


def row(cond, i):
    return jax.tree.map(lambda a: a[i], cond)


def assert_images_are(theirs, ours, flow, cond, steps, **told):
    key = jax.random.key(3)
    x = fs.sample(
        key, flow, kernel=fs.kernels.ode_euler(fs.interpolants.linear()), grid=ours.grid(steps),
        n=1, cond=jax.tree.map(lambda a: a[None], cond),
    )  # fmt: skip
    images = np.asarray(jax.jit(lambda decode, x: decode(x))(flow.decode, x))
    first = jax.random.fold_in(jax.random.fold_in(key, 0), 0)
    noise = tiny.rows_first(initial_noise(first, flow.shape, flow.interpolant)[None])

    def wanted(kind):
        return theirs(
            PROMPT, height=SIZE[0], width=SIZE[1], num_inference_steps=steps,
            latents=torch.from_numpy(noise.copy()), output_type=kind, **told,
        ).images  # fmt: skip

    latents = wanted("latent").numpy()
    assert np.abs(latents - noise).max() > 0.3
    np.testing.assert_allclose(tiny.rows_first(x), latents, atol=1e-3 * np.abs(latents).max())
    pixels = np.clip(images / 2 + 0.5, 0, 1)
    np.testing.assert_allclose(pixels, wanted("np"), atol=1e-3)
    assert 0.02 < pixels.std() < 0.5


@pytest.mark.slow
def test_images_of_turbo_are_those_of_diffusers(turbo):
    theirs, ours, _ = turbo
    assert ours.distilled and ours.steps == 8
    flow, cond = ours.flow(*SIZE), row(ours.encode([PROMPT], length=64), 0)
    assert flow.evaluations == 1
    assert_images_are(theirs, ours, flow, cond, 3, guidance_scale=0.0)


@pytest.mark.slow
def test_guided_images_are_those_of_diffusers(base):
    """Whose scale is one less."""
    theirs, ours, _ = base
    assert not ours.distilled and ours.steps == 50
    cond = ours.encode([PROMPT, OTHER], length=64)
    flow = fs.classifier_free_guidance(ours.flow(*SIZE), 3.0, row(cond, 1))
    assert flow.evaluations == 2
    told = {"guidance_scale": 2.0, "negative_prompt": OTHER}
    assert_images_are(theirs, ours, flow, row(cond, 0), 3, **told)


@pytest.mark.slow
def test_conditions_are_those_of_diffusers_and_the_encoder_can_go(base):
    theirs, ours, _ = base
    prompts = [PROMPT, f"{OTHER}, <|im_end|> ça\n", ""]
    found = ours.encode(prompts)
    states, _ = theirs.encode_prompt([*prompts], do_classifier_free_guidance=False)
    assert found.text.shape == (3, 512, 16)
    assert found.tokens.tolist() == [len(a) for a in states]
    for text, wanted in zip(found.text, states, strict=True):
        np.testing.assert_allclose(text[: len(wanted)], wanted.detach().numpy(), atol=1e-4)
    assert "text_encoder" in ours.held
    ours.drop_text_encoders()
    assert "text_encoder" not in ours.held

    # What is too long loses its end, the rest of the chat included.
    with pytest.warns(UserWarning, match=f"{len(states[0])} tokens, of which 32 are used"):
        short = ours.encode([PROMPT], length=32)
    (wanted,), _ = theirs.encode_prompt([PROMPT], do_classifier_free_guidance=False,
                                        max_sequence_length=32)  # fmt: skip
    np.testing.assert_allclose(short.text[0], wanted.detach().numpy(), atol=1e-4)
    for length in (0, 33, 544):
        with pytest.raises(ValueError, match=f"length must .* got {length}"):
            ours.encode([PROMPT], length=length)


@pytest.mark.slow
def test_the_command_searches(base, tmp_path):
    words = ["sample", PROMPT, "--model", str(base[2] / "out"), "--size", "20x12"]
    words += ["--text-tokens", "64", "--method", "bon", "--nfe", "8", "--steps", "2"]
    (tmp_path / "bright_of_zimage.py").write_text(
        "def score(images, prompts):\n    return images.mean((1, 2, 3))\n"
    )
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.chdir(tmp_path)
        patch.syspath_prepend(tmp_path)
        cli.main([*words, "--reward", "bright_of_zimage:score", "--out", str(tmp_path / "out")])
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    settings = result["settings"]
    # Two evaluations a step, of two candidates.
    assert (result["nfe"], settings["guidance"], settings["negative_prompt"]) == (8, 5.0, "")
    assert (settings["size"], settings["text_tokens"], settings["grid"]) == ("20x12", 64, "model")
    with Image.open(tmp_path / "out" / "image.png") as image:
        assert image.size == (20, 12)
        shown = np.asarray(image, np.float32) / 127.5 - 1.0
    # Up to the 256 levels of the file.
    assert result["reward"] == pytest.approx(float(shown.mean()), abs=0.01)


@pytest.mark.slow
def test_what_a_folder_is_unless_told_otherwise_and_what_cannot_be(base, turbo, tmp_path, capsys):
    def source(folder, *more):
        words = ["sample", PROMPT, "--model", str(folder / "out"), "--method", "ode", *more]
        return PublishedSource(cli._parse(words)).settings

    assert source(turbo[2]).steps == 8 and source(base[2]).steps == 50
    for more, says in (
        (
            ("--negative-prompt", "no"),
            "--negative-prompt has no effect with --guidance 1, got 'no'",
        ),
        (("--size", "22x12"), "--size: width must be a multiple of 4, got 22"),
        (("--text-tokens", "500"), "--text-tokens must be a multiple of 32, to 512, got 500"),
    ):
        with pytest.raises((SystemExit, ValueError)) as caught:
            source(turbo[2], *more)
        assert says in f"{caught.value} {capsys.readouterr().err}"

    index = turbo[2] / "source" / "model_index.json"
    says = json.loads(index.read_text()) | {"_class_name": "ZImageImg2ImgPipeline"}
    index.write_text(json.dumps(says))
    with pytest.raises(ValueError, match="is a ZImageImg2ImgPipeline, expected a ZImagePipeline;"):
        convert.prepare(turbo[2] / "source")


def test_chats_are_those_of_transformers(tmp_path):
    theirs = tiny.qwen3_tokenizer(tmp_path)
    ours = qwen3_tokenizer(tmp_path, length=64, vocab=len(theirs))
    prompts = [PROMPT, "<|im_end|>\n ça  va", ""]
    chats = [
        theirs.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True,
            enable_thinking=True,
        )
        for prompt in prompts
    ]  # fmt: skip
    wanted = theirs(chats, padding="max_length", max_length=64, truncation=True)
    found = ours(prompts)
    assert found.ids.tolist() == wanted["input_ids"]
    assert found.mask.astype(int).tolist() == wanted["attention_mask"]


def test_tokenizers_that_are_not_qwens_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must have a tokenizer.json, got \[\]"):
        qwen3_tokenizer(tmp_path, length=64, vocab=9)
    words = tiny.qwen3_tokenizer(tmp_path / "qwen")
    with pytest.raises(ValueError, match=f"ids go to {len(words) - 1}, expected at most 8"):
        qwen3_tokenizer(tmp_path / "qwen", length=64, vocab=9)
    tiny.write_t5_tokenizer(tmp_path / "t5")
    with pytest.raises(ValueError, match=r"special token '<\|im_start\|>' is not in"):
        qwen3_tokenizer(tmp_path / "t5", length=64, vocab=99)


@pytest.mark.parametrize(("n", "shift"), [(1, 3.0), (8, 3.0), (50, 6.0)])
def test_times_are_those_of_the_scheduler(n, shift, tmp_path):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.save_pretrained(tmp_path)
    assert schedule.read(tmp_path) == shift
    scheduler.set_timesteps(sigmas=torch.linspace(1.0, 1 / n, n).tolist(), mu=1.0)
    found = fs.grids.shifted(n, shift)
    np.testing.assert_allclose(found, scheduler.sigmas.numpy(), atol=2e-6)


def test_schedules_that_are_not_known_are_refused(tmp_path):
    path = tmp_path / "scheduler_config.json"
    with pytest.raises(ValueError, match=r"must hold scheduler_config.json"):
        schedule.read(tmp_path)
    for change, says in (
        ({"_class_name": "DDIMScheduler"}, "is of a DDIMScheduler, expected FlowMatchEuler"),
        ({"use_dynamic_shifting": True}, "has use_dynamic_shifting True, expected times that are"),
        ({"num_train_timesteps": 500}, "has num_train_timesteps 500, expected"),
        ({"shift": "3"}, "shift must be positive and finite, got '3'"),
        ({"shift": 0}, "shift must be positive and finite, got 0"),
    ):
        path.write_text(json.dumps({"shift": 3.0} | change))
        with pytest.raises(ValueError, match=says):
            schedule.read(tmp_path)
