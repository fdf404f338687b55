"""What SMC resamples particles by: VASR's masses are those of "difference", and the least variance.

Told rewards, without a model.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowsde as fs
from flowsde.search.protocol import Evaluation

BETA, N = 0.5, 6
DDIM = fs.kernels.ddim(fs.interpolants.vp(), eta=0.8)
SAMPLES = {"value": "samples", "value_steps": 1, "value_samples": 4}
# Rewards that may come from each particle, equally likely: certain ones, and rare ones.
RARE, EVEN = [0.01, 0.01, 0.02, 4.0], [1.0, 1.1, 0.9, 1.0]
ENDS = BETA * np.log([EVEN, EVEN, RARE, EVEN, RARE, RARE])


def smc(steps, cost=0, **options):
    """Of N particles, each of which costs so much besides its steps."""
    given = {"kernel": DDIM, "grid": fs.grids.uniform(steps), "temperature": BETA} | options
    return fs.search.smc(nfe=N * (steps + cost), threshold=1.0, finish="mean", **given)


@functools.partial(jax.jit, static_argnames="search")
def told(search, state, reward):
    """A round; x0 is a particle's own number."""
    state, asked = search.ask(state)
    rows = jnp.broadcast_to(jnp.arange(N, dtype=jnp.float32)[:, None], asked.x.shape)
    return search.tell(state, asked, Evaluation(rows, rows, reward))[0]


def begun(search, key):
    return search.init(key, (1,), jnp.float32(jnp.inf), jnp.int32(search.nfe))


@pytest.mark.slow
def test_difference_is_variance_aware_systematic_resampling():
    """Masses w exp(r / beta), and w / mass to go on with, w being towards the kernel's samples."""
    steps, rng = 4, np.random.default_rng(3)
    search = smc(steps)
    state = begun(search, jax.random.key(2))
    log_w = np.full(N, -np.log(N))
    for step in range(steps):
        reward = rng.normal(-1.0, 0.5, N).astype(np.float32)
        log_mass = log_w + reward.astype(np.float64) / BETA
        state = told(search, state, jnp.asarray(reward))
        if step == steps - 1:
            break
        drawn = np.asarray(state.particles.x0[:, 0], np.int32)
        mass = np.exp(log_mass) / np.exp(log_mass).sum()
        # Systematic draws take a whole number next to N times a mass.
        copies = np.bincount(drawn, minlength=N)
        assert np.all(np.abs(copies - N * mass) < 1.0 + 1e-4)
        log_w = (log_w - np.log(N * mass))[drawn]
    exact = np.log(np.exp(log_mass).sum())
    assert float(search.log_z(state)) == pytest.approx(exact, abs=1e-4)
    np.testing.assert_allclose(
        jax.nn.softmax(state.log_weights), np.exp(log_mass - exact), rtol=1e-4
    )


def test_its_value_is_the_root_mean_square():
    ends = jnp.asarray(ENDS, jnp.float32)
    for mass, power in (("value", 1), ("variance", 2)):
        value = smc(3, **SAMPLES, mass=mass).value.combine(ends)
        mean = np.mean(np.exp(ENDS / BETA) ** power, axis=1) ** (1 / power)
        np.testing.assert_allclose(np.exp(np.asarray(value) / BETA), mean, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mass", ["value", "variance"])
def test_variance_of_the_estimate_is_its_closed_form(mass):
    """Of multinomial resampling: (sum_i w_i^2 s_i^2 / m_i - Z^2) / N; the least is (sum w s)^2."""
    search, runs = smc(2, cost=4, **SAMPLES, mass=mass, scheme="multinomial"), 20_000
    assert search.n_candidates == N

    def one(key):
        first, second = jax.random.split(key)
        ends = jnp.asarray(ENDS, jnp.float32)
        state = told(search, begun(search, first), search.value.combine(ends))
        parent = state.particles.x0[:, 0].astype(jnp.int32)
        end = jax.random.randint(second, (N,), 0, ENDS.shape[1])
        return search.log_z(told(search, state, ends[parent, end]))

    keys = jax.random.split(jax.random.key(7), runs)
    found = np.exp(np.asarray(jax.jit(jax.vmap(one))(keys), np.float64))
    h, w = np.exp(ENDS / BETA), 1.0 / N
    mean, square = h.mean(1), np.square(h).mean(1)
    masses = {"value": mean / mean.sum(), "variance": np.sqrt(square) / np.sqrt(square).sum()}
    z = w * mean.sum()
    variance = {name: (np.sum(w**2 * square / m) - z**2) / N for name, m in masses.items()}
    assert variance["variance"] < 0.9 * variance["value"]
    centred = found - z
    assert abs(centred.mean()) < 4.0 * found.std() / runs**0.5
    error = np.std(centred**2) / runs**0.5
    assert abs(np.mean(centred**2) - variance[mass]) < 4.0 * error < 0.1 * variance[mass]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mass": "most"}, "mass must be one of value, variance, got 'most'"),
        ({"mass": "variance"}, "mass 'variance' is of how .* value_samples .* got 'mean' and 4"),
        ({**SAMPLES, "value_samples": 1, "mass": "variance"}, "at least 2, got 'samples' and 1"),
        ({**SAMPLES, "potential": "max", "mass": "variance"}, "with potential 'difference' alone"),
    ],
)
def test_errors_name_the_argument(options, message):
    with pytest.raises(ValueError, match=message):
        smc(3, cost=5, **options)
