"""Settings of `flowsde sample`: what each preset means for each method, and what they build.

A preset gives every setting of every method; options that the user gives replace some. `resolve`
checks the whole, drops what has no effect, and `build` makes the search.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flowsde import diffusion, grids, interpolants, kernels
from flowsde._checks import check_count, check_float, check_non_negative
from flowsde._text import shown
from flowsde.cli.settings import CHOICES, Settings, flag
from flowsde.search import Search, bon, code, rbf, smc, sop, svdd
from flowsde.search.complete import default_steps

_SHIFT = 3.0

MAKERS: dict[str, Callable[..., Search]] = {
    "ode": bon,
    "sde": bon,
    "bon": bon,
    "sop": sop,
    "smc": smc,
    "code": code,
    "svdd": svdd,
    "rbf": rbf,
}
"""The search of each method; a trajectory is the best of one."""

# Trajectories have no budget of their own: they take the grid's steps.
_ODE = Settings(nfe=None, kernel="ode_euler", steps=40)
_BON = Settings(kernel="ode_euler", steps=10, width=16)
# The budget that few steps leave finds more than fine steps do: benchmarks/paper_tables.py, fifty.
_RECOMMENDED = Settings(interpolant="vp", kernel="ddim", data_variance=0.25, steps=None)
_PAPER = Settings(interpolant="vp", grid="quadratic", steps=10, finish="mean")

PRESETS: dict[str, dict[str, Settings]] = {
    "recommended": {
        "ode": _ODE,
        "sde": Settings(nfe=None, steps=40),
        "bon": _BON,
        "sop": Settings(kernel="ode_euler", backward=5),
        "smc": dataclasses.replace(_RECOMMENDED, temperature=0.1),
        "code": _RECOMMENDED,
        "svdd": _RECOMMENDED,
        "rbf": _RECOMMENDED,
    },
    # Kim et al., 2025, arXiv 2503.19385: 10 steps; best-of-N and SoP follow the linear ODE.
    "paper": {
        "ode": dataclasses.replace(_ODE, steps=10),
        "sde": dataclasses.replace(_PAPER, nfe=None),
        "bon": _BON,
        # Theirs takes 10 ODE steps in each of 5 rounds of K = 5 children of N = 2 paths, to and
        # from times of their own; on a grid, this is nearest.
        "sop": Settings(
            kernel="ode_euler", steps=14, start=8, forward=7, backward=8, finish="mean"
        ),
        "smc": dataclasses.replace(_PAPER, temperature=0.1),
        "code": _PAPER,
        "svdd": _PAPER,
        # As in the public code: a chain begins from the best of 25 draws, and the last transition
        # has what the others leave, of 500 evaluations 48 a chain.
        "rbf": dataclasses.replace(_PAPER, seeds=25, allocation="reserve"),
    },
}

_COUNTS = (
    *("nfe", "steps", "chains", "seeds", "block", "interval", "paths", "start", "forward"),
    *("backward", "finish_steps", "width"),
)
_MOST_NFE, _MOST_OTHERS = 1_000_000, 10_000
"""Largest counts: beyond what is of use, below where numbers wrap or memory runs out."""
_TUNING = (
    *("chains", "seeds", "last", "allocation", "temperature", "block", "potential", "scheme"),
    *("threshold", "interval", "paths", "start", "forward", "backward", "finish", "finish_steps"),
    "width",
)
"""Settings of some methods' searches, which take them by these names."""


def check(name: str, value: Any) -> None:
    """ValueError unless a setting can have this value, whatever the method."""
    if name in CHOICES and value not in CHOICES[name]:
        known = ", ".join(CHOICES[name])
        raise ValueError(f"{flag(name)} must be one of {known}, got '{shown(value)}'")
    if name in _COUNTS:
        check_count(flag(name), value, most=_MOST_NFE if name == "nfe" else _MOST_OTHERS)
    if name == "gradient_temperature":
        check_non_negative(flag(name), value)
    if isinstance(value, float):
        check_float(flag(name), value)


def _parameters(method: str) -> list[str]:
    """Settings that a method's search takes."""
    names = inspect.signature(MAKERS[method]).parameters
    # One trajectory is one candidate wide.
    one = ("width",) if method in ("ode", "sde") else ()
    return [name for name in _TUNING if name in names and name not in one]


def _unused(method: str, s: Settings) -> dict[str, str]:
    """Settings that have no effect, and why."""
    unused: dict[str, str] = {}
    no_gradient = method in ("ode", "sde", "smc") or s.kernel == "ode_euler"
    for names, used, why in (
        (("eta", "data_variance"), s.kernel in ("ddim", "cps"), f"kernel {s.kernel}"),
        (("diffusion", "diffusion_scale"), s.kernel == "euler_maruyama", f"kernel {s.kernel}"),
        (("gradient_temperature",), not no_gradient, f"method {method}, kernel {s.kernel}"),
        (("finish_steps",), s.finish != "mean", f"finish {s.finish}"),
        (("scheme", "threshold", "interval"), s.potential != "final", f"potential {s.potential}"),
        (set(_TUNING) - set(_parameters(method)), False, f"method {method}"),
    ):
        if not used:
            unused |= dict.fromkeys(names, why)
    return unused


def unused(preset: str, method: str, given: dict[str, Any]) -> dict[str, str]:
    """Settings that have no effect on a method with some replaced by the user, and why."""
    return _unused(method, dataclasses.replace(PRESETS[preset][method], **given))


def _one_trajectory(method: str, s: Settings, given: dict[str, Any]) -> Settings:
    """The budget of one trajectory is its steps, twice that with guidance."""
    cost = evaluations(s)
    assert s.steps is not None
    if s.nfe is None:
        return dataclasses.replace(s, nfe=s.steps * cost)
    steps = s.steps if "steps" in given else s.nfe // cost
    if steps * cost != s.nfe:
        raise ValueError(
            f"--nfe must be {cost} x --steps = {cost * max(steps, 1)} for the one trajectory of "
            f"method {method}, got {s.nfe}"
        )
    return dataclasses.replace(s, steps=steps)


def _by_budget(s: Settings) -> Settings:
    """Steps that the preset leaves to the budget."""
    if s.steps is not None:
        return s
    assert s.nfe is not None
    return dataclasses.replace(s, steps=min(max(s.nfe // evaluations(s) // 5, 2), 20))


def _by_times(s: Settings, times: grids.Grid) -> Settings:
    """Evaluations of finishing that are left to the times; none is to end on the mean."""
    if s.finish in (None, "mean") or s.finish_steps is not None:
        return s
    steps = default_steps(str(s.finish), _unguided(s).interpolant, times)
    if steps == 0:
        return dataclasses.replace(s, finish="mean")
    return dataclasses.replace(s, finish_steps=steps)


def evaluations(s: Settings) -> int:
    """Model evaluations a candidate costs."""
    return 1 if s.guidance == 1.0 else 2


def resolve(preset: str, method: str, given: dict[str, Any]) -> Settings:
    """A preset's settings for a method, with some replaced by the user.

    Args:
      preset, method: by name.
      given: fields of `Settings`.

    Raises:
      ValueError: naming an option that is wrong, or that would have no effect.
    """
    check("preset", preset)
    check("method", method)
    return resolve_from(PRESETS[preset][method], method, given)


def resolve_from(
    base: Settings,
    method: str,
    given: dict[str, Any],
    times: Callable[[int], grids.Grid | None] = lambda steps: None,
) -> Settings:
    """As `resolve`, from settings that are no preset's.

    Args:
      base: the settings.
      method: by name.
      given: fields of `Settings`.
      times: of a model's own for a number of steps, in the place of those of `grid`; or None.
    """
    for name, value in given.items():
        check(name, value)
    s = dataclasses.replace(base, **given)
    if (method == "ode") != (s.kernel == "ode_euler") and method in ("ode", "sde"):
        wanted = "ode_euler" if method == "ode" else "euler_maruyama, ddim or cps"
        raise ValueError(f"--kernel must be {wanted} for method {method}, got {s.kernel!r}")
    without = _unused(method, s)
    for name in given:
        if name in without:
            why = without[name]
            raise ValueError(f"{flag(name)} has no effect with {why}, got {given[name]!r}")
    if method in ("ode", "sde"):
        s = _one_trajectory(method, s, given)
    s = _by_budget(s)
    if s.diffusion_scale is None and s.diffusion is not None:
        make = getattr(diffusion, s.diffusion)
        default = inspect.signature(make).parameters["scale"].default
        s = dataclasses.replace(s, diffusion_scale=default)
    nothing: dict[str, Any] = dict.fromkeys(without)
    s = dataclasses.replace(s, **nothing)
    assert s.steps is not None
    own = times(s.steps)
    with _naming_options(s):
        return _by_times(s, grid(s) if own is None else own)


@contextmanager
def _naming_options(s: Settings) -> Iterator[None]:
    """Arguments of kernels, grids and searches are options of nearly the same names."""
    try:
        yield
    except ValueError as error:
        first, _, rest = str(error).partition(" ")
        name = {"scale": "diffusion_scale"}.get(first, first)
        if name in vars(s):
            raise ValueError(f"{flag(name)} {rest}") from error
        raise


def _kernel(s: Settings) -> kernels.Kernel:
    inner = _unguided(s)
    beta = s.gradient_temperature
    return kernels.reward_gradient(inner, beta) if beta else inner


def _unguided(s: Settings) -> kernels.Kernel:
    p = getattr(interpolants, s.interpolant)()
    if s.kernel == "ode_euler":
        return kernels.ode_euler(p)
    if s.kernel == "euler_maruyama":
        return kernels.euler_maruyama(p, getattr(diffusion, str(s.diffusion))(s.diffusion_scale))
    return getattr(kernels, s.kernel)(p, s.eta, s.data_variance)


def grid(s: Settings) -> grids.Grid:
    """The times of resolved settings."""
    shift = (_SHIFT,) if s.grid == "shifted" else ()
    return getattr(grids, s.grid)(s.steps, *shift)


def build(method: str, s: Settings, times: grids.Grid | None = None) -> Search:
    """The search of resolved settings; errors name the setting.

    Args:
      method: by name.
      s: of `resolve`.
      times: of a model's own in the place of those of `s.grid`.
    """
    options = {name: getattr(s, name) for name in _parameters(method)}
    options = {name: value for name, value in options.items() if value is not None}
    with _naming_options(s):
        made = MAKERS[method](
            nfe=s.nfe, kernel=_kernel(s), grid=grid(s) if times is None else times, **options
        )
        # The runner divides the budget by what a candidate costs; is that enough?
        made.with_nfe(made.nfe // evaluations(s))
    return made


def describe(method: str, s: Settings, named: Mapping[str, Any] | None = None) -> str:
    """The effective settings in one line, with more of a model that take their place."""
    every = dataclasses.asdict(s) | dict(named or {})
    values = [(k, v) for k, v in every.items() if v is not None]
    words = (f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in values)
    return " ".join([method, *words])
