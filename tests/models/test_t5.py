"""T5 against the public classes of `transformers`, and its own rules."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from outside import torch, transformers
from torch_parity import apply, error, gradient_error, port, randomised

from flowsde.models.common.layers import Numerics, logical_axes
from flowsde.models.t5.model import T5, T5Config, relative_buckets
from flowsde_converters import t5

# Heads of another size than width / heads; positions beyond max_distance in the tests' sequences.
SETTINGS = {
    "vocab_size": 40, "d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 3, "num_heads": 4,
    "num_decoder_layers": 2, "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12,
    "layer_norm_epsilon": 1e-2,
}  # fmt: skip


def tokens(n, length, seed=0):
    return np.random.default_rng(seed).integers(1, 40, (n, length)).astype(np.int32)


def masked(n, length):
    mask = np.ones((n, length), np.int64)
    mask[0, length // 2 :], mask[-1, 1] = 0, 0
    return mask


def call(model, *args):
    return model(*args)


def logits(model, *args):
    return model.logits(*args)


def as_torch(a):
    return torch.tensor(a.astype(np.int64))


def encoder_pair():
    config = transformers.T5Config(**SETTINGS)
    module = randomised(transformers.T5EncoderModel(config))
    return module, *port(t5.ENCODER, module, config.to_dict())


def whole_pair(tied):
    config = transformers.T5Config(**SETTINGS, tie_word_embeddings=tied)
    module = transformers.T5ForConditionalGeneration(config)
    if not tied:
        # Made tied whatever the settings say; a published checkpoint unties it when it is read.
        module.lm_head.weight = torch.nn.Parameter(torch.zeros(40, 32))
    module = randomised(module)
    return module, *port(t5.FAMILY, module, config.to_dict())


@pytest.fixture(scope="module")
def encoder():
    return encoder_pair()


@pytest.fixture(scope="module")
def whole():
    return whole_pair(tied=False)


@pytest.fixture(scope="module")
def tied():
    return whole_pair(tied=True)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("buckets", "most"), [(32, 128), (8, 12), (64, 100)])
def test_buckets_of_positions(causal, buckets, most):
    ours = relative_buckets(700, 512, causal=causal, buckets=buckets, max_distance=most)
    ahead = torch.arange(512)[None] - torch.arange(700)[:, None]
    attention = transformers.models.t5.modeling_t5.T5Attention
    theirs = attention._relative_position_bucket(
        ahead, bidirectional=not causal, num_buckets=buckets, max_distance=most
    )
    np.testing.assert_array_equal(ours, theirs.numpy())


@pytest.mark.slow
@pytest.mark.parametrize(("n", "length", "mask"), [(3, 20, False), (1, 5, False), (3, 20, True)])
def test_encoder(encoder, n, length, mask):
    module, model, _ = encoder
    ids, mask = tokens(n, length), masked(n, length) if mask else None
    ours = apply(model, call, ids, mask)
    # The classes of `transformers` take "no mask" to mean "all are seen", as we do.
    theirs = module(as_torch(ids), attention_mask=None if mask is None else torch.tensor(mask))
    assert error(ours, theirs.last_hidden_state) < 2e-5


@pytest.mark.slow
def test_logits_of_an_answer(whole):
    assert_logits(whole, tokens(3, 20), tokens(3, 9, seed=1), masked(3, 20))


@pytest.mark.slow
def test_logits_of_a_tied_head(tied):
    assert_logits(tied, tokens(1, 6), tokens(1, 9, seed=1), None)


def assert_logits(pair, ids, targets, mask):
    module, model, _ = pair
    ours = apply(model, logits, ids, targets, mask)
    theirs = module(
        as_torch(ids),
        attention_mask=None if mask is None else torch.tensor(mask),
        labels=as_torch(targets),
    )
    assert ours.dtype == jnp.float32
    assert error(ours, theirs.logits) < 1e-4


@pytest.mark.slow
def test_a_target_is_not_seen_before_its_turn(tied):
    _, model, _ = tied
    ids, targets = tokens(1, 6), tokens(1, 9, seed=1)
    other = targets.copy()
    other[:, 4:] = (other[:, 4:] + 1) % 40
    a, b = (apply(model, logits, ids, answer, None) for answer in (targets, other))
    np.testing.assert_array_equal(a[:, :5], b[:, :5])
    assert np.abs(a[:, 5:] - b[:, 5:]).max(-1).min() > 1e-3


@pytest.mark.slow
def test_embeddings_instead_of_tokens(encoder):
    module, model, _ = encoder
    x = np.random.default_rng(2).normal(size=(2, 7, 32)).astype(np.float32)
    ours = apply(model, lambda model, x: model.encode(x), x)
    assert error(ours, module(inputs_embeds=torch.tensor(x)).last_hidden_state) < 2e-5


@pytest.mark.slow
def test_gradients_of_the_parameters(tied):
    module, model, found = tied
    ids, targets = tokens(2, 8), tokens(2, 5, seed=1)
    weights = np.random.default_rng(1).normal(size=(2, 5, 40)).astype(np.float32)
    theirs = module(as_torch(ids), labels=as_torch(targets)).logits
    scalar = (theirs * torch.tensor(weights)).sum()
    loss = lambda model: (model.logits(ids, targets) * weights).sum()  # noqa: E731
    assert gradient_error(model, found, module, loss, scalar) < 1e-3


@pytest.mark.slow
def test_bfloat16_is_near(encoder):
    module, exact, _ = encoder
    numerics = Numerics(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    model, _ = port(t5.ENCODER, module, module.config.to_dict(), numerics)
    ours = apply(model, call, tokens(2, 9))
    assert ours.dtype == jnp.bfloat16
    assert model.encoder.norm.scale.dtype == jnp.float32
    wanted = apply(exact, call, tokens(2, 9))
    assert 1e-4 < error(ours.astype(jnp.float32), np.asarray(wanted)) < 5e-2


def test_parameters_name_their_axes(encoder):
    axes = logical_axes(encoder[1])
    assert axes.tokens.get_value() == ("vocab", "embed")
    assert axes.encoder.relative.get_value() == (None, "heads")
    assert axes.encoder.blocks.attention.out.kernel.get_value() == ("layer", "heads", "embed")
    assert axes.encoder.blocks.gate.kernel.get_value() == ("layer", "embed", "mlp")


def test_settings_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="twice max_distance, got 32 and 16"):
        T5Config(buckets=32, max_distance=16)
    with pytest.raises(ValueError, match="decoder_depth must be at least 1, got 0"):
        T5(T5Config(), Numerics(), rngs=nnx.Rngs(0))
