"""What models and rewards are told of prompts: pytrees of arrays with a leading axis of them.

Both are told the same, `cond`, unless the reward has a `reward_cond` of its own. Then, and where a
prompt has a null condition of its own, one pytree holds it all, so that whatever picks the rows of
some prompts picks all of it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._keys import is_keys

Cond = Any


class Told(NamedTuple):
    """What the model and the reward are told, where that is not the same."""

    model: Cond
    reward: Cond


class WithNull(NamedTuple):
    """What a guided model is told, where the null condition is a prompt's own."""

    cond: Cond
    null: Cond


class Held(NamedTuple):
    """What a model is told where part of the data is known; see `flowsde.start`.

    Attributes:
      cond: what it is told besides.
      x0: the data, float32 [n, *shape].
      mask: bool [n, *shape], True where they are not known.
    """

    cond: Cond
    x0: Any
    mask: Any


def for_model(cond: Cond) -> Cond:
    """What the model is told."""
    return cond.model if isinstance(cond, Told) else cond


def for_reward(cond: Cond) -> Cond:
    """What the reward is told."""
    if isinstance(cond, Told):
        return cond.reward
    if isinstance(cond, Held):
        cond = cond.cond
    return cond.cond if isinstance(cond, WithNull) else cond


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array or a number; text, dates and other objects are not."""
    return isinstance(leaf, jax.Array) or np.asarray(leaf).dtype.kind not in "OSUMm"


def check_arrays(name: str, cond: Cond) -> None:
    """TypeError unless all leaves are arrays or numbers, ValueError for one that JAX would wrap."""
    for leaf in jax.tree.leaves(cond):
        if not is_array(leaf):
            raise TypeError(
                f"{name} has a leaf of type {type(leaf).__name__}, {str(leaf)[:40]!r}, expected "
                f"arrays: text must be encoded for a model; a reward outside JAX takes it as "
                f"reward_cond"
            )
        if not isinstance(leaf, jax.Array):
            _check_range(name, np.asarray(leaf))


def _check_range(name: str, array: np.ndarray) -> None:
    """ValueError for numbers that the dtype does not hold that JAX has for theirs."""
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    if dtype == array.dtype or array.dtype.kind not in "iuf":
        return
    info: Any = (jnp.finfo if array.dtype.kind == "f" else jnp.iinfo)(dtype)
    outside = np.isfinite(array) & ((array < info.min) | (array > info.max))
    if outside.any():
        raise ValueError(
            f"{name} has the number {array[outside][0]}, which {dtype} does not hold: expected "
            f"smaller ones, as of a table's rows, or jax_enable_x64"
        )


def as_arrays(name: str, cond: Cond) -> Cond:
    """`check_arrays`, then JAX arrays."""
    check_arrays(name, cond)
    return jax.tree.map(_on_device, cond)


def _is_numpy(leaf: Any) -> bool:
    """Whether it is NumPy's own, and not of a class that may mean more, as masked arrays do."""
    return type(leaf) is np.ndarray or isinstance(leaf, np.generic)


def _on_device(leaf: Any) -> jax.Array:
    """`jnp.asarray`, without compiling a program for each shape of NumPy's."""
    if _is_numpy(leaf):
        # A copy: else JAX may share its memory, with what the user writes there afterwards.
        return jax.device_put(leaf.copy())
    return jnp.asarray(leaf)


def as_host_arrays(name: str, cond: Cond) -> Cond:
    """`check_arrays`, then NumPy arrays of the dtypes that `as_arrays` gives; keys stay in JAX."""
    check_arrays(name, cond)

    def fetched(leaf: Any) -> Any:
        if is_keys(leaf):
            return leaf
        array = np.asarray(leaf)
        return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)

    return jax.tree.map(fetched, cond)


def rows_on_host(cond: Cond, at: np.ndarray) -> Cond:
    """Rows `at` of arrays, as NumPy's; keys stay in JAX, for NumPy has none."""
    return jax.tree.map(lambda a: (a if is_keys(a) else np.asarray(a))[at], cond)


def check_cond(cond: Cond, n: int, axis: str, name: str = "cond") -> None:
    """Raise unless every leaf of cond has leading axis n."""
    for leaf in jax.tree.leaves(cond):
        if jnp.ndim(leaf) == 0 or jnp.shape(leaf)[0] != n:
            raise ValueError(
                f"{name} has a leaf of shape {jnp.shape(leaf)}, expected leading axis {axis} = {n}"
            )


def of_each_prompt(name: str, cond: Cond, n: int, single: bool, on_host: bool = False) -> Cond:
    """Arrays with a leading axis of n prompts, of NumPy if they are to stay on the host."""
    listed = isinstance(cond, list) and len(cond) == n and not single
    if single:
        check_arrays(name, cond)
        # Arrays of NumPy are best indexed there.
        cond = jax.tree.map(lambda a: (a if _is_numpy(a) else jnp.asarray(a))[None], cond)
    cond = (as_host_arrays if on_host else as_arrays)(name, cond)
    try:
        check_cond(cond, n, "len(prompt_ids)", name)
    except ValueError as error:
        hint = ": stack a list of one for each prompt, as flowsde.batch does itself"
        raise ValueError(f"{error}{hint * listed}") from None
    return cond


def stacked(name: str, conds: Sequence[Cond]) -> Cond:
    """Conds of one prompt each, NumPy with a leading axis of them; keys stay in JAX."""
    check_arrays(name, conds)
    if not conds:
        raise ValueError(f"{name} is an empty list, expected that of one prompt at least")
    structures = {jax.tree.structure(one) for one in conds}
    shapes = {tuple(np.shape(leaf) for leaf in jax.tree.leaves(one)) for one in conds}
    if len(structures) > 1 or len(shapes) > 1:
        raise ValueError(f"{name} is a list of different structures or shapes, expected the same")
    return jax.tree.map(lambda *leaves: (jnp if is_keys(leaves[0]) else np).stack(leaves), *conds)
