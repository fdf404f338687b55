"""A tiny SD3.5 against diffusers' own pipeline: prompts, latents and images; and searched."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from outside import diffusers, torch
from PIL import Image

import flowsde as fs
from flowsde.cli import main as cli
from flowsde.cli.sources import published
from flowsde.flow import initial_noise
from flowsde.models.family import abstract
from flowsde.models.sd3 import schedule
from flowsde.models.sd3.guidance import TIMES, skip_layer_guidance
from flowsde.models.sd3.model import FAMILY, SD3Cond, SD3Config

SIZE = (16, 24)
PROMPT, OTHER = tiny.PROMPTS


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(diffusers' pipeline, ours, the folder)."""
    folder = tmp_path_factory.mktemp("sd3")
    theirs = tiny.sd3_pipeline(folder)
    tiny.converted(folder / "source", folder / "out")
    return theirs, fs.load(folder / "out"), folder


@pytest.mark.slow
def test_images_are_those_of_diffusers(both):
    theirs, ours, _ = both
    cond = ours.encode([PROMPT, OTHER], length=20)
    wanted, null = (jax.tree.map(lambda a, i=i: a[i], cond) for i in (0, 1))
    flow = fs.classifier_free_guidance(ours.flow(*SIZE), 3.0, null)
    assert flow.evaluations == 2
    key = jax.random.key(3)
    x = fs.sample(
        key, flow, kernel=fs.kernels.ode_euler(fs.interpolants.linear()), grid=ours.grid(3), n=1,
        cond=jax.tree.map(lambda a: a[None], wanted),
    )  # fmt: skip
    images = np.asarray(jax.jit(lambda decode, x: decode(x))(flow.decode, x))

    first = jax.random.fold_in(jax.random.fold_in(key, 0), 0)
    noise = tiny.rows_first(initial_noise(first, flow.shape, flow.interpolant)[None])

    def of_diffusers(output):
        return theirs(
            PROMPT, negative_prompt=OTHER, height=SIZE[0], width=SIZE[1], num_inference_steps=3,
            guidance_scale=3.0, max_sequence_length=20, latents=torch.from_numpy(noise.copy()),
            output_type=output,
        ).images  # fmt: skip

    latents = of_diffusers("latent").numpy()
    assert np.abs(latents - noise).max() > 0.3
    np.testing.assert_allclose(tiny.rows_first(x), latents, atol=1e-3)
    found = np.clip(images / 2 + 0.5, 0, 1)
    np.testing.assert_allclose(found, of_diffusers("np"), atol=1e-3)
    assert 0.02 < found.std() < 0.5


@pytest.mark.slow
def test_without_t5_images_are_those_of_diffusers(both, capsys):
    """Of a source that is called turbo, too: what its conversion says of it is used."""
    *_, folder = both
    source, out = folder / "tiny-Turbo", folder / "small"
    shutil.copytree(folder / "source", source)
    for part in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(source / part)
    with pytest.raises(SystemExit):
        cli.main(["convert", str(source), str(out)])
    said = capsys.readouterr().err
    assert "names the part text_encoder_3, which is missing; to do without it, write" in said
    index = json.loads((source / "model_index.json").read_text())
    index |= {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    (source / "model_index.json").write_text(json.dumps(index))
    cli.main(["convert", str(source), str(out)])
    said = capsys.readouterr().out
    assert "note    without T5 (text_encoder_3): its states are zeros, as they are in" in said
    assert "note    taken for distilled: 4 steps without guidance by default" in said
    cli.main(["convert", str(source), str(out)])
    assert "is already complete" in capsys.readouterr().out

    nothing = {"text_encoder_3": None, "tokenizer_3": None}
    theirs = diffusers.StableDiffusion3Pipeline.from_pretrained(source, **nothing)
    theirs.set_progress_bar_config(disable=True)
    made = source_of(["sample", PROMPT, "--model", str(out), "--method", "ode", "--size", "24x16"])
    assert (made.settings.steps, made.settings.guidance, made.evaluations) == (4, 1.0, 1)
    made.load([PROMPT])
    assert capsys.readouterr().out.startswith("note    converted without T5, whose states are ze")
    found = sampled(made)
    wanted = theirs(
        PROMPT, height=SIZE[0], width=SIZE[1], num_inference_steps=4, guidance_scale=1.0,
        latents=torch.from_numpy(noise_of(made)), output_type="np",
    ).images  # fmt: skip
    np.testing.assert_allclose(np.clip(found / 2 + 0.5, 0, 1), wanted, atol=1e-3)
    assert 0.02 < wanted.std() < 0.5


@pytest.mark.slow
def test_the_command_leaves_out_layers_as_diffusers_does(both):
    theirs, _, folder = both
    words = ["sample", PROMPT, "--model", str(folder / "out"), "--method", "ode", "--size", "24x16"]
    words += ["--steps", "6", "--guidance", "3", "--skip-layers", "1,2"]
    made = source_of([*words, "--skip-scale", "1.5", "--skip-start", "0.2", "--skip-stop", "0.7"])
    # Three evaluations a step, at all steps.
    assert (made.evaluations, made.settings.nfe) == (3, 18)
    named = {k: v for k, v in made.named.items() if k.startswith("skip")}
    own = {"skip_scale": 1.5, "skip_start": 0.2, "skip_stop": 0.7}
    assert named == {"skip_layers": "1,2"} | own

    def of_diffusers(**settings):
        return theirs(
            PROMPT, height=SIZE[0], width=SIZE[1], num_inference_steps=6, guidance_scale=3.0,
            latents=torch.from_numpy(noise_of(made)), output_type="np", **settings,
        ).images  # fmt: skip

    given = {f"skip_layer_guidance_{k.removeprefix('skip_')}": v for k, v in own.items()}
    wanted = of_diffusers(skip_guidance_layers=[1, 2], **given)
    assert np.abs(wanted - of_diffusers()).max() > 0.02
    np.testing.assert_allclose(np.clip(sampled(made) / 2 + 0.5, 0, 1), wanted, atol=1e-3)


def source_of(words):
    return published.PublishedSource(cli._parse(words))


def noise_of(made):
    first = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 0), 0)
    shape = (SIZE[0] // 2, SIZE[1] // 2, 4)
    return tiny.rows_first(initial_noise(first, shape, fs.interpolants.linear())[None]).copy()


def sampled(made):
    """An image of the model's own trajectory."""
    loaded = made.load([PROMPT])
    cond = jax.tree.map(lambda a: a[None], loaded.tasks[0].cond)
    grid = made._model.grid(made.settings.steps)
    kernel = fs.kernels.ode_euler(fs.interpolants.linear())
    x = fs.sample(jax.random.key(3), loaded.flow, kernel=kernel, grid=grid, n=1, cond=cond)
    return np.asarray(jax.jit(lambda decode, x: decode(x))(loaded.flow.decode, x))


@pytest.mark.slow
def test_conditions_are_those_of_diffusers_and_encoders_can_go(both):
    theirs, ours, _ = both
    prompts = [PROMPT, "two dogs"]
    cond = ours.encode(prompts)
    states, _, pooled, _ = theirs.encode_prompt(
        prompts, None, None, do_classifier_free_guidance=False
    )
    assert cond.text.shape == (2, 16 + 256, 40) and cond.pooled.shape == (2, 8 + 6)
    np.testing.assert_allclose(cond.text, states.detach().numpy(), atol=1e-4)
    np.testing.assert_allclose(cond.pooled, pooled.detach().numpy(), atol=1e-4)
    # CLIP's states are filled up; T5's are not.
    assert not np.asarray(cond.text[:, :16, 36:]).any() and np.asarray(cond.text[:, 16:]).all()
    assert np.abs(cond.text[0] - cond.text[1]).max() > 0.1
    encoders = {"text_encoder", "text_encoder_2", "text_encoder_3"}
    assert encoders <= set(ours.held)
    ours.drop_text_encoders()
    assert not encoders & set(ours.held)
    for length in (1, 513):
        with pytest.raises(ValueError, match=f"length must be from 2 to 512, got {length}"):
            ours.encode([PROMPT], length=length)


@pytest.mark.slow
def test_the_command_searches_at_the_true_cost(both, tmp_path):
    *_, folder = both
    (tmp_path / "bright_of_sd3.py").write_text(
        "import numpy as np\n"
        "def bright(images, prompts):\n"
        "    return np.asarray([float(image.mean()) for image in images], np.float32)\n"
    )
    words = ["sample", PROMPT, "--model", str(folder / "out"), "--method", "bon", "--nfe", "8"]
    words += ["--steps", "2", "--size", "24x16", "--text-tokens", "20", "--negative-prompt", OTHER]
    words += ["--guidance", "3", "--reward", "bright_of_sd3:bright", "--out", str(tmp_path / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        cli.main(words)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    settings = result["settings"]
    # Two trajectories of two steps, each of two evaluations.
    assert (result["nfe"], result["verifier_calls"]) == (8, 2)
    assert (settings["guidance"], settings["size"], settings["grid"]) == (3.0, "24x16", "model")
    assert (settings["negative_prompt"], settings["text_tokens"]) == (OTHER, 20)
    with Image.open(tmp_path / "out" / "image.png") as image:
        assert image.size == (24, 16)
        shown = np.asarray(image, np.float32) / 127.5 - 1.0
    assert result["reward"] == pytest.approx(float(shown.mean()), abs=0.01)


@pytest.mark.slow
def test_what_cannot_be_is_named(both, tmp_path, capsys):
    _, ours, folder = both
    for given, says in (
        ((18, 32), "height must be a multiple of 4, to 48, got 18"),
        ((16, 52), "width must be a multiple of 4, to 48, got 52"),
    ):
        with pytest.raises(ValueError, match=says):
            ours.flow(*given)
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)
    shutil.rmtree(out / "text_encoder_2")
    shutil.copytree(out / "text_encoder", out / "text_encoder_2")
    with pytest.raises(ValueError, match="takes 14 projected features of both CLIPs, got 16"):
        fs.load(out, verify=False)
    words = ["sample", PROMPT, "--model", str(folder / "out"), "--method", "ode", "--size", "16"]
    for more, says in (
        (["--size", "18x16"], "--size: width must be a multiple of 4, to 48, got 18"),
        (
            ["--guidance", "1", "--negative-prompt", "x"],
            "--negative-prompt has no effect with --gu",
        ),
        (["--text-tokens", "513"], "--text-tokens must be from 2 to 512, got 513"),
        (["--label", "3"], "--label has no effect with a Stable Diffusion 3, got 3"),
        (["--skip-scale", "2"], "--skip-scale has no effect without --skip-layers, got 2"),
        (["--skip-layers", "1,9"], "--skip-layers must lie in 0 to 3, got 9"),
        (["--skip-layers", "1-2"], "--skip-layers must be numbers of blocks with commas"),
        (["--skip-layers", "1", "--guidance", "1"], "--skip-layers wants a --guidance other than"),
        (["--skip-layers", "1", "--skip-stop", "0"], "of which the first is the smaller, got 0.01"),
        (["--skip-layers", "1", "--steps", "4"], "--skip-layers has no effect with 4 steps"),
    ):
        with pytest.raises(SystemExit):
            cli.main([*words, *more, "--out", str(tmp_path / "sampled")])
        assert says in capsys.readouterr().err


@pytest.mark.parametrize(("n", "shift"), [(1, 3.0), (4, 3.0), (28, 3.0), (7, 1.0)])
def test_times_are_those_of_the_scheduler(n, shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(n)
    np.testing.assert_allclose(schedule.grid(n, shift), scheduler.sigmas.numpy(), atol=1e-6)


def test_published_times():
    np.testing.assert_allclose(schedule.grid(4), [1, 0.8577, 0.6022, 0.0089, 0], atol=1e-4)


@pytest.mark.parametrize("steps", [10, 28, 40, 50])
def test_layers_are_left_out_at_the_steps_that_are_published(steps):
    """Later than a hundredth of the steps, before a fifth."""
    times = schedule.grid(steps)[:-1]
    found = [i for i, t in enumerate(times) if TIMES[0] < t < TIMES[1]]
    assert found == [i for i in range(steps) if 0.01 * steps < i < 0.2 * steps]


@pytest.fixture(scope="module")
def small():
    """A model of shapes alone."""
    config = SD3Config(channels=2, heads=1, head=8, depth=2, mlp=8, text=4, pooled=3, side=2)
    return fs.Flow.from_nnx(abstract(FAMILY, config), (4, 4, 2))


@pytest.mark.slow
def test_guidance_by_layers_that_cannot_be_is_named(small):
    null = SD3Cond(jnp.zeros((3, 4)), jnp.zeros(3))
    for settings, says in (
        ({"layers": (0, 2)}, "layers must .* got 2"),
        ({"layers": (1, 1)}, r"each once, got \(1, 1\)"),
        ({"layers": ()}, r"each once, got \(\)"),
        ({"layers": (1,), "skip_scale": -1.0}, "skip_scale must be .* got -1"),
        ({"layers": (1,), "times": (0.5, 0.2)}, r"the first is the smaller, got \(0.5, 0.2\)"),
    ):
        with pytest.raises(ValueError, match=says):
            skip_layer_guidance(small, 2.0, null, **settings)
    other = fs.Flow.from_callable(lambda params, x, t, cond: x, jnp.zeros(()), (2,))
    with pytest.raises(ValueError, match="flow must be of a Stable Diffusion 3, got"):
        skip_layer_guidance(other, 2.0, null)


def test_schedules_that_are_not_known_are_refused(tmp_path):
    path = tmp_path / "scheduler_config.json"
    with pytest.raises(ValueError, match=r"must hold scheduler_config.json"):
        schedule.read(tmp_path)
    path.write_text('{"shift": 3.0}')
    assert schedule.read(tmp_path) == 3.0
    for change, says in (
        ({"_class_name": "DDIMScheduler"}, "is of a DDIMScheduler, expected FlowMatchEuler"),
        ({"use_dynamic_shifting": True}, "has use_dynamic_shifting True, expected times"),
        ({"num_train_timesteps": 500}, "has num_train_timesteps 500"),
        ({"shift": "3"}, "shift must be positive and finite, got '3'"),
        ({"shift": 0}, "shift must be positive and finite, got 0"),
    ):
        path.write_text(json.dumps({"shift": 3.0} | change))
        with pytest.raises(ValueError, match=says):
            schedule.read(tmp_path)
