"""SMC told random rewards: every round against the formulas in NumPy's float64.

No model: what matters is what becomes of weights, potentials and particles. Published codes differ
here from their papers: weights are dropped where nothing is resampled, products of potentials go on
only where something is, the maximum of rewards begins at 0, ancestors of the step before are taken
again, the final reward is that of the time before.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowsde as fs
from flowsde.search.protocol import Evaluation

STEPS, N, BETA = 6, 8, 0.5
GRID = fs.grids.uniform(STEPS)
DDIM = fs.kernels.ddim(fs.interpolants.vp(), eta=0.8)
GUIDED = fs.kernels.guided(DDIM, temperature=BETA)
FALLING = tuple(np.linspace(2.0, BETA, STEPS).tolist())

CASES = {
    "current, window": {
        "potential": "current",
        "resample_from": 1,
        "resample_until": 3,
        "interval": 2,
        "scheme": "ssp",
    },
    "max, funnel": {"potential": "max", "scheme": "residual", "funnel": 0.3, "interval": 2},
    "final, guided": {"potential": "final", "kernel": GUIDED},
    "guided, sum, exponential": {
        "kernel": GUIDED,
        "potential": "sum",
        "tempering": "exponential",
        "scheme": "multinomial",
    },
    "guided, polynomial, funnel": {
        "kernel": GUIDED,
        "tempering": "polynomial",
        "tempering_rate": 0.5,
        "interval": 2,
        "funnel": 0.5,
        "scheme": "ssp",
    },
    "guided, adaptive": {"kernel": GUIDED, "tempering": "adaptive", "interval": 2},
    "guided, falling": {"kernel": GUIDED, "temperature": FALLING, "threshold": 0.0},
}


def smc(**options):
    given = {"kernel": DDIM, "temperature": BETA, "threshold": 0.6, "finish": "mean"} | options
    return fs.search.smc(nfe=N * STEPS, grid=GRID, **given)


@functools.partial(jax.jit, static_argnames="search")
def go_round(search, state, evals):
    state, asked = search.ask(state)
    return asked, *search.tell(state, asked, evals)


def shares(search, options):
    """lambda_i from their definitions; None where they are found on the way."""
    i = np.arange(STEPS)
    match options.get("tempering", "none"):
        case "exponential":
            return np.minimum(2.0 ** (i / (STEPS - 1)) - 1.0, 1.0)
        case "polynomial":
            return (i / (STEPS - 1)) ** options["tempering_rate"]
        case "adaptive":
            return None
    return np.ones(STEPS)


def size_of(log_weights):
    w = np.exp(log_weights - log_weights.max())
    return w.sum() ** 2 / np.square(w).sum()


@functools.partial(jax.jit, static_argnames="guided")
def densities(x, parents, s, guided):
    """log p - log q of each row, from the densities that the kernels have."""

    def one(x, parent):
        at = (x, parent.x, parent.x0, parent.x1, parent.t, s)
        return DDIM.log_prob(*at) - GUIDED.log_prob(*at, parent.gradient) if guided else 0.0 * x[0]

    return jax.vmap(one)(x, parents)


def expected_phi(potential, share, before, memory, scaled, beta):
    gain = share * (memory / beta if potential in ("max", "sum") else scaled)
    return {"difference": gain, "final": np.zeros_like(gain)}.get(potential, before + gain)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_rounds_are_those_of_the_formulas(name):
    options = CASES[name]
    search, potential = smc(**options), options.get("potential", "difference")
    guided, threshold = search.uses_gradient, search.threshold
    betas, lambdas = np.broadcast_to(search.temperatures, STEPS), shares(search, options)
    known = lambdas is not None
    rng = np.random.default_rng(len(name))
    state = search.init(jax.random.key(1), (2,), jnp.float32(jnp.inf), jnp.int32(search.nfe))
    width = search.n_candidates
    log_w, phi, log_z, share = np.zeros(width), np.zeros(width), 0.0, 0.0
    memory = np.full(width, -np.inf) if potential == "max" else np.zeros(width)
    n, resampled, spent = width, [], 0
    for i in range(STEPS):
        # All below 0, where a maximum that begins there would show.
        reward = rng.normal(-3.0, 0.6, width).astype(np.float32)
        x0, x1, gradient = rng.normal(size=(3, width, 2)).astype(np.float32)
        told = Evaluation(x0, x1, reward, gradient if guided else None)
        parents = state.particles
        if guided:
            pull = (lambdas * betas[-1] / betas)[i] if known else share
            parents = parents._replace(gradient=jnp.float32(pull) * parents.gradient)
        asked, state, info = go_round(search, state, told)
        np.testing.assert_array_equal(asked.valid, np.arange(width) < n)
        spent += n

        # Weights.
        r, last = reward[:n].astype(np.float64), i == STEPS - 1
        ratio = densities(asked.x, parents, jnp.float32(GRID[i]), guided)[:n] if i else 0.0
        log_w = log_w[:n] + np.asarray(ratio, np.float64)
        memory = {"max": np.maximum, "sum": np.add}.get(potential, lambda m, r: m)(memory[:n], r)
        phi = phi[:n]
        at = lambda share, phi=phi, memory=memory, r=r, i=i: expected_phi(  # noqa: E731
            potential, share, phi, memory, r / betas[i], betas[i]
        )
        if known:
            share = lambdas[i]
        elif not last:
            least, low = threshold * n, share
            share = float(state.share)
            found = size_of(log_w + at(share) - phi)
            # The first share down to which resampling is due, or all of it.
            if size_of(log_w + at(low) - phi) <= least:
                assert share == low
            elif share < 1.0:
                assert low < share and found == pytest.approx(least, rel=1e-4)
            else:
                assert found > least
        new = r / betas[-1] if last else at(share)
        log_w, phi = log_w + new - phi, new
        ess = size_of(log_w)
        assert float(info.ess) == pytest.approx(ess, rel=1e-4)

        # Resampling.
        allowed = potential != "final" and not last and (i + 1) % search.interval == 0
        if "resample_from" in options:
            allowed = i in (1, 3)
        left = n
        if allowed and search.funnel:
            left = int(np.ceil(width * np.ceil(1000 * search.funnel ** ((i + 1) / 5)) / 1000))
        due = allowed and (ess <= threshold * n * (1 + 1e-6) or left < n)
        ancestors = np.asarray(info.ancestors)
        assert np.all(ancestors[left:] == -1) and np.all(ancestors[:left] >= 0)
        ancestors = ancestors[:left]
        if due:
            w = np.exp(log_w - log_w.max())
            log_z += np.log(w.mean()) + log_w.max()
            log_w, resampled = np.zeros(left), [*resampled, i]
            assert np.all(ancestors < n)
        else:
            np.testing.assert_array_equal(ancestors, np.arange(n))
        phi, memory, n = phi[ancestors], memory[ancestors], left
        for leaf, rows in ((state.particles.reward, reward), (state.particles.x, asked.x)):
            np.testing.assert_array_equal(leaf[:n], np.asarray(rows)[ancestors])
        np.testing.assert_allclose(state.log_weights[:n], log_w, rtol=2e-4, atol=2e-4)
        assert np.all(np.isneginf(state.log_weights[n:]))
        np.testing.assert_allclose(state.potential[:n], phi, rtol=1e-5, atol=1e-4)
        if potential in ("max", "sum"):
            np.testing.assert_allclose(state.memory[:n], memory, rtol=1e-5)
        accepted = np.flatnonzero(info.accepted)
        np.testing.assert_array_equal(accepted, np.unique(ancestors))
    assert spent <= search.nfe and bool(search.done(state))
    # The last time is weighed, never resampled: the answer is the best of all there.
    assert float(search.best(state).reward) == reward[:n].max()
    log_z += np.log(np.exp(log_w - log_w.max()).mean()) + log_w.max()
    assert float(search.log_z(state)) == pytest.approx(log_z, abs=1e-3)
    # Either way is met: the weights carried on, and begun anew.
    never = potential == "final" or threshold == 0.0
    assert (resampled == []) == never and len(resampled) < STEPS - 1
