"""Every diffusion coefficient against its formula; what the module says of the ends."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_interpolants import CURVES, EXACT, INTERIOR, TIMES

import flowsde as fs

D = fs.diffusion
FORMULAS = {
    "constant": lambda t: np.ones_like(t),
    "linear": lambda t: t,
    "square": lambda t: t**2,
    "sin": lambda t: np.sin(np.pi / 2 * t),
    "clipping": lambda t: np.where(t > 0.5, 2 * t - 1, 0),
    "exp": lambda t: np.exp(-(((1 - t) / 0.1) ** 2)),
    "tan": lambda t: np.tan(np.pi / 2 * np.minimum(t, 0.95)),
    "flow_grpo": lambda t: np.sqrt(t / (1 - t)),
}
NAMES = (*FORMULAS, "sigma", "forward")
DEFAULT_SCALES = {"constant": 0.3, "flow_grpo": 0.7, "forward": 1.0}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", FORMULAS)
def test_profiles_of_time_are_their_formulas(name, dtype):
    t = np.append(INTERIOR[:-1], 0.96).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        ours = getattr(D, name)(1.7)(CURVES["vp"], jnp.asarray(t))
        assert ours.dtype == dtype and ours.shape == t.shape
        # exp's exponent reaches 94 and multiplies its rounding.
        rounding = (200 if name == "exp" else 8) * np.finfo(dtype).eps
        wanted = 1.7 * FORMULAS[name](t.astype(np.float64))
        tiny = np.finfo(dtype).tiny  # below which float32 flushes exp to 0
        np.testing.assert_allclose(ours, wanted, rtol=rounding, atol=max(tiny, 1e-300))


@pytest.mark.parametrize("curve", CURVES)
def test_coefficients_of_the_interpolant_are_their_formulas(curve):
    p, t = CURVES[curve], INTERIOR
    alpha, sigma, d_alpha, d_sigma = EXACT[curve](t, 1 - t)
    squared = 2 * sigma * d_sigma - 2 * sigma**2 * d_alpha / alpha
    with jax.enable_x64(True):
        np.testing.assert_allclose(D.sigma(3.0)(p, jnp.asarray(t)), 3 * sigma, rtol=1e-12)
        np.testing.assert_allclose(D.forward()(p, jnp.asarray(t)), np.sqrt(squared), rtol=1e-12)
        np.testing.assert_allclose(
            D.forward(2.0)(p, jnp.asarray(t)), 2 * np.sqrt(squared), rtol=1e-12
        )


def test_forward_of_vp_is_beta_up_to_both_ends():
    t = np.asarray(TIMES, np.float32)
    beta = 0.1 + 19.9 * t.astype(np.float64)
    np.testing.assert_allclose(D.forward()(CURVES["vp"], jnp.asarray(t)) ** 2, beta, rtol=2e-6)


def test_a_wider_exp_is_its_formula():
    with jax.enable_x64(True):
        ours = D.exp(2.0, width=0.5)(CURVES["linear"], jnp.asarray(INTERIOR))
        np.testing.assert_allclose(ours, 2 * np.exp(-(((1 - INTERIOR) / 0.5) ** 2)), rtol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_infinite_only_where_the_module_says(name):
    t = jnp.asarray(TIMES, jnp.float32)
    for curve, p in CURVES.items():
        g = np.asarray(getattr(D, name)()(p, t))
        infinite = name == "flow_grpo" or (name == "forward" and curve != "vp")
        assert np.isfinite(g[:-1]).all() and (g[:-1] >= 0).all(), (name, curve, g)
        assert g[-1] == np.inf if infinite else np.isfinite(g[-1]), (name, curve, g)


@pytest.mark.parametrize("name", NAMES)
def test_hashes_by_value_and_is_frozen(name):
    make = getattr(D, name)
    assert make(1.5) == make(1.5) and hash(make(1.5)) == hash(make(1.5))
    assert make(1.5) != make(2.5)
    assert len({make(1.5), make(1.5), D.square(9.0), D.linear(9.0)}) == 3
    assert make().scale == DEFAULT_SCALES.get(name, 3.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().scale = 1.0
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="scale must be a finite number"):
            make(bad)


def test_scale_zero_is_no_noise_and_width_must_be_positive():
    for bad in (0.0, -0.1, np.nan):
        with pytest.raises(ValueError, match="width must be a finite number above 0"):
            D.exp(3.0, width=bad)
    np.testing.assert_array_equal(
        D.square(0.0)(CURVES["vp"], jnp.asarray(TIMES, jnp.float32)), np.zeros(9)
    )


def test_static_argument_and_any_callable_will_do():
    @partial(jax.jit, static_argnums=0)
    @chex.assert_max_traces(n=2)
    def at(g, t):
        return g(CURVES["linear"], t)

    for scale in (1.0, 1.0, 2.0):
        assert at(D.square(scale), jnp.float32(0.5)) == 0.25 * scale

    def mine(p, t):
        return 0.5 * p.sigma(t)

    t, s = jnp.float32(0.5), jnp.float32(0.25)
    x = jnp.ones(3)
    kernel = fs.kernels.euler_maruyama(CURVES["linear"], mine)
    same = fs.kernels.euler_maruyama(CURVES["linear"], D.sigma(0.5))
    both = jax.jit(lambda: [k.moments(x, x, x, t, s) for k in (kernel, same)])
    chex.assert_trees_all_equal(*both())
