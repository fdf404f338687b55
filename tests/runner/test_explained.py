"""Errors of the user's own functions come before any work, and say what they were called with."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flowsde as fs

KEY = jax.random.key(0)
KERNEL = fs.kernels.ode_euler(fs.interpolants.linear())
GRID = fs.grids.uniform(2)
SEARCH = fs.search.bon(nfe=4, kernel=KERNEL, grid=GRID)
UNTOLD = fs.analytic.gaussian([0.0, 0.0], 1.0).flow()


class Net(nnx.Module):
    """Of x [n, 2] and labels [n]."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.embed, self.out = nnx.Embed(4, 3, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x, t, cond):
        return self.out(jnp.concatenate([x, t[:, None], self.embed(cond)], axis=-1))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, t, cond):
        return nn.Dense(2)(jnp.concatenate([x, t[:, None], nn.Embed(4, 3)(cond)], axis=-1))


def plain(params, x, t, cond):
    return x * cond.astype(x.dtype)[:, None]


def first(images, cond):
    return images[:, 0]


def run(flow, reward=first, cond=None):
    fs.run(KEY, flow, SEARCH, reward, cond=cond)


def iterate(flow, reward=first, cond=None):
    fs.iterate(KEY, flow, SEARCH, reward, cond=cond)


def batch(flow, reward=first, cond=None):
    many = None if cond is None else jax.tree.map(lambda a: jnp.stack([a, a]), cond)
    fs.batch(KEY, flow, SEARCH, reward, cond=many, prompt_ids=[0, 1], batch_size=2)


def sample(flow, cond=None):
    many = None if cond is None else jax.tree.map(lambda a: jnp.stack([a, a]), cond)
    fs.sample(KEY, flow, kernel=KERNEL, grid=GRID, n=2, cond=many)


every_search = pytest.mark.parametrize("do", [run, iterate, batch])
everywhere = pytest.mark.parametrize("do", [run, iterate, batch, sample])


def error_of(do, *args, **options):
    with pytest.raises(Exception) as caught:
        do(*args, **options)
    return caught.value


def notes(error):
    return "\n".join(getattr(error, "__notes__", []))


def numpy_reward(images, cond):
    return -np.sum(np.asarray(images) ** 2, axis=-1)


def torch_reward(images, cond):
    return pytest.importorskip("torch").as_tensor(images)[:, 0]


def number_reward(images, cond):
    return jnp.asarray([float(image.sum()) for image in images])


def choosing_reward(images, cond):
    return images[:, 0] if images.sum() > 0 else images[:, 1]


def masking_reward(images, cond):
    return images[images[:, 0] > 0][:, 0]


def writing_reward(images, cond):
    images[:, 0] = 0.0
    return images[:, 1]


def diagnose(flow, reward=first, cond=None):
    fs.diagnose(KEY, flow, reward, kernel=KERNEL, grid=GRID, n=8, cond=cond)


def tune(flow, reward=first):
    fs.tune(KEY, flow, reward, nfe=8, seeds=4)


REWARDS = [numpy_reward, torch_reward, number_reward, choosing_reward]


@pytest.mark.parametrize(
    ("do", "reward"),
    [
        *((do, reward) for do in (run, iterate, batch) for reward in REWARDS),
        *((run, reward) for reward in (masking_reward, writing_reward)),
        *((do, numpy_reward) for do in (diagnose, tune)),
    ],
)
def test_a_reward_outside_jax_is_told_from_one_inside(do, reward):
    error = error_of(do, UNTOLD, reward)
    assert isinstance(error, TypeError | AttributeError | IndexError)
    assert f"as flowsde.rewards.host({reward.__name__})" in notes(error)
    assert re.search(r"images is float32\[\d, 2\]", notes(error))
    # The line that failed is the user's still.
    assert any(entry.name == reward.__name__ for entry in pytest.ExceptionInfo.from_exception(
        error).traceback)  # fmt: skip


def test_what_fails_inside_jax_is_not_said_to_be_outside():
    error = error_of(run, UNTOLD, lambda images, cond: images @ jnp.ones((3,)))
    assert "images is float32[2, 2] and cond is None" in notes(error)
    assert "host" not in notes(error)


def convention(flow):
    fs.check_convention(flow, np.eye(2, dtype=np.float32))


@pytest.mark.parametrize("do", [run, iterate, batch, sample, convention])
@pytest.mark.parametrize("kind", ["nnx", "linen", "callable"])
def test_a_model_without_its_cond(do, kind):
    labels = jnp.zeros(2, jnp.int32)
    if kind == "nnx":
        flow = fs.Flow.from_nnx(Net(), (2,))
    elif kind == "linen":
        variables = LinenNet().init(KEY, jnp.ones((2, 2)), jnp.ones(2), labels)
        flow = fs.Flow.from_linen(LinenNet(), variables, (2,))
    else:
        flow = fs.Flow.from_callable(plain, None, (2,))
    error = error_of(do, flow)
    name = {"nnx": "Net", "linen": "LinenNet", "callable": "plain"}[kind]
    assert f"model {name} is called with (x, t, cond)" in notes(error)
    assert "cond is None, as none was given" in notes(error)


@pytest.mark.parametrize("do", [run, sample, convention])
def test_a_model_that_takes_none_for_an_index(do):
    """JAX says nothing of None then: it is a new axis."""

    def model(params, x, t, cond):
        return x @ params[cond]

    error = error_of(do, fs.Flow.from_callable(model, jnp.ones((3, 2)), (2,)))
    assert "NoneType" not in str(error)
    assert "cond is None, as none was given" in notes(error)


def test_a_reward_without_its_cond():
    error = error_of(run, UNTOLD, lambda images, cond: images[:, 0] * cond)
    assert isinstance(error, TypeError)
    assert "images is float32[2, 2] and cond is None, as none was given" in notes(error)


@everywhere
def test_a_guided_model_without_its_cond(do):
    flow = fs.guide(fs.Flow.from_nnx(Net(), (2,)), 2.0, jnp.int32(3))
    with pytest.raises(
        ValueError, match="null_cond has .* expected that of cond, .*; no cond was given"
    ):
        do(flow)


@everywhere
def test_a_cond_with_an_axis_too_many(do):
    error = error_of(do, fs.Flow.from_nnx(Net(), (2,)), cond=jnp.asarray([1]))
    assert "model Net is called with" in notes(error)
    assert "cond is int32[2, 1]" in notes(error)
    single = do in (run, iterate)
    told = "cond was given as int32[1], of one prompt: without prompt_ids it has no batch axis"
    assert (told in notes(error)) == single
    assert ("for P prompts, whose axis it begins with, pass prompt_ids=" in notes(error)) == single


@pytest.mark.parametrize("do", [run, iterate])
@pytest.mark.parametrize("model", [
    lambda params, x, t, cond: x * cond[:, None],
    lambda params, x, t, cond: x[:, None] + cond[..., None],  # of another shape
])  # fmt: skip
def test_the_conds_of_many_prompts_without_their_ids(do, model):
    error = error_of(do, fs.Flow.from_callable(model, None, (2,)), cond=jnp.ones(20))
    assert "cond was given as float32[20], of one prompt" in notes(error)
    assert "pass prompt_ids=, such as range(P)" in notes(error)


def spreading(params, x, t, cond):
    return x[:, None] * cond[..., None]


@everywhere
def test_the_model_is_named_that_returns_another_shape(do):
    flow = fs.Flow.from_callable(spreading, None, (2,))
    error = error_of(do, flow, cond=jnp.ones(1, jnp.float32))
    assert isinstance(error, ValueError)
    assert "model spreading returned shape (2, 1, 2)" in str(error)
    assert "expected shape (2, 2)" in str(error)


@everywhere
def test_a_wrong_shape_of_the_flow(do):
    error = error_of(do, fs.Flow.from_nnx(Net(), (3,)), cond=jnp.int32(1))
    assert isinstance(error, TypeError) and "dot_general" in str(error)
    assert "x is float32[2, 3]" in notes(error)
    assert "the flow was given shape=(3,)" in notes(error)


@pytest.mark.parametrize("make", [fs.rewards.host, fs.rewards.device, lambda fn: run(UNTOLD, fn)])
@pytest.mark.parametrize(
    ("reward", "why"),
    [
        (lambda images: images, r"<lambda>\(images\) does not take: too many"),
        (lambda images, cond, more: images, r"does not take: missing .*'more'"),
        (lambda images, *, cond: images, r"does not take: .*"),
    ],
)
def test_a_reward_of_other_arguments(make, reward, why):
    with pytest.raises(
        TypeError, match=rf"reward is called as reward\(images, cond\), which .*{why}"
    ):
        make(reward)


def test_rewards_of_two_arguments_are_taken_however_they_are_made():
    partial = jax.tree_util.Partial(lambda params, images, cond: images, 1)
    for reward in (first, jax.jit(first), partial, lambda *all_of_them: 0, lambda a, b, c=3: a):
        assert fs.rewards.device(reward).fn is not None
        assert callable(fs.rewards.host(reward).fn)


@pytest.mark.parametrize("reward", [first, fs.rewards.host(numpy_reward)])
@every_search
@pytest.mark.parametrize(
    ("decode", "message"),
    [
        (lambda x0: (x0, x0), r"decode returned \(float32\[\d, 2\], float32\[\d, 2\]\), expected"),
        (lambda x0: None, "decode returned None, expected an array of images"),
        (lambda x0: x0[:1], r"decode returned shape \(1, 2\), expected leading axis \d"),
        (np.asarray, "traced array"),
        (lambda x0, more: x0, "missing 1 required positional argument: 'more'"),
    ],
)
def test_a_wrong_decoder(reward, do, decode, message):
    flow = fs.Flow.from_callable(lambda params, x, t, cond: x, None, (2,), decode=decode)
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        do(flow, reward)
    assert "decode is called as decode(x0): x0 is float32[2, 2]" in notes(caught.value)


def test_a_model_in_place_of_its_flow():
    for do in (run, iterate, batch, sample):
        with pytest.raises(TypeError, match="flow must be a flowsde.Flow, got Net"):
            do(Net())


def test_a_shape_that_is_none():
    for shape in (None, 3, "32"):
        with pytest.raises(TypeError, match="shape must be a tuple of one particle's axes, got"):
            fs.Flow.from_nnx(Net(), shape)
