"""`fs.rewards.cascade`: who is asked about what, and what that is worth."""

import jax
import numpy as np
import problems
import pytest
from methods import METHODS

import flowsde as fs

IMAGES = np.asarray([[0.2, 5.0], [0.9, -3.0], [0.5, 1.0], [-1.0, 9.0], [0.7, 0.0]], np.float32)


class Asked:
    """Says what the second column holds, and remembers what it was asked."""

    def __init__(self):
        self.images, self.told = [], []

    def __call__(self, images, cond):
        self.images.append(images.copy())
        self.told.append(cond)
        return images[:, 1]


def first(images, cond):
    return images[:, 0]


def made(dear, threshold=0.5, floor=-1.0, cheap=first):
    return fs.rewards.cascade(
        cheap, fs.rewards.host(dear, "dear"), threshold=threshold, floor=floor
    )


@pytest.mark.parametrize("cheap", [first, fs.rewards.host(first, "cheap")])
def test_the_dear_one_is_asked_about_the_best_alone(cheap):
    asked = Asked()
    reward = made(asked, cheap=cheap)
    scores = reward.scores(IMAGES, {"number": np.arange(5)})
    np.testing.assert_array_equal(np.concatenate(asked.images), IMAGES[[1, 2, 4]])
    assert [told["number"].tolist() for told in asked.told] == [[1, 2, 4]]
    # Seen: the dear reward, no less than the floor; unseen: below the floor by what is lacking.
    np.testing.assert_allclose(scores.reward, [-1.3, -1.0, 1.0, -2.5, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(scores.parts["dear"], [np.nan, -3.0, 1.0, np.nan, 0.0])
    cheap_name = next(name for name in scores.parts if name != "dear")
    np.testing.assert_array_equal(scores.parts[cheap_name], IMAGES[:, 0])
    # Each picture alone is worth the same; those outside JAX may be told objects.
    if cheap is not first:
        for i, image in enumerate(IMAGES):
            np.testing.assert_array_equal(reward(image[None], ["abcde"[i]]), scores.reward[[i]])
        assert asked.told[1:] == [["b"], ["c"], ["e"]]


def test_what_was_not_seen_is_never_better_than_what_was():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(400, 2)).astype(np.float32) * np.float32(1e-3)
    images[:, 0] += np.float32(0.5)
    # A floor next to which float32 cannot tell such differences apart.
    for floor in (-1e6, 0.0, 1e6):
        reward = made(Asked(), floor=floor)(images, None)
        seen = images[:, 0] >= np.float32(0.5)
        assert 100 < seen.sum() < 300
        assert reward[~seen].max() < reward[seen].min()


def test_a_picture_that_one_has_no_reward_of_has_none():
    images = np.asarray([[np.nan, 1.0], [-np.inf, 1.0], [1.0, np.nan], [1.0, -np.inf]], np.float32)
    scores = made(Asked()).scores(images, None)
    assert np.isnan(scores.reward).all()
    # They were asked about, unlike the first two.
    np.testing.assert_array_equal(np.isnan(scores.parts["dear"]), [True, True, False, False])


def test_what_is_wrong_is_named():
    with pytest.raises(
        TypeError, match=r"dear must be a reward of flowsde\.rewards\.host or remote"
    ):
        fs.rewards.cascade(first, first, threshold=0.0, floor=0.0)
    for name in ("threshold", "floor"):
        numbers = {"threshold": 0.0, "floor": 0.0} | {name: np.nan}
        with pytest.raises(ValueError, match=name):
            fs.rewards.cascade(first, fs.rewards.host(Asked(), "dear"), **numbers)
    with pytest.raises(ValueError, match="different names"):
        fs.rewards.cascade(first, fs.rewards.host(first), threshold=0.0, floor=0.0)
    # Another threshold is another reward, with which no search goes on.
    assert made(first).version != made(first, threshold=0.6).version


@pytest.mark.slow
def test_a_search_is_the_same_in_chunks_and_batches_and_counts_what_it_asked():
    asked = Asked()
    reward = made(asked, threshold=0.3)
    key, search, flow = jax.random.key(0), METHODS["rbf"], problems.flow()
    ids, cond = problems.batch(3)
    options = {"cond": cond, "prompt_ids": ids}
    result = fs.run(key, flow, search, reward, **options)
    many = sum(map(len, asked.images))
    assert many == np.count_nonzero(~np.isnan(result.info.parts["dear"]))
    assert 0 < many < int(np.sum(result.verifier_calls))
    assert int(np.sum(result.part_calls["dear"])) == many
    chunks = fs.run(key, flow, search, reward, chunk_size=2, **options)
    np.testing.assert_allclose(chunks.reward, result.reward, rtol=1e-5)
    np.testing.assert_allclose(chunks.info.parts["dear"], result.info.parts["dear"], rtol=1e-4)
    asked.images.clear()
    batches = sorted(fs.batch(key, flow, search, reward, batch_size=5, **options))
    for i, (_, one) in enumerate(batches):
        np.testing.assert_allclose(one.reward, result.reward[i], rtol=1e-5)
    assert sum(one.part_calls["dear"] for _, one in batches) == sum(map(len, asked.images))
    # Of all attempts, where several share a budget.
    asked.images.clear()
    options |= {"total_nfe": 5 * search.nfe, "target_reward": 1e6}
    attempts = fs.batch(key, flow, search, reward, batch_size=5, **options)
    assert sum(one.part_calls["dear"] for _, one in attempts) == sum(map(len, asked.images))


@pytest.mark.slow
def test_calls_are_counted_where_a_search_looks_ahead_and_after_resuming(tmp_path):
    asked = Asked()
    reward = made(asked, threshold=0.3)
    key, search, flow = jax.random.key(0), METHODS["rbf, quantile, samples"], problems.flow()
    ids, conds = problems.batch(1)
    cond = problems.row(conds, 0)
    rounds = list(fs.iterate(key, flow, search, reward, cond=cond))
    whole = rounds[-1]
    # Two pictures are seen ahead of a particle, of which any number is shown to the dear reward.
    assert whole.part_calls["dear"] == sum(map(len, asked.images)) > 0
    asked.images.clear()
    ((_, one),) = fs.batch(key, flow, search, reward, batch_size=3, cond=conds, prompt_ids=ids)
    assert one.part_calls["dear"] == sum(map(len, asked.images))
    fs.save_search(tmp_path, search, rounds[4])
    saved = fs.restore_search(tmp_path, search)
    assert saved.part_calls["dear"] == rounds[4].part_calls["dear"]
    again = fs.run(key, flow, search, reward, cond=cond, resume=saved)
    assert again.part_calls["dear"] == whole.part_calls["dear"]


@pytest.mark.slow
def test_a_save_without_calls_is_counted_by_its_log():
    reward, key, search = made(Asked(), threshold=0.3), jax.random.key(0), METHODS["bon"]
    options = {"cond": problems.row(problems.problems(1), 0)}
    rounds = list(fs.iterate(key, problems.flow(), search, reward, **options))
    old = rounds[len(rounds) // 2]._replace(part_calls=None)
    found = fs.run(key, problems.flow(), search, reward, resume=old, **options)
    assert found.part_calls == rounds[-1].part_calls
