"""SMC: its answer, weights of extreme rewards, errors; `test_tilted` has the closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import GRID, SDE, VP, batch, flow, reward

import flowsde as fs
from flowsde.search.smc import POTENTIALS, effective_sample_size

KEY = jax.random.key(5)
STEPS = len(GRID) - 1
BETA = 0.05
"""About the standard deviation of the rewards: weights are uneven, but not hopeless."""
PARTICLES = 8


def smc(n=PARTICLES, kernel=SDE, **options):
    return fs.search.smc(
        nfe=n * STEPS,
        kernel=kernel,
        grid=GRID,
        **{"temperature": BETA, "threshold": 1.0, "finish": "mean"} | options,
    )


@pytest.mark.slow
def test_constant_rewards_give_plain_samples_and_no_resampling():
    def zero(images, cond):
        return jnp.zeros(images.shape[0], jnp.float32)

    for n, scheme in ((1, "systematic"), (PARTICLES, "multinomial")):
        search = smc(n, scheme=scheme, threshold=0.5)
        result = fs.run(KEY, flow(), search, zero, cond=jax.tree.map(lambda a: a[0], batch(4)[1]))
        assert float(search.log_z(result.state)) == 0.0
        assert np.all(result.state.log_weights == 0.0)
        if n == 1:
            alone = result.state.particles.x[0]
        else:
            np.testing.assert_allclose(result.state.particles.x[0], alone, rtol=1e-5)


@pytest.mark.slow
def test_the_answer_is_the_best_of_the_last_time():
    ids, cond = batch(12)
    search = smc(PARTICLES, temperature=1.0)
    result = fs.run(KEY, flow(), search, reward, cond=cond, prompt_ids=ids, invalid="warn")
    assert np.all(result.nfe == PARTICLES * STEPS) and np.all(result.t == np.float32(GRID[-2]))
    np.testing.assert_array_equal(result.reward, result.state.particles.reward.max(1))
    again = np.asarray(reward(result.image, cond))
    np.testing.assert_allclose(result.reward / cond["size"], again / cond["size"], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("potential", POTENTIALS)
def test_weights_of_extreme_and_missing_rewards(potential):
    """Only log weights: no overflow, no NaN, and no weight for what has no reward."""
    search = smc(4, potential=potential)
    state = search.init(KEY, (2,), jnp.float32(jnp.inf), jnp.int32(search.nfe))
    state = state._replace(step=jnp.int32(STEPS - 1))
    for rewards, wanted in (
        ([1e6, -1e6, 0.0, 1e6], [0.5, 0.0, 0.0, 0.5]),
        ([jnp.inf, 0.0, -jnp.inf, 1.0], [1.0, 0.0, 0.0, 0.0]),
        ([-jnp.inf, -2000.0, -jnp.inf, -2000.0], [0.0, 0.5, 0.0, 0.5]),
        ([-jnp.inf] * 4, [0.25] * 4),
    ):
        told = search._weigh(state, jnp.asarray(rewards, jnp.float32))
        np.testing.assert_allclose(jax.nn.softmax(told.log_weights), wanted, atol=1e-6)


@pytest.mark.slow
def test_effective_sample_size():
    assert float(effective_sample_size(jnp.zeros(5, jnp.float32))) == pytest.approx(5.0)
    one = jnp.asarray([-jnp.inf, 3.0, -jnp.inf], jnp.float32)
    assert float(effective_sample_size(one)) == pytest.approx(1.0)
    two = jnp.log(jnp.asarray([0.75, 0.25], jnp.float32)) + 1e4
    assert float(effective_sample_size(two)) == pytest.approx(1 / (0.75**2 + 0.25**2), rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"potential": "best"}, "potential must be one of difference, current, .* got 'best'"),
        ({"scheme": "fair"}, "scheme must be one of multinomial, .* got 'fair'"),
        ({"temperature": 0.0}, "temperature must be a finite number above 0, got 0.0"),
        ({"temperature": [1.0, 2.0]}, "temperature must be one number or one for each of 5 times"),
        ({"threshold": 1.5}, "threshold is a share of the particles, 0 to 1, got 1.5"),
        ({"interval": 0}, "interval must be an integer of at least 1, got 0"),
        ({"tempering": "slow"}, "tempering must be one of none, .* got 'slow'"),
        ({"tempering_rate": 1.0}, "tempering_rate has no effect with tempering 'none', got 1.0"),
        ({"tempering": "adaptive"}, "threshold must be above 0 and below 1 .* got 1.0"),
        ({"tempering": "polynomial", "tempering_rate": -1.0}, "tempering_rate must be .* got -1.0"),
        ({"tempering": "polynomial", "temperature": [1.0] * 5}, "temperature tempers as a seq"),
        ({"funnel": 1.5}, "funnel must be above 0 and at most 1, got 1.5"),
        ({"funnel": 0.5, "interval": 5}, "funnel has no effect: no step is left"),
        ({"resample_from": 4}, "resample_from must be an integer of at most 3, got 4"),
        ({"resample_from": 0}, "resample_from must be an integer of at least 1, got 0"),
        ({"resample_from": 3, "resample_until": 2}, "resample_from has no effect: no step"),
        ({"potential": "final", "funnel": 0.5}, "funnel has no effect with potential 'final'"),
        ({"n": 0}, "nfe"),
        ({"kernel": fs.kernels.ode_euler(VP)}, "ODEEuler is deterministic, so copies"),
    ],
)
def test_errors_name_the_argument(options, message):
    with pytest.raises(ValueError, match=message):
        smc(**options)
