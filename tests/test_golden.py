"""Every array of tests/data/interpolant_sde.npz, printed by the paper authors' public functions.

The rule of the data set: 2e-5 relative; where a public value is itself less exact than that, a
float64 evaluation of the formula (`_Exact`, NumPy, written here and independent of the library)
decides.
"""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowsde as fs

PATH = pathlib.Path(__file__).parent / "data" / "interpolant_sde.npz"
TOLERANCE = 2e-5
SCALE, WIDTH = 3.0, 0.1
INPUTS = ("data_mean", "data_std", "t", "x", "noise", "dt")
TARGETS = {
    "vp": fs.interpolants.vp(),
    "poly2": fs.interpolants.polynomial(2),
    "linear": fs.interpolants.linear(),
}
DIFFUSIONS = {
    "sigma": fs.diffusion.sigma(SCALE),
    "constant": fs.diffusion.constant(SCALE),
    "sin": fs.diffusion.sin(SCALE),
    "linear": fs.diffusion.linear(SCALE),
    "square": fs.diffusion.square(SCALE),
    "clipping": fs.diffusion.clipping(SCALE),
    "exp": fs.diffusion.exp(SCALE, WIDTH),
    "tan": fs.diffusion.tan(SCALE),
}


def _load():
    with np.load(PATH) as file:
        return {key: file[key] for key in file.files}


DATA = _load()
MEAN, STD = float(DATA["data_mean"]), float(DATA["data_std"])


class _Exact:
    """The formulas in float64, from the float32 times, points and noise of the file."""

    def __init__(self, target):
        self.t = t = DATA["t"].astype(np.float64)
        if target == "vp":
            low, high = 0.1, 20.0
            integral, beta = t * t * (high - low) / 2 + t * low, low + (high - low) * t
            self.alpha, self.sigma = np.exp(-integral / 2), np.sqrt(-np.expm1(-integral))
            self.d_alpha = -beta / 2 * self.alpha
            self.d_sigma = beta / 2 * np.exp(-integral) / self.sigma
        elif target == "poly2":
            self.alpha, self.sigma = (1 - t) ** 2, t * (2 - t)
            self.d_alpha, self.d_sigma = -2 * (1 - t), 2 * (1 - t)
        else:
            self.alpha, self.sigma = 1 - t, t
            self.d_alpha, self.d_sigma = -np.ones(7), np.ones(7)
        self.source_time = self.sigma / (self.alpha + self.sigma)
        # Straight from the target's own Gaussian marginal: no conversion of interpolants.
        a, s = self.column(self.alpha), self.column(self.sigma)
        x = DATA["x"].astype(np.float64)
        pull = (x - a * MEAN) / (a**2 * STD**2 + s**2)
        self.x0_mean = MEAN + a * STD**2 * pull
        self.score = -pull
        self.velocity = self.column(self.d_alpha) * self.x0_mean + self.column(self.d_sigma) * (
            s * pull
        )

    @staticmethod
    def column(values):
        return values[:, None, None]

    def g(self, name):
        t = self.t
        return (
            SCALE
            * {
                "sigma": self.sigma,
                "constant": np.ones_like(t),
                "sin": np.sin(np.pi / 2 * t),
                "linear": t,
                "square": t**2,
                "clipping": np.maximum(2 * t - 1, 0),
                "exp": np.exp(-(((1 - t) / WIDTH) ** 2)),
                "tan": np.tan(np.pi / 2 * np.minimum(t, 0.95)),
            }[name]
        )

    def reverse_drift(self, name):
        return -self.velocity + self.column(self.g(name)) ** 2 / 2 * self.score

    def step(self, name):
        return sum(self.summands(name))

    def summands(self, name):
        """x, the two drifts and the noise of a step."""
        dt, noise = (DATA[key].astype(np.float64) for key in ("dt", "noise"))
        g = self.g(name)
        pull = self.column(g**2 / 2 * dt) * self.score
        wind = -self.velocity * self.column(dt)
        return DATA["x"].astype(np.float64), wind, pull, self.column(g * np.sqrt(dt)) * noise


def _source_velocity(x, t):
    """The file's closed-form linear velocity, as a float32 model would compute it."""
    t = t[:, None, None]
    pull = (x - (1.0 - t) * MEAN) / (jnp.square((1.0 - t) * STD) + jnp.square(t))
    return t * pull - (MEAN + (1.0 - t) * STD**2 * pull)


@jax.jit
def _ours():
    """Everything the file holds, by the library, keyed as in the file."""
    x, t, noise, dt = (jnp.asarray(DATA[key]) for key in ("x", "t", "noise", "dt"))
    found = {}
    for name, p in TARGETS.items():
        source = fs.interpolants.linear()
        velocity = fs.reparameterise(_source_velocity, source, p)(x, t)
        score = fs.velocity_to_score(p, x, t, velocity)
        x0, x1 = fs.velocity_to_x0(p, x, t, velocity), fs.velocity_to_x1(p, x, t, velocity)
        arrays = {
            "velocity": velocity,
            "score": score,
            "x0_mean": x0,
            "alpha": p.alpha(t),
            "sigma": p.sigma(t),
            "d_alpha": p.alpha_dot(t),
            "d_sigma": p.sigma_dot(t),
            "source_time": fs.match_time(source, p, t)[0],
        }
        for kind, diffusion in DIFFUSIONS.items():
            kernel = fs.kernels.euler_maruyama(p, diffusion)
            mean, std = jax.vmap(kernel.moments)(x, x0, x1, t, t - dt)
            g = diffusion(p, t)
            arrays[f"g/{kind}"] = g
            arrays[f"reverse_drift/{kind}"] = -velocity + 0.5 * g[:, None, None] ** 2 * score
            arrays[f"step/{kind}"] = mean + std[:, None, None] * noise
        found |= {f"{name}/{key}": value for key, value in arrays.items()}
    return found


@pytest.fixture(scope="module")
def ours():
    return {key: np.asarray(value, np.float64) for key, value in _ours().items()}


def _expected(key):
    """float64 value of an entry; KeyError for one this test does not know."""
    target, _, name = key.partition("/")
    if target not in TARGETS:
        raise KeyError(key)
    exact = _Exact(target)
    kind, _, coefficient = name.partition("/")
    if coefficient:
        return {"g": exact.g, "reverse_drift": exact.reverse_drift, "step": exact.step}[kind](
            coefficient
        )
    return getattr(exact, name)


def _largest_summands(key):
    """Sums of the absolute summands of a step's entries; 0 for what is not a step."""
    target, _, name = key.partition("/")
    kind, _, coefficient = name.partition("/")
    return sum(map(np.abs, _Exact(target).summands(coefficient))) if kind == "step" else 0.0


def _relative(value, reference, summands):
    """Elementwise relative difference.

    Velocities, drifts and steps are sums that cancel: a value near 0 carries the roundings
    (6e-8 each) of summands several times larger than the largest entry at its time. Differences
    are therefore relative to at least 5 % of that entry, or of a step's own summands, so that 2e-5
    allows 1e-6 of it.
    """
    size = np.abs(reference)
    if reference.ndim == 3:
        size = np.maximum(size, 0.05 * np.maximum(size.max((1, 2), keepdims=True), summands))
    return np.abs(value - reference) / np.where(size > 0, size, 1.0)


def _check(key, value, golden, exact):
    golden, summands = golden.astype(np.float64), _largest_summands(key)
    assert value.shape == golden.shape == exact.shape
    ours_off = _relative(value, exact, summands)
    golden_off = _relative(golden, exact, summands)
    agrees = _relative(value, golden, summands) <= TOLERANCE
    decided = (ours_off <= golden_off) & (ours_off <= TOLERANCE)
    assert np.all(agrees | decided), (key, value - golden, ours_off, golden_off)


@pytest.mark.parametrize("key", [key for key in DATA if key not in INPUTS])
def test_every_array_of_the_file_agrees(key, ours):
    if key.startswith("time/"):
        match = re.fullmatch(r"time/(exp|flux_shift_4096)/(\d+)", key)
        assert match, f"unknown entry {key}"
        n = int(match[2])
        i = np.arange(n + 1) / n
        if match[1] == "exp":
            value, exact = fs.grids.quadratic(n)[:n], np.sqrt(1 - i**2)[:n]
        else:
            shift = np.exp(1.15)
            value, exact = fs.grids.flux(n, 4096), shift * (1 - i) / (1 + (shift - 1) * (1 - i))
        _check(key, value, DATA[key], exact)
    else:
        _check(key, ours[key], DATA[key], _expected(key))


def test_an_array_this_test_does_not_know_is_an_error(ours):
    for key in ("other/alpha", "vp/g/other", "vp/other", "vp/other/sin"):
        with pytest.raises(LookupError):
            _check(key, ours[key], DATA["t"], _expected(key))
