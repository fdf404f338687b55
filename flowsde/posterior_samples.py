"""Samples of the posterior p(x0 | x_t), by the inner ODE of GLASS (`flowsde.kernels.glass`)."""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp

from flowsde._arrays import check_times
from flowsde._checks import check_count
from flowsde._exact import Exact, Key
from flowsde._keys import as_key
from flowsde._static import check_static
from flowsde.changed import warn_if_changed
from flowsde.classifier_free import with_own_nulls
from flowsde.conds import Cond, as_arrays, check_cond
from flowsde.flow import Flow, check_flow, exact
from flowsde.fresh import warn_if_written_anew
from flowsde.interpolants import Interpolant
from flowsde.kernels import Kernel, glass
from flowsde.predictions import expand


def posterior_samples(
    key: chex.PRNGKey,
    flow: Flow,
    x: Any,
    t: Any,
    cond: Cond = None,
    *,
    n: int = 1,
    inner_steps: int = 8,
    interpolant: Interpolant | None = None,
    chunk_size: int | None = None,
) -> jax.Array:
    """Draw n data of which each of b particles may be the noised picture.

    A particle's first inner step is the same for all of its samples, so that these take
    b (1 + n (inner_steps - 1)) evaluations. Sample j of particle i has random numbers of
    (key, i, j) alone.

    Args:
      key: a JAX random key of any implementation; see `flowsde.run`.
      flow: the model.
      x: particles, float32 [b, *flow.shape].
      t: their times, one or [b]. At t = 0 the samples are x itself.
      cond: pytree with leading axis b, or None.
      n: samples of each particle.
      inner_steps: evaluations of a sample, first order; with 1 it is the posterior mean.
      interpolant: of x and t; that of the flow by default.
      chunk_size: rows evaluated at once; all by default.

    Returns:
      float32 [b, n, *flow.shape], not decoded.

    Raises:
      ValueError, TypeError: naming the argument, before anything is compiled.

    Example:
      >>> flow = fs.analytic.gaussian([3.0, 0.0], 0.01).flow()
      >>> x = jnp.zeros([1, 2])  # one particle at t = 0.5
      >>> x0 = fs.posterior_samples(jax.random.key(0), flow, x, jnp.array([0.5]), n=16)
      >>> x0.shape, jnp.mean(x0, axis=(0, 1)).round().tolist()
      ((1, 16, 2), [3.0, 0.0])
    """
    if not isinstance(flow, Flow):
        raise TypeError(f"flow must be a flowsde.Flow, got {type(flow).__name__}")
    check_flow(flow)
    x = jnp.asarray(x, jnp.float32)
    if x.ndim != 1 + len(flow.shape) or x.shape[1:] != flow.shape or not len(x):
        raise ValueError(f"x must have shape [b, *{list(flow.shape)}], got {list(x.shape)}")
    times = check_times("t", t).astype(jnp.float32)
    if times.shape not in ((), x.shape[:1]):
        raise ValueError(f"t must be one time or [{len(x)}], got shape {list(times.shape)}")
    n = check_count("n", n)
    size = len(x) * n
    chunk = size if chunk_size is None else min(size, check_count("chunk_size", chunk_size))
    kernel = glass(flow.interpolant if interpolant is None else interpolant, inner_steps, rho=0.0)
    check_static("interpolant", kernel.interpolant)
    cond = as_arrays("cond", cond)
    check_cond(cond, len(x), "len(x)")
    flow, cond = with_own_nulls(flow, cond)
    static = {"flow": flow.velocity_fn, "interpolant": kernel.interpolant}
    warn_if_written_anew(3, **static)
    warn_if_changed(3, **static)
    moves = Exact(kernel, Key(kernel))
    times = jnp.broadcast_to(times, x.shape[:1])
    return _posterior(as_key(key), exact(flow, cond), x, times, cond, moves, n, chunk)


def _mapped(f: Any, rows: int, size: int) -> Any:
    """``f(numbers)`` of so many rows, `size` at once, the last of them there again at the end."""
    numbers = jnp.minimum(jnp.arange(-(-rows // size) * size, dtype=jnp.int32), rows - 1)
    found = jax.lax.map(f, numbers.reshape(-1, size))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:rows], found)


@partial(jax.jit, static_argnums=(5, 6, 7))
def _posterior(
    key: chex.PRNGKey,
    flow: Flow,
    x: jax.Array,
    t: jax.Array,
    cond: Cond,
    moves: Exact,
    n: int,
    chunk: int,
) -> jax.Array:
    kernel: Kernel = moves.value
    means = partial(flow.means, interpolant=kernel.interpolant)

    def of(at: jax.Array) -> tuple[jax.Array, jax.Array, Cond]:
        return x[at], t[at], jax.tree.map(lambda a: a[at], cond)

    x0, x1 = _mapped(lambda at: means(*of(at)), len(x), min(chunk, len(x)))

    def sample(number: jax.Array) -> jax.Array:
        at, sample = jnp.divmod(number, n)
        keys = jax.vmap(lambda i, j: jax.random.fold_in(jax.random.fold_in(key, i), j))(at, sample)
        origin, start, own = of(at)
        end = jnp.zeros_like(start)
        drawn = jax.vmap(kernel.draw)(keys, origin, x0[at], x1[at], start, end)
        found = kernel.arrive(partial(means, cond=own), origin, drawn, start, end)
        return jnp.where(expand(start > 0.0, origin), found, origin)

    return _mapped(sample, len(x) * n, chunk).reshape(len(x), n, *flow.shape)
