"""What is charged against what a counting model and a counting verifier really see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import GRID, SDE, VP

import flowsde as fs

SEEN = {"model": 0, "verifier": 0}
KEY = jax.random.key(1)
ODE = fs.kernels.ode_euler(VP)


def _saw(who, rows):
    SEEN[who] += rows.shape[0]


def counting_velocity(params, x, t, cond):
    jax.debug.callback(lambda rows: _saw("model", rows), t)
    return params * x + cond[:, None]


def counting_host_reward(images, cond):
    SEEN["verifier"] += images.shape[0]
    return np.sin(3.0 * images.sum(axis=-1))


def smooth(images, cond):
    return jnp.sin(3.0 * jnp.sum(images, axis=-1))


def flow(guided=False):
    inner = fs.Flow.from_callable(counting_velocity, jnp.float32(0.7), (2,))
    return fs.guide(inner, 2.0, jnp.float32(0.0)) if guided else inner


def rbf(width=1, finish="mean", nfe=33, last="exhaust"):
    return fs.search.rbf(
        nfe=nfe, kernel=SDE, grid=GRID, chains=2, seeds=2, width=width, finish=finish,
        finish_steps=3, last=last,
    )  # fmt: skip


def bon(width=2, nfe=33):
    return fs.search.bon(nfe=nfe, kernel=ODE, grid=GRID, width=width)


def smc(nfe=33, **options):
    return fs.search.smc(nfe=nfe, kernel=SDE, grid=GRID, temperature=0.1, finish_steps=3, **options)


def code(nfe=33, **options):
    return fs.search.code(nfe=nfe, kernel=SDE, grid=GRID, finish_steps=3, **options)


def spends(search, cost):
    """What a method is charged without a target: all but what is less than one more unit."""
    nfe = search.nfe // cost
    if isinstance(search, fs.search.Complete):
        return cost * (spends(search.inner.with_nfe(nfe - search.steps), 1) + search.steps)
    if isinstance(search, fs.search.CoDe):
        return cost * search.with_nfe(nfe).quotas.sum()
    trajectories = isinstance(search, fs.search.BestOfN | fs.search.SMC)
    return cost * (nfe // (len(GRID) - 1) * (len(GRID) - 1) if trajectories else nfe)


def counted(go, search, model, reward=smooth, prompts=None, **options):
    """The result, after checking its counts against the stub's."""
    cond = np.float32(0.3) if prompts is None else np.linspace(-1, 1, prompts).astype(np.float32)
    ids = None if prompts is None else np.arange(prompts)
    SEEN.update(model=0, verifier=0)
    result = go(KEY, model, search, reward, cond=cond, prompt_ids=ids, **options)
    if go is fs.iterate:
        *_, result = result
    jax.effects_barrier()
    assert SEEN["model"] == np.sum(result.evaluations)
    nfe = np.asarray(result.nfe)
    assert np.all(nfe <= search.nfe)
    # Charged = seen less the surplus that the log reports.
    info = jax.tree.map(lambda a: a[:, None] if prompts is None else a, result.info)
    cost = model.evaluations
    np.testing.assert_array_equal(cost * info.charged.sum(axis=0), np.atleast_1d(nfe))
    if options.get("target_reward") is None:
        np.testing.assert_array_equal(cost * info.counted.sum(axis=(0, 2)), np.atleast_1d(nfe))
    assert np.all(result.evaluations >= nfe)
    return result


@pytest.mark.parametrize(
    ("go", "search", "guided", "prompts", "chunk"),
    [
        (fs.run, rbf(5, "complete"), False, 3, 4),
        (fs.run, rbf(3, nfe=41), True, 3, 2),
        pytest.param(fs.run, bon(), False, 3, 4, marks=pytest.mark.slow),
        pytest.param(fs.run, smc(), False, 3, 4, marks=pytest.mark.slow),
        pytest.param(fs.iterate, smc(nfe=61), True, None, None, marks=pytest.mark.slow),
        pytest.param(fs.run, code(chains=3), False, 3, 5, marks=pytest.mark.slow),
        pytest.param(fs.iterate, code(block=1, nfe=51), True, 2, 3, marks=pytest.mark.slow),
        pytest.param(fs.iterate, rbf(5, "complete"), False, 3, 4, marks=pytest.mark.slow),
        pytest.param(fs.iterate, rbf(5), True, None, 7, marks=pytest.mark.slow),
    ],
)
def test_charge_is_what_the_model_saw_less_the_surplus(go, search, guided, prompts, chunk):
    model = flow(guided)
    options = {"prompts": prompts, "chunk_size": chunk}
    full = counted(go, search, model, **options)
    np.testing.assert_array_equal(full.nfe, spends(search, model.evaluations))
    if search.n_candidates > 1 and chunk != 1:
        assert np.any(full.evaluations > full.nfe), (
            "chunks are padded, and wide waves have a surplus"
        )

    target = float(np.min(full.reward)) - 0.2
    early = counted(go, search, model, target_reward=target, **options)
    assert np.all(np.asarray(early.nfe) <= full.nfe)
    one_stop = fs.search.BestOfN | fs.search.SMC
    inner = getattr(search, "inner", search)
    assert np.any(np.asarray(early.nfe) < full.nfe) or isinstance(inner, one_stop)


@pytest.mark.slow
def test_one_at_a_time_has_no_surplus():
    result = counted(fs.run, rbf(1), flow(), prompts=3, chunk_size=1)
    np.testing.assert_array_equal(result.evaluations, result.nfe)
    np.testing.assert_array_equal(result.verifier_calls, result.nfe)


@pytest.mark.slow
def test_verifier_calls_are_what_the_verifier_saw():
    reward = fs.rewards.host(counting_host_reward)
    for search, chunk in ((rbf(5, "complete"), 4), (bon(), None)):
        result = counted(fs.run, search, flow(), reward, prompts=3, chunk_size=chunk)
        assert SEEN["verifier"] == np.sum(result.verifier_calls)
        if isinstance(search, fs.search.BestOfN):
            np.testing.assert_array_equal(result.verifier_calls, search.samples)


@pytest.mark.slow
def test_printed_algorithm_may_leave_budget_only_in_its_last_step():
    result = counted(fs.run, rbf(1, last="improve"), flow(), prompts=3, chunk_size=2)
    chains = result.state.chains
    assert np.all(chains.stage == len(GRID) - 1)
    assert np.all(np.asarray(result.nfe) == np.sum(chains.charged, axis=1))
