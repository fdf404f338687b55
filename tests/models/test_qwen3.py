"""Qwen3 computes what transformers' does, from the same small random weights."""

import numpy as np
import pytest
from outside import torch, transformers
from torch_parity import apply, error, gradient_error, port, randomised

from flowsde.models.common.layers import logical_axes
from flowsde.models.family import abstract
from flowsde.models.qwen3.model import FAMILY as QWEN3
from flowsde.models.qwen3.model import Qwen3Config
from flowsde_converters.qwen3 import FAMILY

SIZES = {
    "vocab_size": 40, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 40, (2, 11)).astype(np.int32)


@pytest.fixture(scope="module")
def pair():
    module = transformers.Qwen3Model(transformers.Qwen3Config(**SIZES))
    module = randomised(module).requires_grad_(False)
    return module, *port(FAMILY, module, module.config.to_dict())


def call(model, *args):
    return model(*args)


def states(module, tokens, mask=None):
    mask = None if mask is None else torch.from_numpy(mask)
    ids = torch.from_numpy(tokens.astype(np.int64))
    return module(input_ids=ids, attention_mask=mask, output_hidden_states=True)


@pytest.mark.slow
def test_states_are_transformers(pair):
    module, model, found = pair
    assert (found.config.theta, found.config.epsilon, found.config.shared) == (500.0, 1e-3, 2)
    made, wanted = apply(model, call, TOKENS), states(module, TOKENS)
    assert error(made.last, wanted.last_hidden_state) <= 2e-5
    assert error(made.penultimate, wanted.hidden_states[-2]) <= 2e-5


@pytest.mark.slow
def test_states_after_some_blocks_are_transformers_those_of_padding_too(pair):
    """Padding sees the text, and no other padding."""
    module, model, _ = pair
    mask = np.arange(11)[None] < np.asarray([[7], [11]])
    made = apply(model, lambda m, *args: m.after(args[0], (2, 1), args[1]), TOKENS, mask)
    wanted = states(module, TOKENS, mask).hidden_states
    for i, count in enumerate((2, 1)):
        assert error(made[:, :, i], wanted[count]) <= 2e-5
    for blocks in ((), (0,), (1, 4)):
        with pytest.raises(ValueError, match=r"blocks must be numbers from 1 to 3, got \("):
            model.after(TOKENS, blocks)


@pytest.mark.slow
@pytest.mark.parametrize("left", [False, True])
def test_padding_is_not_seen(pair, left):
    """Of a tokenizer that pads before the text the states are the same: positions count from each
    other."""
    module, model, _ = pair
    made = apply(model, call, TOKENS).penultimate[:, :7]
    padded, mask = np.full((2, 11), 3, np.int32), np.zeros((2, 11), bool)
    kept = slice(4, None) if left else slice(7)
    padded[:, kept], mask[:, kept] = TOKENS[:, :7], True
    assert error(made, states(module, padded, mask).hidden_states[-2][:, kept]) <= 2e-5


@pytest.mark.slow
def test_gradients_are_transformers(pair):
    module, model, found = pair
    weights = np.random.default_rng(1).normal(size=(2, 11, 24)).astype(np.float32)
    module.requires_grad_(True)
    scalar = (states(module, TOKENS).last_hidden_state * torch.from_numpy(weights)).sum()
    wrong = gradient_error(model, found, module, lambda m: (m(TOKENS).last * weights).sum(), scalar)
    module.requires_grad_(False)
    assert wrong <= 1e-3


def test_axes_are_named():
    axes = logical_axes(abstract(QWEN3, Qwen3Config()))
    assert axes.tokens.get_value() == ("vocab", "embed")
    assert axes.blocks.attention.key.kernel.get_value() == ("layer", "embed", "heads")
    assert axes.blocks.down.kernel.get_value() == ("layer", "mlp", "embed")


def test_sizes_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="heads must be a multiple of shared, got 6 and 4"):
        Qwen3Config(heads=6, shared=4)
    with pytest.raises(ValueError, match="head must be an even number, got 7"):
        Qwen3Config(head=7)
