"""A tiny FLUX.1 against diffusers' own pipeline: prompts, latents and images."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import flowsde as fs
from flowsde.flow import initial_noise
from flowsde.pipelines import decoder, schedule

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
SIZE = (24, 32)
PROMPT = tiny.PROMPTS[0]


@pytest.fixture(scope="module", params=["schnell", "dev"])
def both(request, folders):
    """(diffusers' pipeline, ours)."""
    return folders[f"{request.param} of diffusers"], fs.load(folders[request.param] / "out")


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
            max_sequence_length=ours.length, output_type=kind,
        ).images  # fmt: skip

    latents = theirs._unpack_latents(wanted("latent"), height, width, theirs.vae_scale_factor)
    assert np.abs(latents.numpy() - noise).max() > 0.3
    np.testing.assert_allclose(tiny.rows_first(x), latents.numpy(), atol=1e-3)
    found = np.clip(images / 2 + 0.5, 0, 1)
    np.testing.assert_allclose(found, wanted("np"), atol=1e-3)
    assert 0.02 < found.std() < 0.5


def test_conditions_are_those_of_diffusers_and_encoders_can_go(both):
    theirs, ours = both
    cond = ours.encode(tiny.PROMPTS)
    states, pooled, _ = theirs.encode_prompt(
        tiny.PROMPTS, tiny.PROMPTS, max_sequence_length=ours.length
    )
    assert cond.text.shape == (2, 512 if ours.config.guidance else 256, 20)
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


def test_large_images_are_decoded_in_tiles(both, monkeypatch):
    _, ours = both
    whole = ours.flow(*SIZE)
    monkeypatch.setattr(decoder, "WHOLE", 12 * 16 - 1)
    tiled = ours.flow(*SIZE)
    assert (whole.decode.func.tiled, tiled.decode.func.tiled) == (False, True)
    x = jax.ShapeDtypeStruct((1, *tiled.shape), jnp.float32)
    assert jax.eval_shape(tiled.decode, x).shape == (1, *SIZE, 3)


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
    shutil.rmtree(out / "vae")
    shutil.copytree(out / "text_encoder", out / "vae")
    with pytest.raises(
        ValueError, match="vae holds a model of clip_text, expected one of autoencoder_kl"
    ):
        fs.load(out, verify=False)


def test_a_pipeline_of_another_class_is_refused(folders, tmp_path):
    shutil.copytree(folders["schnell"] / "out", tmp_path / "out")
    (tmp_path / "out" / "model_index.json").write_text('{"_class_name": "Other"}')
    with pytest.raises(ValueError, match="its models: .*FluxPipeline is known, got Other"):
        fs.load(tmp_path / "out", verify=False)
