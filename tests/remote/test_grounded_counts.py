"""The recipe of `docs/recipes`: what is counted, and that its models are called as they want."""

import importlib.util
import threading
from pathlib import Path

import numpy as np
import pytest

import flowsde as fs
from flowsde.remote.batching import Batcher
from flowsde.remote.server import RewardServer

FILE = Path(__file__).parents[2] / "docs/recipes/grounded_counts.py"


@pytest.fixture
def recipe():
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("grounded_counts", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mask(*spans):
    """Columns of a picture of ten, by first and last."""
    own = np.zeros((4, 10), bool)
    for first, last in spans:
        own[:, first : last + 1] = True
    return own


def found(recipe, *objects):
    names, scores, masks = zip(*objects, strict=True)
    return recipe.Found(list(names), np.asarray(scores), np.stack(masks))


def test_parts_doubtful_boxes_and_other_names_of_an_object_do_not_count(recipe):
    three = [("dog", 0.9, mask((i, i + 1))) for i in (0, 3, 6)]
    assert recipe.counts(found(recipe, *three), ["dog", "cat"]) == {"dog": 3, "cat": 0}
    # The box around all of them has half of its pixels new: not more than half.
    around = ("dog", 0.95, mask((0, 9)))
    assert recipe.counts(found(recipe, *three, around), ["dog"]) == {"dog": 3}
    assert recipe.counts(found(recipe, *three[:1], around), ["dog"]) == {"dog": 1}
    # Seen as a cat as well, less surely; half of one hidden is hidden, a third of it is not.
    cats = [("cat", 0.5, mask((0, 1))), ("cat", 0.6, mask((4, 5))), ("cat", 0.7, mask((7, 9)))]
    assert recipe.counts(found(recipe, *three, *cats), ["dog", "cat"]) == {"dog": 3, "cat": 1}
    # .5 is no more than .6 of .9, but more than .32; .3 is neither.
    doubtful = [("dog", 0.5, mask((8, 8))), ("dog", 0.3, mask((9, 9)))]
    assert recipe.counts(found(recipe, *three, *doubtful), ["dog"]) == {"dog": 4}
    # .25 is more than .6 of the best of its class.
    assert recipe.counts(found(recipe, ("cat", 0.3, mask((8, 8))), ("cat", 0.25, mask((9, 9)))),
                         ["cat"]) == {"cat": 2}  # fmt: skip
    assert recipe.counts(recipe.Found([], np.zeros(0), np.zeros((0, 4, 10), bool)), ["dog"]) == {
        "dog": 0
    }


def test_it_is_served_and_told_counts(recipe, monkeypatch):
    def detect(picture, classes):
        assert picture.dtype == np.uint8 and set(classes) == {"dog", "cat"}
        dogs = int(picture[0, 0, 0]) // 100  # -1 is 0, 0 is 128, 1 is 255
        none = recipe.Found([], np.zeros(0), np.zeros((0, 4, 10), bool))
        return found(recipe, *[("dog", 0.9, mask((i, i))) for i in range(dogs)]) if dogs else none

    monkeypatch.setattr(recipe, "detect", detect)
    server = RewardServer("127.0.0.1", 0, Batcher(recipe.score, "v1", batch=8), "counts", "v1")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        images = np.stack([np.full((2, 2, 3), value, np.float32) for value in (-1.0, 0.0, 1.0)])
        wanted = ["2 Dog, 0 cat", "2 dog,1 cat", "2 dog, 0 cat"]
        for as_pixels in (False, True):
            reward = fs.rewards.remote(server.url, as_pixels=as_pixels)
            np.testing.assert_array_equal(reward(images, wanted), [-4.0, -2.0, 0.0])
        with pytest.raises(fs.rewards.RewardError, match="a prompt must be as .*, got 'two dogs'"):
            reward(images[:1], ["two dogs"])
    finally:
        server.shutdown()
        server.server_close()


def _detector(folder):
    import transformers as t

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "red", "circle", "dog"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokens = t.BertTokenizerFast(str(folder / "vocab.txt"))
    swin = t.SwinConfig(image_size=128, embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 1, 2, 2],
                        window_size=4, out_features=["stage2", "stage3", "stage4"])  # fmt: skip
    bert = t.BertConfig(vocab_size=len(words), hidden_size=16, num_hidden_layers=1,
                        num_attention_heads=2, intermediate_size=16)  # fmt: skip
    config = t.GroundingDinoConfig(backbone_config=swin, text_config=bert, d_model=32,
                                   encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
                                   decoder_attention_heads=2, encoder_ffn_dim=16,
                                   decoder_ffn_dim=16, num_queries=6)  # fmt: skip
    pixels = t.GroundingDinoImageProcessorPil(size={"height": 128, "width": 128})
    return t.GroundingDinoForObjectDetection(config), t.GroundingDinoProcessor(pixels, tokens)


def _segmenter():
    import transformers as t

    vision = t.SamVisionConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                               image_size=64, patch_size=8, output_channels=16, window_size=2,
                               mlp_dim=8, global_attn_indexes=[0], num_pos_feats=8)  # fmt: skip
    prompt = t.SamPromptEncoderConfig(hidden_size=16, image_size=64, patch_size=8,
                                      mask_input_channels=4)  # fmt: skip
    masks = t.SamMaskDecoderConfig(hidden_size=16, mlp_dim=16, num_hidden_layers=1,
                                   num_attention_heads=2, iou_head_hidden_dim=16)  # fmt: skip
    model = t.SamModel(
        t.SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=masks)
    )
    pixels = t.SamImageProcessorPil(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    return model, t.SamProcessor(pixels)


@pytest.mark.slow
def test_its_models_are_called_as_they_want(recipe, monkeypatch, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    monkeypatch.setattr(recipe, "DEVICE", "cpu")
    picture = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    label = "red circle"
    for seed in range(21, 60):  # until random weights name a box by these two words alone
        torch.manual_seed(seed)
        (detector, read), (segmenter, cut) = _detector(tmp_path), _segmenter()
        own = detector.eval(), read, segmenter.eval(), cut
        monkeypatch.setattr(recipe, "loaded", lambda own=own: own)
        made = recipe.detect(picture, [label])
        if made.names:
            break
    assert made.masks.shape == (len(made.names), 48, 80) and made.masks.dtype == bool
    assert made.names and set(made.names) == {label}
    assert made.scores.shape == (len(made.names),)
    number = recipe.counts(made, [label])[label]
    assert recipe.reward(picture, f"3 {label}") == -float((3 - number) ** 2)
    assert not recipe.detect(picture, ["dog ."]).names
