"""VQAScore's question in tokens, against what SentencePiece makes of the published chat."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from flowsde.models.clip_flant5.questions import Asking
from flowsde.models.common.tokenizers import Tokenizer

GOLDEN = Path(__file__).parents[1] / "data" / "clip_flant5.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as held:
        return {k: a for k, a in held.items() if k.startswith("asked/")}


@pytest.fixture(scope="module")
def asking(golden):
    """By the same pieces, in a tokenizer that keeps every blank, as some copies of T5's do."""
    pieces = zip(golden["asked/pieces"].tolist(), golden["asked/scores"].tolist(), strict=True)
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(list(pieces), unk_id=2))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    return Asking(Tokenizer(backend, length=128, start=None, end=1, pad=0))


def test_tokens_before_and_after_the_image(golden, asking):
    """Each text ends in the token of an end; line breaks and double blanks are gone."""
    for i, prompt in enumerate(golden["asked/prompts"]):
        question = asking(str(prompt))
        np.testing.assert_array_equal(question.before, golden[f"asked/{i}/before"])
        wanted = golden[f"asked/{i}/after"]
        np.testing.assert_array_equal(question.after[: len(wanted)], wanted)
        assert question.after.shape == (128,) and not question.after[len(wanted) :].any()
        np.testing.assert_array_equal(question.answer, golden["asked/answer"])
        assert question.after.dtype == question.before.dtype == question.answer.dtype == np.int32


def test_padding_is_no_more_than_needed(asking):
    """Up to a multiple of 32, and not beyond the longest."""
    long, longest = ("the cats and the dogs sat on a mat " * n for n in (2, 20))
    for prompts, length in (([], 64), (["a cat", long], 96), (["a cat", longest], 128)):
        fitted = asking.fitting(prompts)
        assert fitted.tokenizer.length == length
        if prompts:
            wanted = asking(prompts[0]).after[:length]
            np.testing.assert_array_equal(fitted(prompts[0]).after, wanted)


def test_of_a_long_prompt_the_question_stays_whole(golden, asking):
    with pytest.warns(UserWarning, match="128 are used; left out: '.*mat'"):
        question = asking("the cats and the dogs sat on a mat " * 20 + "mat")
    assert question.after[-1] == 1 and 0 not in question.after
    short = golden["asked/0/after"]
    ends = next(n for n in range(1, len(short)) if short[-n - 1] != question.after[-n - 1])
    # `"? Please answer yes or no. ASSISTANT:` and the end.
    assert ends > 20
    np.testing.assert_array_equal(question.after[:10], short[:10])


def test_what_cannot_be_is_named(asking):
    with pytest.raises(
        ValueError, match=r"question must have one \{\} for the prompt, got 'Is it\?'"
    ):
        dataclasses.replace(asking, question="Is it?")
    with pytest.raises(ValueError, match="answer must have words, got ' '"):
        dataclasses.replace(asking, answer=" ")
    with pytest.raises(ValueError, match="it pads by the token 5, expected 0"):
        Asking(dataclasses.replace(asking.tokenizer, pad=5))
    with pytest.raises(ValueError, match="tokens without a prompt, expected at most 20"):
        Asking(dataclasses.replace(asking.tokenizer, length=20))
