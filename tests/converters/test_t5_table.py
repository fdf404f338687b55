"""T5's tables fit the published models at full size, and are undone exactly."""

import dataclasses
import json

import numpy as np
import pytest
from outside import torch, transformers
from safetensors.numpy import save_file

from flowsde.models.common.paths import parameters
from flowsde.models.family import abstract
from flowsde_converters import t5
from flowsde_converters.convert import prepare, run
from flowsde_converters.tables import convert, unconvert

XXL = {
    "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
}  # fmt: skip
TINY = {
    "vocab_size": 9, "d_model": 8, "d_kv": 3, "d_ff": 12, "num_layers": 2, "num_heads": 2,
    "num_decoder_layers": 3, "feed_forward_proj": "gated-gelu",
}  # fmt: skip

COPIES = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
# A tokenizer among the tensors.
PIECES = "spiece_model"
# In early files, of no use.
EARLY = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def built(found, family):
    return parameters(abstract(family, found.config))


@pytest.mark.slow_but_one
@pytest.mark.parametrize("whole", [False, True])
def test_xxl(whole):
    settings = transformers.T5Config(**XXL)
    with torch.device("meta"):
        if whole:
            module = transformers.T5ForConditionalGeneration(settings)
            module.lm_head.weight = torch.nn.Parameter(torch.empty(32128, 4096))
        else:
            module = transformers.T5EncoderModel(settings)
    checkpoint = {
        key: np.broadcast_to(np.float32(0), tuple(tensor.shape))
        for key, tensor in module.state_dict().items()
    }
    family, other = (t5.FAMILY, t5.ENCODER) if whole else (t5.ENCODER, t5.FAMILY)
    found = family.recognise(checkpoint, settings.to_dict())
    assert other.recognise(checkpoint, settings.to_dict()) is None
    assert found.config == t5.T5Config(decoder_depth=24 if whole else 0)
    model = built(found, family)
    assert found.table.problems(checkpoint, model) == []
    ours = sum(int(np.prod(p.shape)) for p in model.values())
    assert ours == sum(p.numel() for p in module.parameters())
    assert family.config(**json.loads(json.dumps(dataclasses.asdict(found.config)))) == found.config


def tiny(tied):
    settings = transformers.T5Config(**TINY, tie_word_embeddings=tied)
    with torch.device("meta"):
        module = transformers.T5ForConditionalGeneration(settings)
        if not tied:
            module.lm_head.weight = torch.nn.Parameter(torch.empty(9, 8))
    rng = np.random.default_rng(0)
    checkpoint = {
        key: rng.normal(size=tuple(tensor.shape)).astype(np.float32)
        for key, tensor in module.state_dict().items()
    }
    for key in COPIES:
        checkpoint[key] = checkpoint["shared.weight"]
    checkpoint[EARLY] = np.ones((32, 2), np.float32)
    checkpoint[PIECES] = np.zeros(5, np.uint8)
    if tied:
        del checkpoint["lm_head.weight"]
    return settings.to_dict(), checkpoint


@pytest.mark.slow_but_one
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("copies", [False, True])
def test_unconvert_gives_back_the_same_bits(tied, copies):
    settings, checkpoint = tiny(tied)
    left_out = {*COPIES, EARLY, PIECES}
    wanted = {key: tensor for key, tensor in checkpoint.items() if key not in left_out}
    found = t5.FAMILY.recognise(checkpoint if copies else wanted, settings)
    assert found.config.tied_head == tied and found.config.decoder_depth == 3
    params = convert(found.table, checkpoint, built(found, t5.FAMILY))
    back = unconvert(found.table, params)
    assert back.keys() == wanted.keys()
    for key, tensor in wanted.items():
        np.testing.assert_array_equal(back[key], tensor, strict=True)


def test_whether_the_head_is_tied():
    _, checkpoint = tiny(tied=False)

    def head(json):
        config = t5.FAMILY.recognise(checkpoint, json).config
        return config.tied_head, config.scaled

    # A head that is there is used; what config.json says decides about the scale.
    assert head(None) == (False, False)
    assert head({"tie_word_embeddings": False}) == (False, False)
    assert head({"d_model": 8}) == (False, True)
    assert head({"tie_word_embeddings": True, "scale_decoder_outputs": False}) == (False, False)
    del checkpoint["lm_head.weight"]
    assert head(None) == (True, True)
    assert head({"tie_word_embeddings": True, "scale_decoder_outputs": False}) == (True, False)
    # Then a head is missing, which is said.
    assert head({"tie_word_embeddings": False}) == (False, False)
    with pytest.raises(ValueError, match="decoder_start_token_id in config.json must be 0, got 2"):
        t5.FAMILY.recognise(checkpoint, {"decoder_start_token_id": 2})


@pytest.mark.slow_but_one
@pytest.mark.parametrize("key", sorted(COPIES))
def test_copies_that_differ_are_refused(key, tmp_path):
    settings, checkpoint = tiny(tied=True)
    checkpoint[key] = checkpoint[key].copy()
    checkpoint[key][-1, -1] += 1e-3
    found = t5.FAMILY.recognise(checkpoint, settings)
    says = f"{key} differs from shared.weight, expected a copy"
    with pytest.raises(ValueError, match=says):
        convert(found.table, checkpoint, built(found, t5.FAMILY))
    save_file(checkpoint, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=says):
        run(prepare(tmp_path / "model.safetensors"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_copies_may_have_another_dtype_but_no_other_shape():
    settings, checkpoint = tiny(tied=True)
    found = t5.FAMILY.recognise(checkpoint, settings)
    model, key = built(found, t5.FAMILY), "encoder.embed_tokens.weight"
    convert(found.table, checkpoint | {key: checkpoint[key].astype(np.float64)}, model)
    with pytest.raises(ValueError, match="differs"):
        convert(found.table, checkpoint | {key: checkpoint[key].T}, model)


def test_other_kinds_of_t5_are_refused():
    settings, checkpoint = tiny(tied=False)
    with pytest.raises(ValueError, match="from v1.1 on.*got gated-silu"):
        t5.FAMILY.recognise(checkpoint, settings | {"feed_forward_proj": "gated-silu"})
    old = {key: tensor for key, tensor in checkpoint.items() if "wi_0" not in key}
    with pytest.raises(ValueError, match="got layers without a gate"):
        t5.FAMILY.recognise(old, None)
    bias = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    umt5 = checkpoint | {bias.format(1): checkpoint[bias.format(0)]}
    with pytest.raises(ValueError, match="in every block"):
        t5.FAMILY.recognise(umt5, settings)


def test_another_models_keys_are_not_taken():
    other = {"shared.weight": np.zeros((2, 2)), "encoder.layers.0.fc1.weight": np.zeros((2, 2))}
    assert t5.FAMILY.recognise(other, None) is None
    assert t5.ENCODER.recognise(other, None) is None


def test_layouts_are_named():
    with pytest.raises(
        ValueError, match="layout must be transformers or transformers-unshared, got 'diffusers'"
    ):
        t5.ENCODER.table(t5.T5Config(), "diffusers")
