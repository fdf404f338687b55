"""The pure functions with and without compilation, and on a device, against closed forms."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

import flowsde as fs

LINEAR, VP = fs.interpolants.linear(), fs.interpolants.vp()
TIMES = jnp.asarray([0.0, 0.3, 1.0])
rng = np.random.default_rng(0)
X, U = (jnp.asarray(rng.normal(size=(3, 4)), jnp.float32) for _ in range(2))
T = TIMES[:, None]


class PureFunctions(chex.TestCase):
    """Of chex, which runs each test once a variant."""

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_conversions_of_a_velocity(self):
        """x0 = x - t u, x1 = x + (1 - t) u, score = -x1 / t."""

        @self.variant
        def converted(x, t, u):
            return fs.velocity_to_x0(LINEAR, x, t, u), fs.velocity_to_x1(LINEAR, x, t, u)

        wanted = (X - T * U, X + (1.0 - T) * U)
        chex.assert_trees_all_close(converted(X, TIMES, U), wanted, rtol=1e-6, atol=1e-6)
        score = self.variant(lambda *a: fs.velocity_to_score(LINEAR, *a))(X[1:], TIMES[1:], U[1:])
        chex.assert_trees_all_close(score, -wanted[1][1:] / T[1:], rtol=1e-6, atol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    def test_matched_times_have_one_angle(self):
        """tan(angle) = sigma / alpha; and the ends of one interpolant are those of the other."""
        t, scale = self.variant(lambda s: fs.match_time(LINEAR, VP, s))(TIMES)
        chex.assert_shape((t, scale), TIMES.shape)
        angles = LINEAR.angle(t), VP.angle(TIMES)
        chex.assert_trees_all_close(*angles, rtol=1e-5, atol=1e-5)
        chex.assert_trees_all_close(jnp.tan(angles[0][1]), t[1] / (1.0 - t[1]), rtol=1e-5)
        chex.assert_trees_all_close(t[0], jnp.zeros(()), atol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    def test_one_euler_step(self):
        """x + (s - t) u, with u = x1 - x0."""
        kernel, key = fs.kernels.ode_euler(LINEAR), jax.random.key(0)

        @self.variant
        def step(x, x0, x1, t, s):
            return kernel(key, x, x0, x1, t, s)

        t, s = jnp.float32(0.7), jnp.float32(0.2)
        x0, x1 = X - t * U, X + (1.0 - t) * U
        chex.assert_trees_all_close(step(X, x0, x1, t, s), X + (s - t) * U, rtol=1e-5, atol=1e-6)

    @chex.variants(with_jit=True, without_jit=True)
    def test_diffusion_coefficients(self):
        """g = 3 t^2, 3 t and 3."""
        for make, wanted in (
            (fs.diffusion.square, 3.0 * TIMES**2),
            (fs.diffusion.linear, 3.0 * TIMES),
            (fs.diffusion.constant, jnp.full(3, 3.0)),
        ):
            g = make(3.0)
            found = self.variant(lambda t, g=g: g(LINEAR, t))(TIMES)
            chex.assert_trees_all_close(found, wanted, rtol=1e-6)
