"""What a run is of, in a number for each prompt: its search, what model and reward are told."""

import zlib
from typing import Any

import jax
import numpy as np

from flowsde._keys import is_keys
from flowsde.conds import Cond, is_array
from flowsde.search.protocol import Search


def of_run(
    search: Search, cond: Cond, n: int, version: str | None = None, told: Any = None
) -> np.ndarray | None:
    """Checksums of the search's settings and of what each prompt is told, uint32 [n].

    None where that lies on devices of other processes, which cannot be read here. Model and reward
    are in none, but for a version that a reward outside JAX says it has: a run may be resumed with
    a reward that has been mended.

    Args:
      search: as it is run.
      cond: with a leading axis of prompts.
      n: their number.
      version: of the reward.
      told: of the reward alone, likewise, or a list of n; of objects, texts and numbers count.
    """
    each = isinstance(told, list)
    leaves = jax.tree.leaves((cond, told))
    if not all(getattr(leaf, "is_fully_addressable", True) for leaf in leaves):
        return None
    arrays = [np.asarray(_plain(leaf)) for leaf in jax.tree.leaves(cond)]
    shared = [] if each else [_as_jax(leaf) for leaf in jax.tree.leaves(told)]
    begin = zlib.crc32(repr(search).encode())
    if version is not None:
        begin = zlib.crc32(version.encode(), begin)
    sums = np.full(n, begin, np.uint32)
    for i in range(n):
        own = [array[i].tobytes() for array in (*arrays, *shared)]
        own += [_bytes(leaf) for leaf in jax.tree.leaves(told[i])] if each else []
        for data in own:
            sums[i] = zlib.crc32(data, int(sums[i]))
    return sums


def _bytes(leaf: Any) -> bytes:
    """Of an array, a number or a text; none of another object, which may say anything."""
    if isinstance(leaf, str):
        return leaf.encode(errors="surrogatepass")
    return _as_jax(leaf).tobytes() if is_array(leaf) else b""


def _as_jax(leaf: Any) -> np.ndarray:
    """An array in the dtype that JAX has for its own."""
    array = np.asarray(_plain(leaf))
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype))


def _plain(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if is_keys(leaf) else leaf
