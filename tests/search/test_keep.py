"""More than one answer, against everything that a search evaluated."""

import importlib

import jax
import numpy as np
import pytest
from methods import METHODS, assert_same
from problems import GRID, SDE, VP, batch, decode, flow, host_reward, reward, row

import flowsde as fs

evaluate = importlib.import_module("flowsde.runner.evaluate")
KEY = jax.random.key(8)
ODE = fs.kernels.ode_euler(VP)
PROMPTS, K = 8, 3
BON = fs.search.bon(nfe=41, kernel=ODE, grid=GRID, width=3)
SOME = ("bon", "halving", "rbf", "smc", "guided svdd", "glass rbf")


def run(search, go=fs.run, **options):
    ids, cond = batch(PROMPTS)
    return go(KEY, flow(), search, reward, cond=cond, prompt_ids=ids, **options)


def candidates(result, i, until):
    """Rewards of what prompt i counted at a time or below, the highest first."""
    info = jax.tree.map(lambda a: np.asarray(a[:, i]), result.info._replace(seconds=None))
    could_be = info.counted & (info.time <= until) & (info.reward > -np.inf)
    return -np.sort(-info.reward[could_be])


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_the_best_of_all_that_was_scored_at_the_last_time(name):
    """The search is what it was; the answers are in order, different, and worth what they say."""
    search = METHODS[name]
    plain, result = run(search), run(fs.search.keep(search, K))
    _, cond = batch(PROMPTS)
    assert plain.kept is None
    assert_same(result, plain, cond["size"])
    for i, answers in enumerate(result.top(K)):
        size = cond["size"][i]
        best = candidates(result, i, np.float32(GRID[-2]))
        rewards = np.asarray([one.reward for one in answers])
        assert rewards[0] == result.reward[i]
        np.testing.assert_array_equal(answers[0].x, result.x[i])
        # A constant reward leaves several of equals.
        np.testing.assert_array_equal(rewards, best[: len(answers)])
        assert len(answers) == min(K, len(best))
        assert len({one.x0.tobytes() for one in map(_arrays, answers)}) == len(answers)
        own = row(cond, np.full(len(answers), i))
        x, t, image = (np.stack([getattr(one, n) for one in answers]) for n in ("x", "t", "image"))
        x0, _ = evaluate.means(flow(), x, t, own, interpolant=VP)
        np.testing.assert_allclose(image, decode(x0), rtol=1e-5, atol=1e-5)
        again = np.asarray(reward(image, own))
        np.testing.assert_allclose(rewards / size, again / size, atol=1e-5)


def _arrays(answer):
    return jax.tree.map(np.asarray, answer)


def assert_same_kept(one, other, size):
    a, b = _arrays(one.kept), _arrays(other.kept)
    np.testing.assert_array_equal(a.t, b.t)
    for name in ("image", "x", "x0"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-5, atol=1e-5)
    scale = np.reshape(size, (-1,) + (1,) * (a.reward.ndim - 1))
    both = (
        np.where(np.isneginf(a.reward), 0.0, a.reward),
        np.where(np.isneginf(b.reward), 0.0, b.reward),
    )
    np.testing.assert_allclose(both[0] / scale, both[1] / scale, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bon", "rbf"])
def test_however_it_is_run(name, tmp_path):
    search, (ids, cond) = fs.search.keep(METHODS[name], K), batch(PROMPTS)
    whole = run(search)
    rounds = list(run(search, fs.iterate, chunk_size=4))
    assert_same_kept(rounds[-1], whole, cond["size"])
    middle = rounds[len(rounds) // 2]
    fs.save_search(tmp_path, search, middle)
    saved = fs.restore_search(tmp_path, search)
    jax.tree.map(np.testing.assert_array_equal, _arrays(saved.kept), _arrays(middle.kept))
    assert len(saved.top(2)) == PROMPTS
    *_, resumed = run(search, fs.iterate, chunk_size=4, resume=saved)
    jax.tree.map(np.testing.assert_array_equal, _arrays(resumed.kept), _arrays(rounds[-1].kept))
    hosted = fs.run(KEY, flow(), search, fs.rewards.host(host_reward), cond=cond, prompt_ids=ids)
    assert_same_kept(hosted, whole, cond["size"])
    packed = dict(run(search, fs.batch, batch_size=5))
    for i in range(PROMPTS):
        there = jax.tree.map(lambda a, i=i: a[i], whole.kept)
        assert_same_kept(packed[int(ids[i])], whole._replace(kept=there), cond["size"][i])
    with pytest.raises(ValueError, match="holds a search of other settings"):
        fs.restore_search(tmp_path, METHODS[name])


@pytest.mark.slow
@pytest.mark.parametrize("axes", [("prompt",), ("particle",), ("prompt", "particle")])
def test_on_a_mesh(axes):
    if jax.device_count() < 2 ** len(axes):
        pytest.skip("needs more devices")
    mesh = jax.make_mesh((2,) * len(axes), axes)
    cond = batch(PROMPTS)[1]
    for name in ("bon", "rbf"):
        search = fs.search.keep(METHODS[name], K)
        assert_same_kept(run(search, mesh=mesh), run(search), cond["size"])


@pytest.mark.slow
def test_a_single_prompt_and_one_answer():
    cond = row(batch(PROMPTS)[1], 0)
    result = fs.run(KEY, flow(), fs.search.keep(BON, 20), reward, cond=cond)
    found = result.top(20)
    assert len(found) == BON.samples == 8, "fewer than were asked for"
    assert [float(one.reward) for one in found] == sorted(
        (float(one.reward) for one in found), reverse=True
    )
    assert found[0].image.shape == result.image.shape
    assert len(result.top(2)) == 2
    plain = fs.run(KEY, flow(), BON, reward, cond=cond)
    np.testing.assert_array_equal(plain.top(1)[0].x, result.x)
    with pytest.raises(ValueError, match=r"k must be at most 1, which the search kept, got 2"):
        plain.top(2)


@pytest.mark.slow
def test_what_is_seen_ahead_is_no_answer():
    search = fs.search.svdd(
        nfe=60, kernel=SDE, grid=GRID, chains=1, value="ode", value_steps=1, finish="mean"
    )
    result = run(fs.search.keep(search, 40))
    scored = np.asarray(result.kept.reward) > -np.inf
    assert scored.any() and (result.kept.t[scored] == np.float32(GRID[-2])).all()


def test_errors_name_the_argument():
    with pytest.raises(TypeError, match=r"search must be a flowsde.search.Search, got int"):
        fs.search.keep(3, 2)
    with pytest.raises(ValueError, match="k must be an integer of at least 1, got 0"):
        fs.search.keep(BON, 0)
