"""Best-of-N against samples drawn one by one."""

import jax
import numpy as np
import pytest
import reference
from problems import GRID, SDE, VP, batch, flow, reward, row, tools
from quick import slow

import flowsde as fs

KEY = jax.random.key(2)
STEPS = len(GRID) - 1
COUNT = 24
ODE, ADAMS = fs.kernels.ode_euler(VP), fs.kernels.ode_adams(VP)


def run(kernel, nfe=39, width=16, target=None):
    ids, cond = batch(COUNT)
    search = fs.search.bon(nfe=nfe, kernel=kernel, grid=GRID, width=width)
    result = fs.run(
        KEY, flow(), search, reward, cond=cond, prompt_ids=ids, target_reward=target, invalid="warn"
    )
    return search, result


@pytest.mark.parametrize("kernel", [ODE, slow(SDE), slow(ADAMS)], ids=["ode", "sde", "adams"])
def test_keeps_the_best_of_its_samples(kernel):
    ids, cond = batch(COUNT)
    search, result = run(kernel, width=4)  # 7 samples: a full wave and one of three
    assert search.samples == 39 // STEPS == 7
    np.testing.assert_array_equal(result.nfe, 7 * STEPS)
    assert np.all(39 - np.asarray(result.nfe) < STEPS)
    np.testing.assert_array_equal(result.verifier_calls, 7)
    np.testing.assert_array_equal(result.t, np.full(COUNT, np.float32(GRID[-2])))
    for i in range(COUNT):
        samples = reference.bon(search, KEY, int(ids[i]), row(cond, i), *tools(kernel))
        best = max(samples, key=lambda p: p.reward)
        atol = 2e-5 * cond["size"][i]
        np.testing.assert_allclose(result.reward[i], best.reward, rtol=2e-5, atol=atol)
        np.testing.assert_allclose(result.x[i], best.x, rtol=1e-4, atol=1e-4)
    x0, _ = jax.jit(lambda x, t: flow().means(x, t, cond, VP))(result.x, result.t)
    np.testing.assert_allclose(result.x0, x0, rtol=1e-5, atol=1e-5)
    again = reward(result.image, cond)
    np.testing.assert_allclose(
        result.reward / cond["size"], again / cond["size"], rtol=1e-5, atol=1e-5
    )

    _, met = run(kernel, width=4, target=0.3)
    stopped = np.asarray(met.nfe) < 7 * STEPS
    assert 0 < stopped.sum() < COUNT
    assert np.all(np.asarray(met.reward)[stopped] >= 0.3)
    np.testing.assert_array_equal(np.asarray(met.nfe)[stopped], 4 * STEPS)


@pytest.mark.slow
def test_width_does_not_change_the_answer():
    size = batch(COUNT)[1]["size"]
    _, one = run(ODE, width=1)
    # Waves are as even as there can be: of 5 at most, a wave of 4 and one of 3.
    for width, wave in ((5, 4), (4, 4), (2, 2), (100, 7)):
        search, other = run(ODE, width=width)
        assert search.n_candidates == wave
        np.testing.assert_array_equal(other.nfe, one.nfe)
        np.testing.assert_allclose(other.x, one.x, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(other.reward / size, one.reward / size, rtol=2e-5, atol=2e-5)
