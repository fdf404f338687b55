"""`flowsde.diagnose`: what is drawn, counted and refused, whatever the chunks and the prompts."""

import ast
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

import flowsde as fs
from flowsde.diagnosis import statistics

LINEAR, VP = fs.interpolants.linear(), fs.interpolants.vp()
DDIM = fs.kernels.ddim(VP)
GRID = fs.grids.uniform(4)
DATA = fs.analytic.mixture([0.5, 0.5], [[1.0, 1.0], [-1.0, 0.5]], 0.1)
SMALL = {"grid": GRID, "n": 12, "families": 5, "siblings": 3}


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Of the bootstrap, which test_diagnose_exact.py is about."""
    monkeypatch.setattr(statistics, "_DRAWS", 20)
    monkeypatch.setattr(statistics, "_AT_ONCE", 20)


def reward(images, cond):
    return jnp.sin(3.0 * images[:, 0]) + images[:, 1]


def shifted(images, cond):
    return reward(images, cond) + cond


def on_host(images, cond):
    return np.sin(3.0 * images[:, 0]) + images[:, 1]


def run(kernel=DDIM, flow=None, reward=reward, seed=0, **options):
    flow = DATA.flow() if flow is None else flow
    return fs.diagnose(jax.random.key(seed), flow, reward, kernel=kernel, **SMALL | options)


def same(a, b):
    for name in ("rewards", "sibling_rewards", "sibling_finals"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-5, atol=1e-5)


SDE_HEUN = fs.kernels.sde_heun(VP, fs.diffusion.square(1.0))
GLASS = fs.kernels.glass(VP, inner_steps=3)
KERNELS = [DDIM, fs.kernels.euler_maruyama(LINEAR, fs.diffusion.square()), SDE_HEUN, GLASS]


@pytest.mark.slow
@pytest.mark.parametrize("final", ["mean", "kernel"])
@pytest.mark.parametrize("kernel", KERNELS, ids=["ddim", "euler_maruyama", "sde_heun", "glass"])
def test_trajectories_are_those_of_sample(kernel, final):
    key = jax.random.fold_in(jax.random.key(0), 0)
    found = run(kernel, final=final)
    x = fs.sample(key, DATA.flow(), kernel=kernel, grid=GRID, n=12, final=final)
    np.testing.assert_allclose(found.rewards[0, :, -1], reward(x, None), rtol=1e-4, atol=1e-4)
    assert found.rewards.shape == (1, 12, 4 + (final == "kernel"))


@pytest.mark.slow
def test_siblings_are_children_of_one_state_and_belong_to_none_but_it():
    found = run()
    # The first of them is the trajectory's own.
    own = found.rewards[:, :5]
    assert np.array_equal(found.sibling_rewards[..., 0], own[..., 1:])
    assert np.array_equal(found.sibling_finals[..., 0], np.repeat(own[..., -1:], 3, -1))
    # All differ, and those at the last step are their own pictures.
    assert len(np.unique(found.sibling_rewards)) == found.sibling_rewards.size
    assert np.array_equal(found.sibling_rewards[:, :, -1], found.sibling_finals[:, :, -1])


@pytest.mark.slow
def test_neither_chunks_nor_other_trajectories_matter():
    whole, parts = run(), run(chunk_size=5)
    same(whole, parts)
    fewer = run(n=8, families=3)
    np.testing.assert_allclose(fewer.rewards, whole.rewards[:, :8], rtol=1e-5, atol=1e-5)
    near = whole.sibling_rewards[:, :3]
    np.testing.assert_allclose(fewer.sibling_rewards, near, rtol=1e-5, atol=1e-5)
    assert parts.nfe == whole.nfe and parts.verifier_calls == whole.verifier_calls


def counting():
    """A flow, the rows that it is evaluated on, and how often it is traced."""
    rows, traces = [], []

    def velocity(params, x, t, cond):
        traces.append(x.shape)
        jax.debug.callback(lambda n=x.shape[0]: rows.append(n))
        return DATA.velocity(LINEAR, x, t)

    return fs.Flow.from_callable(velocity, None, (2,)), rows, traces


@pytest.mark.slow
@pytest.mark.parametrize("final", ["mean", "kernel"])
@pytest.mark.parametrize("kernel", [DDIM, SDE_HEUN, GLASS], ids=["ddim", "sde_heun", "glass"])
def test_nfe_is_what_the_model_sees(kernel, final):
    flow, seen, _ = counting()
    # In chunks of one row there is no padding.
    one = run(kernel, flow, chunk_size=1, final=final, n=8, families=2)
    jax.effects_barrier()
    assert one.nfe == one.evaluations == sum(seen)
    rows = 0
    for i in range(4):  # trajectories and all siblings born so far are evaluated at each time,
        rows += 8 + 2 * 2 * i
        # and as often as a step takes more, with those born there.
        moves = i < 3 or final == "kernel"
        rows += (8 + 2 * 2 * (i + 1)) * moves * (kernel.evaluations - 1)
    assert one.nfe == rows
    padded = run(kernel, flow, chunk_size=5, final=final, n=8, families=2)
    jax.effects_barrier()
    assert padded.nfe == one.nfe and one.nfe + padded.evaluations == sum(seen)
    rewards = sum(8 + 4 * i for i in range(4 + (final == "kernel")))
    assert padded.verifier_calls == one.verifier_calls == rewards


@pytest.mark.slow
def test_second_call_compiles_nothing():
    flow, _, traces = counting()
    run(flow=flow)
    before = len(traces)
    run(flow=flow, seed=1)
    assert before == len(set(traces)) == len(traces) == 1


@pytest.mark.slow
def test_guided_flow_costs_two_evaluations():
    guided = fs.classifier_free_guidance(
        fs.Flow.from_callable(lambda p, x, t, cond: -x * cond[:, None], None, (2,)), 2.0,
        np.float32(0.5),
    )  # fmt: skip
    found = run(flow=guided, cond=np.float32(1.0))
    assert found.nfe == 2 * run().nfe


@pytest.mark.slow
def test_reward_outside_jax_is_the_same():
    seen = []

    def told(images, texts):
        seen.extend(texts)
        return on_host(images, None)

    same(run(), run(reward=fs.rewards.host(told), reward_cond="a picture", chunk_size=7))
    assert set(seen) == {"a picture"} and len(seen) == run().verifier_calls


@pytest.mark.slow
def test_prompts_are_correlated_within_and_belong_to_their_ids():
    both = run(reward=shifted, cond=np.float32([0.0, 100.0]), prompt_ids=[4, 9])
    plain = run(cond=np.zeros(2, np.float32), prompt_ids=[4, 9], reward=shifted)
    # A prompt's own level changes no comparison.
    for name in ("correlation", "rises", "agreement", "worth"):
        a, b = getattr(both, name).value, getattr(plain, name).value
        np.testing.assert_allclose(a, b, atol=2e-3, equal_nan=True)
    alone = run(prompt_ids=[9])
    np.testing.assert_allclose(plain.rewards[1:], alone.rewards, rtol=1e-5, atol=1e-5)
    assert not np.allclose(plain.rewards[0], plain.rewards[1])
    assert both.nfe == 2 * alone.nfe


@pytest.mark.slow
def test_rewards_that_are_no_numbers():
    def holes(images, cond):
        return jnp.where(images[:, 0] > 0.8, jnp.nan, images[:, 0])

    found = run(reward=holes, n=64, families=32)
    assert np.isneginf(found.rewards).any() and np.isfinite(found.gain.value).all()
    assert "NaN or infinite" in str(found)
    with pytest.raises(ValueError, match="'never' was NaN or -inf for every final picture"):
        run(reward=fs.rewards.device(lambda images, cond: jnp.nan * images[:, 0], name="never"))


@pytest.mark.slow
def test_constant_reward_leaves_nothing_to_choose():
    found = run(reward=lambda images, cond: jnp.zeros(images.shape[0], jnp.float32))
    assert np.isnan(found.correlation.value).all() and "nothing to choose" in str(found)
    assert found._repr_png_()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_it_shows_itself(tmp_path):
    found = run(n=64, families=32)
    text = str(found)
    assert text.splitlines()[0].split()[0] == "t" and "rank correlation" in text
    assert f"{found.nfe} NFE" in text and "wait" not in text
    rows = found.table()
    assert [row["time"] for row in rows] == [1.0, 0.75, 0.5, 0.25]
    assert rows[-1]["worth"] is None and rows[1]["worth"] == found.worth.value[1]
    (tmp_path / "d.png").write_bytes(found._repr_png_())
    assert imread(tmp_path / "d.png").shape[0] > 300
    assert found._repr_html_().count("<tr>") == 5 and repr(found).startswith("Diagnosis(prompts=1")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"n": 4}, "n must be an integer of at least 8"),
        ({"families": 13}, "families must be an integer of at most 12"),
        ({"families": 1}, "families must be at least 2, or 0"),
        ({"siblings": 1}, "siblings must be an integer of at least 2"),
        ({"final": "ode"}, "final must be 'mean' or 'kernel'"),
        ({"grid": [1.0, 0.5]}, "grid must run from 1 to 0"),
        ({"kernel": fs.kernels.renoise(VP)}, "kernel must be a reverse-time"),
        ({"kernel": fs.kernels.reward_gradient(DDIM, 1.0)}, "kernel is guided"),
        ({"flow": 3}, "flow must be a flowsde.Flow"),
        ({"chunk_size": 0}, "chunk_size must be an integer of at least 1"),
        ({"cond": np.zeros(3), "prompt_ids": [1, 2]}, "cond has a leaf of shape"),
    ],
)
def test_wrong_arguments(wrong, said):
    with pytest.raises((ValueError, TypeError), match=said):
        run(**wrong)


@pytest.mark.parametrize("final", ["mean", "kernel"])
def test_it_says_at_which_steps_a_search_is_to_branch(final):
    found = run(final=final)
    # Steps that end at positions 1, 3, and at no position of a search but the picture itself.
    good = np.isin(np.arange(len(found.times) - 1), (0, 2, 3))
    bound = np.where(good, 2.0, 0.5)
    worth = found.worth._replace(value=bound, low=bound, high=bound)
    said = " ".join(dataclasses.replace(found, worth=worth).advice())
    given = re.search(r"branch_at=(\[.*?\])", said)
    assert given
    search = fs.search.smc(
        nfe=40, kernel=DDIM, grid=GRID, finish="mean", branch_at=ast.literal_eval(given[1])
    )
    assert search.branch_at == (1, 3)
