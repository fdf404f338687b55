"""`fs.rewards.judge` and `judge_pairs` against a server whose logits are known."""

import math
import threading
import time

import jax
import numpy as np
import pytest
from chat_server import LASTING, PASSING, TOKEN, judging, told
from test_client import dead

import flowsde as fs
from flowsde.remote.client import Patience
from flowsde.rewards import RewardError

IMAGES = np.linspace(-0.9, 0.9, 5, dtype=np.float32)[:, None, None, None] * np.ones((4, 6, 3), "f4")
PIXELS = np.round(127.5 * (IMAGES[:, 0, 0, 0].astype(float) + 1.0)) / 255.0
PROMPTS = ["a", "a {} b", "c", "d", "e"]
QUICK = {"read_timeout": 0.3, "connect_timeout": 1.0}
BIAS = 2.5


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pauses of milliseconds; no token of whoever runs this."""
    monkeypatch.setattr(Patience, "pause", lambda self, tried, asked: max(asked, 0.002))
    monkeypatch.delenv("FLOWSDE_JUDGE_TOKEN", raising=False)


def bright(request):
    """Yes with log-odds of 10 (brightness - 1/2), and one part in 8 of the answer is neither."""
    (image,), _ = told(request)
    odds = 10.0 * (image.mean() - 0.5)
    rest = math.log(0.875)
    yes, no = -math.log1p(math.exp(-odds)) + rest, -math.log1p(math.exp(odds)) + rest
    return sorted([("Yes", yes), (" no", no), ("It", math.log(0.125))], key=lambda one: -one[1])


def brighter(request):
    """A with log-odds of the brightness of A less that of B, and a bias for the first place."""
    (a, b), (*labels, _) = told(request)
    assert labels == ["Image A:", "Image B:"]
    odds = 10.0 * (a.mean() - b.mean()) + BIAS
    return [("A", -math.log1p(math.exp(-odds))), ("B", -math.log1p(math.exp(odds)))]


@pytest.mark.slow_but_one
@pytest.mark.parametrize("chunked", [False, True])
def test_the_score_is_that_of_the_models_logits(chunked):
    def slowly(request):
        time.sleep(0.02)
        return bright(request)

    with judging(slowly, token=TOKEN, chunked=chunked) as server:
        reward = fs.rewards.judge(server.url, "vlm", token=TOKEN, cost=0.5, max_in_flight=2)
        odds = 10.0 * (PIXELS - 0.5)
        np.testing.assert_allclose(reward(IMAGES, PROMPTS), odds, rtol=1e-5)
        assert server.most == 2
        share = fs.rewards.judge(server.url, "vlm", token=TOKEN, formula="share")
        np.testing.assert_allclose(share(IMAGES, PROMPTS), 1.0 / (1.0 + np.exp(-odds)), rtol=1e-5)
        all_of = fs.rewards.judge(server.url, "vlm", token=TOKEN, formula="probability")
        expected = 0.875 / (1.0 + np.exp(-odds))
        np.testing.assert_allclose(all_of(IMAGES, PROMPTS), expected, rtol=1e-5)
        assert (reward.name, reward.cost) == ("judge(vlm)", 0.5)
        assert TOKEN not in f"{reward} {reward.version} {vars(reward)}"


def test_what_is_asked():
    with judging(bright) as server:
        extra = {"chat_template_kwargs": {"enable_thinking": False}, "max_tokens": None}
        reward = fs.rewards.judge(server.url + "/", question="Is it {}?", extra=extra)
        assert reward.name == "judge(a-judge)"  # the only one that is served
        reward((255.0 * (IMAGES + 1.0) / 2.0).astype(np.uint8)[:2], PROMPTS[:2])
        probe, *asked = server.asked
        (image,), (text,) = told(probe)
        assert np.ptp(image) == 0.0 and text == "Is it a grey square?"
        assert sorted(told(one)[1][0] for one in asked) == ["Is it a {} b?", "Is it a?"]
        own = {key: value for key, value in probe.items() if key != "messages"}
        assert own == {
            "model": "a-judge",
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 20,
            "chat_template_kwargs": {"enable_thinking": False},
        }


def test_versions_tell_judges_apart_and_not_urls():
    with judging(bright) as server, judging(bright) as other:
        made = [
            fs.rewards.judge(server.url),
            fs.rewards.judge(server.url, question='Is this "{}"?'),
            fs.rewards.judge(server.url, formula="share"),
            fs.rewards.judge(server.url, neither="no"),
            fs.rewards.judge(server.url, answers=["Yes", "Sure"]),
            fs.rewards.judge(server.url, model="other"),
            fs.rewards.judge(server.url, extra={"seed": 1}),
        ]
        assert len({one.version for one in made}) == len(made)
        assert fs.rewards.judge(other.url).version == made[0].version


@pytest.mark.slow
@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_asked_again(fault):
    with judging(bright) as server:
        reward = fs.rewards.judge(server.url, retries=6, **QUICK)
        server.faults.extend([fault] * 2)
        np.testing.assert_allclose(reward(IMAGES, PROMPTS), 10.0 * (PIXELS - 0.5), rtol=1e-5)
        assert server.injected[fault] == 2
    with judging(bright) as server:
        reward = fs.rewards.judge(server.url, retries=1, max_in_flight=1, **QUICK)
        # A connection that was kept is no try where the server has closed it.
        server.faults.extend([fault] * 4)
        with pytest.raises(RewardError, match=r"judge.*\(tried 2 times\)"):
            reward(IMAGES, PROMPTS)


@pytest.mark.slow_but_one
@pytest.mark.parametrize("fault", LASTING)
def test_what_lasts_is_an_error_at_once_and_what_was_answered_is_not_asked_again(fault):
    with judging(bright) as server:
        reward = fs.rewards.judge(server.url, max_in_flight=1, **QUICK)
        server.faults.extend([None, None, fault])
        with pytest.raises(RewardError, match="reward 'judge"):
            reward(IMAGES, PROMPTS)
        assert server.injected[fault] == 1
        server.asked.clear()
        server.faults.clear()
        np.testing.assert_allclose(reward(IMAGES, PROMPTS), 10.0 * (PIXELS - 0.5), rtol=1e-5)
        assert len(server.asked) == 3


def test_a_wrong_token_is_known_at_once_and_never_shown(monkeypatch):
    with judging(bright, token=TOKEN) as server:
        wrong = "sk-another-token"
        for given in (wrong, None):
            with pytest.raises(RewardError, match="answered 401: Incorrect API key") as raised:
                fs.rewards.judge(server.url, "vlm", token=given)
            assert wrong not in str(raised.value)
        monkeypatch.setenv("FLOWSDE_JUDGE_TOKEN", TOKEN)
        assert fs.rewards.judge(server.url, "vlm")(IMAGES, PROMPTS).shape == (5,)
    for token in ("sk-a\nb", "sk-\u00e9"):
        with pytest.raises(ValueError, match="printable ASCII") as raised:
            fs.rewards.judge("http://127.0.0.1:1/v1", "vlm", token=token)
        assert "sk-" not in str(raised.value)
    with pytest.raises(ValueError, match="a token is not sent"):
        fs.rewards.judge("http://example.org/v1", "vlm", token=TOKEN)


def test_a_word_that_is_not_listed_has_the_bound():
    """Not 0: the least listed here, as more than that is left."""

    def sure(request):
        return [("No", math.log(0.9)), ("It", math.log(0.03125))]

    with judging(sure) as server:
        reward = fs.rewards.judge(server.url)
        np.testing.assert_allclose(reward(IMAGES, PROMPTS), math.log(0.03125 / 0.9), rtol=1e-6)


def test_an_answer_that_is_neither():
    with judging(lambda request: [("<think>", math.log(0.75)), ("I", math.log(0.125))]) as server:
        with pytest.raises(RewardError, match="neither Yes nor No, got '<think>', 'I'"):
            fs.rewards.judge(server.url)(IMAGES, PROMPTS)
        reward = fs.rewards.judge(server.url, neither="no", formula="probability")
        np.testing.assert_allclose(reward(IMAGES, PROMPTS), 0.125, rtol=1e-6)
        tie = fs.rewards.judge_pairs(server.url, neither="tie")
        np.testing.assert_array_equal(tie(IMAGES[:2], IMAGES[1:3], "a"), 0.5)
        with pytest.raises(RewardError, match="neither A nor B"):
            fs.rewards.judge_pairs(server.url)(IMAGES[:2], IMAGES[1:3], "a")


def test_a_picture_that_is_not_finite_is_not_asked_about():
    with judging(bright) as server:
        reward = fs.rewards.judge(server.url)
        broken = IMAGES.copy()
        broken[1, 0, 0, 0], broken[3, 0, 0, 0] = np.nan, np.inf
        server.asked.clear()
        assert np.isnan(reward(broken, PROMPTS)).tolist() == [False, True, False, True, False]
        assert len(server.asked) == 3


def test_a_failed_call_leaves_no_thread_behind():
    free = threading.Event()

    def slow(request):
        (image,), _ = told(request)
        if image.mean() > 0.9:
            return [("It", 0.0)]
        if image.shape[0] == 4:  # not the probe
            free.wait(20)
        return [("Yes", 0.0)]

    with judging(slow) as server:
        reward = fs.rewards.judge(server.url, max_in_flight=2)
        server.faults.extend(["401"])
        before = set(threading.enumerate())
        began = time.monotonic()
        with pytest.raises(RewardError, match="401"):
            reward(IMAGES, PROMPTS)
        while any(t.name.startswith("judge") for t in {*threading.enumerate()} - before):
            assert time.monotonic() - began < 10.0
            time.sleep(0.01)
        free.set()


@pytest.mark.slow
def test_pairs_are_asked_in_both_orders_and_the_preference_of_a_place_cancels():
    with judging(brighter) as server:
        compare = fs.rewards.judge_pairs(server.url)
        server.asked.clear()
        told_of = compare(IMAGES[:4], IMAGES[1:], "a fox")
        expected = 1.0 / (1.0 + np.exp(-10.0 * (PIXELS[:4] - PIXELS[1:])))
        np.testing.assert_allclose(told_of, expected, rtol=1e-6)
        np.testing.assert_allclose(compare(IMAGES[1:], IMAGES[:4], "a fox"), 1.0 - told_of)
        # The other way round they are the same questions, which are remembered.
        assert len(server.asked) == 8 and TOKEN not in repr(compare)
        found = fs.tournament(jax.random.key(0), compare, IMAGES[:4], "a fox", rounds=3)
        assert found.ranking.tolist() == [3, 2, 1, 0]
        with pytest.raises(ValueError, match="finite"):
            compare(np.full_like(IMAGES, np.nan), IMAGES, "a fox")


@pytest.mark.slow
def test_pairs_that_fail_are_an_error_from_which_a_tournament_goes_on():
    with judging(brighter) as server:
        compare = fs.rewards.judge_pairs(server.url, max_in_flight=1)
        server.faults.extend([None, None, None, "400"])
        with pytest.raises(RewardError, match="judge of pairs"):
            fs.tournament(jax.random.key(0), compare, IMAGES[:4], "a fox")
        server.asked.clear()
        found = fs.tournament(jax.random.key(0), compare, IMAGES[:4], "a fox")
        assert found.ranking[0] == 3 and len(server.asked) == 2 * found.calls - 3


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"question": " "}, "question must be a text"),
        ({"answers": []}, "answers must be words"),
        ({"against": ["No", 3]}, "against must be words"),
        ({"answers": ["Yes"], "against": "yes "}, "answers and against must differ, got 'yes'"),
        ({"formula": "odds"}, "formula must be one of log_odds, probability, share"),
        ({"neither": "tie"}, "neither must be one of error, no"),
        ({"extra": {"model": "x"}}, "extra must not set model"),
        ({"extra": {"seed": 1j}}, "extra must be JSON"),
        ({"deadline": 0.0}, "deadline must be"),
        ({"retries": -1}, "retries must be"),
        ({"timeout": 1.0}, "timeout is no argument"),
        ({"url": "127.0.0.1:80"}, "urls must be like"),
        ({"url": "http://a.b/v1?key=x"}, "url must be like"),
        ({"url": "http://a.b/v\u00fc"}, "url must be like"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_asked(given, error):
    with pytest.raises((ValueError, TypeError), match=error):
        fs.rewards.judge(**{"url": "http://127.0.0.1:1/v1", "model": "vlm"} | given)


def test_what_is_no_judge_is_known_at_once():
    with pytest.raises(RewardError, match=r"does not judge pictures: .* \(tried 2 times\)"):
        fs.rewards.judge(dead() + "/v1", "vlm", retries=1, **QUICK)
    with judging(bright, models=("one", "two")) as server:
        with pytest.raises(RewardError, match="serves 2 models: .* one, two"):
            fs.rewards.judge(server.url)
        server.faults.append("400")
        with pytest.raises(RewardError, match="does not judge pictures: .*400: as told"):
            fs.rewards.judge(server.url, "one")
        with pytest.raises(RewardError, match="expected the prompt's text as reward_cond"):
            fs.rewards.judge(server.url, "one")(IMAGES, None)
        with pytest.raises(RewardError, match=r"\[n, height, width, 3\], got shape \(5, 4\)"):
            fs.rewards.judge(server.url, "one")(np.zeros((5, 4)), None)


@pytest.mark.slow
def test_an_answer_that_trickles_does_not_hold_a_call_beyond_its_deadline():
    with judging(bright) as server:
        server.faults.append("trickle")
        with pytest.raises(RewardError, match="not complete in time"):
            fs.rewards.judge(server.url, "one", deadline=0.5, retries=0, **QUICK)


def test_a_password_in_the_url_is_refused_and_not_shown():
    for url in ("http://u:sesame@a/v1", "http://:sesame@a/v1", "http://a/v1?key=sesame"):
        for make in (fs.rewards.judge, fs.rewards.judge_pairs):
            with pytest.raises(ValueError, match="without user, password or query") as raised:
                make(url, "vlm")
            assert "sesame" not in str(raised.value)


@pytest.mark.slow
def test_a_search_that_a_judge_fails_is_resumed_with_the_same_outcome():
    flow = fs.Flow.from_callable(lambda params, x, t, cond: 0.5 * x, None, (2, 2, 3))
    kernel = fs.kernels.ode_euler(fs.interpolants.linear())
    search = fs.search.bon(nfe=16, kernel=kernel, grid=fs.grids.uniform(2))
    key = jax.random.key(0)
    with judging(bright) as server:

        def run(**options):
            reward = fs.rewards.judge(server.url, max_in_flight=1, minibatch=1)
            return fs.run(key, flow, search, reward, reward_cond="a fox", **options)

        expected = run()
        server.faults.extend([None, None, None, "no logprobs"])
        with pytest.raises(RewardError, match="reward 'judge") as raised:
            run()
        found = run(resume=raised.value.result)
        assert int(found.verifier_calls) == int(expected.verifier_calls) == 8
        np.testing.assert_array_equal(found.image, expected.image)
        score = 10.0 * (np.round(127.5 * (np.clip(found.image, -1, 1) + 1.0)) / 255.0).mean() - 5.0
        np.testing.assert_allclose(found.reward, score, rtol=1e-4)
