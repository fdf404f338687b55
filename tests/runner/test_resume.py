"""Saving and resuming: killed at any moment, a search ends as if nothing had happened."""

import multiprocessing
import time
from pathlib import Path

import jax
import killed
import numpy as np
import pytest
from problems import GRID, SDE, VP, batch, flow, reward, row

import flowsde as fs
from flowsde.runner import saved

KEY = jax.random.key(3)
SEARCH = fs.search.rbf(nfe=21, kernel=SDE, grid=GRID, finish="mean")
OTHER = fs.kernels.euler_maruyama(VP, fs.diffusion.square(2.0))


def wait(condition, seconds=120.0):
    """Until the condition holds; how long that was."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.005)
    return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rbf", "svdd", "smc", "sop", "evolution", "bon"])
def test_six_kills_change_nothing(method, tmp_path):
    """SIGKILL at random moments, of the rounds and of the saving; then left to finish."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["flowsde"])

    def start(folder):
        process = processes.Process(target=killed.main, args=(method, folder))
        process.start()
        return process

    def begun(folder):
        """The rounds that each process began from."""
        log = folder / "started"
        return [int(line) for line in log.read_text().splitlines()] if log.exists() else []

    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    process = start(unbroken)
    wait(lambda: begun(unbroken))
    duration = wait(lambda: not process.is_alive())
    assert process.exitcode == 0
    with np.load(unbroken / "done.npz") as saved:
        total = len(saved[".info.time"])

    def saves():
        folder = broken / "search" / ".flowsde" / "search"
        return max([int(path.stem) for path in folder.glob("*.npz")], default=-1)

    random = np.random.default_rng(len(method))
    for kill in range(6):
        process, before = start(broken), saves()
        wait(lambda kill=kill: len(begun(broken)) > kill)
        if kill % 2:  # at any moment, compilation included
            time.sleep(random.uniform(0.0, duration / 2))
        else:  # among the rounds and their saving
            wait(lambda p=process, n=before: saves() > n or not p.is_alive())
            time.sleep(random.uniform(0.0, 0.4))
        process.kill()
        process.join()
    process = start(broken)
    process.join()
    assert process.exitcode == 0
    starts = begun(broken)
    assert starts == sorted(starts) and 0 < starts[-1], "it went on from where it was"
    assert any(0 < rounds < total for rounds in starts), "no kill came in the middle"
    with np.load(unbroken / "done.npz") as expected, np.load(broken / "done.npz") as found:
        assert set(expected) == set(found)
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def results(**options):
    return fs.iterate(KEY, flow(), SEARCH, reward, cond=row(batch(4)[1], 1), **options)


@pytest.mark.slow
def test_what_is_not_this_search_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no saved search"):
        fs.restore_search(tmp_path / "nowhere", SEARCH)
    with pytest.raises(FileNotFoundError, match=r"holds no saved search"):
        fs.restore_search(tmp_path, SEARCH)
    first = next(results())
    fs.save_search(tmp_path, SEARCH, first)
    other = fs.search.rbf(nfe=22, kernel=SDE, grid=GRID, finish="mean")
    with pytest.raises(ValueError, match=r"holds a search of other settings: RBF\(nfe=21"):
        fs.restore_search(tmp_path, other)
    saved = fs.restore_search(tmp_path, SEARCH)
    assert isinstance(saved.nfe, int) and saved.nfe == first.nfe
    wide = fs.search.rbf(nfe=21, kernel=SDE, grid=GRID, finish="mean", chains=3)
    for arguments, message in (
        ({"key": jax.random.key(4)}, "resume was begun with another key or prompt_ids"),
        ({"target_reward": 0.5}, "resume was begun with another target_reward"),
        ({"nfe": 20}, "resume was begun with another nfe"),
        ({"search": wide}, "resume is of another search, or of other prompts or shapes"),
        ({"search": SEARCH.replace(kernel=OTHER)}, "begun with another search, cond or"),
        ({"cond": row(batch(4)[1], 2)}, "resume was begun with another search, cond or"),
        ({"prompt_ids": [0, 1], "cond": batch(2)[1]}, "resume is of another search, or"),
        ({"resume": {"nfe": 3}}, "resume must be a flowsde.Result, got dict"),
    ):
        own = {"key": KEY, "flow": flow(), "search": SEARCH, "reward": reward} | arguments
        own = {"cond": row(batch(4)[1], 1), "resume": saved} | own
        with pytest.raises((ValueError, TypeError), match=message):
            next(fs.iterate(own.pop("key"), own.pop("flow"), own.pop("search"),
                            own.pop("reward"), **own))  # fmt: skip


@pytest.mark.slow
def test_the_last_save_counts_also_after_a_longer_run(tmp_path):
    all_rounds = list(results())
    for result in (all_rounds[2], all_rounds[3], all_rounds[0], all_rounds[0]):
        fs.save_search(tmp_path, SEARCH, result)
    assert len(fs.restore_search(tmp_path, SEARCH).info.time) == 1


def as_before(arrays, about, finishing):
    """A save as the version before wrote it: given is in the state, r* had another name."""
    own = ".state.inner" if finishing else ".state"
    old = {}
    for name, a in arrays.items():
        if name.startswith(".given") or name == ".info.finishing":
            continue
        old[name.replace("incumbent_reward", "threshold")] = a
    assert f"{own}.key" in old
    keys = {name: kind for name, kind in about["keys"].items() if not name.startswith(".given")}
    return old, about | {"keys": keys}


@pytest.mark.slow
@pytest.mark.parametrize("finish", ["mean", "complete"])
def test_a_save_of_the_version_before_is_resumed(finish):
    steps = None if finish == "mean" else 4
    search = fs.search.rbf(nfe=27, kernel=SDE, grid=GRID, finish=finish, finish_steps=steps)
    ids, cond = batch(3)

    def go(**options):
        return fs.iterate(KEY, flow(), search, reward, cond=cond, prompt_ids=ids, **options)

    *_, before, last = go(nfe=[27, 24, 25])
    arrays, about = saved.pack(search, before)
    found = saved.unpack(*as_before(arrays, about, finish == "complete"), search, Path("old"))
    leaves, others = jax.tree.leaves_with_path(found), jax.tree.leaves(before)
    for (path, a), b in zip(leaves, others, strict=True):
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
    (again,) = go(nfe=[27, 24, 25], resume=found)
    np.testing.assert_array_equal(again.reward, last.reward)


@pytest.mark.slow
def test_a_finished_result_is_given_back():
    *_, last = results()
    (again,) = results(resume=last)
    assert again.reward == last.reward and again.nfe == last.nfe
    whole = fs.run(KEY, flow(), SEARCH, reward, cond=row(batch(4)[1], 1), resume=last)
    assert whole.reward == last.reward and len(whole.info.time) == len(last.info.time)


def test_what_is_no_result_is_not_saved(tmp_path):
    with pytest.raises(TypeError, match=r"result must be a flowsde.Result, got NoneType"):
        fs.save_search(tmp_path, SEARCH, None)


@pytest.mark.slow
def test_a_result_of_a_batch_cannot_go_on():
    options = {"cond": batch(4)[1], "prompt_ids": range(4)}
    found = dict(fs.batch(KEY, flow(), SEARCH, reward, **options))[0]
    with pytest.raises(ValueError, match="resume has no state to go on from"):
        fs.run(KEY, flow(), SEARCH, reward, resume=found, **options)


def sound(images, cond):
    return np.sin(images.sum(axis=-1))


class Fragile:
    """A reward outside JAX that fails at its third call."""

    def __init__(self, failure):
        self.calls, self.failure = 0, failure

    def __call__(self, images, cond):
        self.calls += 1
        return self.failure(images) if self.calls == 3 else sound(images, cond)


def boom(images):
    raise OSError("the service is gone")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (boom, "reward 'judge' raised OSError: the service is gone, in round 2"),
        (
            lambda images: time.sleep(60),
            r"'judge' gave no answer within its timeout of 0.5 s, in r",
        ),
        (lambda images: images, r"reward 'judge' returned shape \(2, 2\) .*expected .*in round 2"),
        (lambda images: np.zeros(2, int), "reward 'judge' returned .*int.* in round 2"),
    ],
    ids=["raises", "hangs", "wrong shape", "wrong dtype"],
)
def test_a_failing_reward_names_itself_and_can_be_resumed(failure, message, tmp_path):
    def go(fn, resume=None):
        judge = fs.rewards.host(fn, "judge", timeout=0.5)
        cond = row(batch(4)[1], 1)
        return fs.run(KEY, flow(), SEARCH, judge, cond=cond, resume=resume)

    began = time.monotonic()
    with pytest.raises(fs.rewards.RewardError, match=message) as raised:
        go(Fragile(failure))
    assert time.monotonic() - began < 30
    error = raised.value
    assert error.round == len(error.result.info.time) == 2
    fs.save_search(tmp_path, SEARCH, error.result)
    resumed = go(sound, fs.restore_search(tmp_path, SEARCH))
    whole = go(sound)
    assert resumed.reward == whole.reward and resumed.nfe == whole.nfe == SEARCH.nfe
    np.testing.assert_array_equal(resumed.info.reward, whole.info.reward)


@pytest.mark.slow
def test_a_failure_in_the_first_round_can_be_saved_too(tmp_path):
    with pytest.raises(fs.rewards.RewardError, match="in round 0") as raised:
        fs.run(KEY, flow(), SEARCH, fs.rewards.host(lambda images, cond: boom(images)),
               cond=row(batch(4)[1], 1))  # fmt: skip
    fs.save_search(tmp_path, SEARCH, raised.value.result)
    saved = fs.restore_search(tmp_path, SEARCH)
    assert saved.nfe == 0 and len(saved.info.time) == 0
    *_, resumed = results(resume=saved)
    *_, whole = results()
    assert resumed.reward == whole.reward
