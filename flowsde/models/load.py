"""A converted model or pipeline, back in memory."""

from pathlib import Path
from typing import Any

import jax
from jax.typing import DTypeLike

from flowsde._checks import check_path
from flowsde.models import pipelines
from flowsde.models.common.layers import Numerics
from flowsde.models.converted.load import load_model, load_module
from flowsde.models.converted.store import is_pipeline
from flowsde.sharding import ShardingRules


def load(
    folder: str | Path,
    mesh: jax.sharding.Mesh | None = None,
    dtype: DTypeLike | None = None,
    *,
    rules: ShardingRules | None = None,
    numerics: Numerics | None = None,
    verify: bool = True,
) -> Any:
    """What ``flowsde convert`` wrote, parameters read straight onto the devices.

    Args:
      folder: of one model or of a pipeline, whose models are read when they are first used.
      mesh: of the devices; the first device alone by default.
      dtype: of the weights; as they were written by default.
      rules: of the mesh, `ShardingRules()` by default: a parameter is split along all of its axes
        that have one. Pass the same to `run`.
      numerics: dtype of activations, and attention; by default activations are bfloat16 where the
        weights are, else float32, also where the weights are float16, in which models overflow.
      verify: compare every file with the SHA-256 that was written with it, while it is read: a
        gigabyte a second for each of half of the cores.

    Returns:
      A `flowsde.Flow` for a family that makes one, a pipeline of `flowsde.models`, else the
      `nnx.Module`.

    Raises:
      FileNotFoundError: there is no converted model.
      ValueError: it is of another format or version, or not what was written, naming the file; a
        rule names no axis of the mesh, or the devices do not share a parameter evenly, which is
        named.
    """
    folder = check_path("folder", folder)
    how = (mesh, dtype, rules, numerics, verify)
    if is_pipeline(folder):
        return pipelines.load(folder, lambda part: load_module(part, *how), verify)
    return load_model(folder, *how)
