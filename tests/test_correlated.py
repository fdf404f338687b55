"""The SDE of any g with frozen means, and kernels of a free correlation: identities, closed forms.

The integral of g^2 / sigma^2 is met by SciPy's, of formulas in NumPy, and by Euler-Maruyama in
small steps; the shares of noise kept on the paper's grid, and the error of the variance that is
left, by numbers computed elsewhere.
"""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from test_diffusion import FORMULAS
from test_interpolants import CURVES, EXACT
from test_kernel_variance import variance_errors

import flowsde as fs
from flowsde import diffusion, kernels
from flowsde.kernels.turnover import turnover

LINEAR, VP = CURVES["linear"], CURVES["vp"]
PAIRS = [
    *((0.9, 0.8), (0.6, 0.3), (0.5001, 0.4), (0.97, 0.93), (0.1, 0.0999), (0.99, 1e-3)),
    (1.0, 0.5),
]


def shares(kernel, pairs):
    """rho and sqrt(1 - rho^2) at pairs of times, in float64, vmapped."""
    with jax.enable_x64(True):
        t, s = jnp.asarray(np.asarray(pairs, np.float64)).T
        kept, fresh = jax.jit(jax.vmap(kernel.shares))(t, s)
        return np.asarray(kept), np.asarray(fresh)


def ratios(curve, pairs):
    """alpha_t sigma_s / (alpha_s sigma_t) at pairs of times."""
    t, s = np.asarray(pairs, np.float64).T
    (alpha, sigma), (next_alpha, next_sigma) = (EXACT[curve](u, 1 - u)[:2] for u in (t, s))
    return alpha * next_sigma / (next_alpha * sigma)


# The paper's grid

KEPT = {
    "vp": [0.978, 0.937, 0.903, 0.879, 0.866, 0.866, 0.880, 0.906, 0.942, 0.979],
    "linear": [0.978, 0.936, 0.897, 0.863, 0.835, 0.814, 0.801, 0.801, 0.819, 0.883],
}
LARGEST_ERROR = {"vp": -0.018, "linear": -0.112}


@pytest.mark.parametrize("curve", KEPT)
def test_share_of_the_noise_kept_on_the_papers_grid(curve):
    kernel = kernels.exact(CURVES[curve], diffusion.square(3.0))
    kept, _ = shares(kernel, [*itertools.pairwise(fs.grids.quadratic(10))])
    np.testing.assert_allclose(kept, KEPT[curve], rtol=0.0, atol=0.0005)


@pytest.mark.parametrize("curve", KEPT)
def test_error_of_the_variance_on_the_papers_grid(curve):
    """For Gaussian data of variance .25, before the last step: posterior spread is lost."""
    kernel = kernels.exact(CURVES[curve], diffusion.square(3.0))
    with jax.enable_x64(True):
        grid = jnp.asarray(fs.grids.quadratic(10))
        (errors,) = np.asarray(variance_errors(((kernel, (0.25,)),), grid))
    np.testing.assert_allclose(errors[:-1].min(), LARGEST_ERROR[curve], rtol=0.0, atol=0.0005)
    assert errors[:-1].max() <= 0.0


# The integral


def integral(curve, name, t, s):
    """Of g^2 / sigma^2 from s to t by SciPy, in logit(time) between the kinks."""

    def rate(y):
        u, rest = 1.0 / (1.0 + math.exp(-y)), 1.0 / (1.0 + math.exp(y))
        g = DEFAULT_SCALES.get(name, 3.0) * FORMULAS[name](u)
        return float(np.square(g / EXACT[curve](u, rest)[1]) * u * rest)

    # What is left out next to t = 1 is 1e-11.
    ends = [min(math.log(u) - math.log1p(-min(u, 1 - 1e-11)), 25.0) for u in (s, t)]
    kinks = [math.log(u / (1.0 - u)) for u in (0.5, 0.95) if s < u < t]
    options = {"points": kinks or None, "epsabs": 0.0, "epsrel": 1e-9, "limit": 200}
    return scipy.integrate.quad(rate, *ends, **options)[0]


DEFAULT_SCALES = {"constant": 0.3, "flow_grpo": 0.7}


@pytest.mark.slow
@pytest.mark.parametrize("curve", CURVES)
def test_turnover_is_the_integral(curve):
    """In float32, in closed form and by quadrature, from an infinite rate too."""
    pairs = np.asarray(PAIRS, np.float32).astype(np.float64)
    for name in FORMULAS:
        g = getattr(diffusion, name)()
        some = pairs[:-1] if name == "flow_grpo" else pairs
        wanted = [integral(curve, name, t, s) for t, s in some]
        t, s = jnp.asarray(some, jnp.float32).T

        def mine(p, t, g=g):  # without a closed form
            return g(p, t)

        for coefficient in (g,) if getattr(g, "kinks", ()) else (g, mine):
            got = jax.jit(jax.vmap(partial(turnover, coefficient, CURVES[curve])))(s, t)
            assert got.dtype == jnp.float32
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-10, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("curve", ["vp", "cosine"])
@pytest.mark.parametrize("name", ["square", "clipping", "constant"])
def test_it_is_the_sde_in_small_steps(curve, name):
    """Euler-Maruyama with x0 and x1's part of x frozen, 4,000 steps instead of one."""
    p, g, steps = CURVES[curve], getattr(diffusion, name)(2.0), 4_000
    small = kernels.euler_maruyama(p, g)

    @jax.jit
    def follow(t, s):
        x0 = jnp.full_like(t, 0.7)

        def step(law, i):
            u, v = (t + (s - t) * (i + k) / steps for k in (0.0, 1.0))

            def mean(x):
                return small.moments(x, x0, (x - p.alpha(u) * x0) / p.sigma(u), u, v)

            (moved, std), (slope, _) = jax.jvp(mean, (law[0],), (jnp.ones_like(t),))
            return (moved, slope**2 * law[1] + std**2), None

        start = p.alpha(t) * x0 + p.sigma(t) * 1.3, jnp.zeros_like(t)
        return jax.lax.scan(step, start, jnp.arange(steps, dtype=t.dtype))[0]

    with jax.enable_x64(True):
        t, s = jnp.asarray(0.9), jnp.asarray(0.4)
        mean, variance = follow(t, s)
        x0, x1 = jnp.full(1, 0.7), jnp.full(1, 1.3)
        x = p.alpha(t) * x0 + p.sigma(t) * x1
        once, std = kernels.exact(p, g).moments(x, x0, x1, t, s)
    np.testing.assert_allclose(once[0], mean, rtol=2e-3)
    np.testing.assert_allclose(std**2, variance, rtol=2e-3)


@pytest.mark.slow_but_one
@pytest.mark.parametrize("name", ["square", "sin", "exp", "tan", "flow_grpo", "forward"])
def test_two_steps_are_one(name):
    """What an SDE's own kernels do: rho(t, s) rho(s, u) = rho(t, u)."""
    kernel = kernels.exact(VP, getattr(diffusion, name)(0.5))
    first, second = [(1.0, 0.93), (0.9, 0.5)], [(0.93, 0.3), (0.5, 0.2)]
    kept, _ = shares(kernel, [*first, *second, (1.0, 0.3), (0.9, 0.2)])
    np.testing.assert_allclose(kept[:2] * kept[2:4], kept[4:], rtol=1e-7)


# Identities


@pytest.mark.slow_but_one
@pytest.mark.parametrize("curve", CURVES)
def test_identities(curve):
    """No noise is the ODE's step, the reverse-time g and kappa = 1 are DDIM(1), and CPS's rho."""
    p, pairs = CURVES[curve], PAIRS[:-2]
    eta = 0.738
    equal = [
        (kernels.exact(p, diffusion.constant(0.0)), kernels.ddim(p, 0.0)),
        (kernels.exact(p, diffusion.forward()), kernels.ddim(p, 1.0)),
        (kernels.exact(p, diffusion.forward(), 0.2), kernels.ddim(p, 1.0, 0.2)),
        (kernels.correlated(p, kappa=0.0), kernels.ddim(p, 0.0)),
        (kernels.correlated(p), kernels.ddim(p, 1.0)),
        (kernels.correlated(p, rho=1.0), kernels.ddim(p, 0.0)),
        (kernels.correlated(p, math.cos(0.5 * math.pi * eta)), kernels.cps(p, eta)),
        (kernels.correlated(p, 0.0, data_variance=0.3), kernels.cps(p, 1.0, 0.3)),
    ]
    with jax.enable_x64(True):
        x0, x1 = jnp.asarray([0.3, -1.2]), jnp.asarray([0.8, 0.5])
        t, s = jnp.asarray(pairs).T

        def both(t, s):
            x = p.alpha(t) * x0 + p.sigma(t) * x1
            return [[k.moments(x, x0, x1, t, s) for k in pair] for pair in equal]

        for pair, (ours, theirs) in zip(equal, jax.jit(jax.vmap(both))(t, s), strict=True):
            for a, b in zip(ours, theirs, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9, err_msg=str(pair))


@pytest.mark.slow
def test_without_noise_it_is_an_euler_step_of_the_linear_ode():
    x0, x1 = jnp.asarray([0.3, -1.2]), jnp.asarray([0.8, 0.5])
    args = (jax.random.key(4), 0.2 * x0 + 0.8 * x1, x0, x1, 0.8, 0.3)
    wanted = kernels.ode_euler(LINEAR)(*args)
    for kernel in (kernels.exact(LINEAR, diffusion.square(0.0)), kernels.correlated(LINEAR, 1.0)):
        np.testing.assert_allclose(kernel(*args), wanted, rtol=1e-6)


@pytest.mark.slow_but_one
@pytest.mark.parametrize("scale", [0.3, 0.7, 1.4])
def test_closed_forms_of_precise_sde(scale):
    """Constant g, and Flow-GRPO's, whose noise is sigma_s sqrt(1 - ratio^(scale^2)): linear."""
    t, s = np.asarray(PAIRS[:-1]).T
    kept, fresh = shares(kernels.exact(LINEAR, diffusion.flow_grpo(scale)), PAIRS[:-1])
    ratio = ratios("linear", PAIRS[:-1])
    np.testing.assert_allclose(kept, ratio ** (0.5 * scale**2), rtol=1e-12)
    np.testing.assert_allclose(fresh, np.sqrt(1.0 - ratio ** (scale**2)), rtol=1e-9)
    kept, _ = shares(kernels.exact(LINEAR, diffusion.constant(scale)), PAIRS)
    t, s = np.asarray(PAIRS).T
    np.testing.assert_allclose(kept, np.exp(-0.5 * scale**2 * (1.0 / s - 1.0 / t)), rtol=1e-12)


@pytest.mark.parametrize("kappa", [0.5, 2.0])
@pytest.mark.parametrize("curve", ["linear", "vp"])
def test_a_power_of_ancestral_samplings_share(curve, kappa):
    kept, fresh = shares(kernels.correlated(CURVES[curve], kappa=kappa), PAIRS)
    ratio = ratios(curve, PAIRS)
    np.testing.assert_allclose(kept, ratio**kappa, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(fresh, np.sqrt(1.0 - ratio ** (2.0 * kappa)), rtol=1e-9)


# Ends


@pytest.mark.slow_but_one
@pytest.mark.parametrize("curve", CURVES)
def test_all_noise_is_fresh_after_an_infinite_rate(curve):
    """At t = 1 for g^2 ~ 1 / (1 - t), however small; not for one that is finite there."""
    p, pairs = CURVES[curve], [(1.0, 0.999), (1.0, 0.3)]
    for g in (diffusion.flow_grpo(0.01), diffusion.forward(0.01)):
        kept, fresh = shares(kernels.exact(p, g), pairs)
        infinite = curve != "vp" or g == diffusion.flow_grpo(0.01)
        assert np.all((kept == 0.0) & (fresh == 1.0)) if infinite else np.all(kept > 0.99)
    for g in (diffusion.flow_grpo(0.0), diffusion.square(0.0)):
        kept, fresh = shares(kernels.exact(p, g), pairs)
        assert np.all((kept == 1.0) & (fresh == 0.0))


@pytest.mark.slow
def test_large_scales_are_finite():
    for g in (diffusion.square(1e30), diffusion.sin(1e30), diffusion.forward(1e30)):
        for pair in ((0.8, 0.3), (0.3, 0.3), (0.0, 0.0)):
            t, s = jnp.float32(pair[0]), jnp.float32(pair[1])
            kept, fresh = kernels.exact(VP, g).shares(t, s)
            assert (kept, fresh) == ((0.0, 1.0) if t > s else (1.0, 0.0)), (g, pair)


# Errors and types


@pytest.mark.parametrize(
    "options, match",
    [
        ({"rho": 1.1}, r"rho must lie in \[-1, 1\], got 1.1"),
        ({"rho": math.nan}, "rho must lie"),
        ({"kappa": -0.5}, "kappa must be a finite number of at least 0, got -0.5"),
        ({"kappa": math.inf}, "kappa"),
        ({"rho": 0.4, "kappa": 1.0}, "rho excludes kappa: one .* got rho = 0.4 and kappa = 1.0"),
        ({"data_variance": -1.0}, "data_variance"),
    ],
)
def test_wrong_settings(options, match):
    with pytest.raises(ValueError, match=match):
        kernels.correlated(LINEAR, **options)


def test_equal_only_if_they_compute_the_same():
    assert kernels.correlated(LINEAR, 0.4) == kernels.correlated(fs.interpolants.linear(), 0.4)
    assert kernels.correlated(LINEAR) == kernels.correlated(LINEAR, kappa=1)
    different = [
        kernels.correlated(LINEAR, 0.4),
        kernels.correlated(LINEAR, kappa=0.4),
        kernels.correlated(LINEAR, 0.4, data_variance=0.1),
        kernels.exact(LINEAR, diffusion.square()),
        kernels.exact(LINEAR, diffusion.square(2.0)),
        kernels.exact(VP, diffusion.square()),
        kernels.exact(LINEAR, diffusion.square(), 0.1),
    ]
    assert len({*different}) == len(different)
    with pytest.raises(ValueError, match="data_variance"):
        kernels.exact(LINEAR, diffusion.square(), -1.0)
