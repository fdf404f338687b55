"""What is charged against what a counting model and a counting verifier really see.

Random settings of every method; each is a program of its own, so that CI takes a part of them.
``SETTINGS=2000 pytest tests/search/test_accounting.py`` takes 2,000.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from problems import GRID, SDE

import flowsde as fs

SEEN = {"model": 0, "backward": 0, "verifier": 0}
KEY = jax.random.key(1)
LINEAR = fs.interpolants.linear()
STOCHASTIC, ODE = fs.kernels.ddim(LINEAR), fs.kernels.ode_euler(LINEAR)
GUIDED = fs.kernels.guided(STOCHASTIC, 1.0)
METHODS = ("bon", "rbf", "svdd", "code", "smc", "sop")
EXAMPLES = -(-int(os.environ.get("SETTINGS", "60")) // len(METHODS))


def _saw(who, rows):
    SEEN[who] += rows.shape[0]


@jax.custom_vjp
def watched(x, t):
    """x; counts the rows that are differentiated."""
    return x


def _backward(t, cotangent):
    jax.debug.callback(lambda rows: _saw("backward", rows), t)
    return cotangent, jnp.zeros_like(t)


watched.defvjp(lambda x, t: (x, t), _backward)


def counting_velocity(params, x, t, cond):
    jax.debug.callback(lambda rows: _saw("model", rows), t)
    return params * watched(x, t) + cond[:, None]


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


def counted(go, search, model, reward=smooth, prompts=None, **options):
    """The result, after checking its counts against the stub's."""
    cond = np.float32(0.3) if prompts is None else np.linspace(-1, 1, prompts).astype(np.float32)
    ids = None if prompts is None else np.arange(prompts)
    SEEN.update(model=0, backward=0, verifier=0)
    result = go(KEY, model, search, reward, cond=cond, prompt_ids=ids, **options)
    if go is fs.iterate:
        *_, result = result
    jax.effects_barrier()
    assert SEEN["model"] == np.sum(result.evaluations)
    assert SEEN["backward"] == np.sum(result.backward_passes)
    nfe = np.asarray(result.nfe)
    assert np.all(nfe <= search.nfe)
    # Charged = seen less the surplus that the log reports.
    info = result.info._replace(seconds=None)
    info = jax.tree.map(lambda a: a[:, None] if prompts is None else a, info)
    cost = model.evaluations
    np.testing.assert_array_equal(cost * info.charged.sum(axis=0), np.atleast_1d(nfe))
    np.testing.assert_array_equal(info.evaluations.sum(0), np.atleast_1d(result.evaluations))
    if options.get("target_reward") is None:
        np.testing.assert_array_equal(cost * info.counted.sum(axis=(0, 2)), np.atleast_1d(nfe))
    assert np.all(result.evaluations >= nfe)
    return result


def unit(search):
    """The method's next unit of work: without a target, less than this is left of the budget."""
    match search:
        case fs.search.Complete():
            return unit(search.inner)
        case fs.search.RBF():
            return 1
        case fs.search.BestOfN() | fs.search.SMC():
            return search.steps  # one more sample
        case fs.search.CoDe():
            # One more child of a block, in each chain.
            return search.chains * max(1, min(search.block, search.steps - 1))
        case fs.search.SoP():
            return search.backward + 1  # one more child of a round


@st.composite
def searches(draw, method):
    """A search of random settings; those that cannot be are refused by name."""
    number = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    nfe, steps = draw(st.one_of(st.integers(1, 60), st.integers(1, 600))), number(1, 8)
    guided = method != "smc" and number(0, 5) == 0
    kernel = GUIDED if guided else STOCHASTIC
    options = {"nfe": nfe, "kernel": kernel, "grid": fs.grids.uniform(steps)}
    if method != "bon":
        options["finish"] = draw(st.sampled_from(["mean", "complete", "heun"]))
        options["finish_steps"] = 2 * number(1, 4)
    match method:
        case "bon":
            options |= {"width": number(1, 9), "kernel": draw(st.sampled_from([kernel, ODE]))}
        case "rbf":
            last = draw(st.sampled_from(["exhaust", "exhaust", "improve"]))
            options |= {"chains": number(1, 4), "seeds": number(1, 3), "width": number(1, 9)}
            options["last"] = last
        case "svdd":
            options |= {"chains": number(1, 4), "temperature": draw(st.sampled_from([0.0, 0.5]))}
        case "code":
            options |= {"chains": number(1, 4), "block": number(1, 9)}
        case "smc":
            options |= {"interval": number(1, 3), "potential": draw(st.sampled_from(POTENTIALS))}
        case "sop":
            forward = number(1, 3)
            options |= {"paths": number(1, 3), "forward": forward}
            options |= {"start": number(1, 4), "backward": forward + number(1, 3)}
    try:
        return getattr(fs.search, method)(**options)
    except ValueError as error:
        words = ("nfe", "start", "forward")
        assert str(error).startswith(words), error
        assume(False)


POTENTIALS = ("difference", "max", "sum", "final")
RUNS = st.fixed_dictionaries(
    {
        "guidance": st.booleans(),
        "prompts": st.sampled_from([None, 1, 2, 5]),
        "chunk_size": st.one_of(st.none(), st.integers(1, 12)),
        "target_reward": st.sampled_from([None, None, 0.3, -2.0]),
        "go": st.sampled_from([fs.run, fs.run, fs.run, fs.iterate]),
    }
)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_random_settings(method):
    tried = {"met": 0, "full": 0}

    @settings(
        max_examples=EXAMPLES, derandomize=True, database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(search=searches(method), how=RUNS)
    def check(search, how):
        model, go = flow(how["guidance"]), how["go"]
        options = {name: how[name] for name in ("prompts", "chunk_size", "target_reward")}
        cost = model.evaluations
        try:
            as_run = search.with_nfe(search.nfe // cost)
        except ValueError as error:
            assert str(error).startswith("nfe")
            assume(False)
        result = counted(go, search, model, **options)
        nfe, reward = np.asarray(result.nfe), np.asarray(result.reward)
        met = reward >= (np.inf if how["target_reward"] is None else how["target_reward"])
        inner = getattr(as_run, "inner", as_run)
        printed = isinstance(inner, fs.search.RBF) and inner.last == "improve"
        if how["target_reward"] is None and not printed:
            assert np.all(search.nfe - nfe < cost * unit(as_run) + search.nfe % cost)
            tried["full"] += 1
        tried["met"] += bool(np.any(met))
        if tried["full"] % 50 == 0:
            jax.clear_caches()

    check()
    assert tried["met"] and tried["full"]


def test_wide_waves_and_chunks_are_reported():
    full = counted(fs.run, rbf(5, "complete"), flow(), prompts=3, chunk_size=4)
    np.testing.assert_array_equal(full.nfe, 33)
    assert np.any(full.evaluations > full.nfe)
    early = counted(fs.run, rbf(5, "complete"), flow(), prompts=3, chunk_size=4, target_reward=0.2)
    assert np.any(np.asarray(early.nfe) < full.nfe)


@pytest.mark.slow
def test_one_at_a_time_has_no_surplus():
    result = counted(fs.run, rbf(1), flow(), prompts=3, chunk_size=1)
    np.testing.assert_array_equal(result.evaluations, result.nfe)
    np.testing.assert_array_equal(result.verifier_calls, result.nfe)


@pytest.mark.slow
def test_backward_passes_are_those_of_candidates_that_move_on():
    """One at a time nothing else is differentiated: not the last time's draws, nor finishing."""
    search = fs.search.rbf(
        nfe=33, kernel=GUIDED, grid=fs.grids.uniform(5), chains=2, finish_steps=3
    )
    result = counted(fs.run, search, flow(), prompts=3, chunk_size=1)
    last = np.float32(0.2)
    for i in range(3):
        # In the order of drawing; the last three are those of finishing.
        times = result.info.time[:, i][result.info.counted[:, i]][:-3]
        assert result.backward_passes[i] == (times > last).sum() > 0
    assert np.all(result.backward_passes < result.nfe - 3)


@pytest.mark.slow
def test_verifier_calls_are_what_the_verifier_saw():
    reward = fs.rewards.host(counting_host_reward)
    bon = fs.search.bon(nfe=33, kernel=ODE, grid=GRID, width=2)
    for search, chunk in ((rbf(5, "complete"), 4), (bon, None)):
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
