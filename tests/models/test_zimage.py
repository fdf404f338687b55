"""Z-Image computes what diffusers' does, from the same small random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from outside import diffusers, torch
from torch_parity import apply, error, gradient_error, port, randomised

from flowsde.models.common.layers import Numerics, logical_axes
from flowsde.models.family import abstract
from flowsde.models.zimage.model import FAMILY as ZIMAGE
from flowsde.models.zimage.model import ZImageCond, ZImageConfig
from flowsde_converters.zimage import FAMILY

TEXT, WIDTH = 20, 48
SIZES = {
    "in_channels": 4, "dim": WIDTH, "n_layers": 2, "n_refiner_layers": 2, "n_heads": 2,
    "n_kv_heads": 2, "cap_feat_dim": TEXT, "axes_dims": [8, 8, 8], "axes_lens": [256, 64, 64],
}  # fmt: skip


@pytest.fixture(scope="module")
def pair():
    module = randomised(diffusers.ZImageTransformer2DModel(**SIZES)).requires_grad_(False)
    return module, *port(FAMILY, module, dict(module.config))


def normal(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def inputs(height, width, *words, length=64):
    """Latents, times that begin with both ends, and texts of so many words each."""
    n = len(words)
    times = np.asarray([1.0, 0.0, 0.37][:n], np.float32)
    cond = ZImageCond(normal(n, length, TEXT, seed=2), np.asarray(words, np.int32))
    return normal(n, height, width, 4, seed=1), times, cond


def call(model, *args):
    return model(*args)


def by_diffusers(module, x, t, cond):
    """Of arrays or tensors, with our axes, as its pipeline calls it and what that makes of it."""
    x, t, text = (torch.as_tensor(a) for a in (x, t, cond.text))
    texts = [row[:count] for row, count in zip(text, cond.tokens, strict=True)]
    made = module(list(x.permute(0, 3, 1, 2)[:, :, None]), 1 - t, texts, return_dict=False)[0]
    return -torch.stack(made)[:, :, 0].permute(0, 2, 3, 1)


def test_velocity_is_diffusers(pair):
    """Of texts that fill up to 32 and 64 tokens, one of them without any that were learned; the
    image's 15 tokens are filled up as well."""
    module, model, _ = pair
    x = inputs(6, 10, 5, 33, 32)
    assert error(apply(model, call, *x), by_diffusers(module, *x)) <= 1e-4


@pytest.mark.slow
def test_velocity_is_diffusers_at_another_size_and_beyond_a_texts_end_is_nothing(pair):
    module, model, _ = pair
    # 32 image tokens, none of them learned; the texts need a half of the length.
    x, t, cond = inputs(8, 16, 7, 31)
    made = apply(model, call, x, t, cond)
    assert error(made, by_diffusers(module, x, t, cond)) <= 1e-4
    text = cond.text.copy()
    text[0, 7:] = 100.0
    np.testing.assert_array_equal(apply(model, call, x, t, cond._replace(text=text)), made)


@pytest.mark.slow
def test_gradients_are_diffusers(pair):
    module, model, found = pair
    x, t, cond = inputs(4, 2, 33, 3)
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


def seen_of(*used, length):
    return (np.arange(length)[None] < np.asarray(used)[:, None])[:, None, None]


@pytest.mark.slow
def test_blocks_are_diffusers(pair):
    module, model, _ = pair
    # So small that the epsilon of a norm shows.
    x, c = normal(2, 64, WIDTH, scale=0.01), normal(2, WIDTH, seed=2)
    turn = normal(2, 64, 12, seed=3)
    rotary = torch.polar(torch.ones(turn.shape), torch.from_numpy(turn))
    seen = seen_of(32, 64, length=64)
    mask = torch.from_numpy(seen[:, 0, 0])
    for ours, theirs, cond in (
        (model.blocks, module.layers, c),
        (model.image_blocks, module.noise_refiner, c),
        (model.text_blocks, module.context_refiner, None),
    ):
        told = None if cond is None else torch.from_numpy(cond)
        wanted = theirs[0](torch.from_numpy(x), mask, rotary, told)
        assert error(apply(first(ours), call, x, turn, seen, cond), wanted) <= 2e-5


@pytest.mark.slow
def test_times_and_turns_are_diffusers(pair):
    module, model, _ = pair
    t = np.asarray([1.0, 0.0, 0.63], np.float32)
    wanted = module.t_embedder(torch.from_numpy(1 - t) * 1000)
    assert error(apply(model, lambda m, t: m.condition(t), t), wanted) <= 2e-5

    # At the published sizes: 1024 pixels, and a text that fills 512 tokens.
    big = abstract(ZIMAGE, ZImageConfig())
    text, turn = jax.jit(lambda: big.turns(128, 128, 512, jnp.asarray([512, 96])))()
    theirs = diffusers.models.transformers.transformer_z_image
    rope = theirs.RopeEmbedder(256.0, [32, 48, 48], [1024, 512, 512])
    for row, used in enumerate((512, 96)):
        ids = [(used + 1, h, w) for h in range(64) for w in range(64)]
        ids += [(1 + k, 0, 0) for k in range(512)]
        angle = rope(torch.tensor(ids)).numpy()
        # Angles to 513, in float32 by either.
        np.testing.assert_allclose(np.cos(turn[row]), angle.real, atol=5e-5)
        np.testing.assert_allclose(np.sin(turn[row]), angle.imag, atol=5e-5)
        np.testing.assert_array_equal(text[row], turn[row, 4096:])


@pytest.mark.slow
def test_bfloat16_is_near_float32(pair):
    module, model, _ = pair
    x = inputs(6, 10, 5, 33)
    low, _ = port(FAMILY, module, dict(module.config), Numerics(jnp.bfloat16, jnp.bfloat16))
    made = apply(low, call, *x)
    assert made.dtype == jnp.float32
    assert 1e-4 < error(made, np.asarray(apply(model, call, *x))) < 0.05


def test_axes_are_named():
    axes = logical_axes(abstract(ZIMAGE, ZImageConfig()))
    assert axes.blocks.attention.qkv.kernel.get_value() == ("layer", "embed", "heads")
    assert axes.text_blocks.attention.out.kernel.get_value() == ("layer", "heads", "embed")
    assert axes.image_blocks.down.kernel.get_value() == ("layer", "mlp", "embed")
    assert axes.blocks.modulation.kernel.get_value() == ("layer", None, "mlp")
    assert axes.text_pad.get_value() == (None, "embed")


def test_what_does_not_fit_is_an_error():
    small = ZImageConfig(channels=4, heads=1, axes=(2, 2, 4), depth=1, refiners=1, mlp=8, text=TEXT)
    model = abstract(ZIMAGE, small)
    count = np.ones(1, np.int32)
    for x, text, says in (
        ((1, 2, 4, 4, 4), (1, 32, TEXT), r"x must have shape \(n, H, W, 4\), got \(1, 2, 4, 4, 4"),
        ((1, 4, 4, 3), (1, 32, TEXT), r"W, 4\), got \(1, 4, 4, 3\)"),
        ((1, 4, 4, 4), (1, 32, 4), r"\(n, tokens, 20\), of a multiple of 32.* got \(1, 32, 4\)"),
        ((1, 4, 4, 4), (1, 31, TEXT), r"a multiple of 32 tokens, got \(1, 31, 20\)"),
    ):
        with pytest.raises(ValueError, match=says):
            model(np.zeros(x), np.ones(1), ZImageCond(np.zeros(text), count))
    with pytest.raises(ValueError, match=r"axes must be three even numbers, got \(3, 3, 2\)"):
        ZImageConfig(axes=(3, 3, 2))
