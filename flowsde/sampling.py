"""Samples of a flow without a search: a kernel followed down a grid of times."""

from functools import partial
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np

from flowsde._checks import check_count
from flowsde._exact import Exact, Key
from flowsde._keys import as_key
from flowsde._static import check_static
from flowsde.changed import warn_if_changed
from flowsde.classifier_free import with_own_nulls
from flowsde.conds import Cond, Held, as_arrays, check_cond
from flowsde.flow import Flow, check_flow, exact, finite_rows
from flowsde.fresh import warn_if_written_anew
from flowsde.grids import as_grid
from flowsde.kernels import Kernel, Multistep, Renoise
from flowsde.kernels.base import standard_normal
from flowsde.start import Start, as_start, begin, check_first_time


def sample(
    key: chex.PRNGKey,
    flow: Flow,
    *,
    kernel: Kernel | Multistep,
    grid: Any,
    n: int,
    cond: Cond = None,
    chunk_size: int | None = None,
    final: Literal["kernel", "mean"] = "kernel",
    start: Any = None,
    mask: Any = None,
    noise: Any = None,
) -> jax.Array:
    """Draw n particles by following a kernel down a grid of times.

    Particle i's random numbers depend on (key, i, step) alone, so neither n nor the chunk size
    changes them. One compiled scan; memory does not grow with the number of steps.

    Args:
      key: a JAX random key of any implementation; see `flowsde.run`.
      flow: the model.
      kernel: how a particle moves, a multistep solver included; its interpolant is the one sampled.
      grid: times falling from 1 to 0, see `flowsde.grids`; with a start from any time.
      n: particles.
      cond: pytree with leading axis n, or None.
      chunk_size: particles evaluated at once; all by default.
      final: "kernel" ends with the kernel's own step to t = 0, whatever noise it adds; "mean"
        with the posterior mean x0 at the last time above 0, the usual choice for pictures.
      start: data [*flow.shape], or n of them, with noise of the grid's first time added: that of
        `flowsde.grids.tail` for image-to-image. A flow of latents takes `flow.encode` of images.
      mask: bool, shaped as start, True where it is drawn anew; the rest stays to the bit. By
        replacement, see `flowsde.start` for what that is not.
      noise: standard normal, shaped as start, in place of what is drawn for the first time.

    Returns:
      float32 [n, *flow.shape] at t = 0, not decoded.

    Raises:
      ValueError, TypeError: naming the argument, before anything is compiled.
      ValueError: a particle is not finite, for which the call waits; not within `jax.jit` and other
        transformations, where there are no values to see.

    Example:
      >>> flow = fs.analytic.gaussian([3.0, 0.0], 0.01).flow()
      >>> kernel = fs.kernels.ddim(flow.interpolant)
      >>> x = fs.sample(jax.random.key(0), flow, kernel=kernel, grid=fs.grids.uniform(10), n=64)
      >>> x.shape, jnp.mean(x, axis=0).round().tolist()
      ((64, 2), [3.0, 0.0])
    """
    if not isinstance(flow, Flow):
        raise TypeError(f"flow must be a flowsde.Flow, got {type(flow).__name__}")
    key = as_key(key)
    n = check_count("n", n)
    chunk = n if chunk_size is None else min(n, check_count("chunk_size", chunk_size))
    if not isinstance(kernel, Kernel | Multistep) or isinstance(kernel, Renoise):
        raise TypeError(f"kernel must be a reverse-time flowsde Kernel, got {kernel!r}")
    if isinstance(kernel, Kernel) and kernel.uses_gradient:
        raise TypeError("kernel is guided by a reward, which only a search has, e.g. search.bon")
    check_flow(flow)
    check_static("kernel", kernel)
    if final not in ("kernel", "mean"):
        raise ValueError(f"final must be 'kernel' or 'mean', got {final!r}")
    cond = as_arrays("cond", cond)
    check_cond(cond, n, "n")
    flow, cond = with_own_nulls(flow, cond)
    times = as_grid("grid", grid)
    given, held = as_start(start, mask, noise, flow.shape, n, "n", single=False)
    check_first_time("grid", times[0], given)
    cond = cond if held is None else Held(cond, *held)
    static = {"flow": flow.velocity_fn, "interpolant": flow.interpolant, "kernel": kernel}
    warn_if_written_anew(3, **static)
    warn_if_changed(3, **static)
    flow, moves = exact(flow, cond), Exact(kernel, Key(kernel))
    x, finite = _sample(key, flow, cond, moves, times, n, chunk, final, given)
    if not isinstance(finite, jax.core.Tracer):
        _check_finite(finite)
    return x


def _check_finite(finite: jax.Array) -> None:
    """ValueError unless all particles [n] are; of several processes, each sees its own."""
    parts = [np.asarray(shard.data) for shard in finite.addressable_shards]
    if not all(part.all() for part in parts):
        bad, n = (sum(int(f(part).sum()) for part in parts) for f in (np.invert, np.ones_like))
        raise ValueError(
            f"{bad} of {n} particles are NaN or infinite: velocity_fn has weights that are, a "
            f"float16 model overflows, a guidance scale or a step is too large, or a diffusion "
            f"coefficient is not finite"
        )


@partial(jax.jit, static_argnums=(3, 4, 5, 6, 7))
def _sample(
    key: chex.PRNGKey,
    flow: Flow,
    cond: Cond,
    moves: Exact,
    grid: tuple[float, ...],
    n: int,
    chunk: int,
    final: str,
    start: Start | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Particles, and which are finite, bool [n]."""
    times = jnp.asarray(grid, jnp.float32)
    kernel: Kernel | Multistep = moves.value
    p = kernel.interpolant

    def trajectory(args: tuple[jax.Array, Cond, Start | None]) -> jax.Array:
        ids, cond, given = args
        keys = jax.vmap(partial(jax.random.fold_in, key))(ids)

        def means(x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
            return flow.means(x, jnp.full(x.shape[:1], t), cond, p)

        def step(carry: tuple[jax.Array, Any], inputs: tuple[jax.Array, ...]) -> Any:
            (x, before), (i, t, s) = carry, inputs
            x0, x1 = means(x, t)
            if isinstance(kernel, Multistep):
                return jax.vmap(kernel, (0, 0, 0, 0, None, None))(before, x, x0, x1, t, s), None
            step_keys = jax.vmap(lambda k: jax.random.fold_in(k, i + 1))(keys)
            draw = kernel.draw if kernel.inner_evaluations else kernel
            moved = jax.vmap(draw, (0, 0, 0, 0, None, None))(step_keys, x, x0, x1, t, s)
            if kernel.inner_evaluations:
                own = partial(flow.means, cond=cond, interpolant=p)
                both = (jnp.full(x.shape[:1], time) for time in (t, s))
                moved = kernel.arrive(own, x, moved, *both)
            elif kernel.evaluations == 2:
                correct = jax.vmap(kernel.correct, (0, 0, 0, 0, 0, 0, None, None))
                moved = correct(x, x0, x1, moved, *means(moved, s), t, s)
            return (moved, None), None

        def first(k: jax.Array, given: Start | None) -> jax.Array:
            return begin(p, grid[0], standard_normal(jax.random.fold_in(k, 0), flow.shape), given)

        steps = len(grid) - (1 if final == "kernel" else 2)
        inputs = (jnp.arange(steps), times[:steps], times[1 : steps + 1])
        x = jax.vmap(first)(keys, given)
        before = jax.vmap(kernel.start)(x) if isinstance(kernel, Multistep) else None
        (x, _), _ = jax.lax.scan(step, (x, before), inputs)
        if final == "mean":
            return means(x, times[-2])[0]
        # The last step may add noise, or round.
        return jnp.where(cond.mask, x, cond.x0) if isinstance(cond, Held) else x

    # Whole chunks only: the last one is filled up with further particles, then cut.
    rows = jnp.arange(-(-n // chunk) * chunk)
    padded = jax.tree.map(lambda a: a[jnp.minimum(rows, n - 1)], (cond, start))
    chunks = jax.tree.map(lambda a: a.reshape(-1, chunk, *a.shape[1:]), (rows, *padded))
    x = jax.lax.map(trajectory, chunks)
    x = x.reshape(-1, *flow.shape)[:n]
    return x, finite_rows(x)
