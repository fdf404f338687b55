"""A tiny FLUX.1 against diffusers' own pipeline: prompts, latents and images."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from outside import torch
from safetensors.numpy import save_file

import flowsde as fs
from flowsde.cli import main as cli
from flowsde.cli.sources.published import PublishedSource
from flowsde.flow import initial_noise
from flowsde.models.autoencoder_kl import decoder
from flowsde.models.autoencoder_kl.model import AutoencoderKL
from flowsde.models.flux import schedule
from flowsde_converters import convert

SIZE = (24, 32)
PROMPT = tiny.PROMPTS[0]


@pytest.fixture(scope="module", params=["schnell", "dev"])
def both(request, folders):
    """(diffusers' pipeline, ours)."""
    return folders[f"{request.param} of diffusers"], fs.load(folders[request.param] / "out")


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 4])
def test_images_are_those_of_diffusers(both, steps):
    theirs, ours = both
    height, width = SIZE
    flow = ours.flow(height, width)
    key = jax.random.key(3)
    x = fs.sample(
        key, flow, kernel=fs.kernels.ode_euler(fs.interpolants.linear()),
        grid=ours.grid(steps, height, width), n=1, cond=ours.encode([PROMPT]),
    )  # fmt: skip
    images = np.asarray(jax.jit(lambda decode, x: decode(x))(flow.decode, x))

    first = jax.random.fold_in(jax.random.fold_in(key, 0), 0)
    noise = tiny.rows_first(initial_noise(first, flow.shape, flow.interpolant)[None])
    packed = theirs._pack_latents(torch.from_numpy(noise), 1, 16, *noise.shape[2:])

    def wanted(kind):
        return theirs(
            PROMPT, height=height, width=width, num_inference_steps=steps, latents=packed,
            output_type=kind,
        ).images  # fmt: skip

    latents = theirs._unpack_latents(wanted("latent"), height, width, theirs.vae_scale_factor)
    assert np.abs(latents.numpy() - noise).max() > 0.3
    np.testing.assert_allclose(tiny.rows_first(x), latents.numpy(), atol=1e-3)
    found = np.clip(images / 2 + 0.5, 0, 1)
    np.testing.assert_allclose(found, wanted("np"), atol=1e-3)
    assert 0.02 < found.std() < 0.5


@pytest.mark.slow
def test_conditions_are_those_of_diffusers_and_encoders_can_go(both):
    theirs, ours = both
    cond = ours.encode(tiny.PROMPTS)
    states, pooled, _ = theirs.encode_prompt(tiny.PROMPTS, tiny.PROMPTS)
    assert cond.text.shape == (2, 512, 20)
    np.testing.assert_allclose(cond.text, states.detach().numpy(), atol=1e-4)
    np.testing.assert_allclose(cond.pooled, pooled.detach().numpy(), atol=1e-4)
    assert np.abs(cond.text[0] - cond.text[1]).max() > 0.1
    if ours.config.guidance:
        assert cond.guidance.tolist() == [3.5, 3.5]
        assert ours.encode([PROMPT], guidance=2.0).guidance.tolist() == [2.0]
    else:
        assert cond.guidance is None

    assert {"text_encoder", "text_encoder_2"} <= set(ours.held)
    ours.drop_text_encoders()
    assert not {"text_encoder", "text_encoder_2"} & set(ours.held)
    np.testing.assert_array_equal(ours.encode([PROMPT]).text, cond.text[:1])


@pytest.mark.slow
def test_tokens_of_a_prompt_are_a_setting(both):
    theirs, ours = both
    cond = ours.encode([PROMPT], length=20)
    states, *_ = theirs.encode_prompt(PROMPT, PROMPT, max_sequence_length=20)
    assert cond.text.shape == (1, 20, 20)
    np.testing.assert_allclose(cond.text, states.detach().numpy(), atol=1e-4)
    for length in (1, 513):
        with pytest.raises(ValueError, match=f"length must be from 2 to 512, got {length}"):
            ours.encode([PROMPT], length=length)


@pytest.fixture(scope="module")
def freed(folders, tmp_path_factory):
    """A model without guidance as an input and with the times of dev: diffusers' and ours."""
    import diffusers

    out = tmp_path_factory.mktemp("freed") / "out"
    shutil.copytree(folders["schnell"] / "out", out)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    scheduler.save_pretrained(out / "scheduler")
    tiny.resealed(out)
    parts = folders["schnell of diffusers"].components | {"scheduler": scheduler}
    theirs = diffusers.FluxPipeline(**parts)
    theirs.set_progress_bar_config(disable=True)
    return theirs, fs.load(out), out


@pytest.mark.slow
def test_a_negative_prompt_guides_as_in_diffusers(freed):
    theirs, ours, _ = freed
    height, width = SIZE
    cond = ours.encode([PROMPT, tiny.PROMPTS[1]], length=20)
    wanted, null = (jax.tree.map(lambda a, i=i: a[i], cond) for i in (0, 1))
    flow = fs.guide(ours.flow(height, width), 3.0, null)
    assert flow.evaluations == 2
    key = jax.random.key(4)
    x = fs.sample(
        key, flow, kernel=fs.kernels.ode_euler(fs.interpolants.linear()),
        grid=ours.grid(2, height, width), n=1, cond=jax.tree.map(lambda a: a[None], wanted),
    )  # fmt: skip
    first = jax.random.fold_in(jax.random.fold_in(key, 0), 0)
    noise = tiny.rows_first(initial_noise(first, flow.shape, flow.interpolant)[None])
    latents = theirs(
        PROMPT, negative_prompt=tiny.PROMPTS[1], true_cfg_scale=3.0, height=height, width=width,
        num_inference_steps=2, max_sequence_length=20, output_type="latent",
        latents=theirs._pack_latents(torch.from_numpy(noise), 1, 16, *noise.shape[2:]),
    ).images  # fmt: skip
    latents = theirs._unpack_latents(latents, height, width, theirs.vae_scale_factor).numpy()
    np.testing.assert_allclose(tiny.rows_first(x), latents, atol=1e-3 * np.abs(latents).max())


@pytest.mark.slow
def test_the_command_leads_away_from_a_negative_prompt(freed, tmp_path):
    ours, out = freed[1:]
    words = ["sample", PROMPT, "--model", str(out), "--method", "ode", "--text-tokens", "20"]
    words += ["--negative-prompt", tiny.PROMPTS[1], "--guidance", "3", "--size", "32x24"]
    assert PublishedSource(cli._parse(words)).settings.steps == 28
    cli.main([*words, "--steps", "2", "--save-trajectory", "--out", str(tmp_path / "out")])
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    settings = result["settings"]
    # Charged whole: two evaluations a step.
    assert (result["nfe"], result["evaluations"], settings["guidance"]) == (4, 4, 3.0)
    assert (settings["negative_prompt"], settings["text_tokens"]) == (tiny.PROMPTS[1], 20)
    with np.load(tmp_path / "out" / "trajectory.npz") as file:
        times = file["time"][:, 0]
    np.testing.assert_allclose(times, ours.grid(2, *SIZE)[:2], rtol=1e-6)


def test_steps_are_those_of_the_schedule(both):
    _, ours = both
    # dev has no few steps; schnell was distilled to them.
    assert ours.steps == (28 if ours.config.guidance else 4)
    assert schedule.Schedule(dynamic=False, shift=3.0).steps == 28


def test_times_are_those_of_the_scheduler(both):
    theirs, ours = both
    for n, size in ((1, SIZE), (4, (256, 256)), (7, (64, 192))):
        mu = 0.5 + (1.15 - 0.5) * (size[0] * size[1] // 16 - 256) / (4096 - 256)
        theirs.scheduler.set_timesteps(sigmas=np.linspace(1, 1 / n, n), mu=mu)
        wanted = theirs.scheduler.sigmas.numpy()
        np.testing.assert_allclose(ours.grid(n, *size), wanted, atol=1e-6)
    assert ours.side == theirs.default_sample_size * theirs.vae_scale_factor == 256


def test_published_times_of_dev():
    found = schedule.Schedule().grid(4, 4096)
    np.testing.assert_allclose(found, [1, 0.9045, 0.7595, 0.5128, 0], atol=1e-4)


def test_sizes_and_scales_that_cannot_be_are_named(both):
    _, ours = both
    with pytest.raises(ValueError, match="height must be a multiple of 4, got 30"):
        ours.flow(30, 32)
    with pytest.raises(ValueError, match="width must be .* got 0"):
        ours.grid(4, 32, 0)
    if ours.config.guidance:
        with pytest.raises(ValueError, match="guidance must be .* got -1"):
            ours.encode([PROMPT], guidance=-1.0)
    else:
        with pytest.raises(ValueError, match="takes no guidance scale, got guidance 2"):
            ours.encode([PROMPT], guidance=2.0)


@pytest.mark.slow
def test_large_images_are_decoded_in_tiles(both, monkeypatch):
    _, ours = both
    whole = ours.flow(*SIZE)
    monkeypatch.setattr(decoder, "WHOLE", 12 * 16 - 1)
    tiled = ours.flow(*SIZE)
    assert (whole.decode.func.fn, tiled.decode.func.fn) == (
        AutoencoderKL.decode,
        AutoencoderKL.decode_tiled,
    )
    x = jax.ShapeDtypeStruct((1, *tiled.shape), jnp.float32)
    assert jax.eval_shape(tiled.decode, x).shape == (1, *SIZE, 3)


@pytest.mark.slow_but_one
@pytest.mark.parametrize(
    "part, file, says",
    [
        ("vae", "config.json", "vae has no config.json"),
        ("tokenizer", "tokenizer.json", "tokenizer must have a tokenizer.json or a vocab.json"),
        ("scheduler", "scheduler_config.json", "scheduler must hold scheduler_config.json"),
    ],
)
def test_a_part_that_is_missing_is_named(folders, part, file, says, tmp_path):
    shutil.copytree(folders["schnell"] / "out", tmp_path / "out")
    (tmp_path / "out" / part / file).unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        fs.load(tmp_path / "out", verify=False)


def test_a_part_of_another_family_or_schedule_is_refused(folders, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(folders["schnell"] / "out", out)
    path = out / "scheduler" / "scheduler_config.json"
    says = json.loads(path.read_text())
    path.write_text(json.dumps(says | {"use_karras_sigmas": True}))
    with pytest.raises(ValueError, match="use_karras_sigmas True, expected times"):
        fs.load(out, verify=False)
    solver = {"_class_name": "DPMSolverMultistepScheduler", "flow_shift": 3.0}
    for change, wanted in (
        (solver, "scheduler_config.json is of a DPMSolverMultistepScheduler, expected FlowMatchE"),
        ({"shift": None}, "shift must be positive and finite, got None"),
        ({"shift": 0}, "shift must be positive and finite, got 0"),
        ({"base_shift": "low"}, "base_shift must be finite, got 'low'"),
        ({"max_image_seq_len": 256}, "must be below max_image_seq_len, got 256 and 256"),
        ({"base_image_seq_len": 4096, "max_image_seq_len": 256}, "got 4096 and 256"),
        ({"use_dynamic_shifting": "false"}, "use_dynamic_shifting must be true or false"),
        ({"shift": 10**400}, "shift must be positive and finite"),
        ({"num_train_timesteps": 500}, "num_train_timesteps 500, expected times"),
        ({"stochastic_sampling": True}, "stochastic_sampling True, expected times"),
    ):
        path.write_text(json.dumps(says | change))
        with pytest.raises(ValueError, match=wanted):
            fs.load(out, verify=False)
    for text, wanted in (("[]", "must be an object"), ("{", "cannot be read"), ("null", "object")):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"scheduler_config.json.* {wanted}"):
            fs.load(out, verify=False)
    path.write_text(json.dumps(says))
    shutil.rmtree(out / "vae")
    shutil.copytree(out / "text_encoder", out / "vae")
    with pytest.raises(
        ValueError, match="vae holds a model of clip_text, expected one of autoencoder_kl"
    ):
        fs.load(out, verify=False)


def test_a_scheduler_that_cannot_be_read_is_refused_before_converting(folders, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(folders["schnell"] / "source", source)
    for text in ("[]", '{"shift": "3"}', '{"use_dynamic_shifting": 1}', "{"):
        (source / "scheduler" / "scheduler_config.json").write_text(text)
        with pytest.raises(ValueError, match=r"scheduler_config\.json"):
            convert.prepare(source)


def test_a_pipeline_of_another_class_is_refused(folders, tmp_path):
    shutil.copytree(folders["schnell"] / "out", tmp_path / "out")
    (tmp_path / "out" / "model_index.json").write_text('{"_class_name": "Other"}')
    with pytest.raises(ValueError, match="its models: .*FluxPipeline, WanPipeline, .*got Other"):
        fs.load(tmp_path / "out", verify=False)


@pytest.mark.slow
def test_adapters_are_in_the_transformer_when_it_is_read(folders, tmp_path):
    folder, file = folders["schnell"] / "out", tmp_path / "bias.safetensors"
    save_file({"transformer.x_embedder.diff_b": np.ones(32, np.float32)}, file)
    before = fs.load(folder).flow(*SIZE).params
    after = fs.load(folder, lora={str(file): 0.5}).flow(*SIZE).params
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    (added,) = [np.asarray(b) - np.asarray(a) for a, b in pairs if not np.array_equal(a, b)]
    np.testing.assert_allclose(added, np.full(32, 0.5), atol=1e-6)
