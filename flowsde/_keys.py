"""Random keys: threefry's, whatever JAX's default implementation is.

Draws belong to particles only if each key of a batch gives its own numbers wherever it stands. Of
JAX's implementations threefry alone keeps that: vmapped draws of "rbg" and "unsafe_rbg", usual on
TPUs, take the first key of the batch, and "unsafe_rbg" folds and splits so as well.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._checks import check_count

IMPLEMENTATION = "threefry2x32"


def is_keys(leaf: Any) -> bool:
    """Whether a leaf is an array of typed keys, which NumPy cannot hold."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def as_key(key: Any) -> jax.Array:
    """The threefry key of a user's key.

    Args:
      key: one key of any implementation, or its raw data, uint32, as `jax.random.PRNGKey` gives
        it. A threefry key stays as it is. "rbg" seeds, splits and folds two threefry keys alike:
        such a pair counts as the one key. All words of any other are hashed into one.

    Raises:
      TypeError, ValueError: it is no key, or several.
    """
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        if key.shape != ():
            raise ValueError(f"key must be one JAX random key, got keys of shape {key.shape}")
        if str(jax.random.key_impl(key)) == IMPLEMENTATION:
            return key
        words = jax.random.key_data(key).reshape(-1)
    elif dtype == np.uint32 and key.shape in ((2,), (4,)):
        words = jnp.asarray(key)
    else:
        raise TypeError(
            f"key must be a JAX random key, for example jax.random.key(0), got {_about(key)}"
        )
    return _hashed(words)


def _about(value: Any) -> str:
    """A value that is no key, in a few words."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    return repr(value) if isinstance(value, int | float | None) else type(value).__name__


def _hashed(words: jax.Array) -> jax.Array:
    """The threefry key of uint32 words: of two, those; of two equal pairs, that pair."""
    words = jnp.pad(words, (0, max(0, 2 - words.size)))
    first = key = jax.random.wrap_key_data(words[:2], impl=IMPLEMENTATION)
    for word in words[2:]:
        key = jax.random.fold_in(key, word)
    if words.size != 4:
        return key
    return jnp.where(jnp.all(words[:2] == words[2:]), first, key)


def from_seed(seed: Any) -> jax.Array:
    """``jax.random.key(seed)`` of threefry.

    Args:
      seed: 0 to 2**32 - 1: JAX would take a larger one for that less a multiple of 2**32.

    Raises:
      TypeError, ValueError: it is another.
    """
    number = check_count("seed", seed, least=0, most=2**32 - 1)
    # Of 32 bits that are the lower half, without a program to say so.
    words = jax.device_put(np.asarray([0, number], np.uint32))
    return jax.random.wrap_key_data(words, impl=IMPLEMENTATION)
