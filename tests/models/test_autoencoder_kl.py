"""AutoencoderKL against the public class of `diffusers`, and its own rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowsde.models.autoencoder_kl.model import AutoencoderKLConfig, sd_vae
from flowsde.models.common.layers import Numerics, logical_axes

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from torch_parity import apply, error, gradient_error, port, randomised  # noqa: E402

from flowsde.models.common.paths import parameters  # noqa: E402
from flowsde_converters import autoencoder_kl  # noqa: E402

FLUX = {
    "block_out_channels": (8, 16), "latent_channels": 16, "norm_num_groups": 4,
    "layers_per_block": 1, "use_quant_conv": False, "use_post_quant_conv": False,
    "scaling_factor": 0.3611, "shift_factor": 0.1159,
}  # fmt: skip
SD = {
    "block_out_channels": (8, 8, 16), "latent_channels": 4, "norm_num_groups": 2,
    "layers_per_block": 2, "scaling_factor": 0.18215,
}  # fmt: skip


def pair_of(settings):
    levels = len(settings["block_out_channels"])
    module = randomised(
        diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            **settings,
        )
    )
    return module, *port(autoencoder_kl.FAMILY, module, dict(module.config))


@pytest.fixture(scope="module")
def sd():
    return pair_of(SD)


@pytest.fixture(scope="module")
def flux():
    return pair_of(FLUX)


def decode(model, x):
    return model.decode(x)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def as_torch(a):
    return torch.tensor(a.transpose(0, 3, 1, 2))


def as_ours(a):
    return a.detach().numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize(("n", "height", "width"), [(1, 16, 16), (3, 8, 20)])
def test_posterior(flux, n, height, width):
    assert_posterior(flux, normal(n, height, width, 3))


def test_posterior_with_quant_convolutions(sd):
    assert_posterior(sd, normal(2, 8, 20, 3))


def assert_posterior(pair, x):
    module, model, _ = pair
    mean, log_variance = apply(model, lambda model, x: model.posterior(x), x)
    theirs = module.encode(as_torch(x)).latent_dist
    assert error(mean, as_ours(theirs.mean)) < 1e-4
    assert error(log_variance, as_ours(theirs.logvar)) < 1e-4
    assert mean.shape[1:3] == tuple(side // model.config.factor for side in x.shape[1:3])


@pytest.mark.parametrize(("n", "height", "width"), [(1, 8, 8), (2, 4, 6)])
def test_decoded_latents(flux, n, height, width):
    assert_decoded(flux, normal(n, height, width, 16))


def test_decoded_latents_with_quant_convolutions(sd):
    assert_decoded(sd, normal(2, 3, 5, 4))


def assert_decoded(pair, latents):
    module, model, _ = pair
    config = module.config
    z = as_torch(latents) / config.scaling_factor + (config.shift_factor or 0.0)
    ours = apply(model, decode, latents)
    assert error(ours, as_ours(module.decode(z).sample)) < 1e-4


def test_parts_one_by_one(flux):
    module, model, _ = flux
    x = normal(2, 6, 10, 16)
    ours = apply(model, lambda model, x: model.decoder.middle(x), x)
    assert error(ours, as_ours(module.decoder.mid_block(as_torch(x)))) < 2e-5
    ours = apply(model, lambda model, x: model.decoder.levels[1](x, double=True), x)
    assert error(ours, as_ours(module.decoder.up_blocks[1](as_torch(x)))) < 2e-5
    x = normal(2, 6, 10, 8)
    ours = apply(model, lambda model, x: model.encoder.levels[0](x, double=False), x)
    assert error(ours, as_ours(module.encoder.down_blocks[0](as_torch(x)))) < 2e-5


def test_encode_shifts_scales_and_draws(flux):
    _, model, _ = flux
    x = normal(2, 8, 8, 3)

    def call(model, x):
        keys = jax.random.split(jax.random.key(0), 400)
        draws = jax.lax.map(lambda key: model.encode(x, key), keys)
        return model.posterior(x), model.encode(x), draws.mean(0), draws.std(0)

    (mean, log_variance), latents, average, spread = apply(model, call, x)
    np.testing.assert_allclose(latents, (mean - 0.1159) * 0.3611, rtol=1e-5, atol=1e-6)
    deviation = 0.3611 * np.exp(0.5 * log_variance)
    # Six standard errors of a mean and a deviation of 400.
    assert (np.abs(average - latents) / deviation).max() < 6 / np.sqrt(400)
    assert np.abs(spread / deviation - 1).max() < 6 / np.sqrt(800)


def test_log_variance_is_kept_in_bounds(flux):
    def call(model, x):
        bias = jnp.where(jnp.arange(32) % 2 == 0, 1e4, -1e4)
        model.encoder.conv_out.bias.set_value(bias)
        return model.posterior(x)[1]

    found = np.asarray(apply(flux[1], call, normal(1, 4, 4, 3)))
    assert (found == np.where(np.arange(16) % 2 == 0, 20.0, -30.0)).all()


def test_gradients(flux):
    module, model, found = flux
    x = normal(1, 8, 8, 3)
    weights = normal(1, 8, 8, 3, seed=1)
    z = module.encode(as_torch(x)).latent_dist.mean
    scalar = (module.decode(z).sample * as_torch(weights)).sum()

    def loss(model):
        latents = model.encode(jnp.asarray(x))
        return (model.decode(latents) * weights).sum()

    assert gradient_error(model, found, module, loss, scalar) < 1e-3


def test_one_tile_is_the_whole(flux):
    _, model, _ = flux
    latents = normal(2, 4, 6, 16)
    whole = apply(model, decode, latents)
    tiled = apply(model, lambda model, x: model.decode_tiled(x, tile=8, overlap=2), latents)
    assert error(tiled, np.asarray(whole)) < 1e-6


def test_tiles_decode_what_they_see(flux):
    _, model, _ = flux
    latents = normal(1, 8, 14, 16)
    tiled = apply(model, lambda model, x: model.decode_tiled(x, tile=8, overlap=2), latents)
    # Away from the seam, the right tile's own image.
    right = apply(model, decode, latents[:, :, 6:])
    assert error(tiled[:, :, 16:], np.asarray(right)[:, :, 4:]) < 1e-6


def test_memory_does_not_grow_with_the_image(flux):
    graph, state = nnx.split(flux[1])

    def temporary(side, tile):
        call = lambda state, x: nnx.merge(graph, state).decode_tiled(x, tile=tile, overlap=2)  # noqa: E731
        x = jax.ShapeDtypeStruct((1, side, side, 16), jnp.float32)
        compiled = jax.jit(call).lower(state, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes - 3 * 4 * (2 * side) ** 2

    assert temporary(24, 8) < 0.3 * temporary(24, 24)


def test_bfloat16_is_near(flux):
    module, exact, _ = flux
    numerics = Numerics(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    model, _ = port(autoencoder_kl.FAMILY, module, dict(module.config), numerics)
    latents = normal(2, 4, 6, 16)
    ours = apply(model, decode, latents)
    assert ours.dtype == jnp.float32
    assert model.decoder.norm.scale.dtype == jnp.float32
    assert 1e-4 < error(ours, np.asarray(apply(exact, decode, latents))) < 5e-2


def test_parameters_are_whole_on_each_device(flux):
    axes = parameters(logical_axes(flux[1]))
    assert axes["encoder.conv_in.kernel"] == (None,) * 4
    assert {name for names in axes.values() for name in names} == {None}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.posterior(jnp.zeros((1, 6, 7, 3))), r"multiples of 2, got \[1, 6, 7, 3\]"),
        (lambda m: m.encode(jnp.zeros((1, 3, 8, 8))), r"width, 3\].*got \[1, 3, 8, 8\]"),
        (lambda m: m.decode(jnp.zeros((1, 4, 4, 4))), r"\[n, h, w, 16\], got \[1, 4, 4, 4\]"),
    ],
)
def test_inputs_that_do_not_fit_are_named(flux, call, words):
    with pytest.raises(ValueError, match=words):
        call(flux[1])


def test_settings_that_cannot_be_are_named():
    with pytest.raises(ValueError, match=r"groups must divide widths, got 32 and \(48,\)"):
        AutoencoderKLConfig(widths=(48,))
    assert sd_vae().factor == 8
