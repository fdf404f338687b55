"""UMT5's encoder against the public class of `transformers`."""

import jax.numpy as jnp
import numpy as np
import pytest
from outside import torch, transformers
from torch_parity import apply, error, gradient_error, port, randomised, tensors

from flowsde.models.common.layers import logical_axes
from flowsde.models.common.paths import parameters
from flowsde.models.family import abstract
from flowsde.models.t5.model import UMT5Config
from flowsde_converters import t5
from flowsde_converters.convert import prepare
from flowsde_converters.tables import convert, unconvert

# Heads of another size than width / heads; positions beyond max_distance in the tests' sequences.
SETTINGS = {
    "vocab_size": 40, "d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 3, "num_heads": 4,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12,
    "layer_norm_epsilon": 1e-2,
}  # fmt: skip
XXL = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24,
       "num_heads": 64}  # fmt: skip


@pytest.fixture(scope="module")
def pair():
    config = transformers.UMT5Config(**SETTINGS)
    module = randomised(transformers.UMT5EncoderModel(config))
    return module, *port(t5.UMT5, module, config.to_dict())


def tokens(n, length):
    return np.random.default_rng(0).integers(1, 40, (n, length)).astype(np.int32)


def mask_of(n, length):
    mask = np.ones((n, length), np.int64)
    mask[0, length // 2 :], mask[-1, 1] = 0, 0
    return mask


def call(model, *args):
    return model(*args)


def by_transformers(module, ids, mask=None):
    mask = None if mask is None else torch.tensor(mask)
    return module(torch.tensor(ids.astype(np.int64)), attention_mask=mask).last_hidden_state


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_states_are_those_of_transformers(pair, masked):
    module, model, _ = pair
    ids, mask = tokens(3, 20), mask_of(3, 20) if masked else None
    assert error(apply(model, call, ids, mask), by_transformers(module, ids, mask)) < 2e-5


@pytest.mark.slow
def test_gradients_of_the_parameters(pair):
    module, model, found = pair
    ids, mask = tokens(2, 14), mask_of(2, 14)
    weights = np.random.default_rng(1).normal(size=(2, 14, 32)).astype(np.float32)
    scalar = (by_transformers(module, ids, mask) * torch.tensor(weights)).sum()
    loss = lambda model: (model(ids, jnp.asarray(mask)) * weights).sum()  # noqa: E731
    assert gradient_error(model, found, module, loss, scalar) < 1e-3


@pytest.mark.slow
def test_a_checkpoint_comes_back_and_blocks_have_their_own_positions(pair):
    module, model, found = pair
    checkpoint = tensors(module)
    assert t5.ENCODER.recognise(checkpoint, None) is None
    assert t5.FAMILY.recognise(checkpoint, None) is None
    assert found.config == t5.UMT5.recognise(checkpoint, module.config.to_dict()).config
    params = convert(found.table, checkpoint, parameters(model))
    assert params["encoder.blocks.relative"].shape == (3, 8, 4)
    back = unconvert(found.table, params)
    assert back.keys() == checkpoint.keys() - {"encoder.embed_tokens.weight"}
    for key, tensor in back.items():
        np.testing.assert_array_equal(tensor, checkpoint[key], strict=True)
    axes = logical_axes(model)
    assert axes.encoder.blocks.relative.get_value() == ("layer", None, "heads")


@pytest.mark.slow
def test_one_block_is_told_by_its_settings(pair):
    checkpoint = {k: a for k, a in tensors(pair[0]).items() if ".1.layer" not in k}
    checkpoint = {k: a for k, a in checkpoint.items() if ".2.layer" not in k}
    assert t5.UMT5.recognise(checkpoint, None) is None
    assert t5.UMT5.recognise(checkpoint, {"model_type": "umt5"}).config.depth == 1


NAMES = {
    "shared.weight": "token_embedding.weight",
    "encoder.final_layer_norm": "norm",
    "encoder.block.": "blocks.",
    "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
    "layer.0.SelfAttention": "attn",
    "layer.0.layer_norm": "norm1",
    "layer.1.layer_norm": "norm2",
    "layer.1.DenseReluDense.wi_0": "ffn.gate.0",  # its activation is the gate
    "layer.1.DenseReluDense.wi_1": "ffn.fc1",
    "layer.1.DenseReluDense.wo": "ffn.fc2",
}


def as_wan_names(checkpoint):
    """With the keys of Wan's own text encoder, whose file has no copy of the token table."""
    named = {}
    for key, tensor in checkpoint.items():
        if key != "encoder.embed_tokens.weight":
            for theirs, wan in NAMES.items():
                key = key.replace(theirs, wan)
            named[key] = tensor
    return named


@pytest.mark.slow
def test_the_file_of_wan_makes_the_same_model(pair, tmp_path):
    module, model, found = pair
    # Wan's code has the published settings, which are not in the file.
    published = transformers.UMT5Config(**{
        **SETTINGS, "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6
    })  # fmt: skip
    theirs = t5.UMT5.recognise(tensors(module), published.to_dict())
    held = as_wan_names(tensors(module))
    assert len(held) == 2 + 3 * 10
    ours = t5.UMT5.recognise(held, None)
    assert ours.config == theirs.config and ours.layout == "original"
    params = convert(ours.table, held, parameters(model))
    for path, array in convert(found.table, tensors(module), parameters(model)).items():
        np.testing.assert_array_equal(params[path], array, strict=True)
    torch.save({k: torch.tensor(a) for k, a in held.items()}, tmp_path / "models_t5.pth")
    plan = prepare(tmp_path / "models_t5.pth").plans[""]
    assert (plan.family.name, plan.found.layout) == ("umt5_encoder", "original")
    del held["blocks.0.norm2.weight"]
    with pytest.raises(ValueError, match=r"missing blocks\.0\.norm2\.weight"):
        t5.UMT5.recognise(held, None)


@pytest.mark.slow
def test_xxl():
    settings = transformers.UMT5Config(**XXL)
    with torch.device("meta"):
        module = transformers.UMT5EncoderModel(settings)
    state = module.state_dict()
    checkpoint = {k: np.broadcast_to(np.float32(0), tuple(a.shape)) for k, a in state.items()}
    found = t5.UMT5.recognise(checkpoint, settings.to_dict())
    assert found.config == UMT5Config() and len(checkpoint) == 243
    model = parameters(abstract(t5.UMT5, found.config))
    assert found.table.problems(checkpoint, model) == []
    count = sum(int(np.prod(p.shape)) for p in model.values())
    assert count == sum(p.numel() for p in module.parameters())
    assert count == pytest.approx(5.681e9, rel=1e-4)
    held = as_wan_names(checkpoint)
    found = t5.UMT5.recognise(held, None)
    assert found.config == UMT5Config() and found.table.problems(held, model) == []
