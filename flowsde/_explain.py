"""Errors of the user's functions, with a note of what they were called with.

A model, decoder or reward that is called in a way it does not expect raises from deep inside JAX.
The error stays what it is, with its traceback; the note says what the library did.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

_LONGEST = 300


@contextmanager
def noted(note: Callable[[Exception], str | None]) -> Iterator[None]:
    """Add ``note(error)``, if there is one, to an error that passes."""
    try:
        yield
    except Exception as error:
        if text := note(error):
            error.add_note(text)
        raise


class _Shown(str):
    """Text that is its own repr, within that of a container."""

    def __repr__(self) -> str:
        return str(self)


def _leaf(leaf: Any) -> _Shown:
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        return _Shown(type(leaf).__name__)
    return _Shown(f"{leaf.dtype}[{', '.join(map(str, leaf.shape))}]")


def shapes(tree: Any) -> str:
    """Dtypes and shapes of a pytree's arrays, such as ``{'label': int32[4]}``."""
    text = repr(jax.tree.map(_leaf, tree))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def name_of(fn: Any) -> str:
    """The name that the user knows a function or a module by."""
    fn = getattr(fn, "func", fn)  # of a partial
    return getattr(fn, "__name__", type(fn).__name__)


def without_cond(error: Exception, cond: Any) -> bool:
    """Whether an error may well be that of using a cond of None."""
    return cond is None and "NoneType" in str(error)


def outside_jax(error: Exception) -> bool:
    """Whether a function used traced arrays as if they were NumPy's or PyTorch's."""
    kinds = (
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerIntegerConversionError,
        jax.errors.ConcretizationTypeError,
        jax.errors.NonConcreteBooleanIndexError,
    )
    # PyTorch and others name the type of what they were given; what is written to is immutable.
    words = ("Tracer", "JAX arrays are immutable")
    return isinstance(error, kinds) or any(word in str(error) for word in words)


def model_note(
    name: str, shape: tuple[int, ...], x: Any, t: Any, cond: Any, error: Exception
) -> str:
    """What a model of a flow of this shape was called with, before its own names and order."""
    why = ", as none was given" if cond is None else ""
    return (
        f"model {name} is called with (x, t, cond): x is {shapes(x)}, t is {shapes(t)}, cond is "
        f"{shapes(cond)}{why}; the flow was given shape={shape}, of one particle"
    )


def decoded(decode: Callable[[jax.Array], Any], x0: jax.Array) -> jax.Array:
    """Images of x0 [n, ...]; TypeError or ValueError unless an array of n."""
    with noted(lambda error: f"decode is called as decode(x0): x0 is {shapes(x0)}"):
        images = decode(x0)
        if not hasattr(images, "shape") or not hasattr(images, "dtype"):
            raise TypeError(f"decode returned {shapes(images)}, expected an array of images")
        if jnp.shape(images)[:1] != x0.shape[:1]:
            raise ValueError(
                f"decode returned shape {images.shape}, expected leading axis {x0.shape[0]}"
            )
        return images
