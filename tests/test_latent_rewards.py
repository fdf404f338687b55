"""Rewards that are shown latents: the same search, and only its answer is decoded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faulty import serving
from methods import METHODS

import flowsde as fs
from flowsde.cli.main import main
from flowsde.cli.sources.rewards import HostFunction

KEY = jax.random.key(5)
SHAPE = (3,)
NAMES = ("bon", "rbf", "smc", "guided svdd at some, adams")


def doubled(x0):
    return 2.0 * x0  # exact in float32, so that a reward may undo it


def flow_of(decode):
    flow = fs.analytic.gaussian(jnp.zeros(3), 1.0).flow()
    return dataclasses.replace(flow, decode=jax.tree_util.Partial(decode))


def of_images(images, cond):
    return jnp.sin(3.0 * jnp.sum(0.5 * images, axis=-1))


def of_latents(x0, cond):
    return jnp.sin(3.0 * jnp.sum(x0, axis=-1))


def on_host(fn, **how):
    return fs.rewards.host(lambda a, cond: np.asarray(fn(a, cond)), name="r", **how)


def rewards(where):
    make = fs.rewards.device if where == "device" else on_host
    return make(of_images), make(of_latents, latents=True)


def same(a, b):
    for name in ("image", "x0", "reward", "nfe", "verifier_calls"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["device", "host"])
@pytest.mark.parametrize("name", NAMES)
def test_a_search_is_the_same_and_its_answer_is_decoded(name, where):
    if where == "host" and "guided" in name:
        pytest.skip("a reward outside JAX has no gradient")
    flow, search = flow_of(doubled), METHODS[name]
    seen, latent = (fs.run(KEY, flow, search, reward) for reward in rewards(where))
    np.testing.assert_array_equal(latent.image, doubled(latent.x0))
    if "guided" in name:  # there the gradient goes the longer way, with other roundings
        np.testing.assert_allclose(latent.x0, seen.x0, rtol=1e-4, atol=1e-5)
    else:
        same(seen, latent)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["device", "host"])
def test_packed_prompts_are_those_of_a_run_each(where):
    flow, search = flow_of(doubled), METHODS["rbf"]
    _, reward = rewards(where)
    for prompt, result in fs.batch(KEY, flow, search, reward, prompt_ids=range(3)):
        alone = fs.run(KEY, flow, search, reward, prompt_ids=[prompt])
        np.testing.assert_allclose(result.x0, alone.x0[0], rtol=1e-6)
        np.testing.assert_array_equal(result.image, doubled(result.x0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "where"),
    [("run", "device"), ("iterate", "device"), ("iterate", "host"), ("batch", "device"),
     ("batch", "host")],
)  # fmt: skip
def test_only_answers_are_decoded(how, where):
    decoded = []

    def decode(x0):
        jax.debug.callback(lambda x: decoded.extend(np.asarray(x)), x0)
        return doubled(x0)

    flow, search = flow_of(decode), METHODS["rbf"]
    _, reward = rewards(where)
    if how == "run":
        answers = [fs.run(KEY, flow, search, reward).x0]
    elif how == "iterate":  # whose results are the best so far
        answers = [result.x0 for result in fs.iterate(KEY, flow, search, reward)]
    else:
        found = fs.batch(KEY, flow, search, reward, prompt_ids=range(3))
        answers = [result.x0 for _, result in found]
    jax.effects_barrier()
    assert set(map(tuple, np.asarray(decoded))) == set(map(tuple, np.asarray(answers)))


@pytest.mark.slow
def test_latents_that_are_not_finite_have_no_reward():
    def model(x, t, cond):
        return jnp.where(x[:, :1] > 0.0, x, jnp.nan)

    flow = fs.Flow.from_callable(lambda _, *xtc: model(*xtc), {}, SHAPE, decode=jnp.nan_to_num)
    for make in (fs.rewards.device, on_host):
        reward = make(lambda x0, cond: jnp.ones(len(x0)), latents=True)
        assert np.isfinite(fs.run(KEY, flow, METHODS["bon"], reward).x0).all()


@pytest.mark.slow
def test_a_diagnosis_is_that_of_the_pictures():
    flow = flow_of(doubled)
    kernel, grid = fs.kernels.ddim(flow.interpolant), fs.grids.uniform(4)
    for where in ("device", "host"):
        seen, latent = (
            fs.diagnose(KEY, flow, reward, kernel=kernel, grid=grid, n=16)
            for reward in rewards(where)
        )
        np.testing.assert_array_equal(seen.rewards, latent.rewards)


def test_a_decoder_that_fails_does_so_before_any_work():
    def broken(x0):
        raise ValueError("no such layer")

    asked = []
    reward = fs.rewards.host(lambda x0, cond: asked.append(1), latents=True)
    with pytest.raises(ValueError, match="no such layer"):
        fs.run(KEY, flow_of(broken), METHODS["bon"], reward)
    assert not asked


def test_a_decoder_that_ignores_the_batch_is_refused():
    asked = []
    reward = fs.rewards.host(lambda x0, cond: asked.append(1), latents=True)
    with pytest.raises(ValueError, match=r"decode returned shape \(1, 3\), expected leading axis"):
        fs.run(KEY, flow_of(lambda x0: x0[:1]), METHODS["bon"], reward, prompt_ids=range(3))
    assert not asked


@pytest.mark.slow
def test_several_rewards_are_all_of_latents_or_all_of_images():
    def part(name, **how):
        return fs.rewards.device(lambda a, cond: a[:, 0], name=name, **how)

    both = fs.rewards.weighted([part("a", latents=True), part("b", latents=True)], [1.0, 2.0])
    result = fs.run(KEY, flow_of(doubled), METHODS["bon"], both)
    np.testing.assert_allclose(result.reward, 3.0 * result.x0[0], rtol=1e-6)
    with pytest.raises(ValueError, match="'b' of latents and 'a' of images"):
        fs.rewards.weighted([part("a"), part("b", latents=True)], [1.0, 2.0])
    dear = fs.rewards.host(lambda a, cond: a[:, 0], name="dear")
    with pytest.raises(ValueError, match="'a' of latents and 'dear' of images"):
        fs.rewards.cascade(part("a", latents=True), dear, threshold=0.0, floor=0.0)


def test_a_flag_that_is_none_is_named():
    for make in (fs.rewards.device, fs.rewards.host):
        with pytest.raises(TypeError, match="latents must be True or False, got 'x0'"):
            make(lambda a, cond: a[:, 0], latents="x0")


def test_a_reward_that_fails_is_told_what_it_was_shown():
    reward = fs.rewards.device(lambda x0, cond: x0 @ jnp.ones(7), name="seven", latents=True)
    with pytest.raises(TypeError) as failed:
        fs.run(KEY, flow_of(doubled), METHODS["bon"], reward)
    assert any("reward(latents, cond): latents is" in note for note in failed.value.__notes__)


@pytest.mark.slow
def test_a_remote_reward_is_sent_latents():
    seen = []

    def served(x0, cond):
        seen.append(np.array(x0))
        return np.asarray(of_latents(x0, cond))

    with serving(served) as server:
        reward = fs.rewards.remote(server.url, latents=True)
        result = fs.run(KEY, flow_of(doubled), METHODS["bon"], reward)
        with pytest.raises(ValueError, match="as_pixels is of pictures"):
            fs.rewards.remote(server.url, latents=True, as_pixels=True)
    np.testing.assert_allclose(result.reward, of_latents(result.x0[None], None)[0], rtol=1e-6)
    assert any((result.x0 == x0).all() for batch in seen for x0 in batch)


def test_the_command_searches_by_latents_and_scores_no_files_by_them(tmp_path, monkeypatch, capsys):
    (tmp_path / "calm.py").write_text(
        "import flowsde as fs, jax.numpy as jnp\n"
        "reward = fs.rewards.device(lambda x0, cond: -jnp.sum(x0 * x0, axis=1), latents=True)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    source = HostFunction("calm:reward", timeout=None)
    assert source.reward.latents
    with pytest.raises(SystemExit) as stop:
        main(["score", "a.png", "--reward", "calm:reward"])
    assert stop.value.code == 2
    assert "calm:reward is of latents, and scores no pictures" in capsys.readouterr().err
