"""The Psi-Sampler told random rewards, its account, and a law known in closed form."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowsde as fs
from flowsde.search.protocol import Evaluation

KEY = jax.random.key(5)
LINEAR = fs.interpolants.linear()
GRID = fs.grids.uniform(4)
BETA = 0.5
DDIM = fs.kernels.ddim(LINEAR, eta=0.8)
GUIDED = fs.kernels.reward_gradient(DDIM, temperature=BETA)


def psi(nfe=60, kernel=DDIM, grid=GRID, **options):
    given = {"temperature": BETA, "chains": 3, "walk": 5, "finish": "mean"} | options
    return fs.search.psi(nfe=nfe, kernel=kernel, grid=grid, **given)


@functools.partial(jax.jit, static_argnames="search")
def go_round(search, state, evals):
    state, asked = search.ask(state)
    return asked, *search.tell(state, asked, evals)


def kept_draws(proposals, chains, particles):
    """(chain, draw) of each particle: the chain's second half, evenly, its last state included."""
    found = []
    for i in range(particles):
        chain = i % min(chains, proposals)
        draws = len(range(chain, proposals, chains))
        turns = len(range(chain, particles, min(chains, proposals)))
        half = draws // 2
        place = -(-(i // min(chains, proposals) + 1) * (draws - half) // turns)
        found.append((chain, half + place - 1))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("nfe", "chains"), [(60, 3), (58, 20)])
def test_rounds_are_those_of_the_formulas(nfe, chains):
    """Published code takes ancestors of the step before again where nothing is resampled, begins
    the weights anew there, and scores the means of the time before.
    """
    search = psi(nfe, chains=chains, threshold=0.5)
    steps, rng = 4, np.random.default_rng(nfe)
    n = nfe // (5 + steps - 1)
    proposals = nfe - n * (steps - 1)
    state = search.init(KEY, (2,), jnp.float32(jnp.inf), jnp.int32(nfe))
    width = search.n_candidates
    charged, history, current = 0, {}, {}

    def told():
        x0, x1 = rng.normal(size=(2, width, 2)).astype(np.float32)
        reward = rng.normal(-3.0, 0.4, width).astype(np.float32)
        return Evaluation(x0, x1, reward), reward

    for draw in range(-(-proposals // chains)):
        evals, reward = told()
        before = state
        asked, state, info = go_round(search, state, evals)
        now = min(chains, proposals - draw * chains)
        np.testing.assert_array_equal(info.counted, np.arange(width) < now)
        np.testing.assert_array_equal(np.asarray(asked.t)[:now], 1.0)
        accepted = np.flatnonzero(info.accepted)
        assert np.all(accepted < now) and (draw or len(accepted) == now)
        for chain in range(now):
            if chain in accepted:
                current[chain] = np.asarray(asked.x)[chain], reward[chain]
            history[chain, draw] = current[chain]
        charged += int(info.charged)
        assert int(before.smc.step) == 0
    assert int(state.smc.step) == 1 and charged == proposals
    kept = [history[one] for one in kept_draws(proposals, chains, n)]
    np.testing.assert_array_equal(state.smc.particles.x, [x for x, _ in kept])

    # Weights begin equal, with the reward at t = 1 as the potential.
    phi, log_w, resampled = np.asarray([r for _, r in kept], np.float64) / BETA, np.zeros(n), []
    for step in range(1, steps):
        evals, reward = told()
        asked, state, info = go_round(search, state, evals)
        np.testing.assert_array_equal(info.counted, np.arange(width) < n)
        np.testing.assert_array_equal(asked.t, np.full(width, np.float32(GRID[step])))
        new = reward[:n].astype(np.float64) / BETA
        log_w, phi = log_w + new - phi, new
        weights = np.exp(log_w - log_w.max())
        size = weights.sum() ** 2 / np.square(weights).sum()
        assert float(info.ess) == pytest.approx(size, rel=1e-4)
        ancestors = np.asarray(info.ancestors)
        assert np.all(ancestors[n:] == -1)
        due = step < steps - 1 and size <= 0.5 * n
        if due:
            log_w, resampled = np.zeros(n), [*resampled, step]
        else:
            np.testing.assert_array_equal(ancestors[:n], np.arange(n))
        phi = phi[ancestors[:n]]
        np.testing.assert_array_equal(state.smc.particles.reward, reward[:n][ancestors[:n]])
        np.testing.assert_allclose(state.smc.log_weights, log_w, rtol=1e-4, atol=1e-4)
        charged += int(info.charged)
    assert bool(search.done(state)) and charged == nfe
    # The answer's reward is that of its own mean, at the last time.
    assert float(search.best(state).reward) == reward[:n].max()
    assert float(search.best(state).t) == np.float32(GRID[-2])


def still(params, x, t, cond):
    """The posterior means of data and noise are x itself at every time."""
    return jnp.zeros_like(x)


def rising(images, cond):
    return images[:, 0]


def end(grid, picture):
    """(mean, variance) of x at the last time, which is its own posterior mean; unweighed."""
    mean, variance = (1.0 - grid[0]) * picture, grid[0] ** 2
    for t, s in itertools.pairwise(grid[:-1]):
        ratio = (1.0 - t) * s / ((1.0 - s) * t)
        fresh = 0.8 * s * np.sqrt(1.0 - ratio**2)
        gain = 1.0 - s + np.sqrt(s**2 - fresh**2)
        mean, variance = gain * mean, gain**2 * variance + fresh**2
    return mean, variance


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "step_size", "branch_at", "first"),
    [
        (DDIM, 1.5, None, 1.0),
        (GUIDED, 4.0, None, 1.0),
        (DDIM, 1.5, (2,), 1.0),
        (GUIDED, 4.0, None, 0.9),
    ],
    ids=["plain", "guided", "at one step", "guided, from a picture"],
)
def test_samples_are_weighed_once(kernel, step_size, branch_at, first):
    """exp(x / beta) moves N(m, v) to N(m + v / beta, v); weighing by the reward at the first time
    too would move it further.
    """
    prompts, picture, grid = 3000, -3.0, (first, *GRID[1:])
    # Guided, a step size of 4 proposes from the very law at t = 1.
    search = psi(112, kernel, grid, walk=25, chains=1, step_size=step_size, branch_at=branch_at)
    model = fs.Flow.from_callable(still, None, (1,))
    result = fs.run(
        KEY, model, search, rising, start=np.float32([picture]),
        cond=np.zeros(prompts, np.float32), prompt_ids=np.arange(prompts),
    )  # fmt: skip
    weighed = 3 if branch_at is None else len(branch_at) + 1
    np.testing.assert_array_equal(result.verifier_calls, 112 - 4 * 3 + 4 * weighed)
    smc = result.state.smc
    log_w = np.asarray(smc.log_weights + smc.log_z[:, None], np.float64)
    w, x = np.exp(log_w), np.asarray(smc.particles.x0[:, :, 0], np.float64)
    sample = fs.search.weighted_sample(search, result.state)
    np.testing.assert_allclose(np.exp(sample.log_weights), w / w.sum(1, keepdims=True), atol=1e-5)
    np.testing.assert_array_equal(sample.particles.x0[:, :, 0], x)
    assert sample.log_z is None  # that of its law at t = 1 is not known
    mean, variance = end(grid, picture)
    mean += variance / BETA
    for f, exact in ((x, mean), (x**2, mean**2 + variance)):
        top, bottom = np.mean(w * f, axis=1), np.mean(w, axis=1)
        ratio = top.mean() / bottom.mean()
        error = np.std(top - ratio * bottom) / bottom.mean() / prompts**0.5
        assert abs(ratio - exact) < 4.0 * error < 0.25 * abs(exact)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"nfe": 7}, ValueError, "nfe leaves 7 .* at least 8: 5 proposals and a particle's 3 st"),
        ({"kernel": fs.kernels.ode_euler(LINEAR)}, ValueError, "kernel ODEEuler is deterministic"),
        ({"grid": (1.0, 0.0)}, ValueError, "grid must have at least 2 steps"),
        ({"clip": 1.0}, ValueError, "clip has no effect with a kernel that is not guided"),
        ({"step_size": 0.0}, ValueError, "step_size must be above 0 and at most 4, got 0"),
        ({"scheme": "dice"}, ValueError, "scheme must be one of multinomial, .* got 'dice'"),
        ({"threshold": 2.0}, ValueError, "threshold is a share of the particles, 0 to 1, got 2"),
        ({"branch_at": 4}, ValueError, "branch_at must be an integer of at most 3, got 4"),
        ({"value": "ode"}, TypeError, "unexpected keyword argument 'value'"),
        ({"walk": 0}, ValueError, "walk must be an integer of at least 1, got 0"),
    ],
)
def test_errors_name_the_argument(options, error, message):
    with pytest.raises(error, match=message):
        psi(**options)
