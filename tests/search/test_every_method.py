"""What holds for every method: one suite, in which a new method is covered by being listed."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import METHODS, PROMPTS, also, assert_same, computed
from problems import (
    GRID,
    VP,
    batch,
    by_sign,
    decode,
    flow,
    host_reward,
    reward,
    row,
    velocity,
)
from quick import slow_but

import flowsde as fs
from flowsde.runner import chunks

programs = importlib.import_module("flowsde.runner.rounds")
evaluate = importlib.import_module("flowsde.runner.evaluate")

KEY = jax.random.key(6)


QUICK = [METHODS[name] for name in ("bon", "smc", "rbf", "guided svdd")]


@pytest.fixture(scope="module", params=slow_but(QUICK, METHODS.values()), ids=METHODS)
def search(request):
    """Of the module, so that the tests of a method follow one another: they share programs."""
    return request.param


@functools.cache
def together(search):
    """All prompts in one run, all candidates of a round at once."""
    ids, cond = batch(PROMPTS)
    return fs.run(KEY, flow(), search, reward, cond=cond, prompt_ids=ids, **also(search))


@functools.cache
def alone(search, i):
    """One of them in a run of its own."""
    ids, cond = batch(PROMPTS)
    return fs.run(
        KEY, flow(), search, reward, cond=row(cond, np.asarray([i])), prompt_ids=ids[i : i + 1],
        **also(search),
    )  # fmt: skip


@pytest.mark.slow
def test_a_prompt_alone_is_the_prompt_in_a_batch(search):
    _, cond = batch(PROMPTS)
    whole = together(search)
    for i in range(PROMPTS):
        one = alone(search, i)
        rounds = len(one.info.time)
        info = jax.tree.map(lambda a, i=i, rounds=rounds: a[:rounds, i : i + 1], whole.info)
        there = jax.tree.map(lambda a, i=i: a[i : i + 1], whole._replace(info=None, state=None))
        assert_same(one, there._replace(info=info), cond["size"][i])


@pytest.mark.slow
def test_next_to_nothing_is_computed_for_nobody(search, monkeypatch):
    """Of one prompt, by a large model; wide waves would have a surplus of their own."""
    monkeypatch.setattr(chunks, "LARGE", 0)
    monkeypatch.setattr(chunks, "TINY", 0)
    jax.clear_caches()
    search = search.with_width(1)
    result = alone.__wrapped__(search, 0)
    all_of_it = computed(search, result)
    assert np.all(result.nfe <= all_of_it) and np.all(all_of_it <= 1.05 * result.nfe)


@pytest.mark.slow
def test_chunks_do_not_matter(search):
    """One row at a time; `iterate`, below, takes four."""
    ids, cond = batch(PROMPTS)
    options = {"cond": cond, "prompt_ids": ids, "chunk_size": 1}
    chunked = fs.run(KEY, flow(), search, reward, **options, **also(search))
    assert_same(chunked, together(search), cond["size"])


@pytest.mark.slow
def test_run_is_iterate_and_resumes_after_every_round(search, tmp_path):
    ids, cond = batch(PROMPTS)
    options = {"cond": cond, "prompt_ids": ids, "chunk_size": 4, **also(search)}
    rounds = list(fs.iterate(KEY, flow(), search, reward, **options))
    assert [len(result.info.time) for result in rounds] == list(range(1, len(rounds) + 1))
    assert_same(rounds[-1], together(search), cond["size"])
    for name in ("evaluations", "backward_passes", "verifier_calls"):
        per_round = getattr(rounds[-1].info, name)
        np.testing.assert_array_equal(per_round.sum(0), getattr(rounds[-1], name))
    for k, result in enumerate(rounds):
        for i in range(PROMPTS):
            t, r = answers(search, rounds[-1].info, i)[k]
            if r > -np.inf:
                assert (float(result.t[i]), float(result.reward[i])) == (t, r)
    assert rounds[-1].info.seconds.shape == (len(rounds), 3)
    assert np.all(rounds[-1].info.seconds >= 0.0)
    for i in (0, len(rounds) // 2, len(rounds) - 1):
        fs.save_search(tmp_path / str(i), search, rounds[i])
        saved = fs.restore_search(tmp_path / str(i), search)
        *_, resumed = fs.iterate(KEY, flow(), search, reward, **options, resume=saved)
        assert_bitwise(resumed, rounds[-1])
    finished = fs.run(KEY, flow(), search, reward, **options, resume=saved)
    assert_same(finished, rounds[-1], cond["size"])


def assert_bitwise(one, other):
    """All but the seconds."""
    one, other = (r._replace(info=r.info._replace(seconds=None)) for r in (one, other))
    leaves, others = jax.tree.leaves_with_path(one), jax.tree.leaves(other)
    for (path, a), b in zip(leaves, others, strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


@pytest.mark.slow
def test_budgets_of_prompts_are_those_of_smaller_searches(search):
    """One program for all budgets; each prompt has what a search of its budget finds."""
    ids, cond = batch(PROMPTS)
    budgets = np.asarray([41, 29, 36, 41, 29, 29, 41, 36])
    options = {"cond": cond, "prompt_ids": ids, **also(search)}
    mixed = fs.run(KEY, flow(), search, reward, nfe=budgets, **options)
    smaller = fs.run(KEY, flow(), search.with_nfe(29), reward, **options)
    assert np.all(mixed.nfe <= budgets)
    for wanted, nfe in ((together(search), 41), (smaller, 29)):
        some = budgets == nfe
        for name in ("nfe", "verifier_calls", "t"):
            np.testing.assert_array_equal(getattr(mixed, name)[some], getattr(wanted, name)[some])
        for name in ("x", "image"):
            one, other = getattr(mixed, name)[some], getattr(wanted, name)[some]
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
        one, other = mixed.reward[some], wanted.reward[some]
        np.testing.assert_allclose(one / cond["size"][some], other / cond["size"][some], atol=1e-5)


@pytest.mark.slow
def test_host_rewards_are_jax_rewards(search):
    ids, cond = batch(PROMPTS)
    options = {"cond": cond, "prompt_ids": ids, **also(search)}
    hosted = fs.rewards.host(host_reward, minibatch=3, cost=0.5)
    if search.uses_gradient:
        with pytest.raises(TypeError, match=r"'host_reward' runs outside JAX and has no gradient"):
            fs.run(KEY, flow(), search, hosted, **options)
        return
    result = fs.run(KEY, flow(), search, hosted, **options)
    assert_same(result, together(search), cond["size"])
    np.testing.assert_array_equal(result.verifier_cost, 0.5 * np.asarray(result.verifier_calls))


@pytest.mark.slow
def test_the_budget_is_kept_and_the_answer_is_worth_what_it_says(search):
    _, cond = batch(PROMPTS)
    result = together(search)
    assert np.all(result.nfe <= search.nfe) and np.all(computed(search, result) >= result.nfe)
    assert (np.asarray(result.backward_passes) > 0).all() == search.uses_gradient
    x0, _ = evaluate.means(flow(), result.x, result.t, cond, interpolant=VP)
    np.testing.assert_allclose(result.x0, x0, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result.image, decode(result.x0), rtol=1e-6)
    again = np.asarray(reward(result.image, cond))
    np.testing.assert_allclose(result.reward / cond["size"], again / cond["size"], atol=1e-5)


def answers(search, info, i):
    """(time, reward) of prompt i's answer after each round, from what the rounds evaluated.

    Of the last time that has a reward, the best. Finishing is heard at its end, and kept if it is
    no worse than what it started from.
    """
    finishing = getattr(search, "steps", 0) if isinstance(search, fs.search.Complete) else 0
    drafts = len(search.draft) if also(search) else 0
    counted = np.asarray(info.counted)[:, i]
    # What is seen ahead is not for the answer.
    until = np.inf if search.value is None else np.float32(search.value.until)
    # Rounds behind the prompt's own are padding of the batch.
    rounds = np.flatnonzero(counted.any(-1))[-1] + 1
    answer, after = (1.0, -np.inf), []
    for k in range(len(counted)):
        here = counted[k] & np.isfinite(np.asarray(info.reward)[k, i]) & (k >= drafts)
        here &= np.asarray(info.time)[k, i] <= until
        for t, r in zip(info.time[k, i][here], info.reward[k, i][here], strict=True):
            better = (-t, r) > (-answer[0], answer[1])
            finished = rounds - finishing <= k < rounds
            if (r >= answer[1]) if finished else (better or answer[1] == -np.inf):
                answer = (float(t), float(r))
        after.append(answer)
    return after


@pytest.mark.slow
def test_the_answer_is_of_the_last_time(search):
    """After every round, whatever the rewards of earlier times were."""
    result = together(search)
    last = np.float32(GRID[-2])
    for i in range(PROMPTS):
        after = answers(search, result.info, i)
        rewards = np.float32([reward for _, reward in after])
        np.testing.assert_array_equal(result.info.best_reward[:, i], rewards)
        assert (float(result.t[i]), float(result.reward[i])) == after[-1]
        assert result.t[i] <= last


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:reward 'reward' was NaN or -inf")
def test_extreme_rewards(search):
    """In the program of any prompt alone: rewards are its arguments."""
    ids, cond = batch(PROMPTS)
    one = row(cond, np.asarray([0]))

    def outcome(above, below, invalid="warn"):
        return fs.run(
            KEY, flow(), search, reward, cond=by_sign(one, above, below), prompt_ids=ids[:1],
            invalid=invalid, **also(search),
        )  # fmt: skip

    for above, below in (
        (2.5, 2.5),
        (np.nan, 1.0),
        (1.0, np.nan),
        (-np.inf, -1e30),
        (np.inf, 0.0),
        (1e6, -1e6),
        (1e-6, -1e-6),
    ):
        result = outcome(above, below)
        counted = np.asarray(result.info.counted)
        seen, times = result.info.reward[counted], result.info.time[counted]
        if also(search):
            # Drafts, too, are at the last time.
            after = counted & (np.arange(len(counted)) >= len(search.draft))[:, None, None]
            seen, times = result.info.reward[after], result.info.time[after]
        # The answer's reward was seen; it is one if any candidate of the last time had one.
        given = np.minimum(np.float32([above, below, -np.inf]), np.finfo(np.float32).max)
        assert result.reward in seen and result.reward in given
        assert np.isfinite(result.x).all() and result.nfe <= search.nfe
        if result.reward == -np.inf:
            assert np.isneginf(seen[times <= result.t]).all()
    for nothing in (np.nan, -np.inf):
        with pytest.raises(ValueError, match=r"reward 'reward' was NaN or -inf.*prompt ids \[11\]"):
            outcome(nothing, nothing, "error")


@pytest.mark.slow_but_one
def test_one_trace_and_the_second_call_compiles_nothing(search):
    traces = {"model": 0, "reward": 0}

    def counted_velocity(params, x, t, cond):
        traces["model"] += 1
        return velocity(params, x, t, cond)

    def counted_reward(scale, images, cond):
        traces["reward"] += 1
        return scale * reward(images, cond)

    def go(seed, scale, weight, target=None, nfe=None):
        params = {"scale": jnp.asarray(scale, jnp.float32)}
        return fs.run(
            jax.random.key(seed),
            fs.Flow.from_callable(counted_velocity, params, (2,), decode=decode),
            search,
            jax.tree_util.Partial(counted_reward, jnp.float32(weight)),
            cond=row(batch(PROMPTS)[1], seed),
            target_reward=target,
            nfe=nfe,
            invalid="warn",
            **also(search),
        )

    first = go(1, 1.0, 1.0)
    assert traces == {"model": 1, "reward": 1}, "one trace a shape, the check included"
    compiled = [programs.run_rounds, programs.start, programs.answer]
    sizes = [program._cache_size() for program in compiled]
    second = go(4, 0.5, 2.0)
    go(1, 1.0, 1.0, target=0.1)
    go(1, 1.0, 1.0, nfe=37)
    assert traces == {"model": 1, "reward": 1}
    assert [program._cache_size() for program in compiled] == sizes
    assert not np.allclose(first.x, second.x)


@pytest.mark.slow
def test_x64_keeps_the_state_float32(search):
    ids, cond = batch(PROMPTS)
    one = row(cond, np.asarray([2]))
    with jax.enable_x64(True):
        result = fs.run(KEY, flow(), search, reward, cond=one, prompt_ids=ids[2:3], **also(search))
    for leaf in jax.tree.leaves((result.x, result.x0, result.reward, result.info, result.state)):
        if jax.dtypes.issubdtype(leaf.dtype, np.number):
            assert leaf.dtype in (np.float32, np.int32), leaf.dtype
    assert_same(result, alone(search, 2), one["size"])
