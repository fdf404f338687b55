"""InstructBLIP computes what transformers' does, from the same small random weights, in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from outside import torch, transformers
from torch_parity import apply, error, port, randomised, tensors

import flowsde as fs
from flowsde.models.clip.model import CLIPVisionConfig
from flowsde.models.clip.rewards import STD, clip_pixels
from flowsde.models.common.layers import logical_axes
from flowsde.models.common.paths import parameters
from flowsde.models.family import abstract
from flowsde.models.instructblip.model import XL, XXL, InstructBLIPConfig
from flowsde.models.instructblip.qformer import QFormerConfig
from flowsde.models.instructblip.questions import Asking, Question, asking
from flowsde.models.instructblip.rewards import instructblip_score
from flowsde.models.t5.model import T5Config
from flowsde_converters import t5
from flowsde_converters.instructblip import FAMILY
from flowsde_converters.tables import check_ignored, unconvert

SIDE, IMAGE, QUERIES = 28, 63, 5
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "image_size": SIDE, "patch_size": 14, "layer_norm_eps": 1e-3,
}  # fmt: skip
QFORMER = {
    "vocab_size": 40, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 4,
    "num_attention_heads": 3, "max_position_embeddings": 16, "layer_norm_eps": 1e-4,
}  # fmt: skip
TEXT = {
    "vocab_size": 64, "d_model": 24, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 3,
    "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu", "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16, "scale_decoder_outputs": False, "pad_token_id": 0,
    "decoder_start_token_id": 0,
}  # fmt: skip


def made(vision=VISION, qformer=QFORMER, text=TEXT, queries=QUERIES):
    """The public class; it ties the head to the token table, and published files do not."""
    config = transformers.InstructBlipConfig(
        vision_config=vision, qformer_config=qformer,
        text_config={"model_type": "t5", **text}, num_query_tokens=queries,
        image_token_index=text["vocab_size"] - 1,
    )  # fmt: skip
    module = transformers.InstructBlipForConditionalGeneration(config)
    language = module.language_model
    language.lm_head.weight = torch.nn.Parameter(torch.empty_like(language.lm_head.weight))
    return module


@pytest.fixture(scope="module")
def pair():
    module = randomised(made(), std=0.25).requires_grad_(False)
    return module, *port(FAMILY, module, module.config.to_dict())


def question():
    """Of two prompts, the second padded in either vocabulary."""
    rng = np.random.default_rng(0)
    asked, text = (rng.integers(1, 39, (2, n)).astype(np.int32) for n in (7, 9))
    asked[1, 4:], text[1, 6:] = 0, 0
    return Question(asked, text, np.asarray([[11, 1]] * 2, np.int32))


def pixels():
    return np.random.default_rng(1).normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)


def as_torch(x):
    return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2))


def theirs(module, x, told):
    """What the public class makes of standardised images, as published code calls it."""
    asked, text, answer = (torch.tensor(a.astype(np.int64)) for a in told)
    ids = torch.cat([torch.full((len(x), QUERIES), IMAGE), text], dim=1)
    return module(
        pixel_values=x, qformer_input_ids=asked, qformer_attention_mask=(asked != 0).long(),
        input_ids=ids, attention_mask=(ids != 0).long(), labels=answer,
    )  # fmt: skip


def said(out, told):
    """Log-probabilities of the answer's tokens."""
    answer = torch.tensor(told.answer.astype(np.int64))[..., None]
    return out.logits.log_softmax(-1).gather(-1, answer)[..., 0]


def everything(model, x, told):
    patches = model.vision(x)
    seen = model.qformer(patches, told.asked)
    return patches, seen, model.projection(seen), model(x, *told)


@pytest.mark.slow
def test_tower_qformer_and_answer(pair):
    module, model, found = pair
    assert (found.config.text.activation, found.config.text.scaled) == ("gelu", False)
    wanted = theirs(module, as_torch(pixels()), question())
    patches, seen, read, answer = apply(model, everything, pixels(), question())
    assert error(patches, wanted.vision_outputs.last_hidden_state) < 2e-5
    queries = wanted.qformer_outputs.last_hidden_state[:, :QUERIES]
    assert error(seen, queries) < 2e-5
    assert error(read, module.language_projection(queries)) < 2e-5
    assert answer.dtype == jnp.float32
    assert error(answer, said(wanted, question())) < 1e-4
    # The question is read twice: by the Q-Former too.
    other = question()._replace(asked=question().asked % 38 + 1)
    assert error(apply(model, everything, pixels(), other)[1], queries) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("odds", [False, True])
def test_scores_and_gradients_of_the_image(pair, odds):
    """Through the preprocessing too, of a picture of the model's own size."""
    module, model, _ = pair
    images = np.random.default_rng(2).uniform(-0.9, 0.9, (2, SIDE, SIDE, 3)).astype(np.float32)
    reward = instructblip_score(model, odds=odds, minibatch=1)

    @jax.jit
    def scored(reward, images):
        score, back = jax.vjp(lambda x: reward(x, question()), images)
        return score, back(jnp.ones_like(score))[0]

    score, slope = scored(reward, images)
    x = as_torch(clip_pixels(jnp.asarray(images), SIDE)).requires_grad_()
    wanted = said(theirs(module, x, question()), question()).mean(-1).exp()
    wanted = torch.log(wanted / (1.0 - wanted)) if odds else wanted
    wanted.sum().backward()
    assert error(score, wanted) < 1e-4
    # Pixels in [-1, 1] are halved, and divided by each colour's deviation.
    assert error(slope, x.grad.numpy().transpose(0, 2, 3, 1) / (2.0 * np.asarray(STD))) < 1e-3
    # Weights are arguments, so that programs are shared and hold none.
    assert len(jax.tree.leaves(reward)) == len(parameters(model))
    assert (reward.name, reward.minibatch) == ("instructblip-odds" if odds else "instructblip", 1)


@pytest.mark.slow
def test_weights_come_back_with_the_same_bits(pair):
    module, model, found = pair
    weights = tensors(module)
    back = unconvert(found.table, {k: np.asarray(a) for k, a in parameters(model).items()})
    assert back.keys() == weights.keys() - {"qformer.embeddings.position_ids"}
    for key, tensor in back.items():
        np.testing.assert_array_equal(tensor, weights[key], strict=True)
    # What files may have beside them.
    copies = {f"language_model.{of}.embed_tokens.weight" for of in ("encoder", "decoder")}
    more = weights | dict.fromkeys(copies, weights["language_model.shared.weight"])
    more["qformer.embeddings.position_ids"] = np.arange(16)[None]
    assert found.table.problems(more, parameters(model)) == []
    check_ignored(found.table, more, more.__getitem__)
    more["language_model.encoder.embed_tokens.weight"] = weights["language_model.lm_head.weight"]
    with pytest.raises(ValueError, match="differs from language_model.shared.weight"):
        check_ignored(found.table, more, more.__getitem__)


def test_a_t5_may_have_either_gelu():
    module = transformers.T5ForConditionalGeneration(transformers.T5Config(**TEXT))
    for name, ours in (("gelu", "gelu"), ("gelu_new", "gelu_tanh")):
        found = t5.FAMILY.recognise(tensors(module), TEXT | {"dense_act_fn": name})
        assert found.config.activation == ours
    with pytest.raises(ValueError, match="dense_act_fn in config.json must be gelu_new or gelu, g"):
        t5.FAMILY.recognise(tensors(module), TEXT | {"dense_act_fn": "silu"})
    with pytest.raises(ValueError, match="activation must be gelu_tanh or gelu, got 'silu'"):
        T5Config(activation="silu")


@pytest.mark.slow
def test_parameters_name_their_axes():
    axes = logical_axes(abstract(FAMILY, XL))
    assert axes.vision.blocks.query.kernel.get_value() == ("layer", "embed", "heads")
    first = axes.qformer.blocks.looking
    assert first.image_attention.key.kernel.get_value() == ("layer", "embed", "heads")
    assert first.query_mlp.up.kernel.get_value() == ("layer", "embed", "mlp")
    assert axes.text.decoder.blocks.cross.out.kernel.get_value() == ("layer", "heads", "embed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "count"), [(XL, 4_022_969_088), (XXL, 12_310_119_168)], ids=["xl", "xxl"]
)
def test_full_size(ours, count):
    """By keys and shapes of the public class, and its own count."""
    text = ours.text
    with torch.device("meta"):
        module = made(
            {}, {"vocab_size": 30523},
            TEXT | {
                "vocab_size": 32128, "d_model": text.width, "d_kv": 64, "d_ff": text.mlp,
                "num_layers": 24, "num_heads": text.heads, "relative_attention_num_buckets": 32,
                "relative_attention_max_distance": 128,
            }, 32,
        )  # fmt: skip
    held = {name: tuple(p.shape) for name, p in module.named_parameters()}
    checkpoint = {key: np.broadcast_to(np.float32(0), shape) for key, shape in held.items()}
    # As published: what the image tower and the Q-Former have by default is left out.
    beside = {"vision_config": {}, "qformer_config": {}, "text_config": dict(TEXT)}
    beside["text_config"]["relative_attention_max_distance"] = 128
    found = FAMILY.recognise(checkpoint, beside)
    assert found.config == ours == FAMILY.recognise(checkpoint, module.config.to_dict()).config
    like = parameters(abstract(FAMILY, ours))
    assert found.table.problems(checkpoint, like) == []
    sizes = sum(int(np.prod(p.shape)) for p in like.values())
    assert (sizes, sum(a.size for a in checkpoint.values())) == (count, count)


@pytest.mark.slow
def test_split_over_two_devices(tmp_path):
    """By heads and hidden features, the same scores."""
    folder = tiny.instructblip(tmp_path)
    mesh = jax.make_mesh((2,), ("model",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    whole, split = fs.load(folder), fs.load(folder, mesh)
    assert len(split.qformer.blocks.looking.image_attention.out.kernel.sharding.device_set) == 2
    told = asking(folder, whole.config).fitting([tiny.PROMPTS[0]])(tiny.PROMPTS[0])
    both = jax.tree.map(lambda a: np.stack([a, a]), told)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 20, 3)).astype(np.float32)
    ours, alone = (
        np.asarray(jax.jit(lambda r: r(images, both))(instructblip_score(model, odds=True)))
        for model in (split, whole)
    )
    np.testing.assert_allclose(ours, alone, rtol=1e-5)
    # Another converted model's tokenizer, or none.
    (folder / "qformer_tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="qformer_tokenizer must have a tokenizer.json, got"):
        asking(folder, whole.config)


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    bert = tiny.write_bert_tokenizer(folder / "qformer_tokenizer")
    t5_words = tiny.write_t5_tokenizer(folder / "tokenizer")
    config = InstructBLIPConfig(
        vision=CLIPVisionConfig(width=32), qformer=QFormerConfig(vocab=bert, image=32),
        text=T5Config(vocab=t5_words, decoder_depth=1),
    )  # fmt: skip
    return folder, asking(folder, config)


def test_tokens_are_those_of_the_public_tokenizers(ask):
    """Padded as far as is needed; of a question that is too long the last ones, as cut on the
    left."""
    folder, told = ask
    ends = {"sep_token": "[SEP]", "cls_token": "[CLS]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    bert = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "qformer_tokenizer/tokenizer.json"), truncation_side="left",
        **ends,
    )  # fmt: skip
    t5_ = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer", truncation_side="left")

    def public(prompt):
        text = f'Question: Does this figure show "{prompt}"? Please answer yes or no.'
        words = bert(text, truncation=True, max_length=126, add_special_tokens=False).input_ids
        return [2, *words, 3], t5_(text, truncation=True, max_length=128).input_ids

    fitted = told.fitting(tiny.PROMPTS)
    for prompt in tiny.PROMPTS:
        question = fitted(prompt)
        for ours, wanted in zip(question, (*public(prompt), t5_("yes").input_ids), strict=True):
            assert ours.dtype == np.int32 and not ours[len(wanted) :].any()
            np.testing.assert_array_equal(ours[: len(wanted)], wanted)
        assert all(len(ours) % 32 == 0 for ours in question[:2])
    long = "the cats and the dogs sat on a mat " * 20 + "mat"
    with pytest.warns(UserWarning, match="tokens of BERT, of which the last 128 are read and"):
        question = told(long)
    for ours, wanted in zip(question[:2], public(long), strict=True):
        assert len(wanted) == 128
        np.testing.assert_array_equal(ours, wanted)


@pytest.mark.slow
def test_what_cannot_be_is_named(pair, ask):
    module, model, _ = pair
    weights, beside = tensors(module), module.config.to_dict()
    assert FAMILY.recognise({k: a for k, a in weights.items() if k != "query_tokens"}, None) is None
    with pytest.raises(ValueError, match="of which vision_config is an object, got None"):
        FAMILY.recognise(weights, None)
    without = {k: a for k, a in weights.items() if "decoder" not in k}
    with pytest.raises(ValueError, match="language_model. must have the keys of a T5"):
        FAMILY.recognise(without, beside)
    for section, says, line in (
        ("vision_config", {"hidden_act": "quick_gelu"}, "hidden_act in vision_config of config.j"),
        ("qformer_config", {"cross_attention_frequency": 1}, "cross_attention_frequency in qform"),
        ("text_config", {"dense_act_fn": "relu"}, "dense_act_fn in config.json must be gelu_new"),
    ):
        with pytest.raises(ValueError, match=line):
            FAMILY.recognise(weights, beside | {section: beside[section] | says})
    silent = {k: v for k, v in beside["text_config"].items() if k != "dense_act_fn"}
    with pytest.raises(ValueError, match="text_config in config.json must say dense_act_fn"):
        FAMILY.recognise(weights, beside | {"text_config": silent})
    with pytest.raises(ValueError, match="depth must be even, got 3"):
        QFormerConfig(depth=3)
    with pytest.raises(ValueError, match="images of 1408 features, got a tower of 1024"):
        InstructBLIPConfig(vision=CLIPVisionConfig())
    with pytest.raises(ValueError, match="must have no projection, got one to 768"):
        InstructBLIPConfig(vision=CLIPVisionConfig(width=1408, projection=768))
    with pytest.raises(ValueError, match="at most 16 places, got 17"):
        jax.eval_shape(model.look, jnp.asarray(pixels()), jnp.zeros((2, 17), jnp.int32))
    for change, line in (
        ({"question": "Is it?"}, r"question must have one \{\} for the prompt, got 'Is it\?'"),
        ({"answer": " "}, "answer must have words, got ' '"),
        ({"t5": dataclasses.replace(ask[1].t5, pad=5)}, "it pads by the token 5, expected 0"),
    ):
        with pytest.raises(ValueError, match=line):
            dataclasses.replace(ask[1], **change)
    assert isinstance(ask[1], Asking)
