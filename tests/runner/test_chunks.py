"""Rows in chunks of two sizes: how many are computed, and that it changes nothing else."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import SDE, decode, problems, reward, row, velocity

import flowsde as fs
from flowsde.runner import chunks


@pytest.fixture(autouse=True)
def any_model_is_large(monkeypatch):
    monkeypatch.setattr(chunks, "LARGE", 0)
    monkeypatch.setattr(chunks, "TINY", 0)
    jax.clear_caches()


sizes = importlib.import_module("flowsde.runner.sizes")
KEY = jax.random.key(2)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_all_rows_are_computed_and_hardly_more(backend, monkeypatch):
    """At most one to every twelve of a round; elsewhere than on a CPU, of small chunks."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    n = np.arange(1, 400, dtype=np.int32)
    for size in range(1, 33 if backend == "cpu" else 6):
        below = chunks.sizes_below(size, 1)
        whole, *ones = chunks.chunks_of(n, below, np)
        computed = size * whole + sum(ones)
        assert np.all(n <= computed) and np.all(12 * (computed - n) <= n)
        assert [chunks.rows_of(k, below) for k in (1, 39)] == computed[[0, 38]].tolist()
    traced = jax.jit(lambda n: chunks.chunks_of(n, (5, 1)))(jnp.asarray(n))
    np.testing.assert_array_equal(traced, chunks.chunks_of(n, (5, 1), np))
    # Where much is left of a large chunk, it is filled up.
    filled = [4, 5, 33, 128, 128, 256] if backend == "cpu" else [4, 64, 128, 128, 128, 256]
    rows = [(4, 64), (5, 64), (33, 128), (65, 128), (100, 128), (129, 256)]
    assert [chunks.rows_of(k, (size, 1)) for k, size in rows] == filled
    # Groups of devices take a row each at least.
    assert [chunks.rows_of(k, (8, 2)) for k in (1, 8, 9)] == [2, 8, 10]


def test_a_model_is_compiled_twice_where_it_pays(monkeypatch):
    """A tiny one never, a small one for rounds of more than four, a large one always."""
    monkeypatch.setattr(chunks, "TINY", 1000)
    monkeypatch.setattr(chunks, "LARGE", 2000)
    tiny, small, large = (
        fs.Flow.from_callable(velocity, {"w": jnp.ones(n)}, (2,)) for n in (900, 1000, 2000)
    )
    flows = (tiny, small, large)
    assert [chunks.least_of(flow, 8, 16, 2) for flow in flows] == [8, 2, 2]
    assert [chunks.least_of(flow, 4, 4) for flow in flows] == [4, 4, 1]
    assert [chunks.least_of(flow, 3, 5) for flow in flows] == [3, 1, 1]
    assert chunks.least_of(large, 1, 1, 2) == 1
    assert [sizes.sizes_of(flow, 16, 8, None) for flow in flows] == [(8, 8, 8), *[(8, 8, 1)] * 2]
    # Chunks of three leave one of four; two of two leave none, which would be computed thrice.
    assert [sizes.sizes_of(flow, 4, 3, None) for flow in flows] == [*[(2, 2, 2)] * 2, (3, 3, 1)]


def test_chunks_of_a_round_are_as_many_and_more_even():
    for most in range(1, 120):
        for asked in range(1, 120):
            size = sizes.sizes_of((), most, asked, None).model
            assert 1 <= size <= min(asked, most)
            assert -(-most // size) == -(-most // min(asked, most))
    assert [sizes.sizes_of((), 49, n, None).model for n in (8, 16, 32, None)] == [8, 16, 25, 49]


@pytest.mark.slow
@pytest.mark.parametrize("go", [fs.run, fs.iterate])
def test_a_model_sees_what_is_counted_in_chunks_of_two_sizes(go):
    """Particles as one by one to the bit; two traces, and none in the second call."""
    seen, traces = [], []

    def counting(params, x, t, cond):
        traces.append(t.shape[0])
        jax.debug.callback(lambda t: seen.append(t.shape[0]), t)
        return velocity(params, x, t, cond)

    model = fs.Flow.from_callable(
        counting, {"scale": jnp.ones((), jnp.float32)}, (2,), decode=decode
    )
    cond = jax.tree.map(lambda a: a[0], row(problems(1, kinds=(0,)), np.asarray([0])))
    search = fs.search.smc(
        nfe=45, kernel=SDE, grid=fs.grids.uniform(4), finish_steps=3, temperature=0.5
    )

    def found(size):
        seen.clear()
        traces.clear()
        result = go(KEY, model, search, reward, cond=cond, chunk_size=size)
        result = result if go is fs.run else [*result][-1]
        jax.effects_barrier()
        assert sum(seen) == result.evaluations
        return result

    one, some = found(1), found(4)
    # Of each round as many as it has candidates.
    np.testing.assert_array_equal(one.info.evaluations, [10, 10, 10, 10, 1, 1, 1])
    np.testing.assert_array_equal(some.info.evaluations, one.info.evaluations)
    # Twice four rows and two ones; then ones.
    assert sorted(traces) == [4] and sorted(seen) == [1] * 11 + [4] * 8
    assert some.nfe == some.evaluations == 43
    for name in ("x", "x0", "t", "reward", "verifier_calls"):
        np.testing.assert_array_equal(getattr(some, name), getattr(one, name), err_msg=name)
    found(4)
    assert traces == []
