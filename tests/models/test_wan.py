"""Wan computes what diffusers' Wan 2.1 does, from the same small random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from outside import diffusers, torch
from torch_parity import apply, error, gradient_error, port, randomised

from flowsde.models.common.layers import Numerics, logical_axes
from flowsde.models.common.modulation import sinusoids
from flowsde.models.common.rope import angles
from flowsde.models.family import abstract
from flowsde.models.wan.model import FAMILY as WAN
from flowsde.models.wan.model import WanConfig, video_ids
from flowsde_converters.wan import FAMILY

TEXT, WIDTH = 20, 48
SIZES = {
    "num_attention_heads": 2, "attention_head_dim": 24, "in_channels": 4, "out_channels": 4,
    "text_dim": TEXT, "ffn_dim": 96, "num_layers": 2, "rope_max_seq_len": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def pair():
    module = randomised(diffusers.WanTransformer3DModel(**SIZES)).requires_grad_(False)
    return module, *port(FAMILY, module, dict(module.config))


def normal(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def inputs(n, frames, height, width, words):
    """Latents, times that begin with both ends, and text."""
    times = np.asarray([1.0, 0.0, 0.37][:n], np.float32)
    return normal(n, frames, height, width, 4, seed=1), times, normal(n, words, TEXT, seed=2)


def call(model, *args):
    return model(*args)


def by_diffusers(module, x, t, text):
    """Of arrays or tensors, with our axes."""
    x, t, text = (torch.as_tensor(a) for a in (x, t, text))
    made = module(x.permute(0, 4, 1, 2, 3), 1000 * t, text, return_dict=False)[0]
    return made.permute(0, 2, 3, 4, 1)


def test_velocity_is_diffusers(pair):
    module, model, _ = pair
    x = inputs(3, 3, 4, 6, 5)
    assert error(apply(model, call, *x), by_diffusers(module, *x)) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 1, 6, 2, 17), (2, 5, 2, 8, 1)])
def test_velocity_is_diffusers_at_other_sizes(pair, size):
    module, model, _ = pair
    x = inputs(*size)
    assert error(apply(model, call, *x), by_diffusers(module, *x)) <= 1e-4


@pytest.mark.slow
def test_gradients_are_diffusers(pair):
    module, model, found = pair
    x, t, text = inputs(2, 2, 4, 2, 3)
    weights = normal(*x.shape, seed=4)
    module.requires_grad_(True)
    scalar = (by_diffusers(module, x, t, text) * torch.from_numpy(weights)).sum()
    wrong = gradient_error(model, found, module, lambda m: (m(x, t, text) * weights).sum(), scalar)
    module.requires_grad_(False)
    assert wrong <= 1e-3

    latents = torch.from_numpy(x).requires_grad_()
    (by_diffusers(module, latents, t, text) * torch.from_numpy(weights)).sum().backward()

    def gradient(model, x):
        return jax.grad(lambda x: (model(x, t, text) * weights).sum())(x)

    assert error(apply(model, gradient, x), latents.grad) <= 1e-3


def first(model):
    """The first of its blocks."""
    graph, state = nnx.split(model.blocks)
    return nnx.merge(graph, jax.tree.map(lambda a: a[0], state))


@pytest.mark.slow
def test_a_block_is_diffusers(pair):
    module, model, _ = pair
    # So small that the epsilon of a norm shows.
    x, text = normal(2, 3 * 2 * 2, WIDTH, scale=0.01), normal(2, 5, WIDTH, seed=1, scale=0.01)
    c = normal(2, 6, WIDTH, seed=2)
    turn = angles(jnp.asarray(video_ids(3, 4, 4)), model.config.axes)
    rotary = module.rope(torch.zeros(1, 4, 3, 4, 4))
    tensors = (torch.from_numpy(a) for a in (x, text, c))
    wanted = module.blocks[0](*tensors, rotary)
    assert error(apply(first(model), call, x, text, c, turn), wanted) <= 2e-5


@pytest.mark.slow
def test_conditions_are_diffusers(pair):
    module, model, _ = pair
    t, text = np.asarray([999.0, 0.0, 370.0], np.float32), normal(3, 5, TEXT)
    wanted = module.condition_embedder(torch.from_numpy(t), torch.from_numpy(text))

    def made(model):
        time = model.time(sinusoids(t))
        return time, jnp.concatenate(model.modulation(jax.nn.silu(time)), -1), model.words(text)

    time, projected, words = apply(model, made)
    for ours, a in zip((time, projected[:, 0], words), wanted, strict=False):
        assert error(ours, a) <= 2e-5


@pytest.mark.slow
def test_turns_are_diffusers_at_published_sizes():
    """Of 81 frames of 480 x 832 pixels."""
    turn = angles(jnp.asarray(video_ids(21, 60, 104)), WanConfig().axes)
    rope = diffusers.models.transformers.transformer_wan.WanRotaryPosEmbed(128, (1, 2, 2), 1024)
    cos, sin = rope(torch.zeros(1, 16, 21, 60, 104))
    assert turn.shape == (32760, 64)
    np.testing.assert_allclose(np.cos(turn), cos[0, :, 0, ::2], atol=1e-5)
    np.testing.assert_allclose(np.sin(turn), sin[0, :, 0, 1::2], atol=1e-5)


@pytest.mark.slow
def test_bfloat16_is_near_float32(pair):
    module, model, _ = pair
    x = inputs(3, 2, 4, 2, 5)
    low, _ = port(FAMILY, module, dict(module.config), Numerics(jnp.bfloat16, jnp.bfloat16))
    made = apply(low, call, *x)
    assert made.dtype == jnp.float32
    assert 1e-4 < error(made, np.asarray(apply(model, call, *x))) < 0.05


def test_axes_are_named():
    axes = logical_axes(abstract(WAN, WanConfig()))
    assert axes.blocks.attention.query.kernel.get_value() == ("layer", "embed", "heads")
    assert axes.blocks.text_attention.out.kernel.get_value() == ("layer", "heads", "embed")
    assert axes.blocks.up.bias.get_value() == ("layer", "mlp")
    assert axes.blocks.table.get_value() == ("layer", None, None, "embed")
    assert axes.modulation.linear.kernel.get_value() == ("embed", "mlp")


def test_what_does_not_fit_is_an_error():
    small = WanConfig(channels=4, heads=2, head=24, depth=1, mlp=8, text=TEXT)
    model = abstract(WAN, small)
    for x, text, says in (
        (np.zeros((1, 4, 4, 4)), np.zeros((1, 3, TEXT)), r"\(n, frames, H, W, 4\), got \(1, 4"),
        (np.zeros((1, 2, 4, 4, 3)), np.zeros((1, 3, TEXT)), r"W, 4\), got \(1, 2, 4, 4, 3\)"),
        (np.zeros((1, 2, 4, 4, 4)), np.zeros((1, 3, 4)), r"\(n, tokens, 20\), got \(1, 3, 4\)"),
        (np.zeros((1, 2, 4, 3, 4)), np.zeros((1, 3, TEXT)), "must divide the latents, got 4 x 3"),
    ):
        with pytest.raises(ValueError, match=says):
            model(x, np.ones(1), text)
    with pytest.raises(ValueError, match="head must be an even number from 6, got 5"):
        WanConfig(head=5)
    assert WanConfig().axes == (44, 42, 42)
