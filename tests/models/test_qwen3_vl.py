"""Qwen3-VL computes what transformers' does, from the same small random weights, in float32."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from outside import torch, transformers
from torch_parity import apply, error, port, randomised, tensors

from flowsde.models.common.layers import Numerics, logical_axes
from flowsde.models.common.paths import parameters
from flowsde.models.family import abstract
from flowsde.models.qwen3.model import Qwen3Config
from flowsde.models.qwen3_vl.model import QWEN3_VL_4B, QWEN3_VL_8B, Qwen3VLConfig
from flowsde.models.qwen3_vl.questions import Asked
from flowsde.models.qwen3_vl.rewards import Judging, judge
from flowsde.models.qwen3_vl.vision import Qwen3VLVisionConfig
from flowsde_converters.qwen3_vl import FAMILY
from flowsde_converters.tables import check_ignored, unconvert

IMAGE = 59
TEXT = {
    "vocab_size": 60, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-3,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 500.0, "mrope_section": [4, 2, 2],
        "mrope_interleaved": True,
    },
}  # fmt: skip
VISION = {
    "depth": 5, "hidden_size": 16, "intermediate_size": 20, "num_heads": 2, "patch_size": 4,
    "out_hidden_size": 24, "num_position_embeddings": 36, "deepstack_visual_indexes": [1, 3],
}  # fmt: skip
BEFORE = [7, 3, 11]
TEXTS = np.random.default_rng(1).integers(0, 58, (2, 3, 6)).astype(np.int32)
LAST = np.asarray([[5, 2, 4], [3, 5, 1]], np.int32)
IMAGES = np.random.default_rng(0).uniform(-1.0, 1.0, (2, 24, 40, 3)).astype(np.float32)
"""3 x 5 tokens, of 6 x 10 patches: more columns than the square of positions has, as many rows."""


def made(tied=False, text=None, vision=None):
    config = transformers.Qwen3VLConfig(
        text_config=TEXT | (text or {}), vision_config=VISION | (vision or {}),
        image_token_id=IMAGE, video_token_id=58, vision_start_token_id=57,
        tie_word_embeddings=tied,
    )  # fmt: skip
    return transformers.Qwen3VLForConditionalGeneration(config)


@pytest.fixture(scope="module")
def pair():
    module = randomised(made(), std=0.25).requires_grad_(False)
    return module, *port(FAMILY, module, module.config.to_dict())


def patches(images):
    """What the processor makes of standardised images, a tensor that gradients pass through."""
    n, height, width, _ = images.shape
    x = images.reshape(n, height // 8, 2, 4, width // 8, 2, 4, 3).permute(0, 1, 4, 2, 5, 7, 3, 6)
    x = torch.stack([x, x], dim=6)
    return x.reshape(-1, 3 * 2 * 4 * 4)


@cache
def grid():
    return torch.tensor([[1, 6, 10]])


def logits_of(module, images, texts, last):
    """Of one image and one text, as published code is called."""
    ids = torch.tensor([[*BEFORE, *[IMAGE] * 15, *texts[: last + 1].tolist()]])
    out = module(
        input_ids=ids, pixel_values=patches(images), image_grid_thw=grid(),
        mm_token_type_ids=(ids == IMAGE).int(), attention_mask=torch.ones_like(ids),
    )  # fmt: skip
    return out.logits[0, -1]


def every(module, images):
    return torch.stack([
        torch.stack([
            logits_of(module, images[i : i + 1], TEXTS[i, k], LAST[i, k]) for k in range(3)
        ])
        for i in range(2)
    ])  # fmt: skip


def before(n):
    return np.asarray([BEFORE] * n, np.int32)


def call(model, images, texts, last):
    return model(images, before(len(images)), texts, last)


@pytest.mark.slow
def test_the_image_tower_is_transformers(pair):
    module, model, found = pair
    assert (found.config.vision.deep, found.config.sections) == ((1, 3), (4, 2, 2))
    made = apply(model, lambda m, x: m.vision(x), IMAGES)
    wanted = module.model.visual(patches(torch.from_numpy(IMAGES)), grid_thw=grid().repeat(2, 1))
    assert error(made.tokens, wanted.pooler_output.reshape(2, 15, 24)) <= 2e-5
    deep = torch.stack(wanted.deepstack_features).reshape(2, 2, 15, 24)
    assert error(made.deep, deep) <= 2e-5


@pytest.mark.slow
def test_logits_of_a_text_are_transformers(pair):
    module, model, _ = pair
    said = apply(model, call, IMAGES[:1], TEXTS[:1, :1], LAST[:1, :1])
    wanted = logits_of(module, torch.from_numpy(IMAGES[:1]), TEXTS[0, 0], LAST[0, 0])
    assert error(said[0, 0], wanted) <= 1e-4


@pytest.mark.slow
def test_texts_that_share_an_image(pair):
    """Each of its own length, read after what was kept of the image: the logits are those that it
    has by itself, here and there."""
    module, model, _ = pair
    shared = apply(model, call, IMAGES, TEXTS, LAST)
    assert shared.dtype == jnp.float32
    assert error(shared, every(module, torch.from_numpy(IMAGES))) <= 1e-4
    alone = [apply(model, call, IMAGES, TEXTS[:, k : k + 1], LAST[:, k : k + 1]) for k in range(3)]
    assert error(shared, np.concatenate(alone, axis=1)) <= 1e-5
    # What is behind its end is not read.
    other = np.where(np.arange(6)[None, None] > LAST[:, :, None], 9, TEXTS)
    np.testing.assert_array_equal(apply(model, call, IMAGES, other, LAST), shared)


@pytest.mark.slow
def test_rewards_and_their_gradients(pair):
    """The geometric mean of P(yes) over two questions, of two spellings and of one; a third place
    is empty."""
    module, model, _ = pair
    answers = np.asarray([[[4, 9], [7, -1], [1, -1]]] * 2, np.int32)
    asked = Asked(
        before(2), TEXTS, LAST, answers, answers * 0 + 3, np.asarray([[1, 1, 0]] * 2, np.float32)
    )
    reward = judge(model, Judging(combine="geometric", least=64), minibatch=1)

    @jax.jit
    def scored(reward, images):
        score, back = jax.vjp(lambda x: reward(x, asked), images)
        return score, back(jnp.ones_like(score))[0]

    score, slope = scored(reward, IMAGES)
    images = torch.from_numpy(IMAGES).requires_grad_(True)
    p = every(module, images).softmax(-1)
    wanted = ((p[:, 0, 4] + p[:, 0, 9]) * p[:, 1, 7]).sqrt()
    wanted.sum().backward()
    assert error(score, wanted) <= 1e-4
    assert error(slope, images.grad) <= 1e-3
    # Weights are arguments, so that programs are shared and hold none.
    assert len(jax.tree.leaves(reward)) == len(parameters(model))
    assert (reward.name, reward.minibatch) == ("qwen3vl", 1)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(8, 8), (16, 72)])
def test_images_of_other_sizes(pair, size):
    module, model, _ = pair
    images = np.random.default_rng(3).uniform(-1.0, 1.0, (1, *size, 3)).astype(np.float32)
    tall, wide = (side // 8 for side in size)
    ids = torch.tensor([[*BEFORE, *[IMAGE] * (tall * wide), *TEXTS[0, 0].tolist()]])
    wanted = module(
        input_ids=ids, pixel_values=patches(torch.from_numpy(images)),
        image_grid_thw=torch.tensor([[1, 2 * tall, 2 * wide]]),
        mm_token_type_ids=(ids == IMAGE).int(),
    ).logits[:, -1:]  # fmt: skip
    assert error(apply(model, call, images, TEXTS[:1, :1], LAST[:1, :1]), wanted) <= 1e-4


@pytest.mark.slow
def test_weights_come_back_with_the_same_bits(pair):
    module, model, found = pair
    weights = tensors(module)
    back = unconvert(found.table, {k: np.asarray(a) for k, a in parameters(model).items()})
    assert back.keys() == weights.keys()
    for key, tensor in back.items():
        np.testing.assert_array_equal(tensor, weights[key], strict=True)


@pytest.mark.slow
def test_a_head_that_is_the_token_table():
    module = randomised(made(tied=True), std=0.25).requires_grad_(False)
    model, found = port(FAMILY, module, module.config.to_dict())
    assert found.config.tied
    assert (
        error(apply(model, call, IMAGES, TEXTS, LAST), every(module, torch.tensor(IMAGES))) <= 1e-4
    )
    weights = tensors(module)
    copied = weights | {"lm_head.weight": weights["model.language_model.embed_tokens.weight"]}
    assert found.table.problems(copied, parameters(model)) == []
    check_ignored(found.table, copied, copied.__getitem__)
    copied["lm_head.weight"] = copied["lm_head.weight"] + 1.0
    with pytest.raises(ValueError, match="lm_head.weight differs from model.language_model.embed"):
        check_ignored(found.table, copied, copied.__getitem__)


def test_parameters_name_their_axes():
    axes = logical_axes(abstract(FAMILY, Qwen3VLConfig()))
    assert axes.vision.kernel.get_value() == (None, None, "embed")
    assert axes.vision.blocks.query.kernel.get_value() == ("layer", "embed", "heads")
    assert axes.vision.deep.up.kernel.get_value() == ("layer", "embed", "mlp")
    assert axes.text.blocks.down.kernel.get_value() == ("layer", "mlp", "embed")
    assert axes.head.kernel.get_value() == ("embed", "vocab")


@pytest.mark.slow
def test_in_bfloat16_logits_are_float32():
    """By shapes, at full size."""
    model = abstract(FAMILY, QWEN3_VL_4B, Numerics(dtype=jnp.bfloat16, param_dtype=jnp.bfloat16))
    like = jax.ShapeDtypeStruct
    told = like((2, 4), jnp.int32), like((2, 3, 32), jnp.int32), like((2, 3), jnp.int32)
    graph, state = nnx.split(model)
    said = jax.eval_shape(
        lambda state, *args: nnx.merge(graph, state)(*args),
        state, like((2, 64, 96, 3), jnp.float32), *told,
    )  # fmt: skip
    assert (said.shape, said.dtype) == ((2, 3, 151936), jnp.float32)


@pytest.mark.slow
def test_what_cannot_be_is_named(pair):
    module, model, _ = pair
    weights, beside = tensors(module), module.config.to_dict()
    for section, name, said in (
        ("vision_config", "deepstack_visual_indexes", "vision_config in config.json must say deep"),
        ("vision_config", "num_heads", "vision_config in config.json must say num_heads"),
        ("text_config", "rope_parameters", "text_config in config.json must say rope_theta"),
    ):
        without = {k: v for k, v in beside[section].items() if k != name}
        with pytest.raises(ValueError, match=said):
            FAMILY.recognise(weights, beside | {section: without})
    with pytest.raises(ValueError, match="text_config is an object, got None"):
        FAMILY.recognise(weights, None)
    for section, says, said in (
        ("vision_config", {"hidden_act": "silu"}, "hidden_act in config.json must be gelu_pytorch"),
        ("text_config", {"rope_parameters": {"rope_theta": 5.0, "mrope_interleaved": False}},
         "mrope_interleaved in config.json must be true, got false"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            FAMILY.recognise(weights, beside | {section: beside[section] | says})
    with pytest.raises(ValueError, match=r"multiples of 8 pixels, got \[2, 24, 36, 3\]"):
        model.vision(jnp.zeros((2, 24, 36, 3)))
    with pytest.raises(ValueError, match=r"sections must be three that make up the 64 pairs"):
        Qwen3VLConfig(sections=(24, 20, 21))
    with pytest.raises(ValueError, match=r"deep must be numbers of the 4 blocks.*got \(1, 4\)"):
        Qwen3VLVisionConfig(depth=4, deep=(1, 4))
    with pytest.raises(ValueError, match=r"deep must be of at most the 2 blocks of the text"):
        Qwen3VLConfig(text=Qwen3Config(depth=2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "count", "keys"),
    [(QWEN3_VL_4B, 4_437_815_808, 714), (QWEN3_VL_8B, 8_767_123_696, 750)],
    ids=["4b", "8b"],
)
def test_full_size(ours, count, keys):
    """By keys and shapes of the public class, and its own count."""
    text, vision = ours.text, ours.vision
    with torch.device("meta"):
        module = made(
            ours.tied,
            {
                "vocab_size": 151936, "hidden_size": text.width, "intermediate_size": text.mlp,
                "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
                "head_dim": 128, "rms_norm_eps": 1e-6,
                "rope_parameters": {"rope_type": "default", "rope_theta": 5e6},
            },
            {
                "depth": vision.depth, "hidden_size": vision.width, "num_heads": 16,
                "intermediate_size": vision.mlp, "patch_size": 16, "out_hidden_size": text.width,
                "num_position_embeddings": 2304, "deepstack_visual_indexes": list(vision.deep),
            },
        )  # fmt: skip
    held = {name: tuple(p.shape) for name, p in module.named_parameters()}
    checkpoint = {key: np.broadcast_to(np.float32(0), shape) for key, shape in held.items()}
    found = FAMILY.recognise(checkpoint, module.config.to_dict())
    assert found.config == ours
    like = parameters(abstract(FAMILY, ours))
    assert found.table.problems(checkpoint, like) == []
    sizes = sum(int(np.prod(p.shape)) for p in like.values())
    assert (sizes, sum(a.size for a in checkpoint.values()), len(held) + ours.tied) == (
        count, count, keys,
    )  # fmt: skip
