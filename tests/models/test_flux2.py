"""FLUX.2 computes what diffusers' does, from the same small random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from outside import diffusers, torch
from torch_parity import apply, error, gradient_error, port, randomised

from flowsde.models.common.layers import Numerics, logical_axes
from flowsde.models.common.modulation import sinusoids
from flowsde.models.family import abstract
from flowsde.models.flux2.model import FAMILY as FLUX2
from flowsde.models.flux2.model import Flux2Cond, Flux2Config
from flowsde_converters.flux2 import FAMILY

TEXT, WIDTH = 20, 48
SIZES = {
    "in_channels": 16, "num_layers": 2, "num_single_layers": 3, "attention_head_dim": 24,
    "num_attention_heads": 2, "joint_attention_dim": TEXT, "axes_dims_rope": (4, 8, 8, 4),
    "guidance_embeds": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def pair():
    module = randomised(diffusers.Flux2Transformer2DModel(**SIZES)).requires_grad_(False)
    return module, *port(FAMILY, module, dict(module.config))


def normal(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def inputs(n, height, width, length=7):
    """Latents, times that begin with both ends, and texts."""
    times = np.asarray([1.0, 0.0, 0.37][:n], np.float32)
    return normal(n, height, width, 4, seed=1), times, Flux2Cond(normal(n, length, TEXT, seed=2))


def call(model, *args):
    return model(*args)


def by_diffusers(module, x, t, cond):
    """Of arrays or tensors, with our axes, as its pipeline calls it."""
    of = diffusers.Flux2KleinPipeline
    x, t, text = (torch.as_tensor(a) for a in (x, t, cond.text))
    grid = of._patchify_latents(x.permute(0, 3, 1, 2))
    ids = of._prepare_latent_ids(grid)
    made = module(of._pack_latents(grid), text, t, ids, of._prepare_text_ids(text),
                  return_dict=False)[0]  # fmt: skip
    return of._unpatchify_latents(of._unpack_latents_with_ids(made, ids)).permute(0, 2, 3, 1)


def test_velocity_is_diffusers(pair):
    module, model, _ = pair
    x = inputs(3, 4, 6)
    assert error(apply(model, call, *x), by_diffusers(module, *x)) <= 1e-4


@pytest.mark.slow
def test_gradients_are_diffusers(pair):
    module, model, found = pair
    x, t, cond = inputs(2, 4, 2)
    weights = normal(*x.shape, seed=4)
    module.requires_grad_(True)
    scalar = (by_diffusers(module, x, t, cond) * torch.from_numpy(weights)).sum()
    wrong = gradient_error(model, found, module, lambda m: (m(x, t, cond) * weights).sum(), scalar)
    module.requires_grad_(False)
    assert wrong <= 1e-3

    latents = torch.from_numpy(x).requires_grad_()
    (by_diffusers(module, latents, t, cond) * torch.from_numpy(weights)).sum().backward()

    def gradient(model, x):
        return jax.grad(lambda x: (model(x, t, cond) * weights).sum())(x)

    assert error(apply(model, gradient, x), latents.grad) <= 1e-3


def first(blocks):
    """The first of stacked blocks."""
    graph, state = nnx.split(blocks)
    return nnx.merge(graph, jax.tree.map(lambda a: a[0], state))


@pytest.mark.slow
def test_blocks_are_diffusers(pair):
    module, model, _ = pair
    text, image = normal(2, 3, WIDTH, scale=0.1), normal(2, 5, WIDTH, seed=1, scale=0.1)
    turn = normal(8, 12, seed=3)
    rotary = [torch.from_numpy(np.repeat(f(turn), 2, axis=1)) for f in (np.cos, np.sin)]
    of_text, of_image, of_both = (normal(2, k * WIDTH, seed=k) for k in (6, 5 + 1, 3))

    def split(vectors, count):
        return np.split(vectors[:, None], count, axis=-1)

    made = apply(first(model.double), call, text, image, split(of_text, 6), split(of_image, 6),
                 turn)  # fmt: skip
    told = (torch.from_numpy(a) for a in (image, text, of_image, of_text))
    wanted = module.transformer_blocks[0](*told, image_rotary_emb=rotary)
    for ours, theirs in zip(made, wanted, strict=True):
        assert error(ours, theirs) <= 2e-5

    both = np.concatenate([text, image], axis=1)
    made = apply(first(model.single), call, both, split(of_both, 3), turn)
    block = module.single_transformer_blocks[0]
    wanted = block(torch.from_numpy(both), None, torch.from_numpy(of_both), rotary)
    assert error(made, wanted) <= 2e-5


@pytest.mark.slow
def test_times_and_turns_are_diffusers(pair):
    module, model, _ = pair
    t = np.asarray([1.0, 0.0, 0.63], np.float32)
    wanted = module.time_guidance_embed(torch.from_numpy(t) * 1000, None)
    made = apply(model, lambda m, t: m.time(sinusoids(1000.0 * t)), t)
    assert error(made, wanted) <= 2e-5
    for name, vectors in (
        ("image_modulation", module.double_stream_modulation_img),
        ("text_modulation", module.double_stream_modulation_txt),
        ("single_modulation", module.single_stream_modulation),
    ):
        call = lambda m, c, name=name: getattr(m, name)(jax.nn.silu(c))  # noqa: E731
        ours = np.concatenate(apply(model, call, wanted.numpy()), axis=-1)
        assert error(ours[:, 0], vectors(wanted)) <= 2e-5

    # At the published sizes: 1024 pixels and 512 tokens.
    turn = abstract(FLUX2, Flux2Config()).turns(128, 128, 512)
    of = diffusers.Flux2KleinPipeline
    ids = torch.cat([of._prepare_text_ids(torch.zeros(1, 512, 1))[0],
                     of._prepare_latent_ids(torch.zeros(1, 1, 64, 64))[0]])  # fmt: skip
    rope = diffusers.models.transformers.transformer_flux2.Flux2PosEmbed(2000, [32] * 4)
    for wanted, f in zip(rope(ids), (np.cos, np.sin), strict=True):
        # Angles to 511, in float32 by ours.
        np.testing.assert_allclose(f(turn), wanted[:, ::2], atol=5e-5)


@pytest.mark.slow
def test_bfloat16_is_near_float32(pair):
    module, model, _ = pair
    x = inputs(2, 4, 6)
    low, _ = port(FAMILY, module, dict(module.config), Numerics(jnp.bfloat16, jnp.bfloat16))
    made = apply(low, call, *x)
    assert made.dtype == jnp.float32
    assert 1e-4 < error(made, np.asarray(apply(model, call, *x))) < 0.05


def test_axes_are_named():
    axes = logical_axes(abstract(FLUX2, Flux2Config()))
    assert axes.double.image.qkv.kernel.get_value() == ("layer", "embed", "heads")
    assert axes.double.text.down.kernel.get_value() == ("layer", "mlp", "embed")
    assert axes.single.enter.kernel.get_value() == ("layer", "embed", "mlp")
    assert axes.single.leave.kernel.get_value() == ("layer", "mlp", "embed")
    assert axes.text_modulation.linear.kernel.get_value() == ("embed", "mlp")
    assert axes.out.kernel.get_value() == ("embed", None)


def test_what_does_not_fit_is_an_error():
    small = Flux2Config(channels=16, heads=1, axes=(2, 2, 2, 2), double=1, single=1, mlp=8, text=4)
    model = abstract(FLUX2, small)
    for x, text, says in (
        ((2, 4, 4), (1, 3, 4), r"x must have shape \(n, H, W, 4\), got \(2, 4, 4\)"),
        ((1, 4, 4, 3), (1, 3, 4), r"W, 4\), got \(1, 4, 4, 3\)"),
        ((1, 4, 4, 4), (1, 3, 5), r"text must have shape \(n, tokens, 4\), got \(1, 3, 5\)"),
        ((1, 3, 4, 4), (1, 3, 4), r"patches of 2 must divide the latents, got 3 x 4"),
    ):
        with pytest.raises(ValueError, match=says):
            model(np.zeros(x), np.ones(1), Flux2Cond(np.zeros(text)))
    with pytest.raises(ValueError, match=r"axes must be four even numbers, got \(3, 3, 2\)"):
        Flux2Config(axes=(3, 3, 2))
