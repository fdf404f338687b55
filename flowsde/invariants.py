"""What must hold for every search, checked of one: `check_search`.

Prompts that differ in their reward share a Gaussian mixture as their flow. A target that some of
them reach lets these end before the others. A search keeps what is asked of it if it draws by keys
that are made of what a draw is for, changes nothing when it is told of rows that it did not ask
for, and has all of its budget in its state.
"""

import tempfile
import warnings
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsde import analytic
from flowsde._checks import check_count
from flowsde.flow import Flow
from flowsde.interpolants import linear
from flowsde.runner.evaluate import means
from flowsde.runner.packed.batch import batch
from flowsde.runner.result import Result
from flowsde.runner.run import iterate, run
from flowsde.runner.saved import restore_search, save_search
from flowsde.search.protocol import BudgetTooSmall, Search

_TOLERANCE = 1e-5
"""Of values, absolute and relative: sums of other shapes round differently."""
_COUNTS = ("nfe", "verifier_calls", "t")
_VALUES = ("x", "x0", "reward")


class SearchCheck(NamedTuple):
    """What `check_search` found; its text is a line for each property.

    Attributes:
      found: by property, in the order of checking, what is wrong with it; None if it holds.
      untried: properties of which nothing is known, since the plain run is wrong already.
    """

    found: dict[str, str | None]
    untried: tuple[str, ...] = ()

    @property
    def failed(self) -> dict[str, str]:
        """Those that do not hold, with what is wrong."""
        return {name: wrong for name, wrong in self.found.items() if wrong is not None}

    def __str__(self) -> str:
        known = [_line(name, wrong) for name, wrong in self.found.items()]
        return "\n".join([*known, *map(_untried, self.untried)])


def _line(name: str, wrong: str | None) -> str:
    return f"holds  {name}" if wrong is None else f"FAILS  {name}: {wrong}"


def _untried(name: str) -> str:
    return f"not tried  {name}"


def check_search(
    search: Search,
    *,
    prompts: int = 4,
    seed: int = 0,
    tell: Callable[[str], Any] | None = print,
) -> SearchCheck:
    """Check that a search has the properties on which the runner and its users rely.

    They are: the budget is a cap, and what is charged is what was counted; a target that is reached
    ends the search, once the round under way is over, and no mean above a grid's last time reaches
    one unless it may (`GridSearch.early_answers`); what is computed is what is reported, by the
    word of a model that counts its rows; the answer is worth its reward; a prompt's answer is its
    own, whatever it runs with, in chunks of any size, packed, or over several devices if there are;
    one round at a time, saved and resumed, the end is the same; a prompt of a smaller budget has
    what a smaller search finds; NaN is no reward. The problem is one of points in the plane, and
    small; but ten or more programs are compiled, which takes from half a minute to some minutes on
    two cores. Where the plain run fails, or is not charged as it is counted, nothing else is tried.

    Args:
      search: any, one of your own for example, with a budget for some rounds.
      prompts: how many are searched together, 2 or more.
      seed: of the run's key.
      tell: is told a line for each property as soon as it is known; None is silent.

    Returns:
      What holds and what does not, the same lines; `assert not check.failed` in a test.

    Raises:
      TypeError, ValueError: an argument is none.

    Example:
      >>> kernel = fs.kernels.ddim(fs.interpolants.linear())
      >>> search = fs.search.bon(nfe=16, kernel=kernel, grid=fs.grids.uniform(4))
      >>> found = fs.check_search(search, prompts=2, tell=None)
      >>> found.failed
      {}
    """
    check_count("prompts", prompts, least=2)
    problem = _Problem(search, prompts, seed)
    found: dict[str, str | None] = {}
    names = [name for name in _CHECKS if name != _DEVICES or jax.local_device_count() > 1]
    for name in names:
        # All others compare with the plain run, and would say the same of it again.
        if found.get(_PLAIN) is not None:
            said = _untried(name)
        else:
            found[name] = _wrong(partial(_CHECKS[name], problem))
            said = _line(name, found[name])
        if tell is not None:
            tell(said)
    return SearchCheck(found, tuple(name for name in names if name not in found))


def _wrong(check: Callable[[], None]) -> str | None:
    """What is wrong with a property; None if it holds."""
    try:
        check()
    except Exception as error:  # A search of one's own may raise anything.
        cause = "" if isinstance(error, _Wrong) else f"{type(error).__name__}: "
        return f"{cause}{error}"
    return None


class _Wrong(Exception):
    """A property does not hold."""


_SEEN = {"rows": 0}
"""By the counting model; in the module, since a program is compiled anew for what changes in it."""


def _velocity(data: Any, x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
    return data.velocity(linear(), x, t)


def _counting(data: Any, x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
    jax.debug.callback(_count, t)
    return _velocity(data, x, t, cond)


def _count(t: Any) -> None:
    _SEEN["rows"] += len(t)


def _reward(points: jax.Array, place: jax.Array) -> jax.Array:
    return -jnp.sum(jnp.square(points - place), axis=-1)


def _with_holes(points: jax.Array, place: jax.Array) -> jax.Array:
    return jnp.where(jnp.sin(9.0 * points[:, 0]) > 0.0, jnp.nan, _reward(points, place))


class _Problem:
    """A search and what it is run on; results are found once."""

    def __init__(self, search: Search, prompts: int, seed: int):
        self.search = search
        turn = 2.0 * np.pi * np.arange(prompts) / prompts
        self.cond = np.stack([np.cos(turn), np.sin(turn)], axis=1).astype(np.float32)
        self.ids = 3 * np.arange(prompts) + 11  # never their places
        self.key = jax.random.key(seed)
        centres = np.array([[1.0, 1.0], [-1.0, 0.5], [0.5, -1.0]])
        data = analytic.mixture(np.ones(3), centres, 0.1)
        self.flow = Flow.from_callable(_velocity, data, (2,))
        self.counting = Flow.from_callable(_counting, data, (2,))

    @cached_property
    def target(self) -> float:
        """Which about half of the prompts reach."""
        whole = run(self.key, self.flow, self.search, _reward, **self.of())
        return float(np.median(whole.reward))

    @cached_property
    def together(self) -> Result:
        return self.run()

    def of(self, at: Any = slice(None)) -> dict[str, Any]:
        """Some prompts, as arguments."""
        return {"cond": self.cond[at], "prompt_ids": self.ids[at]}

    def run(self, at: Any = slice(None), **options: Any) -> Result:
        options = {"target_reward": self.target, **self.of(at), **options}
        search, flow = options.pop("search", self.search), options.pop("flow", self.flow)
        return run(self.key, flow, search, _reward, **options)


def _same(one: Any, other: Any, what: str) -> None:
    """Of two results, or of one's prompts: the same counts, and values to rounding."""
    for name in (*_COUNTS, *_VALUES):
        a, b = (np.asarray(getattr(result, name)) for result in (one, other))
        close = partial(np.allclose, rtol=_TOLERANCE, atol=_TOLERANCE)
        if not (np.array_equal if name in _COUNTS else close)(a, b):
            raise _Wrong(f"{name} is {a.tolist()} {what}, expected {b.tolist()}")


def _rows(result: Result, at: Any) -> Result:
    """Some prompts of a result, without what only the whole has."""
    return jax.tree.map(lambda a: a[at], result._replace(info=None, state=None))


def _is_charged(problem: _Problem) -> None:
    result, nfe = problem.together, problem.search.nfe
    charged = np.asarray(result.info.charged).sum(0)
    if np.any(np.asarray(result.nfe) > nfe):
        raise _Wrong(f"nfe is {np.asarray(result.nfe).tolist()}, expected {nfe} at most")
    if not np.array_equal(charged, result.nfe):
        counted = np.asarray(result.nfe).tolist()
        raise _Wrong(f"rounds charge {charged.tolist()}, which is not the nfe {counted}")


def _ends_at_its_target(problem: _Problem) -> None:
    """By a target that every prompt's first whole answer reaches, and so the search."""
    go = partial(iterate, problem.key, problem.flow, problem.search, _reward, **problem.of())
    rounds = list(go())
    info = jax.tree.map(np.asarray, rounds[-1].info)
    # Finishing follows a target that is reached, and no longer searches.
    charged = np.where(info.finishing, 0, info.charged)
    times, rewards = (
        np.stack([np.asarray(getattr(result, name)) for result in rounds])
        for name in ("t", "reward")
    )
    last = len(charged) - 1 - np.argmax(charged[::-1] > 0, axis=0)
    each = np.arange(charged.shape[1])
    # Whole: at the time of the answer that the search ends with.
    whole = (times <= times[last, each]) & (rewards > -np.inf)
    at = np.argmax(whole, axis=0)
    target = float(np.min(rewards[at, each]))
    *_, ended = go(target_reward=target)
    if np.any(below := np.asarray(ended.reward) < target):
        got = np.asarray(ended.reward)[below].tolist()
        raise _Wrong(f"reward is {got} though {target:.6g} was reached on the way")
    info = jax.tree.map(np.asarray, ended.info)
    spent = np.where(info.finishing, 0, info.charged).sum(0)
    most = np.cumsum(charged, axis=0)[at, each]
    if np.any(spent > most):
        raise _Wrong(
            f"{spent.tolist()} evaluations are charged, finishing aside, expected at most "
            f"{most.tolist()}, those of the rounds until the target was reached"
        )
    final = _last_time(problem.search)
    if final is not None and (early := _of_a_mean(times, rewards, final)) is not None:
        *_, ended = go(target_reward=early)
        above = np.asarray(ended.t) > np.maximum(final, times[-1])
        if np.any(above):
            raise _Wrong(
                f"a posterior mean at t = {np.asarray(ended.t)[above].tolist()} met the target "
                f"{early:.6g}, expected none above the grid's last time, {final:.6g}: see "
                f"GridSearch.meets"
            )


def _last_time(search: Any) -> np.float32 | None:
    """Above which no mean meets a target; None of a search that says so of none."""
    while hasattr(search, "inner"):
        search = search.inner
    if getattr(search, "early_answers", True):
        return None
    return np.float32(search.last_time)


def _of_a_mean(times: Any, rewards: Any, final: np.float32) -> float | None:
    """The least reward of answers that were means above a time; None where there were none."""
    means = (times > final) & (rewards > -np.inf)
    return float(rewards[means].min()) if means.any() else None


def _is_computed(problem: _Problem) -> None:
    jax.effects_barrier()
    before = _SEEN["rows"]
    said = int(np.sum(problem.run(flow=problem.counting).evaluations))
    jax.effects_barrier()
    if (rows := _SEEN["rows"] - before) != said:
        raise _Wrong(f"evaluations are {said}, the model saw {rows}")


def _is_worth_its_reward(problem: _Problem) -> None:
    result = problem.together
    interpolant = problem.search.interpolant
    x0, _ = means(problem.flow, result.x, result.t, problem.cond, interpolant=interpolant)
    found = result._replace(x0=x0, reward=_reward(x0, jnp.asarray(problem.cond)))
    _same(result, found, "as it is returned")


def _is_alone(problem: _Problem) -> None:
    for i in range(len(problem.ids)):
        at = slice(i, i + 1)
        _same(problem.run(at), _rows(problem.together, at), f"for prompt {i} alone")


def _is_any_chunk(problem: _Problem) -> None:
    _same(problem.run(chunk_size=1), problem.together, "in chunks of 1")


def _is_resumed(problem: _Problem) -> None:
    options = {"target_reward": problem.target, **problem.of()}
    go = partial(iterate, problem.key, problem.flow, problem.search, _reward, **options)
    rounds = list(go())
    _same(rounds[-1], problem.together, "round by round")
    for at in sorted({0, len(rounds) // 2}):
        with tempfile.TemporaryDirectory() as folder:
            save_search(folder, problem.search, rounds[at])
            saved = restore_search(folder, problem.search)
        *_, last = go(resume=saved)
        _same(last, rounds[-1], f"resumed after round {at + 1}")


def _is_packed(problem: _Problem) -> None:
    options = {"target_reward": problem.target, **problem.of(), "batch_size": 3}
    found = dict(batch(problem.key, problem.flow, problem.search, _reward, **options))
    for i, number in enumerate(problem.ids.tolist()):
        _same(found[number], _rows(problem.together, i), f"for prompt {i} of a packed batch")


def _is_smaller(problem: _Problem) -> None:
    """Of two thirds of the budget, or the least that there is."""
    nfe = 2 * problem.search.nfe // 3
    try:
        smaller = problem.search.with_nfe(nfe)
    except BudgetTooSmall as error:
        nfe = min(error.least, problem.search.nfe)
        smaller = problem.search.with_nfe(nfe)
    budgets = np.where(np.arange(len(problem.ids)) % 2, nfe, problem.search.nfe)
    mixed, expected = problem.run(nfe=budgets), problem.run(search=smaller)
    odd, even = slice(1, None, 2), slice(0, None, 2)
    _same(_rows(mixed, odd), _rows(expected, odd), f"with nfe={nfe} of its own")
    _same(_rows(mixed, even), _rows(problem.together, even), "beside prompts of smaller budgets")


def _is_without_nan(problem: _Problem) -> None:
    reward = jax.tree_util.Partial(_with_holes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there are NaN
        result = run(
            problem.key, problem.flow, problem.search, reward, **problem.of(), invalid="warn"
        )
    if np.isnan(result.reward).any() or not np.isfinite(result.x).all():
        raise _Wrong(f"reward is {np.asarray(result.reward).tolist()}")


def _is_spread(problem: _Problem) -> None:
    mesh = jax.make_mesh((2,), ("prompt",), devices=jax.local_devices()[:2])
    _same(problem.run(mesh=mesh), problem.together, "over two devices")


_PLAIN = "the budget is a cap, and rounds charge what is counted"
_DEVICES = "several devices change nothing"
_CHECKS: dict[str, Callable[[_Problem], None]] = {
    _PLAIN: _is_charged,
    "a target that is reached ends the search": _ends_at_its_target,
    "what is computed is what is reported": _is_computed,
    "the answer is worth its reward": _is_worth_its_reward,
    "a prompt alone is the prompt beside others": _is_alone,
    "chunks change nothing": _is_any_chunk,
    "round by round, saved and resumed, it is the same": _is_resumed,
    "packed batches change nothing": _is_packed,
    "a prompt of a smaller budget is a smaller search": _is_smaller,
    "NaN is no reward": _is_without_nan,
    _DEVICES: _is_spread,
}
