"""One reward of several: what the rules say, and what of the parts is kept."""

import itertools
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from faulty import serving
from jax.sharding import AxisType
from methods import GLASS, METHODS

import flowsde as fs

KEY = jax.random.key(3)
NAMES = ("bon", "guided svdd at some, adams", "glass rbf")


def wave(images, cond):
    return jnp.sin(jnp.sum(images * cond["frequency"], axis=-1) + cond["phase"])


def size(images, cond):
    return -jnp.sum(jnp.square(images), axis=-1)


def host_wave(images, cond):
    return np.sin(np.sum(images * cond["frequency"], axis=-1) + cond["phase"])


def host_norm(images, cond):
    return np.sum(np.square(images), axis=1)


BOTH = fs.rewards.weighted([wave, size], [1.0, 0.1])


def given(*columns):
    """Rewards that say what images [n, k] hold."""

    def column(i):
        return fs.rewards.device(lambda images, cond: images[:, i], name=f"r{i}")

    return [column(i) for i in range(len(columns))], jnp.stack(columns, -1).astype(jnp.float32)


@pytest.mark.slow
def test_weighted_and_minimum_are_the_sum_and_the_least():
    rng = np.random.default_rng(0)
    a, b, c = rng.normal(size=(3, 50)).astype(np.float32)
    rewards, images = given(a, b, c)
    total = fs.rewards.weighted(rewards, [1.0, -2.0, 0.5])(images, None)
    np.testing.assert_allclose(total, a - 2.0 * b + 0.5 * c, rtol=1e-5, atol=1e-6)
    least = fs.rewards.minimum(rewards, [1.0, 2.0, 0.5])(images, None)
    np.testing.assert_array_equal(least, np.minimum(np.minimum(a, 2.0 * b), 0.5 * c))


@pytest.mark.slow
def test_lexicographic_orders_as_tuples_do():
    steps = (1.0, 0.5, 0.1)
    values = [np.asarray([-3.0, -1.2, -1.0, 0.0, 0.9, 2.0, 40.0]) * step for step in steps]
    every = np.asarray(list(itertools.product(*values)), np.float32)
    rewards, images = given(*every.T)
    packed = np.asarray(fs.rewards.lexicographic(rewards, steps)(images, None))

    def compared(row):
        a, b, c = (row.astype(np.float64) / steps).tolist()
        return np.floor(a + 1e-6), np.floor(b + 1e-6), c

    order = sorted(range(len(every)), key=lambda i: compared(every[i]))
    np.testing.assert_array_less(packed[order][:-1], np.nextafter(packed[order][1:], np.inf))
    firsts = [compared(every[i])[:2] for i in order]
    rises = [i for i, (one, two) in enumerate(itertools.pairwise(firsts)) if one < two]
    assert len(rises) > 30
    assert all(packed[order[i]] < packed[order[i + 1]] for i in rises)


@pytest.mark.slow
@pytest.mark.parametrize("nothing", [np.nan, -np.inf])
def test_a_picture_without_a_part_is_never_the_best(nothing):
    rewards, images = given(jnp.asarray([1.0, 2.0]), jnp.asarray([0.0, nothing]))
    for combined in (
        fs.rewards.weighted(rewards, [1.0, -1.0]),
        fs.rewards.minimum(rewards),
        fs.rewards.lexicographic(rewards, [1.0, 1.0]),
    ):
        told = np.asarray(combined(images, None))
        assert np.isfinite(told[0]) and np.isnan(told[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_parts_are_those_of_the_answers_and_of_every_candidate(name):
    search, flow = fs.search.keep(METHODS[name], 2), problems.flow()
    ids, cond = problems.batch(3)
    result = fs.run(KEY, flow, search, BOTH, cond=cond, prompt_ids=ids)
    for part, fn in (("wave", wave), ("size", size)):
        np.testing.assert_allclose(result.parts[part], fn(result.image, cond), rtol=1e-5, atol=1e-5)
    for i, answers in enumerate(result.top(2)):
        for one in answers:
            own = jax.tree.map(lambda a, i=i: a[[i]], cond)
            for part, fn in (("wave", wave), ("size", size)):
                again = fn(one.image[None], own)[0]
                np.testing.assert_allclose(one.parts[part], again, rtol=1e-5, atol=1e-5)
    parts, told = result.info.parts, result.info.reward > -np.inf
    np.testing.assert_array_equal(~np.isnan(parts["wave"]), told)
    if search.value is None:
        total = parts["wave"] + np.float32(0.1) * parts["size"]
        np.testing.assert_allclose(total[told], result.info.reward[told], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_parts_are_the_same_in_rounds_in_batches_outside_jax_and_after_resuming(tmp_path):
    search, flow = fs.search.keep(METHODS["rbf, quantile, samples"], 2), problems.flow()
    ids, cond = problems.batch(3)
    options = {"cond": cond, "prompt_ids": ids}
    result = fs.run(KEY, flow, search, BOTH, **options)

    def same(parts, wanted):
        for part, value in wanted.items():
            np.testing.assert_allclose(parts[part], value, rtol=1e-5, atol=1e-5)

    rounds = list(fs.iterate(KEY, flow, search, BOTH, chunk_size=2, **options))
    same(rounds[-1].parts, result.parts)
    fs.save_search(tmp_path, search, rounds[2])
    kept = fs.restore_search(tmp_path, search)
    np.testing.assert_array_equal(kept.info.parts["size"], rounds[2].info.parts["size"])
    np.testing.assert_array_equal(kept.kept.parts["size"], rounds[2].kept.parts["size"])
    again = fs.run(KEY, flow, search, BOTH, resume=kept, **options)
    same(again.parts, result.parts)
    with pytest.raises(ValueError, match="or of other parts of a reward, than this run's"):
        fs.run(KEY, flow, search, wave, resume=kept, **options)
    same(again.info.parts, result.info.parts)
    same(again.kept.parts, result.kept.parts)
    host = fs.rewards.weighted([fs.rewards.host(host_wave, "wave"), size], [1.0, 0.1])
    for reward in (BOTH, host):
        for i, (_, one) in enumerate(sorted(fs.batch(KEY, flow, search, reward, **options))):
            same(one.parts, {part: value[i] for part, value in result.parts.items()})
            same(one.kept.parts, {part: value[i] for part, value in result.kept.parts.items()})
    same(fs.run(KEY, flow, search, host, **options).info.parts, result.info.parts)


@pytest.mark.slow
def test_parts_on_a_mesh_are_those_of_the_pictures_where_candidates_move_on_the_way():
    if jax.device_count() < 4:
        pytest.skip("needs four devices")
    mesh = jax.make_mesh((2, 2), ("prompt", "particle"), (AxisType.Auto,) * 2)
    search = fs.search.keep(
        fs.search.bon(nfe=28, kernel=GLASS, grid=fs.grids.tail(problems.GRID, 0.8), width=4), 2
    )
    ids, cond = problems.batch(2)
    start, mask = np.asarray([0.3, -0.7], np.float32), [True, False]
    result = fs.run(
        KEY, problems.flow(), search, BOTH, cond=cond, prompt_ids=ids, mesh=mesh, start=start,
        mask=mask,
    )  # fmt: skip
    np.testing.assert_array_equal(result.x0[:, 1], start[1])
    for image, parts in ((result.image, result.parts), (result.kept.image, result.kept.parts)):
        image = np.asarray(image)
        wanted = -np.sum(np.square(image), axis=-1)
        np.testing.assert_allclose(parts["size"], wanted, rtol=1e-5)


@pytest.mark.slow
def test_normalised_is_relative_to_a_pool_of_pictures_drawn_before():
    """With the pool's own pictures each part has mean 0 and variance 1."""
    rng = np.random.default_rng(4)
    a, b = (rng.normal(m, s, 200).astype(np.float32) for m, s in ((5.0, 0.1), (-300.0, 50.0)))
    pool = {"r0": a, "r1": np.append(b, [np.nan, -np.inf])}
    rewards, images = given(a, b)
    both = fs.rewards.normalised(rewards, pool, [1.0, 2.0])
    scores = both.scores(images, None)
    for part in scores.parts.values():
        np.testing.assert_allclose([np.mean(part), np.std(part)], [0.0, 1.0], atol=1e-3)
    wanted = (a - a.mean()) / a.std() + 2.0 * (b - b.mean()) / b.std()
    np.testing.assert_allclose(scores.reward, wanted, atol=2e-3)
    outside = [fs.rewards.host(lambda i, c, k=k: np.asarray(i)[:, k], f"r{k}") for k in (0, 1)]
    host = fs.rewards.normalised(outside, pool, [1.0, 2.0])
    np.testing.assert_allclose(host(np.asarray(images), None), wanted, atol=2e-3)
    with pytest.raises(TypeError, match="would depend on its width"):
        fs.rewards.normalised(rewards, None)
    with pytest.raises(ValueError, match="nothing of reward 'r1'"):
        fs.rewards.normalised(rewards, {"r0": a})


def test_a_part_may_write_to_its_pictures():
    def spoils(images, cond):
        images[:] = np.nan
        return np.zeros(len(images))

    parts = [fs.rewards.host(spoils), fs.rewards.host(lambda images, cond: images[:, 0], "first")]
    images = np.asarray([[1.0], [2.0]], np.float32)
    np.testing.assert_array_equal(fs.rewards.weighted(parts, [1.0, 1.0])(images, None), [1.0, 2.0])
    np.testing.assert_array_equal(images, [[1.0], [2.0]])


def test_one_that_is_computed_elsewhere_is_a_part_and_pins_its_version():
    images = np.random.default_rng(1).normal(size=(5, 2)).astype(np.float32)
    outside = fs.rewards.host(host_norm, "norm")
    with serving(host_norm) as server:
        parts = [fs.rewards.remote(server.url), outside]
        both = fs.rewards.minimum(parts, [1.0, 2.0])
        scores = both.scores(images, None)
    norm = np.sum(images**2, axis=1)
    np.testing.assert_allclose(scores.parts["judge"], norm, rtol=1e-6)
    np.testing.assert_allclose(scores.reward, norm, rtol=1e-6)
    assert both.version == "judge v1"
    assert fs.rewards.minimum([outside, fs.rewards.host(host_wave)]).version is None


def test_costs_and_minibatches_add_up():
    parts = [
        fs.rewards.device(wave, cost=2.0, minibatch=8),
        fs.rewards.host(host_wave, "other", cost=0.5, minibatch=3),
    ]
    both = fs.rewards.minimum(parts)
    assert isinstance(both, fs.rewards.HostReward)
    assert (both.cost, both.minibatch, both.name) == (2.5, 3, "minimum(wave, other)")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fs.rewards.weighted([wave], [1.0]), "at least two"),
        (lambda: fs.rewards.weighted([wave, wave], [1.0, 1.0]), "different names, got 'wave'"),
        (lambda: fs.rewards.weighted([wave, size], [1.0]), "weights must be 2 numbers"),
        (lambda: fs.rewards.weighted([wave, size], [1.0, 0.0]), "weights must not be 0"),
        (lambda: fs.rewards.weighted([wave, size], [1.0, np.nan]), "weights"),
        (lambda: fs.rewards.minimum([wave, size], [1.0, -1.0]), "scales"),
        (lambda: fs.rewards.lexicographic([wave, size], [1.0, 0.0]), "steps"),
    ],
)
def test_what_cannot_be_combined_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_parts_outside_jax_are_called_side_by_side():
    both = threading.Barrier(2, timeout=10.0)  # broken unless two wait at once

    def waiting(images, cond):
        both.wait()
        return images[:, 0]

    images = np.arange(6.0, dtype=np.float32).reshape(3, 2)
    parts = [fs.rewards.host(waiting, name) for name in ("a", "b")]
    reward = fs.rewards.weighted([*parts, size], [1.0, 2.0, 1.0])
    expected = 3.0 * images[:, 0] - np.square(images).sum(1)
    np.testing.assert_allclose(reward(images, None), expected, rtol=1e-6)


def _calling():
    return [one for one in threading.enumerate() if one.name.startswith("reward ")]


@pytest.mark.slow
def test_a_late_part_leaves_nothing_that_later_calls_could_see():
    go_on, late, ended = threading.Event(), [], []

    def slow(images, cond):
        if not go_on.is_set():
            late.append(threading.current_thread())
            go_on.wait(10.0)
            images[:] = np.nan
        return images[:, 0]

    def steady(images, cond):
        time.sleep(0.3)
        ended.append(time.monotonic())
        return images[:, 1]

    reward = fs.rewards.weighted(
        [fs.rewards.host(slow, "slow", timeout=0.1), fs.rewards.host(steady, "steady")], [1.0, 1.0]
    )
    images = np.arange(6.0, dtype=np.float32).reshape(3, 2)
    before = images.copy()
    with pytest.raises(fs.rewards.RewardError, match="'slow' gave no answer within its timeout"):
        reward(images, None)
    # The other part has ended, and the late one is all that is left.
    assert len(ended) == 1
    until = time.monotonic() + 10.0
    while (left := _calling()) != late and time.monotonic() < until:
        time.sleep(0.01)
    assert left == late
    go_on.set()
    np.testing.assert_array_equal(reward(images, None), before.sum(1))
    late[0].join(10.0)
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(reward(images, None), before.sum(1))
