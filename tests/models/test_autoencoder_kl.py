"""AutoencoderKL against the public class of `diffusers`, and its own rules."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from outside import diffusers, torch
from torch_parity import apply, error, gradient_error, port, randomised

from flowsde.models.autoencoder_kl.model import AutoencoderKLConfig, sd_vae
from flowsde.models.common.layers import Numerics, logical_axes
from flowsde.models.common.paths import parameters, with_parameters
from flowsde.models.family import abstract
from flowsde_converters import autoencoder_kl

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


@pytest.fixture(scope="module")
def flux2():
    """With statistics of latents that are not 0 and 1."""
    module = randomised(
        diffusers.AutoencoderKLFlux2(
            block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
            layers_per_block=1,
        )
    )  # fmt: skip
    module.bn.running_mean[:] = torch.from_numpy(normal(16, seed=7))
    # Some so small that what is added to them shows.
    module.bn.running_var[:] = torch.logspace(-4, 1, 16)
    return module, *port(autoencoder_kl.FAMILY, module, dict(module.config))


def decode(model, x):
    return model.decode(x)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def as_torch(a):
    return torch.tensor(a.transpose(0, 3, 1, 2))


def as_ours(a):
    return a.detach().numpy().transpose(0, 2, 3, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "height", "width"), [(1, 16, 16), (3, 8, 20)])
def test_posterior(flux, n, height, width):
    assert_posterior(flux, normal(n, height, width, 3))


@pytest.mark.slow
def test_posterior_with_quant_convolutions(sd):
    assert_posterior(sd, normal(2, 8, 20, 3))


def assert_posterior(pair, x):
    module, model, _ = pair
    mean, log_variance = apply(model, lambda model, x: model.posterior(x), x)
    theirs = module.encode(as_torch(x)).latent_dist
    assert error(mean, as_ours(theirs.mean)) < 1e-4
    assert error(log_variance, as_ours(theirs.logvar)) < 1e-4
    assert mean.shape[1:3] == tuple(side // model.config.factor for side in x.shape[1:3])


@pytest.mark.slow
@pytest.mark.parametrize(("n", "height", "width"), [(1, 8, 8), (2, 4, 6)])
def test_decoded_latents(flux, n, height, width):
    assert_decoded(flux, normal(n, height, width, 16))


@pytest.mark.slow
def test_decoded_latents_with_quant_convolutions(sd):
    assert_decoded(sd, normal(2, 3, 5, 4))


def assert_decoded(pair, latents):
    module, model, _ = pair
    config = module.config
    z = as_torch(latents) / config.scaling_factor + (config.shift_factor or 0.0)
    ours = apply(model, decode, latents)
    assert error(ours, as_ours(module.decode(z).sample)) < 1e-4


def normalised(module, z):
    """Latents [n, c, h, w] of z, as the pipeline of diffusers makes and undoes them."""
    of = diffusers.Flux2KleinPipeline
    return of._unpatchify_latents(module.bn(of._patchify_latents(z)))


@pytest.mark.slow
def test_latents_that_are_normalised(flux2):
    """By the statistics that PyTorch's own layer normalises by."""
    module, model, _ = flux2
    assert model.config.normalised and model.config.quant
    x = normal(2, 8, 12, 3)
    z = module.encode(as_torch(x)).latent_dist.mean
    latents = normalised(module, z).detach()
    assert error(apply(model, lambda m, x: m.encode(x), x), as_ours(latents)) < 1e-4
    made = apply(model, decode, as_ours(latents))
    assert error(made, as_ours(module.decode(z).sample)) < 1e-4
    with pytest.raises(ValueError, match="in patches of 2 x 2, got 3 x 4"):
        model.decode(jnp.zeros((1, 3, 4, 4)))


@pytest.mark.slow
def test_tiles_of_latents_that_are_normalised_are_those_of_z(flux2):
    """Wherever they begin: at 0, 3 and 6 here."""
    module, model, _ = flux2
    z = torch.from_numpy(normal(1, 4, 14, 8))
    plain = dataclasses.replace(model.config, normalised=False)
    twin = with_parameters(abstract(autoencoder_kl.FAMILY, plain), parameters(model))

    def tiled(model, x):
        return model.decode_tiled(x, tile=8, overlap=4)

    wanted = np.asarray(apply(twin, tiled, as_ours(z)))
    assert error(apply(model, tiled, as_ours(normalised(module, z))), wanted) < 1e-4


@pytest.mark.slow
def test_gradients_of_latents_that_are_normalised(flux2):
    module, model, _ = flux2
    x, weights = normal(1, 4, 4, 4, seed=2), normal(1, 8, 8, 3, seed=3)
    latents = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    of, bn = diffusers.Flux2KleinPipeline, module.bn
    mean, deviation = bn.running_mean, torch.sqrt(bn.running_var + bn.eps)
    patched = of._patchify_latents(latents) * deviation[:, None, None] + mean[:, None, None]
    image = module.decode(of._unpatchify_latents(patched)).sample
    (image * as_torch(weights)).sum().backward()

    def gradient(model, x):
        return jax.grad(lambda x: (model.decode(x) * weights).sum())(x)

    assert error(apply(model, gradient, x), as_ours(latents.grad)) < 1e-3


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_log_variance_is_kept_in_bounds(flux):
    def call(model, x):
        bias = jnp.where(jnp.arange(32) % 2 == 0, 1e4, -1e4)
        model.encoder.conv_out.bias.set_value(bias)
        return model.posterior(x)[1]

    found = np.asarray(apply(flux[1], call, normal(1, 4, 4, 3)))
    assert (found == np.where(np.arange(16) % 2 == 0, 20.0, -30.0)).all()


@pytest.mark.slow
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


@pytest.mark.slow
def test_one_tile_is_the_whole(flux):
    _, model, _ = flux
    latents = normal(2, 4, 6, 16)
    whole = apply(model, decode, latents)
    tiled = apply(model, lambda model, x: model.decode_tiled(x, tile=8, overlap=2), latents)
    assert error(tiled, np.asarray(whole)) < 1e-6


@pytest.mark.slow
def test_tiles_decode_what_they_see(flux):
    _, model, _ = flux
    latents = normal(1, 8, 14, 16)
    tiled = apply(model, lambda model, x: model.decode_tiled(x, tile=8, overlap=2), latents)
    # Away from the seam, the right tile's own image.
    right = apply(model, decode, latents[:, :, 6:])
    assert error(tiled[:, :, 16:], np.asarray(right)[:, :, 4:]) < 1e-6


@pytest.mark.slow
def test_memory_does_not_grow_with_the_image(flux):
    graph, state = nnx.split(flux[1])

    def temporary(side, tile):
        call = lambda state, x: nnx.merge(graph, state).decode_tiled(x, tile=tile, overlap=2)  # noqa: E731
        x = jax.ShapeDtypeStruct((1, side, side, 16), jnp.float32)
        compiled = jax.jit(call).lower(state, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes - 3 * 4 * (2 * side) ** 2

    assert temporary(24, 8) < 0.3 * temporary(24, 24)


@pytest.mark.slow
def test_bfloat16_is_near(flux):
    module, exact, _ = flux
    numerics = Numerics(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    model, _ = port(autoencoder_kl.FAMILY, module, dict(module.config), numerics)
    latents = normal(2, 4, 6, 16)
    ours = apply(model, decode, latents)
    assert ours.dtype == jnp.float32
    assert model.decoder.norm.scale.dtype == jnp.float32
    assert 1e-4 < error(ours, np.asarray(apply(exact, decode, latents))) < 5e-2


@pytest.mark.slow
def test_parameters_are_whole_on_each_device(flux):
    axes = parameters(logical_axes(flux[1]))
    assert axes["encoder.conv_in.kernel"] == (None,) * 4
    assert {name for names in axes.values() for name in names} == {None}


@pytest.mark.slow
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
