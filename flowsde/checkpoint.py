"""On disk, through Orbax: a search, as a `Result` of `iterate`, and converted models.

Each save of a search is a numbered step of a folder, the number of rounds done. Orbax writes it
under a temporary name and renames it, and the one before is kept until then, so that a process
killed at any moment leaves a whole state. Orbax is imported where it is used: it is half of what
importing flowsde would take.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from flowsde._checks import check_path
from flowsde.models.layers import Numerics
from flowsde.search import Info, Result, Search
from flowsde.search.layout import gather
from flowsde.search.result import COUNTERS
from flowsde.sharding import ShardingRules

if TYPE_CHECKING:
    import orbax.checkpoint as ocp


def _manager(folder: Path, create: bool) -> "ocp.CheckpointManager":
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(
        max_to_keep=2, create=create, enable_async_checkpointing=False
    )
    return ocp.CheckpointManager(folder.absolute(), options=options)


def _flat(tree: Any) -> dict[str, Any]:
    """Leaves by their path."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _as_numpy(leaf: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def save_search(folder: str | Path, search: Search, result: Result) -> None:
    """Save a result of `iterate`, so that the search can go on from it.

    In a job of several processes all of them call it, and one writes.

    Args:
      folder: made if it is not there; holds the last two saves.
      search: that is being run.
      result: after any round.
    """
    import orbax.checkpoint as ocp

    folder = check_path("folder", folder)
    leaves = _flat(gather(result))
    implementations = {
        name: str(jax.random.key_impl(leaf)) for name, leaf in leaves.items() if _is_key(leaf)
    }
    arrays = {name: _as_numpy(leaf) for name, leaf in leaves.items()}
    rounds = len(result.info.time)
    about = {
        "search": repr(search),
        "prompts": None if np.ndim(result.nfe) == 0 else int(np.size(result.nfe)),
        "keys": implementations,
        # Orbax has no arrays without entries: those of a log without rounds.
        "empty": {name: [list(a.shape), str(a.dtype)] for name, a in arrays.items() if not a.size},
    }
    arrays = {name: a for name, a in arrays.items() if a.size}
    with _manager(folder, create=True) as manager:
        # What is there from this round on is of a run that this one takes the place of.
        for step in manager.all_steps():
            if step >= rounds:
                manager.delete(step)
        manager.save(
            rounds,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardSave(arrays), about=ocp.args.JsonSave(about)
            ),
            force=True,
        )


def restore_search(folder: str | Path, search: Search) -> Result:
    """The last result saved in a folder, to be passed on as ``resume``.

    Args:
      folder: of `save_search`.
      search: that was being run; only the same can go on.

    Raises:
      FileNotFoundError: the folder holds no saved search.
      ValueError: it holds one of another search.
    """
    import orbax.checkpoint as ocp

    folder = check_path("folder", folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} holds no saved search")
    with _manager(folder, create=False) as manager:
        step = manager.latest_step()
        if step is None:
            raise FileNotFoundError(f"{folder} holds no saved search")
        saved = manager.restore(
            step,
            args=ocp.args.Composite(
                arrays=ocp.args.StandardRestore(), about=ocp.args.JsonRestore()
            ),
        )
    arrays, about = saved.arrays, saved.about
    if about["search"] != repr(search):
        raise ValueError(f"{folder} holds a search of other settings: {about['search']}")
    arrays |= {name: np.zeros(shape, dtype) for name, (shape, dtype) in about["empty"].items()}
    for name, implementation in about["keys"].items():
        arrays[name] = jax.random.wrap_key_data(jnp.asarray(arrays[name]), impl=implementation)
    return _rebuild(arrays, search, about["prompts"])


def _rebuild(arrays: dict[str, Any], search: Search, prompts: int | None) -> Result:
    """A result from its leaves by path: the search says what its state looks like."""
    lead = () if prompts is None else (prompts,)
    shape = tuple(arrays[".x"].shape)[len(lead) :]
    state = jax.eval_shape(
        lambda: search.init(jax.random.key(0), shape, jnp.float32(0.0), jnp.int32(0))
    )
    named = jax.tree.map_with_path(lambda path, _: f".state{jax.tree_util.keystr(path)}", state)
    fields: dict[str, Any] = {
        name: arrays.get(f".{name}") for name in Result._fields if name not in ("state", "info")
    }
    if prompts is None:
        fields |= {name: int(fields[name]) for name in COUNTERS}
        fields["verifier_cost"] = float(fields["verifier_cost"])
    info: dict[str, Any] = {name: arrays.get(f".info.{name}") for name in Info._fields}
    return Result(
        **fields,
        info=Info(**info),
        state=jax.tree.map(lambda name: jnp.asarray(arrays[name]), named),
    )


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
      A `flowsde.Flow` for a family that makes one, a pipeline of `flowsde.pipelines`, else the
      `nnx.Module`.

    Raises:
      FileNotFoundError: there is no converted model.
      ValueError: it is of another format or version, or not what was written, naming the file; a
        rule names no axis of the mesh, or the devices do not share a parameter evenly, which is
        named.
    """
    from flowsde import pipelines
    from flowsde_converters.load import load_model, load_module
    from flowsde_converters.store import is_pipeline

    folder = check_path("folder", folder)
    how = (mesh, dtype, rules, numerics, verify)
    if is_pipeline(folder):
        return pipelines.load(folder, lambda part: load_module(part, *how), verify)
    return load_model(folder, *how)
