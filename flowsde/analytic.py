"""Flows whose every answer is known: Gaussian mixtures in d dimensions.

For data sum_k w_k N(m_k, S_k), the marginal at angle (alpha, sigma) is
sum_k w_k N(alpha m_k, C_k) with C_k = alpha^2 S_k + sigma^2 I, and given component k

    E[x0 | x] = m_k + alpha S_k C_k^-1 (x - alpha m_k),    E[x1 | x] = sigma C_k^-1 (x - alpha m_k),

so velocity, score and both means are exact and finite on [0, 1] under *every* interpolant (the
velocity as far as alpha' is). Use them to test a search, a kernel or a reward without a model.

Tilted by exp(r(x) / beta), with r(x) = b . x + x^T Q x / 2, the data stay such a mixture, and a
search that samples the tilted law has a known answer too. About the mean of component k the tilt is
exp(r(m_k) / beta + g_k . y + y^T Q y / (2 beta)), y = x - m_k, g_k = (b + Q m_k) / beta, so

    S_k' = (S_k^-1 - Q / beta)^-1,    m_k' = m_k + S_k' g_k,    w_k' = w_k z_k / Z,
    log z_k = r(m_k) / beta + g_k^T S_k' g_k / 2 - log det(I - S_k Q / beta) / 2.
"""

import dataclasses
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from flowsde._arrays import check_times
from flowsde._checks import check_count, check_positive
from flowsde._keys import as_key
from flowsde.flow import Flow
from flowsde.interpolants import Interpolant, Linear
from flowsde.predictions import expand

__all__ = ["GaussianMixture", "gaussian", "mixture"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("log_weights", "means", "variances", "axes"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class GaussianMixture:
    """A mixture of k Gaussians in d dimensions; build it with `mixture` or `gaussian`.

    Attributes:
      log_weights: [k], normalised.
      means: [k, d].
      variances: [k, d], eigenvalues of the covariances, all above 0.
      axes: [k, d, d], their eigenvectors in columns.

    Example:
      >>> data = fs.analytic.mixture([1.0, 3.0], [[-1.0], [1.0]], 0.01)
      >>> flow = data.flow()  # with its exact velocity
      >>> flow.shape
      (1,)
    """

    log_weights: jax.Array
    means: jax.Array
    variances: jax.Array
    axes: jax.Array

    @property
    def dimension(self) -> int:
        return self.means.shape[1]

    def mean(self) -> jax.Array:
        """Mean of the data, [d]."""
        return jnp.exp(self.log_weights) @ self.means

    def covariance(self) -> jax.Array:
        """Covariance of the data, [d, d]."""
        weights, centred = jnp.exp(self.log_weights), self.means - self.mean()[None]
        within = jnp.einsum("k,kij,kj,klj->il", weights, self.axes, self.variances, self.axes)
        return within + jnp.einsum("k,ki,kj->ij", weights, centred, centred)

    def sample(self, key: chex.PRNGKey, n: int) -> jax.Array:
        """Exact draws of the data, [n, d]."""
        n = check_count("n", n)
        pick, draw = jax.random.split(as_key(key))
        k = jax.random.categorical(pick, self.log_weights, shape=(n,))
        noise = jax.random.normal(draw, (n, self.dimension), self.means.dtype)
        return self.means[k] + jnp.einsum(
            "nij,nj->ni", self.axes[k], jnp.sqrt(self.variances[k]) * noise
        )

    def component(self, x: jax.Array) -> jax.Array:
        """Most likely component of data points x [..., d], int [...]."""
        zero = jnp.zeros(x.shape[:-1], x.dtype)
        return jnp.argmax(self._terms(Linear(), x, zero)[0], axis=-1)

    def tilt(
        self, linear: Any, quadratic: Any = None, temperature: float = 1.0
    ) -> tuple["GaussianMixture", jax.Array]:
        """The law of the data tilted by exp(r(x) / temperature), and its normalising constant.

        The reward is r(x) = linear . x + x^T quadratic x / 2. Computed in float64 whatever the
        dtype of the arrays, on the host: not for compiled code.

        Args:
          linear: [d].
          quadratic: [d, d], symmetric; None is 0.
          temperature: above 0, in units of the reward.

        Returns:
          The tilted mixture, its components in the order of this one's, and
          log Z = log E[exp(r(x) / temperature)], a scalar.

        Raises:
          ValueError: shapes do not fit, a value is not finite, temperature is not above 0,
            quadratic is not symmetric, or Z is infinite: quadratic / temperature is not below the
            precision of every component.
        """
        d = self.dimension
        b = _finite("linear", linear, (d,))
        q = _finite("quadratic", np.zeros((d, d)) if quadratic is None else quadratic, (d, d))
        if not np.allclose(q, q.T):
            raise ValueError(f"quadratic must be symmetric, got {q.tolist()}")
        check_positive("temperature", temperature)
        tilted = _tilt(
            np.asarray(self.log_weights, np.float64),
            np.asarray(self.means, np.float64),
            np.asarray(self.variances, np.float64),
            np.asarray(self.axes, np.float64),
            b / temperature,
            0.5 * (q + q.T) / temperature,
        )
        if tilted is None:
            raise ValueError(
                f"quadratic / temperature must be below the precision of every component, or the "
                f"tilted law does not exist; got quadratic {q.tolist()} and temperature "
                f"{temperature}"
            )
        *arrays, log_z = (jnp.asarray(a, self.means.dtype) for a in tilted)
        return GaussianMixture(*arrays), log_z

    def _terms(
        self, p: Interpolant, x: jax.Array, t: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Log joint [..., k], S_k C_k^-1 d and C_k^-1 d [..., k, d], for d = x - alpha m_k."""
        alpha, sigma = p.alpha(t)[..., None, None], p.sigma(t)[..., None, None]
        along = x[..., None, :] - alpha * _lead(self.means, t)
        along = jnp.einsum("...kd,kde->...ke", along, self.axes)
        variances = _lead(self.variances, t)
        spread = jnp.square(alpha) * variances + jnp.square(sigma)
        scaled = along / spread
        quadratic = jnp.sum(along * scaled + jnp.log(2.0 * jnp.pi * spread), axis=-1)
        back = partial(jnp.einsum, "...ke,kde->...kd")
        log_joint = _lead(self.log_weights, t) - 0.5 * quadratic
        return log_joint, back(variances * scaled, self.axes), back(scaled, self.axes)

    def _prepare(self, x: Any, t: Any) -> tuple[jax.Array, jax.Array]:
        x = jnp.asarray(x, self.means.dtype)
        t = check_times("t", t).astype(x.dtype)
        if x.ndim < 1 or x.shape[-1] != self.dimension:
            raise ValueError(f"x has shape {x.shape}, expected [..., {self.dimension}]")
        return x, jnp.broadcast_to(expand(t, x[..., 0]), x.shape[:-1])

    def log_prob(self, p: Interpolant, x: chex.Array, t: chex.Numeric) -> jax.Array:
        """Log density [...] of the marginal at t; x is [..., d], t a scalar or leading axes."""
        x, t = self._prepare(x, t)
        return jax.nn.logsumexp(self._terms(p, x, t)[0], axis=-1)

    def x0(self, p: Interpolant, x: chex.Array, t: chex.Numeric) -> jax.Array:
        """E[data | x_t], shaped as x [..., d]."""
        x, t = self._prepare(x, t)
        log_joint, shrunk, _ = self._terms(p, x, t)
        means = _lead(self.means, t) + p.alpha(t)[..., None, None] * shrunk
        return _average(log_joint, means)

    def x1(self, p: Interpolant, x: chex.Array, t: chex.Numeric) -> jax.Array:
        """E[noise | x_t], shaped as x [..., d]."""
        x, t = self._prepare(x, t)
        return -p.sigma(t)[..., None] * self.score(p, x, t)

    def score(self, p: Interpolant, x: chex.Array, t: chex.Numeric) -> jax.Array:
        """Gradient of `log_prob` in x, shaped as x [..., d]."""
        x, t = self._prepare(x, t)
        log_joint, _, scaled = self._terms(p, x, t)
        return -_average(log_joint, scaled)

    def velocity(self, p: Interpolant, x: chex.Array, t: chex.Numeric) -> jax.Array:
        """alpha' x0 - (sigma^2)' / 2 score, shaped as x; finite where alpha' is."""
        x, t = self._prepare(x, t)
        slope, rate = p.alpha_dot(t)[..., None], 0.5 * p.variance_dot(t)[..., None]
        return slope * self.x0(p, x, t) - rate * self.score(p, x, t)

    def flow(self, interpolant: Interpolant | None = None) -> Flow:
        """The exact flow of this data under an interpolant (linear by default)."""
        p = Linear() if interpolant is None else interpolant
        return Flow.from_callable(_Velocity(p), self, (self.dimension,), interpolant=p)


@dataclasses.dataclass(frozen=True)
class _Velocity:
    interpolant: Interpolant

    def __call__(self, data: GaussianMixture, x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
        return data.velocity(self.interpolant, x, t)


def _lead(values: jax.Array, t: jax.Array) -> jax.Array:
    """Values [k, ...] with t.ndim unit axes in front."""
    return values.reshape((1,) * t.ndim + values.shape)


def _average(log_joint: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.einsum("...k,...kd->...d", jax.nn.softmax(log_joint, axis=-1), values)


def _finite(name: str, values: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(array.shape)}")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} must be finite, got {array.tolist()}")
    return array


def _tilt(
    log_weights: np.ndarray,
    means: np.ndarray,
    variances: np.ndarray,
    axes: np.ndarray,
    b: np.ndarray,
    q: np.ndarray,
) -> tuple[np.ndarray, ...] | None:
    """Arrays of the mixture tilted by exp(b . x + x^T q x / 2), log Z; None if Z is infinite."""
    roots = axes * np.sqrt(variances)[:, None, :]
    # R^T S'^-1 R for S = R R^T, in place of S^-1 - q: the identity where q is 0.
    precisions, turns = np.linalg.eigh(np.eye(len(b)) - roots.swapaxes(1, 2) @ q @ roots)
    if not np.all(precisions > 0):
        return None
    roots = roots @ turns / np.sqrt(precisions)[:, None, :]  # now of S'
    bend = means @ q
    along = np.einsum("kde,kd->ke", roots, b + bend)
    log_z = means @ b + 0.5 * np.sum(bend * means, axis=1)
    log_z += 0.5 * np.sum(np.square(along) - np.log(precisions), axis=1)
    log_joint = log_weights + log_z
    before, after = _log_sum_exp(log_weights), _log_sum_exp(log_joint)
    # Singular values are never below 0, eigenvalues of a rounded S' may be.
    axes, scales, _ = np.linalg.svd(roots)
    means = means + np.einsum("kde,ke->kd", roots, along)
    return log_joint - after, means, np.square(scales), axes, after - before


def _log_sum_exp(values: np.ndarray) -> np.ndarray:
    largest = values.max()
    return largest + np.log(np.sum(np.exp(values - largest)))


def mixture(
    weights: Any, means: Any, covariances: Any, dtype: Any = jnp.float32
) -> GaussianMixture:
    """Mixture of Gaussians.

    Args:
      weights: [k], above 0; normalised here.
      means: [k, d].
      covariances: [k, d, d], or variances of isotropic components, [k] or a scalar.
      dtype: of the arrays.

    Raises:
      ValueError: shapes do not fit, a value is not finite, a weight is not above 0, a covariance
        is not symmetric and positive definite.

    Example:
      >>> data = fs.analytic.mixture([1.0, 3.0], [[-1.0], [1.0]], 0.01)
      >>> print(f"{jnp.exp(data.log_weights[1]):.2f}")
      0.75
    """
    w, m = np.asarray(weights, np.float64), np.asarray(means, np.float64)
    if m.ndim != 2 or w.shape != m.shape[:1]:
        raise ValueError(f"means must be [k, d] and weights [k], got {m.shape} and {w.shape}")
    k, d = m.shape
    c = np.asarray(covariances, np.float64)
    if c.shape not in ((), (k,), (k, d, d)):
        raise ValueError(f"covariances must be a scalar, [{k}] or [{k}, {d}, {d}], got {c.shape}")
    if c.ndim < 2:
        c = np.broadcast_to(c, (k,))[:, None, None] * np.eye(d)
    if not np.all((w > 0) & np.isfinite(w)):
        raise ValueError(f"weights must be above 0 and finite, got {w}")
    for name, values in (("means", m), ("covariances", c)):
        if not np.all(np.isfinite(values)):
            raise ValueError(f"{name} must be finite, got {values.tolist()}")
    variances, axes = np.linalg.eigh(c)
    if not np.all(variances > 0) or not np.allclose(c, c.swapaxes(1, 2)):
        raise ValueError("covariances must be symmetric and positive definite")
    arrays = (np.log(w / w.sum()), m, variances, axes)
    return GaussianMixture(*(jnp.asarray(a, dtype) for a in arrays))


def gaussian(mean: Any, covariance: Any, dtype: Any = jnp.float32) -> GaussianMixture:
    """One Gaussian: mean [d], covariance [d, d] or a scalar variance.

    Example:
      >>> data = fs.analytic.gaussian([3.0, 0.0], 0.25)
      >>> noise, t = jnp.zeros([1, 2]), jnp.ones([1])
      >>> data.x0(fs.interpolants.linear(), noise, t).tolist()
      [[3.0, 0.0]]
    """
    c = np.asarray(covariance, np.float64)
    return mixture([1.0], np.asarray(mean)[None], c[None] if c.ndim == 2 else c, dtype)
