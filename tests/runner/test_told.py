"""What models and rewards are told: each prompt its own null condition, texts for host rewards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowsde as fs
from flowsde.conds import of_each_prompt, rows_on_host
from flowsde.runner.identity import of_run

KEY = jax.random.key(4)
LINEAR = fs.interpolants.linear()
SEARCH = fs.search.bon(nfe=6, kernel=fs.kernels.ode_euler(LINEAR), grid=fs.grids.uniform(3))
COND = {"at": np.array([[1.0, 2.0], [-1.0, 0.5], [0.25, 4.0]], np.float32)}
NULL = {"at": np.array([[0.0, 1.0], [3.0, -2.0], [-0.5, 0.5]], np.float32)}
TEXTS = ["a cat", "two dogs", "ein Pferd"]


def velocity(params, x, t, cond):
    """Of data that are the one point cond: x0 = cond wherever x is."""
    return (x - cond["at"]) / jnp.maximum(t, 1e-6)[:, None]


def flow():
    return fs.Flow.from_callable(velocity, None, (2,))


def reward(images, cond):
    return -jnp.sum(jnp.square(images - cond["at"]), axis=-1)


def row(tree, i):
    return jax.tree.map(lambda a: a[i], tree)


def same(a, b, tolerance=1e-4):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [None, 1])
def test_each_prompt_is_guided_away_from_its_own_null(chunk_size):
    """x0 = null + 3 (cond - null), the point that guidance leads to; the reward is told cond."""
    wanted = NULL["at"] + 3.0 * (COND["at"] - NULL["at"])
    options = {"cond": COND, "prompt_ids": [5, 6, 7], "chunk_size": chunk_size}
    search = fs.search.bon(nfe=12, kernel=SEARCH.kernel, grid=fs.grids.uniform(3))
    found = fs.run(KEY, fs.guide(flow(), 3.0, NULL), search, reward, **options)
    same(found.x0, wanted)
    same(found.reward, -np.sum(np.square(wanted - COND["at"]), axis=-1))
    shared = fs.run(KEY, fs.guide(flow(), 3.0, row(NULL, 1)), search, reward, **options)
    same(shared.x0, NULL["at"][1] + 3.0 * (COND["at"] - NULL["at"][1]))


@pytest.mark.slow
def test_own_nulls_in_a_batch_in_sample_and_of_a_single_prompt():
    wanted = NULL["at"] + 3.0 * (COND["at"] - NULL["at"])
    guided = fs.guide(flow(), 3.0, NULL)
    search = fs.search.bon(nfe=12, kernel=SEARCH.kernel, grid=fs.grids.uniform(3))
    for i, result in fs.batch(KEY, guided, search, reward, cond=COND, batch_size=4):
        same(result.x0, wanted[i])
    drawn = fs.sample(
        KEY, guided, kernel=SEARCH.kernel, grid=SEARCH.grid, n=3, cond=COND, chunk_size=2
    )
    same(drawn, wanted)
    alone = fs.guide(flow(), 3.0, jax.tree.map(lambda a: a[:1], NULL))
    same(fs.run(KEY, alone, search, reward, cond=row(COND, 0)).x0, wanted[0])


def test_null_conditions_that_do_not_fit():
    two = {"at": NULL["at"][:2]}
    with pytest.raises(ValueError, match=r"null_cond .* \(2, 2\), expected \(2,\) .* or \(3, 2\)"):
        fs.run(KEY, fs.guide(flow(), 3.0, two), SEARCH, reward, cond=COND, prompt_ids=[0, 1, 2])
    with pytest.raises(ValueError, match="null_cond has the structure .*expected that of cond"):
        fs.run(KEY, fs.guide(flow(), 3.0, NULL), SEARCH, reward)


@pytest.mark.parametrize("scale", [[1.0, 2.0], np.ones((1,)), "3", None])
def test_guidance_has_one_scale(scale):
    """Two numbers were the scales of two columns of x."""
    with pytest.raises((ValueError, TypeError), match="scale must be one number"):
        fs.classifier_free_guidance(flow(), scale, row(NULL, 0))


def test_text_is_no_condition_of_a_model():
    message = "has a leaf of type str, 'a cat', expected arrays: text must be encoded"
    settings = {"kernel": SEARCH.kernel, "grid": SEARCH.grid}
    for call in (
        lambda: fs.run(KEY, flow(), SEARCH, reward, cond="a cat"),
        lambda: fs.iterate(KEY, flow(), SEARCH, reward, cond={"at": ["a cat"]}),
        lambda: fs.batch(KEY, flow(), SEARCH, reward, cond=TEXTS),
        lambda: fs.batch(KEY, flow(), SEARCH, reward, cond="a cat"),
        lambda: fs.sample(KEY, flow(), n=1, cond=["a cat"], **settings),
        lambda: fs.guide(flow(), 2.0, "a cat"),
        lambda: fs.run(KEY, flow(), SEARCH, reward, cond=row(COND, 0), reward_cond="a cat"),
    ):
        with pytest.raises(TypeError, match=message):
            call()


@pytest.mark.parametrize("value", [2**40, np.int64(-(2**31) - 1), np.uint64(2**32), 1e300])
def test_numbers_that_jax_would_wrap_are_refused(value):
    """In int32, 2**40 is 0: the condition of another prompt."""
    refused = {"expected_exception": ValueError, "match": "cond has the number .*32 does not hold"}
    for cond in (value, np.asarray(value), {"at": value}):
        with pytest.raises(**refused):
            of_each_prompt("cond", cond, 1, single=True)
    with pytest.raises(**refused):
        fs.batch(KEY, flow(), SEARCH, reward, cond=[{"at": value}, {"at": value}])
    with pytest.raises(**refused):
        fs.sample(KEY, flow(), kernel=SEARCH.kernel, grid=[1.0, 0.0], n=1, cond=np.array([value]))
    with jax.enable_x64(True):
        of_each_prompt("cond", value, 1, single=True)


def test_numbers_at_the_ends_are_taken():
    values = [2**31 - 1, -(2**31), np.uint64(2**32 - 1), 3e38, np.inf, np.nan]
    found = of_each_prompt("cond", values, 1, single=True)
    np.testing.assert_array_equal(np.float32(np.concatenate(found)), np.float32(values))


@pytest.mark.parametrize("single", [True, False])
def test_what_was_told_stays_as_it_was_given(single):
    """JAX shares the memory of NumPy's arrays where it is aligned, as of this one."""
    whole = np.zeros(4096 + 16, np.float32)
    first = -whole.ctypes.data % 64 // 4
    mine = whole[first : first + 4096].reshape(2, 2048)
    told = of_each_prompt("cond", mine, 1 if single else 2, single)
    mine += 1.0
    assert np.all(np.asarray(told) == 0.0)


class Foreign:
    """What PyTorch's tensors are to JAX: arrays, whose dtype is none of NumPy's."""

    dtype, shape = "theirs", (3,)

    def __init__(self, n):
        self.numbers = np.arange(n)

    def __array__(self, dtype=None, copy=None):
        return self.numbers

    def __getitem__(self, at):
        return self


@pytest.mark.parametrize("make", [range, Foreign, lambda n: memoryview(bytes(range(n)))])
def test_arrays_of_others_are_told_too(make):
    single = of_each_prompt("cond", {"of": make(3)}, 1, single=True)
    each = of_each_prompt("cond", {"of": make(3)}, 3, single=False)
    np.testing.assert_array_equal(single["of"], [[0, 1, 2]])
    np.testing.assert_array_equal(each["of"], [0, 1, 2])


@pytest.mark.parametrize("transformation", [jax.jit, jax.grad])
def test_a_search_in_a_compiled_function_is_refused(transformation):
    def best(at):
        return fs.run(KEY, flow(), SEARCH, reward, cond={"at": at}).reward

    with pytest.raises(TypeError, match="cannot be run inside jax.jit, vmap or grad"):
        transformation(best)(jnp.ones(2))


def test_a_search_of_its_own_in_a_compiled_function_is_refused():
    """JAX would trace what the search makes of its key, and say that in its own words."""
    cond = row(COND, 0)
    with pytest.raises(TypeError, match="cannot be run inside jax.jit, vmap or grad"):
        jax.jit(lambda by: by + fs.run(KEY, flow(), SEARCH, reward, cond=cond).reward)(1.0)


@pytest.mark.slow
def test_host_rewards_read_the_prompts():
    """The text of each image's prompt, alone, together and packed, with or without a minibatch."""
    heard = {}

    def judge(images, texts):
        assert isinstance(texts, list) and len(texts) == len(images)
        for image, text in zip(images, texts, strict=True):
            heard.setdefault(text, []).append(image)
        return np.asarray([float(len(text)) for text in texts])

    def check(texts):
        for text in texts:
            same(np.stack(heard[text]), np.resize(COND["at"][TEXTS.index(text)], (2, 2)))
        assert heard.keys() == set(texts)
        heard.clear()

    hosted = fs.rewards.host(judge, minibatch=3)
    several = {"cond": COND, "reward_cond": TEXTS, "prompt_ids": [0, 1, 2]}
    assert fs.run(KEY, flow(), SEARCH, hosted, **several).reward.tolist() == [5.0, 8.0, 9.0]
    check(TEXTS)
    *_, last = fs.iterate(KEY, flow(), SEARCH, hosted, **several, chunk_size=2)
    assert last.reward.tolist() == [5.0, 8.0, 9.0]
    check(TEXTS)
    one = fs.run(KEY, flow(), SEARCH, hosted, cond=row(COND, 1), reward_cond=TEXTS[1])
    assert float(one.reward) == 8.0
    check(TEXTS[1:2])
    packed = fs.batch(KEY, flow(), SEARCH, hosted, cond=COND, reward_cond=TEXTS, batch_size=4)
    assert {i: float(result.reward) for i, result in packed} == {0: 5.0, 1: 8.0, 2: 9.0}
    check(TEXTS)


@pytest.mark.slow
def test_a_reward_may_be_told_something_else():
    """Arrays for a JAX reward, which the model never sees."""
    goal = {"at": COND["at"] + np.float32(1.0)}
    for reward_cond in (goal, [row(goal, i) for i in range(3)]):
        found = fs.run(
            KEY, flow(), SEARCH, reward, cond=COND, reward_cond=reward_cond, prompt_ids=[0, 1, 2]
        )
        same(found.x0, COND["at"])
        same(found.reward, np.full(3, -2.0))
    hosted = fs.rewards.host(lambda images, cond: -np.sum((images - cond["at"]) ** 2, axis=-1))
    one = fs.run(KEY, flow(), SEARCH, hosted, cond=row(COND, 0), reward_cond=row(goal, 0))
    same(one.reward, -2.0)


COMBINED = {
    "weighted": lambda parts: fs.rewards.weighted(parts, [1.0, 1.0]),
    "minimum": fs.rewards.minimum,
    "lexicographic": lambda parts: fs.rewards.lexicographic(parts, [0.1, 0.1]),
    "normalised": lambda parts: fs.rewards.normalised(
        parts, {"reward": [0.0, 2.0], "length": [0.0, 2.0]}
    ),
    "cascade": lambda parts: fs.rewards.cascade(*parts, threshold=-1.0, floor=0.0),
    "nested": lambda parts: fs.rewards.minimum([fs.rewards.minimum(parts), parts[0]]),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", COMBINED)
def test_of_a_combination_parts_outside_jax_are_told_texts_and_those_in_it_the_cond(kind):
    """A picture is its prompt's point, of which the reward in JAX says 0."""
    seen = []

    def length(images, texts):
        seen.extend(texts)
        return np.array([len(text) for text in texts], np.float32)

    made = COMBINED[kind]([reward, fs.rewards.host(length)])
    options = {"cond": COND, "prompt_ids": [0, 1, 2], "reward_cond": TEXTS}
    found = fs.run(KEY, flow(), SEARCH, made, **options)
    assert set(seen) == set(TEXTS)
    parts = found.parts
    if kind != "nested":
        shift = 1.0 if kind == "normalised" else 0.0
        same(parts["reward"], np.full(3, -shift))
        same(parts["length"], np.array([len(text) for text in TEXTS]) - shift)
    one = fs.run(KEY, flow(), SEARCH, made, cond=row(COND, 0), reward_cond=TEXTS[0])
    same(one.reward, found.reward[0])


def test_a_part_in_jax_that_is_told_texts_by_hand_says_so():
    both = fs.rewards.minimum([reward, fs.rewards.host(lambda images, texts: np.zeros(1))])
    with pytest.raises(
        fs.rewards.RewardError, match="cond of reward 'reward', which is in JAX, ha"
    ):
        both(np.zeros((1, 2), np.float32), ["a cat"])


def test_what_a_reward_is_told_says_which_run_it_is():
    def known(told):
        return of_run(SEARCH, COND, 3, told=told).tolist()

    texts = known(TEXTS)
    assert texts != known(None) and known(list(TEXTS)) == texts
    assert [a == b for a, b in zip(texts, known(TEXTS[::-1]), strict=True)] == [0, 1, 0]
    nested = [{"text": text, "seen": np.arange(2)} for text in TEXTS]
    changed = [*nested[:2], nested[2] | {"seen": np.arange(2) + 1}]
    assert [a == b for a, b in zip(known(nested), known(changed), strict=True)] == [1, 1, 0]
    # Stacked or one by one, of NumPy or of JAX.
    rows = [row(COND, i) for i in range(3)]
    assert known(COND) == known(rows) == known(jax.tree.map(jnp.asarray, COND)) != texts
    # Objects may say anything of themselves.
    assert known([object()] * 3) == known([object()] * 3)


@pytest.mark.slow
@pytest.mark.parametrize("outside", [True, False])
def test_a_run_goes_on_with_what_its_reward_was_told(outside):
    made, told, other = reward, COND, NULL
    if outside:
        made = fs.rewards.host(lambda images, texts: np.array([float(len(t)) for t in texts]))
        told, other = TEXTS, TEXTS[::-1]
    options = {"cond": COND, "prompt_ids": [0, 1, 2]}
    search = fs.search.bon(nfe=12, kernel=SEARCH.kernel, grid=SEARCH.grid, width=1)
    whole = list(fs.iterate(KEY, flow(), search, made, **options, reward_cond=told))
    with pytest.raises(ValueError, match="another search, cond or reward_cond than this run's"):
        fs.run(KEY, flow(), search, made, **options, reward_cond=other, resume=whole[0])
    found = fs.run(KEY, flow(), search, made, **options, reward_cond=told, resume=whole[0])
    np.testing.assert_array_equal(found.reward, whole[-1].reward)


def test_a_list_of_conds_is_to_be_stacked():
    rows = [row(COND, i) for i in range(3)]
    with pytest.raises(ValueError, match=r"expected leading axis .*: stack a list of one for each"):
        fs.run(KEY, flow(), SEARCH, reward, cond=rows, prompt_ids=[0, 1, 2])


def test_what_rewards_are_told_must_fit():
    options = {"cond": COND, "prompt_ids": [0, 1, 2]}
    hosted = fs.rewards.host(lambda images, texts: np.zeros(len(images)))
    with pytest.raises(ValueError, match="reward_cond is a list of 2, expected .* 3 prompts"):
        fs.run(KEY, flow(), SEARCH, hosted, reward_cond=TEXTS[:2], **options)
    with pytest.raises(ValueError, match=r"reward_cond has a leaf of shape \(2, 2\), expected"):
        fs.run(KEY, flow(), SEARCH, reward, reward_cond={"at": NULL["at"][:2]}, **options)


@pytest.mark.slow
def test_host_rewards_may_be_torch():
    """PyTorch warns of arrays that cannot be written to, and warnings are errors here."""
    torch = pytest.importorskip("torch")

    def judge(images, cond):
        images, at = torch.from_numpy(images), torch.from_numpy(cond["at"])
        return -((images - at) ** 2).sum(-1).numpy()

    for minibatch in (None, 1):
        hosted = fs.rewards.host(judge, minibatch=minibatch)
        same(fs.run(KEY, flow(), SEARCH, hosted, cond=row(COND, 0)).reward, 0.0)
        for _, result in fs.batch(KEY, flow(), SEARCH, hosted, cond=COND, batch_size=4):
            same(result.reward, 0.0)


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(8), 3)


def _points(keys):
    """The data of each key."""
    return np.stack([np.asarray(jax.random.normal(key, (2,))) for key in keys])


def _drawn(params, x, t, cond):
    """`velocity` to the point that a typed key draws."""
    return velocity(params, x, t, {"at": jax.vmap(lambda key: jax.random.normal(key, (2,)))(cond)})


def _near(images, keys):
    """0 at the points that typed keys draw."""
    return -np.sum(np.square(images - _points(keys)), axis=-1)


def test_rows_of_arrays_and_typed_keys_on_the_host(keys):
    cond = {"keys": keys, "at": jnp.asarray(COND["at"])}
    rows = rows_on_host(cond, np.array([2, 0, 2]))
    np.testing.assert_array_equal(rows["at"], COND["at"][[2, 0, 2]])
    assert isinstance(rows["at"], np.ndarray)
    assert (rows["keys"] == keys[np.array([2, 0, 2])]).all()


@pytest.mark.slow
def test_typed_keys_are_conditions_of_models_and_of_host_rewards(keys, tmp_path):
    points = _points(keys)
    flow, near = fs.Flow.from_callable(_drawn, None, (2,)), fs.rewards.host(_near)
    options = {"cond": keys, "prompt_ids": [5, 6, 7], "chunk_size": 2}
    found = fs.run(KEY, flow, SEARCH, near, **options)
    same(found.x0, points)
    same(found.reward, 0.0)
    turned = np.array([1, 2, 0])
    others = fs.run(KEY, flow, SEARCH, near, **options, reward_cond=keys[turned])
    same(others.reward, -np.sum(np.square(points - points[turned]), axis=-1))
    same(fs.run(KEY, flow, SEARCH, near, cond=keys[1]).reward, 0.0)
    for i, result in fs.batch(KEY, flow, SEARCH, near, cond=[*keys], batch_size=4):
        same(result.x0, points[i])
        same(result.reward, 0.0)
    rounds = fs.iterate(KEY, flow, SEARCH, near, **options)
    next(rounds)
    fs.save_search(tmp_path, SEARCH, next(rounds))
    saved = fs.restore_search(tmp_path, SEARCH)
    same(fs.run(KEY, flow, SEARCH, near, **options, resume=saved).x0, points)
    with pytest.raises(ValueError, match="resume"):
        fs.run(KEY, flow, SEARCH, near, **options | {"cond": keys[turned]}, resume=saved)


@pytest.mark.slow
def test_a_diagnosis_by_a_host_reward_of_typed_keys(keys):
    flow = fs.Flow.from_callable(_drawn, None, (2,))
    kernel, grid = fs.kernels.ddim(fs.interpolants.linear()), fs.grids.uniform(3)
    options = {"kernel": kernel, "grid": grid, "n": 8, "families": 0, "cond": keys[1]}
    found = fs.diagnose(KEY, flow, fs.rewards.host(_near), **options)
    # The posterior mean is the point at every time.
    same(found.rewards, np.zeros((1, 8, 3)))
