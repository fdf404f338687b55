"""AutoencoderWan against the public class of `diffusers`, and its own rules."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from outside import diffusers, torch
from torch_parity import apply, error, gradient_error, port, randomised

from flowsde.models.autoencoder_wan.model import FAMILY, AutoencoderWanConfig
from flowsde.models.autoencoder_wan.past import Past, through_time
from flowsde.models.common.layers import Numerics, logical_axes
from flowsde.models.common.paths import parameters
from flowsde.models.family import abstract
from flowsde_converters import autoencoder_wan

MEAN, STD = (0.3, -0.2, 0.1, 0.5), (1.5, 0.7, 2.0, 1.1)
SETTINGS = {
    "base_dim": 4, "z_dim": 4, "dim_mult": [1, 2, 2], "num_res_blocks": 1,
    "temperal_downsample": [False, True], "latents_mean": list(MEAN), "latents_std": list(STD),
}  # fmt: skip


@pytest.fixture(scope="module")
def pair():
    module = randomised(diffusers.AutoencoderKLWan(**SETTINGS), std=0.2)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            # As `randomised` has scales of norms, which are called so here.
            parameter += float(name.endswith("gamma"))
    return module, *port(autoencoder_wan.FAMILY, module, dict(module.config))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def as_torch(a):
    return torch.tensor(a.transpose(0, 4, 1, 2, 3))


def as_ours(a):
    return a.detach().numpy().transpose(0, 2, 3, 4, 1)


def z_of(latents):
    return as_torch(latents * np.asarray(STD, np.float32) + np.asarray(MEAN, np.float32))


def decode(model, x):
    return model.decode(x)


def streamed(model, x):
    return model.decode(x, streamed=True)


@pytest.mark.slow
def test_decoded_latents_are_those_of_diffusers(pair):
    module, model, _ = pair
    # Small, so that not much is clipped.
    latents = 0.1 * normal(2, 4, 2, 3, 4)
    wanted = as_ours(module.decode(z_of(latents)).sample)
    assert wanted.shape == (2, 7, 8, 12, 3) and (np.abs(wanted) < 1).mean() > 0.5
    whole = apply(model, decode, latents)
    assert error(whole, wanted) < 1e-4
    # A scan over latent frames, and the first frame alone.
    assert error(apply(model, streamed, latents), np.asarray(whole)) < 1e-5
    assert error(apply(model, decode, latents[:, :1]), np.asarray(whole[:, :1])) < 1e-5
    assert error(whole[:, :1], as_ours(module.decode(z_of(latents[:, :1])).sample)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("frames", [1, 5, 9])
def test_latents_are_those_of_diffusers(pair, frames):
    module, model, _ = pair
    videos = normal(1, frames, 4, 8, 3)
    wanted = as_ours(module.encode(as_torch(videos)).latent_dist.mean)
    wanted = (wanted - np.asarray(MEAN, np.float32)) / np.asarray(STD, np.float32)
    made = apply(model, lambda model, x: model.encode(x), videos)
    assert error(made, wanted) < 1e-4
    if frames == 9:
        again = apply(model, lambda model, x: model.encode(x, streamed=True), videos)
        assert error(again, np.asarray(made)) < 1e-5


@pytest.mark.slow
def test_parts_one_by_one(pair):
    module, model, _ = pair
    x = normal(2, 1, 4, 6, 8)
    ours = apply(model, lambda model, x: model.decoder.middle(x, Past()), x)
    assert error(ours, as_ours(module.decoder.mid_block(as_torch(x)))) < 2e-5
    x = normal(2, 1, 4, 6, 4)
    ours = apply(model, lambda model, x: model.decoder.levels[1](x, Past()), x)
    assert error(ours, as_ours(module.decoder.up_blocks[1](as_torch(x)))) < 2e-5
    ours = apply(model, lambda model, x: model.encoder.levels[0](x, Past()), x)
    theirs = as_torch(x)
    for block in module.encoder.down_blocks[:2]:
        theirs = block(theirs)
    assert error(ours, as_ours(theirs)) < 2e-5


@pytest.mark.slow
def test_gradients(pair):
    module, model, found = pair
    latents, weights = 0.1 * normal(1, 2, 2, 2, 4), normal(1, 3, 8, 8, 3, seed=1)
    videos, ends = normal(1, 5, 4, 4, 3, seed=2), normal(1, 3, 1, 1, 4, seed=3)
    std, mean = (np.asarray(a, np.float32) for a in (STD, MEAN))
    theirs = module.encode(as_torch(videos)).latent_dist.mean.permute(0, 2, 3, 4, 1)
    theirs = (theirs - torch.tensor(mean)) / torch.tensor(std)
    scalar = (theirs * torch.tensor(ends)).sum()
    scalar = scalar + (module.decode(z_of(latents)).sample * as_torch(weights)).sum()

    def loss(model):
        made = (model.decode(jnp.asarray(latents), streamed=True) * weights).sum()
        return made + (model.encode(jnp.asarray(videos)) * ends).sum()

    assert gradient_error(model, found, module, loss, scalar) < 1e-3


@pytest.mark.slow
def test_pieces_give_what_the_whole_does():
    """Sums of three frames, and then of every second: by hand."""
    conv = nnx.Conv(1, 1, (3, 1, 1), padding="VALID", rngs=nnx.Rngs(0))
    conv.kernel.set_value(jnp.ones((3, 1, 1, 1, 1)))
    x = jnp.arange(1.0, 8.0).reshape(1, 7, 1, 1, 1)

    def network(x, past):
        return past.through(conv, x)

    wanted = [1, 3, 6, 9, 12, 15, 18]
    for piece, in_pieces in ((1, False), (3, True)):
        assert through_time(network, x, piece, in_pieces).ravel().tolist() == wanted


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [False, True])
def test_pictures_added_up_are_a_convolution_of_three_dimensions(streamed):
    causal = ((2, 0), (1, 1), (1, 1))
    conv = nnx.Conv(2, 3, (3, 3, 3), padding=causal, rngs=nnx.Rngs(0))
    conv.bias.set_value(jnp.asarray([1.0, -2.0, 3.0]))
    x = jnp.asarray(normal(2, 5, 4, 6, 2))
    made = through_time(lambda x, past: past.through(conv, x), x, 2, streamed)
    assert error(made, np.asarray(conv(x))) < 1e-6


@pytest.mark.slow
def test_the_first_frame_takes_one_slice_of_a_kernel():
    conv = nnx.Conv(1, 1, (3, 3, 3), rngs=nnx.Rngs(0))
    frame, two = jnp.zeros((1, 1, 4, 4, 1)), [jnp.zeros((1, 2, 4, 4, 1))]
    for past, slices in ((Past(), 1), (Past(two), 3)):
        lowered = jax.jit(lambda x, past=past: past.through(conv, x)).lower(frame)
        assert lowered.as_text().count("stablehlo.convolution") == slices


@pytest.mark.slow
def test_slices_are_rounded_once():
    conv = nnx.Conv(1, 1, (3, 1, 1), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    conv.kernel.set_value(jnp.ones((3, 1, 1, 1, 1)))
    frames = jnp.asarray([256.0, 1.0, 1.0], jnp.bfloat16).reshape(1, 3, 1, 1, 1)
    # 257 has nine digits, bfloat16 eight.
    assert Past([frames[:, :2]]).through(conv, frames[:, 2:]).item() == 258


SMALL = AutoencoderWanConfig(
    latents=2, widths=(2, 2), blocks=1, temporal=(True,), mean=(0, 0), std=(1, 1)
)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_frames():
    graph, state = nnx.split(abstract(FAMILY, dataclasses.replace(SMALL, widths=(16, 16))))

    def temporary(frames, streamed):
        call = lambda state, x: nnx.merge(graph, state).decode(x, streamed=streamed)  # noqa: E731
        x = jax.ShapeDtypeStruct((1, frames, 8, 8, 2), jnp.float32)
        compiled = jax.jit(call).lower(state, x).compile()
        # Without the video itself, in the scan's order and in its own.
        return compiled.memory_analysis().temp_size_in_bytes - 3 * 4 * 2 * frames * 16 * 16 * 3

    assert temporary(17, True) < 0.3 * temporary(17, False)


@pytest.mark.slow
def test_bfloat16_is_near(pair):
    module, exact, _ = pair
    numerics = Numerics(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    model, _ = port(autoencoder_wan.FAMILY, module, dict(module.config), numerics)
    latents = 0.1 * normal(1, 1, 2, 2, 4)
    ours = apply(model, decode, latents)
    assert ours.dtype == jnp.float32 and model.decoder.norm.scale.dtype == jnp.float32
    assert 1e-4 < error(ours, np.asarray(apply(exact, decode, latents))) < 0.1


@pytest.mark.slow
def test_inputs_and_settings_that_do_not_fit_are_named():
    model = abstract(FAMILY, SMALL)
    for call, says in (
        (lambda m: m.encode(jnp.zeros((1, 3, 5, 4, 3))), r"of 2, got \[1, 3, 5, 4, 3\]"),
        (lambda m: m.encode(jnp.zeros((1, 4, 4, 4, 3))), "one frame and a multiple of 2, got 4"),
        (lambda m: m.encode(jnp.zeros((3, 4, 4, 3))), r"width, 3\].*got \[3, 4, 4, 3\]"),
        (lambda m: m.decode(jnp.zeros((1, 1, 4, 4, 3))), r"h, w, 2\], got \[1, 1, 4, 4, 3\]"),
    ):
        with pytest.raises(ValueError, match=says):
            call(model)
    for change, says in (
        ({"widths": (3, 2)}, r"widths must be even numbers, got \(3, 2\)"),
        ({"temporal": ()}, r"each of 1 levels but the last, got \(\)"),
        ({"mean": (0.0,)}, r"mean must have 2 numbers.* got \(0.0,\)"),
        ({"std": (0.0, 1.0)}, r"std must be positive"),
    ):
        with pytest.raises(ValueError, match=says):
            dataclasses.replace(SMALL, **change)
    assert (AutoencoderWanConfig().factor, AutoencoderWanConfig().frames) == (8, 4)


@pytest.mark.slow
def test_parameters_are_whole_on_each_device():
    axes = parameters(logical_axes(abstract(FAMILY, SMALL)))
    assert {name for names in axes.values() for name in names} == {None}
