"""What a search must keep to, whoever wrote it: its shapes before a run, its bounds during one."""

import contextlib
import functools
import inspect
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowsde._checks import check_count
from flowsde.runner.inner import like
from flowsde.runner.records import Program
from flowsde.runner.traced import ask, tell
from flowsde.search.grid import check_kernel
from flowsde.search.protocol import Candidates, Evaluation, Info, Particle, Search
from flowsde.search.value import value_of

MEMBERS = tuple(name for name in vars(Search) if not name.startswith("_"))
"""Of the protocol."""


def check_members(search: Any) -> None:
    """Raise unless an object has all members of the protocol, its counts, and a kernel of its use.

    Raises:
      TypeError, ValueError: naming the search's class and the members; `UnusableKernel` among them.
    """
    if hasattr(search, "grid") and hasattr(search, "kernel"):
        check_kernel(search.kernel)
    missing = [name for name in MEMBERS if not hasattr(search, name)]
    said = f"search must be a flowsde.search.Search, got {type(search).__name__}"
    if not missing:
        for name in ("nfe", "n_candidates", "max_rounds"):
            count = getattr(search, name)
            check_count(f"search {type(search).__name__}: {name}", count, most=2**63 - 1)
        return
    if len(missing) < len(MEMBERS):
        for name in missing:
            _check_no_property(search, name)
        said += f", which lacks {', '.join(missing)}; flowsde.search.SearchBase has defaults"
    raise TypeError(said)


def _check_no_property(search: Any, name: str) -> None:
    """TypeError for a member that is there: a property that raised looks as if it were not."""
    if inspect.getattr_static(search, name, None) is None:
        return
    try:
        getattr(search, name)
    except AttributeError as error:
        raise TypeError(f"search {type(search).__name__}: its {name} raised {error}") from error


def check_search(program: Program, shape: tuple[int, ...]) -> None:
    """Trace a search's functions on shapes alone.

    Args:
      program: whose search has all members of the protocol.
      shape: of a particle.

    Raises:
      ValueError, TypeError: naming the search's class and what one of its members returned.
    """
    _check_traces(program, shape)


def _array(dtype: Any, *shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


@functools.lru_cache(maxsize=64)
def _check_traces(program: Program, shape: tuple[int, ...]) -> None:
    search: Any = program.search
    own, w = f"search {type(search).__name__}", search.n_candidates

    def particles(*lead: int) -> Particle:
        x, number = _array(jnp.float32, *lead, *shape), _array(jnp.float32, *lead)
        return Particle(x, number, x, x, number, x if search.uses_gradient else None)

    state = jax.eval_shape(
        lambda: search.init(jax.random.key(0), shape, jnp.float32(0.0), jnp.int32(search.nfe))
    )
    flag, number, x = _array(jnp.bool, w), _array(jnp.float32, w), _array(jnp.float32, w, *shape)
    after, asked = _pair(own, "ask", "Candidates", _shapes(ask, search, state, None))
    _compare(f"{own}: the state that ask returns", after, state)
    value = value_of(search)
    key = _array(jnp.uint32, w, 2) if value is not None and value.draws else None
    to_move, draft = like(x, number, program.kind.moves), flag if program.kind.drafts else None
    expected_asked = Candidates(to_move, number, flag, flag, flag, key, draft)
    _compare(f"{own}: what ask returns", asked, expected_asked)
    asked = asked._replace(x=x)
    evals = Evaluation(x, x, number, x if search.uses_gradient else None)
    after, info = _pair(own, "tell", "Info", _shapes(tell, search, state, asked, evals))
    _compare(f"{own}: the state that tell returns", after, state)
    path = jax.eval_shape(search.path, state)
    n = path.t.shape[0] if isinstance(path, Particle) and path.t.ndim else 1
    _compare(f"{own}: what path returns", path, particles(n))
    _compare(f"{own}: what best returns", jax.eval_shape(search.best, state), particles())
    for name in ("done", "finishing"):
        told = jax.eval_shape(getattr(search, name), state)
        _compare(f"{own}: what {name} returns", told, _array(jnp.bool))
    one, each, ids = _array(jnp.float32), _array(jnp.float32, n), _array(jnp.int32, n)
    count = _array(jnp.int32)
    expected = Info(number, number, flag, flag, ids, one, count, one, each, each)
    _compare(f"{own}: what tell returns", info, expected)


def _shapes(call: Any, search: Search, *args: Any) -> Any:
    """Shapes of what a search asks for, or gives when told, from the trace that a run uses."""
    with contextlib.suppress(TypeError):
        return jax.eval_shape(partial(call, search), *args)
    # JAX names the function that returned something else than arrays: the user's here.
    own = getattr(search, call.__name__)
    return jax.eval_shape(own, *[arg for arg in args if arg is not None])


def _pair(own: str, name: str, kind: str, value: Any) -> tuple[Any, Any]:
    """What `ask` or `tell` returned, if there are two things."""
    if type(value) is not tuple or len(value) != 2:
        raise TypeError(f"{own}: {name} must return (state, {kind}), got {_said(value)}")
    return value


def _compare(what: str, got: Any, expected: Any) -> None:
    """Raise unless two trees are alike in structure, shapes and dtypes."""
    structure: Any = jax.tree.structure(got)
    if structure != jax.tree.structure(expected):
        raise TypeError(f"{what} must be {_said(expected)}, got {_said(got)}")
    paths = jax.tree.leaves_with_path(expected)
    for (path, wanted), found in zip(paths, jax.tree.leaves(got), strict=True):
        if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
            raise ValueError(
                f"{what} must have {jax.tree_util.keystr(path) or 'an array'} of {_said(wanted)}, "
                f"got {_said(found)}"
            )


def _said(value: Any) -> str:
    """An array's dtype and shape, or what else something is."""
    if hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    fields = getattr(value, "_fields", None)
    if fields is not None:
        lacking = [
            name
            for name, one in zip(fields, value, strict=True)
            # A search is asked for a key only where it looks ahead, and for drafts where it has
            # a draft_cost.
            if one is None and name not in ("key", "draft")
        ]
        without = f" without {', '.join(lacking)}" if lacking else ""
        return f"{type(value).__name__}{without}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return f"a {type(value).__name__}"


def check_bounds(
    search: Search, rounds: int, done: bool, nfe: Any, budgets: Any, ids: np.ndarray
) -> None:
    """ValueError if a search went past its prompts' budgets, or its rounds.

    Args:
      search: that is run.
      rounds: so far.
      done: whether it is, for all prompts.
      nfe: evaluations charged, [P] or [].
      budgets: in evaluations, shaped alike.
      ids: of the prompts, [P].
    """
    own = f"search {type(search).__name__}"
    charged, most = np.atleast_1d(nfe)[: ids.size], np.atleast_1d(budgets)[: ids.size]
    for i in np.flatnonzero(charged > most)[:1]:
        raise ValueError(
            f"{own} charged {charged[i]} evaluations for a budget of {most[i]}, for prompt id "
            f"{ids[i]}: it must be done before it exceeds its budget"
        )
    if not done and rounds >= search.max_rounds:
        raise ValueError(
            f"{own} is not done after {rounds} rounds, and its max_rounds is {search.max_rounds}"
        )
