"""SD3 computes what diffusers' SD3 and SD3.5 do, from the same small random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from outside import diffusers, torch
from quick import slow
from torch_parity import apply, error, gradient_error, port, randomised

import flowsde as fs
from flowsde.models.common.layers import Numerics, logical_axes
from flowsde.models.common.modulation import sinusoids
from flowsde.models.family import abstract
from flowsde.models.sd3.guidance import skip_layer_guidance
from flowsde.models.sd3.model import FAMILY as SD3
from flowsde.models.sd3.model import SD3Cond, SD3Config
from flowsde_converters.sd3 import FAMILY

TEXT, POOLED, WIDTH = 20, 24, 32
# Of SD3, and of SD3.5: two blocks with a second attention, two without, and the last.
KINDS = {
    "3": {"num_layers": 2, "dual_attention_layers": (), "qk_norm": None},
    "3.5": {"num_layers": 5, "dual_attention_layers": (0, 1), "qk_norm": "rms_norm"},
}


def of_diffusers(name):
    module = diffusers.SD3Transformer2DModel(
        sample_size=16, in_channels=4, out_channels=4, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=TEXT, caption_projection_dim=WIDTH,
        pooled_projection_dim=POOLED, pos_embed_max_size=7, **KINDS[name],
    )  # fmt: skip
    # A parameter, so that its values and its gradient are compared, too.
    table = module.pos_embed.pos_embed
    del module.pos_embed.pos_embed
    module.pos_embed.pos_embed = torch.nn.Parameter(torch.zeros_like(table))
    return randomised(module).requires_grad_(False)


@pytest.fixture(scope="module", params=["3", slow("3.5")])
def pair(request):
    module = of_diffusers(request.param)
    return module, *port(FAMILY, module, dict(module.config))


@pytest.fixture(scope="module")
def newer():
    module = of_diffusers("3.5")
    return module, *port(FAMILY, module, dict(module.config))


def normal(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def inputs(n, height, width, words):
    """Latents, times that begin with both ends, and text."""
    times = np.asarray([1.0, 0.0, 0.37][:n], np.float32)
    cond = SD3Cond(normal(n, words, TEXT, seed=2), normal(n, POOLED, seed=3))
    return normal(n, height, width, 4, seed=1), times, cond


def call(model, *args):
    return model(*args)


def by_diffusers(module, x, t, cond, **settings):
    """Of arrays or tensors, with our axes."""
    x, t, text, pooled = (torch.as_tensor(a) for a in (x, t, *cond))
    made = module(x.permute(0, 3, 1, 2), text, pooled, 1000 * t, return_dict=False, **settings)[0]
    return made.permute(0, 2, 3, 1)


def test_velocity_is_diffusers(pair):
    module, model, _ = pair
    # Neither rows nor columns are in the middle of the table evenly.
    x = inputs(3, 4, 8, 5)
    assert error(apply(model, call, *x), by_diffusers(module, *x)) <= 1e-4


@pytest.mark.slow
def test_velocity_is_diffusers_of_the_whole_table(newer):
    module, model, _ = newer
    x = inputs(1, 14, 14, 1)
    assert error(apply(model, call, *x), by_diffusers(module, *x)) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("skipped", [(1, 3), (0, 1, 4)])
def test_without_some_blocks_it_is_diffusers(newer, skipped):
    module, model, _ = newer
    x = inputs(2, 4, 6, 3)
    whole = by_diffusers(module, *x)
    wanted = by_diffusers(module, *x, skip_layers=list(skipped))
    assert error(wanted.numpy(), whole) > 0.01

    def without(model, *args):
        return model.without(skipped, *args)

    assert error(apply(model, without, *x), wanted) <= 1e-4


@pytest.mark.slow
def test_guidance_by_layers_is_the_published_formula(newer):
    module, model, _ = newer
    x, _, cond = inputs(3, 4, 6, 3)
    # Inside of the times at which layers are left out, before and after.
    t, null = np.asarray([0.95, 0.999, 0.9], np.float32), SD3Cond(normal(3, TEXT), normal(POOLED))
    flow = fs.Flow.from_nnx(model, x.shape[1:])
    flow = skip_layer_guidance(flow, 3.0, null, layers=(2, 3), skip_scale=1.5)
    assert flow.evaluations == 3

    nulls = SD3Cond(*(np.broadcast_to(a, (3, *a.shape)).copy() for a in null))
    text, free = (by_diffusers(module, x, t, one).numpy() for one in (cond, nulls))
    poorer = by_diffusers(module, x, t, cond, skip_layers=[2, 3]).numpy()
    wanted = free + 3.0 * (text - free)
    assert error(wanted[:1], (wanted + 1.5 * (text - poorer))[:1]) > 0.01
    wanted[:1] += 1.5 * (text - poorer)[:1]
    made = jax.jit(flow.velocity_fn)(flow.params, jnp.asarray(x), jnp.asarray(t), cond)
    assert error(made, wanted) <= 1e-4
    # Where none is inside, two evaluations are all.
    made = jax.jit(flow.velocity_fn)(flow.params, jnp.asarray(x[1:]), t[1:], SD3Cond(
        *(a[1:] for a in cond)
    ))  # fmt: skip
    assert error(made, wanted[1:]) <= 1e-4


@pytest.mark.slow
def test_gradients_are_diffusers(newer):
    module, model, found = newer
    x, t, cond = inputs(2, 4, 6, 3)
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


def first(stacked):
    graph, state = nnx.split(stacked)
    return nnx.merge(graph, jax.tree.map(lambda a: a[0], state))


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 2, 4])
def test_blocks_are_diffusers(newer, number):
    """With a second attention, without, and the last."""
    module, model, _ = newer
    block = {0: first(model.dual), 2: first(model.plain), 4: model.last}[number]
    # So small that the epsilon of a norm shows.
    text, image = normal(2, 5, WIDTH, seed=1, scale=0.01), normal(2, 6, WIDTH, scale=0.01)
    c = normal(2, WIDTH, seed=2)
    wanted = module.transformer_blocks[number](
        torch.from_numpy(image), torch.from_numpy(text), torch.from_numpy(c)
    )
    found = apply(block, call, text, image, jax.nn.silu(c))
    assert error(found[1], wanted[1]) <= 2e-5
    if number == 4:
        assert wanted[0] is None
    else:
        assert error(found[0], wanted[0]) <= 2e-5


@pytest.mark.slow
def test_conditions_and_positions_are_diffusers(newer):
    module, model, _ = newer
    t, pooled = np.asarray([999.0, 0.0, 370.0], np.float32), normal(3, POOLED)
    wanted = module.time_text_embed(torch.from_numpy(t), torch.from_numpy(pooled))
    made = apply(model, lambda model: model.time(sinusoids(t)) + model.pooled(pooled))
    assert error(made, wanted) <= 2e-5
    for height, width in ((14, 14), (2, 6), (8, 4)):
        wanted = module.pos_embed.cropped_pos_embed(height, width)[0]
        np.testing.assert_array_equal(model.positions_of(height, width), wanted.numpy())


@pytest.mark.slow
def test_bfloat16_is_near_float32(newer):
    module, model, _ = newer
    x = inputs(3, 4, 4, 5)
    low, _ = port(FAMILY, module, dict(module.config), Numerics(jnp.bfloat16, jnp.bfloat16))
    made = apply(low, call, *x)
    assert made.dtype == jnp.float32
    assert 1e-4 < error(made, np.asarray(apply(model, call, *x))) < 0.05


@pytest.mark.slow
def test_axes_are_named():
    model = abstract(SD3, SD3Config.medium_3_5())
    axes = logical_axes(model)
    assert axes.dual.second.qkv.kernel.get_value() == ("layer", "embed", "heads")
    assert axes.plain.text.out.kernel.get_value() == ("layer", "heads", "embed")
    assert axes.last.image_mlp.up.bias.get_value() == ("mlp",)
    assert axes.dual.image_modulation.linear.kernel.get_value() == ("layer", "embed", "mlp")
    assert axes.positions.get_value() == (None, None, "embed")
    assert model.plain.text.qkv.kernel.shape == (10, 1536, 4608)
    assert abstract(SD3, SD3Config.medium()).dual is None


def test_what_does_not_fit_is_an_error():
    small = SD3Config(channels=4, heads=2, head=8, depth=2, mlp=8, text=TEXT, pooled=4, side=3)
    model = abstract(SD3, small)
    good = np.zeros((1, 4, 4, 4)), SD3Cond(np.zeros((1, 3, TEXT)), np.zeros((1, 4)))
    for x, cond, says in (
        (np.zeros((1, 4, 4, 3)), good[1], r"\(n, H, W, 4\), got \(1, 4, 4, 3\)"),
        (np.zeros((1, 4, 8, 4)), good[1], r"at most 6 rows and columns, .* got \(1, 4, 8, 4\)"),
        (np.zeros((1, 4, 3, 4)), good[1], "must divide the latents, got 4 x 3"),
        (good[0], SD3Cond(np.zeros((1, 3, 4)), np.zeros((1, 4))), r"\(n, tokens, 20\), got \(1, 3"),
        (good[0], SD3Cond(good[1].text, np.zeros((1, 5))), r"pooled must have shape \(n, 4\), got"),
    ):
        with pytest.raises(ValueError, match=says):
            model(x, np.ones(1), cond)
    for dual in (-1, 2):
        with pytest.raises(ValueError, match=f"dual must be from 0 to 1, .* got {dual}"):
            SD3Config(depth=2, dual=dual)
