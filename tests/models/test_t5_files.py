"""T5 of files as `transformers` has written them over the years, beside what it reads of them."""

import json

import numpy as np
import pytest
from outside import torch, transformers
from safetensors.numpy import load_file, save_file
from torch_parity import apply, randomised

import flowsde as fs
from flowsde_converters.back import prepare_back, run_back
from flowsde_converters.convert import prepare, run

TINY = {
    "vocab_size": 9, "d_model": 8, "d_kv": 3, "d_ff": 12, "num_layers": 2, "num_heads": 2,
    "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0,
}  # fmt: skip
IDS = np.asarray([[5, 6, 7, 1], [8, 2, 3, 1]], np.int32)
TARGETS = np.asarray([[3, 8, 1], [4, 4, 1]], np.int32)


def computed_by(cls, folder, *args):
    module = cls.from_pretrained(folder)
    ids = [torch.from_numpy(a.astype(np.int64)) for a in args]
    with torch.no_grad():
        if len(ids) == 1:
            return module(ids[0]).last_hidden_state.numpy()
        return module(input_ids=ids[0], labels=ids[1]).logits.numpy()


def assert_read_as_by_transformers(cls, folder, *args):
    run(prepare(folder), folder / "out")
    model = fs.load(folder / "out")
    call = (lambda m, *a: m(*a)) if len(args) == 1 else (lambda m, *a: m.logits(*a))
    ours, theirs = apply(model, call, *args), computed_by(cls, folder, *args)
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())
    return model


def saved(module, folder, changes=None, drop=(), **json_changes):
    """A module as `transformers` saves it, with other keys and settings."""
    randomised(module).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors |= changes(tensors) if changes else {}
    kept = {key: np.array(a) for key, a in tensors.items() if key not in drop}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text()) | json_changes
    settings = {key: value for key, value in settings.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(settings))


ENCODER_TABLE = "encoder.embed_tokens.weight"
OLD = {"scale_decoder_outputs": ...}


def own_head(tensors):
    return {"lm_head.weight": tensors["shared.weight"] + 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    "tied, changes, settings, head",
    [
        (False, None, {}, (True, False)),
        (True, None, {}, (True, True)),
        (False, own_head, {}, (False, False)),
        (False, own_head, OLD, (False, True)),
        (False, own_head, {"tie_word_embeddings": ..., **OLD}, (False, True)),
        (False, own_head, {"tie_word_embeddings": False, **OLD}, (False, False)),
    ],
)
def test_heads_are_those_of_transformers(tied, changes, settings, head, tmp_path):
    config = transformers.T5Config(**TINY, tie_word_embeddings=tied)
    saved(transformers.T5ForConditionalGeneration(config), tmp_path, changes, **settings)
    model = assert_read_as_by_transformers(
        transformers.T5ForConditionalGeneration, tmp_path, IDS, TARGETS
    )
    assert (model.config.tied_head, model.config.scaled) == head


@pytest.mark.slow
def test_a_table_of_the_encoder_alone_is_read(tmp_path):
    saved(
        transformers.T5EncoderModel(transformers.T5Config(**TINY)),
        tmp_path,
        lambda tensors: {ENCODER_TABLE: tensors["shared.weight"]},
        drop=("shared.weight",),
    )
    assert_read_as_by_transformers(transformers.T5EncoderModel, tmp_path, IDS)
    run_back(tmp_path / "out", prepare_back(tmp_path / "out"), tmp_path / "back")
    files = (folder / "model.safetensors" for folder in (tmp_path, tmp_path / "back"))
    wanted, back = map(load_file, files)
    assert back.keys() == wanted.keys()
    np.testing.assert_array_equal(back[ENCODER_TABLE], wanted[ENCODER_TABLE])
