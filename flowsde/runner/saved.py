"""A search on disk, as a `Result` of `iterate`.

It is saved to FOLDER/.flowsde/search/, as in `flowsde._states`: the last two saves, each a
file that is whole or not there, so that a process killed at any moment leaves one to go on from.
"""

import ast
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowsde import _own, _states
from flowsde._checks import check_path
from flowsde._files import HIDDEN
from flowsde._keys import is_keys
from flowsde._schema import array, fields, maybe, table, text, whole, wrong
from flowsde.runner.clock import Timing
from flowsde.runner.mesh import gather
from flowsde.runner.result import COUNTERS, DRAFTS, Answers, Given, Result
from flowsde.search import Info, Search
from flowsde.search.drafts import draft_cost_of

SEARCH = "search"
"""Of the folder of states, inside the hidden one."""


def _flat(tree: Any) -> dict[str, Any]:
    """Leaves by their path."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def save_search(folder: str | Path, search: Search, result: Result) -> None:
    """Save a result of `iterate`, so that the search can go on from it.

    In a job of several processes all of them call it, and one writes.

    Args:
      folder: made if it is not there. In its folder ``.flowsde``, which is all that is written to,
        it holds the last two saves.
      search: that is being run.
      result: after any round.

    Raises:
      ValueError: another process is writing to the folder, or its ``.flowsde`` is not flowsde's.

    Example:
      >>> flow = fs.analytic.gaussian([0.0, 0.0], 1.0).flow()
      >>> reward = lambda images, cond: images[:, 0]  # of a sample: 0, give or take 1
      >>> search = fs.search.svdd(
      ...     nfe=40, kernel=fs.kernels.ddim(flow.interpolant), grid=fs.grids.uniform(8)
      ... )
      >>> for result in fs.iterate(jax.random.key(0), flow, search, reward):
      ...     fs.save_search("OUT", search, result)
    """
    folder = check_path("folder", folder)
    if not isinstance(result, Result):
        raise TypeError(f"result must be a flowsde.Result, got {type(result).__name__}")
    if result.state is None:
        raise ValueError("result has no state to go on from, expected one of run or iterate")
    arrays, about = pack(search, result)
    if jax.process_index() == 0:
        with _own.locked(folder) as hidden:
            _states.save(hidden / SEARCH, arrays, about)


def restore_search(folder: str | Path, search: Search) -> Result:
    """The last result saved in a folder, to be passed on as ``resume``.

    One that is damaged is passed over with a warning for the one before it.

    Args:
      folder: of `save_search`.
      search: that was being run; only the same can go on.

    Raises:
      FileNotFoundError: the folder holds no saved search.
      ValueError: it holds one of another search or an earlier version, or none that can be read.

    Example:
      >>> flow = fs.analytic.gaussian([0.0, 0.0], 1.0).flow()
      >>> reward = lambda images, cond: images[:, 0]  # of a sample: 0, give or take 1
      >>> search = fs.search.svdd(
      ...     nfe=40, kernel=fs.kernels.ddim(flow.interpolant), grid=fs.grids.uniform(8)
      ... )
      >>> first = next(fs.iterate(jax.random.key(0), flow, search, reward))
      >>> fs.save_search("OUT", search, first)
      >>> saved = fs.restore_search("OUT", search)
      >>> int(fs.run(jax.random.key(0), flow, search, reward, resume=saved).nfe)
      40
    """
    folder = check_path("folder", folder)
    own = folder / HIDDEN / SEARCH
    result, passed = _states.newest(own, lambda path: unpack(*_states.load(path), search, path))
    if result is None and passed:
        raise ValueError(passed[0])
    if result is None and any(one.is_dir() for one in folder.glob("[0-9]*/arrays")):
        raise ValueError(
            f"{folder} holds a search saved by an earlier version of flowsde, which this one "
            f"cannot go on from"
        )
    if result is None:
        raise FileNotFoundError(f"{folder} holds no saved search")
    for said in passed:
        warnings.warn(f"{said}; going on from the save before it", stacklevel=2)
    return result


def pack(search: Search, result: Result) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays of a result by the path of the leaf, and how to read them."""
    arrays, keys, dtypes = {}, {}, {}
    for name, leaf in _flat(gather(result)).items():
        if is_keys(leaf):
            keys[name] = str(jax.random.key_impl(leaf))
            leaf = jax.random.key_data(leaf)
        own = np.asarray(leaf)
        if own.dtype.kind == "V":
            # NumPy's files have no word for bfloat16.
            dtypes[name] = own.dtype.name
            own = own.view(f"u{own.itemsize}")
        arrays[name] = own
    prompts = None if np.ndim(result.nfe) == 0 else int(np.size(result.nfe))
    about = {"search": repr(search), "prompts": prompts, "keys": keys, "dtypes": dtypes}
    return arrays, about


_ABOUT = fields(search=text, prompts=maybe(whole(1)), keys=table(text), dtypes=table(text))


def unpack(
    arrays: dict[str, np.ndarray], about: dict[str, Any], search: Search, path: Path
) -> Result:
    """What `pack` packed; ValueError naming the file and the field."""
    about = _ABOUT(about, str(path))
    if about["search"] != repr(search):
        raise _states.OtherRun(f"{path} holds a search of other settings: {about['search']}")
    leaves: dict[str, Any] = dict(arrays)
    try:
        for name, dtype in about["dtypes"].items():
            leaves[name] = arrays[name].view(jnp.dtype(dtype))
        for name, implementation in about["keys"].items():
            leaves[name] = jax.random.wrap_key_data(jnp.asarray(arrays[name]), impl=implementation)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {name[:60]} cannot be read: {error}") from None
    return _rebuild(_as_now(leaves, search), search, about["prompts"], path)


def _rebuild(leaves: dict[str, Any], search: Search, prompts: int | None, path: Path) -> Result:
    """A result from its leaves by path: the search says what its state looks like."""
    lead = () if prompts is None else (prompts,)

    def read(name: str, dtype: Any, *shape: int | None) -> Any:
        if name not in leaves:
            raise ValueError(f"{path} lacks the field {name}")
        return array(dtype, *shape)(np.asarray(leaves[name]), f"{path}: {name}")

    def any_shape(name: str) -> Any:
        ndim = np.ndim(leaves.get(name, 0.0))
        return (*lead, *[None] * (ndim - len(lead)))

    x = read(".x", np.float32, *any_shape(".x"))
    shape = x.shape[len(lead) :]

    def begin() -> tuple[Given, Any]:
        key, target, nfe = jax.random.key(0), jnp.float32(0.0), jnp.int32(0)
        given = Given(jax.random.key_data(key), target, nfe)
        return given, search.init(key, shape, target, nfe)

    like = dict(zip((".given", ".state"), jax.eval_shape(begin), strict=True))

    def leaf(at: Any, like: Any) -> jax.Array:
        name = at[0].key + jax.tree_util.keystr(at[1:])
        if not jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
            return jnp.asarray(read(name, like.dtype, *lead, *like.shape))
        found: Any = leaves.get(name)
        if not is_keys(found) or found.shape != (*lead, *like.shape):
            raise wrong(f"{path}: {name}", f"keys of shape {(*lead, *like.shape)}", found)
        return found

    begun = jax.tree.map_with_path(leaf, like)
    image = leaves.get(".image")
    if image is None or image.shape[: len(lead)] != lead:
        raise wrong(f"{path}: .image", f"pictures of {prompts or 1} prompts", image)
    own = {
        "image": image,
        "x": x,
        "x0": read(".x0", np.float32, *x.shape),
        "t": read(".t", np.float32, *lead),
        "reward": read(".reward", np.float32, *lead),
    }
    return Result(
        **own,
        **_counted(leaves, lead, path, draft_cost_of(search) is not None),
        info=_log(leaves, lead, path),
        given=begun[".given"],
        state=begun[".state"],
        run=read(".run", np.uint32, *lead) if ".run" in leaves else None,
        kept=_kept(leaves, lead, shape, path),
        parts=_parts(leaves, ".parts", path, lead),
        timing=_timing(leaves, path),
        part_calls=_part_calls(leaves, path, lead),
    )


def _timing(leaves: dict[str, Any], path: Path) -> Timing | None:
    """Of a budget in seconds."""
    if ".timing.seconds" not in leaves:
        return None
    kinds = {"cut": np.bool_, "seconds": float, "spent": float, "preparing": float}

    def read(name: str) -> Any:
        found = leaves.get(f".timing.{name}")
        own = None if found is None else np.asarray(found)
        return array(kinds.get(name, int))(own, f"{path}: .timing.{name}").item()

    return Timing(*map(read, Timing._fields))


def _kept(
    leaves: dict[str, Any], lead: tuple[int, ...], shape: tuple[int, ...], path: Path
) -> Answers | None:
    """Answers that were kept beside the best."""
    names = (name for name in Answers._fields if name not in ("parts", "log_weight"))
    found = {name: leaves.get(f".kept.{name}") for name in names}
    if all(leaf is None for leaf in found.values()):
        return None
    rewards = array(np.float32, *lead, None)(found["reward"], f"{path}: .kept.reward")
    many = rewards.shape
    image = found["image"]
    if image is None or image.shape[: len(many)] != many:
        raise wrong(f"{path}: .kept.image", f"{many[-1]} pictures of a prompt", image)
    shapes = {"x": (*many, *shape), "x0": (*many, *shape), "t": many}
    own = {n: array(np.float32, *s)(found[n], f"{path}: .kept.{n}") for n, s in shapes.items()}
    parts = _parts(leaves, ".kept.parts", path, many)
    return Answers(image=image, reward=rewards, parts=parts, **own)


def _as_now(leaves: dict[str, Any], search: Search) -> dict[str, Any]:
    """Leaves of an earlier version under the names of this one.

    The key, the target and the budget were in a search's own state, and RBF's r* had another name.
    """
    if ".given.key" in leaves:
        return leaves
    own = ".state.inner" if _finishes(leaves) else ".state"
    given: dict[str, Any] = {
        f".given.{name}": leaves.get(f"{own}.{name}") for name in Given._fields
    }
    if is_keys(given[".given.key"]):
        given[".given.key"] = jax.random.key_data(given[".given.key"])
    if _finishes(leaves) and given[".given.nfe"] is not None:
        # An inner search was given what finishing leaves.
        begun = search.init(jax.random.key(0), (1,), jnp.float32(0.0), jnp.int32(search.nfe))
        spent = np.int32(search.nfe) - np.asarray(_flat(begun)[".inner.nfe"])
        given[".given.nfe"] = given[".given.nfe"] + spent
    now = ".chains.incumbent_reward"
    return {name.replace(".chains.threshold", now): a for name, a in leaves.items()} | given


def _finishes(leaves: dict[str, Any]) -> bool:
    """Whether leaves of an earlier version are of a search that finishes its best particle."""
    return any(name.startswith(".state.inner") for name in leaves)


def _finishing(leaves: dict[str, Any], charged: np.ndarray) -> np.ndarray:
    """`Info.finishing`, of which an earlier version kept how many rounds there were."""
    steps = np.asarray(leaves[".state.step"]) if _finishes(leaves) else 0
    rounds_left = np.cumsum(charged[::-1] > 0, 0)[::-1]
    return (charged > 0) & (rounds_left <= steps)


def _counted(
    leaves: dict[str, Any], lead: tuple[int, ...], path: Path, drafts: bool
) -> dict[str, Any]:
    """Counters and what verifying cost; of one prompt as Python's numbers.

    Args:
      drafts: whether the search takes drafts of another flow.
    """
    counted = {}
    for name in (*COUNTERS, *([DRAFTS] if drafts else []), "verifier_cost"):
        found = np.asarray(leaves.get(f".{name}"))
        kinds = "iuf" if name == "verifier_cost" else "iu"
        if found.shape != lead or found.dtype.kind not in kinds or not (
            (found >= 0) & (found < 2**31)
        ).all():  # fmt: skip
            expected = f"numbers of shape {lead} from 0 to 2**31 - 1"
            raise wrong(f"{path}: .{name}", expected, leaves.get(f".{name}"))
        counted[name] = found if lead else found.item()
    return counted


_LOGGED = {
    name: np.bool_ if name in ("counted", "accepted", "finishing") else np.float32
    for name in Info._fields
    if name != "parts"
} | dict.fromkeys(("ancestors", "charged", *COUNTERS[1:], DRAFTS), np.int32)
_WIDE = (("time", "reward", "counted", "accepted"), ("ancestors", "path_time", "path_reward"))
"""Fields of `Info` with an axis of candidates, and those with one of paths."""


def _parts(
    leaves: dict[str, Any], of: str, path: Path, shape: tuple[int, ...], dtype: Any = np.float32
) -> dict[str, np.ndarray] | None:
    """Numbers of parts of a combined reward, by name; None if there are none."""
    names = [name for name in leaves if name.startswith(f"{of}[")]
    read = array(dtype, *shape)
    # As in a path of JAX: .parts['name'].
    return {
        ast.literal_eval(name[len(of) + 1 : -1]): read(np.asarray(leaves[name]), f"{path}: {name}")
        for name in names
    } or None


def _part_calls(leaves: dict[str, Any], path: Path, lead: tuple[int, ...]) -> dict[str, Any] | None:
    """How often parts were asked; of one prompt as Python's numbers."""
    found = _parts(leaves, ".part_calls", path, lead, int)
    for name, calls in (found or {}).items():
        if not ((calls >= 0) & (calls < 2**31)).all():
            raise wrong(f"{path}: .part_calls[{name!r}]", "numbers from 0 to 2**31 - 1", calls)
    return found if lead or found is None else {name: n.item() for name, n in found.items()}


def _log(leaves: dict[str, Any], lead: tuple[int, ...], path: Path) -> Info:
    """The rounds so far."""

    def read(name: str, *shape: int | None) -> np.ndarray:
        found = leaves.get(f".info.{name}")
        return array(_LOGGED[name], *shape)(
            None if found is None else np.asarray(found), f"{path}: .info.{name}"
        )

    charged = read("charged", None, *lead)
    rounds = len(charged)
    log: dict[str, Any] = {}
    if ".info.finishing" not in leaves:
        log["finishing"] = _finishing(leaves, charged)
    for names in _WIDE:
        width = read(names[0], rounds, *lead, None).shape[-1]
        log |= {name: read(name, rounds, *lead, width) for name in names}
    for name in Info._fields:
        if name == "parts":
            shape = (rounds, *lead, np.shape(log["time"])[-1])
            log[name] = _parts(leaves, ".info.parts", path, shape)
        elif name == "seconds":
            log[name] = read(name, rounds, 3) if ".info.seconds" in leaves else None
        elif name == DRAFTS:
            log[name] = read(name, rounds, *lead) if f".info.{name}" in leaves else None
        elif name not in log:
            log[name] = read(name, rounds, *lead)
    return Info(**log)
