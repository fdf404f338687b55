"""Words' probabilities of a list of tokens, against distributions that are known whole."""

import math

import numpy as np
import pytest

from flowsde.remote.first_token import log_probabilities, read_listed, score
from flowsde.remote.problems import RemoteError

VOCABULARY = ("Yes", " yes", "YES", "No", "no", "The", "I", "It", "Y", "Nope")


def answer(pairs):
    entries = [{"token": token, "logprob": log} for token, log in pairs]
    return {"choices": [{"logprobs": {"content": [{"top_logprobs": entries}]}}]}


def listed(probabilities, most=20):
    """The likeliest of a distribution over the vocabulary, as a server lists them."""
    order = np.argsort(-np.asarray(probabilities))[:most]
    return read_listed(answer([(VOCABULARY[i], math.log(probabilities[i])) for i in order]))


def softmax(seed, scale=3.0):
    logits = scale * np.random.default_rng(seed).normal(size=len(VOCABULARY))
    return np.exp(logits) / np.exp(logits).sum()


@pytest.mark.parametrize("seed", range(5))
def test_all_spellings_and_no_other_token_count(seed):
    p = softmax(seed)
    yes, no = log_probabilities(listed(p), ["Yes"], ["No"])
    np.testing.assert_allclose(np.exp([yes, no]), [p[:3].sum(), p[3:5].sum()], rtol=1e-12)
    assert score(yes, no, "probability") == pytest.approx(p[:3].sum())
    ratio = p[:3].sum() / p[:5].sum()
    assert score(yes, no, "share") == pytest.approx(ratio)
    assert score(yes, no, "log_odds") == pytest.approx(math.log(ratio / (1.0 - ratio)))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("most", [2, 4, 7])
def test_what_is_not_listed_is_bounded_and_never_0(seed, most):
    """By the token that the list, were it longer, would have next."""
    p = softmax(seed)
    short = listed(p, most)
    last = np.sort(p)[::-1][most - 1]
    left = np.sort(p)[::-1][most:].sum()
    bound = math.exp(short.log_bound())
    assert bound == pytest.approx(min(last, left))
    assert bound >= np.sort(p)[::-1][most] > 0.0
    yes, no = log_probabilities(short, ["Yes"], ["The", "No", "I", "It", "Y", "Nope"])
    if not {"Yes", " yes", "YES"} & set(short.tokens):
        assert math.exp(yes) == pytest.approx(bound)
    assert math.isfinite(yes) and math.isfinite(no)


def test_a_list_that_holds_all_leaves_what_rounding_hides():
    yes, no = log_probabilities(read_listed(answer([("Yes", 0.0)])), ["Yes"], ["No"])
    assert yes == 0.0 and math.exp(no) == 2.0**-20


def test_an_unknown_log_probability_is_that_of_no_listed_token():
    pairs = [("No", math.log(0.75)), ("I", math.log(0.125)), ("Yes", -9999.0), ("x", -math.inf)]
    yes, no = log_probabilities(read_listed(answer(pairs)), ["Yes"], ["No"])
    np.testing.assert_allclose(np.exp([yes, no]), [0.125, 0.75])


def test_neither_is_an_error_or_counts_as_no():
    thinking = read_listed(answer([("<think>", math.log(0.875)), ("\x1b[0m", math.log(0.0625))]))
    with pytest.raises(RemoteError, match=r"neither Yes nor No, got '<think>', '\\x1b\[0m'"):
        log_probabilities(thinking, ["Yes"], ["No"])
    yes, no = log_probabilities(thinking, ["Yes"], ["No"], neither=True)
    np.testing.assert_allclose(np.exp([yes, no]), [0.0625, 0.9375])


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        {},
        {"choices": []},
        {"choices": [{"logprobs": None}]},
        {"choices": [{"logprobs": {"content": []}}]},
        {"choices": [{"logprobs": {"content": [{"top_logprobs": None}]}}]},
        answer([]),
        answer([("Yes", -9999.0)]),
        answer([("Yes", math.nan)]),
        answer([("Yes", 0.5)]),
        answer([("Yes", True)]),
        answer([("Yes", "-1")]),
        answer([(3, -1.0)]),
        answer([("Yes", -0.1), ("No", -0.2)]),
    ],
)
def test_what_is_no_list_of_log_probabilities_is_an_error(wrong):
    with pytest.raises(RemoteError, match="the answer"):
        read_listed(wrong)
