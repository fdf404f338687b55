"""Rewards outside JAX: scored while the device computes the next batch."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import GRID, SDE, batch, decode, flow, host_reward, problems, reward, velocity

import flowsde as fs

KEY = jax.random.key(21)
SEARCH = fs.search.rbf(kernel=SDE, nfe=29, grid=GRID, finish_steps=4)


@pytest.mark.slow
def test_host_rewards_are_jax_rewards():
    """In minibatches, some batches smaller than it; the counts are exact."""
    ids, cond = batch(9)
    seen = []

    def counted(images, cond):
        seen.append(len(images))
        return host_reward(images, cond)

    options = {"cond": cond, "prompt_ids": ids, "batch_size": 8, "target_reward": 0.4}
    hosted = fs.rewards.host(counted, minibatch=3, cost=0.5)
    results = fs.batch(KEY, flow(), SEARCH, hosted, **options)
    found, wanted = dict(results), dict(fs.batch(KEY, flow(), SEARCH, reward, **options))
    assert found.keys() == wanted.keys() == set(ids.tolist())
    for (i, one), size in zip(sorted(found.items()), cond["size"], strict=True):
        # Wider waves at the end have a surplus, which the one and the other need not share.
        surplus = one.evaluations - one.nfe, wanted[i].evaluations - wanted[i].nfe
        assert one.nfe == wanted[i].nfe
        assert one.verifier_calls - surplus[0] == wanted[i].verifier_calls - surplus[1]
        assert one.verifier_cost == 0.5 * one.verifier_calls
        np.testing.assert_allclose(one.x, wanted[i].x, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(one.reward / size, wanted[i].reward / size, atol=1e-5)
    totals = results.totals
    assert sum(seen) == totals.verifier_calls and max(seen) == 3
    assert totals.evaluations == totals.nfe + totals.surplus + totals.padding


@pytest.mark.slow
def test_the_device_computes_the_next_batch_while_the_host_scores():
    """The reward of a batch returns only when the model has begun another: by events, not time."""
    begun = threading.Semaphore(0)
    met = []

    def watched(params, x, t, cond):
        jax.debug.callback(lambda _: begun.release(), t)
        return velocity(params, x, t, cond)

    def patient(images, cond):
        # Two batches for the first call, its own and the next; then one more for each.
        met.append(begun.acquire(timeout=20) and (len(met) > 0 or begun.acquire(timeout=20)))
        if len(met) == 6:
            raise InterruptedError
        return host_reward(images, cond)

    model = fs.Flow.from_callable(
        watched, {"scale": jnp.ones((), jnp.float32)}, (2,), decode=decode
    )
    results = fs.batch(
        KEY, model, SEARCH, fs.rewards.host(patient), cond=problems(12), batch_size=4
    )
    with pytest.raises(fs.rewards.RewardError, match="InterruptedError"):
        list(results)
    assert met == [True] * 6


@pytest.mark.slow
def test_a_failing_reward_ends_the_run_after_what_has_ended():
    calls = []

    def fails(images, cond):
        calls.append(len(images))
        if sum(calls) > 120:
            raise OSError("no service")
        return host_reward(images, cond)

    results = fs.batch(
        KEY, flow(), SEARCH, fs.rewards.host(fails), cond=problems(9), batch_size=4, slots=2
    )
    ended = []
    with pytest.raises(fs.rewards.RewardError, match=r"'fails' raised OSError: no service"):
        for i, _ in results:
            ended.append(i)
    assert ended and len(ended) == results.totals.prompts < 9


@pytest.mark.slow
def test_it_can_be_left():
    """What has not ended is dropped, and so is the reward's thread."""
    results = fs.batch(KEY, flow(), SEARCH, fs.rewards.host(host_reward), cond=problems(5))
    next(results)
    results.close()
    assert next(results, None) is None
    for thread in threading.enumerate():
        if thread.name.startswith("reward host_reward"):
            thread.join(timeout=20)
            assert not thread.is_alive()
