"""What a run is of, in a number for each prompt: its search, and what the model is told."""

import zlib
from typing import Any

import jax
import numpy as np

from flowsde._keys import is_keys
from flowsde.conds import Cond
from flowsde.search.protocol import Search


def of_run(search: Search, cond: Cond, n: int, version: str | None = None) -> np.ndarray | None:
    """Checksums of the search's settings and of each prompt's cond, uint32 [n].

    None where cond lies on devices of other processes, which cannot be read here. Model and reward
    are in none, but for a version that a reward outside JAX says it has: a run may be resumed with
    a reward that has been mended.

    Args:
      search: as it is run.
      cond: with a leading axis of prompts.
      n: their number.
      version: of the reward.
    """
    leaves = [leaf for _, leaf in jax.tree.leaves_with_path(cond)]
    if not all(getattr(leaf, "is_fully_addressable", True) for leaf in leaves):
        return None
    arrays = [np.asarray(_plain(leaf)) for leaf in leaves]
    begin = zlib.crc32(repr(search).encode())
    if version is not None:
        begin = zlib.crc32(version.encode(), begin)
    sums = np.full(n, begin, np.uint32)
    for i in range(n):
        for array in arrays:
            sums[i] = zlib.crc32(array[i].tobytes(), int(sums[i]))
    return sums


def _plain(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if is_keys(leaf) else leaf
