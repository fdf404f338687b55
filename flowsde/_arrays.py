"""Checks of JAX arrays; those of other arguments, which want no JAX, are in `flowsde._checks`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_times(name: str, times: Any) -> jax.Array:
    """`times` as a float array, raising if a concrete one lies outside [0, 1]."""
    if not isinstance(times, jax.core.Tracer):
        values = np.asarray(times)
        if values.dtype.kind not in "fiu" and not jnp.issubdtype(values.dtype, jnp.floating):
            raise TypeError(f"{name} must be floating-point times, got dtype {values.dtype}")
        if not np.all((values >= 0) & (values <= 1)):
            raise ValueError(f"{name} must lie in [0, 1], got {_outside(values)}")
    # A Python number or an integer is a float32 time; strict promotion needs it said.
    dtype = getattr(times, "dtype", None)
    floating = dtype is not None and jnp.issubdtype(dtype, jnp.floating)
    return jnp.asarray(times, dtype=dtype if floating else jnp.float32)


def _outside(values: np.ndarray) -> str:
    wrong = values[~((values >= 0) & (values <= 1))].reshape(-1)
    return f"{wrong[0]!s}" + (f" and {wrong.size - 1} more" if wrong.size > 1 else "")


def check_output(name: str, value: Any, x: jax.Array) -> None:
    """Raise unless `value` is a floating-point array shaped as x."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        raise TypeError(
            f"{name} returned {type(value).__name__}, expected an array of shape {x.shape}"
        )
    if value.shape != x.shape or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"{name} returned shape {value.shape} and dtype {value.dtype}, "
            f"expected shape {x.shape} and a floating dtype"
        )
