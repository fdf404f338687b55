"""A tiny FLUX.2-klein against diffusers' own pipeline: prompts, latents, images; and searched."""

import json
import warnings

import jax
import numpy as np
import pytest
import tiny
from outside import diffusers, torch, transformers
from PIL import Image

import flowsde as fs
from flowsde.cli import main as cli
from flowsde.cli.sources.published import PublishedSource
from flowsde.flow import initial_noise
from flowsde.models.flux2 import schedule
from flowsde_converters import convert

SIZE = (12, 20)
PROMPT, OTHER = tiny.PROMPTS
TIMES = {"use_dynamic_shifting": True, "shift": 3.0}


def made_by_diffusers(folder):
    """The pipeline of diffusers, of tiny models."""
    words = tiny.qwen3_tokenizer(folder / "words")
    two = {
        "block_out_channels": (8, 16), "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }  # fmt: skip
    vae = tiny.fill(diffusers.AutoencoderKLFlux2(latent_channels=4, norm_num_groups=4, **two), 2)
    generator = torch.Generator().manual_seed(5)
    vae.bn.running_mean[:] = torch.randn(16, generator=generator)
    vae.bn.running_var[:] = 0.3 + torch.rand(16, generator=generator)
    return diffusers.Flux2KleinPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**TIMES),
        vae=vae,
        # As many blocks as it takes to have the last state that is read.
        text_encoder=tiny.fill(
            transformers.Qwen3ForCausalLM(
                transformers.Qwen3Config(
                    vocab_size=len(words), hidden_size=8, intermediate_size=12,
                    num_hidden_layers=28, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
                )
            ),
            3,
            0.3,
        ),
        tokenizer=words,
        transformer=tiny.fill(
            diffusers.Flux2Transformer2DModel(
                in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=12,
                num_attention_heads=2, joint_attention_dim=24, axes_dims_rope=(2, 4, 4, 2),
                guidance_embeds=False,
            ),
            1,
            0.3,
        ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """(diffusers' pipeline, ours, the folder) of a base model, and of one that is distilled."""
    parts, made = None, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("base", "distilled"):
            folder = tmp_path_factory.mktemp(name)
            parts = parts or made_by_diffusers(folder).components
            theirs = diffusers.Flux2KleinPipeline(**parts, is_distilled=name == "distilled")
            theirs.set_progress_bar_config(disable=True)
            theirs.save_pretrained(folder / "source")
            tiny.converted(folder / "source", folder / "out")
            made[name] = theirs, fs.load(folder / "out"), folder
    return made


def row(cond, i):
    return jax.tree.map(lambda a: a[i], cond)


def assert_images_are(theirs, ours, flow, cond, steps, **told):
    key = jax.random.key(3)
    x = fs.sample(
        key, flow, kernel=fs.kernels.ode_euler(fs.interpolants.linear()),
        grid=ours.grid(steps, *SIZE), n=1, cond=jax.tree.map(lambda a: a[None], cond),
    )  # fmt: skip
    images = np.asarray(jax.jit(lambda decode, x: decode(x))(flow.decode, x))
    first = jax.random.fold_in(jax.random.fold_in(key, 0), 0)
    noise = tiny.rows_first(initial_noise(first, flow.shape, flow.interpolant)[None])
    packed = theirs._patchify_latents(torch.from_numpy(noise.copy()))

    def wanted(kind):
        return theirs(
            prompt=PROMPT, height=SIZE[0], width=SIZE[1], num_inference_steps=steps,
            latents=packed.clone(), max_sequence_length=64, output_type=kind, **told,
        ).images  # fmt: skip

    # Theirs are no longer normalised.
    latents = theirs.vae.bn(theirs._patchify_latents(wanted("latent"))).numpy()
    made = theirs._patchify_latents(torch.from_numpy(tiny.rows_first(x))).numpy()
    assert np.abs(latents - packed.numpy()).max() > 0.3
    np.testing.assert_allclose(made, latents, atol=1e-3 * np.abs(latents).max())
    pixels = np.clip(images / 2 + 0.5, 0, 1)
    np.testing.assert_allclose(pixels, wanted("np"), atol=1e-3)
    assert 0.02 < pixels.std() < 0.5


@pytest.mark.slow
def test_images_of_a_distilled_model_are_those_of_diffusers(places):
    theirs, ours, _ = places["distilled"]
    assert ours.distilled and ours.steps == 4
    flow, cond = ours.flow(*SIZE), row(ours.encode([PROMPT], length=64), 0)
    assert flow.evaluations == 1 and flow.shape == (6, 10, 4)
    assert_images_are(theirs, ours, flow, cond, 3, guidance_scale=1.0)


@pytest.mark.slow
def test_guided_images_are_those_of_diffusers(places):
    theirs, ours, _ = places["base"]
    assert not ours.distilled and ours.steps == 50
    cond = ours.encode([PROMPT, ""], length=64)
    flow = fs.classifier_free_guidance(ours.flow(*SIZE), 3.0, row(cond, 1))
    assert flow.evaluations == 2
    assert_images_are(theirs, ours, flow, row(cond, 0), 3, guidance_scale=3.0)


@pytest.mark.slow
def test_conditions_are_those_of_diffusers_and_the_encoder_can_go(places):
    theirs, ours, _ = places["base"]
    prompts = [PROMPT, f"{OTHER}, <|im_end|> ça\n", ""]
    found = ours.encode(prompts)
    wanted, _ = theirs.encode_prompt([*prompts])
    assert found.text.shape == (3, 512, 24)
    # States of padding too, which the transformer reads.
    scale = np.abs(wanted.detach().numpy()).max()
    np.testing.assert_allclose(found.text, wanted.detach().numpy(), atol=2e-5 * scale)
    assert "text_encoder" in ours.held
    ours.drop_text_encoders()
    assert "text_encoder" not in ours.held

    with pytest.warns(UserWarning, match="tokens, of which 32 are used"):
        short = ours.encode([PROMPT], length=32)
    wanted, _ = theirs.encode_prompt([PROMPT], max_sequence_length=32)
    np.testing.assert_allclose(short.text, wanted.detach().numpy(), atol=2e-5 * scale)
    for length in (0, 513):
        with pytest.raises(ValueError, match=f"length must .* got {length}"):
            ours.encode([PROMPT], length=length)


def sampled(folder, tmp_path, *more):
    """What the command writes of a search: the result, and the picture."""
    words = ["sample", PROMPT, "--model", str(folder / "out"), "--size", "20x12"]
    words += ["--text-tokens", "64", "--method", "bon", "--steps", "2", *more]
    (tmp_path / "bright_of_flux2.py").write_text(
        "def score(images, prompts):\n    return images.mean((1, 2, 3))\n"
    )
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.chdir(tmp_path)
        patch.syspath_prepend(tmp_path)
        cli.main([*words, "--out", str(tmp_path / "out")])
    with Image.open(tmp_path / "out" / "image.png") as image:
        assert image.size == (20, 12)
        shown = np.asarray(image, np.float32) / 127.5 - 1.0
    return json.loads((tmp_path / "out" / "result.json").read_text()), shown


@pytest.mark.slow
def test_the_command_searches_by_a_reward_outside_jax(places, tmp_path):
    folder = places["base"][2]
    result, shown = sampled(folder, tmp_path, "--nfe", "8", "--reward", "bright_of_flux2:score")
    settings = result["settings"]
    # Two evaluations a step, of two candidates.
    assert (result["nfe"], settings["guidance"], settings["negative_prompt"]) == (8, 4.0, "")
    assert (settings["size"], settings["text_tokens"], settings["grid"]) == ("20x12", 64, "model")
    # Up to the 256 levels of the file.
    assert result["reward"] == pytest.approx(float(shown.mean()), abs=0.01)


@pytest.mark.slow
def test_the_command_searches_by_a_reward_in_jax(places, tmp_path):
    folder, clip = places["distilled"][2], tiny.clip(tmp_path / "clip")
    more = ("--nfe", "4", "--reward", "clip", "--reward-model", str(clip))
    result, _ = sampled(folder, tmp_path, *more)
    assert (result["nfe"], result["verifier_calls"]) == (4, 2)
    assert result["settings"]["guidance"] == 1.0 and np.isfinite(result["reward"])


@pytest.mark.slow
def test_what_a_folder_is_unless_told_otherwise_and_what_cannot_be(places, tmp_path, capsys):
    def source(name, *more):
        folder = places[name][2]
        words = ["sample", PROMPT, "--model", str(folder / "out"), "--method", "ode", *more]
        return PublishedSource(cli._parse(words)).settings

    assert source("distilled").steps == 4 and source("base").steps == 50
    assert source("distilled", "--guidance", "1").steps == 4
    for more, says in (
        (("--guidance", "4"), "--guidance: this model is distilled and takes none, got 4"),
        (("--negative-prompt", "no"), "--negative-prompt has no effect with --guidance 1, got"),
        (("--size", "22x12"), "--size: width must be a multiple of 4, got 22"),
        (("--text-tokens", "600"), "--text-tokens must be from 1 to 512, got 600"),
    ):
        with pytest.raises((SystemExit, ValueError)) as caught:
            source("distilled", *more)
        assert says in f"{caught.value} {capsys.readouterr().err}"

    folder = places["base"][2] / "source"
    for file, change, says in (
        (
            "tokenizer/tokenizer_config.json",
            {"padding_side": "left"},
            "must be 'right', got 'left'",
        ),
        ("model_index.json", {"is_distilled": "yes"}, "is_distilled must be"),
        ("scheduler/scheduler_config.json", {"use_dynamic_shifting": False}, "shifting False, exp"),
    ):
        before = (folder / file).read_text()
        (folder / file).write_text(json.dumps(json.loads(before) | change))
        with pytest.raises(ValueError, match=says):
            convert.prepare(folder)
        (folder / file).write_text(before)


@pytest.mark.slow
def test_models_that_do_not_fit_each_other_are_named(places, tmp_path):
    parts = places["base"][0].components
    plain = diffusers.AutoencoderKL(latent_channels=4, block_out_channels=(32,))
    text = transformers.Qwen3Config(
        vocab_size=300, hidden_size=8, intermediate_size=12, num_hidden_layers=26,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    short = transformers.Qwen3ForCausalLM(text)
    for name, other, says in (
        ("vae", plain, "vae has 4 channels of latents without their mean and variance, exp"),
        ("text_encoder", short, "text_encoder has 26 blocks of 8 features, expected 27 at least"),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = diffusers.Flux2KleinPipeline(**parts | {name: other})
            made.save_pretrained(tmp_path / name)
        tiny.converted(tmp_path / name, tmp_path / f"{name}-out")
        with pytest.raises(ValueError, match=says):
            fs.load(tmp_path / f"{name}-out")


@pytest.mark.parametrize(("n", "tokens"), [(4, 4096), (50, 4096), (7, 15), (50, 4400)])
def test_times_are_those_of_diffusers(n, tokens):
    module = diffusers.pipelines.flux2.pipeline_flux2_klein
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**TIMES)
    mu = module.compute_empirical_mu(tokens, n)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / n, n), mu=mu)
    np.testing.assert_allclose(schedule.grid(n, tokens), scheduler.sigmas.numpy(), atol=2e-6)


def test_schedules_that_are_not_known_are_refused(tmp_path):
    path = tmp_path / "scheduler_config.json"
    with pytest.raises(ValueError, match=r"must hold scheduler_config.json"):
        schedule.check(tmp_path)
    path.write_text(json.dumps(TIMES))
    schedule.check(tmp_path)
    for change, says in (
        ({"_class_name": "DDIMScheduler"}, "is of a DDIMScheduler, expected FlowMatchEuler"),
        ({"use_dynamic_shifting": False}, "has use_dynamic_shifting False, expected times that"),
        ({"time_shift_type": "linear"}, "has time_shift_type 'linear', expected"),
        ({"num_train_timesteps": 500}, "has num_train_timesteps 500, expected"),
        ({"shift_terminal": 0.1}, "has shift_terminal 0.1, expected"),
    ):
        path.write_text(json.dumps(TIMES | change))
        with pytest.raises(ValueError, match=says):
            schedule.check(tmp_path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="has use_dynamic_shifting None, expected"):
        schedule.check(tmp_path)
