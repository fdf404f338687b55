"""SiT computes what its published description says, written out here in PyTorch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from outside import torch

from flowsde.models.common.layers import FLOAT32, Numerics, logical_axes
from flowsde.models.common.paths import parameters, with_parameters
from flowsde.models.family import abstract
from flowsde.models.sit.model import SiT, SiTConfig, guided_velocity, sincos_positions
from flowsde.sharding import ShardingRules, place
from flowsde_converters.sit import FAMILY
from flowsde_converters.tables import convert

CLASSES = 5
HEADS = 2


def shapes(width, depth, tokens, sigma, patch=2):
    """Keys and shapes of a checkpoint."""
    out = patch * patch * (8 if sigma else 4)
    linears = {"t_embedder.mlp.0": (width, 256), "t_embedder.mlp.2": (width, width),
               "final_layer.adaLN_modulation.1": (2 * width, width),
               "final_layer.linear": (out, width)}  # fmt: skip
    for i in range(depth):
        linears |= {
            f"blocks.{i}.adaLN_modulation.1": (6 * width, width),
            f"blocks.{i}.attn.qkv": (3 * width, width),
            f"blocks.{i}.attn.proj": (width, width),
            f"blocks.{i}.mlp.fc1": (4 * width, width),
            f"blocks.{i}.mlp.fc2": (width, 4 * width),
        }
    found = {"pos_embed": (1, tokens, width), "x_embedder.proj.weight": (width, 4, patch, patch),
             "x_embedder.proj.bias": (width,),
             "y_embedder.embedding_table.weight": (CLASSES + 1, width)}  # fmt: skip
    for key, shape in linears.items():
        found |= {f"{key}.weight": shape, f"{key}.bias": shape[:1]}
    return found


def reference(w, x, tau, labels, heads):
    """data - noise [n, 4, H, W] at latents [n, 4, H, W], every channel that the model gives."""
    f = torch.nn.functional

    def linear(key, a):
        return a @ w[f"{key}.weight"].T + w[f"{key}.bias"]

    def normal(a):
        variance = a.var(-1, unbiased=False, keepdim=True)
        return (a - a.mean(-1, keepdim=True)) / torch.sqrt(variance + 1e-6)

    n, _, side, _ = x.shape
    width = w["x_embedder.proj.bias"].shape[0]
    h = f.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=2)
    h = h.flatten(2).transpose(1, 2) + w["pos_embed"]

    angles = tau[:, None] * torch.tensor([10000 ** (-i / 128) for i in range(128)])
    time = torch.cat([angles.cos(), angles.sin()], 1)
    time = linear("t_embedder.mlp.2", f.silu(linear("t_embedder.mlp.0", time)))
    c = f.silu(time + w["y_embedder.embedding_table.weight"][labels])
    for i in range(sum(key.endswith("fc1.bias") for key in w)):
        b = f"blocks.{i}"
        m = [a[:, None] for a in linear(f"{b}.adaLN_modulation.1", c).chunk(6, 1)]
        qkv = linear(f"{b}.attn.qkv", normal(h) * (1 + m[1]) + m[0])
        q, k, v = qkv.reshape(n, -1, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(width // heads), -1)
        h = h + m[2] * linear(f"{b}.attn.proj", (weights @ v).transpose(1, 2).flatten(2))
        hidden = linear(f"{b}.mlp.fc1", normal(h) * (1 + m[4]) + m[3])
        h = h + m[5] * linear(f"{b}.mlp.fc2", f.gelu(hidden, approximate="tanh"))
    shift, scale = (a[:, None] for a in linear("final_layer.adaLN_modulation.1", c).chunk(2, 1))
    y = linear("final_layer.linear", normal(h) * (1 + scale) + shift)
    y = y.reshape(n, side // 2, side // 2, 2, 2, -1)  # a token is (row, column, channel)
    return torch.einsum("nhwpqc->nchpwq", y).reshape(n, -1, side, side)


def checkpoint(sigma, seed=0, width=16, depth=2, tokens=16):
    rng = np.random.default_rng(seed)
    return {
        key: rng.normal(scale=0.15, size=shape).astype(np.float32)
        for key, shape in shapes(width, depth, tokens, sigma).items()
    }


def ported(tensors, numerics=FLOAT32):
    beside = {"heads": HEADS, "num_classes": CLASSES, "prediction": "velocity"}
    config, _, table = FAMILY.recognise(tensors, beside)[:3]
    model = abstract(FAMILY, config, numerics)
    return with_parameters(model, convert(table, tensors, parameters(model)))


def inputs(n, side=8, seed=1):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, side, side, 4)).astype(np.float32)
    t = np.asarray([0.0, 1.0, 0.37][:n], np.float32)
    return x, t, np.asarray([3, CLASSES, 0][:n], np.int32)


def in_torch(tensors, x, t, labels):
    """Our velocity [n, H, W, 4] by the reference, for a torch tensor x [n, H, W, 4]."""
    w = {key: torch.from_numpy(a) for key, a in tensors.items()}
    tau = 1 - torch.from_numpy(t)
    y = reference(w, x.permute(0, 3, 1, 2), tau, torch.from_numpy(labels).long(), HEADS)
    return -y[:, :4].permute(0, 2, 3, 1)


def error(made, wanted):
    made, wanted = np.asarray(made), np.asarray(wanted)
    assert made.shape == wanted.shape
    return np.abs(made - wanted).max() / np.abs(wanted).max()


@pytest.fixture(scope="module", params=[True, False], ids=["sigma", "no sigma"])
def tensors(request):
    return checkpoint(request.param)


@pytest.fixture(scope="module")
def model(tensors):
    return ported(tensors)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 3])
def test_velocity_is_the_references(tensors, model, n):
    x, t, labels = inputs(n)
    wanted = in_torch(tensors, torch.from_numpy(x), t, labels)
    assert error(nnx.jit(model)(x, t, labels), wanted) <= 2e-5


@pytest.mark.slow
def test_gradient_is_the_references(tensors, model):
    x, t, labels = inputs(3)
    cotangent = np.random.default_rng(2).normal(size=x.shape).astype(np.float32)
    graph, state = nnx.split(model)

    def scalar(x):
        return jnp.vdot(nnx.merge(graph, state)(x, t, labels), cotangent)

    traced = torch.from_numpy(x).requires_grad_()
    (in_torch(tensors, traced, t, labels) * torch.from_numpy(cotangent)).sum().backward()
    assert error(jax.jit(jax.grad(scalar))(jnp.asarray(x)), traced.grad) <= 1e-4


@pytest.mark.slow
def test_guidance_leaves_the_last_channel_to_the_label(model):
    x, t, labels = inputs(3)
    none = np.full_like(labels, CLASSES)
    call = nnx.jit(model)
    wanted, free = call(x, t, labels), call(x, t, none)
    made = nnx.jit(guided_velocity)(model, x, t, labels, 4.0)
    assert error(made[..., :3], (free + 4.0 * (wanted - free))[..., :3]) <= 1e-5
    assert error(made[..., 3:], wanted[..., 3:]) <= 1e-5


@pytest.mark.slow
def test_bfloat16_is_near_float32(tensors, model):
    x, t, labels = inputs(3)
    low = ported(tensors, Numerics(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16))
    made = nnx.jit(low)(x, t, labels)
    assert made.dtype == jnp.float32
    assert 1e-4 < error(made, nnx.jit(model)(x, t, labels)) < 0.05


@pytest.mark.slow
def test_a_label_past_the_last_gives_nan(model):
    x, t, _ = inputs(1)
    assert np.isnan(nnx.jit(model)(x, t, np.asarray([CLASSES + 1], np.int32))).all()


def test_latents_of_another_size_are_an_error(model):
    x, t, labels = inputs(1, side=6)
    with pytest.raises(ValueError, match=r"shape \(n, 8, 8, 4\), got \(1, 6, 6, 4\)"):
        model(x, t, labels)


def test_positions_encode_the_column_first():
    square = sincos_positions(4, 16).reshape(4, 4, 16)
    np.testing.assert_array_equal(square[0, :, :8], square[3, :, :8])
    np.testing.assert_array_equal(square[:, 0, 8:], square[:, 3, 8:])
    np.testing.assert_array_equal(square[1, :, :8], square[:, 1, 8:])
    np.testing.assert_allclose(square[0, 3, :2], np.sin([3, 3 * 0.1]), rtol=1e-6)
    np.testing.assert_allclose(square[0, 3, 4:6], np.cos([3, 3 * 0.1]), rtol=1e-6)


def test_axes_are_named():
    model = nnx.eval_shape(lambda: SiT(SiTConfig(depth=2), rngs=nnx.Rngs(0)))
    axes = logical_axes(model)
    assert axes.blocks.qkv.kernel.get_value() == ("layer", "embed", "heads")
    assert axes.blocks.up.bias.get_value() == ("layer", "mlp")
    assert axes.labels.get_value() == ("vocab", "embed")


@pytest.mark.slow
def test_labels_that_devices_do_not_share_evenly_are_split():
    """Six over four devices: by features. What is looked up is the same, NaN for no label, too."""
    model = ported(checkpoint(sigma=False))
    graph, state = nnx.split(model)
    mesh = jax.make_mesh((4,), ("model",), (jax.sharding.AxisType.Auto,))
    split = place(state, mesh, ShardingRules(heads=None).on(mesh))
    table = split.labels.get_value()
    assert table.shape == (CLASSES + 1, 16)
    assert {part.data.shape for part in table.addressable_shards} == {(CLASSES + 1, 4)}
    x, t, labels = inputs(3)
    labels[0] = CLASSES + 1
    velocity = jax.jit(lambda state, *given: nnx.merge(graph, state)(*given))
    alone = np.asarray(velocity(state, x, t, labels))
    with jax.set_mesh(mesh):
        found = np.asarray(velocity(split, x, t, labels))
    assert np.isnan(found[0]).all() and np.isnan(alone[0]).all()
    assert error(found[1:], alone[1:]) < 1e-5


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: SiTConfig(width=16, heads=3), "width 16 and 3 heads"),
        (lambda: SiTConfig(size=9), "got 2 and 9"),
        (lambda: SiTConfig.preset("M/2"), "got 'M/2' at 256 pixels, expected one of S/2"),
        (lambda: SiTConfig.preset("S/2", 128), "got 'S/2' at 128 pixels"),
    ],
)
def test_impossible_configurations_are_errors(build, words):
    with pytest.raises(ValueError, match=words):
        build()
