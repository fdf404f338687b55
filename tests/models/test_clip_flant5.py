"""CLIP-FlanT5 against the public classes that it is made of, in float32, and VQAScore by it."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image
from torch_parity import apply, error

import flowsde as fs
from flowsde.models.clip.model import CLIPVisionConfig
from flowsde.models.clip.rewards import clip_pixels
from flowsde.models.clip_flant5.model import XL, XXL, CLIPFlanT5Config, log_probabilities
from flowsde.models.clip_flant5.questions import Question, asking
from flowsde.models.clip_flant5.rewards import centred_pixels, vqa_score
from flowsde.models.common.layers import Numerics, logical_axes
from flowsde.models.common.paths import parameters, with_parameters
from flowsde.models.family import abstract
from flowsde_converters import clip_flant5, t5
from flowsde_converters.tables import check_ignored, convert, unconvert

GOLDEN = Path(__file__).parents[1] / "data" / "clip_flant5.npz"
BESIDE = {
    "relative_attention_max_distance": 16,
    "tie_word_embeddings": False,
    "vision_config": {"num_attention_heads": 2},
    "mm_vision_select_layer": -2,
    "mm_projector_type": "mlp2x_gelu",
}
WORDS = 60
VISION = "vision_tower.vision_tower.vision_model."


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as held:
        return dict(held)


@pytest.fixture(scope="module")
def weights(golden):
    return {k.removeprefix("weights/"): a for k, a in golden.items() if k.startswith("weights/")}


@pytest.fixture(scope="module")
def found(weights):
    return clip_flant5.FAMILY.recognise(weights, BESIDE)


@pytest.fixture(scope="module")
def model(weights, found):
    config = dataclasses.replace(found.config, words=WORDS)
    made = abstract(clip_flant5.FAMILY, config, Numerics())
    return with_parameters(made, convert(found.table, weights, parameters(made)))


def asked(golden):
    return Question(*(golden[name] for name in ("before", "after", "answer")))


def everything(model, pixels, question):
    patches = model.vision(pixels)
    encoded, mask = model.encode(pixels, question.before, question.after)
    return patches, model.projector(patches), encoded, mask, model(pixels, *question)


@pytest.mark.slow
def test_tower_projector_encoder_and_answer(golden, model):
    pixels = golden["pixels"].transpose(0, 2, 3, 1)
    patches, image, encoded, mask, said = apply(model, everything, pixels, asked(golden))
    assert error(patches, golden["patches"]) < 2e-5
    assert error(image, golden["image"]) < 2e-5
    np.testing.assert_array_equal(mask, golden["mask"])
    # Of padding nothing is read.
    assert not mask.all()
    assert error(np.asarray(encoded)[mask], golden["encoded"][golden["mask"]]) < 2e-5
    assert said.dtype == jnp.float32
    assert error(said, golden["log_probabilities"]) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("odds", [False, True])
def test_scores_and_gradients_of_the_image(golden, model, odds):
    """Through the preprocessing too, of pictures that are no squares."""
    reward = vqa_score(model, odds=odds, minibatch=1)

    @jax.jit
    def scored(reward, images):
        score, back = jax.vjp(lambda x: reward(x, asked(golden)), images)
        return score, back(jnp.ones_like(score))[0]

    score, slope = scored(reward, golden["picture"].astype(np.float32) / 127.5 - 1.0)
    wanted, steep = golden["score"], golden["gradient"]
    if odds:
        s = wanted.astype(np.float64)
        wanted, steep = np.log(s / (1.0 - s)), steep / (s * (1.0 - s))[:, None, None, None]
    assert error(score, wanted) < 1e-4
    assert error(slope, steep) < 1e-3
    # Weights are arguments, so that programs are shared and hold none.
    assert len(jax.tree.leaves(reward)) == len(parameters(model))
    assert (reward.name, reward.minibatch) == ("vqascore-odds" if odds else "vqascore", 1)


@pytest.mark.slow
def test_an_answer_that_is_all_but_certain_is_not_rounded():
    """Of two words whose logits are g apart log P = -log(1 + exp(-g))."""
    gaps = np.asarray([20.0, 40.0, 80.0, -30.0])
    two = np.stack([3.0 + gaps, np.full(4, 3.0)], axis=-1).astype(np.float32)
    first = np.zeros(4, np.int32)

    @jax.jit
    def all_of(two, three):
        said, back = jax.vjp(lambda x: log_probabilities(x, first), two)
        return said, log_probabilities(three, first), back(jnp.ones_like(said))[0]

    of_two, of_three, slopes = all_of(two, np.concatenate([two, two[:, 1:]], axis=-1))
    np.testing.assert_allclose(of_two, -np.logaddexp(0.0, -gaps), rtol=1e-5)
    np.testing.assert_allclose(of_three, -np.logaddexp(0.0, np.log(2.0) - gaps), rtol=1e-5)
    np.testing.assert_allclose(slopes[:, 0], 1.0 / (1.0 + np.exp(gaps)), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(20, 31), (31, 20), (24, 24)])
def test_pixels(height, width):
    """A picture in the middle of a square of the mean colour, by Pillow."""
    picture = np.random.default_rng(height).integers(0, 256, (height, width, 3)).astype(np.uint8)
    side = max(height, width)
    square = Image.new("RGB", (side, side), (122, 116, 104))
    square.paste(Image.fromarray(picture), ((side - width) // 2, (side - height) // 2))
    images = jnp.asarray(picture[None] / 127.5 - 1.0, jnp.float32)
    wanted = clip_pixels(jnp.asarray(np.asarray(square)[None] / 127.5 - 1.0, jnp.float32), 14)
    np.testing.assert_allclose(centred_pixels(images, 14), wanted, atol=1e-5)


@pytest.mark.slow
def test_weights_come_back_with_the_same_bits(weights, found, model):
    back = unconvert(found.table, {k: np.asarray(a) for k, a in parameters(model).items()})
    left = weights.keys() - back.keys()
    # The image tower's last block, and the norm behind it.
    assert len(left) == 18 and all("layers.2." in k or "post_layernorm" in k for k in left)
    for key, tensor in back.items():
        np.testing.assert_array_equal(tensor, weights[key], strict=True)


@pytest.mark.slow
def test_copies_of_the_token_table_are_compared(weights, found, model):
    names = [f"{of}embed_tokens.weight" for of in ("", "encoder.", "decoder.")]
    more = weights | {name: weights["shared.weight"] for name in names}
    more[f"{VISION}embeddings.position_ids"] = np.arange(17)[None]
    assert found.table.problems(more, parameters(model)) == []
    check_ignored(found.table, more, more.__getitem__)
    more["embed_tokens.weight"] = weights["lm_head.weight"]
    with pytest.raises(ValueError, match="embed_tokens.weight differs from shared.weight"):
        check_ignored(found.table, more, more.__getitem__)


@pytest.mark.slow
def test_parameters_name_their_axes(model):
    axes = logical_axes(model)
    assert axes.projector.up.kernel.get_value() == ("embed", "mlp")
    assert axes.projector.down.kernel.get_value() == ("mlp", "embed")
    assert axes.vision.blocks.query.kernel.get_value() == ("layer", "embed", "heads")
    assert axes.text.decoder.blocks.cross.out.kernel.get_value() == ("layer", "heads", "embed")
    assert axes.text.head.kernel.get_value() == ("embed", "vocab")


@pytest.mark.slow
def test_split_over_two_devices(tmp_path):
    """By heads and hidden features, the same scores."""
    folder = tiny.clip_flant5(tmp_path)
    mesh = jax.make_mesh((2,), ("model",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    whole, split = fs.load(folder), fs.load(folder, mesh)
    assert len(split.text.decoder.blocks.cross.out.kernel.sharding.device_set) == 2
    told = asking(folder / "tokenizer", words=whole.config.words).fitting([tiny.PROMPTS[0]])
    question = jax.tree.map(lambda a: np.stack([a, a]), told(tiny.PROMPTS[0]))
    images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 20, 3)).astype(np.float32)
    ours, alone = (
        np.asarray(jax.jit(lambda reward: reward(images, question))(vqa_score(model, odds=True)))
        for model in (split, whole)
    )
    np.testing.assert_allclose(ours, alone, rtol=1e-5)


def test_what_cannot_be_is_named(golden, weights, model):
    # T5's keys are in the file, and it is no T5.
    assert t5.FAMILY.recognise(weights, BESIDE) is None
    without = {k: a for k, a in weights.items() if not k.startswith(VISION)}
    assert clip_flant5.FAMILY.recognise(without, BESIDE) is None
    for said, line in (
        ({"mm_vision_select_layer": -1}, "mm_vision_select_layer in config.json must be -2, got -"),
        ({"mm_projector_type": "linear"}, "must be 'mlp2x_gelu', got 'linear'"),
        ({"vision_config": {}}, "16 features are not those of heads of 64: expected num_attention"),
    ):
        with pytest.raises(ValueError, match=line):
            clip_flant5.FAMILY.recognise(weights, BESIDE | said)
    with pytest.raises(ValueError, match="layout must be transformers or transformers-unshared"):
        clip_flant5.FAMILY.table(XL, "original")
    with pytest.raises(ValueError, match="words must be 1 to 32128, got 40000"):
        CLIPFlanT5Config(words=40000)
    with pytest.raises(ValueError, match="image tower must have no projection, got one to 768"):
        CLIPFlanT5Config(vision=CLIPVisionConfig(projection=768))
    with pytest.raises(ValueError, match=r"\[n, 28, 28, 3\], got \[2, 16, 16, 3\]"):
        jax.eval_shape(model, jnp.zeros((2, 16, 16, 3)), *asked(golden))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "count"), [(XL, 3_159_560_192), (XXL, 11_459_819_520)], ids=["xl", "xxl"]
)
def test_full_size(ours, count):
    """By keys and shapes of the public classes, and their own count, without a config.json."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    text, vision = ours.text, ours.vision
    with torch.device("meta"):
        t5_ = transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                vocab_size=32128, d_model=text.width, d_kv=64, d_ff=text.mlp, num_layers=24,
                num_heads=text.heads, feed_forward_proj="gated-gelu",
            )
        )  # fmt: skip
        tower = transformers.CLIPVisionModel(
            transformers.CLIPVisionConfig(
                hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
                num_attention_heads=16, image_size=336, patch_size=14,
            )
        )  # fmt: skip
        layers = {"0": torch.nn.Linear(1024, text.width), "2": torch.nn.Linear(*2 * [text.width])}
        projector = torch.nn.ModuleDict(layers)
    assert vision.depth == 23
    held = {**t5_.state_dict()}
    held |= {VISION + k.removeprefix("vision_model."): a for k, a in tower.state_dict().items()}
    held |= {f"mm_projector.{k}": a for k, a in projector.state_dict().items()}
    checkpoint = {
        key: np.broadcast_to(np.float32(0), tuple(tensor.shape)) for key, tensor in held.items()
    }
    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    assert sum(a.size for key, a in checkpoint.items() if key not in copies) == count
    found = clip_flant5.FAMILY.recognise(checkpoint, None)
    assert found.config == ours
    like = parameters(abstract(clip_flant5.FAMILY, ours))
    assert found.table.problems(checkpoint, like) == []
    # What is left out: a block of the image tower, and a norm.
    assert sum(int(np.prod(p.shape)) for p in like.values()) == count - 12_596_224 - 2_048
