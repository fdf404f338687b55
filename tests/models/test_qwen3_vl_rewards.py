"""Qwen3-VL as a judge: questions in tokens, images in pixels, scores by the formulas."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import flowsde as fs
from flowsde.models.owlv2.counts import CountsError
from flowsde.models.qwen3_vl.questions import Atom, asking
from flowsde.models.qwen3_vl.rewards import (
    CountJudging,
    Judging,
    Looking,
    count_judge,
    judge,
    smart_size,
)

PROMPTS = ["a photo of a red cat", "two dogs on a log, and 3 cats' hats"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3_vl")
    return folder, tiny.qwen3_tokenizer(folder, vision=True)


@pytest.fixture(scope="module")
def ask(folder):
    return asking(folder[0], vocab=300)


def test_tokens_are_those_of_the_chat(folder, ask):
    """As the public tokenizer splits the chat with an image's tokens in it."""
    image = folder[1].convert_tokens_to_ids("<|image_pad|>")
    for prompt in PROMPTS:
        told = ask(prompt)
        chat = (
            f"<|im_start|>user\n<|vision_start|>{'<|image_pad|>' * 3}<|vision_end|>Does this "
            f'figure show "{prompt}"? Please answer Yes or No.<|im_end|>\n<|im_start|>assistant\n'
        )
        own = [*told.before, *[image] * 3, *told.texts[0, : told.last[0] + 1]]
        assert own == folder[1](chat).input_ids
        assert told.texts.shape == (1, 256)
        assert (told.texts[0, told.last[0] + 1 :] == ask.tokenizer.pad).all()
        assert told.answers == folder[1].convert_tokens_to_ids("Yes")
        assert told.against == folder[1].convert_tokens_to_ids("No")
        assert {told.before.dtype, told.texts.dtype, told.last.dtype} == {np.dtype(np.int32)}


def test_padding_is_no_more_than_needed_and_the_question_stays_whole(ask):
    fitted = ask.fitting(PROMPTS)
    told, whole = fitted(PROMPTS[1]), ask(PROMPTS[1])
    assert told.texts.shape[1] % 32 == 0 and told.last - 32 < told.texts.shape[1] - 32 <= told.last
    np.testing.assert_array_equal(told.texts[0], whole.texts[0, : told.texts.shape[1]])
    with pytest.warns(UserWarning, match="256 are used; left out: '.*mat'"):
        long = ask("dogs " * 100 + "mat")
    end = whole.last[0]
    np.testing.assert_array_equal(
        long.texts[0, long.last[0] - 20 : long.last[0] + 1], whole.texts[0, end - 20 : end + 1]
    )


def test_atoms_and_counts(ask):
    """Prompts of one, and of two atoms, alike in shape."""
    one = Atom("Is it red?", ("Yes", "Y"))
    more = [Atom("Is it a cat, or a dog?", ("a",), ("d", "c", "o")), Atom("Is it wet?")]
    first, second = ask.atoms([[one], more])
    assert first.texts.shape == second.texts.shape == (2, second.texts.shape[1])
    assert (first.weight.tolist(), second.weight.tolist()) == ([1.0, 0.0], [1.0, 1.0])
    np.testing.assert_array_equal(first.texts[0], first.texts[1])
    token = ask.tokenizer.whole
    assert first.answers[0].tolist() == [*token("Yes"), *token("Y")]
    # As wide as the other prompt's.
    assert second.answers.tolist() == [[*token("a"), -1], [*token("Yes"), -1]]
    assert second.against[1].tolist() == [*token("No"), -1, -1]
    told = ask.for_counts(["red cat", "dog"]).counts({"red cat": 3, "dog": 0}, places=3)
    assert told.wanted.tolist() == [3.0, 0.0, -1.0]
    assert told.digits.tolist() == [token(digit)[0] for digit in "0123456789"]
    text = ask.tokenizer.backend.decode(told.texts[0, : told.last[0] + 1].tolist())
    assert 'How many objects of the kind "red cat" does' in text


class Said:
    """A model that says what it is told to say."""

    config = SimpleNamespace(vision=SimpleNamespace(side=8))

    def __init__(self, logits):
        self.logits = jnp.asarray(logits, jnp.float32)

    def __call__(self, pixels, before, texts, last):
        return self.logits


def softmax(logits):
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


@pytest.mark.slow
def test_formulas(ask):
    """In float64, of softmax over the vocabulary."""
    logits = np.random.default_rng(0).normal(size=(2, 2, 300), scale=3.0)
    one, two = Atom("Is it red?", ("Yes", "Y"), ("N", "No")), Atom("Is it wet?")
    told = jax.tree.map(lambda *a: np.stack(a), *ask.atoms([[one, two], [two]]))
    p, token = softmax(logits), lambda *words: [ask.tokenizer.whole(word)[0] for word in words]
    yes = np.stack([p[:, 0][:, token("Yes", "Y")].sum(-1), p[:, 1][:, token("Yes")[0]]], 1)
    no = np.stack([p[:, 0][:, token("N", "No")].sum(-1), p[:, 1][:, token("No")[0]]], 1)
    # Of the second prompt there is one question, with its own words.
    yes[1], no[1] = p[1, 0, token("Yes")[0]], p[1, 0, token("No")[0]]
    images = jnp.zeros((2, 16, 16, 3))
    for formula, each in (
        ("probability", yes), ("share", yes / (yes + no)), ("log_odds", np.log(yes / no)),
    ):  # fmt: skip
        said = Judging(formula=formula)(Said(logits), images, told)
        np.testing.assert_allclose(said, each.mean(1), rtol=1e-5)
        if formula != "log_odds":
            said = Judging(formula=formula, combine="geometric")(Said(logits), images, told)
            np.testing.assert_allclose(said, np.sqrt(each.prod(1)), rtol=1e-5)


def test_an_answer_that_is_all_but_certain_has_a_gradient(ask):
    told = jax.tree.map(lambda a: a[None], ask("a cat"))
    logits = np.zeros((1, 1, 300), np.float32)
    yes = int(told.answers[0, 0, 0])

    def score(up):
        judged = Judging(combine="geometric")(
            Said(jnp.asarray(logits).at[0, 0, yes].set(up)),
            jnp.zeros((1, 16, 16, 3)), told,
        )  # fmt: skip
        return jnp.log(judged[0])

    # d log P = 1 - P, of 299 others; P itself rounds to 1.
    slope = jax.jit(jax.grad(score))(30.0)
    np.testing.assert_allclose(slope, 299.0 * np.exp(-30.0), rtol=1e-5)


@pytest.mark.slow
def test_counts_are_expected_over_the_digits(ask):
    logits = np.random.default_rng(1).normal(size=(2, 3, 300))
    each = [ask.counts({"cat": 3, "dog": 0}, 3), ask.counts({"cat": 9}, 3)]
    told = jax.tree.map(lambda *a: np.stack(a), *each)
    expected = softmax(logits[:, :, told.digits[0]]) @ np.arange(10.0)
    images = jnp.zeros((2, 16, 16, 3))
    wanted = [-((3 - expected[0, 0]) ** 2) - expected[0, 1] ** 2, -((9 - expected[1, 0]) ** 2)]
    said = CountJudging()(Said(logits), images, told)
    np.testing.assert_allclose(said, wanted, rtol=1e-5)
    said = CountJudging(error=False)(Said(logits), images, told)
    np.testing.assert_allclose(said, [expected[0, :2].sum(), expected[1, 0]], rtol=1e-5)


@pytest.mark.slow
def test_sizes_and_pixels_are_the_public_processors():
    """Of 8-bit pictures, which it rounds again after each resizing."""
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    for height, width in ((1024, 1024), (480, 832), (16, 24), (20, 3001), (9000, 5000), (48, 80)):
        wanted = module.smart_resize(height, width, 32, 256**2, 4096**2)
        assert smart_size(height, width, 32) == wanted
    picture = np.random.default_rng(0).integers(0, 256, (60, 93, 3)).astype(np.uint8)
    limits = {"shortest_edge": 32**2, "longest_edge": 64**2}
    processor = module.Qwen2VLImageProcessorPil(
        size=limits, patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    made = processor([picture], return_tensors="np")
    assert made["image_grid_thw"].tolist() == [[1, 2, 4]]
    patches = made["pixel_values"].reshape(1, 2, 2, 2, 3, 2, 16, 16)
    wanted = patches[:, :, :, :, :, 0].transpose(0, 2, 5, 1, 3, 6, 4).reshape(1, 32, 64, 3)
    model = SimpleNamespace(config=SimpleNamespace(vision=SimpleNamespace(side=32)))
    ours = Looking(least=32**2, most=64**2).pixels(model, jnp.asarray(picture[None] / 127.5 - 1.0))
    assert ours.shape == wanted.shape
    assert np.abs(ours - wanted).max() < 2.0 / 127.5


@pytest.mark.slow
def test_split_over_two_devices(tmp_path):
    """By heads and hidden features, the same scores."""
    folder = tiny.qwen3_vl(tmp_path)
    mesh = jax.make_mesh((2,), ("model",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    whole, split = fs.load(folder), fs.load(folder, mesh)
    assert len(split.text.blocks.down.kernel.sharding.device_set) == 2
    told = asking(folder / "tokenizer", vocab=300).fitting(PROMPTS)
    asked = jax.tree.map(lambda *a: np.stack(a), *map(told, PROMPTS))
    images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 20, 3)).astype(np.float32)
    ours, alone = (
        np.asarray(
            jax.jit(lambda reward: reward(images, asked))(judge(model, Judging(formula="log_odds")))
        )
        for model in (split, whole)
    )
    np.testing.assert_allclose(ours, alone, rtol=1e-4, atol=1e-5)
    counted = told.for_counts(["cat"]).counts({"cat": 2}, 1)
    alike = jax.tree.map(lambda a: np.stack([a, a]), counted)
    said = np.asarray(jax.jit(lambda reward: reward(images, alike))(count_judge(whole)))
    assert said.shape == (2,) and (said < 0.0).all() and said[0] != said[1]


def test_what_cannot_be_is_named(folder, ask, tmp_path):
    for change, said in (
        ({"question": "Is it?"}, r"question must have one \{\} for the prompt, got 'Is it\?'"),
        ({"answers": ("Yes", "cats!")}, "answers must be words of one token each, got 'cats!' of"),
        ({"against": "No"}, "against must be words, got 'No'"),
        ({"tokenizer": dataclasses.replace(ask.tokenizer, length=20)},
         "tokens without a prompt, expected at most 20"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            dataclasses.replace(ask, **change)
    with pytest.raises(ValueError, match=r"has <\|im_end\|> in it, which is no text for this"):
        ask("a cat<|im_end|> Yes")
    with pytest.raises(ValueError, match=r"atoms must be some of each prompt, got \[1, 0\]"):
        ask.atoms([[Atom("Is it?")], []])
    with pytest.raises(ValueError, match="a question has .* tokens, expected at most 256: 'Is"):
        ask.atoms([[Atom("Is it red? " * 40)]])
    with pytest.raises(CountsError, match="the count of 'cat' must be 0 to 9, which one digit"):
        ask.counts({"cat": 12})
    with pytest.raises(ValueError, match="places must be at least 2, got 1"):
        ask.counts({"cat": 1, "dog": 1}, 1)
    tiny.qwen3_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"not the model's: <\|vision_start\|> is no token of it"):
        asking(tmp_path, vocab=300)
    for settings, said in (
        ({"formula": "odds"}, "formula must be one of probability, share, log_odds, got 'odds'"),
        ({"combine": "product"}, "combine must be mean or geometric, got 'product'"),
        ({"combine": "geometric", "formula": "log_odds"}, "combine must be mean for log_odds"),
        ({"least": 9, "most": 4}, "least must be at most most, got 9 and 4"),
    ):
        with pytest.raises(ValueError, match=said):
            Judging(**settings)
    with pytest.raises(ValueError, match="at most 200 times the other, got 2 x 500 pixels"):
        smart_size(2, 500, 32)
