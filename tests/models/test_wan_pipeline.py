"""A tiny Wan against diffusers' own pipeline: prompts, latents and frames; and searched."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from outside import diffusers, torch

import flowsde as fs
from flowsde.flow import initial_noise
from flowsde.models.video_rewards import over_frames
from flowsde.models.wan import schedule
from flowsde_converters import convert

SIZE = (16, 32)
PROMPT, OTHER = tiny.PROMPTS


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(diffusers' pipeline, ours, the folder)."""
    folder = tmp_path_factory.mktemp("wan")
    theirs = tiny.wan_pipeline(folder)
    tiny.converted(folder / "source", folder / "out")
    return theirs, fs.load(folder / "out"), folder


@dataclasses.dataclass(frozen=True)
class Truncated:
    """A model that is given whole thousandths, as by the published pipeline."""

    velocity_fn: object

    def __call__(self, params, x, t, cond):
        # Its first time is lowered by a millionth.
        return self.velocity_fn(params, x, jnp.floor(1000 * (t - 1e-6)) / 1000, cond)


@pytest.mark.slow
@pytest.mark.parametrize("frames", [1, 5])
def test_frames_are_those_of_diffusers(both, frames):
    theirs, ours, _ = both
    flow = ours.flow(*SIZE, frames)
    flow = dataclasses.replace(flow, velocity_fn=Truncated(flow.velocity_fn))
    text, null = ours.encode([PROMPT, OTHER])
    flow = fs.classifier_free_guidance(flow, 3.0, null)
    assert flow.evaluations == 2
    key = jax.random.key(3)
    x = fs.sample(
        key, flow, kernel=fs.kernels.ode_euler(fs.interpolants.linear()), grid=ours.grid(3), n=1,
        cond=text[None],
    )  # fmt: skip
    videos = np.asarray(jax.jit(lambda decode, x: decode(x))(flow.decode, x))

    first = jax.random.fold_in(jax.random.fold_in(key, 0), 0)
    noise = initial_noise(first, flow.shape, flow.interpolant)[None]
    noise = np.array(np.asarray(noise).transpose(0, 4, 1, 2, 3))

    def wanted(kind):
        return theirs(
            PROMPT, negative_prompt=OTHER, height=SIZE[0], width=SIZE[1], num_frames=frames,
            num_inference_steps=3, guidance_scale=3.0, latents=torch.from_numpy(noise.copy()),
            output_type=kind,
        ).frames  # fmt: skip

    latents = wanted("latent").numpy()
    assert np.abs(latents - noise).max() > 0.3
    found = np.asarray(x).transpose(0, 4, 1, 2, 3)
    np.testing.assert_allclose(found, latents, atol=1e-3 * np.abs(latents).max())
    pixels = np.clip(videos / 2 + 0.5, 0, 1)
    if frames == 1:
        assert pixels.shape == (1, *SIZE, 3)
        pixels = pixels[:, None]
    np.testing.assert_allclose(pixels, wanted("np"), atol=1e-3)
    assert 0.02 < pixels.std() < 0.5


@pytest.mark.slow
def test_conditions_are_those_of_diffusers_and_the_encoder_can_go(both):
    theirs, ours, _ = both
    prompts = [f"  {PROMPT}\n &amp;amp; so", ""]
    found = ours.encode(prompts)
    states, _ = theirs.encode_prompt(prompts, do_classifier_free_guidance=False,
                                     max_sequence_length=512)  # fmt: skip
    assert found.shape == (2, 512, 20)
    np.testing.assert_allclose(found, states.detach().numpy(), atol=1e-4)
    # Of nothing there is the end alone.
    assert (np.abs(found).max(-1) > 0).sum(-1).tolist()[1] == 1
    assert "text_encoder" in ours.held
    ours.drop_text_encoders()
    assert "text_encoder" not in ours.held


def brightness(pictures, cond):
    return pictures.mean((1, 2, 3)) + 0.0 * cond


@pytest.mark.slow
def test_a_search_by_a_reward_over_frames(both):
    _, ours, _ = both
    flow, text = ours.flow(*SIZE, 3), ours.encode([PROMPT])[0]
    search = fs.search.bon(
        nfe=4, kernel=fs.kernels.ode_euler(fs.interpolants.linear()), grid=ours.grid(2)
    )
    told = jnp.float32(1.0)
    found = []
    for reward in (brightness, fs.rewards.host(brightness)):
        reward = over_frames(reward, frames=2, by="min")
        found.append(fs.run(jax.random.key(0), flow, search, reward, cond=text, reward_cond=told))
    result = found[0]
    assert result.image.shape == (3, *SIZE, 3) and result.nfe == 4
    ends = np.asarray(result.image)[[0, 2]]
    np.testing.assert_allclose(result.reward, ends.mean((1, 2, 3)).min(), atol=1e-5)
    np.testing.assert_allclose(found[1].reward, result.reward, atol=1e-5)


@pytest.mark.parametrize("by", ["mean", "min"])
def test_rewards_over_frames_by_hand(by):
    videos = np.zeros((2, 5, 1, 1, 3), np.float32)
    videos[:, 0], videos[:, 2], videos[:, 4] = 1.0, 2.0, 6.0
    cond = np.asarray([10.0, 20.0], np.float32)

    def picture(pictures, told):
        return pictures[:, 0, 0, 0] + told

    wanted = cond + (3.0 if by == "mean" else 1.0)
    device = over_frames(picture, frames=3, by=by)
    np.testing.assert_allclose(device(jnp.asarray(videos), jnp.asarray(cond)), wanted)
    host = over_frames(fs.rewards.host(picture, cost=2.0, minibatch=7), frames=3, by=by)
    np.testing.assert_allclose(host(videos, cond), wanted)
    assert (host.cost, host.minibatch, host.name) == (6.0, 2, f"picture ({by} of 3 frames)")

    def words(pictures, told):
        return [float(p[0, 0, 0]) + len(word) for p, word in zip(pictures, told, strict=True)]

    texts = over_frames(fs.rewards.host(words), frames=3, by=by)
    np.testing.assert_allclose(texts(videos, ["a" * 10, "b" * 20]), wanted)


def test_frames_and_their_mean_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="frames must be .* got 0"):
        over_frames(brightness, frames=0)
    with pytest.raises(ValueError, match="by must be 'mean' or 'min', got 'most'"):
        over_frames(brightness, by="most")
    both_of = fs.rewards.weighted([brightness, lambda images, cond: images[:, 0, 0, 0]], [1.0, 1.0])
    with pytest.raises(TypeError, match="reward is one of several, weighted.* take over_frames of"):
        over_frames(both_of)


@pytest.mark.parametrize(("n", "shift"), [(1, 3.0), (4, 3.0), (50, 5.0)])
def test_times_are_those_of_the_scheduler(n, shift):
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    scheduler.set_timesteps(n)
    found = schedule.grid(n, shift)
    assert found[0] == 1 and found[-1] == 0
    np.testing.assert_allclose(found, scheduler.sigmas.numpy(), atol=2e-6)


def test_published_times():
    np.testing.assert_allclose(schedule.grid(4, 3.0), [1, 0.9001, 0.7504, 0.501, 0], atol=1e-4)


def test_schedules_that_are_not_known_are_refused(tmp_path):
    path = tmp_path / "scheduler_config.json"
    with pytest.raises(ValueError, match=r"must hold scheduler_config.json"):
        schedule.read(tmp_path)
    good = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    path.write_text(json.dumps(good))
    assert schedule.read(tmp_path) == 3.0
    for change, says in (
        ({"_class_name": "DDIMScheduler"}, "is of a DDIMScheduler, expected UniPCMultistep"),
        ({"use_flow_sigmas": False}, "has use_flow_sigmas False, expected the times of a flow"),
        ({"prediction_type": "epsilon"}, "has prediction_type 'epsilon'"),
        ({"use_karras_sigmas": True}, "has use_karras_sigmas True"),
        ({"flow_shift": "3"}, "flow_shift must be positive and finite, got '3'"),
        ({"flow_shift": 0}, "flow_shift must be positive and finite, got 0"),
    ):
        path.write_text(json.dumps(good | change))
        with pytest.raises(ValueError, match=says):
            schedule.read(tmp_path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="has prediction_type 'epsilon', use_flow_sigmas False"):
        schedule.read(tmp_path)


@pytest.mark.slow
def test_what_cannot_be_is_named(both, tmp_path):
    _, ours, folder = both
    for given, says in (
        ((7, 32, 1), "height must be a multiple of 4, got 7"),
        ((16, 13, 1), "width must be a multiple of 4, got 13"),
        ((16, 32, 4), "frames must be 1 and a multiple of 2, got 4: expected 3 or 5"),
        ((16, 32, 0), "frames must be .* got 0"),
    ):
        with pytest.raises(ValueError, match=says):
            ours.flow(*given)
    assert ours.latents(None, None, None) == (41, 240, 416)
    index = json.loads((folder / "source" / "model_index.json").read_text())
    (folder / "source" / "model_index.json").write_text(json.dumps(index | {"boundary_ratio": 0.8}))
    with pytest.raises(ValueError, match="has boundary_ratio 0.8, as a Wan 2.2 has"):
        convert.prepare(folder / "source")
    other = index | {"_class_name": "WanImageToVideoPipeline"}
    (folder / "source" / "model_index.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="is a WanImageToVideoPipeline, expected a WanPipeline;"):
        convert.prepare(folder / "source")
