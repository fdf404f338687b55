"""Flux computes what diffusers' FLUX.1 does, from the same small random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from outside import diffusers, torch

import flowsde as fs
from flowsde.models.common.layers import FLOAT32, Numerics, logical_axes
from flowsde.models.common.patches import grid_ids, pack, unpack
from flowsde.models.common.paths import parameters, with_parameters
from flowsde.models.common.rope import angles
from flowsde.models.family import abstract
from flowsde.models.flux.model import Flux, FluxCond, FluxConfig
from flowsde_converters.flux import FAMILY
from flowsde_converters.tables import convert

AXES = (4, 6, 6)
WIDTH, TEXT, POOLED = 32, 20, 24


def public(guidance):
    """Diffusers' class with every weight N(0, .15^2)."""
    model = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=3, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=TEXT, pooled_projection_dim=POOLED,
        guidance_embeds=guidance, axes_dims_rope=AXES,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.15 * torch.randn(weight.shape, generator=generator))
    return model.eval().requires_grad_(False)


def ported(theirs, numerics=FLOAT32):
    tensors = {key: a.numpy() for key, a in theirs.state_dict().items()}
    config, _, table = FAMILY.recognise(tensors, {"axes_dims_rope": AXES})[:3]
    model = abstract(FAMILY, config, numerics)
    return with_parameters(model, convert(table, tensors, parameters(model)))


@pytest.fixture(scope="module", params=[True, False], ids=["guidance", "no guidance"])
def pair(request):
    theirs = public(request.param)
    return theirs, ported(theirs)


@pytest.fixture(scope="module")
def guided():
    theirs = public(True)
    return theirs, ported(theirs)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def inputs(n, tall, wide, words, guidance):
    """Keyword arguments of `Flux.tokens`; the times begin with both ends."""
    return {
        "image": normal(n, tall * wide, 16, seed=1),
        "ids": grid_ids(2 * tall, 2 * wide),
        "t": np.asarray([1.0, 0.0, 0.37][:n], np.float32),
        "text": normal(n, words, TEXT, seed=2),
        "pooled": normal(n, POOLED, seed=3),
        "guidance": np.asarray([3.5, 1.0, 7.3][:n], np.float32) if guidance else None,
    }


def by_diffusers(theirs, image, ids, t, text, pooled, guidance):
    return theirs(
        hidden_states=torch.as_tensor(image),
        encoder_hidden_states=torch.from_numpy(text),
        pooled_projections=torch.from_numpy(pooled),
        timestep=torch.from_numpy(t),
        img_ids=torch.from_numpy(ids.astype(np.float32)),
        txt_ids=torch.zeros(text.shape[1], 3),
        guidance=None if guidance is None else torch.from_numpy(guidance),
        return_dict=False,
    )[0]


def error(made, wanted):
    made, wanted = np.asarray(made), np.asarray(wanted)
    assert made.shape == wanted.shape
    return np.abs(made - wanted).max() / np.abs(wanted).max()


def run(model, arguments):
    call = nnx.jit(lambda model, arguments: model.tokens(**arguments))
    return call(model, arguments)


def first(stacked):
    """The first of stacked blocks."""
    graph, state = nnx.split(stacked)
    return nnx.merge(graph, jax.tree.map(lambda a: a[0], state))


@pytest.mark.slow_but_one
@pytest.mark.parametrize(
    ("n", "tall", "wide", "words"), [(1, 1, 1, 40), (3, 5, 7, 17), (2, 4, 3, 1)]
)
def test_velocity_is_diffusers(pair, n, tall, wide, words):
    theirs, model = pair
    arguments = inputs(n, tall, wide, words, model.config.guidance)
    assert error(run(model, arguments), by_diffusers(theirs, **arguments)) <= 1e-4


@pytest.mark.slow
def test_gradient_is_diffusers(guided):
    theirs, model = guided
    arguments = inputs(3, 3, 2, 4, True)
    cotangent = normal(*arguments["image"].shape, seed=4)
    graph, state = nnx.split(model)

    @jax.jit
    @jax.grad
    def gradient(image):
        made = nnx.merge(graph, state).tokens(**(arguments | {"image": image}))
        return jnp.vdot(made, cotangent)

    image = torch.from_numpy(arguments["image"]).requires_grad_()
    made = by_diffusers(theirs, **(arguments | {"image": image}))
    (made * torch.from_numpy(cotangent)).sum().backward()
    for ours, wanted in zip(gradient(jnp.asarray(arguments["image"])), image.grad, strict=True):
        assert error(ours, wanted) <= 1e-3


def test_condition_is_diffusers(pair):
    theirs, model = pair
    arguments = inputs(3, 1, 1, 1, model.config.guidance)
    t, pooled, guidance = (arguments[key] for key in ("t", "pooled", "guidance"))
    scaled = [1000 * torch.from_numpy(a) for a in (t, guidance) if a is not None]
    wanted = theirs.time_text_embed(*scaled, torch.from_numpy(pooled))
    made = nnx.jit(lambda model: model.condition(t, pooled, guidance))(model)
    assert error(made, wanted) <= 2e-5


def places(words, tall, wide):
    """Turns of all tokens, and diffusers' cosines and sines of them."""
    ids = np.concatenate([np.zeros((words, 3), np.int32), grid_ids(2 * tall, 2 * wide)])
    embed = diffusers.models.transformers.transformer_flux.FluxPosEmbed(10000, AXES)
    return angles(ids, AXES), embed(torch.from_numpy(ids.astype(np.float32)))


def block_inputs():
    """Text and image tokens so small that the norm's epsilon shows, and a condition."""
    small = np.float32(0.01)
    return small * normal(2, 4, WIDTH), small * normal(2, 15, WIDTH, seed=1), normal(2, WIDTH)


def test_turns_are_diffusers_at_published_sizes():
    ids = grid_ids(128, 96)
    turn = angles(ids, FluxConfig.dev().axes)
    embed = diffusers.models.transformers.transformer_flux.FluxPosEmbed(10000, [16, 56, 56])
    cos, sin = embed(torch.from_numpy(ids.astype(np.float32)))
    np.testing.assert_allclose(np.cos(turn), cos[:, ::2], atol=1e-5)
    np.testing.assert_allclose(np.sin(turn), sin[:, 1::2], atol=1e-5)


@pytest.mark.slow
def test_queries_and_keys_are_normalised_as_by_diffusers(guided):
    theirs, model = guided
    small = np.float32(1e-3) * normal(2, 3, 2, 16)
    made = first(model.single).norm(small, 2 * small)
    attn = theirs.single_transformer_blocks[0].attn
    wanted = attn.norm_q(torch.from_numpy(small)), attn.norm_k(torch.from_numpy(2 * small))
    for ours, a in zip(made, wanted, strict=True):
        assert error(ours, a) <= 1e-6


@pytest.mark.slow
def test_double_block_is_diffusers(guided):
    theirs, model = guided
    turn, rotary = places(4, 3, 5)
    text, image, c = block_inputs()
    wanted = theirs.transformer_blocks[0](
        hidden_states=torch.from_numpy(image),
        encoder_hidden_states=torch.from_numpy(text),
        temb=torch.from_numpy(c),
        image_rotary_emb=rotary,
    )
    made = nnx.jit(first(model.double))(text, image, jax.nn.silu(c), turn)
    for ours, tokens in zip(made, wanted, strict=True):
        assert error(ours, tokens) <= 2e-5


@pytest.mark.slow
def test_single_block_is_diffusers(guided):
    theirs, model = guided
    turn, rotary = places(4, 3, 5)
    text, image, c = block_inputs()
    wanted = theirs.single_transformer_blocks[0](
        hidden_states=torch.from_numpy(image),
        encoder_hidden_states=torch.from_numpy(text),
        temb=torch.from_numpy(c),
        image_rotary_emb=rotary,
    )
    both = np.concatenate([text, image], axis=1)
    made = nnx.jit(first(model.single))(both, jax.nn.silu(c), turn)
    assert error(made, torch.cat(wanted, dim=1)) <= 2e-5


@pytest.mark.slow
def test_latents_are_packed_as_diffusers_packs_them(guided):
    _, model = guided
    x = normal(2, 6, 10, 4)
    pipeline = diffusers.FluxPipeline
    channels_first = torch.from_numpy(x).permute(0, 3, 1, 2)
    packed = pipeline._pack_latents(channels_first, 2, 4, 6, 10)
    np.testing.assert_array_equal(pack(x, order="channels_first"), packed)
    ids = pipeline._prepare_latent_image_ids(2, 3, 5, "cpu", torch.float32)
    np.testing.assert_array_equal(grid_ids(6, 10), ids)

    arguments = inputs(2, 3, 5, 4, True) | {"image": np.asarray(packed)}
    cond = FluxCond(arguments["text"], arguments["pooled"], arguments["guidance"])
    made = nnx.jit(lambda model: model(x, arguments["t"], cond))(model)
    wanted = unpack(run(model, arguments), 6, 10, order="channels_first")
    assert error(made, wanted) <= 1e-6


@pytest.mark.slow
def test_a_flow_of_it_is_sampled_and_differentiated(guided):
    _, model = guided
    flow = fs.Flow.from_nnx(model, (4, 4, 4))
    cond = FluxCond(normal(2, 3, TEXT), normal(2, POOLED), np.full(2, 3.5, np.float32))
    p = fs.interpolants.linear()
    options = {"kernel": fs.kernels.ode_euler(p), "grid": fs.grids.uniform(1), "cond": cond}
    end = fs.sample(jax.random.key(0), flow, n=2, **options)
    chunks = fs.sample(jax.random.key(0), flow, n=2, chunk_size=1, **options)
    assert np.isfinite(end).all() and error(chunks, end) <= 1e-5

    @jax.jit
    @jax.grad
    def gradient(x):
        return jnp.sum(flow.means(x, jnp.full(2, 0.5), cond, p)[0])

    assert np.isfinite(gradient(end)).all()


@pytest.mark.slow
def test_bfloat16_is_near_float32(guided):
    theirs, model = guided
    arguments = inputs(3, 4, 3, 5, True)
    low = ported(theirs, Numerics(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16))
    made = run(low, arguments)
    assert made.dtype == jnp.float32
    assert 1e-4 < error(made, run(model, arguments)) < 0.05


@pytest.mark.slow
def test_axes_are_named():
    model = nnx.eval_shape(lambda: Flux(FluxConfig(), rngs=nnx.Rngs(0)))
    axes = logical_axes(model)
    assert axes.double.text.qkv.kernel.get_value() == ("layer", "embed", "heads")
    assert axes.single.enter.bias.get_value() == ("layer", "mlp")
    assert axes.single.norm.query.scale.get_value() == ("layer", None)
    assert axes.out.kernel.get_value() == ("embed", None)


def test_what_does_not_fit_is_an_error(pair):
    _, model = pair
    guidance = model.config.guidance
    arguments = inputs(1, 2, 3, 2, guidance)
    other = np.ones(1, np.float32) if not guidance else None
    words = "takes a guidance scale" if guidance else "takes no guidance scale"
    with pytest.raises(ValueError, match=words):
        model.tokens(**(arguments | {"guidance": other}))
    with pytest.raises(ValueError, match=r"ids must have shape \(6, 3\), got \(4, 3\)"):
        model.tokens(**(arguments | {"ids": grid_ids(4, 4)}))
    with pytest.raises(ValueError, match=r"shape \(n, H, W, 4\), got \(1, 4, 4, 3\)"):
        model(jnp.zeros((1, 4, 4, 3)), arguments["t"], FluxCond(*[jnp.zeros((1, 1, 1))] * 3))
    with pytest.raises(ValueError, match=r"three even numbers, got \(4, 6, 7\)"):
        FluxConfig(axes=(4, 6, 7))
    with pytest.raises(ValueError, match=r"shape \(tokens, 3\), got \(6, 2\)"):
        angles(np.zeros((6, 2), np.int32), AXES)
